"""A rank that dies must not leave the others waiting for it: every rank tells that it lives.

torchrun notices a dead process itself; srun does not, and neither do the ranks of another node. So
each rank counts up its own number in the store that the ranks met in; rank 0 watches all of them, the
others watch rank 0. Who finds one silent, or told that it failed, says so once and ends its process.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import socket
import sys
import threading
import time
from typing import Any

BEAT_S = 2.0
SILENT_S = 40.0
"""Longer than any work here holds the interpreter; a run comes down within a minute."""

DISTRIBUTED = ("DistBackendError", "DistNetworkError", "DistStoreError")
"""What torch raises where NCCL or the ranks' store lose one; of gloo it is a RuntimeError."""

_heart: Heartbeat | None = None


class Heartbeat(threading.Thread):
    """Beats for this rank, and listens to others.

    Args:
        store: a connection of its own to the ranks' key-value store.
    """

    def __init__(self, store: Any, rank: int, world: int) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self.store, self.rank = store, rank
        self.watched = [r for r in range(world) if r != rank] if rank == 0 else [0]
        self._ended = threading.Event()
        self._heard = {r: (0, time.monotonic()) for r in self.watched}
        self.store.set(f"where/{rank}", f"process {os.getpid()} on {socket.gethostname()}")

    def run(self) -> None:
        while not self._ended.wait(BEAT_S):
            try:
                self.store.add(f"beat/{self.rank}", 1)
                found = next(filter(None, map(self._trouble, self.watched)), "")
            except RuntimeError:  # the store is gone, and rank 0 or the launcher with it
                found = "" if self._ended.is_set() else "rank 0 is gone"
            if found and not self._ended.wait(BEAT_S):  # a launcher may be quicker
                self._down(found)

    def _trouble(self, rank: int) -> str:
        """What is wrong with a rank; "" if nothing is."""
        if self.store.check([f"failed/{rank}"]):
            reason = self.store.get(f"failed/{rank}").decode()
            return f"rank {rank} failed: {reason}" if reason else ""
        beats, (before, since) = self.store.add(f"beat/{rank}", 0), self._heard[rank]
        now = time.monotonic()
        if beats != before:
            self._heard[rank] = (beats, now)
        elif now - since > SILENT_S:
            where = self.store.get(f"where/{rank}").decode() if beats else "never seen"
            return f"rank {rank} ({where}) has been silent for {SILENT_S:.0f} s"
        return ""

    def _down(self, found: str) -> None:
        if self.rank == 0 or "rank 0" in found:
            sys.stderr.write(
                f"error  {found}: all ranks stop.\n"
                "       What was committed is kept; the same command goes on from there.\n"
            )
            sys.stderr.flush()
        os._exit(1)

    def end(self, reason: str) -> None:
        """Stop, the first time; a ``reason`` other than "" tells the others that this rank failed."""
        if self._ended.is_set():
            return
        self._ended.set()
        with contextlib.suppress(RuntimeError):  # nobody is left to be told
            self.store.set(f"failed/{self.rank}", reason)
        # A thread that is inside the store when the interpreter ends would abort the process.
        if threading.current_thread() is not self:
            self.join(SILENT_S)

    def first_told(self, wait_s: float) -> bool:
        """Whether rank 0 fails as well, within this time: then it is the one that speaks."""
        until = time.monotonic() + wait_s
        while time.monotonic() < until:
            try:
                if self.store.check(["failed/0"]):
                    return True
            except RuntimeError:
                return False
            time.sleep(0.1)
        return False


def start(store: Any, rank: int, world: int) -> None:
    """Begin to beat."""
    global _heart
    _heart = Heartbeat(store, rank, world)
    _heart.start()
    atexit.register(end)


def end(reason: str = "") -> None:
    """Stop beating; with a reason, tell the others that this rank failed."""
    if _heart:
        _heart.end(reason)


def await_end(error: Exception) -> None:
    """Where the error is of a connection to another rank, let that rank's death be told instead.

    The launcher or this rank's heart says who died, and ends this process while it waits here; it
    returns where the error is another, or where neither knows of a death.
    """
    if _heart and ("gloo" in str(error) or type(error).__name__ in DISTRIBUTED):
        time.sleep(SILENT_S + 4 * BEAT_S)


def speaks() -> bool:
    """Whether this rank should tell its error: rank 0 always, another only if rank 0 has none."""
    return _heart is None or _heart.rank == 0 or not _heart.first_told(3.0)
