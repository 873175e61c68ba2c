"""Update engines by name, and what they all do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from pipelines.disk.records import Rollout, SampleTable, Scored
from pipelines.update.torch_engine import TorchTrainer


class Trainer(Protocol):
    """Applies policy updates, and saves and restores what they depend on besides the weights."""

    def update(
        self, rollouts: Sequence[Rollout], scores: Sequence[Scored], samples: SampleTable
    ) -> dict[str, Any]:
        """Train the policy on one step's groups; returns the metrics.

        On a GPU it is called in strict deterministic mode (pipelines/model/determinism.py), whoever wrote
        it: updates are replayed, and have to give the same bits.
        """

    def save(self, folder: Path) -> None:
        """Write the optimizer state."""

    def load(self, folder: Path) -> None:
        """Read it back."""


def _deepspeed(*arguments: Any) -> Trainer:
    from pipelines.update.deepspeed_engine import DeepSpeedTrainer  # its package is optional

    return DeepSpeedTrainer(*arguments)


TRAINERS: dict[str, Callable[..., Trainer]] = {"torch": TorchTrainer, "deepspeed": _deepspeed}
"""An import path works as well."""
