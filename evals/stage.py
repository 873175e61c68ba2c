"""Evaluations: of any checkpoint, of a run that trains or beside it, or of a journal without a model."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.benchmarks.questions import check, gather
from evals.benchmarks.table import OWN, canonical, check_own
from evals.cells import EvalTask, cell
from evals.profiles import PromptSettings, matched
from evals.run import check_questions, complete, grade_cell, mended, questions
from pipelines.chain import JOURNALS, Chain
from pipelines.disk.lock import file_lock
from pipelines.disk.part_sources import check_imported
from pipelines.disk.step import Step, commit
from pipelines.errors import UserError
from pipelines.grading.graders import GraderPool, check_grader
from pipelines.ranks.ranks import ranks
from pipelines.stages import Ask, Live, Metrics, make
from pipelines.watch import Watch

if TYPE_CHECKING:
    from pipelines.config.schema import Config
    from pipelines.live import Session
    from pipelines.rollout.engine import Engine


__all__ = ("canonical", "cell", "check_inputs", "evaluate", "evaluate_all", "evaluate_one", "gather")
"""What runs ask of evaluations (pipelines/stages.py)."""


def check_inputs(config: Config) -> None:
    """What an evaluation would refuse of its data: cheap, and without the hub.

    Raises:
        UserError: a benchmark that the data cannot serve; a local copy, a test set or a column of it that is missing.
    """
    names = canonical(config.eval.benchmarks, config)
    check_own(names, config)
    for name in names:
        if name not in OWN:
            check(name, config)


def evaluate(ask: Ask, live: Live, out: Path) -> Metrics:
    """A policy and a benchmark's questions -> answers.parquet, results.json; the journal grows beside them.

    Raises:
        UserError: the engine gave what is no response, or a grader does not exist.
    """
    asked = live.chain.cell(ask.step, ask.name, ask.config)
    return complete(
        asked,
        lambda: engine(live, ask.step, asked.how.asking),
        ask.config.eval.batch_prompts,
        live.graders,
        matched(live.chain.config) if ask.step else None,
        out,
        ask.watch,
        ask.config.rollout.tensor_parallel,
    )


def engine(live: Live, step: int, asking: PromptSettings) -> Engine:
    """The engine with the policy after ``step`` updates, which shows and instructs as is asked for."""
    same = matched(live.config).images == asking.images
    return live.engine(step, None if same else asking)


def evaluate_all(chain: Chain, wanted: Chain, steps: Sequence[Step], watch: Watch, *, force: bool = False) -> None:
    """Make these evaluations, of questions that are gathered.

    Args:
        chain: the run on disk that the policies are taken from.
        wanted: the same with the settings asked for now.
        force: make again what another process has made meanwhile.
    """
    for grader in wanted.config.eval.graders:
        check_grader(grader, "eval.graders")
    for step in steps:
        check_questions(chain.cell(step.index or 0, step.name, wanted.config))
    from pipelines.checks import check_parts  # brings torch
    from pipelines.live import Session

    check_parts(wanted.config)
    check_imported(wanted.config, steps)
    with closing(Session(chain, watch, wanted.config)) as live:
        for step in steps:
            watch.stage(step.name, step.index or 0)
            metrics = evaluate_one(live, step, wanted.config, watch, force=force)
            watch.finished(step.name, step.index or 0, metrics)


def evaluate_one(live: Session, step: Step, config: Config, watch: Watch, *, force: bool = False) -> dict[str, Any]:
    """Make and commit one evaluation; waits where another process is at the same one."""
    everyone = ranks()
    with contextlib.ExitStack() as stack:
        everyone.on_main(lambda: stack.enter_context(cell_lock(step, watch)))
        manifest = None if force else everyone.on_main(step.manifest)
        if manifest is not None:
            return dict(manifest["metrics"])
        if not everyone.main:
            with tempfile.TemporaryDirectory() as thrown_away:
                return make(live.ask(step, config), live, Path(thrown_away))
        with commit(step) as (out, metrics):
            metrics |= make(live.ask(step, config), live, out)
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
    cells: list[EvalTask] = [chain.cell(index, name, settings) for name in wanted.benchmarks]
    for one in cells:
        if not one.journal.is_file():
            raise UserError(
                one.how.benchmark,
                f"has no journal of these settings to grade ({one.journal}).",
                "Sample first: the same command without --regrade.",
            )
    check_imported(settings, [one.results for one in cells])
    training = matched(chain.config) if index else None
    with GraderPool(settings.reward.workers, settings.reward.deadline) as pool:
        for one in cells:
            step = one.results
            watch.stage(step.name, index)
            with cell_lock(step, watch), commit(step) as (out, metrics):
                mended(one, questions(one), watch)
                metrics |= grade_cell(one, pool, training, out, watch)
            watch.finished(step.name, index, metrics)
    return [one.results for one in cells]


@contextlib.contextmanager
def cell_lock(step: Step, watch: Watch) -> Iterator[None]:
    """One process at a time evaluates a policy on a benchmark; another one waits."""
    path = step.parent / JOURNALS / f"{step.name}.lock"
    where = f"{step.name} of {step.parent.parent.parent.name}, step {step.index},"
    with file_lock(path, where, "", wait=True, tell=watch.note, over=step.parent):
        yield
