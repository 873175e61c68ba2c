"""Plain rows against rows that share their prompt: the three passes, and where sharing pays."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from pipelines.bench.measure import alternate, ratio
from pipelines.bench.workload import Lengths, Workload
from pipelines.capacity.lookup import find_shape
from pipelines.model import packing
from pipelines.model.policy import Policy

LONG_PROMPT = Lengths(image=256, text=24, samples=8, response=64, prompts=4)
LARGE = Lengths(image=1280, text=24, samples=8, response=512, prompts=1)
PASSES = ("old_logp", "scoring", "update")
LONG = 65_536
"""Tokens of plain rows beyond which a cell of the curve is measured in one turn only."""


def passes(shape: str, repeats: int, out: Path, say: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """Seconds of each pass, plain and shared, and how many times faster sharing is; after each pass."""
    at = LONG_PROMPT if shape == "tiny" else LARGE
    work = Workload(at, shape, out)
    plain, shared = (work.passes(work.with_settings(shared_prefix=s)) for s in (False, True))
    found: dict[str, Any] = {"lengths": vars(at), "seconds": {}, "faster": {}}
    turns: dict[str, dict[str, list[float]]] = {}
    for name in PASSES:
        say(f"passes: {name}")
        turns[name] = alternate({"plain": getattr(plain, name), "shared": getattr(shared, name)}, repeats)
        found["seconds"][name] = {way: median(times) for way, times in turns[name].items()}
        found["faster"][name] = ratio(turns[name]["plain"], turns[name]["shared"])
        yield found
    # Old log-probs come with scoring: one pass of two views, and the update.
    whole = {
        way: [a + b for a, b in zip(turns["scoring"][way], turns["update"][way], strict=True)]
        for way in ("plain", "shared")
    }
    work_done = work_of(work)
    found |= {"peak_flops": peak_flops(work.policy), "work": work_done}
    found["of_peak"] = {
        name: work_done[name]["operations"] / found["seconds"][name]["shared"] / found["peak_flops"] for name in PASSES
    }
    found["seconds"]["all"] = {way: median(times) for way, times in whole.items()}
    found["faster"]["all"] = ratio(whole["plain"], whole["shared"])
    yield found


def work_of(work: Workload) -> dict[str, dict[str, float]]:
    """Operations of each pass with shared prefixes, and the bytes that it has to move at least.

    Bytes: every weight once a pass over the groups, and of every token each matrix's input and output;
    the backward pass does and moves twice what the forward pass does.
    """
    shape, policy = find_shape(work.config.model), work.policy
    number = 2 if work.config.model.dtype == "bfloat16" else 4
    operations = moved = 0.0
    for group in work.rollouts:
        prompt = policy.encoder.encode(work.samples.by_id(group.sample_id))
        fed = [len(ids) - 1 for ids in group.response_ids]
        costs = replace(policy.costs, image=policy.costs.image * prompt["pixel_values"].numel())
        count = packing.tokens(group.prompt_tokens, fed, shared=True)
        sampled = sum(map(len, group.response_ids))
        operations += packing.operations(costs, group.prompt_tokens, fed, shared=True)
        operations += 2.0 * shape.vocab * shape.hidden * sampled
        queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        layer = 5 * shape.hidden + 2 * queries + 2 * keys + 4 * shape.intermediate
        moved += number * (count * shape.layers * layer + sampled * shape.hidden)
    moved += number * shape.parameters
    again = 4 if work.config.update.gradient_checkpointing else 3
    return {
        name: {"operations": times * operations, "bytes": times * moved}
        for name, times in (("old_logp", 1), ("scoring", 2), ("update", again))
    }


def peak_flops(policy: Policy) -> float:
    """Operations per second of one large matrix product in the type of the model: the measured peak."""
    size = 8192 if policy.device.type == "cuda" else 1536
    dtype = torch.bfloat16 if policy.config.model.dtype == "bfloat16" else torch.float32
    a, b = (torch.randn(size, size, device=policy.device, dtype=dtype) for _ in range(2))
    return 2.0 * size**3 / min(alternate({"product": lambda: a @ b}, 5)["product"])


def curve(shape: str, repeats: int, out: Path, say: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """Score and update over group sizes and prompt lengths: sharing, and ``auto``, against plain rows."""
    cells: list[dict[str, Any]] = []
    for samples in (2, 4, 8, 16, 32):
        for prompt in (16, 64, 256, 1024, 2048):
            say(f"curve: {samples} responses behind {prompt} tokens")
            at = Lengths(
                image=prompt // 4 * 3,
                text=prompt // 4,
                samples=samples,
                response=64,
                prompts=1 if prompt * samples > 8192 else 2,
            )
            with tempfile.TemporaryDirectory() as folder:
                work = Workload(at, shape, Path(folder))
                ways = {
                    name: work.passes(work.with_settings(shared_prefix=setting))
                    for name, setting in (("plain", False), ("shared", True), ("auto", "auto"))
                }
                turns = alternate(
                    {name: lambda p=p: (p.scoring(), p.update()) for name, p in ways.items()},  # type: ignore[misc]
                    max(1, min(repeats, LONG // (samples * prompt))),
                )
            cells.append(
                {
                    "samples": samples,
                    "place": prompt,
                    "prompt": work.rollouts[0].prompt_tokens,
                    "seconds": {name: median(times) for name, times in turns.items()},
                    "shared": ratio(turns["plain"], turns["shared"]),
                    "auto": ratio(turns["plain"], turns["auto"]),
                }
            )
            yield {"response": 64, "cells": cells}
