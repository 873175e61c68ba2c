"""What a changed setting makes stale, and what it leaves alone."""

from pathlib import Path
from typing import ClassVar

import pytest

from pipelines.chain import Chain, fingerprint
from pipelines.config import schema as config
from pipelines.config import settings
from pipelines.disk.step import commit
from pipelines.opening import tell_uneven
from pipelines.watch import Silent

RUN = Path("runs/any")
STEPS = 4


def chain(*overrides, run=RUN):
    return Chain(settings.load(None, [f"run.steps={STEPS}", "checkpoint.every=2", *overrides]), run)


def stale(*overrides):
    """The steps that do not serve any more, by label; evaluations as "glyphs 4"."""
    before, after = chain(), chain(*overrides)
    known = {step.key for step in before.all()}
    return {step.label for step in after.all() if step.key not in known}


EVERY_STEP = {step.label for step in chain().all()}
TRAINED = {"checkpoint 2", "checkpoint 4", "validation 2", "validation 4", "glyphs 4"}
"""What depends on the updates."""
LATER_ROLLOUTS = {"rollout 2", "rollout 3", "rollout 4"}
SCORES = {f"score {step}" for step in range(1, STEPS + 1)}
UPDATES = {f"update {step}" for step in range(1, STEPS + 1)}


def test_the_order_of_a_run():
    assert [step.label for step in chain().all()] == [
        "prepare",
        "rollout 1",
        "score 1",
        "update 1",
        "rollout 2",
        "score 2",
        "update 2",
        "checkpoint 2",
        "validation 2",
        "rollout 3",
        "score 3",
        "update 3",
        "rollout 4",
        "score 4",
        "update 4",
        "checkpoint 4",
        "validation 4",
        "glyphs 0",
        "glyphs 4",
    ]
    twice = chain(
        "eval.benchmarks=[validation]", "eval.samples=4", "checkpoint.validation_samples=4", "eval.baseline=false"
    )
    assert [step.label for step in twice.all()].count("validation 4") == 1  # the last one's is the end's too
    assert [step.label for step in chain().opening(1)] == ["prepare", "rollout 1", "score 1", "update 1"]


def test_where_steps_live():
    made = chain()
    key = made.rollout(2).key[:8]
    assert made.rollout(2).path == RUN / "steps" / "0002" / f"rollout-{key}"
    assert made.checkpoint(4).path.parent == RUN / "checkpoints" / "0004"
    assert made.eval(0, "glyphs").path.parent == RUN / "eval" / "0000"
    assert made.prepare.path.parent == RUN


def test_a_score_setting_keeps_the_first_rollout():
    # Step 1 was sampled from the starting policy, which no setting of the scores touches. From the
    # first update on the policy is another, and so is what it would have sampled.
    changed = stale("score.keep_fraction=0.2")
    assert changed == SCORES | UPDATES | LATER_ROLLOUTS | TRAINED
    assert "rollout 1" not in changed


def test_an_update_setting_keeps_the_first_score_too():
    changed = stale("update.learning_rate=1e-3")
    assert changed == (SCORES - {"score 1"}) | UPDATES | LATER_ROLLOUTS | TRAINED


@pytest.mark.parametrize(
    "override", ["rollout.temperature=0.9", "reward.grader=math-verify", "rollout.samples_per_prompt=4"]
)
def test_a_rollout_or_reward_setting_keeps_the_questions(override):
    changed = stale(override)
    assert changed >= {"rollout 1"} | SCORES | UPDATES | LATER_ROLLOUTS | TRAINED
    assert "prepare" not in changed
    # The run's own questions are asked, and judged, as in training; the evaluation has its own count.
    assert ("glyphs 0" in changed) == (override != "rollout.samples_per_prompt=4")


@pytest.mark.parametrize("override", ["data.glyphs.train=9", "model.attention=eager"])
def test_data_or_model_redo_everything(override):
    assert stale(override) == EVERY_STEP


def test_another_seed_keeps_the_questions():
    assert stale("seed=1") == EVERY_STEP - {"prepare"}


@pytest.mark.parametrize(
    "override",
    [
        "rollout.batch_prompts=3",
        "score.batch_prompts=3",
        "update.micro_batch_prompts=3",
        "update.micro_batch_tokens=99",
        "eval.batch_prompts=3",
        "model.shared_prefix=false",
        "update.gradient_checkpointing=true",
        "reward.workers=4",
        "run.threads=1",
        "run.device=cpu",
        "checkpoint.keep_last=1",
        "checkpoint.keep_best=0",
        "name=other",
    ],
)
def test_what_cannot_change_a_result_redoes_nothing(override):
    assert stale(override) == set()


@pytest.mark.parametrize("size", ["mini_batch_responses", "micro_batch_responses"])
def test_the_sizes_of_shaping_decide_and_those_of_a_pass_do_not(size):
    def keys(*overrides):
        asked = chain("mode=published", "update.objective=mine:objective", *overrides)
        return [step.key for step in asked.all() if step.name == "update"]

    assert keys(f"published.{size}=8") != keys()
    assert keys("update.micro_batch_prompts=3", "update.micro_batch_tokens=99") == keys()


