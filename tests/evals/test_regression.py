"""What ``make regression`` compares; the whole of it, with bugs planted, is ``make planted-bugs``."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
from command_line import copy_of
from planted_bugs import BUGS, ROOT, Bug

from evals import regression
from evals.regression import BASELINE, Band, Judge
from evals.replay import Replay
from pipelines import runs, vppo
from pipelines.chain import Chain
from pipelines.config import settings
from pipelines.disk.records import SCORES, Scored, read_rows, write_rows
from pipelines.disk.step import commit
from pipelines.errors import UserError


def test_a_number_outside_its_band_is_told_in_words():
    judge = Judge({"update 1": {"grad_norm": 0.2, "loss": 0.5}})
    judge.as_before("update 1", {"grad_norm": 0.2019, "loss": 0.5}, lambda _: Band(0.01))
    assert judge.off == []
    judge.as_before("update 1", {"grad_norm": 0.412, "loss": 0.5}, lambda _: Band(0.01, 1e-6))
    (line,) = judge.off
    assert line.split() == ["update", "1", "grad_norm", "0.412,", "expected", "0.2", "+-", "1", "%", "and", "1e-06"]


@pytest.mark.parametrize("found", [math.nan, math.inf, -0.2, 0.0])
def test_what_is_no_number_or_has_another_sign_is_off(found):
    judge = Judge({"a": {"loss": 0.2}})
    judge.as_before("a", {"loss": found}, lambda _: Band(0.5))
    assert len(judge.off) == 1


def test_a_missing_and_a_new_number_are_told():
    judge = Judge({"a": {"loss": 0.2}})
    judge.as_before("a", {"entropy": 0.1}, lambda _: Band(0.5))
    assert ["loss" in line or "entropy" in line for line in judge.off] == [True, True]
    assert "is missing" in judge.off[0]
    assert "make baseline" in judge.off[1]


def test_the_first_part_that_is_off_ends_the_check():
    judge = Judge({})

    def wrong() -> None:
        judge.must_be("rollout 1", "rewards", 1, 0)

    def guarded() -> None:
        raise UserError("rollout, step 2", "does not sample with the trainer's weights.")

    parts = {"good": lambda: judge.must_be("a", "b", 0, 0), "bad": wrong, "not reached": guarded}
    said = list(regression.check(judge, parts))
    assert said[:2] == ["fine        good: 1 numbers", "regression  bad"]
    assert len(said) == 3
    judge = Judge({"update 4": {"loss": 0.1}})
    (_, line) = regression.check(judge, {"nothing": lambda: None})
    assert "update 4" in line
    assert "was not computed" in line
    judge = Judge({})
    assert "trainer's weights" in list(regression.check(judge, {"a": guarded}))[1]


def test_the_baseline_is_small_and_whole():
    size = sum(file.stat().st_size for file in BASELINE.iterdir())
    assert size < 300_000
    numbers = regression.read_numbers(BASELINE)
    replayed = {f"{stage} {step}" for stage in ("score", "update") for step in range(1, 5)}
    assert replayed <= numbers["replay"].keys()
    assert {"checkpoint 4", "checkpoint 8", "run, mean of steps"} <= numbers["run"].keys()
    with pytest.raises(UserError, match="make baseline"):
        regression.read_numbers(BASELINE / "nowhere")


def test_bugs_can_be_planted(tmp_path):
    # Source that was changed since would plant nothing and pass for a bug that was seen.
    for bug in BUGS:
        assert (ROOT / bug.file).read_text().count(bug.good) == 1, bug.name
        assert bug.good != bug.bad
    (tmp_path / "a.py").write_text("x = 1\nx = 1\n")
    for text in ("x = 1", "x = 2"):
        with pytest.raises(SystemExit, match="times in a"):
            Bug("twice or never", "a.py", text, "x = 3").plant(tmp_path)


@pytest.fixture(scope="module")
def again(tmp_path_factory):
    """The first step of the baseline's replay."""
    config = settings.load(Path(regression.CONFIG), ["run.threads=1"])
    replay = Replay(config, BASELINE, tmp_path_factory.mktemp("replay"))
    replay.prepared()
    replay.steps = 1
    return replay


def replayed(again) -> list[str]:
    """What the replay finds off."""
    shutil.rmtree(again.run / "steps", ignore_errors=True)
    judge = Judge(regression.read_numbers(BASELINE)["replay"])
    regression.training(judge, again)
    assert judge.looked_at > 20
    return [" ".join(line.split()) for line in judge.off]


def test_recorded_responses_give_the_recorded_numbers(again):
    assert replayed(again) == []


def test_planted_here_bugs_are_seen_too(again, monkeypatch):
    right = vppo.group_advantages
    monkeypatch.setattr(vppo, "group_advantages", lambda *given, **more: -right(*given, **more))
    (line,) = replayed(again)
    assert line.startswith("update 1 loss -0.0034")
    monkeypatch.undo()

    keep = vppo.keep_top_fraction
    monkeypatch.setattr(vppo, "keep_top_fraction", lambda x, *more: keep(x.roll(1, 1), *more))
    assert any(line.startswith("score 1 keep, farthest") for line in replayed(again))


@pytest.fixture
def chain(finished, tmp_path):
    """A copy of a finished small run."""
    run = copy_of(finished[0], tmp_path)
    return Chain(runs.read_config(run), run)


def test_a_run_fulfils_what_every_run_has_to(chain):
    judge = Judge(None)
    for part in (regression.consistent, regression.weights, regression.sampled_again):
        part(judge, chain)
    assert judge.off == []
    # 3 + 5 + 6 numbers of each step's stages, 3 of the run; 3 of each checkpoint; 2 sampled again.
    assert judge.looked_at == 3 * 14 + 3 + 2 * 3 + 2


def test_a_wrongly_filtered_response_and_foreign_answers_are_seen(chain):
    step = chain.score(2)
    rows, manifest = read_rows(step.path / SCORES, Scored), step.manifest()
    rows[0].keep[0] = [not kept for kept in rows[0].keep[0]]
    with commit(step) as (out, metrics):
        metrics |= manifest["metrics"]
        write_rows(out / SCORES, Scored, rows)
    judge = Judge(None)
    regression.consistent(judge, chain)
    assert [" ".join(line.split())[:20] for line in judge.off] == ["score 2 kept tokens ", "score 2 responses fi"]
    cell = chain.cell(3, "glyphs")
    first = chain.cell(0, "glyphs")
    shutil.copy(first.journal, cell.journal)  # the evaluation of the starting weights
    judge = Judge(None)
    regression.sampled_again(judge, chain)
    (line,) = judge.off
    assert "answers of other weights" in line
