"""Run on every rank by test_deepspeed.py: three updates under each ZeRO stage, beside ``torch``.

    torchrun --nproc-per-node N updates.py FOLDER STAGE...

FOLDER holds one step's questions, rollouts and scores. Prints one JSON line a case, from rank 0.
"""

from __future__ import annotations

import json
import sys
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import deepspeed
import torch

from pipelines.config import settings
from pipelines.disk.records import ROLLOUTS, SCORES, Rollout, SampleTable, Scored, read_rows
from pipelines.model.load import load_policy
from pipelines.model.policy import Policy
from pipelines.ranks import heartbeat
from pipelines.ranks.ranks import ranks
from pipelines.update import deepspeed_engine as deepspeed_trainer
from pipelines.update.deepspeed_engine import DeepSpeedTrainer
from pipelines.update.torch_engine import TorchTrainer

SETTINGS = (
    "rollout.samples_per_prompt=4",
    "update.batch_prompts=5",
    "update.micro_batch_prompts=2",
    "update.learning_rate=1e-4",
    "run.threads=1",
)
Weights = dict[str, torch.Tensor]

deepspeed_trainer.WHOLE = 1000
"""The tiny model's matrices are divided as a large one's are; its biases and norms are not."""


class Case:
    """Updates from a model folder, or the tiny model, with some settings."""

    def __init__(self, data: Path) -> None:
        self.data, self.samples = data, SampleTable(data / "train.parquet")
        self.rollouts = read_rows(data / ROLLOUTS, Rollout)
        self.scores = read_rows(data / SCORES, Scored)

    def run(
        self,
        kind: type[TorchTrainer],
        *overrides: str,
        updates: int = 3,
        save: Path | None = None,
        load: Path | None = None,
    ) -> tuple[Weights, dict[str, Any]]:
        engine = "deepspeed" if kind is DeepSpeedTrainer else "torch"
        config = settings.load(None, [*SETTINGS, f"update.engine={engine}", *overrides])
        # Adapters stand beside the weights that the run started from.
        weights_at = load / "model" if load and not config.update.lora_rank else None
        policy = load_policy(config, weights_at)
        trainer = kind(policy, config)
        if load:
            trainer.load(load)
        metrics: dict[str, Any] = {}
        for _ in range(updates):
            metrics = trainer.update(self.rollouts, self.scores, self.samples)
        weights = {name: value.detach().float().cpu().clone() for name, value in policy.placement.weights(policy.model)}
        check_in_use(policy, weights, getattr(torch, config.model.dtype))
        if save:
            if ranks().main:
                policy.model.save_pretrained(save / "model", state_dict=weights)
                policy.processor.save_pretrained(save / "model")
            trainer.save(save)
            ranks().barrier()
        return weights, metrics


def check_in_use(policy: Policy, weights: Weights, dtype: torch.dtype) -> None:
    """What a rollout engine is given is, in its precision, what the master weights would be."""
    found = dict(policy.placement.in_use(policy.model))
    assert list(found) == list(weights)
    for name, value in found.items():
        assert torch.equal(value.detach().cpu().to(dtype), weights[name].to(dtype)), name


def most_at_once(work: Callable[[], object]) -> int:
    """The most gathered moments that were there while one more was gathered."""
    known: list[weakref.ref[torch.Tensor]] = []
    most, gather = 0, deepspeed.utils.safe_get_full_optimizer_state

    def counted(*asked: Any) -> torch.Tensor:
        nonlocal most
        most = max(most, sum(there() is not None for there in known))
        found: torch.Tensor = gather(*asked)
        known.append(weakref.ref(found))
        return found

    deepspeed.utils.safe_get_full_optimizer_state = counted
    try:
        work()
    finally:
        deepspeed.utils.safe_get_full_optimizer_state = gather
    assert known
    return most


def gap(one: Weights, other: Weights) -> float:
    """The largest difference of any weight."""
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


def mean_gap(one: Weights, other: Weights) -> float:
    """The mean difference of all weights: some gradients are rounding, whose sign AdamW's steps take."""
    count = sum(value.numel() for value in one.values())
    return sum((one[name] - other[name]).abs().sum().item() for name in one) / count


def main(data: Path, stages: list[str]) -> None:
    case, me = Case(data), ranks()
    before = load_policy(settings.load(None, SETTINGS)).model.state_dict()
    whole, expected = case.run(TorchTrainer)
    decay = "update.weight_decay=50"
    smaller, _ = case.run(TorchTrainer, decay, updates=1)
    for stage in stages:
        zero, folder = f"update.zero_stage={stage}", data / f"saved-{me.world}-{stage}"
        weights, metrics = case.run(DeepSpeedTrainer, zero)
        if me.main:
            folder.mkdir()
        me.barrier()
        save = partial(case.run, DeepSpeedTrainer, zero, updates=2, save=folder)
        at_once = most_at_once(save)
        resumed, _ = case.run(DeepSpeedTrainer, zero, updates=1, load=folder)
        on_torch, _ = case.run(TorchTrainer, updates=1, load=folder)
        decayed, _ = case.run(DeepSpeedTrainer, zero, decay, updates=1)
        found = {
            "world": me.world,
            "stage": int(stage),
            "moved": gap(whole, dict(before)),
            "gap": gap(weights, whole),
            "resumed": gap(resumed, whole),
            "on_torch": gap(on_torch, whole),
            "metrics": max(abs(metrics[name] - expected[name]) for name in expected),
            "decayed": gap(decayed, smaller),
            "at_once": at_once,
        }
        if me.main:
            print(json.dumps(found), flush=True)
    frozen, _ = case.run(DeepSpeedTrainer, "update.zero_stage=2", "update.freeze_vision=true")
    half, metrics = case.run(
        DeepSpeedTrainer, "update.zero_stage=2", "model.dtype=bfloat16", "update.gradient_checkpointing=true"
    )
    once = [
        case.run(DeepSpeedTrainer, f"update.zero_stage={stage}", "model.dtype=bfloat16", updates=1)[0]
        for stage in (2, 3)
    ]
    small = ("update.lora_rank=4", "update.lora_alpha=8")
    adapted, _ = case.run(TorchTrainer, *small)
    adapters = []
    for stage in (2, 3):
        zero, folder = f"update.zero_stage={stage}", data / f"adapters-{me.world}-{stage}"
        if me.main:
            folder.mkdir()
        me.barrier()
        case.run(DeepSpeedTrainer, zero, *small, updates=2, save=folder)
        resumed, _ = case.run(DeepSpeedTrainer, zero, *small, updates=1, load=folder)
        adapters.append(gap(resumed, adapted))
    vision = [name for name in frozen if "visual" in name]
    if me.main:
        print(
            json.dumps(
                {
                    "vision_weights": len(vision),
                    "vision_moved": gap({n: frozen[n] for n in vision}, {n: before[n] for n in vision}),
                    "adapters_gap": max(adapters),
                    "adapters_moved": gap(adapted, dict(before)),
                    "bfloat16_stages_gap": mean_gap(*once),
                    "bfloat16_moved": mean_gap(once[0], dict(before)),
                    "language_moved": gap(frozen, dict(before)),
                    "bfloat16_gap": gap(half, whole),
                    "bfloat16_norm": metrics["grad_norm"] / expected["grad_norm"],
                }
            )
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2:])
    heartbeat.end()
