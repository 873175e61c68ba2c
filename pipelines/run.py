"""The story of a run: prepare; then rollout, score, update, checkpoint in turn; then evaluate.

A step that is on disk under its key is skipped, anything else is made and committed: starting,
resuming, extending and redoing are one loop. Torch is imported when the first step needs it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines import checkpoint, runs
from pipelines.chain import Chain, is_evaluation
from pipelines.config.schema import Config
from pipelines.disk.files import disk_errors, sweep, write_atomic
from pipelines.disk.lock import run_lock
from pipelines.disk.step import Step, commit
from pipelines.errors import UserError
from pipelines.prepare.sources import check_sources
from pipelines.ranks.ranks import ranks
from pipelines.stages import of_evaluations
from pipelines.tracking.recorder import recording
from pipelines.tracking.trackers import tracking
from pipelines.watch import Watch


def train(chain: Chain, watch: Watch, *, until: int | None = None) -> list[Step]:
    """Make every step of the run that is not on disk, up to training step ``until``.

    Returns:
        The steps that were made; none if there was nothing to do.
    """
    missing = _missing(_story(chain, until))
    if missing:
        ranks().on_main(lambda: check_inputs(chain))
    ranks().on_main(lambda: sweep(chain.run))
    told_otherwise = ranks().on_main(
        lambda: runs.config_text(chain.run) != runs.marked(chain.config)
    )
    if missing or told_otherwise:
        with held(chain.run, watch), configured(chain, missing):
            if not missing:
                return []
            if changed := runs.changed_versions(chain):
                watch.note(f"this run was begun with {changed}")
            if outdated := runs.outdated(chain):
                watch.note(f"what earlier code made is made again: {outdated}")
            if shapes := runs.changed_shapes(chain):
                watch.note(
                    f"its steps so far were made with {shapes}: in bfloat16, last bits differ"
                )
            _check_model(chain.config, missing)
            if missing[0] == chain.prepare:  # first, as wrong data is the commonest mistake
                perform(chain, chain.config, missing[:1], watch)
            # Now, not to learn it after the training.
            ranks().on_main(lambda: of_evaluations("gather")(chain.config, chain.benchmarks, watch))
            # Once more: the questions' commits, part of the evaluations' keys, are known only now.
            missing = missing[: missing[0] == chain.prepare] + _missing(_story(chain, until))
            perform(chain, chain.config, [s for s in missing if s != chain.prepare], watch)
    return missing


def _story(chain: Chain, until: int | None) -> list[Step]:
    whole = until is None or until >= chain.config.run.steps
    return list(chain.all() if whole else chain.opening(until or 0))


def check_inputs(chain: Chain) -> None:
    """What the run would refuse of its data, before it begins: cheap, and without the hub.

    Raises:
        UserError: a benchmark that the data cannot serve; a source, a column or a local copy is missing.
    """
    of_evaluations("check_inputs")(chain.config)
    if chain.prepare.manifest() is None:
        check_sources(chain.config.data)


def train_stage(
    chain: Chain, wanted: Chain, stage: str, steps: Iterable[int], watch: Watch, *, force: bool
) -> list[Step]:
    """Make one stage again, from what the run has on disk, with the settings of ``wanted``.

    Args:
        chain: the run as it is on disk: the inputs, and the policy's history.
        wanted: the same run with the settings asked for now.
        steps: training steps; ignored by ``prepare``.
        force: make steps again that are already there.
    """
    ranks().on_main(lambda: sweep(chain.run))
    if stage == "eval":  # whose keys hold the questions' commits
        ranks().on_main(lambda: of_evaluations("gather")(wanted.config, wanted.benchmarks, watch))
    asked = {s.path: s for index in steps for s in stage_steps(chain, wanted, stage, index)}
    missing = list(asked.values()) if force else _missing(list(asked.values()))
    if missing and stage == "eval":
        of_evaluations("evaluate")(chain, wanted, missing, watch, force=force)
    elif missing:
        _check_model(wanted.config, missing)
        with held(chain.run, watch):
            # A run that is begun by one of its stages has the settings of that stage.
            if ranks().main and not runs.config_text(chain.run):
                runs.write_config(chain.run, chain.config)
            perform(chain, wanted.config, missing, watch)
    return missing


def _check_model(config: Config, steps: Sequence[Step]) -> None:
    """Before what costs: see that the model can be sampled from, trained, and written with a checkpoint."""
    made = {step.name for step in steps}
    if not made & {"rollout", "score", "update", "checkpoint"}:
        return
    from pipelines.live import check_sampler, check_saves, check_trainer  # brings torch

    if "rollout" in made:
        ranks().on_main(lambda: check_sampler(config))
    if "update" in made:
        check_trainer(config)
    ranks().on_main(lambda: check_saves(config))


def _missing(steps: Sequence[Step]) -> list[Step]:
    """Those that are not on disk; every rank gets what rank 0 finds."""
    found = ranks().on_main(lambda: [i for i, s in enumerate(steps) if s.manifest() is None])
    return [steps[i] for i in found]


@contextlib.contextmanager
def held(run: Path, watch: Watch) -> Iterator[None]:
    """Hold the run's lock, which rank 0 does for all."""

    def take() -> None:
        stack.enter_context(run_lock(run, watch.note))

    with contextlib.ExitStack() as stack, disk_errors(run):
        ranks().on_main(take)
        yield


