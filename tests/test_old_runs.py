"""Runs on people's disks open, and go on, whatever the code becomes.

Both fixtures were made by ``vppo train --set data.glyphs.train=16 ...`` (COMMAND below): ``tiny-6287`` by
commit 1ab4b85, when names of runs had four digits, ``tiny-62873a49`` when rollouts had just become
version 4, score, update and sampling 3, grading 2. Their checkpoints, 11 MB, are not kept: the weights
come back by replaying the stored rollouts and scores, where today's code is the one that made them.
"""

from pathlib import Path

import pytest
from command_line import copy_of, given, stamps, vppo

COMMAND = given(
    "data.glyphs.train=16",
    "data.glyphs.validation=4",
    "data.glyphs.test=4",
    "rollout.prompts_per_step=2",
    "rollout.samples_per_prompt=4",
    "rollout.max_new_tokens=32",
    "update.batch_prompts=2",
    "checkpoint.every=2",
    "checkpoint.validation_samples=1",
    "eval.samples=2",
    "run.steps=2",
    "run.threads=1",
    "score.looks=1",
)
MADE = Path(__file__).parent / "fixtures"
OLD, TODAY = "tiny-6287", "tiny-62873a49"
STEPS = "*/*/*-*/manifest.json"


@pytest.fixture
def run(request, tmp_path):
    return copy_of(MADE / request.param, tmp_path / "runs")


def planned(run):
    plan = vppo("plan", *COMMAND, "--json", "--run", run.name, runs=run.parent).succeeded().json
    return {(row["step"], row["reason"]) for row in plan["plan"] if row["status"] != "keep"}


@pytest.mark.parametrize("run", [OLD, TODAY], indirect=True)
def test_it_opens(run):
    status = vppo("status", "--run", run.name, "--json", runs=run.parent).succeeded().json
    assert (status["steps_done"], status["steps"], len(status["evaluations"])) == (2, 2, 1)
    results = status["evaluations"][0]["results"]
    assert [row["policy"] for row in results] == ["starting model", "after 2 steps (vppo)"]
    vppo("report", run.name, runs=run.parent).succeeded()
    assert (run / "report.html").stat().st_size > 10**5


@pytest.mark.parametrize("run", [TODAY], indirect=True)
def test_it_goes_on_under_its_name(run):
    assert {step for step, _ in planned(run)} == {"checkpoint"}
    before = stamps(run, STEPS)
    vppo("train", *COMMAND, runs=run.parent).succeeded()
    assert [path.name for path in run.parent.iterdir()] == [run.name]
    made = stamps(run, STEPS)
    assert {name: made[name] for name in before} == before  # what was there was not made again
    assert {name.split("/")[0] for name in made.keys() - before.keys()} == {"checkpoints"}

    evaluated = vppo("eval", "--run", run.name, "--json", runs=run.parent).succeeded().json
    assert evaluated["step"] == 2
    assert stamps(run, STEPS) == made
    vppo("export", "model", "--run", run.name, runs=run.parent).succeeded()
    assert (run.parent.parent / "model/model.safetensors").stat().st_size > 10**6

    longer = vppo("train", "--run", run.name, *given("run.steps=3"), runs=run.parent).succeeded()
    assert "3/3" in longer.out
    now = stamps(run, STEPS)
    assert {name: now[name] for name in made} == made


@pytest.mark.parametrize("run", [OLD], indirect=True)
def test_of_an_earlier_version_of_the_code_steps_are_made_again_and_that_is_said(run):
    why = dict(planned(run))
    assert why.keys() == {"rollout", "score", "update", "checkpoint", "validation", "glyphs"}
    assert "its code changed (version 2 -> 4)" in why["rollout"]
    made = vppo("train", *COMMAND, runs=run.parent).succeeded()
    assert [path.name for path in run.parent.iterdir()] == [run.name]
    assert "made again: rollout (version 2 -> 4), score (version 2 -> 3)" in " ".join((made.out + made.err).split())
    assert not planned(run)
