"""Run folders: finding them, their config, their state for others to read, their metrics. Torch-free."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipelines import settings
from pipelines.chain import Chain
from pipelines.config import Config
from pipelines.errors import UserError
from pipelines.hub import as_begun
from pipelines.lock import is_running
from pipelines.provenance import provenance
from pipelines.step import disk_errors, sync_file, write_atomic

CONFIG, STATE, METRICS = "config.yaml", "run.json", "metrics.jsonl"


def runs_folder() -> Path:
    """Where runs live: ``VPPO_RUNS`` or ``runs`` in the current folder."""
    return Path(os.environ.get("VPPO_RUNS", "runs"))


def find_run(name: str | None) -> Path:
    """An existing run by name, or the one changed last.

    Raises:
        UserError: there is none; names those there are.
    """
    folder = runs_folder()
    known = sorted(p.parent for p in folder.glob(f"*/{CONFIG}"))
    if name is None:
        if not known:
            raise UserError(f"{folder}/", "holds no run yet.", "Start one: vppo train")
        return max(known, key=lambda p: (p / CONFIG).stat().st_mtime)
    if folder / name not in known:
        listed = " ".join(p.name for p in known) or "none"
        raise UserError(f"run {name}", f"no such run in {folder}/.", f"There: {listed}.")
    return folder / name


DIGITS = (8, 4, 16, 32, 64)
"""Of a config's hash in the name of its run. Runs had 4 once; more where 8 belong to other settings."""


def run_of(config: Config) -> tuple[Path, str]:
    """The folder of these settings' run, whether it is there or not yet.

    A folder is theirs only if the whole hash of its config is: one whose settings differ is left
    alone, and a longer name taken.

    Returns:
        The folder, and what is to be said of it ("" if nothing).

    Raises:
        UserError: the settings of a folder that may be theirs cannot be read.
    """
    free, others = None, []
    for digits in DIGITS:
        folder = runs_folder() / settings.run_name(config, digits)
        if not (folder / CONFIG).is_file():
            free = free or (folder if digits != 4 else None)
        elif same_settings(config, read_config(folder)):
            return folder, ""
        elif digits != 4:
            others.append(folder.name)
    assert free is not None
    note = f"{', '.join(others)} has other settings than these: the run is {free.name}"
    return free, note if others else ""


def models_folder(where: str) -> Path:
    """Where evaluations of a model on its own lie; those made when names had 4 digits stay there.

    Args:
        where: its folder, resolved, or its hub id.
    """
    digits = hashlib.sha256(where.encode()).hexdigest()
    base, name = runs_folder() / "models", Path(where).name
    old = base / f"{name}-{digits[:4]}"
    if (old / CONFIG).is_file():
        path = read_config(old).model.path
        if where in (path, str(Path(path).resolve())):
            return old
    return base / f"{name}-{digits[:8]}"


def same_settings(asked: Config, stored: Config) -> bool:
    """Whether a run with the stored settings is the one that is asked for, all of its hash compared.

    A commit that was resolved when the run began makes it no other.
    """
    return settings.config_hash(as_begun(asked, stored, set())) == settings.config_hash(stored)


def read_config(run: Path) -> Config:
    """The settings the run was last asked for."""
    return settings.load(run / CONFIG)


def write_config(run: Path, config: Config) -> None:
    """Record the settings the run is asked for now."""
    with disk_errors(run):
        run.mkdir(parents=True, exist_ok=True)
    write_atomic(run / CONFIG, settings.dump(config))


HERE_FOR_SURE_S = 600.0
"""A run on another machine, whose lock may not reach here, counts as running for so long after its
last sign."""


@dataclass
class State:
    """What a run is doing, for ``vppo status`` in another terminal.

    ``state`` is new, running, finished, idle (more to do), stopped or failed; ``stage`` and ``step`` say
    at what, ``doing``, ``done`` and ``total`` how far inside it (``12 of 32 groups``). ``time`` is when
    this was last known, in seconds since 1970, and ``updated`` the same for people. ``memory`` and
    ``gpu_memory`` (peak) are bytes.
    """

    state: str
    stage: str = ""
    step: int = 0
    steps: int = 0
    pid: int = 0
    host: str = ""
    updated: str = ""
    doing: str = ""
    done: int = 0
    total: int = 0
    time: float = 0.0
    memory: int = 0
    gpu_memory: int = 0

    def silent_s(self) -> float:
        """Seconds since the last sign of life; 0 unless it is running."""
        return max(0.0, time.time() - self.time) if self.state == "running" and self.time else 0.0


