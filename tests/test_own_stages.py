"""Every stage replaced by a function in a file of one's own, named in the config."""

from __future__ import annotations

import json
import re
import signal
import time
from pathlib import Path

import pytest
from command_line import TINY, contents, copy_of, given, stamps, start, vppo

from pipelines.runs import read_state

SMALL = (
    *TINY,
    "update.micro_batch_prompts=2",
    "score.batch_prompts=2",
    "score.looks=1",
    "checkpoint.every=1",
    "checkpoint.keep_last=2",
    "checkpoint.validation_samples=1",
    "eval.samples=1",
    "run.steps=2",
)

OWN = """
import json
from dataclasses import replace
import pyarrow.parquet as pq
from pipelines.disk.records import ROLLOUTS, SCORES, Rollout, Sample, Scored, read_rows, write_rows


def prepare(ask, live, out):
    from pipelines.prepare.samples import prepare
    return {**prepare(ask.config, out, ask.watch), "mine": 1}


def rollout(ask, live, out):
    from pipelines.rollout.stage import rollout
    metrics = rollout(ask, live, out)
    groups = read_rows(out / ROLLOUTS, Rollout)
    for number, group in enumerate(groups):
        group.reward = [float(i == number) for i in range(len(group.reward))]
    write_rows(out / ROLLOUTS, Rollout, groups)
    return {**metrics, "mine": 1}


def update(ask, live, out):
    rollouts = read_rows(ask.inputs["rollout"] / ROLLOUTS, Rollout)
    scores = read_rows(ask.inputs["score"] / SCORES, Scored)
    with live.training(ask.step, ask.config) as trainer:
        return {**trainer.update(rollouts[:1], scores[:1], live.samples), "mine": 1}


def checkpoint(ask, live, out):
    policy = live.policy(ask.step)
    policy.model.save_pretrained(out / "model")
    policy.processor.save_pretrained(out / "model")
    (out / "trainer").mkdir()
    live.trainer().save(out / "trainer")
    (out / "mine.txt").write_text("mine")
    return {"mine": 1}


def eval(ask, live, out):
    from evals.stage import evaluate
    metrics = evaluate(ask, live, out)
    found = json.loads((out / "results.json").read_text())
    (out / "results.json").write_text(json.dumps({**found, "title": "Mine"}))
    return {**metrics, "mine": 1}


def without(path, column):
    table = pq.read_table(path)
    pq.write_table(table.drop_columns([column]), path)


def bad_prepare(ask, live, out):
    prepare(ask, live, out)
    without(out / "train.parquet", "answer")
    return {}


def odd_prepare(ask, live, out):
    prepare(ask, live, out)
    rows = read_rows(out / "train.parquet", Sample)
    rows[1] = replace(rows[1], metadata="level: 1")
    write_rows(out / "train.parquet", Sample, rows)
    return {}


def bad_rollout(ask, live, out):
    rollout(ask, live, out)
    without(out / ROLLOUTS, "reward")
    return {}


def bad_score(ask, live, out):
    score(ask, live, out)
    without(out / SCORES, "keep")
    return {}


def bad_update(ask, live, out):
    raise KeyError("gradient")


def bad_checkpoint(ask, live, out):
    (out / "model").mkdir()
    return {}


def bad_eval(ask, live, out):
    (out / "results.json").write_text('{"benchmark": "glyphs"}')
    return {}
"""

PAGE = (Path(__file__).parents[1] / "docs/artifacts.md").read_text(encoding="utf-8")
OWN += re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)[0].replace('"rows"', '"mine"')

POLICY = {
    "update 1",
    "checkpoint 1",
    "validation 1",
    "rollout 2",
    "score 2",
    "update 2",
    "checkpoint 2",
    "validation 2",
    "glyphs 2",
}
FOLLOWS = {
    "prepare": {"prepare", "rollout 1", "score 1", "glyphs 0"} | POLICY,
    "rollout": {"rollout 1", "score 1"} | POLICY,
    "score": {"score 1"} | POLICY,
    "update": POLICY,
    "checkpoint": {"checkpoint 1", "checkpoint 2"},
    "eval": {"validation 1", "validation 2", "glyphs 0", "glyphs 2"},
}
"""Stage -> the steps that are made again where it is replaced."""

