"""Evaluations apart from training: of any checkpoint, beside a run that trains, or without a model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

from evals.benchmarks import BENCHMARKS, OWN
from evals.profiles import matched
from evals.questions import gather
from evals.run import check_questions, grade_cell, mended, questions
from pipelines.chain import JOURNALS, Chain
from pipelines.errors import UserError
from pipelines.graders import GraderPool, check_grader
from pipelines.lock import file_lock
from pipelines.ranks import ranks
from pipelines.step import Step, commit
from pipelines.watch import Watch

if TYPE_CHECKING:
    from pipelines.chain import Cell
    from pipelines.config import Config
    from pipelines.session import Session


def evaluate(
    chain: Chain, wanted: Chain, steps: Sequence[Step], watch: Watch, *, force: bool = False
) -> None:
    """Make these evaluations; every benchmark's questions are there before a model is loaded.

    Args:
        chain: the run on disk that the policies are taken from.
        wanted: the same with the settings asked for now.
        force: make again what another process has made meanwhile.
    """
    for grader in wanted.config.eval.graders:
        check_grader(grader, "eval.graders")
    ranks().on_main(lambda: gather(wanted.config, wanted.benchmarks, watch))
    for step in steps:
        check_questions(chain.cell(step.index or 0, step.name, wanted.config))
    from pipelines.session import Session, check_parts  # brings torch

    check_parts(wanted.config)
    with closing(Session(chain, watch, wanted.config)) as session:
        for step in steps:
            watch.stage(step.name, step.index or 0)
            metrics = evaluate_one(session, step, wanted.config, watch, force=force)
            watch.finished(step.name, step.index or 0, metrics)


def is_evaluation(step: Step) -> bool:
    """Whether a step holds the results of a benchmark."""
    return step.name in BENCHMARKS or step.name in OWN


def evaluate_one(
    session: Session, step: Step, config: Config, watch: Watch, *, force: bool = False
) -> dict[str, Any]:
    """Make and commit one evaluation; waits where another process is at the same one."""
    everyone = ranks()
    with contextlib.ExitStack() as stack:
        everyone.on_main(lambda: stack.enter_context(cell_lock(step, watch)))
        manifest = None if force else everyone.on_main(step.manifest)
        if manifest is not None:
            return dict(manifest["metrics"])
        if not everyone.main:
            return session.make(step, config, step.path)
        with commit(step) as (out, metrics):
            metrics |= session.make(step, config, out)
        return metrics


def regrade(chain: Chain, wanted: Chain, index: int, watch: Watch) -> list[Step]:
    """Grade the journals of step ``index`` again, without a model, and commit the results anew.

    Raises:
        UserError: a journal lacks responses, or a grader does not exist.
    """
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
            with cell_lock(step, watch), commit(step) as (out, metrics):
                mended(cell, questions(cell), watch)
                metrics |= grade_cell(cell, pool, training, out, watch)
            watch.finished(step.name, index, metrics)
    return [cell.results for cell in cells]


@contextlib.contextmanager
def cell_lock(step: Step, watch: Watch) -> Iterator[None]:
    """One process at a time evaluates a policy on a benchmark; another one waits."""
    path = step.parent / JOURNALS / f"{step.name}.lock"
    where = f"{step.name} of {step.parent.parent.parent.name}, step {step.index},"
    with file_lock(path, where, "", wait=True, tell=watch.note, over=step.parent):
        yield
