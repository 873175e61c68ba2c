"""Outcomes and rewards of whole responses, and rewards named by import path."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.config.settings import load
from pipelines.disk.records import Sample
from pipelines.errors import UserError
from pipelines.grading.reward import Graded, RewardFunction, make_reward, reward_of


def sample(answer: str, kind: str = "value") -> Sample:
    return Sample(id="s", problem="?", images=[], answer=answer, kind=kind)


@pytest.fixture(scope="module")
def outcome() -> Iterator[RewardFunction]:
    with make_reward("outcome", "mathruler", deadline_s=1.0, workers=1) as reward:
        yield reward


CASES = [
    # (response, gold, kind, truncated, answer, outcome)
    (r"so \boxed{5}", "5", "value", False, "5", "correct"),
    (r"so \boxed{6}", "5", "value", False, "6", "wrong"),
    (r"so \boxed{1/2}", "0.5", "value", False, "1/2", "correct"),
    (r"so \boxed{A. 5}", "A", "choice", False, "A. 5", "correct"),
    (r"so \boxed{B}", "A", "choice", False, "B", "wrong"),
    ("so it is 5", "5", "value", False, "", "no_answer"),
    (r"so \boxed{5", "5", "value", False, "", "no_answer"),
    (r"so \boxed{5", "5", "value", True, "", "truncated"),
    (r"so \boxed{5} and", "5", "value", True, "5", "correct"),
    (r"so \boxed{6} and", "5", "value", True, "6", "wrong"),
    (r"so \boxed{9**9**9}", r"\sqrt{2}", "value", False, "9**9**9", "timed_out"),
]


def test_outcomes(outcome: RewardFunction) -> None:
    responses, golds, kinds, truncated, answers, outcomes = zip(*CASES, strict=True)
    samples = [sample(gold, kind) for gold, kind in zip(golds, kinds, strict=True)]
    graded = outcome(responses, samples, truncated)
    assert [one.answer for one in graded] == list(answers)
    assert [one.outcome for one in graded] == list(outcomes)
    assert [one.reward for one in graded] == [float(o == "correct") for o in outcomes]


@pytest.mark.parametrize(
    "metadata", ['["golds"]', '{"golds": ["5"', '{"golds": "56"}', '{"golds": [5]}', '{"golds": {"5": 1}}']
)
def test_golds_that_are_no_list_of_texts_are_refused(outcome: RewardFunction, metadata: str) -> None:
    with pytest.raises(UserError, match="sample s, metadata"):
        outcome([r"\boxed{5}"], [Sample("s", "?", [], "5", metadata=metadata)], [False])


@pytest.mark.parametrize("metadata", ["", "no object", None, '{"golds": []}', '{"golds": ["6", "5"]}'])
def test_without_golds_the_answer_is_right(outcome: RewardFunction, metadata: str) -> None:
    [graded] = outcome([r"\boxed{5}"], [Sample("s", "?", [], "5", metadata=metadata)], [False])
    assert graded.outcome == "correct"


def test_no_responses(outcome: RewardFunction) -> None:
    assert outcome([], [], []) == []


REWARDS = """
def length(responses, samples):
    return [len(response) / len(sample.answer) for response, sample in zip(responses, samples)]

def short(responses, samples):
    return [0.0]

def infinite(responses, samples):
    return [float("nan")] * len(responses)

def raises(answer, gold):
    raise ValueError("no number")

def one_for_all(responses, samples):
    return 0.5

async def later(responses, samples):
    return [0.5] * len(responses)

def digits(responses, samples):
    return ["1"] * len(responses)

def words(responses, samples):
    return ["good"] * len(responses)

def nothing(responses, samples):
    pass

constant = 1.0

def graded(responses, samples, outcomes):
    return [float(outcome == "correct") - 0.5 * (outcome == "truncated") for outcome in outcomes]

def graded_by_name(responses, samples, *, outcomes=None):
    return [1.0] * len(responses)

def weighed(responses, samples, weight=0.25):
    return [weight] * len(responses)

def several(responses, samples, outcomes):
    length = [len(response) for response in responses]
    return {"words-2": [2] * len(responses), "reward": [n / 2 for n in length], "length": length}

