"""Whether a run fits, what to change if it does not, and all of its numbers. Torch-free.

What to change is searched for, not guessed: all combinations of the settings below are looked at, and
each is judged by the estimate that judges a config. First come those that change no result but for
rounding, the fewest that are enough; then other engines, another compute type, LoRA; then a larger GPU.
What the objective is made of (groups, batches, lengths) is never touched.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from itertools import product
from typing import Any

from pipelines.capacity.gpus import GPUS, Gpu
from pipelines.capacity.work import BANDWIDTH_UTILISATION, GIB, INFORMATIVE, UTILISATION, VLLM_UTILISATION, Memory, Run

RANKS = (64, 32, 16, 8)
"""LoRA ranks to propose, the largest that fits."""
NODE = 8
"""GPUs of a machine, at most; one vLLM engine is on one."""
FRACTIONS = tuple(n / 20 for n in range(19, 0, -1))
"""Values of rollout.memory_fraction to propose."""
COSTS = {"update.zero_stage": 1, "rollout.tensor_parallel": 2, "model.shared_prefix": 4, "update.offload": 8}
"""Of several ways with equally few changes, the one that costs least time is taken."""

Settings = dict[str, Any]


@dataclass(frozen=True)
class Advice:
    """Settings that make a run fit, and the run with them."""

    settings: Settings
    run: Run

    @property
    def lines(self) -> list[str]:
        """As ``--set`` takes them."""
        return [
            f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in self.settings.items()
        ]

    @property
    def deciding(self) -> list[str]:
        """Those of them that decide results."""
        named = [key.partition(".")[::2] for key in self.settings]
        return [f"{section}.{name}" for section, name in named if name not in getattr(self.run.config, section).unkeyed]


def problems(run: Run) -> list[str]:
    """Why it does not fit; empty if it does."""
    found = [
        f"{stage} takes {memory.total / GIB:.1f} of {run.gpu.memory:.1f} GiB"
        for stage, memory in run.memory().items()
        if memory.total > run.gpu.memory * GIB
    ]
    if run.own_vllm and not _room(run):
        found.append("vLLM's share leaves no room for a response beside its weights")
    return found


def _room(run: Run) -> bool:
    """Whether vLLM's share holds the longest response."""
    at = run.longest
    return run.vllm()[1] >= (at.prompt + at.response) * run.kv_bytes


def changed(run: Run, settings: Mapping[str, Any], gpu: Gpu | None = None) -> Run:
    """The same with other settings, or on another GPU."""
    if not settings and gpu in (None, run.gpu):
        return run
    parts: dict[str, Settings] = {}
    for key, value in settings.items():
        section, _, name = key.partition(".")
        parts.setdefault(section, {})[name] = value
    config = run.config.model_copy(
        update={name: getattr(run.config, name).model_copy(update=part) for name, part in parts.items()}
    )
    return Run(config, run.shape, gpu or run.gpu, run.count, run.expected.response)


# -- the search ------------------------------------------------------------------------------------


def advice(run: Run, gpu: Gpu | None = None) -> Advice | None:
    """The least change of settings with which it fits, on its GPU or another; None: there is none."""
    for deciding in _deciding(run):
        start = changed(run, deciding, gpu)
        if (found := _quiet(start)) is not None:
            settings = deciding | found
            return Advice(settings, changed(run, settings, gpu))
    return None


def larger(run: Run) -> Iterator[tuple[Gpu, Advice]]:
    """GPUs of the table with more memory on which it fits, the smallest first, and with what settings."""
    for gpu in sorted(GPUS.values(), key=lambda gpu: gpu.memory):
        if gpu.memory > run.gpu.memory and (found := advice(run, gpu)):
            yield gpu, found


