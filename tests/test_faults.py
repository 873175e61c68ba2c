"""System calls of a run fail at drawn places: a few of them (fault_proof.py: many)."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from command_line import fault_shim
from fault_proof import PAIRS, Fault, Proof


@pytest.mark.skipif(not (fault_shim() or os.environ.get("CI")), reason="needs Linux and a C compiler")
def test_system_calls_that_fail_are_told_or_handled_and_the_run_ends_the_same(tmp_path: Path) -> None:
    proof, rng = Proof(tmp_path), random.Random(1)
    assert min(proof.calls.values()) > 0
    kinds = ("ENOSPC", "EIO", "EMFILE", "kill", "short", "EINTR")
    pairs = [rng.choice([pair for pair in PAIRS if pair[1] == error]) for error in kinds]
    for number, (kind, error) in enumerate(pairs):  # each a little further on in the same run
        fault = Fault(kind, error, rng.randint(1, proof.calls[kind] // 8), lasting=False)
        outcome = proof.attempt(fault, "disturbed")
        assert outcome.seen.hits, fault
        assert outcome.faults == [], (fault, outcome.said)
        if outcome.code == 0 or number == len(pairs) - 1:  # it was handled, and so the run is done
            assert proof.finish("disturbed") == []