def of_content(responses, samples):
    return {"reward": [0] * len(responses)} | {response: [0] * len(responses) for response in responses if response}

def named(**lists):
    return lambda responses, samples: lists

rewardless = named(format=[1, 1])
short_part = named(reward=[1, 1], format=[1])
nan_part = named(reward=[1, 1], format=[1, float("nan")])
huge = named(reward=[1, 1e39], format=[1, 1])
text_part = named(reward=[1, 1], format="ab")
as_text = lambda responses, samples: "10"
as_bytes = lambda responses, samples: bytes([1, 0])
as_set = lambda responses, samples: {1.0, 0.0}
set_part = named(reward=[1, 1], format={1, 0})
dict_part = named(reward={0: 1.0, 1: 0.5})
by_response = lambda responses, samples: [{"reward": 1} for _ in responses]
accuracy = named(reward=[1, 1], accuracy=[1, 1])
odd_name = named(**{"reward": [1, 1], "a/b": [1, 1]})
number_name = lambda responses, samples: {"reward": [1, 1], 1: [1, 1]}
empty = named()
alone = lambda responses: [1.0] * len(responses)
low = named(reward=[1, 1], low=[1, 1])
high = named(reward=[1, 1], high=[1, 1])
rises = lambda responses, samples: (float(i) for i, _ in enumerate(responses))
lazy_part = lambda responses, samples: {"reward": map(len, responses), "length": iter([2, 3])}

def unknown(response):
    return {"a": 1.0}[response]

def generator(responses, samples):
    for response in responses:
        yield unknown(response)

def mapped(responses, samples):
    return {"reward": [0.0] * len(responses), "format": map(unknown, responses)}

class Rows:
    def __init__(self, responses, samples): self.responses = responses
    def __iter__(self):
        for response in self.responses:
            yield float(response.removeprefix("a") or 0)

rows = lambda responses, samples: Rows(responses, samples)

def cleans(responses, samples):
    for sample in samples:
        sample.answer = sample.answer.strip()

def appends(responses, samples):
    samples[0].images.append(b"")

calls = []

def of_many(responses, samples):
    calls.append([*responses])
    responses[0] = "changed"
    return {"reward": [0.0] * len(responses), "length": [1.0 / len(responses)] * len(responses)}

