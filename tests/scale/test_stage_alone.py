"""One stage again on two ranks: an update with other settings goes on from the run's optimizer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from command_line import ONE_THREAD, contents, copy_of, given

from pipelines.disk.records import ADVANTAGES

SETTINGS = given(
    "data.glyphs.train=24",
    "data.glyphs.validation=2",
    "data.glyphs.test=2",
    "rollout.prompts_per_step=4",
    "rollout.samples_per_prompt=4",
    "update.engine=deepspeed",
    "update.batch_prompts=2",
    "checkpoint.validation_samples=0",
    "eval.samples=1",
    "run.steps=2",
    "run.threads=1",
)
"""Two steps of two mini-batches each: what the second comes to depends on AdamW's moments."""

AGAIN = ["--stage", "update", "--steps", "2", *given("update.learning_rate=1e-3")]


def start(runs: Path, ranks: int, *arguments: str) -> subprocess.Popen[str]:
    several = ["--nproc-per-node", str(ranks)] if ranks > 1 else []
    return subprocess.Popen(
        [sys.executable, "-m", "vppo_cli", "train", "--run", "run", *arguments, *several],
        env={**os.environ, **ONE_THREAD, "DS_ACCELERATOR": "cpu", "VPPO_RUNS": str(runs)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def train(runs: Path, ranks: int, *arguments: str) -> str:
    """Run the command to its end; returns what it printed."""
    process = start(runs, ranks, *arguments)
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, out + errors
    return out


def updated(run: Path, ranks: int, *settings: str) -> dict[str, Any]:
    """The metrics of the second update, made on its own with another learning rate."""
    printed = train(run.parent, ranks, *AGAIN, *given(*settings), "--json")
    (name,) = json.loads(printed)["made"]
    return metrics(run / "steps" / "0002" / name)


def is_rank(process: psutil.Process, rank: str) -> bool:
    try:
        return "vppo_cli" in process.cmdline() and process.environ().get("RANK") == rank
    except psutil.Error:  # it is about to be the command, or has ended
        return False


def metrics(step: Path) -> dict[str, Any]:
    return json.loads((step / "manifest.json").read_text())["metrics"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of two ranks; not to be changed."""
    runs = tmp_path_factory.mktemp("trained")
    train(runs, 2, *SETTINGS)
    return runs / "run"


@pytest.fixture(scope="module")
def expected(run, tmp_path_factory) -> dict[str, Any]:
    """What the update comes to in one process."""
    return updated(copy_of(run, tmp_path_factory.mktemp("one")), 1)


@pytest.mark.parametrize("stage", [2, 3])
def test_two_ranks_update_alone_as_one_process_does(run, expected, stage, tmp_path):
    (own,) = run.glob("steps/0002/update-*")
    copied = copy_of(run, tmp_path)
    found = updated(copied, 2, f"update.zero_stage={stage}")
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert found != pytest.approx(metrics(own), rel=1e-4, abs=1e-6)  # another learning rate
    before, after = contents(run), contents(copied)
    assert before.items() <= after.items()  # the run itself has not changed
    (added,) = after.keys() - before.keys()
    assert after[added] == before[str((own / ADVANTAGES).relative_to(run))]  # by rank 0, whole
    assert not list(copied.rglob("*.partial"))


def test_what_a_killed_rank_leaves_of_the_optimizer_is_removed(run, expected, tmp_path):
    copied = copy_of(run, tmp_path)
    process = start(copied.parent, 2, *AGAIN)
    until = time.monotonic() + 300
    main: list[psutil.Process] = []
    while not (main and list(copied.glob("trainer.*.partial"))):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        main = main or [p for p in psutil.Process(process.pid).children() if is_rank(p, "0")]
        time.sleep(0.002)
    main[0].send_signal(signal.SIGKILL)
    process.communicate(timeout=120)
    assert process.returncode == 1
    assert list(copied.glob("trainer.*.partial"))
    assert updated(copied, 2) == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert contents(run).items() <= contents(copied).items()
    assert not list(copied.rglob("*.partial"))
