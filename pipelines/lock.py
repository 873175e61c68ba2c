"""One process at a time: trains a run, evaluates a policy on a benchmark."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from pipelines.errors import UserError
from pipelines.step import disk_errors


@contextlib.contextmanager
def run_lock(run: Path) -> Iterator[None]:
    """Hold the run's lock.

    Raises:
        UserError: another live process, or another machine, holds the run.
    """
    fix = f"Watch it with: vppo status --run {run.name}"
    with file_lock(run / "lock", f"run {run.name}", fix):
        yield


@contextlib.contextmanager
def file_lock(
    path: Path, what: str, fix: str, wait: Callable[[str], None] | None = None
) -> Iterator[None]:
    """Hold a lock. The system frees it when the process dies, however it dies.

    A file lock does not always reach over a network file system, so a lock that another machine
    wrote, and did not clear, is honoured until a person removes it.

    Args:
        path: the lock's file.
        what: what is locked, and ``fix``: what to do meanwhile, for the message.
        wait: wait for a process on this machine that holds it, after telling so; None: refuse.

    Raises:
        UserError: another live process, or another machine, holds the lock.
    """
    with disk_errors(path):
        file = path.open("a+", encoding="utf-8")
    with file:
        file.seek(0)
        owner = _owner(file.read())
        if not _try_lock(file):
            held = f"is in use by process {owner.get('pid', '?')} since {owner.get('since', '?')}."
            if wait is None:
                raise UserError(what, held, fix)
            wait(f"{what} {held} Waiting for it.")
            fcntl.flock(file, fcntl.LOCK_EX)
            owner = {}
        if owner and owner["host"] != socket.gethostname():
            raise UserError(
                str(path), f"was taken by process {owner['pid']} on {owner['host']} at "
                f"{owner['since']} and not released.",
                f"If nothing runs there any more, remove the file: rm {path}",
            )  # fmt: skip
        _write(file, {"pid": os.getpid(), "host": socket.gethostname(),
                      "since": time.strftime("%Y-%m-%d %H:%M:%S")})  # fmt: skip
        try:
            yield
        finally:
            _write(file, None)


def _try_lock(file: TextIO) -> bool:
    for _ in range(5):  # `vppo status` holds the lock for an instant when it looks
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.05)
    return False


def is_running(run: Path) -> int | None:
    """The process id that holds the run now, if one does."""
    path = run / "lock"
    if not path.is_file():
        return None
    with path.open("r", encoding="utf-8") as file:
        owner = _owner(file.read())
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return int(owner.get("pid", -1))
    return None


def _owner(text: str) -> dict[str, str]:
    try:
        owner = json.loads(text)
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) and {"pid", "host", "since"} <= owner.keys() else {}


def _write(file: TextIO, owner: dict[str, object] | None) -> None:
    file.seek(0)
    file.truncate()
    if owner:
        file.write(json.dumps(owner))
    file.flush()
