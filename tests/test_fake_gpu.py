"""A run on an emulated GPU (tools/fake_gpu.py), each in a process of its own (tools/gpu_story.py)."""

import json
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import fake_gpu
import pytest

TOOLS = Path(__file__).parent / "tools"
EVERY = ("checks", "steps model.dtype=bfloat16 update.lora_rank=4", "counts", "tried")
NIGHTLY = ("whole model.dtype=bfloat16", "whole model.dtype=float32", "first")
"""Stories, those of a line in one process, as torch is slow to import."""
PERFORMANCE = TOOLS.parents[1] / "docs" / "performance.md"

pytestmark = pytest.mark.skipif(
    not os.environ.get("CI")  # where its absence is a failure
    and not (sys.platform == "linux" and (shutil.which("g++") or shutil.which("c++"))),
    reason="the emulated GPU needs Linux and a C++ compiler",
)


@cache
def stories(lines):
    """What tests/tools/gpu_story.py found, by story; fails with what it said if that is nothing."""
    line = [sys.executable, TOOLS / "gpu_story.py", *" + ".join(lines).split()]
    env = {**os.environ, "PYTHONPATH": str(TOOLS.parents[1]), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(line, capture_output=True, text=True, check=False, env=env)
    try:
        found = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        raise AssertionError(done.stdout[-2000:] + done.stderr[-6000:]) from None
    return dict(zip(lines, found, strict=True))


def told(line):
    """One of them; fails with its traceback if it failed."""
    found = stories(EVERY if line in EVERY else NIGHTLY)[line]
    assert "failed" not in found, found["failed"]
    return found


# -- the emulator itself ---------------------------------------------------------------------------


def test_every_setting_has_a_value_that_the_emulator_tries():
    found = told("tried")["settings"]
    assert {"rollout.filter_key", "update.beta_max", "model.shared_prefix", "score.keep_fraction"} <= {*found}


def test_the_emulator():
    told("checks")


def test_it_has_to_come_before_torch():
    import torch  # noqa: F401

    with pytest.raises(RuntimeError, match="torch is imported already"):
        fake_gpu.preload()


# -- a run -----------------------------------------------------------------------------------------


@pytest.mark.nightly  # its stages are those of "steps", and tests/test_checkpoint.py resumes the same run without a GPU
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_whole_run_and_one_that_was_killed(dtype):
    found = told(f"whole model.dtype={dtype}")
    assert list(found["steps"]) == [
        "prepare 0",
        "rollout 1",
        "score 1",
        "update 1",
        "checkpoint 1",
        "validation 1",
        "rollout 2",
        "score 2",
        "update 2",
        "checkpoint 2",
        "validation 2",
        "glyphs 2",
    ]
    # Checkpoint 2 is gone: update 2 is replayed from checkpoint 1, and nothing else is done again.
    assert found["resumed"] == ["checkpoint 2"]
    assert found["same"]
    assert not [note for note in found["notes"] if "differs" in note or "WARNING" in note]
    # Each update's attention adds its gradients in a fixed order.
    assert found["loose"] == 0
    # The head is tied to the embedding, and written once.
    assert [name for name in found["tensors"] if "embed_tokens" in name]
    assert not [name for name in found["tensors"] if "lm_head" in name]


def test_parts_of_the_weights():
    found = told("steps model.dtype=bfloat16 update.lora_rank=4")["steps"]
    assert list(found) == ["prepare 0", "rollout 1", "score 1", "update 1"]
    assert found["update 1"]["launches"] > 1000


@pytest.mark.nightly
def test_the_first_command_on_a_gpu():
    found = told("first")
    assert not [name for name, figures in found.items() if {"failed", "not measured"} & figures.keys()]
    assert found["index_add"]["deterministic, same twice"]
    assert found["update twice, strict, bfloat16"]["the same bits"]
    assert found["saved, loaded, updated, bfloat16"]["the same bits"]


# -- counts ----------------------------------------------------------------------------------------


def test_nothing_asks_more_of_the_gpu_than_docs_say():
    said = PERFORMANCE.read_text().partition("## On a GPU, emulated")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ([a-z -]+) \|" + r" ([\d,]+) \|" * 4, said, re.MULTILINE)
    limits = {name: [int(n.replace(",", "")) for n in numbers] for name, *numbers in rows}
    found = {name: list(counts.values()) for name, counts in told("counts").items()}
    assert limits.keys() == found.keys()
    more = {
        name: (found[name], limits[name])
        for name in found
        if any(a > b for a, b in zip(found[name], limits[name], strict=True))
    }
    assert not more, "launches, up, down, waits: found, and in docs/performance.md"
