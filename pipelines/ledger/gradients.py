"""The gradient that each objective would have taken on a step, and its variance over the step's groups.

The loss is the trainer's own (TorchTrainer._loss), group by group and without an optimizer step: its
denominators are those of the update batch, so the groups' gradients add up to the batch's. A group's passes are
made once, and every objective goes back through them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from pipelines import vppo
from pipelines.config.schema import Config
from pipelines.disk.records import SampleTable
from pipelines.objectives import table
from pipelines.objectives.batch import Batch, Reading, Terms
from pipelines.update.batches import Groups, cut_terms, cut_tokens, make_tokens
from pipelines.update.torch_engine import TorchTrainer


@dataclass(frozen=True)
class Part:
    """What one objective makes of an update batch."""

    config: Config
    batch: Batch
    terms: Terms


@dataclass
class Sums:
    """Of one objective, over the groups p of a step: sum g_p and sum |g_p|^2, where g_p is P times the group's
    part of the gradient of its update batch of P groups. Their mean is the step's gradient.
    """

    gradient: Tensor | None = None
    square: float = 0.0
    groups: int = 0

    def add(self, gradient: Tensor) -> None:
        """One more group's g_p, flat over all trained weights."""
        self.gradient = gradient if self.gradient is None else self.gradient.add_(gradient)
        self.square += norm(gradient) ** 2
        self.groups += 1

    @property
    def norm(self) -> float:
        """Of the step's gradient, before any clipping."""
        return 0.0 if self.gradient is None else norm(self.gradient) / self.groups

    @property
    def variance(self) -> float:
        """The mean squared distance of the g_p from their mean."""
        return max(self.square / self.groups - self.norm**2, 0.0)

    def cosine(self, other: Sums) -> float | None:
        """With another objective's gradient; None where one is 0."""
        assert self.gradient is not None
        assert other.gradient is not None
        size = norm(self.gradient) * norm(other.gradient)
        return float(torch.sum(self.gradient * other.gradient, dtype=torch.float64)) / size if size else None


def norm(vector: Tensor) -> float:
    return float(torch.linalg.vector_norm(vector, dtype=torch.float64))


@dataclass
class _Held:
    """The passes over one group, by whether the perturbed view is among them."""

    readings: dict[frozenset[str], Reading] = field(default_factory=dict)


class LedgerTrainer(TorchTrainer):
    """The trainer, that can take gradients and leave the weights as they are."""

    _held: _Held | None = None

    def sums(
        self, groups: Groups, samples: SampleTable, parts: Mapping[str, Part], found: dict[str, Sums]
    ) -> Iterator[None]:
        """Add the gradients of an update batch to what was found, for each objective; group by group.

        Args:
            parts: by objective.
        """
        whole = {name: make_tokens(part.config, groups, self.policy.device) for name, part in parts.items()}
        own = self.config, self.settings, self.passes
        self.policy.model.train(self.settings.gradient_checkpointing)  # as the trainer does
        try:
            for place in range(len(groups)):
                yield
                self.policy.encoder.expect([samples.by_id(r.sample_id) for r, _ in groups[place : place + 2]])
                self._held = _Held()
                for number, (name, part) in enumerate(parts.items(), start=1):
                    self.config, self.settings = part.config, part.config.update
                    objective = table.find_objective(self.settings.objective)
                    self.passes = table.passes(objective, self.settings)
                    tokens, terms, batch = whole[name], part.terms, part.batch
                    denominator = vppo.loss_denominator(tokens.loss_mask_BT, terms.average, batch.max_tokens)
                    rows_B = batch.group_B == place
                    cut = cut_tokens(tokens, rows_B)
                    loss, _ = self._loss(
                        [groups[place]],
                        samples,
                        rows_B,
                        cut,
                        cut_terms(terms, rows_B, cut.mask_BT.shape[1]),
                        denominator.clamp(min=1),
                        tokens.loss_mask_BT.sum().clamp(min=1),
                    )
                    gradient = self.gradient(loss, keep=number < len(parts))
                    found.setdefault(name, Sums()).add(gradient * len(groups))
        finally:
            self._held = None
            self.config, self.settings, self.passes = own
            self.policy.model.eval()

    def gradient(self, value: Tensor, *, keep: bool) -> Tensor:
        """Of a number, flat over all trained weights, float32.

        Args:
            keep: whether another number goes back through the same passes.
        """
        weights = [p for _, p in self.named]
        found = torch.autograd.grad(value, weights, retain_graph=keep, allow_unused=True)
        flat = [torch.zeros_like(w) if g is None else g for g, w in zip(found, weights, strict=True)]
        return torch.cat([g.float().flatten() for g in flat])

    def token_gradients(self, group: tuple[Any, Any], samples: SampleTable, row: int, tokens: Sequence[int]) -> Tensor:
        """The gradients of log pi of some tokens of one response of a group -> [tokens, weights]."""
        rollout, scored = group
        alone = replace(rollout, response_ids=[rollout.response_ids[row]])
        logp_T, _ = self._forward(self.policy, [(alone, scored)], samples)
        last = len(tokens) - 1
        return torch.stack([self.gradient(logp_T[t], keep=i < last) for i, t in enumerate(tokens)])

    def _read(self, groups: Groups, samples: SampleTable, rows_B: Tensor, mask_BT: Tensor) -> Reading:
        held = self._held
        if held is None:
            return super()._read(groups, samples, rows_B, mask_BT)
        if self.passes not in held.readings:
            held.readings[self.passes] = super()._read(groups, samples, rows_B, mask_BT)
        return held.readings[self.passes]
