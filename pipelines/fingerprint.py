"""What a local file or folder holds, as a short hash: steps are keyed by it."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

WHOLE_FILE = 64 * 2**20
"""Files up to this size (bytes) are fingerprinted by their whole content."""


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