def of_text(responses, samples):
    calls.append([*responses])
    return {"reward": [0.0] * len(responses), "length": [1 / len(response) for response in responses]}
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory with rewards in ``my_package_<unique>/rewards.py``."""
    package = tmp_path / f"my_package_{tmp_path.name}"
    package.mkdir()
    (package / "rewards.py").write_text(REWARDS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["/nowhere", *sys.path])
    return package


def test_a_reward_of_ones_own_and_its_outcomes(here: Path) -> None:
    with make_reward(f"{here.name}.rewards:length") as reward:
        graded = reward([r"\boxed{5}", "what?"], [sample("5"), sample("10")], [False, False])
    # 9 characters over 1; 5 characters over 2
    assert graded == [Graded("5", "correct", 9.0), Graded("", "no_answer", 2.5)]


def test_outcomes_are_given_to_who_takes_them(here: Path) -> None:
    responses, owners = [r"\boxed{5}", r"\boxed{6}", "so"], [sample("5")] * 3
    for function, expected in (("graded", [1.0, 0.0, -0.5]), ("weighed", [0.25] * 3)):
        with make_reward(f"{here.name}.rewards:{function}") as reward:
            assert [one.reward for one in reward(responses, owners, [False, False, True])] == expected


def test_named_lists_come_with_each_response(here: Path) -> None:
    with make_reward(f"{here.name}.rewards:several") as reward:
        assert reward([], [], []) == []  # and is not asked
        assert reward(["a", "abc"], [sample("5")] * 2, [False] * 2) == [
            Graded("", "no_answer", 0.5, {"length": 1.0, "words-2": 2.0}),
            Graded("", "no_answer", 1.5, {"length": 3.0, "words-2": 2.0}),
        ]
        assert reward.named(sample("5"), 2) == ["length", "words-2"]
    with make_reward("outcome") as reward:
        assert reward.named(sample("5"), 2) == []
    with make_reward(f"{here.name}.rewards:rewardless") as reward:
        assert reward.named(sample("5"), 2) is None  # which is told with what is sampled


def test_a_reward_keeps_to_its_names(here: Path) -> None:
    with make_reward(f"{here.name}.rewards:of_content") as reward:
        reward(["a"], [sample("5")], [False])
        with pytest.raises(UserError, match="returned reward, b, and reward, a before"):
            reward(["b"], [sample("5")], [False])


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        ("rewardless", "returned format, and no 'reward', which is trained on"),
        ("empty", "returned an empty dict, and no 'reward'"),
        ("short_part", "short_part, format: it returned 1 value for 2 responses"),
        ("nan_part", "nan_part, format: format 1 of 2 is nan"),
        ("huge", "huge: reward 1 of 2 is 1e"),
        ("text_part", "text_part, format: it returned a str"),
        ("set_part", "set_part, format: it returned a set"),
        ("dict_part", "dict_part: it returned a dict, which does not hold a number per response"),
        ("by_response", "did not return numbers.*a dict of such lists, one of them 'reward'"),
        ("accuracy", "a list called 'accuracy', which is the grader's"),
        ("low", "a list called 'low', which is what the ends of the reward's interval are called"),
        ("high", "a list called 'high'"),
        ("odd_name", "a list called 'a/b', which is no name"),
        ("number_name", "a list called 1, which is no name"),
    ],
)
def test_named_lists_are_checked(here: Path, function: str, problem: str) -> None:
    with make_reward(f"{here.name}.rewards:{function}") as reward, pytest.raises(UserError, match=problem):
        reward(["a", "b"], [sample("5"), sample("5")], [False, False])


def test_what_is_read_only_once_is_read_once(here: Path) -> None:
    responses, owners = ["ab", "abc"], [sample("5")] * 2
    with make_reward(f"{here.name}.rewards:rises") as reward:
        assert [one.reward for one in reward(responses, owners, [False] * 2)] == [0.0, 1.0]
    with make_reward(f"{here.name}.rewards:lazy_part") as reward:
        found = reward(responses, owners, [False] * 2)
        assert [(one.reward, one.named) for one in found] == [(2.0, {"length": 2.0}), (3.0, {"length": 3.0})]


@pytest.mark.parametrize(
    ("function", "error"), [("generator", "KeyError: 'b'"), ("mapped", "KeyError: 'b'"), ("rows", "ValueError: could")]
)
def test_what_a_reward_raises_while_it_is_read_is_its_own(here: Path, function: str, error: str) -> None:
    with make_reward(f"{here.name}.rewards:{function}") as reward, pytest.raises(UserError) as caught:
        reward(["a", "b"], [sample("5")] * 2, [False] * 2)
    place, *lines = caught.value.problem.splitlines()
    assert place.startswith(f"raised {error}")
    assert all(line.startswith(str(here / "rewards.py")) for line in lines)
    assert lines[-1].endswith(('return {"a": 1.0}[response]', 'yield float(response.removeprefix("a") or 0)'))


@pytest.mark.parametrize(("function", "error"), [("cleans", "FrozenInstanceError"), ("appends", "AttributeError")])
def test_a_reward_cannot_change_a_question(here: Path, function: str, error: str) -> None:
    with (
        make_reward(f"{here.name}.rewards:{function}") as reward,
        pytest.raises(UserError, match=f"raised {error}.*\n.*rewards.py, line"),
    ):
        reward(["a"], [sample("5")], [False])


def test_names_are_asked_for_once(here: Path) -> None:
    for function, names in (("of_many", ["length"]), ("of_text", None)):
        with make_reward(f"{here.name}.rewards:{function}") as reward:
            calls = sys.modules[f"{here.name}.rewards"].calls
            calls.clear()
            assert [reward.named(sample("5"), 2) for _ in range(3)] == [names] * 3
            assert calls == [["", ""]]
            responses = ["a", "b"]
            reward(responses, [sample("5")] * 2, [False] * 2)
            assert reward.named(sample("5"), 2) == ["length"]
            assert calls == [["", ""], responses] == [["", ""], ["a", "b"]]


def test_a_grader_of_ones_own_is_tried_as_it_is_asked(here: Path) -> None:
    with make_reward(grader=f"{here.name}.rewards:raises") as reward:
        assert reward.doubt(Sample("a", "?", [], "B", kind="choice")) == ""  # which no grader decides
        with pytest.raises(UserError, match="raises: came to no verdict on the gold of question"):
            reward.doubt(sample("5"))


def test_an_async_reward_is_refused_at_once(here: Path) -> None:
    with pytest.raises(UserError, match="later: is async"):
        make_reward(f"{here.name}.rewards:later")


@pytest.mark.parametrize("function", ["alone", "graded_by_name"])
def test_a_reward_that_takes_other_arguments_is_refused_at_once(here: Path, function: str) -> None:
    with pytest.raises(UserError, match=rf"{function}: takes \(responses.*\(responses, samples, outcomes\)"):
        make_reward(f"{here.name}.rewards:{function}")


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        ("short", "returned 1 reward for 2 responses"),
        ("infinite", "reward 0 of 2 is nan"),
        ("one_for_all", "returned one number for 2 responses"),
        ("digits", "did not return numbers.*'1' is text"),
        ("words", "did not return numbers.*good"),
        ("nothing", "did not return numbers"),
        ("as_text", "it returned a str"),
        ("as_bytes", "it returned a bytes"),
        ("as_set", "it returned a set"),
    ],
)
def test_what_a_reward_returns_is_checked(here: Path, function: str, problem: str) -> None:
    with (
        make_reward(f"{here.name}.rewards:{function}") as reward,
        pytest.raises(UserError, match=f"{function}.*{problem}.*one finite reward per response"),
    ):
        reward(["a", "b"], [sample("5"), sample("5")], [False, False])


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("outcomes", "reward.function: outcomes: no such part. Did you mean outcome"),
        ("zzz", "zzz: no such part. Known: outcome; or an import path package.module:name"),
        ("no_such_package.rewards:f", "No module named 'no_such_package'"),
        (":f", "reward.function: :f: no such part"),
        (".relative:f", ".relative:f: cannot be imported"),
        ("json:lods", "json has no function 'lods'.*Did you mean json:loads"),
        ("math:pi", "math has no function 'pi'"),
    ],
)
def test_a_reward_that_is_not_there_is_refused(path: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        make_reward(path)


def test_a_module_without_the_function(here: Path) -> None:
    with pytest.raises(UserError, match=r"has no function 'lenght'.*rewards:length\?"):
        make_reward(f"{here.name}.rewards:lenght")
    with pytest.raises(UserError, match="has no function 'constant'"):
        make_reward(f"{here.name}.rewards:constant")


def test_an_unknown_grader_is_refused_before_anything_runs() -> None:
    with pytest.raises(UserError, match="Did you mean mathruler"):
        make_reward("outcome", grader="math-ruler")


def test_without_the_choice_rule_the_grader_alone_decides() -> None:
    responses = [rf"so \boxed{{{answer}}}" for answer in ("A", "A. 5", "(A)", "B")]
    owners, whole = [sample("A", "choice")] * 4, [False] * 4
    with make_reward(workers=1, choice_rule=False) as alone:
        assert [one.outcome for one in alone(responses, owners, whole)][:2] == ["correct", "wrong"]
    with make_reward(workers=1) as ruled:
        assert [one.reward for one in ruled(responses, owners, whole)] == [1, 1, 1, 0]


@pytest.mark.parametrize(("mode", "outcome"), [("exact", "correct"), ("published", "wrong")])
def test_it_grades_as_the_run_does(mode: str, outcome: str) -> None:
    with reward_of(load(None, [f"mode={mode}", "reward.workers=1"])) as graded:
        assert [one.outcome for one in graded([r"\boxed{A. 5}"], [sample("A", "choice")], [False])] == [outcome]


def test_without_our_rules_an_unclosed_last_box_is_no_answer() -> None:
    responses, owners = [r"\boxed{7} or \boxed{7"], [sample("7", "value")]
    with make_reward(workers=1, choice_rule=False) as alone:
        (found,) = alone(responses, owners, [False])
        assert (found.answer, found.outcome) == ("", "no_answer")
    with make_reward(workers=1) as ruled:
        assert ruled(responses, owners, [False])[0].outcome == "correct"
