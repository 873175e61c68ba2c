"""Weights and the trainer's state -> files: one after the other, as both need the host's memory.

What the state is, and its files, is the update engine's (``save`` in pipelines/update/torch_engine.py and
deepspeed_engine.py); which checkpoints are kept, and exported, pipelines/checkpoints.py decides.
"""

from __future__ import annotations

from pathlib import Path

import torch

from pipelines.disk.records import MODEL, TRAINER
from pipelines.errors import UserError
from pipelines.model.finite import first_not_finite
from pipelines.model.policy import Policy
from pipelines.ranks.ranks import ranks
from pipelines.update.engines import Trainer


def save(step: int, policy: Policy, trainer: Trainer, out: Path) -> None:
    """Write the weights, which then leave the host's memory, and the trainer's state; every rank calls it.

    Raises:
        UserError: the weights are not finite.
    """
    _save_model(step, policy, out / MODEL)
    if ranks().main:
        (out / TRAINER).mkdir()
    ranks().barrier()  # which waits for a slow disk; DeepSpeed's collectives would not for long
    trainer.save(out / TRAINER)


def _save_model(step: int, policy: Policy, folder: Path) -> None:
    weights = _on_host(policy)
    ranks().on_main(lambda: _check_saved(step, weights))
    if ranks().main:
        policy.model.save_pretrained(folder, state_dict=weights)
        policy.processor.save_pretrained(folder)


def _on_host(policy: Policy) -> dict[str, torch.Tensor]:
    """Rank 0's copy of all weights; tied ones have one between them, as on a CPU, and are saved once."""
    named = policy.model.named_parameters(remove_duplicate=False)
    firsts: dict[int, str] = {}
    first = {name: firsts.setdefault(id(parameter), name) for name, parameter in named}
    weights: dict[str, torch.Tensor] = {}
    for name, value in policy.placement.weights(policy.model):
        if ranks().main:
            weights[name] = weights.get(first.get(name, name), value.detach()).cpu()
    return weights


def _check_saved(step: int, weights: dict[str, torch.Tensor]) -> None:
    """Refuse to save what is no number: good checkpoints would be deleted for it."""
    if found := first_not_finite(weights.items()):
        raise UserError(
            f"checkpoint {step}",
            f"the weights are not finite ({found[0]}: {found[1]}).",
            "Lower update.learning_rate or update.weight_decay; earlier checkpoints are kept.",
        )
