"""Checkpoints: which are kept, export, plain transformers, and restoring a policy from them."""

import json
import shutil
import weakref
from contextlib import closing

import pytest
import torch

from pipelines import checkpoints, runs
from pipelines import live as sessions
from pipelines.chain import ANSWERS, RESULTS, TRAINING, VERSIONS, Chain
from pipelines.checkpoint import saving
from pipelines.config import settings
from pipelines.disk.records import RESULTS as RESULTS_FILE
from pipelines.disk.step import MANIFEST, commit
from pipelines.errors import UserError
from pipelines.live import Session
from pipelines.rollout.engines import ENGINES
from pipelines.run import _missing as missing_steps
from pipelines.run import train, train_stage
from pipelines.stages import make
from pipelines.update.torch_engine import TorchTrainer
from pipelines.watch import Silent
from vppo_cli.choose import which_checkpoint

RUN = (
    "data.glyphs.train=32",
    "data.glyphs.validation=4",
    "data.glyphs.test=4",
    "rollout.prompts_per_step=2",
    "rollout.samples_per_prompt=4",
    "rollout.max_new_tokens=48",
    "update.batch_prompts=2",
    "update.micro_batch_prompts=2",
    "checkpoint.every=1",
    "checkpoint.keep_last=1",
    "checkpoint.keep_best=1",
    "checkpoint.validation_samples=2",
    "eval.benchmarks=[]",
    "run.steps=3",
    "run.threads=1",
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of three steps, as ``vppo train`` makes it. Not to be changed: copy it."""
    chain = Chain(settings.load(None, RUN), tmp_path_factory.mktemp("runs") / "tiny")
    chain.run.mkdir()
    train(chain, Silent())
    return chain


@pytest.fixture
def copied(trained, tmp_path):
    """The same run in another place; keys do not depend on it."""
    shutil.copytree(trained.run, tmp_path / "run")
    return Chain(trained.config, tmp_path / "run")


def weights(chain, step):
    """The weights after ``step`` updates, restored from what is on disk."""
    with closing(Session(chain, Silent(), chain.config)) as live:
        state = live.policy(step).model.state_dict()
        return {name: value.clone() for name, value in state.items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# --- of other versions of the code ---------------------------------------------------------------


def test_what_earlier_code_trained_is_found_and_evaluated_by_the_code_of_today(copied, tmp_path, monkeypatch):
    versions = {name: VERSIONS[name] + 1 for name in (*TRAINING, *ANSWERS)}
    for name, version in versions.items():
        monkeypatch.setitem(VERSIONS, name, version)
    config, run = copied.config, copied.run
    today, made = Chain(config, run), runs.as_made(config, run, *TRAINING, *ANSWERS)
    assert not checkpoints.saved(today)
    assert checkpoints.saved(made) == checkpoints.saved(copied)
    assert checkpoints.best(made, [1, 2, 3]) == checkpoints.best(copied, [1, 2, 3])
    assert checkpoints.export(made, "last", tmp_path / "model") == 3
    assert "update (version" in runs.outdated(today)

    wanted = Chain(settings.load(None, ["eval.benchmarks=[validation]"], base=config.model_dump()), run)
    trained = runs.as_made(config, run, *TRAINING)
    [results] = train_stage(trained, wanted, "eval", [3], Silent(), force=False)
    assert results.inputs["policy"] == copied.policy_key(3)
    expected = RESULTS * versions["sampling"] + versions["grading"]
    assert results.manifest()["version"] == expected
    weighed = runs.as_made(config, run, *TRAINING, *ANSWERS)
    assert weighed.eval(3, "validation").manifest()["version"] == expected


# --- which are kept -------------------------------------------------------------------------------


@pytest.fixture
def measured(tmp_path):
    """``measured(accuracies, setting, ...)``: a run with these checkpoints, small stand-ins."""

    def make(accuracies, *overrides):
        chain = Chain(settings.load(None, overrides), tmp_path / "run")
        for step, accuracy in enumerate(accuracies, start=1):
            with commit(chain.checkpoint(step)) as (out, _):
                for part in (checkpoints.MODEL, checkpoints.TRAINER):
                    (out / part).mkdir()
                    (out / part / "weights").write_text(f"{part} {step}")
            if accuracy is not None:
                with commit(chain.eval(step, "validation")) as (out, _):
                    (out / RESULTS_FILE).write_text(json.dumps({"accuracy": accuracy}))
        return chain

    return make


def left(chain, count):
    return [step for step in range(1, count + 1) if checkpoints.kept(chain, step)]


@pytest.mark.parametrize(
    ("keep_last", "keep_best", "expected"),
    [
        (1, 0, [5]),
        (2, 0, [4, 5]),
        (2, 1, [2, 4, 5]),  # of the two with 0.5 the earlier
        (1, 2, [2, 4, 5]),
        (1, 3, [2, 3, 4, 5]),
        (9, 0, [1, 2, 3, 4, 5]),
    ],
)
def test_the_last_and_the_best_are_kept(measured, keep_last, keep_best, expected):
    chain = measured(
        [0.1, 0.5, 0.3, 0.5, 0.2], f"checkpoint.keep_last={keep_last}", f"checkpoint.keep_best={keep_best}"
    )
    removed = checkpoints.prune(chain, 5)
    assert left(chain, 5) == expected
    assert sorted(removed + expected) == [1, 2, 3, 4, 5]
    assert checkpoints.prune(chain, 5) == []


def test_a_pruned_checkpoint_counts_as_done(measured):
    chain = measured([0.1, 0.5, 0.3], "checkpoint.keep_last=1", "checkpoint.keep_best=0")
    checkpoints.prune(chain, 3)
    folder = chain.checkpoint(1).path
    assert [path.name for path in folder.iterdir()] == [MANIFEST]
    assert json.loads((folder / MANIFEST).read_text())["pruned"] is True
    assert chain.checkpoint(1).manifest()["pruned"] is True  # no complaint about missing files
    assert "pruned" not in chain.checkpoint(3).manifest()


def test_without_validation_only_the_last_are_kept(measured):
    chain = measured([None, None, None], "checkpoint.keep_last=1", "checkpoint.keep_best=2")
    checkpoints.prune(chain, 3)
    assert left(chain, 3) == [3]


def test_what_is_to_be_measured_again_is_kept_until_then(measured):
    before = measured([0.1, 0.5, 0.3], "checkpoint.keep_last=1")
    chain = Chain(settings.load(None, ["checkpoint.keep_last=1", "checkpoint.validation_samples=3"]), before.run)
    assert chain.checkpoint(1) == before.checkpoint(1)
    assert checkpoints.best(chain, [1, 2, 3]) == []
    assert checkpoints.prune(chain, 3) == []
    for step in (1, 2, 3):
        with commit(chain.eval(step, "validation")) as (out, _):
            (out / RESULTS_FILE).write_text(json.dumps({"accuracy": 0.1 * step}))
    assert checkpoints.prune(chain, 3) == [1, 2]


def test_pruning_that_was_killed_is_finished_the_next_time(measured):
    chain = measured([0.1, 0.5, 0.3], "checkpoint.keep_last=1", "checkpoint.keep_best=0")
    step = chain.checkpoint(1)
    manifest = step.manifest() | {"pruned": True}
    (step.path / MANIFEST).write_text(json.dumps(manifest))
    shutil.rmtree(step.path / checkpoints.TRAINER)  # killed between its two folders
    assert checkpoints.newest(chain, 1) == 0  # what is half gone is not loaded
    checkpoints.prune(chain, 3)
    assert [path.name for path in step.path.iterdir()] == [MANIFEST]


def test_the_newest_that_is_early_enough_and_whole(measured):
    chain = measured([0.1, 0.5, 0.3], "checkpoint.keep_last=1", "checkpoint.keep_best=1")
    checkpoints.prune(chain, 3)  # keeps 2 and 3
    assert [checkpoints.newest(chain, at_most) for at_most in (0, 1, 2, 3, 9)] == [0, 0, 2, 3, 3]


class Apart:
    """A rollout engine with weights of its own, which only notes what it is told."""

    def __init__(self, policy):
        self.told = []

    def sync(self, policy):
        self.told.append("sync")

    def view(self, policy):
        return self

    def sleep(self):
        self.told.append("sleep")

    def close(self):
        pass


@pytest.fixture
def live(monkeypatch):
    monkeypatch.setitem(ENGINES, "hf", Apart)


def test_a_live_engine_sleeps_before_it_gets_weights_beside_a_trainer(copied, live):
    with closing(Session(copied, Silent(), copied.config)) as session:
        engine = session.engine(0)
        session.engine(0)
        assert engine.told == ["sync"]
        session.trainer()
        session._live_version = None  # as after updates that were replayed
        session.engine(0)
        assert engine.told[1:] == ["sleep", "sync"]


def test_the_old_policy_is_gone_before_another_is_loaded(copied, live, monkeypatch):
    alive, load = [], sessions.load_policy
    with closing(Session(copied, Silent(), copied.config)) as session:
        session.engine(2)
        policy = session.policy(2)
        session.trainer()
        old = [weakref.ref(policy.model), weakref.ref(session._made_trainer)]
        del policy

        def spy(*where):
            alive.append([kept() is not None for kept in old])
            return load(*where)

        monkeypatch.setattr(sessions, "load_policy", spy)
        session.policy(0)
    assert alive == [[False, False]]  # with gradients and optimizer: two may not fit on a GPU


def test_weights_are_gone_before_moments_are_written(copied, tmp_path, monkeypatch):
    known, alive, save, gather = [], [], TorchTrainer.save, saving._on_host

    def gathered(policy):
        weights = gather(policy)
        known.extend(map(weakref.ref, weights.values()))
        return weights

    def saved(trainer, folder):
        alive.append(sum(there() is not None for there in known))
        save(trainer, folder)

    monkeypatch.setattr(saving, "_on_host", gathered)
    monkeypatch.setattr(TorchTrainer, "save", saved)
    with closing(Session(copied, Silent(), copied.config)) as live:
        make(live.ask(copied.checkpoint(3), copied.config), live, tmp_path)
    assert len(known) > 10
    assert alive == [0]


def test_an_update_with_other_settings_needs_one_trainer_at_a_time(trained, copied, tmp_path, monkeypatch):
    other = settings.load(None, [*RUN, "update.zero_stage=3"])  # which says nothing to torch
    alive, load = [], sessions.load_policy
    with closing(Session(copied, Silent(), copied.config)) as live:
        live.policy(2)
        old = [weakref.ref(live._policy.model), weakref.ref(live.trainer())]

        def spy(*where):
            alive.append([kept() is not None for kept in old])
            return load(*where)

        monkeypatch.setattr(sessions, "load_policy", spy)
        make(live.ask(copied.update(3), other), live, tmp_path)
        found = {name: value.clone() for name, value in live._policy.model.state_dict().items()}
    assert alive == [[False, False]]
    assert same(found, weights(trained, 3))
    assert not list(copied.run.glob("*.partial"))


# --- export ---------------------------------------------------------------------------------------


@pytest.fixture
def rewarded(measured):
    """``rewarded(rewards, setting, ...)``: accuracies rise, and the rewards are these."""

    def make(rewards, *overrides):
        chain = measured([None] * len(rewards), "reward.function=mine:score", *overrides)
        for step, reward in enumerate(rewards, start=1):
            with commit(chain.eval(step, "validation")) as (out, _):
                mean = {"value": reward, "interval": [reward, reward]}
                found = {"accuracy": step / 10, "rewards": {"reward": mean, "format": mean}}
                (out / RESULTS_FILE).write_text(json.dumps(found))
        return chain

    return make


@pytest.mark.parametrize(("key", "order"), [("accuracy", [3, 2, 1]), ("reward", [1, 3, 2]), ("format", [1, 3, 2])])
def test_the_best_is_the_best_by_its_key(rewarded, key, order):
    chain = rewarded([-0.5, -2.0, -1.0], f"checkpoint.best_key={key}")
    assert checkpoints.best(chain, [1, 2, 3]) == order
    assert checkpoints.pick(chain, "best") == order[0]


def test_by_the_built_in_reward_it_is_that_by_accuracy(measured):
    assert checkpoints.best(measured([0.1, 0.5], "checkpoint.best_key=reward"), [1, 2]) == [2, 1]


def test_a_key_that_results_do_not_have_is_refused(rewarded):
    chain = rewarded([0.5], "checkpoint.best_key=formt")
    with pytest.raises(UserError, match=r"best_key: formt: .*results.json has none\. It has: accuracy, format, reward"):
        checkpoints.check_best(chain)


def test_results_of_before_rewards_were_measured_are_found_and_have_none(measured):
    now = measured([], "reward.function=mine:score", "checkpoint.best_key=reward")
    then = Chain(now.config, now.run, now.versions | {"rewards": 0})
    assert now.eval(1, "validation").key != then.eval(1, "validation").key
    assert now.eval(1, "mathverse").key == then.eval(1, "mathverse").key
    with commit(then.eval(1, "validation")) as (out, _):
        (out / RESULTS_FILE).write_text(json.dumps({"accuracy": 0.5}))
    made = runs.as_made(now.config, now.run, *ANSWERS)
    assert made.eval(1, "validation").path == then.eval(1, "validation").path
    assert checkpoints.best(made, [1]) == []
    assert now.cell(1, "validation").journal == then.cell(1, "validation").journal  # graded again, not sampled


def test_export_by_name(measured, tmp_path):
    chain = measured([0.1, 0.5, 0.3])
    for which, step in (("last", 3), ("best", 2), ("1", 1)):
        target = tmp_path / which
        assert checkpoints.export(chain, which, target) == step
        assert (target / "weights").read_text() == f"model {step}"
        assert [path.name for path in target.iterdir()] == ["weights"]


@pytest.mark.parametrize("which", ["4", "first", "-1"])
def test_export_of_what_is_not_there(measured, tmp_path, which):
    chain = measured([0.1, 0.5, 0.3], "checkpoint.keep_last=1", "checkpoint.keep_best=1")
    checkpoints.prune(chain, 3)
    with pytest.raises(UserError, match="no such checkpoint") as caught:
        checkpoints.export(chain, which, tmp_path / "target")
    assert caught.value.fix == "It has: 2 3; also: last, best."
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize(
    ("accuracies", "why", "fix"),
    [
        ([None, None], "measured on the validation questions", "It has: 1 2; also: last."),
        ([], "no", "It has: none yet."),
    ],
)
def test_without_validation_none_is_the_best(measured, tmp_path, accuracies, why, fix):
    chain = measured(accuracies)
    with pytest.raises(UserError, match=why) as caught:
        checkpoints.export(chain, "best", tmp_path / "target")
    assert caught.value.fix == fix
    with pytest.raises(UserError, match="measured on the validation questions, so none is the best") as caught:
        which_checkpoint(chain, "best")
    assert caught.value.fix == f"It has: {' '.join(map(str, range(len(accuracies) + 1)))}; also: last."


def test_a_validation_asked_for_at_the_end_is_made_once(tmp_path):
    config = settings.load(None, ["eval.benchmarks=[validation]", "run.steps=4", "checkpoint.every=2"])
    chain = Chain(config, tmp_path / "run")
    made = [step.index for step in missing_steps(list(chain.all())) if step.name == "validation"]
    assert made == [2, 4, 0]


def test_export_does_not_write_over_anything(measured, tmp_path):
    chain = measured([0.1])
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "mine").touch()
    with pytest.raises(UserError, match="is not an empty folder"):
        checkpoints.export(chain, "last", tmp_path / "target")
    assert [path.name for path in (tmp_path / "target").iterdir()] == ["mine"]


@pytest.mark.parametrize("content", ["mod", "model 7"], ids=["truncated", "changed"])
def test_export_of_a_damaged_checkpoint(measured, tmp_path, content):
    chain = measured([0.1])
    (chain.checkpoint(1).path / checkpoints.MODEL / "weights").write_text(content)
    with pytest.raises(UserError, match="weights: "):
        checkpoints.export(chain, "last", tmp_path / "target")
    assert not (tmp_path / "target").exists()


# --- a real run -----------------------------------------------------------------------------------


def test_a_run_keeps_its_last_and_best_checkpoint(trained):
    best = checkpoints.best(trained, [1, 2, 3])[0]
    assert left(trained, 3) == sorted({best, 3})
    assert all(trained.checkpoint(step).manifest() for step in (1, 2, 3))
    assert train(trained, Silent()) == []  # nothing is missing


def test_an_export_loads_with_plain_transformers(trained, tmp_path):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    checkpoints.export(trained, "last", tmp_path / "model")
    processor = AutoProcessor.from_pretrained(tmp_path / "model")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
    assert same(dict(model.state_dict()), weights(trained, 3))
    assert not same(dict(model.state_dict()), weights(trained, 0))  # it has learned something
    chat = [{"role": "user", "content": [{"type": "text", "text": "What is 3 + 4?"}]}]
    inputs = processor.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert model.generate(**inputs, max_new_tokens=4).shape[1] > inputs["input_ids"].shape[1]


@pytest.mark.parametrize("lost", [[3], [1, 2, 3]], ids=["the last", "all"])
def test_lost_checkpoints_are_replayed_bit_for_bit(trained, copied, lost):
    expected = weights(trained, 3)
    for step in lost:
        shutil.rmtree(copied.run / "checkpoints" / f"{step:04d}")
    assert same(weights(copied, 3), expected)
    # ... and made again by the same command, without sampling anything.
    rollouts = {step: copied.rollout(step).manifest() for step in (1, 2, 3)}
    made = train(copied, Silent())
    assert {step.name for step in made} == {"checkpoint"}
    assert {step: copied.rollout(step).manifest() for step in (1, 2, 3)} == rollouts
    assert same(weights(copied, 3), expected)


def test_an_extended_run_is_the_longer_run(trained, copied):
    shorter = Chain(settings.load(None, [*RUN, "run.steps=2"]), copied.run.with_name("grown"))
    shorter.run.mkdir()
    train(shorter, Silent())
    longer = Chain(trained.config, shorter.run)
    made = train(longer, Silent())
    assert {step.index for step in made} == {3}
    assert same(weights(longer, 3), weights(trained, 3))


def test_another_model_in_the_folder_does_not_pass_for_the_one_that_was_trained(tmp_path):
    folder = shutil.copytree(settings.shipped_config("tiny_model"), tmp_path / "model")
    config = settings.load(None, [*RUN, f"model.path={folder}", "run.steps=1", "checkpoint.validation_samples=0"])
    run = tmp_path / "runs/tiny"
    run.mkdir(parents=True)
    train(Chain(config, run), Silent())
    (folder / "generation_config.json").write_text("{}")
    assert not checkpoints.saved(Chain(config, run))
    chain = runs.as_made(config, run, *TRAINING)
    assert checkpoints.saved(chain) == [1]
    with closing(Session(chain, Silent(), config)) as session:
        session.policy(1)  # whose weights are all its own
        with pytest.raises(UserError, match="is not the model that the run was begun with"):
            session.policy(0)


def test_a_damaged_checkpoint_is_not_loaded(copied):
    file = copied.checkpoint(3).path / checkpoints.MODEL / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match="content changed since it was written"):
        weights(copied, 3)
    file.write_bytes(content[:-100])
    with pytest.raises(UserError, match=r"should hold \d+ bytes"):
        weights(copied, 3)


def test_a_missing_rollout_is_asked_for(copied):
    shutil.rmtree(copied.run / "checkpoints")
    shutil.rmtree(copied.rollout(2).path)
    with pytest.raises(UserError, match="rollout 2: is not on disk") as caught:
        weights(copied, 3)
    assert "--stage rollout" in caught.value.fix
