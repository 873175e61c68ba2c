"""Dynamic sampling: which groups are kept, what becomes of the rest, and when to give up.

The engine here is a scripted one: engines are a part that anyone may replace, and what it generates
is what these tests are about.
"""

import dataclasses
from collections.abc import Callable

import pytest

from pipelines.checks import check_parts
from pipelines.disk.records import ROLLOUTS, SURPLUS, Rollout, read_rows
from pipelines.errors import UserError
from pipelines.grading.reward import Graded, make_reward
from pipelines.rollout.engine import Response
from pipelines.rollout.groups import check_reward, is_informative, prompt_at, rollout
from pipelines.rollout.hf import HuggingFaceEngine
from pipelines.watch import Silent

GROUP = 4


@dataclasses.dataclass
class Scripted:
    """Answers as many of a group's responses rightly as ``right(position)`` says."""

    right: Callable[[int], int]
    calls: list = dataclasses.field(default_factory=list)

    def generate(self, samples, names, sampling):
        self.calls.append(list(names))
        return [
            [
                Response([9, 2], [-0.5, -0.25], f"\\boxed{{{answer}}}", truncated=False)
                for answer in [s.answer] * self.right(name[1]) + ["999"] * (sampling.samples - self.right(name[1]))
            ]
            for s, name in zip(samples, names, strict=True)
        ]

    @property
    def positions(self):
        return [name[1] for call in self.calls for name in call]


@pytest.fixture(scope="module")
def reward():
    with make_reward(workers=1) as reward:
        yield reward


@pytest.fixture
def sample_step(configure, table, reward, tmp_path):
    """``sample_step(engine, setting, ...)``: one step; each goes on from the one before."""
    state = {"step": 0, "out": None, "metrics": {}}

    def run(engine, *overrides):
        state["step"] += 1
        out = tmp_path / str(state["step"])
        out.mkdir()
        state["metrics"] = rollout(
            configure(*overrides), state["step"], table, state["out"], engine, reward, out, Silent()
        )
        state["out"] = out
        used, surplus = ([group.position for group in read_rows(out / name, Rollout)] for name in (ROLLOUTS, SURPLUS))
        return used, surplus, state["metrics"]

    return run


# --- dynamic sampling -----------------------------------------------------------------------------


def test_only_groups_with_right_and_wrong_answers_are_kept(sample_step):
    # Even positions have 2 of 4 right, odd ones 4 of 4. Round 1 asks for 4 and finds 0 and 2; half
    # were of use, so round 2 asks for 2 / 0.5 = 4 more and finds 4 and 6.
    engine = Scripted(lambda position: 4 if position % 2 else 2)
    used, surplus, metrics = sample_step(engine)
    assert engine.positions == list(range(8))
    assert (used, surplus) == ([0, 2, 4, 6], [])
    assert (metrics["tries"], metrics["next_position"]) == (2, 8)
    assert (metrics["groups_sampled"], metrics["groups_informative"]) == (8, 4)
    assert metrics["informative_share"] == 0.5
    assert metrics["accuracy"] == pytest.approx((4 * 2 + 4 * 4) / 32)
    assert metrics["reward_used"] == 0.5


def test_the_next_step_aims_with_the_last_share_and_goes_on_in_the_order(sample_step):
    engine = Scripted(lambda position: 4 if position % 2 else 2)
    sample_step(engine)
    used, _, metrics = sample_step(engine)
    assert [len(call) for call in engine.calls] == [4, 4, 8]  # 4 / 0.5 at once
    assert used == [8, 10, 12, 14]
    assert (metrics["tries"], metrics["next_position"]) == (1, 16)
    assert engine.calls[2] == [(2, position) for position in range(8, 16)]  # named by the step too


def test_surplus_groups_are_used_first(sample_step):
    # Round 1: of 0..3 only 0 is of use. Round 2 asks for 3 / 0.25 = 12, and all are.
    engine = Scripted(lambda position: 2 if position == 0 or position > 3 else 0)
    used, surplus, metrics = sample_step(engine)
    assert used == [0, 4, 5, 6]
    assert surplus == list(range(7, 16))
    assert (metrics["groups_carried_in"], metrics["groups_surplus"]) == (0, 9)

    quiet = Scripted(lambda position: 2)
    assert sample_step(quiet)[:2] == ([7, 8, 9, 10], list(range(11, 16)))
    assert sample_step(quiet)[:2] == ([11, 12, 13, 14], [15])
    assert quiet.calls == []  # nothing had to be sampled
    # One is left. 13 of the last 16 sampled were of use: 3 / 0.8125 = 3.7, so 4 more.
    used, surplus, metrics = sample_step(quiet)
    assert (used, surplus) == ([15, 16, 17, 18], [19])
    assert quiet.positions == [16, 17, 18, 19]
    assert (metrics["groups_carried_in"], metrics["next_position"]) == (1, 20)