def test_a_setting_at_the_default_it_came_with_is_left_out():
    class Later(config.ScoreConfig):
        introduced: ClassVar = config.ScoreConfig.introduced | {"sharpness": 2}
        sharpness: int = 3  # the default moved since

    before = config.ScoreConfig().keyed("score")
    assert Later(sharpness=2).keyed("score") == before
    assert Later().keyed("score") == before | {"score.sharpness": 3}


def test_extending_keeps_everything_and_adds_steps():
    # Step 6 is the new end. The evaluation after step 4 is no part of the longer run.
    assert stale("run.steps=6") == {
        "rollout 5",
        "score 5",
        "update 5",
        "rollout 6",
        "score 6",
        "update 6",
        "checkpoint 6",
        "validation 6",
        "glyphs 6",
    }


def test_a_shorter_run_needs_nothing_but_its_end():
    # Its last update gets a checkpoint and an evaluation, which the longer run did not make.
    assert stale("run.steps=3") == {"checkpoint 3", "validation 3", "glyphs 3"}


def test_evaluation_settings_redo_evaluations_only():
    evaluations = {"validation 2", "validation 4", "glyphs 0", "glyphs 4"}
    assert stale("eval.temperature=0.5") == evaluations
    # Validation has its own number of samples and looks at all of its questions.
    assert stale("eval.samples=2") == {"glyphs 0", "glyphs 4"}
    assert stale("eval.limit=2") == {"glyphs 0", "glyphs 4"}
    assert stale("checkpoint.validation_samples=2") == {"validation 2", "validation 4"}
    assert stale("eval.benchmarks=[]", "checkpoint.validation_samples=0") == set()


def test_each_benchmark_and_each_policy_has_its_own_evaluation():
    made = chain()
    keys = [made.eval(step, name).key for step in (0, 2, 4) for name in ("glyphs", "validation")]
    assert len(set(keys)) == 6


def test_a_run_elsewhere_has_the_same_keys():
    here, there = chain(), chain(run=Path("/somewhere/else"))
    assert [s.key for s in here.all()] == [s.key for s in there.all()]


def test_checkpoints_are_due_every_so_often_and_at_the_end():
    made = chain("run.steps=5")
    assert [step for step in range(1, 6) if made.has_checkpoint(step)] == [2, 4, 5]


# --- what lies outside the run --------------------------------------------------------------------


def test_changed_data_or_model_files_make_the_run_stale(tmp_path):
    data, model = tmp_path / "data.jsonl", tmp_path / "model"
    data.write_text("one")
    model.mkdir()
    (model / "weights").write_text("w")
    overrides = [f"data.source={data}", f"model.path={model}"]

    def prepare_key():
        return chain(*overrides).prepare.key

    first = prepare_key()
    assert prepare_key() == first
    data.write_text("two")
    second = prepare_key()
    (model / "weights").write_text("v")
    assert len({first, second, prepare_key()}) == 3


def test_a_fingerprint_sees_names_and_content(tmp_path):
    contents = [{"a": "1", "b": "2"}, {"a": "2", "b": "1"}, {"a": "12", "b": ""}, {"a": "1", "c": "2"}]
    found = set()
    for number, content in enumerate(contents):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name, text in content.items():
            (folder / name).write_text(text)
        found.add(fingerprint(folder))
    assert len(found) == len(contents)


@pytest.mark.parametrize(("kind", "stays"), [("qwen2_5_vl", True), ("idefics3", True), ("gemma3", False)])
def test_models_of_families_that_were_computed_wrong_get_other_keys(tmp_path, kind, stays, monkeypatch):
    (tmp_path / "config.json").write_text(f'{{"model_type": "{kind}"}}')
    key = chain(f"model.path={tmp_path}").model.key
    monkeypatch.setattr("pipelines.chain._computed", lambda folder: {})
    assert (chain(f"model.path={tmp_path}").model.key == key) == stays


def test_more_rounds_for_a_batch_make_no_step_stale(tmp_path):
    begun = chain("rollout.max_tries=7", run=tmp_path)
    with commit(begun.rollout(1)) as (out, _):
        (out / "any").write_bytes(b"")
    more = chain("rollout.max_tries=40", run=tmp_path)
    assert [step.key for step in more.all()] == [step.key for step in begun.all()]
    assert more.config.rollout.max_tries == 40
    other = chain("rollout.max_tries=40", "rollout.top_k=3", run=tmp_path)
    assert other.rollout(1).settings["rollout.max_tries"] == 40


@pytest.mark.parametrize(
    ("batch", "told"), [(4, ""), (8, ""), (16, ""), (6, "2 optimizer steps the last has 2 groups"), (7, "1 group")]
)
def test_update_batches_that_a_step_does_not_fill_evenly_are_told(batch, told):
    notes = []

    class Told(Silent):
        def note(self, text):
            notes.append(text)

    tell_uneven(settings.load(None, ["rollout.prompts_per_step=8", f"update.batch_prompts={batch}"]), Told())
    assert [bool(told)] * bool(told) == [note.endswith(told) for note in notes]
