"""Plain rows against rows that share their prompt: the three passes, and where sharing pays."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from evals.bench.measure import alternate, ratio
from evals.bench.workload import Lengths, Workload

LONG_PROMPT = Lengths(image=256, text=24, samples=8, response=64, prompts=4)
LARGE = Lengths(image=1280, text=24, samples=8, response=512, prompts=1)
PASSES = ("old_logp", "scoring", "update")


def passes(shape: str, repeats: int, out: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Seconds of each pass, plain and shared, and how many times faster sharing is."""
    at = LONG_PROMPT if shape == "tiny" else LARGE
    work = Workload(at, shape, out)
    plain, shared = (work.passes(work.with_settings(shared_prefix=s)) for s in (False, True))
    found: dict[str, Any] = {"lengths": vars(at), "seconds": {}, "faster": {}}
    turns: dict[str, dict[str, list[float]]] = {}
    for name in PASSES:
        say(f"passes: {name}")
        turns[name] = alternate(
            {"plain": getattr(plain, name), "shared": getattr(shared, name)}, repeats
        )
        found["seconds"][name] = {way: median(times) for way, times in turns[name].items()}
        found["faster"][name] = ratio(turns[name]["plain"], turns[name]["shared"])
    # Old log-probs come with scoring: one pass of two views, and the update.
    whole = {
        way: [a + b for a, b in zip(turns["scoring"][way], turns["update"][way], strict=True)]
        for way in ("plain", "shared")
    }
    found["seconds"]["all"] = {way: median(times) for way, times in whole.items()}
    found["faster"]["all"] = ratio(whole["plain"], whole["shared"])
    return found


def curve(shape: str, repeats: int, out: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Score and update over group sizes and prompt lengths: sharing, and ``auto``, against plain rows."""
    cells = []
    for samples in (2, 4, 8, 16, 32):
        for prompt in (16, 64, 256, 1024, 2048):
            say(f"curve: {samples} responses behind {prompt} tokens")
            at = Lengths(image=prompt // 4 * 3, text=prompt // 4, samples=samples, response=64,
                         prompts=1 if prompt * samples > 8192 else 2)  # fmt: skip
            with tempfile.TemporaryDirectory() as folder:
                work = Workload(at, shape, Path(folder))
                ways = {
                    name: work.passes(work.with_settings(shared_prefix=setting))
                    for name, setting in (("plain", False), ("shared", True), ("auto", "auto"))
                }
                turns = alternate(
                    {name: lambda p=p: (p.scoring(), p.update()) for name, p in ways.items()},  # type: ignore[misc]
                    repeats,
                )
            cells.append({
                "samples": samples, "place": prompt, "prompt": work.rollouts[0].prompt_tokens,
                "seconds": {name: median(times) for name, times in turns.items()},
                "shared": ratio(turns["plain"], turns["shared"]),
                "auto": ratio(turns["plain"], turns["auto"]),
            })  # fmt: skip
    return {"response": 64, "cells": cells}
