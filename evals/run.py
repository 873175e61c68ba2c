"""Evaluate: sample what the journal lacks, then grade the journal.

Each sample is seeded by its question and number, so an interrupted evaluation, or one that grew by
samples or questions, ends with what an undisturbed one gives. Sampling needs the model; grading does
not, so a journal can be graded again by other graders (``vppo eval --regrade``).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.benchmarks.questions import read_questions
from evals.benchmarks.table import OWN
from evals.cells import EvalTask
from evals.grade import ANSWERS, grade, write_answers
from evals.journal import Entry, append, count, damage, mend_journal, prompt_digest, read_journal
from evals.numbers.scores import RIGHT_AS_PUBLISHED
from evals.profiles import PromptSettings
from pipelines.disk.records import RESULTS, Sample, SampleTable
from pipelines.disk.step import checked, is_there, unreadable, write_atomic
from pipelines.errors import UserError
from pipelines.grading.graders import GraderPool
from pipelines.watch import Watch

if TYPE_CHECKING:
    from pipelines.rollout.engine import Engine


def complete(
    cell: EvalTask,
    engine: Callable[[], Engine],
    batch_prompts: int,
    pool: GraderPool,
    training: PromptSettings | None,
    out: Path,
    watch: Watch,
    tensor_parallel: int = 1,
) -> dict[str, Any]:
    """Complete the cell's journal, grade it, and write results.json and answers.parquet to ``out``.

    Args:
        engine: makes the engine; called only if a response is missing.
        tensor_parallel: ranks that share one engine.
        training: how the run that trained the policy asks, to be reported beside; None: no run did.

    Returns:
        The results without their ``right``, for the manifest.
    """
    from pipelines.ranks.ranks import ranks

    table = questions(cell)
    sample_missing(cell, table, cache(engine), batch_prompts, watch, tensor_parallel)
    return ranks().on_main(lambda: grade_cell(cell, pool, training, out, watch))


def questions(cell: EvalTask) -> SampleTable:
    """The cell's questions.

    Raises:
        UserError: they are not on disk.
    """
    name = cell.how.benchmark
    if name not in OWN:
        return read_questions(cell.questions)
    path = cell.questions.path / OWN[name].file
    if not is_there(path):
        raise UserError(
            f"{name} questions",
            f"{cell.questions.path} has none.",
            "Prepare the data first (vppo prepare); glyphs needs data.source=glyphs.",
        )
    return SampleTable(path)


def check_questions(cell: EvalTask) -> None:
    """See that there are questions, before a model is loaded.

    Raises:
        UserError: there are none.
    """
    if not len(questions(cell)):
        raise UserError(cell.how.benchmark, "has no questions.", "Prepare the data again, or name others.")


def mended(cell: EvalTask, table: SampleTable, watch: Watch) -> dict[str, list[Entry]]:
    """The journal's entries, without those that are damaged or whose question is another one now."""
    if damaged := damage(cell.journal):
        watch.note(f"WARNING {damaged}; what is missing so is sampled again")
    journal = read_journal(cell.journal)
    asked = (table[index] for index, name in enumerate(table.ids) if name in journal)
    return mend_journal(cell.journal, journal, asked, cell.how.asking)


def sample_missing(
    cell: EvalTask,
    table: SampleTable,
    engine: Callable[[], Engine],
    batch_prompts: int,
    watch: Watch,
    tensor_parallel: int = 1,
) -> None:
    """Sample the responses that the journal does not have."""
    from pipelines.model.ragged import batches  # brings torch, which reading results does not need
    from pipelines.ranks.ranks import ranks

    everyone = ranks()
    names = table.ids[: cell.how.limit]
    samples = cell.how.samples
    journal = everyone.on_main(lambda: mended(cell, table, watch))
    done, total = count(journal, names, samples), len(names) * samples
    if done == total:
        return
    missing = [
        (index, len(journal.get(name, ()))) for index, name in enumerate(names) if len(journal.get(name, ())) < samples
    ]
    missing.sort(key=lambda place: place[1])
    for first, group in groupby(missing, key=lambda place: place[1]):
        sample = partial(_sampled, cell, first, engine())
        workers = everyone.workers(tensor_parallel)
        for part in batches([index for index, _ in group], batch_prompts * workers):
            watch.progress("responses", done, total)
            sampled = everyone.share([table[index] for index in part], sample, tensor_parallel)
            entries = [entry for responses in sampled for entry in responses]
            if everyone.main:
                append(cell.journal, entries)
            done += len(entries)
    watch.progress("responses", total, total)


def _sampled(cell: EvalTask, first: int, engine: Engine, rows: Sequence[Sample]) -> list[list[Entry]]:
    """Samples ``first`` to the last of these questions, in one call."""
    from pipelines.model.sampling import Sampling

    how, asking = cell.how, cell.how.asking
    sampling = Sampling(
        asking.temperature, asking.top_p, asking.top_k, asking.max_new_tokens, how.samples - first, how.seed, first
    )
    generated = engine.generate(list(rows), [(how.benchmark, row.id) for row in rows], sampling)
    return [
        [
            Entry(row.id, first + i, r.text, r.truncated, len(r.ids), prompt_digest(row, asking))
            for i, r in enumerate(responses)
        ]
        for row, responses in zip(rows, generated, strict=True)
    ]


def grade_cell(
    cell: EvalTask, pool: GraderPool, training: PromptSettings | None, out: Path, watch: Watch
) -> dict[str, Any]:
    """Grade the cell's journal; needs no model.

    Raises:
        UserError: the journal lacks responses.
    """
    table = questions(cell)
    rows = table.without_images()[: cell.how.limit]
    journal, samples = read_journal(cell.journal), cell.how.samples
    have, total = count(journal, [row.id for row in rows], samples), len(rows) * samples
    if have < total:
        made = cell.results.path
        first = f"Delete the folder {made}, its results. " if is_there(made) else ""
        raise UserError(
            cell.how.benchmark,
            f"the journal has {have} of {total} responses ({cell.journal}).",
            f"{first}Sample the others first: the same command without --regrade.",
        )
    entries = {row.id: journal[row.id][:samples] for row in rows}
    results, answers = grade(cell, rows, entries, pool, training, watch, table)
    if cell.revisions:
        results["revisions"] = cell.revisions
    write_answers(out / ANSWERS, answers)
    write_atomic(out / RESULTS, json.dumps(results, indent=1))
    return without_rows(results)


def read_results(folder: Path) -> dict[str, Any]:
    """The results in the folder of an evaluation, as they were committed.

    Raises:
        UserError: they are damaged, or are no results.
    """
    path = folder / RESULTS
    try:
        found: dict[str, Any] = json.loads(checked(path).read_bytes())
        if not {"benchmark", "questions", "samples", "right"} <= found.keys():
            raise ValueError("it lacks its fields")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise unreadable(
            path,
            error,
            f"is not what vppo eval wrote ({error}).",
            f"Delete the folder {folder}; it is made again when it is needed.",
        ) from error
    return found


def without_rows(results: dict[str, Any]) -> dict[str, Any]:
    """Results without what they hold question by question."""
    left_out = ("right", RIGHT_AS_PUBLISHED, "clusters_of", "asked")
    return {name: results[name] for name in results if name not in left_out}
