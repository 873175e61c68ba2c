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

from pipelines.contents import file_hash, remembered

LONGEST_NAME = 1024
"""Longer texts (bytes) in a JSON file are not taken for file names."""

_TEXT = re.compile(rb'"([^"\\]*+(?:\\.[^"\\]*+)*+)"', re.DOTALL)
"""A JSON text. It never backtracks: the file comes from outside."""

_PIECE = 2**20


def fingerprint(path: Path) -> str:
    """A hash (hex, 16 digits) of a file's or folder's names and whole content.

    What has not changed since it was last read, by this process or an earlier one, is not read again.

    Raises:
        OSError: a file cannot be read.
    """
    files = [path]
    if path.is_dir():  # a README may change
        files = sorted(p for p in path.rglob("*") if p.is_file() and p.suffix != ".md")
    return remembered("fingerprint", path, files, lambda: _content(path, files))


def _content(path: Path, files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        name = "" if file == path else file.relative_to(path)
        with file.open("rb") as content:
            digest.update(f"{name}\x00{os.fstat(content.fileno()).st_size}\x00".encode())
            while piece := content.read(_PIECE):
                digest.update(piece)
    return digest.hexdigest()[:16]


def named_files(path: Path, root: Path) -> str:
    """A hash (hex, 16 digits) of the files below ``root`` that a JSON or JSON Lines file names.

    Any text that leads to a file counts as its name; each is known by its name and content.

    Returns:
        "" where the file names none.
    """
    about = path.stat()
    return _hash_named(root, _names(path, about.st_size, about.st_mtime_ns))


@cache
def _names(path: Path, size: int, time: int) -> tuple[str, ...]:
    """The texts of a JSON file that can be names of files below some folder, in order."""
    with path.open("rb") as file:
        content = file.read()
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


def _hash_named(root: Path, names: Iterable[str]) -> str:
    digest, some = hashlib.sha256(), False
    for name in names:
        place = root / name
        try:
            if not stat.S_ISREG(place.stat().st_mode):
                continue
            content = file_hash(place)
        except OSError:  # not there, not to be read, or a question rather than a name
            continue
        digest.update(f"{name}\x00{content}\x00".encode())
        some = True
    return digest.hexdigest()[:16] if some else ""
