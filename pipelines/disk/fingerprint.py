"""What a local file or folder holds, as a short hash: steps are keyed by it."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import mmap
import os
import re
import stat
import sys
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipelines.contents import file_hash, remembered

LONGEST_NAME = 1024
"""Longer texts (characters) are not taken for file names."""

_ESCAPED = 12
"""Bytes that JSON takes for a character at most: two escapes of six, of a surrogate pair."""

_TEXT = re.compile(rb'"([^"\\]*+(?:\\.[^"\\]*+)*+)"', re.DOTALL)
"""A JSON text. It never backtracks: the file comes from outside."""

_PIECE = 2**20


def fingerprint(path: Path) -> str:
    """A hash (hex, 16 digits) of a file's or folder's names and whole content.

    What has not changed since it was last read, by this process or an earlier one, is not read again.

    Raises:
        OSError: a file cannot be read.
    """
    files = [path] if not path.is_dir() else folder_files(path)
    return remembered("fingerprint", path, files, lambda: _content(path, files))


def folder_files(folder: Path) -> list[Path]:
    """All files below a folder but *.md (a README may change), those behind links to folders last."""
    plain: list[Path] = []
    linked: list[Path] = []
    seen = {os.path.realpath(folder)}

    def walk(place: str, found: list[Path]) -> None:
        with contextlib.suppress(PermissionError), os.scandir(place) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    walk(entry.path, found)
                elif entry.is_dir():
                    target = os.path.realpath(entry.path)
                    # Links in a circle, and into the folder itself, add nothing.
                    if not any(Path(target).is_relative_to(known) for known in seen):
                        seen.add(target)
                        walk(entry.path, linked)
                elif entry.is_file() and os.path.splitext(entry.name)[1] != ".md":
                    found.append(Path(entry.path))

    walk(str(folder), plain)
    return sorted(plain) + sorted(linked)


def _content(path: Path, files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        name = "" if file == path else file.relative_to(path)
        with file.open("rb") as content:
            digest.update(f"{name}\x00{os.fstat(content.fileno()).st_size}\x00".encode())
            while piece := content.read(_PIECE):
                digest.update(piece)
    return digest.hexdigest()[:16]


# --- files that a list names ----------------------------------------------------------------------


LISTS = (".parquet", ".jsonl", ".ndjson", ".json", ".csv")
"""Files of rows, which may name images."""


def named_by(source: Path, folders: Sequence[Path]) -> str:
    """What a source names besides its own content: a hash; "" if nothing.

    Args:
        folders: those besides its own that images may lie in. Where its rows cannot be read yet (a hub data
            set), or not here (one saved by ``datasets``), all that is in them.
    """
    if source.is_file():
        return named_files(source, source.parent, *folders)
    if not folders:
        return ""
    files = folder_files(source) if source.is_dir() else []
    if not files or any(file.suffix == ".arrow" for file in files):
        found = [fingerprint(folder) for folder in folders if folder.is_dir()]
    else:
        found = [named_files(file, *folders) for file in files if file.suffix in LISTS]
    return hashlib.sha256(" ".join(found).encode()).hexdigest()[:16] if any(found) else ""


def named_files(path: Path, *roots: Path) -> str:
    """A hash (hex, 16 digits) of the files below some folders that a list of rows names.

    Any text of a JSON, JSON Lines, CSV or Parquet file that leads to a file counts as its name,
    whatever its column is called; each is known by its name and whole content.

    Args:
        path: the list.
        roots: the folders; a name is looked for in each, and the first file it leads to counts.

    Returns:
        "" where the list names none, or cannot be read (whoever reads its rows says so).
    """
    inside = [os.path.realpath(root) for root in roots]
    files = dict(_named(path, inside))
    if not files:
        return ""

    def make() -> str:
        digest = hashlib.sha256()
        for name, place in files.items():
            try:
                digest.update(f"{name}\x00{file_hash(Path(place))}\x00".encode())
            except OSError:  # not to be read: no image, then
                continue
        return digest.hexdigest()[:16]

    try:
        return remembered(f"named files below {', '.join(inside)}", path, [str(path), *files.values()], make)
    except OSError:  # gone meanwhile
        return make()


def _named(path: Path, roots: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The files below real folders that a list names, in its order, each once: text and place."""
    listing = str(path)
    for text in _texts(path):
        for root in roots:
            place = os.path.join(root, text)
            try:
                if not stat.S_ISREG(os.stat(place).st_mode):
                    continue
            except OSError:  # not there, or a question rather than a name
                continue
            if os.path.isabs(text) or ".." in text or len(roots) > 1:
                real = os.path.realpath(place)
                below = any(Path(real).is_relative_to(folder) for folder in roots)
                if not below or real == os.path.realpath(listing):
                    continue
            if place != listing:
                yield text, place
                break


def _texts(path: Path) -> tuple[str, ...]:
    """The texts of a list of rows that can be names of files, each once."""
    try:
        about = path.stat()
    except OSError:
        return ()
    return _texts_as_of(path, about.st_size, about.st_mtime_ns, about.st_ctime_ns)


@lru_cache(maxsize=2)
def _texts_as_of(path: Path, *state: int) -> tuple[str, ...]:
    found: dict[str, None] = {}
    try:
        reader = {".csv": _csv_texts, ".parquet": _parquet_texts}.get(path.suffix.lower())
        for text in (reader or _json_texts)(path):
            if 0 < len(text) <= LONGEST_NAME and "\0" not in text:
                found[text] = None
    except (OSError, csv.Error, UnicodeDecodeError):
        pass
    return tuple(found)


def _json_texts(path: Path) -> Iterator[str]:
    seen: set[bytes] = set()
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            for match in _TEXT.finditer(content):
                length = match.end() - match.start() - 2
                raw = match[1] if length <= _ESCAPED * LONGEST_NAME else b""
                if length > LONGEST_NAME and raw.isascii() and b"\\" not in raw:  # as many characters
                    continue
                if raw not in seen:
                    if length <= LONGEST_NAME:
                        seen.add(raw)
                    try:
                        text = json.loads(b'"%b"' % raw) if b"\\" in raw else raw.decode()
                        text.encode()
                    except ValueError:  # no JSON text, or half a surrogate pair
                        continue
                    yield text


def _csv_texts(path: Path) -> Iterator[str]:
    csv.field_size_limit(sys.maxsize)  # a cell may hold an image
    with path.open(encoding="utf-8-sig", newline="") as file:
        for line in csv.reader(file):
            yield from line


def _parquet_texts(path: Path) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            leaves = [file.schema.column(i) for i in range(len(file.schema))]
            texts = [
                leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY" and leaf.logical_type.type != "NONE"
            ]
            for group in range(file.num_row_groups if texts else 0):
                for batch in file.iter_batches(1024, row_groups=[group], columns=texts):
                    for column in batch.columns:
                        yield from _strings(column.to_pylist())
    except pa.ArrowException:
        return


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _strings(list(value.values()))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _strings(part)