def record_state(
    run: Path, state: str, stage: str, step: int, steps: int, *, durable: bool = True, **more: Any
) -> None:
    """Write run.json.

    Args:
        durable: wait until it is on the disk.
        more: further fields of ``State``.
    """
    text, now = time.strftime("%Y-%m-%d %H:%M:%S"), time.time()
    value = State(
        state, stage, step, steps, os.getpid(), socket.gethostname(), text, time=now, **more
    )
    write_atomic(run / STATE, json.dumps(asdict(value)), durable=durable)


def read_state(run: Path) -> State:
    """What the run is doing; a run whose process is gone is ``stopped``, whatever it last wrote."""
    try:
        found = json.loads((run / STATE).read_text())
        names = State.__dataclass_fields__
        state = State(**{name: value for name, value in found.items() if name in names})
    except (OSError, ValueError, TypeError, AttributeError):
        return State("new")
    if state.state == "running" and is_running(run) is None:
        elsewhere = state.host not in ("", socket.gethostname())
        if not (elsewhere and state.silent_s() < HERE_FOR_SURE_S):
            state.state = "stopped"
    return state


def changed_versions(chain: Chain) -> str:
    """Packages (and commit) that differ from those the run was begun with; "" if none does."""
    manifest = chain.prepare.manifest() or {}
    then, now = manifest.get("provenance", {}), provenance()
    names = [name for name in then if name in now and then[name] != now[name]]
    return ", ".join(f"{name} {then[name]} (now {now[name]})" for name in names)


def changed_shapes(chain: Chain) -> str:
    """Settings that reach a kernel's shape and differ from those of the newest steps; "" if none does.

    In float32 they change nothing that is worth a word.
    """
    if chain.config.model.dtype == "float32":
        return ""
    changed: dict[str, str] = {}
    for stage in (chain.rollout, chain.score, chain.update):
        made = [
            step for t in range(1, chain.config.run.steps + 1) if (step := stage(t)).path.is_dir()
        ]
        then = (made[-1].manifest() or {}).get("shape", {}) if made else {}
        for name, value in then.items():
            if name in made[-1].shape and made[-1].shape[name] != value:
                changed[name] = f"{name} {value} (now {made[-1].shape[name]})"
    return ", ".join(changed.values())


def step_metrics(chain: Chain, step: int) -> dict[str, Any] | None:
    """One line of metrics.jsonl: a finished training step, names prefixed by stage."""
    row: dict[str, Any] = {"step": step}
    for made in (chain.rollout(step), chain.score(step), chain.update(step)):
        if not made.path.is_dir():
            return None
        manifest = made.manifest()
        assert manifest is not None
        row |= {f"{made.name}/{name}": value for name, value in manifest["metrics"].items()}
    return row


def write_metrics(chain: Chain) -> list[dict[str, Any]]:
    """Make metrics.jsonl again from the committed steps; returns its rows.

    It holds no times, so that equal runs have equal files; how long steps took is in their manifests.
    """
    rows: list[dict[str, Any]] = []
    for step in range(1, chain.config.run.steps + 1):
        row = step_metrics(chain, step)
        if row is None:
            break
        rows.append(row)
    write_atomic(chain.run / METRICS, "".join(json.dumps(row) + "\n" for row in rows))
    return rows


def append_metrics(chain: Chain, step: int) -> dict[str, Any]:
    """Add a step that was just committed."""
    row = step_metrics(chain, step)
    assert row is not None
    if len((chain.run / METRICS).read_text().splitlines()) != step - 1:  # made again out of turn
        write_metrics(chain)
        return row
    with (chain.run / METRICS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
        file.flush()
    sync_file(chain.run / METRICS)
    return row
