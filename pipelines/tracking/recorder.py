"""Keeps run.json up to date: what a run is doing, for whoever looks from elsewhere.

Each stage is recorded as it begins; in between, progress is, at most every other second; never waiting
for the disk. So the time in it is that of the latest sign of life from the work itself: a process that
hangs gives none.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from pipelines import runs
from pipelines.chain import Chain
from pipelines.errors import Interrupted, LockLost, UserError
from pipelines.ranks.ranks import ranks
from pipelines.tracking import memory
from pipelines.watch import Watch

EVERY_S = 2.0
"""Progress is written no more often than this."""

LONGEST = 2000
"""Characters kept of what an error said."""


class Recorder:
    """A watch that records what it is told and passes it on."""

    def __init__(self, chain: Chain, watch: Watch) -> None:
        self.chain, self.watch = chain, watch
        self._at, self._written = ("", 0), 0.0

    def stage(self, name: str, index: int) -> None:
        self._at = (name, index)
        self.record("running")
        self.watch.stage(name, index)

    def progress(self, label: str, done: int, total: int | None = None) -> None:
        if time.monotonic() - self._written >= EVERY_S:
            self.record("running", doing=label, done=done, total=total or 0)
        self.watch.progress(label, done, total)

    def note(self, text: str) -> None:
        self.watch.note(text)

    def finished(self, name: str, index: int, metrics: dict[str, Any]) -> None:
        self.watch.finished(name, index, metrics)

    def record(self, state: str, **doing: Any) -> None:
        """Write run.json. If that fails, on a full disk say, the work itself tells of it, or goes on.

        Raises:
            LockLost: another process has taken the run over.
        """
        name, index = self._at
        more = {"memory": memory.resident(), "gpu_memory": memory.gpu_peak(), **doing}
        with contextlib.suppress(OSError, UserError):
            runs.record_state(self.chain.run, state, name, index, self.chain.config.run.steps, **more)
        self._written = time.monotonic()


@contextlib.contextmanager
def recording(chain: Chain, watch: Watch) -> Iterator[Watch]:
    """The watch to work under: on rank 0 one that records, and how the work ended as well."""
    if not ranks().main:
        yield watch
        return
    recorder = Recorder(chain, watch)
    try:
        yield recorder
    except BaseException as error:
        if not isinstance(error, LockLost):
            stopped = isinstance(error, (KeyboardInterrupt, Interrupted))
            said = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            recorder.record("stopped" if stopped else "failed", why="" if stopped else said[:LONGEST])
        raise
    done = all(step.path.is_dir() for step in chain.all())
    recorder.record("finished" if done else "idle")
