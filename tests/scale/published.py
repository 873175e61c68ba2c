"""Run on every rank by test_deepspeed.py: updates with ``mode: published``, beside ``torch``.

    torchrun --nproc-per-node N published.py FOLDER STAGE...

FOLDER is as for updates.py. One JSON line a case, from rank 0.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from updates import SETTINGS, Case, Weights, gap

from pipelines.config import settings
from pipelines.model.load import load_policy
from pipelines.ranks import heartbeat
from pipelines.ranks.ranks import ranks
from pipelines.update.deepspeed_engine import DeepSpeedTrainer
from pipelines.update.torch_engine import TorchTrainer

PUBLISHED = (
    "mode=published",
    "published.mini_batch_responses=12",
    "published.micro_batch_responses=6",
    "update.weight_decay=50",
    "update.entropy_penalty=0.06",
)
"""Of 20 responses: mini-batches of 12 and 8, micro-batches of 6, 6, 6 and 2."""


def skipped(case: Case, *overrides: str) -> tuple[dict[str, Any], float, Weights]:
    """A first update whose gradient is NaN on one rank alone: its metrics, how far it moved a weight, and
    the weights after a second one that is whole."""
    config = settings.load(None, [*SETTINGS, "update.engine=deepspeed", *overrides])
    policy = load_policy(config)
    trainer = DeepSpeedTrainer(policy, config)
    on = ranks().main
    hook = trainer.named[-1][1].register_hook(lambda g: g * (float("nan") if on else 1.0))
    before = _weights(policy)
    metrics = trainer.update(case.rollouts, case.scores, case.samples)
    moved = gap(before, _weights(policy))
    hook.remove()
    trainer.update(case.rollouts, case.scores, case.samples)
    return metrics, moved, _weights(policy)


def _weights(policy: Any) -> Weights:
    found = policy.placement.weights(policy.model)
    return {name: value.detach().float().cpu().clone() for name, value in found}


def main(data: Path, stages: list[str]) -> None:
    case, me = Case(data), ranks()
    before = load_policy(settings.load(None, SETTINGS)).model.state_dict()
    for half in (False, True):
        more = (*PUBLISHED, *(("model.dtype=bfloat16",) if half else ()))
        expected, told = case.run(TorchTrainer, *more)
        first, _ = case.run(TorchTrainer, *more, updates=1)
        others = (*more, "published.micro_batch_responses=20", "published.mini_batch_responses=20")
        other, _ = case.run(TorchTrainer, *others)
        for stage in stages:
            zero = f"update.zero_stage={stage}"
            found, metrics = case.run(DeepSpeedTrainer, *more, zero)
            left_out, moved, again = skipped(case, *more, zero)
            if me.main:
                print(
                    json.dumps(
                        {
                            "world": me.world,
                            "stage": int(stage),
                            "half": half,
                            # AdamW moves a weight by 1e-4 a step at most, whichever sign rounding gives it.
                            "close": 6.1e-4 if half else 1e-5,
                            "moved": gap(expected, dict(before)),
                            "gap": gap(found, expected),
                            "metrics": max(abs(metrics[name] - told[name]) for name in told),
                            "skipped": left_out,
                            "skip_moved": moved,
                            "after_skip": gap(again, first),
                            "sizes_matter": gap(expected, other),
                        }
                    ),
                    flush=True,
                )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2:])
    heartbeat.end()
