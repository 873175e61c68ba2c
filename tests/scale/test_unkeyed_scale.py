"""Settings of scale that are left out of keys: two values of each, the same tokens and values.

The others are in tests/test_unkeyed.py. Ranks and ZeRO stages side by side are in test_deepspeed.py.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from unkeyed import OF_SCALE, differences

TOOLS = Path(__file__).parents[1] / "tools"

TRIED = {
    "update.zero_stage": ("update.engine=deepspeed", ("1", "3")),
    "update.offload": ("update.engine=deepspeed", ("false", "true")),
    "rollout.memory_fraction": ("rollout.engine=vllm", ("0.2", "0.3")),
    "rollout.tensor_parallel": ("rollout.engine=vllm", ("1", "2")),
}
"""Setting -> what it needs, and two values. ``rollout.server`` is in test_vllm.py, beside this engine."""

STEP = """
import sys
from pathlib import Path
import torch
sys.path.insert(0, {tests!r})
import unkeyed
from pipelines.config import settings
from pipelines.ranks.ranks import ranks
found = unkeyed.numbers(settings.load(None, [*unkeyed.STEP, *{overrides!r}]), Path({folder!r}))
if ranks().main:
    torch.save(found, {out!r})
"""


def test_every_one_is_tried():
    assert TRIED.keys() | {"rollout.server"} == OF_SCALE


@pytest.mark.parametrize("setting", TRIED)
def test_it_changes_nothing_but_last_bits(setting, tmp_path):
    needs, values = TRIED[setting]
    ranks = 2 if setting in ("update.zero_stage", "rollout.tensor_parallel") else 1
    engine = "" if ranks == 1 or "deepspeed" in needs else "update.engine=deepspeed"
    found = []
    for value in values:
        out = tmp_path / f"{value}.pt"
        overrides = [text for text in (needs, engine, f"{setting}={value}") if text]
        script = tmp_path / f"{value}.py"
        script.write_text(
            STEP.format(tests=str(TOOLS), overrides=overrides, folder=str(tmp_path / value), out=str(out))
        )
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        subprocess.run([sys.executable, *launch, str(script)], check=True)
        found.append(torch.load(out))
    assert differences(*found) == []
