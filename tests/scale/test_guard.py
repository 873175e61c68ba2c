"""A weight sync that is skipped stops the run at the next step, and nothing of it is committed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from command_line import ONE_THREAD, given

HERE = Path(__file__).parent
SETTINGS = given(
    "data.glyphs.train=48",
    "data.glyphs.validation=2",
    "data.glyphs.test=2",
    "rollout.prompts_per_step=8",
    "rollout.samples_per_prompt=4",
    "update.batch_prompts=8",
    "checkpoint.validation_samples=0",
    "eval.samples=1",
    "run.steps=3",
    "run.threads=1",
)


def train(runs: Path, engine: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vppo_cli", "train", "--run", "run", *SETTINGS, "--set", f"rollout.engine={engine}"],
        env={**os.environ, **ONE_THREAD, "VPPO_RUNS": str(runs), "PYTHONPATH": f"{HERE}:{HERE.parents[1]}"},
        text=True,
        capture_output=True,
        timeout=600,
    )


def test_a_skipped_sync_trips_the_guard(tmp_path):
    done = train(tmp_path, "stale_engine:StaleEngine")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "rollout, step 2" in done.stderr
    assert "does not sample with the trainer's weights" in " ".join(done.stderr.split())
    assert list((tmp_path / "run/steps/0001").glob("update-*"))
    assert not list((tmp_path / "run/steps/0002").glob("score-*"))


def test_with_the_sync_the_same_run_goes_to_its_end(tmp_path):
    done = train(tmp_path, "vllm")
    assert done.returncode == 0, done.stdout + done.stderr
