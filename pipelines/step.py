"""A step: a folder with a manifest, named by the hash of everything that decides its content.

``steps/0007/score-1f3a9c2e/`` holds the scores of step 7 under one set of settings. Another setting
gives another key and so another folder beside it: nothing is overwritten, and going back costs
nothing. The folder appears by one atomic rename after everything in it, manifest last, is on the
disk; a crash leaves at most a ``.partial`` folder, which the next run replaces.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

from pipelines.errors import UserError
from pipelines.provenance import provenance

FORMAT = 1
MANIFEST = "manifest.json"
NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


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
            "format": FORMAT, "step": self.name, "index": self.index, "version": self.version,
            "settings": self.settings, "inputs": self.inputs,
        }  # fmt: skip
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
        if not self.path.is_dir():
            return None
        manifest = read_manifest(self.path)
        if manifest["key"] != self.key:
            raise UserError(
                str(self.path / MANIFEST), "belongs to another step (its key differs).", _redo(self.path)
            )  # fmt: skip
        for name, entry in manifest["files"].items():
            file = self.path / name
            size = file.stat().st_size if file.is_file() else None
            if size != entry["bytes"] and not manifest.get("pruned"):
                found = "missing" if size is None else f"{size} bytes"
                raise UserError(
                    str(file), f"should hold {entry['bytes']} bytes, found {found}.", _redo(self.path)
                )  # fmt: skip
        return manifest

    def verify(self) -> None:
        """Compare every file with its recorded hash; done before weights are loaded."""
        manifest = self.manifest()
        for name, entry in (manifest or {"files": {}})["files"].items():
            if file_hash(self.path / name) != entry["sha256"]:
                raise UserError(
                    str(self.path / name), "its content changed since it was written.", _redo(self.path)
                )  # fmt: skip


def _redo(path: Path) -> str:
    return f"Delete the folder {path}; it is made again when it is needed."


def read_manifest(path: Path) -> dict[str, Any]:
    """Read the manifest of a step folder, checked for its shape."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        if not isinstance(manifest, dict) or not {"key", "files", "metrics"} <= manifest.keys():
            raise ValueError("it lacks its fields")
    except (OSError, ValueError) as error:
        raise UserError(
            str(path / MANIFEST), f"corrupt manifest ({error}).", _redo(path)
        ) from error
    return manifest


def file_hash(path: Path) -> str:
    """SHA-256 of a file's content (hex)."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_file(path: Path) -> None:
    """Force a file, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, text: str, *, durable: bool = True) -> None:
    """Replace a small file in one instant; ``durable``: and wait until it is on the disk."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.partial")  # not another process's
    with disk_errors(path):
        try:
            temporary.write_text(text, encoding="utf-8")
            if durable:
                sync_file(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn "disk full" and "not allowed" into an error that says where and what to do."""
    try:
        yield
    except Exception as error:
        full = isinstance(error, OSError) and error.errno in NO_SPACE
        full = full or any(os.strerror(code) in str(error) for code in NO_SPACE)
        if full:
            parent = next(p for p in (path, *path.parents) if p.exists())
            free = shutil.disk_usage(parent).free / 1e9
            raise UserError(
                str(path), f"the disk is full ({free:.1f} GB free).",
                "Free some space and give the same command again; what was committed is kept.",
            ) from error  # fmt: skip
        if isinstance(error, PermissionError) or getattr(error, "errno", None) == errno.EROFS:
            raise UserError(
                str(path), "no permission to write there.",
                "Allow it, or set VPPO_RUNS to a folder of yours.",
            ) from error  # fmt: skip
        raise


@contextlib.contextmanager
def commit(step: Step) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Write a step: yields (folder to write into, metrics to fill); commits when the block ends.

    Args:
        step: what is being written; if it is already there it is replaced (only ``--force`` asks so).
    """
    partial = step.path.with_name(step.path.name + ".partial")
    metrics: dict[str, Any] = {}
    started = time.time()
    with disk_errors(partial):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            yield partial, metrics
        except UserError:  # nothing to go on with
            shutil.rmtree(partial, ignore_errors=True)
            raise
        files = {
            str(file.relative_to(partial)): {
                "bytes": file.stat().st_size, "sha256": file_hash(file)
            }
            for file in sorted(partial.rglob("*")) if file.is_file()
        }  # fmt: skip
        for name in files:
            sync_file(partial / name)
        for folder in {file.parent for file in map(partial.joinpath, files)}:
            sync_file(folder)
        manifest = {
            "format": FORMAT, "step": step.name, "index": step.index, "version": step.version,
            "key": step.key, "settings": step.settings, "inputs": step.inputs,
            "shape": step.shape, "metrics": metrics, "files": files,
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "seconds": round(time.time() - started, 3), "provenance": _provenance(),
        }  # fmt: skip
        write_atomic(partial / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False))
        replaced = step.path.with_name(step.path.name + ".replaced.partial")
        shutil.rmtree(replaced, ignore_errors=True)
        if step.path.exists():  # moved first: half deleted, it would pass for a damaged step
            step.path.replace(replaced)
        partial.replace(step.path)
        shutil.rmtree(replaced, ignore_errors=True)
        sync_file(step.parent)


_provenance = cache(provenance)

Status = Literal["keep", "run", "stale"]


def plan(step: Step) -> tuple[Status, str]:
    """What would happen to a step, and why: ``("stale", "score.keep_fraction 0.4 -> 0.2")``.

    ``keep``: on disk under this key. ``stale``: on disk under another key. ``run``: never made.
    """
    if step.manifest() is not None:
        return "keep", "same key"
    others = [
        p for p in step.parent.glob(f"{step.name}-*")
        if p.suffix != ".partial" and (p / MANIFEST).is_file()
    ]  # fmt: skip
    if not others:
        return "run", "not made yet"
    others.sort(key=lambda p: (p / MANIFEST).stat().st_mtime, reverse=True)
    nearest = min(
        (differences(read_manifest(p), step) for p in others), key=len
    )  # of equals, newest
    return "stale", "; ".join(nearest) or "its format changed"


def differences(manifest: dict[str, Any], step: Step) -> list[str]:
    """Why a step on disk does not serve as ``step``, in words."""
    reasons = []
    if manifest.get("version") != step.version:
        reasons.append(f"its code changed (version {manifest.get('version')} -> {step.version})")
    old, new = manifest.get("settings", {}), step.settings
    for name in sorted(old.keys() | new.keys()):
        if " " in name and old.get(name) != new.get(
            name
        ):  # not a setting: a hash of what one names
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
