"""How a stage tells the outside how far it is. Printing is the command line's business."""

from __future__ import annotations

from typing import Any, Protocol


class Watch(Protocol):
    """Receives progress; vppo_cli/screen/display.py has the one for people."""

    def progress(self, label: str, done: int, total: int | None = None) -> None:
        """``done`` of ``total`` units of the current stage's work are finished."""

    def note(self, text: str) -> None:
        """Something worth one line."""

    def stage(self, name: str, index: int) -> None:
        """A step begins: the stage's name and its training step (0 outside training)."""

    def finished(self, name: str, index: int, metrics: dict[str, Any]) -> None:
        """A step was committed, with its metrics."""


class Silent:
    """Shows nothing; for tests and library use."""

    def progress(self, label: str, done: int, total: int | None = None) -> None: ...

    def note(self, text: str) -> None: ...

    def stage(self, name: str, index: int) -> None: ...

    def finished(self, name: str, index: int, metrics: dict[str, Any]) -> None: ...
