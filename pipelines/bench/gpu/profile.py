"""Where the time goes: kernels by their seconds on the device and on the host (torch's profiler), of tokens
decoded, of a scoring pass and of a micro-batch of an update; and the seconds without the profiler."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

from pipelines.bench.gpu.place import NEEDS_CUDA, Figures, Findings, Place
from pipelines.bench.measure import timed
from pipelines.bench.workload import Lengths, Passes, Workload
from pipelines.model import decoding
from pipelines.model.sampling import Sampling, uniforms

LENGTHS = {
    "tiny": Lengths(image=64, text=8, samples=4, response=16, prompts=1),
    "3b": Lengths(image=1280, text=24, samples=8, response=512, prompts=1),
}
TOKENS = 8
TOP = 15
"""Kernels that are listed."""
Rows = dict[str, list[float]]
"""Name -> calls, and seconds on the device and on the host, what it calls left out."""


def findings(place: Place) -> Findings:
    """One prompt each; the whole model, made in the device's memory."""
    yield f"{TOKENS} decoded tokens", partial(_decoded, place)
    yield "scoring pass, both views", partial(_scored, place)
    yield "update, a micro-batch and the step", partial(_trained, place)


@lru_cache(maxsize=1)
def _passes(place: Place) -> Passes:
    work = Workload(
        LENGTHS[place.shape],
        place.shape,
        place.work,
        f"run.device={place.device}",
        "model.dtype=bfloat16",
        "update.gradient_checkpointing=true",
    )
    return work.passes(work.config)


def _decoded(place: Place) -> Figures:
    """The first token, which reads the prompt, is taken off: by another run of it alone."""
    policy, samples = _passes(place).policy, _passes(place).work.samples
    prompts, at = [policy.encoder.encode(sample) for sample in samples], LENGTHS[place.shape]
    known, ends = policy.suppressed_ids, torch.tensor(policy.eos_ids, device=policy.device)

    def sample(tokens: int) -> None:
        how = Sampling(1.0, 0.99, 0, tokens, at.samples, 0)
        decoding.sample(policy, prompts, uniforms(how, (0,), policy.device), how)

    policy.suppressed_ids = torch.cat([known, ends])  # so that no response ends
    try:
        whole, first = (_figures(partial(sample, tokens), place) for tokens in (TOKENS + 1, 1))
    finally:
        policy.suppressed_ids = known
    rows = {
        name: [a - b for a, b in zip(row, first[1].get(name, [0.0] * 3), strict=True)] for name, row in whole[1].items()
    }
    return {"prompt_s": first[0], "a token_s": (whole[0] - first[0]) / TOKENS, **_told(rows)}


def _scored(place: Place) -> Figures:
    seconds, rows = _figures(_passes(place).scoring, place)
    return {"pass_s": seconds, **_told(rows)}


def _trained(place: Place) -> Figures:
    seconds, rows = _figures(_passes(place).update, place)
    found = {"update_s": seconds, **_told(rows)}
    if place.cuda:
        found["peak_bytes"] = torch.cuda.max_memory_allocated()
    return found


def _figures(work: Callable[[], object], place: Place) -> tuple[float, Rows]:
    """Seconds after a first call, without the profiler, and its rows of a further one."""
    work()
    seconds = timed(work)
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if place.cuda else [])]
    with torch.profiler.profile(activities=kinds) as profiler:
        timed(work)
    averages: Any = profiler.key_averages()
    # An operation's device time is that of its kernels, which have rows of their own.
    return seconds, {
        row.key: (
            [row.count, 0.0, row.self_cpu_time_total / 1e6]
            if row.device_type == DeviceType.CPU
            else [row.count, row.self_device_time_total / 1e6, 0.0]
        )
        for row in averages
    }


def _told(rows: Rows) -> Figures:
    """Sums, the most in a few words, and the longest lists."""
    found: Figures = {}
    for side, column in (("device", 1), ("host", 2)):
        ordered = sorted(rows.items(), key=lambda row: -row[1][column])
        if not any(row[column] for row in rows.values()):
            found[f"most on the {side}"] = NEEDS_CUDA
            continue
        found[f"{side}_s"] = sum(row[column] for row in rows.values())
        if side == "device":
            found["kernels"] = sum(row[0] for row in rows.values() if row[column])
        found[f"most on the {side}"] = "; ".join(f"{name[:40]} {row[column] * 1e3:.1f} ms" for name, row in ordered[:3])
        found[f"top on the {side}"] = [
            {"name": name[:120], "calls": row[0], "s": row[column]} for name, row in ordered[:TOP]
        ]
    return found
