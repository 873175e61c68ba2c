"""Experiment trackers: TensorBoard, Weights & Biases, trackio, MLflow, or one's own by import path.

Rank 0 tells each tracker once of every training step and evaluation, when it is on disk. What a tracker
was told is listed in the run's folder by the steps' keys, so that a run that is resumed tells what is
missing and nothing twice, a tracker that joins late hears of all steps, and replayed updates, which are
not new, are not told. A tracker that fails is told of no more until the run is started again; the run
itself goes on, and metrics.jsonl has everything in any case. Torch-free.
"""

from __future__ import annotations

import contextlib
import importlib.util
import secrets
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pipelines.chain import Chain, is_evaluation
from pipelines.config.resolve import find_part
from pipelines.config.schema import Config
from pipelines.disk.files import append_text, disk_errors, make_folder, write_atomic
from pipelines.disk.step import Step
from pipelines.errors import LockLost, UserError
from pipelines.ranks.ranks import ranks
from pipelines.tracking import backends
from pipelines.tracking.base import TrackedRun, Tracker
from pipelines.tracking.names import flat, metrics_of
from pipelines.watch import Watch

FOLDER = "trackers"


TRACKERS: dict[str, Callable[[TrackedRun], Tracker]] = {
    "tensorboard": backends.TensorBoard,
    "wandb": backends.WandB,
    "trackio": backends.Trackio,
    "mlflow": backends.MLflow,
}
"""Trackers by name, each an extra of the package and the name of the module that it needs; an import
path to a callable TrackedRun -> Tracker works as well."""


def check_trackers(config: Config) -> None:
    """See that the trackers that the settings name can be used.

    Raises:
        UserError: there is no such tracker, or its package is not installed.
    """
    for name in config.run.trackers:
        find_part("run.trackers", name, TRACKERS)
        if name in TRACKERS and importlib.util.find_spec(name) is None:
            raise UserError(
                f"run.trackers: {name}",
                f"the package {name} is not installed.",
                f"pip install 'vppo[{name}]', or leave it out: --set run.trackers=[].",
            )


@contextlib.contextmanager
def tracking(chain: Chain, config: Config, steps: Sequence[Step], watch: Watch) -> Iterator[Tracked]:
    """The trackers that ``config`` names, open while ``steps`` are made."""
    everyone, tracked = ranks(), Tracked(chain, watch)
    if any(step.name == "update" or is_evaluation(step) for step in steps):
        everyone.on_main(lambda: tracked.start(config.run.trackers))
    try:
        yield tracked
    finally:
        tracked.close()


class Tracked:
    """A run's trackers; none until ``start``."""

    def __init__(self, chain: Chain, watch: Watch) -> None:
        self.chain, self.watch = chain, watch
        self._open: dict[str, Tracker] = {}
        self._told: dict[str, set[str]] = {}

    def start(self, names: Sequence[str]) -> None:
        """Open these, and tell each of the steps on disk that it has not heard of.

        Raises:
            UserError: one cannot be used as things are.
        """
        steps = [step for step in self.chain.all() if self._has_metrics(step)] if names else []
        for name in dict.fromkeys(names):
            told = self._told[name] = _read(self._list(name))
            factory = find_part("run.trackers", name, TRACKERS)
            with self._forgiven(name, but=(UserError,)):
                self._open[name] = factory(
                    TrackedRun(
                        self.chain.run, run_id(self.chain.run), flat(self.chain.config), _replaced_from(told, steps)
                    )
                )
            for step in steps:
                if step.path.is_dir():
                    self._tell(name, step)

    def made(self, step: Step) -> None:
        """Tell of a step that was just committed, if it is one of the run's that has metrics."""
        for name in list(self._open):
            if self._has_metrics(step):
                self._tell(name, step)

    def close(self) -> None:
        """End all trackers."""
        for name, tracker in list(self._open.items()):
            with self._forgiven(name):
                tracker.close()
        self._open = {}

    def _tell(self, name: str, step: Step) -> None:
        label = _label(step)
        if name not in self._open or label in self._told[name]:
            return
        with self._forgiven(name):
            self._open[name].log(step.index or 0, metrics_of(self.chain, step))
            append_text(self._list(name), label + "\n")
            self._told[name].add(label)

    def _has_metrics(self, step: Step) -> bool:
        """Whether trackers are told of it: of the run's own updates and evaluations."""
        index = step.index or 0
        if step.name == "update":
            return step == self.chain.update(index)
        return is_evaluation(step) and step == self.chain.eval(index, step.name)

    def _list(self, name: str) -> Path:
        return self.chain.run / FOLDER / f"{name.replace(':', '-')}.txt"

    @contextlib.contextmanager
    def _forgiven(self, name: str, but: tuple[type[Exception], ...] = ()) -> Iterator[None]:
        """A tracker that fails is dropped; that is told once, and costs the run nothing else.

        Args:
            but: errors to raise all the same.
        """
        try:
            yield
        except LockLost:
            raise
        except but:
            raise
        except (Exception, SystemExit) as error:
            broken = self._open.pop(name, None)
            why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            self.watch.note(
                f"WARNING tracker {name} failed and is told no more ({why}). The run goes on; "
                "metrics.jsonl has everything, and what is missing is told when it is resumed."
            )
            if broken is not None:
                with contextlib.suppress(Exception, SystemExit):
                    broken.close()


def run_id(run: Path) -> str:
    """The id under which trackers know the run: made once, and kept in its folder."""
    path = run / FOLDER / "id"
    if path.is_file():
        return path.read_text(encoding="utf-8").strip()
    with disk_errors(path):
        make_folder(path.parent)
    write_atomic(path, f"{run.name}-{secrets.token_hex(4)}\n")
    return run_id(run)


def _label(step: Step) -> str:
    return f"{step.name} {step.index or 0} {step.key[:16]}"


def _read(path: Path) -> set[str]:
    """What a tracker was told; a line that a crash cut short is no step's."""
    return set(path.read_text(encoding="utf-8").splitlines()) if path.is_file() else set()


def _replaced_from(told: set[str], steps: Sequence[Step]) -> int | None:
    """The first update that the tracker was told of and that is another one now."""
    known = {tuple(label.split()[:2]) for label in told}
    changed = [
        step.index or 0
        for step in steps
        if step.name == "update" and (step.name, str(step.index)) in known and _label(step) not in told
    ]
    return min(changed, default=None)
