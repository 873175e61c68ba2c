"""Kill one of two ranks in each stage; resumed, the run must end as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from command_line import ONE_THREAD, contents, given

SETTINGS = given(
    "data.glyphs.train=48",
    "data.glyphs.validation=8",
    "data.glyphs.test=24",
    "rollout.prompts_per_step=12",
    "rollout.samples_per_prompt=4",
    "rollout.batch_prompts=3",
    "score.batch_prompts=3",
    "update.engine=deepspeed",
    "update.batch_prompts=6",
    "update.micro_batch_prompts=2",
    "checkpoint.every=2",
    "checkpoint.validation_samples=1",
    "eval.samples=2",
    "eval.batch_prompts=3",
    "run.steps=3",
    "run.threads=1",
)


def start(runs: Path) -> subprocess.Popen[str]:
    env = {**os.environ, **ONE_THREAD, "DS_ACCELERATOR": "cpu", "VPPO_RUNS": str(runs)}
    return subprocess.Popen(
        [sys.executable, "-m", "vppo_cli", "train", "--run", "run", "--nproc-per-node", "2", *SETTINGS],
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finished(runs: Path) -> Path:
    process = start(runs)
    out, errors = process.communicate(timeout=600)
    assert process.returncode == 0, out + errors
    return runs / "run"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, str]:
    return contents(finished(tmp_path_factory.mktemp("calm")))


@pytest.mark.parametrize(
    ("stage", "rank"), [("rollout", 1), ("score", 0), ("update", 1), ("checkpoint", 1), ("glyphs", 1), ("glyphs", 0)]
)
def test_a_rank_killed_in_a_stage_costs_nothing(tmp_path, undisturbed, stage, rank):
    process = start(tmp_path)
    until = time.monotonic() + 300
    while (doing(tmp_path) or {}).get("stage") != stage or doing(tmp_path)["step"] == 1:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.002)
    (victim,) = [
        p
        for p in psutil.Process(process.pid).children()
        if "vppo_cli" in p.cmdline() and p.environ().get("RANK") == str(rank)
    ]
    victim.send_signal(signal.SIGKILL)
    began = time.monotonic()
    _, errors = process.communicate(timeout=120)
    assert time.monotonic() - began < 60
    assert process.returncode == 1
    assert f"rank {rank} (process {victim.pid}) was killed by SIGKILL" in errors
    assert contents(finished(tmp_path)) == undisturbed


def doing(runs: Path) -> dict | None:
    try:
        return json.loads((runs / "run" / "run.json").read_text())
    except FileNotFoundError:
        return None
