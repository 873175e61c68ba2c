"""A step: a folder with a manifest, named by the hash of everything that decides its content.

``steps/0007/score-1f3a9c2e/`` holds the scores of step 7 under one set of settings. Another setting
gives another key and so another folder beside it: nothing is overwritten, and going back costs
nothing. The folder appears by one atomic rename after everything in it, manifest last, is on the
disk; a crash leaves at most a ``.partial`` folder, which the next run removes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

from pipelines import contents
from pipelines.contents import SEAL, intact, sealed
from pipelines.disk.files import (
    as_allowed,
    check_owned,
    disk_errors,
    find,
    make_folder,
    partial_of,
    remove,
    sync_file,
    told,
    write_atomic,
)
from pipelines.disk.provenance import provenance
from pipelines.errors import UserError
from pipelines.ranks.ranks import ranks

FORMAT = 1
"""Part of every key."""

MANIFEST_FORMAT = 2
"""1, of earlier versions, has no hash of itself."""

HASHED_AT_ONCE = 8
"""Files of a step that are hashed and forced to the disk at the same time, each by a thread."""

MANIFEST = "manifest.json"
PRUNED = "pruned"
"""Added to the manifest of a checkpoint later, and so not in its hash."""


@dataclass(frozen=True)
class Step:
    """One step of a run: what it is, what it reads, and so where it lives.

    ``parent`` is the folder it lies in, ``settings`` the config fields it reads (dotted name ->
    value), ``inputs`` the keys of the steps it reads, ``version`` that of the stage's code.
    """

    name: str
    index: int | None
    parent: Path
    version: int = 1
    settings: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    shape: dict[str, Any] = field(default_factory=dict, compare=False)
    """Settings that move last bits only: recorded, and no part of the key."""

    @cached_property
    def key(self) -> str:
        """Hash of all that decides the content (hex, 64 digits)."""
        content = {
            "format": FORMAT,
            "step": self.name,
            "index": self.index,
            "version": self.version,
            "settings": self.settings,
            "inputs": self.inputs,
        }
        text = json.dumps(content, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def path(self) -> Path:
        return self.parent / f"{self.name}-{self.key[:8]}"

    @property
    def label(self) -> str:
        return self.name if self.index is None else f"{self.name} {self.index}"

    def manifest(self) -> dict[str, Any] | None:
        """The committed manifest, or None if this step is not on disk.

        Raises:
            UserError: the manifest is corrupt, or a file it lists is missing or cut short.
        """
        if not is_there(self.path):
            return None
        manifest = read_manifest(self.path)
        if manifest["key"] != self.key:
            raise UserError(str(self.path / MANIFEST), "belongs to another step (its key differs).", _redo(self.path))
        for name, entry in manifest["files"].items():
            file = self.path / name
            size = _size(file)
            if size != entry["bytes"] and not manifest.get(PRUNED):
                found = "missing" if size is None else f"{size} bytes"
                raise UserError(str(file), f"should hold {entry['bytes']} bytes, found {found}.", _redo(self.path))
        return manifest

    def verify(self) -> None:
        """Compare the whole folder with its manifest: for readers that take any file they find there.

        Raises:
            UserError: a file changed, or one was added.
        """
        manifest = self.manifest()
        if manifest is None:
            return
        began = time.perf_counter()
        with ThreadPoolExecutor(HASHED_AT_ONCE) as pool:
            list(pool.map(lambda file: _compare(self.path, *file), manifest["files"].items()))
        spent.seconds += time.perf_counter() - began
        for file in sorted(self.path.rglob("[!.]*")):
            name = str(file.relative_to(self.path))
            if file.is_file() and name not in manifest["files"] and name != MANIFEST:
                raise _not_listed(file)


def checked(path: Path) -> Path:
    """A file of a committed step, once its content is what was committed; compared once a process.

    All reading of artifacts goes through this. A path that lies in no committed step is left alone:
    nothing says what it should hold.

    Raises:
        UserError: it changed since it was committed, cannot be read, or is not one of the step's files.
    """
    folder = next((p for p in (path.parent, path.parent.parent) if is_there(p / MANIFEST)), None)
    if folder is None:
        return path
    name = str(path.relative_to(folder))
    entry = read_manifest(folder)["files"].get(name)
    if entry is None:
        raise _not_listed(path)
    began = time.perf_counter()
    _compare(folder, name, entry)
    spent.seconds += time.perf_counter() - began
    return path


def _compare(folder: Path, name: str, entry: dict[str, Any]) -> None:
    path = folder / name
    try:
        found = contents.file_hash(path, lasting=False)
    except OSError as error:
        raise unreadable(path, error, "is missing.", _redo(folder)) from error
    if found != entry["sha256"]:
        raise UserError(str(path), "its content changed since it was written.", _redo(folder))


@dataclass
class Spent:
    """Seconds that this process spent on comparing what it read with what was committed."""

    seconds: float = 0.0


spent = Spent()


def unreadable(path: Path, error: Exception, damage: str, redo: str) -> UserError:
    """The error for a file that could not be read: damaged, or refused by the system.

    Only a file that the system did give, or one that is gone from its folder, is known to be damaged.
    """
    number = getattr(error, "errno", None)
    gone = isinstance(error, FileNotFoundError | NotADirectoryError) and path.parent.is_dir()
    if refused := told(path, error):
        return refused
    if number is None or gone:
        return UserError(str(path), damage, redo)
    return UserError(
        str(path),
        f"cannot be read: {os.strerror(number)}.",
        "It may well be whole: see to the disk or its mount, and give the same command again.",
    )


def is_there(path: Path) -> bool:
    """Whether a path exists; what the system will not say is no absence.

    Raises:
        UserError: it cannot be looked up.
    """
    return _look_up(path) is not None


def _look_up(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise unreadable(path, error, "", "") from error


def _size(path: Path) -> int | None:
    found = _look_up(path)
    return found.st_size if found is not None and stat.S_ISREG(found.st_mode) else None


def _not_listed(path: Path) -> UserError:
    return UserError(
        str(path), "is not one of the files that were committed there.", f"Move it elsewhere, or delete it: rm {path}"
    )


def _redo(path: Path) -> str:
    return f"Delete the folder {path}; it is made again when it is needed."


def read_manifest(path: Path) -> dict[str, Any]:
    """Read the manifest of a step folder, compared with its own hash (format 1: its shape only).

    Raises:
        UserError: it is damaged, or cannot be read.
    """
    began = time.perf_counter()
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        _check_manifest(manifest)
    except (OSError, ValueError, RecursionError) as error:
        raise unreadable(path / MANIFEST, error, f"corrupt manifest ({error}).", _redo(path)) from error
    spent.seconds += time.perf_counter() - began
    return dict(manifest)


def _check_manifest(manifest: Any) -> None:
    """Raises ValueError if it is not what ``commit`` wrote."""
    if not isinstance(manifest, dict) or not {"key", "files", "metrics"} <= manifest.keys():
        raise ValueError("it lacks its fields")
    whole = {name: value for name, value in manifest.items() if name != PRUNED}
    if (manifest.get("format", 1) != 1 or SEAL in manifest) and not intact(whole):
        raise ValueError("its text changed since it was written")
    files = manifest["files"]
    if not isinstance(files, dict) or not isinstance(manifest["metrics"], dict):
        raise ValueError("files or metrics is no object")
    for name, entry in files.items():
        if not isinstance(entry, dict) or not {"bytes", "sha256"} <= entry.keys():
            raise ValueError(f"of {name!r} it lacks size or hash")


def file_hash(path: Path) -> str:
    """SHA-256 of a file's content (hex), read now."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def commit(step: Step) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Write a step: yields (folder to write into, metrics to fill); commits when the block ends.

    Args:
        step: what is being written; if it is already there it is replaced (only ``--force`` asks so).

    Raises:
        UserError: the system refused to write, or to read what the step is made from.
        LockLost: another process has taken the run over.
    """
    partial = partial_of(step.path)
    metrics: dict[str, Any] = {}
    started = time.time()
    with disk_errors(step.path):
        check_owned(step.path)
        for left in find(step.parent, f"{step.path.name}*.partial"):  # of processes that are gone
            remove(left)
        make_folder(step.parent)
        try:
            partial.mkdir()
            yield partial, metrics
            files = _finish(partial)
            manifest = {
                "format": MANIFEST_FORMAT,
                "step": step.name,
                "index": step.index,
                "version": step.version,
                "key": step.key,
                "settings": step.settings,
                "inputs": step.inputs,
                "shape": step.shape,
                "metrics": metrics,
                "files": files,
                "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "seconds": round(time.time() - started, 3),
                "provenance": _provenance(),
            }
            write_atomic(partial / MANIFEST, json.dumps(sealed(manifest), indent=1, ensure_ascii=False))
            _replace(partial, step.path)
        except BaseException:
            remove(partial)
            raise
        sync_file(step.parent)


@contextlib.contextmanager
def committed(step: Step) -> Iterator[tuple[Path, dict[str, Any]]]:
    """``commit`` on rank 0, which alone writes; every rank goes on when the step is on disk."""
    if ranks().main:
        with commit(step) as made:
            yield made
    else:
        with tempfile.TemporaryDirectory() as thrown_away:
            yield Path(thrown_away), {}
    ranks().barrier()


def _finish(partial: Path) -> dict[str, dict[str, Any]]:
    """Force all files of a folder to the disk; returns their sizes and hashes."""
    mode = partial.stat().st_mode & 0o666

    def finish(file: Path) -> dict[str, Any]:
        as_allowed(file, mode)
        with disk_errors(file):
            entry = {"bytes": file.stat().st_size, "sha256": file_hash(file)}
            sync_file(file)
        return entry

    found = sorted(partial.rglob("*"))
    files = [file for file in found if file.is_file()]
    with ThreadPoolExecutor(HASHED_AT_ONCE) as pool:
        entries = list(pool.map(finish, files))
    for folder in {partial, *(path for path in found if path.is_dir())}:
        sync_file(folder)
    return {str(file.relative_to(partial)): entry for file, entry in zip(files, entries, strict=True)}


def _replace(partial: Path, path: Path) -> None:
    """Put a finished folder in its place, over an older one."""
    older = partial_of(path.with_name(f"{path.name}.replaced"))
    check_owned(path)
    if path.exists():  # moved first: half deleted, it would pass for a damaged step
        path.replace(older)
    try:
        partial.replace(path)
    except OSError:
        if older.exists():
            older.replace(path)
        raise
    remove(older)


_provenance = cache(provenance)

Status = Literal["keep", "run", "stale"]


def plan(step: Step) -> tuple[Status, str]:
    """What would happen to a step, and why: ``("stale", "score.keep_fraction 0.4 -> 0.2")``.

    ``keep``: on disk under this key. ``stale``: on disk under another key. ``run``: never made.
    """
    if step.manifest() is not None:
        return "keep", "same key"
    others = [p for p in find(step.parent, f"{step.name}-*") if p.suffix != ".partial" and (p / MANIFEST).is_file()]
    if not others:
        return "run", "not made yet"
    others.sort(key=lambda p: (p / MANIFEST).stat().st_mtime, reverse=True)
    nearest = min((differences(read_manifest(p), step) for p in others), key=len)  # of equals, newest
    return "stale", "; ".join(nearest) or "its format changed"


def differences(manifest: dict[str, Any], step: Step) -> list[str]:
    """Why a step on disk does not serve as ``step``, in words."""
    reasons = []
    if manifest.get("version") != step.version:
        reasons.append(f"its code changed (version {manifest.get('version')} -> {step.version})")
    old, new = manifest.get("settings", {}), step.settings
    for name in sorted(old.keys() | new.keys()):
        if " " in name and old.get(name) != new.get(name):  # not a setting: a hash of what one names
            reasons.append(f"{name} changed" if name in old else f"{name} was not part of its key")
        elif old.get(name) != new.get(name):
            reasons.append(f"{name} {_short(old.get(name))} -> {_short(new.get(name))}")
    inputs = manifest.get("inputs", {})
    changed = [name for name, key in step.inputs.items() if inputs.get(name) != key]
    if changed:
        reasons.append(f"its input changed ({', '.join(changed)})")
    return reasons


def _short(value: Any) -> str:
    text = json.dumps(value) if not isinstance(value, str) else value
    return text if len(text) <= 40 else text[:37] + "..."