TOLD = [
    ("bad_prepare", "train.parquet, column answer"),
    ("odd_prepare", "metadata: 'level: 1' is no JSON object."),
    ("bad_rollout", "rollouts.parquet, column reward"),
    ("bad_score", "scores.parquet, column keep"),
    ("bad_update", "raised KeyError: 'gradient'"),
    ("bad_checkpoint", "wrote no model/config.json"),
    ("bad_eval", "results.json: lacks title"),
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    runs = tmp_path_factory.mktemp("own") / "runs"
    vppo("train", "--run", "small", *given(*SMALL), runs=runs).succeeded()
    return runs / "small"


@pytest.fixture
def run(finished, tmp_path):
    """A copy of a finished run, beside the module ``own``."""
    run = copy_of(finished, tmp_path / "runs")
    (run.parent / "own.py").write_text(OWN)
    return run


def planned(run, *settings):
    """Step -> status."""
    rows = (
        vppo("plan", "--run", run.name, *given(*settings), "--json", runs=run.parent, cwd=run.parent)
        .succeeded()
        .json["plan"]
    )
    found = {}
    for row in rows:
        for part in str(row["steps"] or "").split(", "):
            first, _, last = part.partition("..")
            for index in range(int(first), int(last or first) + 1) if first else [""]:
                found[f"{row['step']} {index}".strip()] = row["status"]
    return found


def more_than(before, run):
    """Whether a step was committed since."""
    try:
        return stamps(run, "**/manifest.json").keys() > before.keys()
    except FileNotFoundError:  # what is being written went to its place meanwhile
        return False


@pytest.mark.parametrize("stage", FOLLOWS)
def test_it_is_used_and_what_follows_is_made_again(run, stage):
    mine = f"stages.{stage}=own:{stage}"
    plan = planned(run, mine)
    assert {step for step, status in plan.items() if status != "keep"} == FOLLOWS[stage]

    before = stamps(run, "**/manifest.json")
    begun = start("train", "--run", run.name, *given(mine), runs=run.parent, cwd=run.parent)
    while begun.running() and not more_than(before, run):
        time.sleep(0.01)
    begun.kill()
    assert begun.code in (0, -signal.SIGKILL)
    vppo("train", "--run", run.name, *given(mine), runs=run.parent, cwd=run.parent).succeeded()
    assert set(planned(run, mine).values()) == {"keep"}

    kept = {name: stamp for name, stamp in stamps(run, "**/manifest.json").items() if name in before}
    assert kept == before  # what was there is there
    added = [path for path in run.rglob("manifest.json") if str(path.relative_to(run)) not in before]
    made = [json.loads(path.read_text()) for path in added]
    assert len(made) == len(FOLLOWS[stage])
    own = [one for one in made if one["metrics"].get("mine")]
    assert own
    assert all(f"source of own:{stage}" in one["settings"] for one in own)

    vppo("status", "--run", run.name, runs=run.parent).succeeded()
    vppo("report", run.name, runs=run.parent).succeeded()
    known = contents(run)
    where = [] if stage == "prepare" else ["--steps", "2"]
    again = vppo(
        "train", "--run", run.name, "--stage", stage, *where, "--force", runs=run.parent, cwd=run.parent
    ).succeeded()
    assert stage in again.out or "glyphs" in again.out
    changed = {name for name, content in contents(run).items() if known.get(name) != content}
    assert not {name for name in changed if name.endswith(".parquet") or "weights" in name}


@pytest.mark.parametrize(("stage", "told"), TOLD)
def test_what_does_not_fit_is_refused_by_name_and_nothing_is_lost(run, stage, told):
    before = contents(run)
    part = f"stages.{stage.removeprefix('bad_').removeprefix('odd_')}=own:{stage}"
    wrong = vppo("train", "--run", run.name, *given(part), runs=run.parent, cwd=run.parent)
    assert wrong.code == 2
    assert told in " ".join(wrong.err.split())
    assert "Traceback" not in wrong.err
    left = contents(run)
    assert {name: left[name] for name in before} == before
    assert read_state(run).state == "finished"


def test_an_update_of_ones_own_alone_begins_with_the_policy_of_the_run(run):
    def made(steps):
        vppo(
            "train",
            "--run",
            run.name,
            "--stage",
            "update",
            "--steps",
            steps,
            "--force",
            *given("stages.update=own:update"),
            runs=run.parent,
            cwd=run.parent,
        ).succeeded()
        found = [json.loads(path.read_text()) for path in run.glob("steps/0002/update-*/manifest.json")]
        (own,) = (one["metrics"] for one in found if one["metrics"].get("mine"))
        return own

    assert made("1..2") == made("2")


def test_a_stage_that_is_not_there_is_told_before_anything_is_made(run):
    for part, told in (
        ("own:nothing", "own has no function 'nothing'"),
        ("none:score", "No module named 'none'"),
        ("pipelines.score.stage:score", "is the package's own"),
    ):
        wrong = vppo("train", "--run", run.name, *given(f"stages.score={part}"), runs=run.parent, cwd=run.parent)
        assert wrong.code == 2
        assert told in " ".join(wrong.err.split())
