"""Learn the most of a GPU in some six minutes: ``make gpu`` (docs/gpu.md).

    python -m pipelines.bench.gpu --out build/gpu                              # all parts, 3B, one GPU
    python -m pipelines.bench.gpu probe bits --shape tiny --device cpu --out build/gpu

Every part is a process of its own with a limit of its own: one that crashes or hangs costs no other. Each
writes NAME.json as it goes; summary.md has it all in one table, log.txt what they said.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console

from pipelines.bench.gpu.summary import markdown, show
from pipelines.disk.step import write_atomic

LIMITS = {"probe": 80, "resume": 110, "bits": 80, "profile": 120, "stages": 210}
"""Parts, the cheapest first, and the seconds that each may take; on a GPU they need some 60 % of them."""
SHAPES = ("tiny", "3b")
ENVIRONMENT = {
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
    "GOMP_SPINCOUNT": "10000",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}
"""What the parts run with, where one has set nothing else; mostly as ``vppo`` does."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts, and say what they found -> 0, or 1 where one did not end well."""
    line = list(sys.argv[1:] if arguments is None else arguments)
    asked = _asked(line)
    asked.out.mkdir(parents=True, exist_ok=True)
    console, parts = Console(), dict[str, dict[str, Any]]()
    command = shlex.join(["python", "-m", "pipelines.bench.gpu", *line])
    with tempfile.TemporaryDirectory(dir=asked.work) as work, open(asked.out / "log.txt", "w") as log:
        for name in asked.parts or LIMITS:
            limit = asked.limit or LIMITS[name]
            console.print(f"{name}, {limit} s at most", highlight=False)
            parts[name] = part(name, asked, Path(work), limit, log)
            write_atomic(asked.out / "summary.md", markdown(parts, command))
    console.print()
    show(parts, console)
    console.print(f"\nwritten to {asked.out}", soft_wrap=True, highlight=False)
    return int(any(found["ended"] != "done" for found in parts.values()))


def part(name: str, asked: argparse.Namespace, work: Path, limit: float, log: TextIO) -> dict[str, Any]:
    """Run one part to its end, or until its limit -> what its file says, which then tells how it ended."""
    file = asked.out / f"{name}.json"
    file.unlink(missing_ok=True)
    log.write(f"== {name}\n")
    log.flush()
    command = [
        sys.executable,
        "-m",
        "pipelines.bench.gpu.part",
        name,
        "--shape",
        asked.shape,
        "--device",
        asked.device,
        "--out",
        str(asked.out),
        "--work",
        str(work),
    ]
    begun = time.perf_counter()
    # A session of its own, so that what it started ends with it.
    process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=ENVIRONMENT | os.environ)
    try:
        code = process.wait(limit)
        ended = "done" if code == 0 else f"exit code {code} {_last_line(log)}"
    except subprocess.TimeoutExpired:
        ended = f"ended at its limit of {limit:g} s {_last_line(log)}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    found: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    found |= {"seconds": time.perf_counter() - begun, "ended": ended}
    write_atomic(file, json.dumps(found, indent=1))
    return found


def _last_line(log: TextIO) -> str:
    """The last that was said, in brackets, and where the rest is."""
    *_, last = Path(log.name).read_text(errors="replace").splitlines()
    return f"(log.txt: {last.strip()[:200]})"


def _asked(line: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m pipelines.bench.gpu")
    parser.add_argument("parts", nargs="*", choices=[*LIMITS, []], help="default: all")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--work", type=Path, help="where there is room for 15 GB (default: TMPDIR)")
    parser.add_argument("--shape", choices=SHAPES, default="3b")
    parser.add_argument("--device", default="cuda", help="cuda or cpu")
    parser.add_argument("--limit", type=float, help="seconds of every part, instead of its own")
    return parser.parse_args(line)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # which ends the part too
    sys.exit(main())