@contextlib.contextmanager
def configured(chain: Chain, missing: Sequence[Step]) -> Iterator[None]:
    """Record the settings that the run is asked for, by who holds its lock.

    Where nothing can be made with them, the run keeps those that it had.
    """
    if not ranks().main:
        yield
        return
    before = runs.config_text(chain.run)
    runs.write_config(chain.run, chain.config)
    try:
        yield
    except UserError:
        if before and not any(step.path.is_dir() for step in missing):
            write_atomic(chain.run / runs.CONFIG, before)
        raise


@contextlib.contextmanager
def committed(step: Step) -> Iterator[tuple[Path, dict[str, Any]]]:
    """``commit`` on rank 0, which alone writes; every rank goes on when the step is on disk."""
    if ranks().main:
        with commit(step) as made:
            yield made
    else:
        yield step.path, {}
    ranks().barrier()


def stage_steps(chain: Chain, wanted: Chain, stage: str, index: int) -> list[Step]:
    """The steps of one stage: settings from ``wanted``, inputs from ``chain``."""
    if stage == "prepare":
        return [wanted.prepare]
    if stage == "eval":
        return [chain.cell(index, name, wanted.config).results for name in wanted.benchmarks]
    new, old = getattr(wanted, stage)(index), getattr(chain, stage)(index)
    return [replace(new, inputs=old.inputs)]


def perform(chain: Chain, config: Config, steps: Sequence[Step], watch: Watch) -> None:
    """Make and commit these steps, in order, with these settings; keep the run's state readable."""
    from pipelines.live import Session, check_parts  # brings torch

    check_parts(config)
    main = ranks().main
    with (
        recording(chain, watch) as watch,
        tracking(chain, config, steps, watch) as tracked,
        closing(Session(chain, watch, config)) as session,
    ):
        for step in steps:
            index = step.index or 0
            watch.stage(step.name, index)
            if is_evaluation(step):
                metrics = of_evaluations("evaluate_one")(session, step, config, watch)
            else:
                with committed(step) as (out, metrics):
                    metrics |= session.make(step, config, out)
            # Not before: settings that cannot work leave the file alone.
            if main and step == steps[0]:
                rows = runs.write_metrics(chain)
            if main and step.name == "update" and step == chain.update(index):
                rows = runs.write_metrics(chain, rows[: index - 1])
                metrics |= runs.step_metrics(chain, index) or {}
            if main and step.name in ("checkpoint", "validation"):
                checkpoint.prune(chain, index)
            tracked.made(step)
            watch.finished(step.name, index, metrics)
