"""Progress of work outside a run: a bar where a person watches, else a line now and then."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pipelines.watch import Silent
from vppo_cli.screen import display
from vppo_cli.screen.live import EVERY_S
from vppo_cli.screen.words import Pace


class CountWatch(Silent):
    """Says how much is done, and what is worth a line.

    Args:
        progress: the bar, or None for lines.
    """

    def __init__(self, progress: Progress | None) -> None:
        self._bar = progress
        self._task = progress.add_task("", total=None) if progress else None
        self._pace, self._said = Pace(), time.monotonic()

    def progress(self, label: str, done: int, total: int | None = None) -> None:
        left = self._pace.left(label, done, total)
        if self._bar and self._task is not None:
            self._bar.update(self._task, description=label, completed=done, total=total)
        elif time.monotonic() - self._said > EVERY_S:
            self._said = time.monotonic()
            display.line(label, (f"{done}/{total}  {left}" if total else str(done)).rstrip())

    def note(self, text: str) -> None:
        display.line("note", text)


@contextlib.contextmanager
def counting(*, as_json: bool) -> Iterator[Silent]:
    """What work outside a run tells how far it is."""
    if as_json:
        yield Silent()
    elif display.console.is_terminal:
        columns = (
            TextColumn(f"{{task.description:<{display.LABEL - 1}}}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=display.console, transient=True) as progress:
            yield CountWatch(progress)
    else:
        yield CountWatch(None)
