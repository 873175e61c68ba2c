"""The embedded run on the device, killed and resumed: does it end bit for bit as one left alone?

The kill comes when update 3 is on disk and its checkpoint is not. What goes on loads checkpoint 2, its
optimizer too, and trains update 3 again from the stored responses.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from pipelines.bench.gpu.place import Figures, Findings, Place
from pipelines.bench.measure import timed
from pipelines.contents import file_hash

SETTINGS = (
    "data.glyphs.train=64",
    "data.glyphs.validation=8",
    "data.glyphs.test=16",
    "run.steps=3",
    "rollout.prompts_per_step=8",
    "rollout.samples_per_prompt=4",
    "rollout.dynamic_sampling=false",
    "reward.function=pipelines.bench.scale:alternating",
    "update.batch_prompts=4",
    "update.micro_batch_prompts=2",
    "checkpoint.every=2",
    "checkpoint.validation_samples=1",
    "eval.benchmarks=[]",
)
KILLED_AT = ("checkpoint", 3)
KILL = "--kill"
COMPARED = ("*.safetensors", "*.parquet", "metrics.jsonl")
"""What a run that was killed has to have as the other one; manifests hold times."""


def findings(place: Place) -> Findings:
    """For each type the run left alone, here; killed and resumed, in a process each."""
    for dtype in ("float32", "bfloat16"):
        yield f"killed and resumed, {dtype}", partial(_compared, place, dtype)


def _compared(place: Place, dtype: str) -> Figures:
    folder = place.work / f"resume-{dtype}"
    alone, killed = folder / "alone", folder / "killed"
    line = [*SETTINGS, f"model.dtype={dtype}", f"run.device={place.device}"]
    seconds = timed(lambda: train_or_go_on(alone, line, kill=False))
    _started(killed, [*line, KILL], -signal.SIGKILL)
    notes = _started(killed, line, 0)
    ours, theirs = _contents(alone), _contents(killed)
    differ = sorted(name for name in ours | theirs if ours.get(name) != theirs.get(name))
    return {
        "the same bits": not differ,
        "files": len(ours),
        "files that differ": len(differ),
        "weights differ by": max(
            (_furthest(alone / n, killed / n) for n in differ if n.endswith(".safetensors")), default=0.0
        ),
        "alone_s": seconds,
        "said": " | ".join(notes),
        "differing": differ[:20],
    }


def _started(run: Path, line: list[str], code: int) -> list[str]:
    """Train, or go on, in a process -> what it said.

    Raises:
        RuntimeError: it does not end with this exit code; the message has its last lines.
    """
    command = [sys.executable, "-m", "pipelines.bench.gpu.resume", str(run), *line]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != code:
        raise RuntimeError(f"exit code {done.returncode}, not {code}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1]) if not code else []


def _contents(run: Path) -> dict[str, str]:
    """Path -> hash of what is compared."""
    files = [file for kind in COMPARED for file in run.rglob(kind)]
    return {str(file.relative_to(run)): file_hash(file, lasting=False) for file in files}


def _furthest(file: Path, other: Path) -> float:
    """Largest difference of two files' tensors; infinite where they have not the same."""
    if not (file.is_file() and other.is_file()):
        return float("inf")
    ours, theirs = load_file(file), load_file(other)
    if ours.keys() != theirs.keys():
        return float("inf")
    return max(float((ours[n].double() - theirs[n].double()).abs().max()) for n in ours)


def train_or_go_on(run: Path, given: list[str], *, kill: bool) -> list[str]:
    """Train the run in this folder, or go on with it -> what it said.

    Args:
        given: its settings.
        kill: this process dies at ``KILLED_AT``.
    """
    from pipelines.chain import Chain
    from pipelines.config import settings
    from pipelines.run import train
    from pipelines.runs import write_config
    from pipelines.watch import Silent

    class Seen(Silent):
        """What was said."""

        def __init__(self) -> None:
            self.notes: list[str] = []

        def note(self, text: str) -> None:
            self.notes.append(text)

        def stage(self, name: str, index: int) -> None:
            if kill and (name, index) == KILLED_AT:
                os.kill(os.getpid(), signal.SIGKILL)

    chain: Any = Chain(settings.load(None, given), run)
    if not run.is_dir():
        write_config(run, chain.config)
    seen = Seen()
    train(chain, seen)
    return seen.notes


if __name__ == "__main__":
    given = [text for text in sys.argv[2:] if text != KILL]
    print(json.dumps(train_or_go_on(Path(sys.argv[1]), given, kill=KILL in sys.argv)))
