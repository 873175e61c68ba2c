"""Launchers of others: each starts two ranks that train as one process does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import ONE_THREAD, contents, given

SETTINGS = given(
    "data.glyphs.train=24",
    "data.glyphs.validation=2",
    "data.glyphs.test=4",
    "rollout.prompts_per_step=4",
    "rollout.samples_per_prompt=4",
    "update.engine=deepspeed",
    "update.batch_prompts=4",
    "eval.samples=1",
    "run.steps=1",
    "run.threads=1",
)
TRAIN = ["train", "--run", "run", *SETTINGS]
BIN = Path(sys.executable).parent


def environment(runs: Path) -> dict[str, str]:
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, **ONE_THREAD, "DS_ACCELERATOR": "cpu", "VPPO_RUNS": str(runs), "PATH": path}


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return str(found.getsockname()[1])


def torchrun(runs: Path) -> int:
    line = [str(BIN / "torchrun"), "--standalone", "--nproc-per-node", "2", "-m", "--", "vppo_cli"]
    return subprocess.run([*line, *TRAIN], env=environment(runs), timeout=300).returncode


def deepspeed(runs: Path) -> int:
    line = [str(BIN / "deepspeed"), "--num_accelerators", "2", "--master_port", free_port()]
    line += ["--module", "vppo_cli"]
    return subprocess.run([*line, *TRAIN], env=environment(runs), timeout=300).returncode


def srun(runs: Path) -> int:
    """srun starts plain processes, and tells each who it is."""
    shared = {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": free_port()}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "vppo_cli", *TRAIN],
            env=environment(runs) | shared | {"SLURM_PROCID": rank, "SLURM_LOCALID": rank},
        )
        for rank in "01"
    ]
    return max(process.wait(300) for process in started)


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> dict[str, str]:
    runs = tmp_path_factory.mktemp("own")
    line = [sys.executable, "-m", "vppo_cli", *TRAIN, "--nproc-per-node", "2"]
    subprocess.run(line, env=environment(runs), check=True, timeout=300)
    return contents(runs / "run")


@pytest.mark.parametrize("launcher", [torchrun, deepspeed, srun])
def test_the_same_run_under_another_launcher(launcher, tmp_path, expected):
    assert launcher(tmp_path) == 0
    assert contents(tmp_path / "run") == expected
