"""Whole training steps: what scoring adds, and ours against TRL's."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from pipelines.bench.measure import ratio
from pipelines.bench.passes import LONG_PROMPT
from pipelines.bench.sides import Work, command
from pipelines.errors import UserError


def against_trl(shape: str, repeats: int, out: Path, say: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """A VPPO step on tiny.yaml, scoring included, and TRL's GRPO step on the same work, in turn."""
    work = Work(steps=repeats + 2)
    found = take_turns({"vppo": work, "trl": work}, repeats, say, "trl")
    vppo, trl = found["vppo"], found["trl"]
    seconds = {side: [row["seconds"] for row in rows] for side, rows in found.items()}
    tokens = {side: median(row["tokens"] for row in rows) for side, rows in found.items()}
    yield {
        "work": vars(work),
        "turns": found,
        "seconds": {side: median(times) for side, times in seconds.items()},
        "tokens": tokens,
        "stages": {name: median(row["stages"][name] for row in vppo) for name in vppo[0]["stages"]},
        "faster": ratio(seconds["trl"], seconds["vppo"]),
        "peak_bytes": {side: max(row["peak"] for row in rows) for side, rows in found.items()},
        "memory": max(r["peak"] for r in vppo) / max(r["peak"] for r in trl),
    }


def scoring(shape: str, repeats: int, out: Path, say: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """A step at long-prompt shapes with exact scoring, without (old log-probs only), and DAPO's, in turn."""
    at = LONG_PROMPT
    base = Work(
        prompts=4 * at.prompts,
        samples=at.samples,
        max_new_tokens=at.response,
        steps=repeats + 2,
        image_tokens=at.image,
        micro_prompts=at.prompts,
        looks=0,
    )
    sides = {"with": base, "without": replace(base, estimator="entropy"), "dapo": replace(base, objective="dapo")}
    found = take_turns(sides, repeats, say, "scoring", side="vppo")
    seconds = {name: [row["seconds"] for row in rows] for name, rows in found.items()}
    yield {
        "work": vars(base),
        "seconds": {name: median(times) for name, times in seconds.items()},
        "stages": {
            name: {s: median(row["stages"][s] for row in rows) for s in rows[0]["stages"]}
            for name, rows in found.items()
        },
        "added": ratio(seconds["with"], seconds["without"]) - 1,
        "dapo": ratio(seconds["dapo"], seconds["without"]),
    }


def need_trl() -> None:
    """See that TRL is here.

    Raises:
        UserError: it is not.
    """
    if importlib.util.find_spec("trl") is None:
        raise UserError("bench trl", "TRL is not installed.", "pip install 'vppo[bench]'")


def take_turns(
    sides: dict[str, Work], repeats: int, say: Callable[[str], None], label: str, side: str | None = None
) -> dict[str, list[dict[str, Any]]]:
    """Let each side make a step, then the other, ``repeats`` times after one that warms up."""
    processes: dict[str, subprocess.Popen[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            for name, work in sides.items():
                place = Path(folder) / name
                place.mkdir()
                processes[name] = subprocess.Popen(
                    command(side or name, work, place),
                    text=True,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=(place / "errors").open("w"),
                )
                _answer(processes[name], place)  # it is ready
            found: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
            for turn in range(repeats + 1):
                for name, process in processes.items():
                    say(f"{label}: {name}, step {turn}")
                    assert process.stdin is not None
                    process.stdin.write("\n")
                    process.stdin.flush()
                    row = _answer(process, Path(folder) / name)
                    if turn:
                        found[name].append(row)
            return found
        finally:
            for process in processes.values():
                process.kill()
                process.wait()


def _answer(process: subprocess.Popen[str], place: Path) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if line:
        return json.loads(line)
    lines = (place / "errors").read_text().strip().splitlines() or ["it said nothing"]
    raise RuntimeError(f"a side ended: {lines[-1]}")