def test_one_round_asks_for_four_times_the_batch_at_most(sample_step):
    engine = Scripted(lambda position: 2 if position > 19 else 0)
    sample_step(engine, "rollout.batch_prompts=100")
    assert [len(call) for call in engine.calls] == [4, 16, 16]


@pytest.mark.parametrize(
    ("right", "advice", "share"), [(0, "Use easier questions", "0.0%"), (4, "Use harder", "100.0%")]
)
def test_giving_up_says_what_to_change(sample_step, right, advice, share):
    # Three rounds: 4, then 16 twice (a share of nothing is taken for a tenth, and cut at 4 x 4).
    engine = Scripted(lambda position: right)
    with pytest.raises(UserError) as caught:
        sample_step(engine, "rollout.max_tries=3")
    error = caught.value
    assert error.place == "rollout, step 1"
    assert "only 0 of 4 groups" in error.problem
    assert f"after 3 rounds (36 prompts, {share} of answers right)" in error.problem
    assert error.fix.startswith(advice)
    assert "rollout.dynamic_sampling=false" in error.fix
    assert len(engine.positions) == 36


def test_without_dynamic_sampling_every_group_is_kept(sample_step):
    engine = Scripted(lambda position: position % 5)
    used, surplus, metrics = sample_step(engine, "rollout.dynamic_sampling=false")
    assert (used, surplus) == ([0, 1, 2, 3], [])
    assert metrics["tries"] == 1
    assert metrics["accuracy"] == pytest.approx((0 + 1 + 2 + 3) / 16)
    assert sample_step(engine, "rollout.dynamic_sampling=false")[0] == [4, 5, 6, 7]


