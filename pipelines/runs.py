"""Run folders: finding them, their config, their state for others to read, their metrics. Torch-free."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import os
import socket
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path
from typing import Any

from pipelines.chain import ANSWERS, OF_ONES_OWN, OUTSIDE, RESULTS, TRAINING, Chain, gone, versions_of
from pipelines.config import settings
from pipelines.config.hub import as_begun
from pipelines.config.schema import Config
from pipelines.contents import SEAL, intact, sealed
from pipelines.disk.files import append_text, disk_errors, find, make_folder, write_atomic
from pipelines.disk.lock import is_running
from pipelines.disk.provenance import provenance
from pipelines.disk.step import MANIFEST, Step, is_there, read_manifest, spent, unreadable
from pipelines.errors import UserError
from pipelines.prepare.floats import KEY as SHORT_FLOATS

CONFIG, STATE, METRICS = "config.yaml", "run.json", "metrics.jsonl"

MARK = "# sha256 "
"""Begins the first line of a run's config.yaml: the hash of all other lines."""


def runs_folder() -> Path:
    """Where runs live: ``VPPO_RUNS`` or ``runs`` in the current folder."""
    return Path(os.environ.get("VPPO_RUNS", "runs"))


_ELSEWHERE = "go where it was begun, or set VPPO_RUNS"


def known_runs() -> list[Path]:
    """The folders of all runs, by name."""
    return [path.parent for path in find(runs_folder(), f"*/{CONFIG}")]


def find_run(name: str | None) -> Path:
    """An existing run by name, or the one changed last.

    Raises:
        UserError: there is none; names those there are.
    """
    folder = runs_folder()
    known = known_runs()
    if name is None:
        if not known:
            raise UserError(
                f"{folder.resolve()}/", "holds no run yet.", f"Start one: vppo train. If it is elsewhere, {_ELSEWHERE}."
            )
        return max(known, key=lambda p: (p / CONFIG).stat().st_mtime)
    if folder / name not in known:
        raise UserError(f"run {name}", f"no such run in {folder.resolve()}/.", like(name))
    return folder / name


def like(name: str) -> str:
    """Which runs there are where none has this name, like ones first."""
    names = [path.name for path in known_runs()]
    shown = difflib.get_close_matches(name, names, n=8) or names[:8]
    more = f" and {len(names) - len(shown)} more" * (len(names) > len(shown))
    return f"There: {' '.join(shown) or 'none'}{more}. If it is elsewhere, {_ELSEWHERE}."


def is_pattern(name: str) -> bool:
    """Whether it stands for runs by a shell pattern, such as ``dapo-*``; a file that is there is itself."""
    return any(sign in name for sign in "*?[") and not Path(name).exists()


def matching(pattern: str) -> list[Path]:
    """The runs whose names fit a shell pattern (``*``, ``?``, ``[12]``), by name.

    A pattern may begin with the folder of runs itself, as a shell would write it.

    Raises:
        UserError: there is none; names the runs there are.
    """
    folder = runs_folder()
    where, _, names = pattern.rpartition("/")
    known = known_runs()
    here = not where or Path(where).resolve() == folder.resolve()
    found = [path for path in known if here and fnmatchcase(path.name, names)]
    if not found:
        listed = " ".join(path.name for path in known) or "none"
        raise UserError(pattern, f"no run in {folder}/ has a name like that.", f"There: {listed}.")
    return found


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
    for mode, digits in product(settings.OLD_MODES, DIGITS):
        folder = runs_folder() / settings.run_name(config, digits, mode)
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
    """The settings the run was last asked for; see ``config_file``."""
    return settings.load(config_file(run), stored=True)


