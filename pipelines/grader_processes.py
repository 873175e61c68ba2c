"""The parent's side of the grading processes: hand out batches, watch, kill, restart.

A process is a fresh interpreter running ``grader_worker.py`` (no fork, no multiprocessing), so the
caller may be a plain script, may have threads, and may hold a GPU.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from pipelines.errors import UserError

# One reply byte each; the same names as in grader_worker.py, which stands alone.
_READY, _MISSING, _TRUE, _FALSE, _UNDECIDED, _OPEN = b"R", b"X", b"T", b"F", b"U", b"O"
_VERDICTS: dict[bytes, bool | None] = {_TRUE: True, _FALSE: False, _UNDECIDED: None, _OPEN: None}

_SCRIPT = Path(__file__).with_name("grader_worker.py")
_START_S = 120.0  # importing sympy takes a second; a cold network disk takes far longer
_GRACE_S = 2.0  # the process ends itself at the deadline; this catches one that cannot
_BATCH = 64
_ATTEMPTS = 2


class GraderProcess:
    """One grading process, started when first needed and again after it was killed."""

    def __init__(self, deadline_s: float, memory_mb: int) -> None:
        self._deadline_s, self._memory_mb = deadline_s, memory_mb
        self._process: subprocess.Popen[bytes] | None = None
        self.batch: deque[int] = deque()
        """Indices sent and not yet answered; the first one is being graded."""
        self.ready = False
        self.due = 0.0

    @property
    def pid(self) -> int | None:
        """The process id, or None while none runs."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def fileno(self) -> int:
        """The file descriptor on which replies arrive, for a selector."""
        assert self._process is not None
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def send(self, grader: str, indices: list[int], pairs: Sequence[tuple[str, str]]) -> None:
        """Send the pairs at these indices, starting the process first if none runs."""
        items = [pairs[index] for index in indices]
        line = json.dumps({"grader": grader, "items": items}).encode("ascii") + b"\n"
        if self.pid is None or not self._write(line):  # it may have died while idle
            self.kill()
            self._start()
            self._write(line)  # if it died at once, the end of its replies tells
        self.batch, self.ready, self.due = deque(indices), False, time.monotonic() + _START_S

    def replies(self) -> bytes:
        """The bytes that have arrived; empty once the process is gone."""
        return os.read(self.fileno(), 1 << 16)

    def last_words(self, replies: bytes) -> str:
        """The reason that a process gives which ends as it cannot load its grader."""
        while more := self.replies():
            replies += more
        return replies[1:].decode("utf-8", "replace")

    def extend_due(self) -> None:
        """Start the clock of the next item."""
        self.due = time.monotonic() + self._deadline_s + _GRACE_S

    def kill(self) -> int:
        """End the process now, forget its batch, and return its exit status (0 if none ran)."""
        self.batch = deque()
        process, self._process = self._process, None
        if process is None:
            return 0
        process.kill()
        status = process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()  # type: ignore[union-attr]
        return status

    def _start(self) -> None:
        limits = [str(self._deadline_s), str(self._memory_mb), str(os.getpid())]
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(_SCRIPT), *limits],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the parent, which then ends its workers
            env={**os.environ, "PYTHONHASHSEED": "0"},  # sympy's term order, hence its verdicts
        )

    def _write(self, line: bytes) -> bool:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line)
            self._process.stdin.flush()
        except BrokenPipeError:
            return False
        return True


class Dispatch:
    """One call's pairs, graded by the given processes; see :func:`grade_pairs`."""

    def __init__(
        self, processes: list[GraderProcess], grader: str, pairs: Sequence[tuple[str, str]]
    ) -> None:
        self._processes, self._grader, self._pairs = processes, grader, pairs
        self._waiting = deque(range(len(pairs)))
        self._deaths = [0] * len(pairs)
        self._failed_starts = 0
        self.verdicts: list[bool | None] = [None] * len(pairs)

    def run(self) -> None:
        """Grade everything; whatever interrupts it leaves no process at work."""
        try:
            while self._waiting or any(process.batch for process in self._processes):
                self._hand_out()
                self._collect()
        finally:
            for process in self._processes:
                if process.batch:
                    process.kill()

    def _hand_out(self) -> None:
        # Small batches near the end, so that the processes finish together.
        size = max(1, min(_BATCH, len(self._waiting) // (2 * len(self._processes))))
        for process in self._processes:
            if self._waiting and not process.batch:
                count = min(size, len(self._waiting))
                indices = [self._waiting.popleft() for _ in range(count)]
                process.send(self._grader, indices, self._pairs)

    def _collect(self) -> None:
        busy = [process for process in self._processes if process.batch]
        with selectors.DefaultSelector() as selector:
            for process in busy:
                selector.register(process, selectors.EVENT_READ)
            wait_s = min(process.due for process in busy) - time.monotonic()
            heard = {key.fileobj for key, _ in selector.select(max(0.0, wait_s))}
        for process in busy:
            if process in heard:
                self._read(process)
            elif time.monotonic() > process.due:
                self._lost(process, overdue=True)

    def _read(self, process: GraderProcess) -> None:
        replies = process.replies()
        if not replies:
            self._lost(process, overdue=False)
            return
        for code in (replies[i : i + 1] for i in range(len(replies))):
            if code == _MISSING:
                raise UserError(
                    f"grader {self._grader}", f"cannot be loaded ({process.last_words(replies)}).",
                    "Name a function that Python finds from the current folder or the environment."
                    if ":" in self._grader else
                    "Run: pip install mathruler 'math-verify[antlr4_9_3]' sympy pylatexenc",
                )  # fmt: skip
            if code == _READY:
                process.ready, self._failed_starts = True, 0
            else:
                self.verdicts[process.batch.popleft()] = _VERDICTS[code]
            process.extend_due()
        if code == _UNDECIDED:  # its last word: it ends itself
            self._give_back(process)

    def _lost(self, process: GraderProcess, *, overdue: bool) -> None:
        """The process died or has to be killed: its current item is blamed only with cause.

        At the deadline the item is undecided. Any other death (the system's memory killer, a crash)
        may be no fault of the item, so it gets a second attempt in a new process.
        """
        index = process.batch[0]
        if process.ready and overdue:
            process.batch.popleft()
            self._give_back(process)
        elif process.ready:
            self._deaths[index] += 1
            rest = list(process.batch)
            timed_out = process.kill() == -signal.SIGALRM
            blamed = timed_out or self._deaths[index] >= _ATTEMPTS
            self._waiting.extendleft(reversed(rest[1:] if blamed else rest))
        else:
            self._failed_starts += 1
            self._give_back(process)
            if self._failed_starts >= _ATTEMPTS * len(self._processes):
                raise UserError(
                    f"grader {self._grader}", "its worker process ends while it loads.",
                    f"Run it by hand to see why: {sys.executable} -c 'import sympy, mathruler, "
                    "math_verify'; if that works, raise the memory limit (memory_mb).",
                )  # fmt: skip

    def _give_back(self, process: GraderProcess) -> None:
        """Kill the process; what it had not begun waits at the front of the queue."""
        self._waiting.extendleft(reversed(process.batch))
        process.kill()


def grade_pairs(
    processes: list[GraderProcess], grader: str, pairs: Sequence[tuple[str, str]]
) -> list[bool | None]:
    """Verdicts on ``pairs`` of (answer, gold), in order; None: undecided within the limits.

    Raises:
        UserError: the grader cannot be loaded.
    """
    dispatch = Dispatch(processes, grader, pairs)
    dispatch.run()
    return dispatch.verdicts
