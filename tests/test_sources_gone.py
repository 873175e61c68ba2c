"""A run whose data, test sets and model went away, or were changed: what it still does, and what it refuses."""

import json
import shutil

import pytest
from command_line import given, vppo
from hub_schema import png

from pipelines import chain as chains
from pipelines import runs
from pipelines.chain import TRAINING, Chain
from pipelines.config import settings
from pipelines.config.settings import shipped_config

RUN = """
base: tiny.yaml
name: far
model: {path: FAR/model}
data: {source: FAR/data/train.jsonl, validation_count: 0, image_folders: [FAR/images], columns: {images: image}}
rollout: {prompts_per_step: 2, samples_per_prompt: 2, max_new_tokens: 12, dynamic_sampling: false}
update: {batch_prompts: 2}
eval: {benchmarks: [mytest], samples: 2, sources: {mytest: FAR/data/test.jsonl}}
run: {steps: 1, threads: 1}
"""


@pytest.fixture(scope="module")
def far(tmp_path_factory):
    """A folder with a run of one step, and beside it what the run was made of, away by now."""
    here = tmp_path_factory.mktemp("far")
    for folder in ("data", "images"):
        (here / folder).mkdir()
    for name in ("train", "test"):
        rows = [{"problem": f"How many, {name} {i}?", "image": f"{name}{i}.png", "answer": str(i)} for i in range(4)]
        (here / f"data/{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        for i in range(4):
            (here / f"images/{name}{i}.png").write_bytes(png(i))
    shutil.copytree(shipped_config("tiny_model"), here / "model")
    (here / "my.yaml").write_text(RUN.replace("FAR", str(here)))
    vppo("train", "--run", "one", "--config", str(here / "my.yaml"), runs=here / "runs").succeeded()
    for name in ("data", "images", "model"):
        (here / name).rename(here / f"{name}-away")
    return here


@pytest.fixture
def run(far, tmp_path):
    return shutil.copytree(far / "runs", tmp_path / "runs") / "one"


def test_a_run_goes_on_with_what_was_made_of_them(far, run):
    def asked(*command):
        return vppo(*command, runs=run.parent).succeeded()

    assert asked("plan", "--run", "one", "--json").json["plan"]
    plan = asked("plan", "--run", "one").out
    assert "nothing: every step is on disk" in plan
    for setting, name in (
        ("data.source", "data/train.jsonl"),
        ("data.image_folders", "images"),
        ("model.path", "model"),
    ):
        assert f"{setting} {far / name} is not there: what was made of it stands" in plan.replace("\n           ", " ")
    assert "after 1 step" in asked("status", "--run", "one").out
    assert "report.html" in asked("report", "one").out
    more = asked("train", "--run", "one", *given("run.steps=2"))
    assert "mytest" in more.out
    assert (run / "checkpoints/0002").is_dir()
    shown = asked("eval", "--run", "one", "--benchmarks", "mytest", "--samples", "3")
    assert shown.out.count("the questions read from it stand") == 1
    assert "4 x 3" in shown.out


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("train", "--run", "one", *given("data.source=data/other.jsonl")), "data.source data/other.jsonl: no such"),
        (("train", "--run", "one", *given("data.limit=3")), "data/train.jsonl: no such file"),
        (("train", "--run", "one", *given("model.path=./nowhere")), "model.path: ./nowhere: no such folder"),
        (("train", "--run", "two", "--config", "my.yaml"), "model: no such folder"),
        (("eval", "--run", "one", *given("eval.sources.mytest=data/other.jsonl")), "data/other.jsonl: no such file"),
        (("ledger", "one", "--step", "1"), "is not found from here"),
        (("eval", "--model", "./nowhere", "--benchmarks", "geo3k"), "model.path: ./nowhere: no such folder"),
    ],
)
def test_what_needs_them_says_so(far, run, command, message):
    shutil.copy(far / "my.yaml", run.parent / "my.yaml")
    found = vppo(*command, runs=run.parent, cwd=run.parent)
    assert found.code == 2
    assert message in " ".join(found.err.split())


def test_only_what_is_named_as_then_and_is_gone_stands(far, run):
    stored = runs.read_config(run)
    made = runs.as_made(stored, run, *TRAINING)
    assert made.prepare.path.is_dir()
    kept = runs.kept(stored, stored, made.prepare)
    assert Chain(stored, run, kept=kept).prepare == made.prepare
    for name in ("data", "images", "model"):
        (far / f"{name}-away").rename(far / name)
    try:
        assert runs.kept(stored, stored, made.prepare) == {}
        path = far / "data/train.jsonl"
        before = path.read_text()
        path.write_text(before + before.splitlines()[0] + "\n")  # changed: another run's data, whatever is prepared
        assert Chain(stored, run, kept=runs.kept(stored, stored, made.prepare)).prepare != made.prepare
        path.write_text(before)
    finally:
        for name in ("data", "images", "model"):
            (far / name).rename(far / f"{name}-away")
    moved = settings.load(None, ["data.source=elsewhere.jsonl"], base=stored.model_dump())
    assert "data.source" not in runs.kept(moved, stored, made.prepare)


def test_a_hub_id_is_not_gone(tmp_path):
    config = settings.load(None, ["data.source=someone/data", "model.path=someone/model"])
    assert chains.gone(config, "data.source") == "someone/data"  # not on this machine, at least
    chain = Chain(config, tmp_path / "run")
    assert runs.kept(config, config, chain.prepare) == {}


def test_evaluations_are_seen_whatever_became_of_their_questions(far, run):
    def shown():
        return vppo("status", "--run", "one", "--json", runs=run.parent).succeeded().json["evaluations"]

    before = shown()
    assert [row["benchmark"] for row in before] == ["mytest"]
    shutil.rmtree(run.parent / "benchmarks")  # a set of which no earlier reading is known, either
    assert shown() == before
    (far / "data").mkdir()
    try:
        (far / "data/test.jsonl").write_text('{"problem": "Other?", "answer": "1"}\n')
        assert shown() == before
    finally:
        shutil.rmtree(far / "data")