def config_file(run: Path) -> Path:
    """A run's config.yaml, whole: what it lacked would silently take its default.

    A file without a hash, as earlier versions wrote it, has to hold every setting.

    Raises:
        UserError: it was cut short or changed, or cannot be read.
    """
    path = run / CONFIG
    again = f"Give the settings again: vppo train --run {run.name} --config FILE --set ..."
    try:
        first, _, rest = path.read_bytes().partition(b"\n")
    except OSError as error:
        raise unreadable(path, error, "is missing.", again) from error
    if not first.startswith(MARK.encode()):
        missing = settings.not_given(path)
        if missing:
            some = ", ".join(missing[:3]) + (" ..." if len(missing) > 3 else "")
            raise UserError(str(path), f"is not whole: {len(missing)} settings are missing ({some}).", again)
    elif first.decode(errors="replace").split()[2:3] != [_text_hash(rest)]:
        settings.load(path, stored=True)  # which names the line, where it makes no sense in itself
        raise UserError(
            str(path),
            "was changed or cut short since it was written.",
            f"{again}; or, if it was changed on purpose and is whole, remove its first line.",
        )
    return path


def config_text(run: Path) -> str:
    """The run's config.yaml; "" if it has none, or a damaged one, which is not to be put back."""
    with contextlib.suppress(UserError), disk_errors(run / CONFIG):
        if is_there(run / CONFIG):
            return config_file(run).read_text(encoding="utf-8")
    return ""


def write_config(run: Path, config: Config) -> None:
    """Record the settings the run is asked for now, by who holds its lock."""
    if config_text(run) != (text := marked(config)):
        with disk_errors(run):
            make_folder(run)
        write_atomic(run / CONFIG, text)


def marked(config: Config) -> str:
    """What config.yaml holds, its hash included."""
    text = settings.dump(config)
    return f"{MARK}{_text_hash(text.encode())} of all that follows\n{text}"


