"""The parent's side of the grading processes: hand out batches, watch, kill, restart.

A process is a fresh interpreter running ``worker.py`` (no fork, no multiprocessing), so the
caller may be a plain script, may have threads, and may hold a GPU. It gets an empty environment.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from struct import Struct
from typing import Any

from pipelines.config.imports import check_same
from pipelines.errors import UserError

# The same as in worker.py, which is not imported here.
_READY, _MISSING, _DONE, _TRIED, _TRUE, _FALSE = b"R", b"X", b"D", b"P", b"T", b"F"
_REFUSED, _UNDECIDED, _OPEN = b"G", b"U", b"O"
_REPLY = Struct(">cI")
_VERDICTS: dict[bytes, bool | None] = {_TRUE: True, _FALSE: False, _REFUSED: False, _UNDECIDED: None, _OPEN: None}

_WORKER = "pipelines.grading.worker"
_OF_PYTHON = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONHOME")
"""What an interpreter may need to start; the worker forgets it again."""
_START_S = 120.0  # importing sympy takes a second; a cold network disk takes far longer
_TICK_S = 1.0
"""The parent looks at its processes at least so often. More time than that between two looks was
spent suspended, and is not counted."""
_BATCH = 64
_ATTEMPTS = 2


def patience_s(deadline_s: float) -> float:
    """Seconds of wall time after which an answer ends that uses no processor time, such as a sleep."""
    return 10 * deadline_s + 30.0


@dataclass(frozen=True)
class Walls:
    """What stands between foreign text and this machine. Both, except in tests of each alone."""

    guarded: bool = True
    """Text that is no formula is kept from sympy; False: the graders as their packages have them."""
    contained: bool = True
    """The process gives up network, files, processes and environment."""


@dataclass(frozen=True)
class Containment:
    """What :meth:`GraderProcess.try_walls` found."""

    means: dict[str, str]
    """Each means of containment, with the reason why it is not in force, or ""."""
    refused: dict[str, bool]
    """Whether each attempt was refused: network, writing, fork, exec, ..."""


class GraderProcess:
    """One grading process, started when first needed and again after it was killed."""

    def __init__(self, deadline_s: float, memory_mb: int, walls: Walls | None = None) -> None:
        self._deadline_s, self._memory_mb = deadline_s, memory_mb
        self._walls = walls or Walls()
        self._process: subprocess.Popen[bytes] | None = None
        self._grader = ""  # that it was started for
        self.new = False
        """Whether it was started and has not said yet that it is ready."""
        self._unread = b""
        self._next = 0  # number of the next item to be sent
        self.refused: set[tuple[str, str]] = set()
        """Pairs of which the guard kept some from sympy; whoever reads it empties it."""
        self._forget_batch()

    def _forget_batch(self) -> None:
        self.batch: deque[int] = deque()
        """Indices sent and not yet answered; the first one is being graded."""
        self.answered: list[int] = []
        """Indices of this batch that were answered."""
        self.ready = self.busy = False
        self.expected = 0
        """The number that the next reply has to carry."""
        self.patience = 0.0
        """Seconds of wall time left to the current item."""

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
        """Send the pairs at these indices, starting the process first if none runs.

        A grader by import path gets a process of its own: what it needs, it has to load before the
        process is contained.
        """
        items = [pairs[index] for index in indices]
        foreign = ":" in grader and grader != self._grader
        if self.pid is None or foreign or not self._order(grader, items):  # it may have died idle
            self.kill()
            self._start(grader)
            self._order(grader, items)  # if it died at once, the end of its replies tells
        self._forget_batch()
        self.batch, self.busy, self.expected = deque(indices), True, self._next
        self.patience = _START_S
        self._next += len(indices)

    def _order(self, grader: str, items: list[tuple[str, str]]) -> bool:
        batch = {"grader": grader, "first": self._next, "items": items}
        return self._write(json.dumps(batch).encode("ascii") + b"\n")

    def replies(self) -> list[tuple[bytes, int]] | None:
        """The (code, number) that have arrived; None once the process is gone.

        One that announces a text is the last: :meth:`text` reads what follows it.
        """
        more = os.read(self.fileno(), 1 << 16)
        if not more:
            return None
        self._unread += more
        found: list[tuple[bytes, int]] = []
        place = 0
        while place + _REPLY.size <= len(self._unread) and (not found or found[-1][0] != _MISSING):
            found.append(_REPLY.unpack_from(self._unread, place))
            place += _REPLY.size
        self._unread = self._unread[place:]
        return found

    def text(self, length: int) -> str:
        """The text of this many bytes that follows a reply which announced it."""
        while len(self._unread) < length and (more := os.read(self.fileno(), 1 << 16)):
            self._unread += more
        text, self._unread = self._unread[:length], self._unread[length:]
        return text.decode("utf-8", "replace")

    def next_item(self) -> None:
        """Start the clock of the next item."""
        self.patience = patience_s(self._deadline_s)

    def out_of_patience(self, passed_s: float) -> bool:
        """Whether the current item took too long, ``passed_s`` after the last look.

        The deadline is in processor time and the process keeps it itself. This is for what uses
        none; a process that was stopped (``kill -STOP``, a suspended job) is waited for.
        """
        self.patience -= passed_s
        if self.patience > 0:
            return False
        if self._stopped():
            self.next_item()
            return False
        return True

    def _stopped(self) -> bool:
        try:
            status = Path(f"/proc/{self.pid}/stat").read_text(errors="replace")
        except OSError:
            return False
        return status.rpartition(")")[2].split()[0] in ("T", "t")

    def try_walls(self, grader: str = "mathruler") -> Containment:
        """Start the process and let it try what it should have given up.

        Raises:
            UserError: it ends while it loads.
        """
        self.kill()
        self._start(grader)
        with socket.create_server(("127.0.0.1", 0)) as server, tempfile.TemporaryDirectory() as folder:
            attempt = [server.getsockname()[1], str(Path(folder, "written")), os.getpid()]
            self._write(json.dumps({"attempt": attempt}).encode("ascii") + b"\n")
            found = self._tried()
        self.kill()
        return found

    def _tried(self) -> Containment:
        assert self._process is not None
        assert self._process.stdout is not None
        head = self._process.stdout.read(_REPLY.size)
        if len(head) < _REPLY.size:
            raise UserError("grading process", "it ends while it loads.", "Run: vppo doctor")
        code, length = _REPLY.unpack(head)
        text = self._process.stdout.read(length).decode("utf-8", "replace")
        if code != _TRIED:
            raise UserError("grading process", f"cannot be loaded ({text}).", "Run: vppo doctor")
        return Containment(**json.loads(text))

    def kill(self) -> int:
        """End the process now, forget its batch, and return its exit status (0 if none ran)."""
        self._forget_batch()
        self._unread = b""
        process, self._process = self._process, None
        if process is None:
            return 0
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # and what it may have started
        status = process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()  # type: ignore[union-attr]
        return status

    def _start(self, grader: str) -> None:
        check_same(f"grader {grader}", grader)
        order: dict[str, Any] = {
            "grader": grader,
            "deadline_s": self._deadline_s,
            "memory_mb": self._memory_mb,
            "parent": os.getpid(),
            "guarded": self._walls.guarded,
            "contained": self._walls.contained,
        }
        self._grader, self._next, self.new = grader, 0, True
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-X", "utf8", "-m", _WORKER, json.dumps(order)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the parent, which then ends its workers
            env=_environment(),
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


def _environment() -> dict[str, str]:
    """What an interpreter needs to start as this one is: where modules are, and nothing else."""
    here = str(Path(__file__).absolute().parents[2])
    path = [os.path.abspath(folder) for folder in sys.path]
    return {
        **{name: os.environ[name] for name in _OF_PYTHON if name in os.environ},
        "PYTHONPATH": os.pathsep.join([*path, here]),
        "PYTHONHASHSEED": "0",  # sympy's term order, hence its verdicts
    }


class Dispatch:
    """One call's pairs, graded by the given processes; see :func:`grade_pairs`."""

    def __init__(self, processes: list[GraderProcess], grader: str, pairs: Sequence[tuple[str, str]]) -> None:
        self._processes, self._grader, self._pairs = processes, grader, pairs
        self._waiting = deque(range(len(pairs)))
        self._alone: set[int] = set()
        """Indices to be sent in a batch of their own, as one of theirs broke a process."""
        self._deaths = [0] * len(pairs)
        self._failed_starts = 0
        self._looked = time.monotonic()
        self.verdicts: list[bool | None] = [None] * len(pairs)

    def run(self) -> None:
        """Grade everything; whatever interrupts it leaves no process at work."""
        try:
            while self._waiting or any(process.busy for process in self._processes):
                self._hand_out()
                self._collect()
        finally:
            for process in self._processes:
                if process.busy:
                    process.kill()

    def _hand_out(self) -> None:
        # Small batches near the end, so that the processes finish together.
        size = max(1, min(_BATCH, len(self._waiting) // (2 * len(self._processes))))
        for process in self._processes:
            if self._waiting and not process.busy:
                process.send(self._grader, self._next_batch(size), self._pairs)

    def _next_batch(self, size: int) -> list[int]:
        indices = [self._waiting.popleft()]
        while self._waiting and len(indices) < size and not self._alone & {indices[0], self._waiting[0]}:
            indices.append(self._waiting.popleft())
        return indices

    def _collect(self) -> None:
        busy = [process for process in self._processes if process.busy]
        with selectors.DefaultSelector() as selector:
            for process in busy:
                selector.register(process, selectors.EVENT_READ)
            heard = {key.fileobj for key, _ in selector.select(_TICK_S)}
        now = time.monotonic()
        passed_s, self._looked = min(now - self._looked, 2 * _TICK_S), now
        for process in busy:
            if process in heard:
                self._read(process)
            elif not heard and process.pid is None:  # ended, though something holds its pipe open
                self._lost(process, overdue=False)
            elif process.out_of_patience(passed_s):
                self._lost(process, overdue=True)

    def _read(self, process: GraderProcess) -> None:
        replies = process.replies()
        if replies is None:
            self._lost(process, overdue=False)
            return
        for code, number in replies:
            if code == _MISSING and not process.ready:
                raise UserError(
                    f"grader {self._grader}",
                    f"cannot be loaded ({process.text(number)}).",
                    "Name a function that Python finds from the current folder or the environment."
                    if ":" in self._grader
                    else "Run: pip install mathruler 'math-verify[antlr4_9_3]' sympy pylatexenc",
                )
            if not self._accept(process, code, number):
                self._distrust(process)
                return
            process.next_item()
            if code == _UNDECIDED:  # its last word: it ends itself
                self._give_back(process)
                return

    def _accept(self, process: GraderProcess, code: bytes, number: int) -> bool:
        """Take a reply, if it is the one that has to come now."""
        if not process.busy or number != process.expected:
            return False
        if not process.ready:
            process.ready, self._failed_starts = code == _READY, 0
            if process.new:  # and has imported it
                check_same(f"grader {self._grader}", self._grader)
                process.new = False
            return process.ready
        if not process.batch:
            process.busy = False
            return code == _DONE
        if code not in _VERDICTS:
            return False
        index = process.batch.popleft()
        process.answered.append(index)
        process.expected += 1
        self.verdicts[index] = _VERDICTS[code]
        if code == _REFUSED:
            process.refused.add(self._pairs[index])
        return True

    def _lost(self, process: GraderProcess, *, overdue: bool) -> None:
        """The process died or has to be killed: its current item is blamed only with cause.

        At the deadline the item is undecided. Any other death (the system's memory killer, a crash)
        may be no fault of the item, so it gets a second attempt in a new process.
        """
        if not process.ready:
            self._failed_starts += 1
            self._give_back(process)
            if self._failed_starts >= _ATTEMPTS * len(self._processes):
                raise UserError(
                    f"grader {self._grader}",
                    "its worker process ends while it loads.",
                    f"Run it by hand to see why: {sys.executable} -c 'import sympy, mathruler, "
                    "math_verify'; if that works, raise the memory limit (memory_mb).",
                )
            return
        batch, answered = list(process.batch), process.answered
        if batch and (process.kill() == -signal.SIGPROF or overdue):
            self._waiting.extendleft(reversed(batch[1:]))
            return
        process.batch, process.answered = deque(batch), answered
        self._distrust(process, batch[:1])

    def _distrust(self, process: GraderProcess, suspects: Sequence[int] = ()) -> None:
        """The process broke off, or answered what nobody asked: none of its batch counts.

        Each item is graded again, alone, so that only the one that does it twice has no verdict.
        """
        indices = [*process.answered, *process.batch]
        for index in suspects or (indices if len(indices) == 1 else ()):
            self._deaths[index] += 1
        for index in indices:
            self.verdicts[index] = None
        self._alone.update(indices)
        again = [index for index in indices if self._deaths[index] < _ATTEMPTS]
        self._waiting.extendleft(reversed(again))
        process.kill()

    def _give_back(self, process: GraderProcess) -> None:
        """Kill the process; what it had not begun waits at the front of the queue."""
        self._waiting.extendleft(reversed(process.batch))
        process.kill()


def grade_pairs(processes: list[GraderProcess], grader: str, pairs: Sequence[tuple[str, str]]) -> list[bool | None]:
    """Verdicts on ``pairs`` of (answer, gold), in order; None: undecided within the limits.

    Raises:
        UserError: the grader cannot be loaded, or its source is not that which this process imported.
    """
    dispatch = Dispatch(processes, grader, pairs)
    dispatch.run()
    return dispatch.verdicts
