"""What every tracker is made from, and what it does. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


class Tracker(Protocol):
    """Receives a run's metrics."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics of a training step, or of an evaluation of the policy after ``step`` updates."""

    def close(self) -> None:
        """Nothing more comes from this process."""


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is made from.

    ``id`` is the same whenever the run is resumed, wherever its folder lies; ``config`` its settings by
    dotted name. ``replaced_from``: the run was told to go on otherwise from this step, and what the
    tracker has of this and later steps is no longer of the run; None: all it has holds.
    """

    folder: Path
    id: str
    config: Mapping[str, Any]
    replaced_from: int | None = None
