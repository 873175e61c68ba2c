"""What comes before the first step: what would be refused of the data, the run's lock and its settings.

Torch-free.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipelines import runs
from pipelines.chain import Chain
from pipelines.config.schema import Config
from pipelines.disk.files import check_owned, disk_errors, find, remove, write_atomic
from pipelines.disk.lock import LOCK, run_lock
from pipelines.disk.step import Step
from pipelines.errors import UserError
from pipelines.grading.reward import check_keys
from pipelines.prepare.sources import check_sources
from pipelines.ranks.ranks import ranks
from pipelines.stages import of_evaluations
from pipelines.watch import Watch
from pipelines.words import counted


def check_inputs(chain: Chain) -> None:
    """What the run would refuse of its data and keys, before it begins: cheap, and without the hub.

    Raises:
        UserError: a benchmark that the data cannot serve; a source, a column or a local copy is missing; a key that
            no reward has.
    """
    if chain.prepare.manifest() is None:
        check_sources(chain.config.data)
    check_keys(chain.config)
    of_evaluations("check_inputs")(chain.config)


def check_costly(config: Config, steps: Sequence[Step]) -> None:
    """What the model would be refused for after hours, where steps need it (pipelines/checks.py)."""
    if any(step.name in ("rollout", "score", "update", "checkpoint") for step in steps):
        from pipelines.checks import check_model  # brings torch

        check_model(config, steps)


@contextlib.contextmanager
def held(run: Path, watch: Watch) -> Iterator[None]:
    """Hold the run's lock, which rank 0 does for all; see ``_if_refused``."""

    def take() -> bool:
        stack.enter_context(run_lock(run, watch.note))
        return {path.name for path in run.iterdir()} <= {LOCK}

    with contextlib.ExitStack() as stack:
        with disk_errors(run):
            new = ranks().on_main(take)
        with _if_refused(run, new=new), disk_errors(run):
            yield


@contextlib.contextmanager
def _if_refused(run: Path, *, new: bool) -> Iterator[None]:
    """A new run of which no step could be made leaves no folder: there is nothing to go on with.

    One with anything else in it stays as it is: an evaluation, which needs no lock of the run, may be at work there.
    """
    try:
        yield
    except UserError:
        if new and ranks().main:
            check_owned(run)
            with contextlib.suppress(OSError):
                _remove_new(run)
        raise


def _remove_new(run: Path) -> None:
    """Remove a run that holds nothing but what a command begins it with.

    The lock goes last of its files, while it is held: whoever begins the run from then on has a lock of its own.

    Raises:
        OSError: somebody has put something there just now.
    """
    begun = [run / name for name in (runs.STATE, runs.CONFIG, LOCK)]
    partials = find(run, "prepare-*.partial")  # which are made under the run's lock
    found = [path for path in find(run, "**/*") if not any(path.is_relative_to(one) for one in partials)]
    folders = [path for path in found if path.is_dir() and not path.is_symlink()]
    if {*found} - {*folders} <= {*begun}:
        for path in reversed(folders):
            path.rmdir()
        for path in [*partials, *begun]:
            remove(path)
        run.rmdir()


@contextlib.contextmanager
def configured(chain: Chain, missing: Sequence[Step]) -> Iterator[None]:
    """Record the settings that the run is asked for, by who holds its lock; see ``trying``."""
    with trying(chain.run, chain.config, missing):
        if ranks().main:
            runs.write_config(chain.run, chain.config)
        yield


@contextlib.contextmanager
def trying(run: Path, config: Config, missing: Sequence[Step]) -> Iterator[None]:
    """Where nothing can be made with other settings than the run has, it keeps those; and is as finished."""
    before = {runs.CONFIG: runs.config_text(run)}
    with contextlib.suppress(UserError):
        if runs.read_state(run).state == "finished":
            before[runs.STATE] = (run / runs.STATE).read_text(encoding="utf-8")
    try:
        yield
    except UserError:
        others = before[runs.CONFIG] not in ("", runs.marked(config))
        if ranks().main and others and not any(step.path.is_dir() for step in missing):
            for name, text in before.items():
                write_atomic(run / name, text)
        raise


def tell_uneven(config: Config, watch: Watch) -> None:
    """Say where a training step's groups make no whole update batches: the last optimizer step weighs fewer more."""
    prompts, batch = config.rollout.prompts_per_step, config.update.batch_prompts
    if prompts > batch and (rest := prompts % batch):
        steps = counted(prompts // batch + 1, "optimizer step")
        watch.note(
            f"update.batch_prompts {batch}, rollout.prompts_per_step {prompts}: of a training step's {steps} "
            f"the last has {counted(rest, 'group')}"
        )


def tell_changes(chain: Chain, watch: Watch) -> None:
    """Say what is no longer as it was when the run was begun."""
    if changed := runs.changed_versions(chain):
        watch.note(f"this run was begun with {changed}")
    if outdated := runs.outdated(chain):
        watch.note(f"what earlier code made is made again: {outdated}")
    if shapes := runs.changed_shapes(chain):
        watch.note(f"its steps so far were made with {shapes}: in bfloat16, last bits differ")