def _deciding(run: Run) -> list[Settings]:
    """Settings that change results, from none to all: engines, compute type, LoRA."""
    config, rank = run.config, run.config.update.lora_rank
    update, rollout = config.update.engine, config.rollout.engine
    fixed = config.rollout.server or rollout not in ("hf", "vllm")
    choices: dict[str, list[Any]] = {
        "update.lora_rank": [rank, *(r for r in RANKS if not rank or r < rank)],
        "model.dtype": [config.model.dtype, "bfloat16", "float32"],
        "update.engine": [update, *(("torch", "deepspeed") if update in ("torch", "deepspeed") else ())],
        "rollout.engine": [rollout, *(() if fixed else ("hf", "vllm"))],
    }
    return sorted(
        _combinations(config, choices),
        key=lambda changes: [
            "update.lora_rank" in changes,
            -changes.get("update.lora_rank", 0),
            "model.dtype" in changes,
            len(changes),
        ],
    )


def _combinations(config: Any, choices: Mapping[str, list[Any]]) -> Iterator[Settings]:
    """Every combination of values, as the settings that it changes; the first value is the present one."""
    several = [list(dict.fromkeys(values)) for values in choices.values()]
    for values in product(*several):
        yield {key: value for key, value, all_ in zip(choices, values, several, strict=True) if value != all_[0]}


def _quiet(run: Run) -> Settings | None:
    """The fewest changes that change no result but for rounding, with which it fits."""
    best: Settings | None = None
    for shared in _shared(run):
        if best is not None and len(shared) >= len(best):
            break
        found = _by_stage(changed(run, shared))
        if found is not None and (best is None or len(shared | found) < len(best)):
            best = shared | found
    return best


def _shared(run: Run) -> list[Settings]:
    """Changes that all stages feel, the fewest first, and of those the cheapest."""
    config = run.config
    choices: dict[str, list[Any]] = {"model.shared_prefix": [config.model.shared_prefix, "auto", True, False]}
    if config.update.engine == "deepspeed":
        choices["update.zero_stage"] = [config.update.zero_stage, 2, 3, 1]
        choices["update.offload"] = [config.update.offload, True, False]
    if run.own_vllm:
        node, heads = min(run.world, NODE), run.shape.heads
        whole = [n for n in (1, 2, 4, 8) if node % n == 0 and heads % n == 0]
        choices["rollout.tensor_parallel"] = [config.rollout.tensor_parallel, *whole]
    return sorted(_combinations(config, choices), key=lambda c: (len(c), sum(COSTS[key] for key in c)))


def _by_stage(run: Run) -> Settings | None:
    """What each stage needs by itself: they are independent, and memory grows with every batch."""
    found: Settings = {}
    if run.kept().total > run.gpu.memory * GIB:
        return None
    for stage, ways in (("rollout", _rollout), ("score", _score), ("update", _update)):
        chosen = next((way for way in ways(run) if _fits(changed(run, way), stage)), None)
        if chosen is None:
            return None
        found |= chosen
    return found


def _fits(run: Run, stage: str) -> bool:
    most = {"rollout": run.rollout_memory, "score": run.score_memory, "update": run.update_memory}
    return most[stage]().total <= run.gpu.memory * GIB and (stage != "rollout" or not run.own_vllm or _room(run))


def _halves(number: int) -> list[int]:
    """64 -> 32, 16 ... 1."""
    return [number >> n for n in range(1, number.bit_length())]


def _rollout(run: Run) -> Iterator[Settings]:
    yield {}
    if run.own_vllm:
        # What is taken grows with the share, and so does its room: if an end fails, so does what is between.
        most, least = (changed(run, {"rollout.memory_fraction": FRACTIONS[end]}) for end in (0, -1))
        if _room(most) and least.rollout_memory().total <= run.gpu.memory * GIB:
            yield from ({"rollout.memory_fraction": f} for f in FRACTIONS)
    elif run.config.rollout.engine == "hf":
        yield from _smaller(run, "rollout", "rollout.batch_prompts", run.config.rollout.batch_prompts)


def _score(run: Run) -> Iterator[Settings]:
    yield {}
    yield from _smaller(run, "score", "score.batch_prompts", run.config.score.batch_prompts)


