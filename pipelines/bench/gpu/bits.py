"""Whether an update gives the same bits again, with strict determinism and without; whether it does after
its state was saved and loaded; and how a group's scores move with the groups beside it.

At 3b the model has two layers of each tower, in all their width: its state is small enough to be kept
several times.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipelines.bench.bfloat16 import scoring
from pipelines.bench.gpu.place import Figures, Findings, Place
from pipelines.bench.workload import Lengths, Workload
from pipelines.disk.records import Rollout, SampleTable, Scored
from pipelines.model import determinism
from pipelines.update.torch_engine import TorchTrainer

LENGTHS = {
    "tiny": Lengths(image=16, text=8, samples=4, response=12, prompts=4),
    "3b": Lengths(image=1280, text=24, samples=8, response=128, prompts=4),
}
LAYERS = 2


def findings(place: Place) -> Findings:
    """In float32, then in bfloat16."""
    for dtype in ("float32", "bfloat16"):
        yield f"update twice, strict, {dtype}", partial(_twice, place, dtype, TorchTrainer)
        yield f"update twice, free, {dtype}", partial(_twice_free, place, dtype)
        yield f"saved, loaded, updated, {dtype}", partial(_reloaded, place, dtype)
        yield f"scored alone and beside, {dtype}", partial(_scored, place, dtype)


class _Free(TorchTrainer):
    """Updates by whatever kernels are fastest."""

    def update(self, rollouts: Sequence[Rollout], scores: Sequence[Scored], samples: SampleTable) -> dict[str, Any]:
        with determinism.free(self.policy.device):
            return self._optimizer_step(list(zip(rollouts, scores, strict=True)), samples)


@lru_cache(maxsize=1)
def _workload(place: Place, dtype: str) -> Workload:
    """Two micro-batches; every finding leaves its weights as they were."""
    return Workload(
        LENGTHS[place.shape],
        place.shape,
        place.work,
        f"model.dtype={dtype}",
        f"run.device={place.device}",
        "update.micro_batch_prompts=2",
        layers=LAYERS,
    )


def _twice(place: Place, dtype: str, kind: type[TorchTrainer]) -> Figures:
    work = _workload(place, dtype)
    begin, found = _weights(work), []
    for _ in range(2):
        trainer = kind(work.policy, work.config)
        found.append(_updated(trainer, work))
        _set(work, begin)
    return _compared(*found)


def _twice_free(place: Place, dtype: str) -> Figures:
    place.need_cuda()
    return _twice(place, dtype, _Free)


def _reloaded(place: Place, dtype: str) -> Figures:
    """A second update, by the trainer of the first, and by another that has its state from a file."""
    work = _workload(place, dtype)
    begin = _weights(work)
    trainer, other = (TorchTrainer(work.policy, work.config) for _ in range(2))
    _updated(trainer, work)
    with tempfile.TemporaryDirectory(dir=place.work) as folder:
        trainer.save(Path(folder))
        other.load(Path(folder))
    after = _weights(work)
    wanted = _updated(trainer, work)
    _set(work, after)
    found = _updated(other, work)
    _set(work, begin)
    return _compared(wanted, found)


def _scored(place: Place, dtype: str) -> Figures:
    """Differences in nats; random responses, whose KL to the perturbed view is small."""
    work = _workload(place, dtype)
    _, found = scoring(work.config, work.rollouts, list(work.samples), work.policy)
    return found


# -- weights and optimizer --------------------------------------------------------------------------


def _weights(work: Workload) -> list[Tensor]:
    """Copies of the weights."""
    return [p.detach().clone() for p in work.policy.model.parameters()]


@torch.no_grad()
def _set(work: Workload, weights: Sequence[Tensor]) -> None:
    for parameter, value in zip(work.policy.model.parameters(), weights, strict=True):
        parameter.copy_(value)


def _updated(trainer: TorchTrainer, work: Workload) -> list[Tensor]:
    """Weights after an update, and AdamW's moments."""
    trainer.update(work.rollouts, work.passes(work.config).scores, work.samples)
    states = (trainer.optimizer.state[p] for _, p in trainer.named)
    moments = [state[kind].clone() for state in states for kind in ("exp_avg", "exp_avg_sq")]
    return [*_weights(work), *moments]


def _compared(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Figures:
    pairs = list(zip(ours, theirs, strict=True))
    differ = [(a - b).abs().max().item() for a, b in pairs if not torch.equal(a, b)]
    return {
        "the same bits": not differ,
        "tensors": len(pairs),
        "that differ": len(differ),
        "largest difference": max(differ, default=0.0),
    }
