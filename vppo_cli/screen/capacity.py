"""What a config takes on given GPUs, as one screen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipelines.capacity.fitting import report
from pipelines.capacity.gpus import find_gpu
from pipelines.capacity.lookup import find_shape
from pipelines.capacity.work import GIB, Run
from pipelines.config.schema import Config
from pipelines.errors import UserError
from pipelines.words import counted
from vppo_cli.screen import display
from vppo_cli.screen.words import duration, size

DEFAULT_GPU, DEFAULT_GPUS = "H100", 8

PARTS = {
    "weights": "weights",
    "copies": "copies",
    "optimizer": "optimizer",
    "gradients": "gradients",
    "activations": "activations",
    "logits": "logits",
    "vllm_weights": "vLLM",
    "kv_cache": "KV cache",
    "overhead": "other",
    "total": "all",
}
"""Part of the memory -> head of its column."""


CHANGES = {
    "update.engine": "sums in another order",
    "rollout.engine": "other random draws",
    "model.dtype": "another precision of every pass",
    "update.lora_rank": "adapters are trained, not all weights; learning rates are ten times higher",
}
"""Setting that advice may name though it decides results -> how."""


def wanted(config: Config, gpu: str | None, gpus: int | None, response: int | None) -> bool:
    """Whether to count: asked for, or the model is not the one that runs anywhere."""
    return bool(gpu or gpus or response) or config.model.path != "tiny"


def count(config: Config, gpu: str | None, gpus: int | None, response: int | None) -> dict[str, Any] | None:
    """The numbers; None where nobody asked and the model's sizes cannot be had.

    Raises:
        UserError: an unknown GPU, or an unknown model that was asked for.
    """
    chosen = find_gpu(gpu or DEFAULT_GPU)
    try:
        shape = find_shape(config.model)
    except UserError:
        if gpu or gpus or response:
            raise
        return None
    return report(Run(config, shape, chosen, gpus or DEFAULT_GPUS, response))


def show(config: Config, found: dict[str, Any]) -> None:
    """Print the numbers: memory by stage, work and time by stage, disk, and whether it fits."""
    _machine(config, found)
    display.console.print()
    _memory(found["memory_per_gpu"])
    display.console.print()
    _work(config, found)
    display.console.print()
    disk, host = found["disk"], found["host_memory_per_node"]
    display.line(
        "disk", f"{size(disk['checkpoint'])} a checkpoint, {size(disk['step'])} a step, {size(disk['run'])} in the end"
    )
    parts = ", ".join(f"{name} {part / GIB:.0f}" for name, part in found["host_memory_parts"].items())
    if host >= GIB:
        display.line("host", f"{host / GIB:.0f} GiB of the first machine's memory ({parts})")
    _assumed(config, found)
    _verdict(found)


def _machine(config: Config, found: dict[str, Any]) -> None:
    total, trained = found["parameters"], found["parameters_trained"]
    frozen = "" if trained == total else f", {_count(trained)} of them trained"
    display.line("model", f"{config.model.path}: {_count(total)} weights{frozen}")
    gpu, update = find_gpu(found["gpu"]), config.update
    zero = f", ZeRO-{update.zero_stage}" if update.engine == "deepspeed" else ""
    zero += ", offload" if update.offload and zero else ""
    display.line(
        "on",
        f"{found['gpus']} x {gpu.name}, {gpu.memory:.0f} GiB each; "
        f"{config.model.dtype}, {update.engine}{zero}, {config.rollout.engine}",
    )
    if found["gpus_used"] < found["gpus"]:
        display.line(
            "note", f"update.engine {update.engine} uses one GPU: add --set update.engine=deepspeed", style="yellow"
        )


def _memory(stages: dict[str, dict[str, float]]) -> None:
    used = [part for part in PARTS if any(memory[part] >= GIB / 20 for memory in stages.values())]
    rows = [[f"{memory[p] / GIB:.1f}" if memory[p] >= GIB / 20 else "" for p in used] for memory in stages.values()]
    _table("GiB a GPU", [PARTS[part] for part in used], dict(zip(stages, rows, strict=True)))


def _work(config: Config, found: dict[str, Any]) -> None:
    seconds, flops = found["seconds_per_step"], found["flops_per_step"]
    rows = {
        stage: [
            _count(found["tokens_per_step"][stage]),
            _count(flops[stage]["total"], "FLOP"),
            _seconds(seconds[stage]),
            f"{seconds[stage] / seconds['total']:.0%}",
        ]
        for stage in flops
    }
    _table("a step", ["tokens", "work", "time", "share"], rows)
    display.line(
        "in all",
        f"{_seconds(seconds['total'])} a step, {counted(config.run.steps, 'step')} in {duration(found['seconds'])}",
    )


def _assumed(config: Config, found: dict[str, Any]) -> None:
    a = found["assumed"]
    vllm = f" ({a['vllm_utilisation']:.0%} in vLLM)" if config.rollout.engine == "vllm" else ""
    groups = "" if a["informative_share"] == 1 else f"; {a['informative_share']:.0%} of groups kept"
    display.line(
        "assumed",
        f"prompts of {a['prompt_tokens']:.0f} tokens, responses of {a['response_tokens']:.0f} "
        f"(--response-tokens){groups};",
        style="dim",
    )
    display.line(
        "",
        f"{a['utilisation']:.0%} of peak operations{vllm}, {a['bandwidth_utilisation']:.0%} of "
        "bandwidth; memory for the longest responses;",
        style="dim",
    )
    display.line("", "not counted: communication, grading, validation, evaluation", style="dim")


def _verdict(found: dict[str, Any]) -> None:
    if found["fits"]:
        stages = found["memory_per_gpu"]
        fullest = max(stages, key=lambda stage: stages[stage]["total"])
        spare = found["gpu_memory"] - stages[fullest]["total"]
        display.line("result", _fits(spare, fullest), style="green")
        return
    for i, problem in enumerate(found["problems"]):
        text = problem if i else f"does not fit: {problem}"
        display.line("" if i else "result", text, style="bold yellow")
    if not found["advice"]:
        display.line("change", "take a smaller model, or fewer or shorter responses (which changes what is learned):")
        display.line("", "no combination of the other settings fits, not on the largest GPU of the table")
        return
    best = found["advice"][0]
    gpu = [] if best["gpu"] == found["gpu"] else [f"--gpu {best['gpu']}"]
    changes = [*gpu, *(f"--set {setting}" for setting in best["set"])]
    for start in range(0, len(changes), 3):
        display.line("" if start else "change", "  ".join(changes[start : start + 3]))
    host = f"{best['host_memory_per_node'] / GIB:.0f} GiB of a machine's memory"
    display.line(
        "then",
        f"{_fits(best['spare'], best['fullest'])}; {_seconds(best['seconds_per_step'])} a step, {host}",
        style="green",
    )
    for setting in best["set"]:
        key, _, value = setting.partition("=")
        if key in best["changes_results"]:
            package = " (pip install 'vppo[gpu]')" if value in ("vllm", "deepspeed") else ""
            display.line("note", f"{key} changes results: {CHANGES[key]}{package}", style="yellow")


def _fits(spare: float, stage: str) -> str:
    return f"fits, with {spare / GIB:.1f} GiB to spare ({stage})"


def _table(corner: str, heads: Sequence[str], rows: dict[str, list[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(heads, *rows.values(), strict=True)]
    lines = {corner: heads, **rows}
    display.columns(
        [
            (name.ljust(display.LABEL - 2), *(c.rjust(w) for c, w in zip(cells, widths, strict=True)))
            for name, cells in lines.items()
        ],
        styles=["bold", *("" for _ in rows)],
    )


def _count(number: float, unit: str = "") -> str:
    """``8.29 billion``; with a unit ``105 PFLOP``."""
    if unit:
        for power, letter in ((18, "E"), (15, "P"), (12, "T"), (9, "G")):
            if number >= 10**power:
                return f"{number / 10**power:.3g} {letter}{unit}"
        return f"{number:.3g} {unit}"
    for power, word in ((9, " billion"), (6, " million")):
        if number >= 10**power:
            return f"{number / 10**power:.3g}{word}"
    return f"{number:,.0f}"


def _seconds(seconds: float) -> str:
    return duration(seconds) if seconds >= 10 else f"{seconds:.2g} s"
