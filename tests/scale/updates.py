"""Run on every rank by test_deepspeed.py: three updates under each ZeRO stage, beside ``torch``.

    torchrun --nproc-per-node N updates.py FOLDER STAGE...

FOLDER holds one step's questions, rollouts and scores. Prints one JSON line a case, from rank 0.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from pipelines import heartbeat, settings
from pipelines.deepspeed_trainer import DeepSpeedTrainer
from pipelines.policy import Policy
from pipelines.ranks import ranks
from pipelines.records import Rollout, SampleTable, Scored, read_rows
from pipelines.rollout import ROLLOUTS
from pipelines.score import SCORES
from pipelines.trainer import TorchTrainer

SETTINGS = (
    "rollout.samples_per_prompt=4", "update.batch_prompts=5", "update.micro_batch_prompts=2",
    "update.learning_rate=1e-4", "run.threads=1",
)  # fmt: skip
Weights = dict[str, torch.Tensor]


class Case:
    """Updates from a model folder, or the tiny model, with some settings."""

    def __init__(self, data: Path) -> None:
        self.data, self.samples = data, SampleTable(data / "train.parquet")
        self.rollouts = read_rows(data / ROLLOUTS, Rollout)
        self.scores = read_rows(data / SCORES, Scored)

    def run(
        self, kind: type[TorchTrainer], *overrides: str, updates: int = 3, save: Path | None = None,
        load: Path | None = None,
    ) -> tuple[Weights, dict[str, Any]]:  # fmt: skip
        engine = "deepspeed" if kind is DeepSpeedTrainer else "torch"
        config = settings.load(None, [*SETTINGS, f"update.engine={engine}", *overrides])
        # Adapters stand beside the weights that the run started from.
        weights_at = load / "model" if load and not config.update.lora_rank else None
        policy = Policy.load(config, weights_at)
        trainer = kind(policy, config)
        if load:
            trainer.load(load)
        metrics: dict[str, Any] = {}
        for _ in range(updates):
            metrics = trainer.update(self.rollouts, self.scores, self.samples)
        weights = {
            name: value.detach().float().cpu().clone()
            for name, value in policy.placement.weights(policy.model)
        }
        if save:
            if ranks().main:
                policy.model.save_pretrained(save / "model", state_dict=weights)
                policy.processor.save_pretrained(save / "model")
            trainer.save(save)
            ranks().barrier()
        return weights, metrics


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
    before = Policy.load(settings.load(None, SETTINGS)).model.state_dict()
    whole, expected = case.run(TorchTrainer)
    for stage in stages:
        zero, folder = f"update.zero_stage={stage}", data / f"saved-{me.world}-{stage}"
        weights, metrics = case.run(DeepSpeedTrainer, zero)
        if me.main:
            folder.mkdir()
        me.barrier()
        case.run(DeepSpeedTrainer, zero, updates=2, save=folder)
        resumed, _ = case.run(DeepSpeedTrainer, zero, updates=1, load=folder)
        on_torch, _ = case.run(TorchTrainer, updates=1, load=folder)
        found = {
            "world": me.world, "stage": int(stage), "moved": gap(whole, dict(before)),
            "gap": gap(weights, whole), "resumed": gap(resumed, whole), "on_torch": gap(on_torch, whole),
            "metrics": max(abs(metrics[name] - expected[name]) for name in expected),
        }  # fmt: skip
        if me.main:
            print(json.dumps(found), flush=True)
    frozen, _ = case.run(DeepSpeedTrainer, "update.zero_stage=2", "update.freeze_vision=true")
    half, metrics = case.run(
        DeepSpeedTrainer,
        "update.zero_stage=2",
        "model.dtype=bfloat16",
        "update.gradient_checkpointing=true",
    )
    once = [
        case.run(DeepSpeedTrainer, f"update.zero_stage={stage}", "model.dtype=bfloat16", updates=1)[
            0
        ]
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
        print(json.dumps({
            "vision_weights": len(vision),
            "vision_moved": gap({n: frozen[n] for n in vision}, {n: before[n] for n in vision}),
            "adapters_gap": max(adapters), "adapters_moved": gap(adapted, dict(before)),
            "bfloat16_stages_gap": mean_gap(*once), "bfloat16_moved": mean_gap(once[0], dict(before)),
            "language_moved": gap(frozen, dict(before)),
            "bfloat16_gap": gap(half, whole), "bfloat16_norm": metrics["grad_norm"] / expected["grad_norm"],
        }))  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2:])
    heartbeat.end()