def _update(run: Run) -> Iterator[Settings]:
    """Smaller passes before recomputation, which costs a third more time; both where one is not enough."""
    update, key = run.config.update, "update.micro_batch_prompts"
    again: Settings = {"update.gradient_checkpointing": not update.gradient_checkpointing}
    yield {}
    for more in ({}, again):
        yield from (more,) if more else ()
        yield from _smaller(run, "update", key, update.micro_batch_prompts, more)


def _smaller(run: Run, stage: str, key: str, number: int, more: Settings | None = None) -> Iterator[Settings]:
    """Half the batch, a quarter ...; nothing where even one prompt is too much."""
    values = _halves(number)
    if values and _fits(changed(run, (more or {}) | {key: 1}), stage):
        yield from ((more or {}) | {key: value} for value in values)


# -- all numbers -----------------------------------------------------------------------------------


def spare(run: Run) -> tuple[str, float]:
    """The fullest stage, and the bytes that it leaves free on a GPU."""
    stages = run.memory()
    fullest = max(stages, key=lambda stage: stages[stage].total)
    return fullest, run.gpu.memory * GIB - stages[fullest].total


def report(run: Run) -> dict[str, Any]:
    """Everything as numbers: bytes, operations and seconds, per GPU or step as the key says.

    ``advice`` is there where it does not fit: settings, whether they decide results, a larger GPU or none.
    """
    flops, seconds, wrong = run.flops(), run.seconds(), problems(run)
    at, groups = run.expected, run.config.rollout.prompts_per_step
    tokens = {
        "rollout": run.sampled() * (at.prompt + run.samples * at.response),
        "score": groups * (at.prompt + run.samples * at.response),
        "update": groups * (at.prompt + run.samples * at.response) * run.config.update.epochs,
    }
    host = run.host(NODE)
    return {
        "gpu": run.gpu.name,
        "gpus": run.count,
        "gpus_used": run.world,
        "gpu_memory": run.gpu.memory * GIB,
        "parameters": run.shape.parameters,
        "parameters_trained": run.trained,
        "assumed": {
            "prompt_tokens": at.prompt,
            "image_tokens": at.image,
            "response_tokens": at.response,
            "utilisation": UTILISATION,
            "vllm_utilisation": VLLM_UTILISATION,
            "bandwidth_utilisation": BANDWIDTH_UTILISATION,
            "informative_share": INFORMATIVE if run.config.rollout.dynamic_sampling else 1.0,
        },
        "memory_per_gpu": {stage: _parts(memory) for stage, memory in run.memory().items()},
        "host_memory_per_node": sum(host.values()),
        "host_memory_parts": host,
        "tokens_per_step": tokens,
        "flops_per_step": {
            stage: {f.name: getattr(x, f.name) for f in fields(x)} | {"total": x.total} for stage, x in flops.items()
        },
        "seconds_per_step": seconds | {"total": sum(seconds.values())},
        "seconds": run.config.run.steps * sum(seconds.values()),
        "disk": run.disk(),
        "fits": not wrong,
        "problems": wrong,
        "advice": _advised(run) if wrong else [],
    }


def _parts(memory: Memory) -> dict[str, float]:
    return {f.name: getattr(memory, f.name) for f in fields(memory)} | {"total": memory.total}


def _advised(run: Run) -> list[dict[str, Any]]:
    """What to do, the best first: settings, or larger GPUs with settings; nothing where none is enough."""
    here = advice(run)
    ways = [(run.gpu, here)] if here else list(larger(run))
    return [
        {
            "gpu": gpu.name,
            "set": found.lines,
            "changes_results": found.deciding,
            "fullest": spare(found.run)[0],
            "spare": spare(found.run)[1],
            "seconds_per_step": sum(found.run.seconds().values()),
            "gpus_used": found.run.world,
            "host_memory_per_node": sum(found.run.host(NODE).values()),
        }
        for gpu, found in ways
    ]
