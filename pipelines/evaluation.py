"""Evaluations apart from training: of any checkpoint, beside a run that trains, or without a model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING

from evals.benchmarks import BENCHMARKS, OWN
from evals.profiles import matched
from evals.questions import gather
from pipelines.chain import JOURNALS, Chain
from pipelines.errors import UserError
from pipelines.graders import GraderPool, check_grader
from pipelines.lock import file_lock
from pipelines.step import Step, commit, disk_errors
from pipelines.watch import Watch

if TYPE_CHECKING:
    from pipelines.chain import Cell


def evaluate(chain: Chain, wanted: Chain, steps: Sequence[Step], watch: Watch) -> None:
    """Make these evaluations; every benchmark's questions are fetched before a model is loaded.

    Args:
        chain: the run on disk that the policies are taken from.
        wanted: the same with the settings asked for now.
    """
    gather(wanted.config, wanted.benchmarks, watch)
    from pipelines.session import Session, check_parts  # brings torch

    check_parts(wanted.config)
    with closing(Session(chain, watch)) as session:
        for step in steps:
            watch.stage(step.name, step.index or 0)
            with cell_lock(step), commit(step) as (out, metrics):
                metrics |= session.make(step, wanted.config, out)
            watch.finished(step.name, step.index or 0, metrics)


def regrade(chain: Chain, wanted: Chain, index: int, watch: Watch) -> list[Step]:
    """Grade the journals of step ``index`` again, without a model, and commit the results anew.

    Raises:
        UserError: a journal lacks responses, or a grader does not exist.
    """
    from evals.run import grade_cell

    settings = wanted.config
    for grader in settings.eval.graders:
        check_grader(grader, "eval.graders")
    gather(settings, wanted.benchmarks, watch)
    cells: list[Cell] = [chain.cell(index, name, settings) for name in wanted.benchmarks]
    for cell in cells:
        if not cell.journal.is_file():
            raise UserError(
                cell.how.benchmark, f"has no journal of these settings to grade ({cell.journal}).",
                "Sample first: the same command without --regrade.",
            )  # fmt: skip
    training = matched(chain.config) if index else None
    with GraderPool(settings.reward.workers, settings.reward.deadline) as pool:
        for cell in cells:
            step = cell.results
            watch.stage(step.name, index)
            with cell_lock(step), commit(step) as (out, metrics):
                metrics |= grade_cell(cell, pool, training, out, watch)
            watch.finished(step.name, index, metrics)
    return [cell.results for cell in cells]


@contextlib.contextmanager
def cell_lock(step: Step) -> Iterator[None]:
    """One process at a time evaluates a policy on a benchmark; steps of other kinds pass."""
    if step.name not in BENCHMARKS and step.name not in OWN:
        yield
        return
    path = step.parent / JOURNALS / f"{step.name}.lock"
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    where = f"{step.name} of {step.parent.parent.parent.name}, step {step.index}"
    with file_lock(path, where, "Another process evaluates it; wait for it to end."):
        yield
