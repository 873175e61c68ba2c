"""What files hold, as SHA-256, and remembered: an unchanged file is read once, not once a command.

A hash is remembered by what the system says of the files that it was made from: path, size, times of
content and of inode (a changed time of content, set back, changes the latter), inode. Files younger
than ``YOUNG_S`` are never remembered: they may change again within one tick of the file system's clock.

The memory between processes is a table in the user's cache folder. It only saves time: where it cannot
be read or written, is damaged, or holds a row that is not what was written, the files are read again.

Small JSON objects carry a hash of their own: ``sealed`` adds it, ``intact`` compares it.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

YOUNG_S = 2.0
"""Seconds; the coarsest clock of a file system in use (FAT) ticks in as many."""

SEAL = "sha256"

_MOST_ROWS = 10**6
_AT_ONCE = 1000


def sealed(content: Mapping[str, Any], digits: int = 64) -> dict[str, Any]:
    """A JSON object with, last, the first hex digits of the SHA-256 of all the rest of it."""
    rest = {name: value for name, value in content.items() if name != SEAL}
    return rest | {SEAL: _canonical_hash(rest)[:digits]}


def intact(content: Mapping[str, Any], digits: int = 64) -> bool:
    """Whether an object that was read from JSON is what ``sealed`` made."""
    return bool(content.get(SEAL) == sealed(content, digits)[SEAL])


def _canonical_hash(content: Mapping[str, Any]) -> str:
    plain = json.loads(json.dumps(content))  # keys become text before they are sorted
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def file_hash(path: Path, *, lasting: bool = True) -> str:
    """SHA-256 of a file's whole content (hex, 64 digits).

    Args:
        lasting: later processes may be told it too. Not where a disk that changes what it holds must
            not go unnoticed: nothing that the system says of a file tells of that.

    Raises:
        OSError: it cannot be read.
    """

    def read() -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    return remembered("content", path, [path], read, lasting=lasting)


def remembered(
    what: str, path: Path, files: Sequence[Path | str], make: Callable[[], str], *, lasting: bool = True
) -> str:
    """``make()``, or what it gave for the same files when they were as they are now.

    Args:
        what: names the function that ``make`` computes, as a path may be asked several things.
        path: what is asked about.
        files: all that ``make`` reads.
        lasting: whether processes tell each other, or each asks ``make`` once.

    Raises:
        OSError: one of the files is not there.
    """
    place = f"{what if lasting else 'here ' + what} {os.path.abspath(path)}"
    before = _state(files)
    found = _MEMORY.get(place, before, lasting=lasting)
    if found is None:
        found = make()
        # What changed while it was read, or could still change unseen, is not remembered.
        if before == _state(files) and not _young(files):
            _MEMORY.put(place, before, found, lasting=lasting)
    return found


def _state(files: Sequence[Path | str]) -> bytes:
    """What the system says of the files (32 bytes)."""
    digest = hashlib.sha256()
    for file in files:
        s = os.stat(file)
        digest.update(f"{file}\0{s.st_size} {s.st_mtime_ns} {s.st_ctime_ns} {s.st_ino}\n".encode())
    return digest.digest()


def _young(files: Sequence[Path | str]) -> bool:
    now = time.time()
    stats = map(os.stat, files)
    return any(now - max(s.st_mtime, s.st_ctime) < YOUNG_S for s in stats)


def _seal(place: str, state: bytes, found: str) -> bytes:
    """By which a row is known to be what was written."""
    return hashlib.sha256(b"\0".join([place.encode(), state, found.encode()])).digest()[:8]


class _Memory:
    """Hashes by place and state: of this process, and behind them those of earlier ones."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[bytes, str]] = {}
        self._new: dict[str, tuple[bytes, str]] = {}
        self._table: sqlite3.Connection | None = None
        self._owner = 0

    def get(self, place: str, state: bytes, *, lasting: bool) -> str | None:
        known = self._known.get(place) or (self._read(place) if lasting else None)
        return known[1] if known and known[0] == state else None

    def put(self, place: str, state: bytes, found: str, *, lasting: bool) -> None:
        self._known[place] = state, found
        if lasting:
            self._new[place] = state, found
        if len(self._new) >= _AT_ONCE:
            self.write()

    def write(self) -> None:
        """Hand what is new on to later processes."""
        rows = [(place, *row, _seal(place, *row)) for place, row in self._new.items()]
        self._new = {}
        table = self._open() if rows else None
        if table:
            with contextlib.suppress(sqlite3.Error), table:
                table.executemany("REPLACE INTO known VALUES (?, ?, ?, ?)", rows)
                oldest = "(SELECT max(rowid) FROM known) - ?"
                table.execute(f"DELETE FROM known WHERE rowid <= {oldest}", (_MOST_ROWS,))

    def _read(self, place: str) -> tuple[bytes, str] | None:
        table, row = self._open(), None
        if table:
            with contextlib.suppress(sqlite3.Error):
                asked = "SELECT state, found, seal FROM known WHERE place = ?"
                row = table.execute(asked, (place,)).fetchone()
        if not row or not isinstance(row[0], bytes) or not isinstance(row[1], str):
            return None
        state, found, seal = row
        if _seal(place, state, found) != seal:
            return None
        self._known[place] = state, found
        return state, found

    def _open(self) -> sqlite3.Connection | None:
        """The table; of a forked process, a connection of its own."""
        if self._owner != os.getpid():
            self._owner, self._table = os.getpid(), None
            with contextlib.suppress(sqlite3.Error, OSError, RuntimeError):
                self._table = _connect()
        return self._table


def _connect() -> sqlite3.Connection:
    """Open the table, made anew where it is damaged."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vppo"
    cache.mkdir(parents=True, exist_ok=True)
    path = cache / "contents.sqlite"
    columns = "place TEXT PRIMARY KEY, state BLOB, found TEXT, seal BLOB"
    for attempt in range(2):
        table = sqlite3.connect(path, timeout=1.0, check_same_thread=False)
        try:
            table.execute(f"CREATE TABLE IF NOT EXISTS known ({columns})")
            table.execute("SELECT place, state, found, seal FROM known LIMIT 1").fetchone()
            return table
        except sqlite3.OperationalError:  # locked, or no permission: not damaged
            table.close()
            raise
        except sqlite3.DatabaseError:
            table.close()
            if attempt:
                raise
            path.unlink(missing_ok=True)
    raise AssertionError


_MEMORY = _Memory()
atexit.register(_MEMORY.write)
