"""All runs of a folder, a line each, for ``vppo runs``. Torch-free."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines import runs
from pipelines.disk.files import remove as delete
from pipelines.disk.lock import run_lock
from pipelines.errors import UserError
from vppo_cli.screen import display, glance
from vppo_cli.screen.words import size


@dataclass
class Listed:
    """One run. ``problem`` says why nothing else is known of it; ``bytes`` are those of its files."""

    name: str
    state: str = ""
    steps_done: int = 0
    steps: int = 0
    objective: str = ""
    accuracy: float | None = None
    bytes: int = 0
    changed: str = ""
    why: str = ""
    problem: str = ""


def rows() -> list[Listed]:
    """Every run, the newest last."""
    return [_listed(path) for path in sorted(runs.known_runs(), key=lambda path: (_changed(path), path.name))]


def _changed(run: Path) -> float:
    """When its settings or its state were last written, in seconds since 1970."""
    files = (run / name for name in (runs.STATE, runs.CONFIG))
    return max((file.stat().st_mtime for file in files if file.exists()), default=0.0)


def _listed(path: Path) -> Listed:
    changed = time.strftime("%Y-%m-%d %H:%M", time.localtime(_changed(path)))
    found = Listed(path.name, bytes=glance.used(path), changed=changed)
    try:
        seen = glance.look(path)
    except UserError as error:
        found.state, found.problem = "unreadable", str(error)
        return found
    found.state, found.why = seen.state.state, seen.state.why
    found.steps_done, found.steps = len(seen.rows), seen.chain.config.run.steps
    found.objective = seen.chain.config.update.objective
    accuracy = seen.rows[-1].get("rollout/accuracy") if seen.rows else None
    found.accuracy = accuracy if isinstance(accuracy, float) else None
    return found


def show(found: Sequence[Listed]) -> None:
    """A table, and below it why runs failed, and what one would do with them."""
    head = ("run", "state", "steps", "objective", "train acc.", "size", "changed")
    lines = [
        (
            row.name,
            row.state,
            f"{row.steps_done}/{row.steps}" if row.steps else "-",
            row.objective or "-",
            "-" if row.accuracy is None else f"{row.accuracy:.3f}",
            size(row.bytes),
            row.changed,
        )
        for row in found
    ]
    display.columns([head, *lines], styles=["bold"])
    for row in found:
        if said := row.problem or row.why:
            display.line("why", f"{row.name}: {said}", style="yellow")
    display.line("next", f"vppo status --run {found[-1].name}      what it did")
    whole = size(sum(row.bytes for row in found))
    if idle := next((row for row in found if row.state != "running"), None):
        display.line("", f"vppo runs --remove {idle.name}      delete it ({size(idle.bytes)} of {whole})")


def remove(names: Sequence[str], *, sure: bool) -> None:
    """Delete runs, all of their folders; nothing if one cannot be.

    Raises:
        UserError: one is not there, is running, or nobody is there to be asked.
    """
    paths = [runs.runs_folder() / name for name in names]
    for name, path in zip(names, paths, strict=True):
        if name != path.name or not (path / runs.CONFIG).is_file():
            raise UserError(f"--remove {name}", "no such run.", "vppo runs lists them.")
    told = ", ".join(f"{path} ({size(glance.used(path))})" for path in paths)
    if not sure:
        if not sys.stdin.isatty():
            raise UserError(f"--remove {' '.join(names)}", "deletes a run for good.", "Add --yes.")
        if input(f"delete {told}? [y/N] ").strip().lower() not in ("y", "yes"):
            display.line("kept", told)
            return
    for path in paths:
        with run_lock(path):  # its settings last: what is cut short is a run that lacks some steps
            for part in sorted(path.iterdir(), key=lambda part: part.name == runs.CONFIG):
                if part.name != "lock":
                    delete(part)
        delete(path)
        if path.exists():
            raise UserError(str(path), "could not be deleted whole.", f"rm -r {path}")
    display.line("deleted", told)
