"""Rollout, score and update of a large model beside what ``vppo plan`` says (pipelines/bench/scale.py)."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from pipelines.bench import scale as scale_benchmark
from pipelines.bench.gpu.place import NEEDS_CUDA, Figures, Findings, NotMeasured, Place

LINES = {
    "tiny": ("--prompts", "2", "--samples", "4", "--image-tokens", "64", "--response-tokens", "16"),
    "3b": ("--response-tokens", "256"),
}
"""At 3b responses are half as long as the benchmark's own: every token costs about the same."""


def findings(place: Place) -> Findings:
    """The run, then what it says of each stage; ``steps.json`` has each step as soon as it ends."""
    found: dict[str, Any] = {}
    yield "run", partial(_run, place, found)
    if found:
        for stage in scale_benchmark.STAGES:
            yield stage, partial(_stage, place, found, stage)


def _run(place: Place, found: dict[str, Any]) -> Figures:
    if place.cuda != torch.cuda.is_available():
        raise NotMeasured("a GPU is here, and is what the benchmark takes")
    line = [
        "--shape",
        place.shape,
        "--out",
        str(place.work),
        "--steps",
        str(place.out / "steps.json"),
        "--repeats",
        "1",
        *LINES[place.shape],
    ]
    found |= scale_benchmark.measure(scale_benchmark.parsed(line))
    at = found["tokens"]
    return {
        "weights": f"{found['parameters'] / 1e9:.3g} billion",
        "prompts": found["config"]["rollout"]["prompts_per_step"],
        "responses to each": found["config"]["rollout"]["samples_per_prompt"],
        "tokens of a prompt": round(at["prompt"]),
        "of a response": round(at["response"]),
    }


def _stage(place: Place, found: dict[str, Any], stage: str) -> Figures:
    row, peak = found["stages"][stage], found["peak_flops"]
    seconds, flops = row["seconds"], row["flops"] / row["seconds"]
    figures = {
        "stage_s": seconds,
        "predicted_s": row["seconds_predicted"],
        "tokens_per_s": row["tokens"] / seconds,
        "work_flops": flops,
        "of peak_share": flops / peak if peak else None,
        "memory_bytes": row["bytes"],
        "predicted_bytes": row["bytes_predicted"],
    }
    missing = "no figure for this GPU" if place.cuda else NEEDS_CUDA
    return {name: missing if value is None else value for name, value in figures.items()}