def _text_hash(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()


STATE_DIGITS = 16
LARGEST = 2**62
"""Beyond any number in run.json: bytes, seconds, process ids."""

HERE_FOR_SURE_S = 600.0
"""A run on another machine, whose lock may not reach here, counts as running for so long after its
last sign."""


@dataclass
class State:
    """What a run is doing, for ``vppo status`` in another terminal.

    ``state`` is new, running, finished, idle (more to do), stopped or failed, and ``why`` what the error said.
    ``stage`` and ``step`` say at what, ``doing``, ``done`` and ``total`` how far inside it (``12 of 32
    groups``). ``time`` is when this was last known, in seconds since 1970, and ``updated`` the same for
    people. ``memory`` and ``gpu_memory`` (peak) are bytes. ``verified_s`` are the seconds that the process has
    spent on comparing what it read with what was committed. ``sha256`` has the first ``STATE_DIGITS`` of the
    others' hash.
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
    verified_s: float = 0.0
    why: str = ""
    sha256: str = ""

    damaged = False  # whether the file was there and made no sense: then nothing is known but the lock

    def silent_s(self) -> float:
        """Seconds since the last sign of life; 0 unless it is running."""
        return max(0.0, time.time() - self.time) if self.state == "running" and self.time else 0.0


def record_state(run: Path, state: str, stage: str, step: int, steps: int, **more: Any) -> None:
    """Write run.json, without waiting until it is on the disk.

    Args:
        more: further fields of ``State``.
    """
    text, now = time.strftime("%Y-%m-%d %H:%M:%S"), time.time()
    value = State(
        state,
        stage,
        step,
        steps,
        os.getpid(),
        socket.gethostname(),
        text,
        time=now,
        verified_s=round(spent.seconds, 3),
        **more,
    )
    write_atomic(run / STATE, json.dumps(sealed(asdict(value), STATE_DIGITS)), durable=False)


def read_state(run: Path) -> State:
    """What the run is doing; a run whose process is gone is ``stopped``, whatever it last wrote."""
    try:
        state = _state((run / STATE).read_bytes())
    except FileNotFoundError:
        return State("new")
    except OSError as error:
        raise unreadable(run / STATE, error, "is gone.", "Look again.") from error
    except (ValueError, RecursionError):
        state = State("stopped" if is_running(run) is None else "running")
        state.damaged = True
        return state
    if state.state == "running" and is_running(run) is None:
        elsewhere = state.host not in ("", socket.gethostname())
        if not (elsewhere and state.silent_s() < HERE_FOR_SURE_S):
            state.state = "stopped"
    return state


def _state(content: bytes) -> State:
    """Raises ValueError if it is not what ``record_state`` wrote."""
    found = json.loads(content)
    if not isinstance(found, dict) or "state" not in found:
        raise ValueError("no state")
    if SEAL in found and not intact(found, STATE_DIGITS):
        raise ValueError("changed since it was written")
    known = {field.name: found[field.name] for field in fields(State) if field.name in found}
    like = asdict(State(""))
    for name, value in known.items():
        number = type(value) in (int, float) and 0 <= value < LARGEST  # NaN is not
        fits = number if type(like[name]) is not str else isinstance(value, str)
        if not fits or (type(like[name]) is int and type(value) is not int):
            raise ValueError(f"{name} is {value!r}")
    return State(**known)


def as_made(config: Config, run: Path, *stages: str) -> Chain:
    """A run as it lies on disk, where earlier code made it: its keys hold the versions of that code; and where parts
    of one's own or data were changed since, or are not found from here, they are those of then.

    Today's counts for a stage, a part or data of which anything of today is there, or nothing at all.

    Args:
        stages: of ``VERSIONS``, those that are taken as they were made; others are today's.
    """
    now = versions_of(config)
    made = {name: _made(find(run, f"steps/0001/{name}-*"), now[name]) for name in TRAINING}
    today = RESULTS * now["sampling"] + now["grading"]
    answers = divmod(_made(find(run, "eval/*/*-*"), today), RESULTS)
    made |= dict(zip(ANSWERS, (*answers, _rewarded(config, run)), strict=True))
    trained = _manifests([*find(run, "prepare-*"), *find(run, "steps/0001/*-*"), *find(run, "checkpoints/*/*-*")])
    answered = _manifests(find(run, "eval/*/*-*")) if set(ANSWERS) <= {*stages} else []
    return Chain(config, run, now | {name: made[name] for name in stages}, trained, answered)


ABOUT = ("model.computed", SHORT_FLOATS)
"""What names in ``OUTSIDE`` begin with that do not stand for content, but for how it is computed or read."""


def kept(asked: Config, stored: Config, prepared: Step) -> dict[str, Any]:
    """Of sources that are not there any more, and named as they were: what the run's prepared data were made of.

    Args:
        stored: the settings that the run was last asked for.
        prepared: its data as they lie on disk.

    Returns:
        Settings of ``prepared``: nothing of a source that is there, whatever is in it now.
    """
    found: dict[str, Any] = {}
    for setting, names in OUTSIDE.items() if is_there(prepared.path) else ():
        if gone(asked, setting) and asked.value(setting) == stored.value(setting):
            held = {name: prepared.settings[name] for name in names if name in prepared.settings}
            if all(str(held[name]).startswith("content ") for name in held if not name.startswith(ABOUT)):
                found |= held
    return found


def _manifests(folders: Iterable[Path]) -> list[dict[str, Any]]:
    """Those that can be read, oldest first."""
    found = []
    for folder in folders:
        with contextlib.suppress(UserError, OSError):  # told where it is read for what it holds
            found.append(((folder / MANIFEST).stat().st_mtime, folder.name, read_manifest(folder)))
    return [one for _, _, one in sorted(found, key=lambda made: made[:2]) if isinstance(one.get("settings"), dict)]


def _rewarded(config: Config, run: Path) -> int:
    """Which ``VERSIONS["rewards"]`` made the evaluations that are there."""
    found = []
    for folder in find(run, "eval/*/*-*") if ":" in config.reward.function else ():
        with contextlib.suppress(UserError, AttributeError):
            found.append("reward.function" in read_manifest(folder).get("settings", {}))
    return versions_of(config)["rewards"] if any(found) or not found else 0


def _made(folders: Iterable[Path], today: int) -> int:
    found = set()
    for folder in folders:
        with contextlib.suppress(UserError):  # told where it is read for what it holds
            found.add(read_manifest(folder).get("version", today))
    found = {version for version in found if type(version) is int and version != OF_ONES_OWN}
    return today if today in found else max(found, default=today)


def outdated(chain: Chain) -> str:
    """Stages that another version of the code made, all of whose steps are to be made again; or ""."""
    made, now = as_made(chain.config, chain.run, *TRAINING).versions, versions_of(chain.config)
    return ", ".join(f"{name} (version {made[name]} -> {now[name]})" for name in TRAINING if made[name] != now[name])


def changed_versions(chain: Chain) -> str:
    """Packages (and commit) that differ from those the run was begun with; "" if none does."""
    manifest = chain.prepare.manifest() or {}
    then, now = manifest.get("provenance", {}), provenance()
    names = [name for name in then if name in now and then[name] != now[name]]
    return ", ".join(f"{name} {then[name]} (now {now[name]})" for name in names)


def made_with(chain: Chain) -> dict[str, str]:
    """What made a run, from its data to its newest step: versions by package, and the commit; "a, then b" where the
    run was begun by another. Empty of a run that is not begun.
    """
    folders = [chain.prepare.path, *(chain.update(row["step"]).path for row in metric_rows(chain)[-1:])]
    found: dict[str, str] = {}
    for folder in folders:
        if not (folder / MANIFEST).is_file():
            continue
        for name, value in read_manifest(folder).get("provenance", {}).items():
            before = found.get(name)
            found[name] = f"{before}, then {value}" if before and before != value else str(value)
    return found


def changed_shapes(chain: Chain) -> str:
    """Settings that reach a kernel's shape and differ from those of the newest steps; "" if none does.

    In float32 they change nothing that is worth a word.
    """
    if chain.config.model.dtype == "float32":
        return ""
    changed: dict[str, str] = {}
    for stage in (chain.rollout, chain.score, chain.update):
        made = [step for t in range(1, chain.config.run.steps + 1) if (step := stage(t)).path.is_dir()]
        then = (made[-1].manifest() or {}).get("shape", {}) if made else {}
        for name, value in then.items():
            if name in made[-1].shape and made[-1].shape[name] != value:
                changed[name] = f"{name} {value} (now {made[-1].shape[name]})"
    return ", ".join(changed.values())


def step_metrics(chain: Chain, step: int) -> dict[str, Any] | None:
    """One line of metrics.jsonl: a finished training step, names prefixed by stage."""
    row: dict[str, Any] = {"step": step}
    for made in (chain.rollout(step), chain.score(step), chain.update(step)):
        manifest = made.manifest()
        if manifest is None:
            return None
        row |= {f"{made.name}/{name}": value for name, value in manifest["metrics"].items()}
    return row


def metric_rows(chain: Chain, known: Sequence[dict[str, Any]] = ()) -> list[dict[str, Any]]:
    """The training steps on disk, a row each, up to the first that is missing; from the manifests.

    Args:
        known: the first of them, not to be read again.
    """
    rows = list(known)
    for step in range(len(rows) + 1, chain.config.run.steps + 1):
        row = step_metrics(chain, step)
        if row is None:
            break
        rows.append(row)
    return rows


def write_metrics(chain: Chain, known: Sequence[dict[str, Any]] = ()) -> list[dict[str, Any]]:
    """Bring metrics.jsonl up to date, whatever became of it; returns its rows.

    It is for other programs to read: nothing here does. It holds no times, so that equal runs have equal
    files; how long steps took is in their manifests.

    Args:
        known: as of ``metric_rows``.
    """
    path, rows = chain.run / METRICS, metric_rows(chain, known)
    lines = [json.dumps(row).encode() + b"\n" for row in rows]
    with disk_errors(path):
        here = path.read_bytes() if is_there(path) else b""
    if not here or here != b"".join(lines[: here.count(b"\n")]):
        write_atomic(path, b"".join(lines).decode())
    elif more := b"".join(lines)[len(here) :]:
        append_text(path, more.decode())
    return rows


class MetricsFile:
    """metrics.jsonl as a run grows."""

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        self._rows: list[dict[str, Any]] | None = None

    def after(self, step: Step) -> dict[str, Any]:
        """Bring it up to date -> the metrics of a training step that is whole now, by their names there."""
        if self._rows is None:  # not before: settings that cannot work leave the file alone
            self._rows = write_metrics(self.chain)
        index = step.index or 0
        if step.name != "update" or step != self.chain.update(index):
            return {}
        self._rows = write_metrics(self.chain, self._rows[: index - 1])
        return step_metrics(self.chain, index) or {}
