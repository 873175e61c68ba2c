"""Prepared data that several runs read: made once, and on the disk once.

A run whose prepared data another run of the same folder has, under the same key, takes them over as hard
links, or as copies where the file system has none. So every run's folder is whole in itself: it may be
moved, and the others removed, and the last one that holds the data takes them with it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines.disk.files import find, remove
from pipelines.disk.lock import file_lock
from pipelines.disk.step import MANIFEST, Step, file_hash
from pipelines.errors import UserError
from pipelines.ranks.ranks import ranks

SHARED = ("prepare",)
"""Steps whose key decides their files whatever the run."""


@contextlib.contextmanager
def one_at_a_time(step: Step, tell: Callable[[str], None]) -> Iterator[None]:
    """While this lasts no other run of the folder makes the same shared step; waits for one that does."""

    def take() -> None:
        path = step.parent.parent / f".{step.path.name}.lock"
        what = f"{step.path.name} of another run"
        stack.enter_context(file_lock(path, what, "", wait=True, tell=tell, tidy=True))

    with contextlib.ExitStack() as stack:
        if step.name in SHARED:
            ranks().on_main(take)
        yield


def taken_over(step: Step, out: Path, tell: Callable[[str], None]) -> dict[str, Any]:
    """Fill the folder of a shared step from another run that has it, each file compared with its hash.

    Returns:
        Its metrics, on every rank; nothing where it has to be made: no other run has it whole, or it is
        there and is to be made again.
    """
    found: dict[str, Any] = ranks().on_main(lambda: _from_others(step, out, tell))
    return found


def others(step: Step) -> Iterator[Step]:
    """The same shared step in other runs of the folder, where this run has none; whole by their files' sizes."""
    if step.name in SHARED and not step.path.exists():
        for place in find(step.parent.parent, f"*/{step.path.name}/{MANIFEST}"):
            other, manifest = replace(step, parent=place.parent.parent), None
            with contextlib.suppress(UserError, OSError):  # damaged, or gone meanwhile: its run's business
                manifest = other.manifest()
            if manifest is not None:
                yield other


def _from_others(step: Step, out: Path, tell: Callable[[str], None]) -> dict[str, Any]:
    for other in others(step):
        try:
            manifest = other.manifest() or {}
            links = [_take(other.path / name, out / name, entry) for name, entry in manifest["files"].items()]
        except (UserError, OSError, KeyError):
            for left in out.iterdir():
                remove(left)
            continue
        how = "shares its files" if all(links) else "copied from it (no hard links here)"
        tell(f"prepared already by run {other.parent.name}, under the same key: {how}")
        return dict(manifest["metrics"])
    return {}


def _take(file: Path, place: Path, entry: dict[str, Any]) -> bool:
    """Link a file, or copy it -> whether it could be linked.

    Raises:
        OSError: it cannot be read, or written.
        UserError: it is not what was committed.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(file, place)
        linked = True
    except OSError:  # another file system, one without links, or another user's file
        shutil.copyfile(file, place)
        linked = False
    if file_hash(place) != entry["sha256"]:
        raise UserError(str(file), "its content changed since it was written.")
    return linked
