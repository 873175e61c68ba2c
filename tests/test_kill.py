"""A run killed at any instant goes on as if nothing had happened: a few kills (kill_proof.py: many)."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import psutil
from command_line import SMALL, Command, contents, given, start, vppo
from kill_proof import Proof

PLACES = (
    ("prepare", 0),
    ("rollout", 1),
    ("rollout", 2),
    ("score", 2),
    ("update", 2),
    ("checkpoint", 2),
    ("validation", 2),
    ("update", 3),
    ("glyphs", 0),
)
"""Where the run is killed, in the order in which it comes there: within the first tenths of a second
of each of these steps."""


def is_at(run: Path, stage: str, step: int) -> bool:
    try:
        state = json.loads((run / "run.json").read_text())
    except FileNotFoundError:
        return False
    return (state["state"], state["stage"], state["step"]) == ("running", stage, step)


def test_a_run_killed_in_every_stage_ends_bit_for_bit_the_same(finished: tuple[Path, Command], tmp_path: Path) -> None:
    run, rng, proof = tmp_path / "runs" / "small", random.Random(0), Proof()
    for stage, step in PLACES:
        (run / "run.json").unlink(missing_ok=True)  # it only says where the last attempt was
        command = start("train", "--run", "small", *given(*SMALL), runs=run.parent)
        while command.running() and not is_at(run, stage, step):
            time.sleep(0.002)
        time.sleep(rng.uniform(0.0, 0.1))
        children = psutil.Process(command.pid).children(recursive=True) if command.running() else []
        command.kill()
        assert command.code == -9, command.err
        assert not psutil.wait_procs(children, timeout=30)[1]  # no grader outlives it
        proof.look(run)
    vppo("train", "--run", "small", *given(*SMALL), runs=run.parent).succeeded()
    proof.look(run)
    assert proof.faults == []
    assert contents(run) == contents(finished[0])
    assert list(run.rglob("*.partial")) == []
