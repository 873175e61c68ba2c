"""Whether a run fits, what to change if it does not, and all of its numbers. Torch-free."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from pipelines.capacity import (
    BANDWIDTH_UTILISATION,
    GIB,
    INFORMATIVE,
    UTILISATION,
    Run,
)
from pipelines.gpus import GPUS, Gpu

MENDS: tuple[tuple[str, Any], ...] = (
    ("update.gradient_checkpointing", True), ("update.micro_batch_prompts", 1),
    ("score.batch_prompts", 1), ("rollout.tensor_parallel", 2), ("rollout.tensor_parallel", 4),
    ("rollout.tensor_parallel", 8), ("update.zero_stage", 2), ("rollout.memory_fraction", 0.5),
    ("rollout.memory_fraction", 0.4), ("rollout.memory_fraction", 0.3), ("rollout.memory_fraction", 0.2),
    ("update.zero_stage", 3),
    ("model.shared_prefix", True), ("model.shared_prefix", False), ("update.offload", True),
)  # fmt: skip
"""Settings that save memory and change no result, those that cost least first."""


def problems(run: Run) -> list[str]:
    """Why it does not fit; empty if it does."""
    found, limit = [], run.gpu.memory
    for stage, memory in run.memory().items():
        if memory.total > limit * GIB:
            found.append(f"{stage} takes {memory.total / GIB:.1f} of {limit:.1f} GiB")
    if run.own_vllm:
        cache, at = run.vllm()[1], run.longest
        if cache < (at.prompt + at.response) * run.kv_bytes:
            found.append("vLLM's share leaves no room for a response beside its weights")
    return found


def changed(run: Run, key: str, value: Any, gpu: Gpu | None = None) -> Run:
    """The same with another setting, or on another GPU."""
    section, _, name = key.partition(".")
    part = getattr(run.config, section).model_copy(update={name: value})
    config = run.config.model_copy(update={section: part})
    return Run(config, run.shape, gpu or run.gpu, run.count, run.expected.response)


def mends(run: Run) -> tuple[list[str], bool]:
    """Settings that make it fit, each one that helps, and whether they are enough."""
    chosen: dict[str, Any] = {}
    for key, value in MENDS:
        if not problems(run):
            break
        if _may(run, key, value):
            other = changed(run, key, value)
            if _excess(other) < _excess(run):
                run, chosen[key] = other, value
    told = [f"{k}={str(v).lower() if isinstance(v, bool) else v}" for k, v in chosen.items()]
    return told, not problems(run)


def _may(run: Run, key: str, value: Any) -> bool:
    """Whether the setting means something here, and another than it has."""
    if key == "rollout.tensor_parallel":
        return run.world % value == 0 and value > run.config.rollout.tensor_parallel
    if key == "rollout.memory_fraction":
        return run.own_vllm and value < run.config.rollout.memory_fraction
    if key == "update.zero_stage":
        return run.deepspeed and value > run.config.update.zero_stage
    return run.deepspeed or key != "update.offload"


def _excess(run: Run) -> float:
    """By how much it does not fit, over all stages; fewer problems always count as less."""
    over = sum(max(0.0, m.total - run.gpu.memory * GIB) for m in run.memory().values())
    return over + len(problems(run)) * GIB


def elsewhere(run: Run) -> list[str]:
    """GPUs of the table on which as many do, each with the settings that this needs."""
    found = []
    for gpu in GPUS.values():
        needed, enough = mends(changed(run, "run.steps", run.config.run.steps, gpu))
        if enough and gpu != run.gpu:
            found.append(" ".join((gpu.name, *needed)))
    return found


def report(run: Run) -> dict[str, Any]:
    """Everything as numbers: bytes, operations and seconds, per GPU or step as the key says."""
    flops, seconds, (needed, enough) = run.flops(), run.seconds(), mends(run)
    at, groups = run.expected, run.config.rollout.prompts_per_step
    tokens = {
        "rollout": run.sampled() * (at.prompt + run.samples * at.response),
        "score": groups * (at.prompt + run.samples * at.response),
        "update": groups * (at.prompt + run.samples * at.response) * run.config.update.epochs,
    }
    return {
        "gpu": run.gpu.name, "gpus": run.count, "gpus_used": run.world,
        "gpu_memory": run.gpu.memory * GIB,
        "parameters": run.shape.parameters, "parameters_trained": run.trained,
        "assumed": {
            "prompt_tokens": at.prompt, "image_tokens": at.image, "response_tokens": at.response,
            "utilisation": UTILISATION, "bandwidth_utilisation": BANDWIDTH_UTILISATION,
            "informative_share": INFORMATIVE if run.config.rollout.dynamic_sampling else 1.0,
        },
        "memory_per_gpu": {
            stage: {f.name: getattr(m, f.name) for f in fields(m)} | {"total": m.total}
            for stage, m in run.memory().items()
        },
        "host_memory_per_node": run.host(8),
        "tokens_per_step": tokens,
        "flops_per_step": {
            stage: {f.name: getattr(x, f.name) for f in fields(x)} | {"total": x.total}
            for stage, x in flops.items()
        },
        "seconds_per_step": seconds | {"total": sum(seconds.values())},
        "seconds": run.config.run.steps * sum(seconds.values()),
        "disk": run.disk(),
        "fits": not problems(run), "problems": problems(run),
        "mends": needed, "mends_suffice": enough,
        "fits_on": [] if enough else elsewhere(run),
    }  # fmt: skip