def lists(outcome, named):
    """A reward that pays these for every group."""

    class Own:
        asked = 0

        def doubt(self, sample):
            return ""

        def named(self, sample, count):
            self.asked += 1
            return [*named]

        def __call__(self, responses, samples, truncated):
            each = zip(*(values for values in named.values()), strict=True)
            rest = [dict(zip(named, values, strict=True)) for values in each] or [{}] * GROUP
            return [Graded("", o, r, rest[i % GROUP]) for i, (o, r) in enumerate(outcome * (len(responses) // GROUP))]

    return Own()


RIGHT = [("correct", 1.0), ("correct", 1.0), ("correct", 1.0), ("correct", 0.5)]


def test_groups_are_kept_by_the_key_that_is_asked_for(configure, rollouts):
    def kept(key, reward=(1, 1, 1, 1), **named):
        group = dataclasses.replace(rollouts[0], outcome=["correct"] * GROUP, reward=[*reward], named=named)
        return is_informative(configure(f"rollout.filter_key={key}"), group)

    assert not kept("accuracy", (0, 1, 2, 3))
    assert kept("reward", (-5, -5, -5, -4.5))
    assert not kept("reward", (0.3, 0.1 + 0.2, 0.3, 0.3))  # equal, as they are stored
    assert kept("format", format=[7, 7, 7, 8])
    assert not kept("format", (0, 1, 2, 3), format=[7] * 4)


def test_a_step_by_another_key_stores_and_tells_what_the_reward_names(configure, table, tmp_path):
    own, engine = lists(RIGHT, {"b": [1.0, 2.0, 3.0, 6.0], "a": [0.25] * 4}), Scripted(lambda position: 2)
    config = configure("rollout.filter_key=b", "rollout.batch_prompts=100")
    metrics = rollout(config, 1, table, None, engine, own, tmp_path, Silent())
    for group in read_rows(tmp_path / ROLLOUTS, Rollout):
        assert group.named == {"a": [0.25] * 4, "b": [1.0, 2.0, 3.0, 6.0]}
    assert (metrics["reward"], metrics["reward/a"], metrics["reward/b"]) == (3.5 / 4, 0.25, 3.0)
    assert (metrics["accuracy"], metrics["informative_share"]) == (1, 1)

    config = configure("rollout.filter_key=a", "rollout.max_tries=1")
    with pytest.raises(UserError, match=r"filter_key: a: only 0 of 4 groups have responses that differ in it"):
        rollout(config, 2, table, None, engine, own, tmp_path, Silent())


@pytest.mark.parametrize("setting", ["rollout.filter_key", "checkpoint.best_key"])
def test_a_key_that_the_reward_does_not_return_is_refused_before_anything_is_sampled(
    configure, table, tmp_path, setting
):
    own, config = lists(RIGHT, {"format": [1.0] * 4}), configure(f"{setting}=formt")
    problem = rf"{setting}: formt: outcome returns no such list\. Did you mean format\? Known: accuracy, reward, format"
    with pytest.raises(UserError, match=problem):
        check_reward(config, 1, table, own, Silent())
    engine = Scripted(lambda position: 2)
    with pytest.raises(UserError, match=problem):  # of one that cannot tell without responses
        rollout(config, 1, table, None, engine, own, tmp_path, Silent())
    assert len(engine.calls) == 1
    check_reward(configure(), 1, table, own, Silent())
    assert own.asked == 1  # not where there is nothing to ask for


def test_the_built_in_reward_has_no_lists(configure):
    check_parts(configure("rollout.filter_key=reward", "checkpoint.best_key=reward"))
    with pytest.raises(UserError, match=r"checkpoint.best_key: format: outcome returns no such list"):
        check_parts(configure("checkpoint.best_key=format"))


def test_the_rule_leaves_out_its_limits(configure, rollouts):
    def kept(right, *overrides):
        outcome = ["correct"] * right + ["wrong"] * (GROUP - right)
        group = dataclasses.replace(rollouts[0], outcome=outcome)
        return is_informative(configure(*overrides), group)

    assert [kept(right) for right in range(5)] == [False, True, True, True, False]
    narrow = ("rollout.accuracy_low=0.25", "rollout.accuracy_high=0.75")
    assert [kept(right, *narrow) for right in range(5)] == [False, False, True, False, False]


# --- order, batches -------------------------------------------------------------------------------


def test_every_prompt_comes_once_an_epoch_in_an_order_of_its_own():
    first, second = ([prompt_at(0, epoch * 50 + i, 50) for i in range(50)] for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second
    assert first != [prompt_at(1, i, 50) for i in range(50)]
    assert first[7] == prompt_at(0, 7, 50)  # whatever was asked before


def test_work_is_cut_into_batches_and_the_artifact_is_the_same(sample_step):
    one, other = Scripted(lambda position: 2), Scripted(lambda position: 2)
    used, _, _ = sample_step(one, "rollout.batch_prompts=4")
    assert sample_step(other, "rollout.batch_prompts=3")[0] == [p + 4 for p in used]
    assert [len(call) for call in one.calls] == [4]
    assert [len(call) for call in other.calls] == [3, 1]


def test_surplus_may_be_thrown_away_in_rounds_of_a_step(sample_step):
    """Three of four are informative: 4 prompts give 3 groups, so 4 more are sampled and 2 are left."""
    engine = Scripted(lambda position: 0 if position % 4 == 3 else 2)
    used, surplus, metrics = sample_step(engine, "published.drop_surplus=true")
    assert (used, surplus) == ([0, 1, 2, 4], [])
    assert (metrics["groups_thrown_away"], metrics["next_position"]) == (2, 8)
    used, _, metrics = sample_step(engine, "published.drop_surplus=true")
    assert (used, metrics["groups_carried_in"]) == ([8, 9, 10, 12], 0)
    assert [len(call) for call in engine.calls] == [4] * 4


def test_a_row_holds_a_prompt_and_its_graded_responses(sample_step, table, tmp_path):
    sample_step(Scripted(lambda position: 1))
    group = read_rows(tmp_path / "1" / ROLLOUTS, Rollout)[0]
    sample = table[prompt_at(0, 0, len(table))]
    assert group == Rollout(
        sample_id=sample.id,
        position=0,
        response_ids=[[9, 2]] * 4,
        response=[f"\\boxed{{{sample.answer}}}"] + ["\\boxed{999}"] * 3,
        logp=[[-0.5, -0.25]] * 4,
        truncated=[False] * 4,
        answer=[sample.answer] + ["999"] * 3,
        outcome=["correct"] + ["wrong"] * 3,
        reward=[1.0, 0.0, 0.0, 0.0],
        step=1,
    )


def test_metrics_count_outcomes_and_tokens(sample_step):
    class Mixed(Scripted):
        """Right, wrong, no answer, and cut off."""

        def generate(self, samples, names, sampling):
            return [
                [
                    Response([9, 2], [0.0] * 2, f"\\boxed{{{sample.answer}}}", False),
                    Response([9, 9, 2], [0.0] * 3, "\\boxed{999}", False),
                    Response([2], [0.0], "no idea", False),
                    Response([9] * 6, [0.0] * 6, "let me", True),
                ]
                for sample in samples
            ]

    _, _, metrics = sample_step(Mixed(lambda position: 0))
    assert metrics["accuracy"] == metrics["no_answer_share"] == metrics["truncated_share"] == 0.25
    assert metrics["response_tokens_mean"] == (2 + 3 + 1 + 6) / 4
    assert metrics["tokens_sampled"] == 4 * 12
    assert metrics["timed_out_share"] == 0


# --- with the tiny model --------------------------------------------------------------------------


def test_a_step_made_again_or_in_other_batches_is_the_same(configure, policy, table, reward, tmp_path):
    def made(name, *overrides):
        out = tmp_path / name
        out.mkdir()
        engine = HuggingFaceEngine(policy)
        rollout(configure(*overrides), 1, table, None, engine, reward, out, Silent())
        return read_rows(out / ROLLOUTS, Rollout), read_rows(out / SURPLUS, Rollout)

    first = made("first")
    assert made("again") == first
    for one, other in zip(first, made("cut", "rollout.batch_prompts=1"), strict=True):
        for group, same in zip(one, other, strict=True):
            assert same.response_ids == group.response_ids
            assert dataclasses.replace(same, logp=group.logp) == group
    assert all(0 < sum(group.reward) < GROUP for group in first[0])
