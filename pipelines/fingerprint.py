"""What a local file or folder holds, as a short hash: steps are keyed by it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable
from functools import cache
from pathlib import Path

WHOLE_FILE = 64 * 2**20
"""Files up to this size (bytes) are fingerprinted by their whole content."""

END = 4096
"""Bytes of each end by which one of many files is known."""

LONGEST_NAME = 1024
"""Longer texts (bytes) in a JSON file are not taken for file names."""

_TEXT = re.compile(rb'"([^"\\]*+(?:\\.[^"\\]*+)*+)"', re.DOTALL)
"""A JSON text. It never backtracks: the file comes from outside."""


def fingerprint(path: Path) -> str:
    """A hash (hex, 16 digits) of a file's or folder's content; of large files, size and both ends.

    Within a process, what has neither changed in size nor in time is not read again.
    """
    files = [path]
    if path.is_dir():  # a README may change
        files = sorted(p for p in path.rglob("*") if p.is_file() and p.suffix != ".md")
    stats = [file.stat() for file in files]
    return _content(
        path, tuple((f, s.st_size, s.st_mtime_ns) for f, s in zip(files, stats, strict=True))
    )


@cache
def _content(path: Path, files: tuple[tuple[Path, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for file, size, _ in files:
        name = "" if file == path else file.relative_to(path)
        digest.update(f"{name}\x00{size}\x00".encode())
        with file.open("rb") as content:
            if size <= WHOLE_FILE:
                digest.update(content.read())
            else:
                digest.update(content.read(2**20))
                content.seek(-(2**20), 2)
                digest.update(content.read())
    return digest.hexdigest()[:16]


def named_files(path: Path, root: Path) -> str:
    """A hash (hex, 16 digits) of the files below ``root`` that a JSON or JSON Lines file names.

    Each is known by its name, size and both ends: there may be thousands. Any text that leads to a
    file counts as its name. In large JSON files, names are looked for in the first 64 MiB.

    Returns:
        "" where the file names none.
    """
    about = path.stat()
    return _hash_ends(root, _names(path, about.st_size, about.st_mtime_ns))


@cache
def _names(path: Path, size: int, time: int) -> tuple[str, ...]:
    """The texts of a JSON file that can be names of files below some folder, in order."""
    with path.open("rb") as file:
        content = file.read(WHOLE_FILE)
    found: dict[str, None] = {}
    for match in _TEXT.finditer(content):
        if match.end() - match.start() <= LONGEST_NAME + 2:
            try:
                name = os.path.normpath(json.loads(match[0]))
                name.encode()
            except ValueError:  # no JSON text, or half a surrogate pair
                continue
            if "\0" not in name and not os.path.isabs(name) and name.split(os.sep)[0] != os.pardir:
                found[name] = None
    return tuple(found)


def _hash_ends(root: Path, names: Iterable[str]) -> str:
    digest, some = hashlib.sha256(), False
    for name in names:
        place = os.path.join(root, name)
        try:
            about = os.stat(place)
            if not stat.S_ISREG(about.st_mode):
                continue
            ends = _ends(place, about.st_size, about.st_mtime_ns)
        except OSError:  # not there, not to be read, or a question rather than a name
            continue
        digest.update(f"{name}\x00{about.st_size}\x00".encode() + ends)
        some = True
    return digest.hexdigest()[:16] if some else ""


@cache
def _ends(path: str, size: int, time: int) -> bytes:
    """The hash of a file's first and last bytes."""
    with open(path, "rb", buffering=0) as file:
        digest = hashlib.sha256(file.read(END))
        file.seek(max(0, size - END))
        digest.update(file.read(END))
    return digest.digest()
