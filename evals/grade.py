"""Responses -> outcomes by every grader -> results: pure work on text, without a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from evals.benchmarks.questions import groups
from evals.benchmarks.table import BENCHMARKS
from evals.journal import Entry
from evals.numbers.scores import Answered, summarise
from evals.profiles import PromptSettings
from pipelines.disk.records import Sample
from pipelines.grading.answer import extract_answer
from pipelines.grading.graders import GraderPool
from pipelines.grading.reward import OUTCOMES, Outcome, outcomes_of
from pipelines.watch import Watch

if TYPE_CHECKING:
    from evals.cells import EvalTask

ANSWERS = "answers.parquet"
MOST_WITHOUT_VERDICT = 0.05
"""A larger share of answers without a verdict is warned of."""

PART = 2048
"""Answers graded between two reports of progress."""


def grade(
    cell: EvalTask, rows: Sequence[Sample], entries: Mapping[str, Sequence[Entry]], pool: GraderPool,
    training: PromptSettings | None, watch: Watch,
) -> tuple[dict[str, Any], pa.Table]:  # fmt: skip
    """Grade complete entries: (what results.json holds, the table of answers)."""
    how = cell.how
    flat = [entry for row in rows for entry in entries[row.id]]
    owners = [row for row in rows for _ in entries[row.id]]
    answers = [extract_answer(entry.response) for entry in flat]
    truncated = [entry.truncated for entry in flat]
    refused: dict[str, int] = {}
    marks = {}
    for grader in how.graders:
        before = pool.refused
        marks[grader] = _outcomes(answers, owners, truncated, pool, grader, watch)
        refused[grader] = pool.refused - before
    benchmark = BENCHMARKS.get(how.benchmark)
    summaries = {
        grader: summarise(benchmark, _answered(rows, how.samples, answers, marks[grader]))
        for grader in how.graders
    }
    first = how.graders[0]
    right = [outcome == "correct" for outcome in marks[first]]
    about = _about_rows(cell)
    about["warnings"] += _without_verdict(marks) + _refused(refused)
    results: dict[str, Any] = {
        "benchmark": how.benchmark, "title": benchmark.title if benchmark else how.benchmark,
        "accuracy": summaries[first]["accuracy"], "interval": summaries[first]["interval"],
        "questions": len(rows), "samples": how.samples, "profile": how.profile,
        **about,
        "settings": {**asdict(how.asking), "seed": how.seed, "limit": how.limit},
        "training": asdict(training) if training else None,
        "policy": cell.results.inputs["policy"],
        "grader": first,
        "graders": {
            grader: {
                "accuracy": summary["accuracy"], "interval": summary["interval"],
                "outcomes": {name: marks[grader].count(name) for name in OUTCOMES},
            }
            for grader, summary in summaries.items()
        },
        "outcomes": {name: marks[first].count(name) for name in OUTCOMES},
        "response_tokens_mean": sum(entry.tokens for entry in flat) / len(flat),
        **summaries[first],
        "right": {
            row.id: [int(x) for x in right[i * how.samples : (i + 1) * how.samples]]
            for i, row in enumerate(rows)
        },
    }  # fmt: skip
    if benchmark and benchmark.cluster:
        results["clusters_of"] = {
            row.id: groups(row).get(benchmark.cluster, row.id) for row in rows
        }
    columns = {
        "question": [entry.question for entry in flat],
        "sample": [entry.sample for entry in flat],
        "answer": [(answer or "").encode(errors="replace").decode() for answer in answers],
        "tokens": [entry.tokens for entry in flat],
        **marks,
    }
    return results, pa.table(columns)


def _without_verdict(marks: Mapping[str, Sequence[Outcome]]) -> list[str]:
    """A grader that often comes to no verdict is more likely broken than the model."""
    found = []
    for grader, outcomes in marks.items():
        graded = [outcome for outcome in outcomes if outcome in ("correct", "wrong", "timed_out")]
        lost = graded.count("timed_out")
        if lost > MOST_WITHOUT_VERDICT * len(graded):
            found.append(
                f"{grader} came to no verdict on {lost} of {len(graded)} answers: it failed, or was "
                "too slow"
            )
    return found


def _refused(counts: Mapping[str, int]) -> list[str]:
    """Answers, or golds, that would have been evaluated as Python."""
    return [
        f"{grader}: {count} {'answer was' if count == 1 else 'answers were'} wrong without a look, as "
        "they or their golds are no formula and could be code"
        for grader, count in counts.items()
        if count
    ]


def write_answers(path: Path, answers: pa.Table) -> None:
    """One row a response: its answer, and each grader's outcome in a column of the grader's name."""
    pq.write_table(answers, path, compression="zstd", write_page_checksum=True)


def _outcomes(
    answers: Sequence[str | None], owners: Sequence[Sample], truncated: Sequence[bool],
    pool: GraderPool, grader: str, watch: Watch,
) -> list[Outcome]:  # fmt: skip
    found: list[Outcome] = []
    for start in range(0, len(answers), PART):
        watch.progress(f"answers, {grader}", start, len(answers))
        part = slice(start, start + PART)
        found += outcomes_of(answers[part], owners[part], truncated[part], pool, grader)
    watch.progress(f"answers, {grader}", len(answers), len(answers))
    return found


def _answered(
    rows: Sequence[Sample], samples: int, answers: Sequence[str | None], marks: Sequence[Outcome]
) -> list[Answered]:
    found = []
    for i, row in enumerate(rows):
        part = slice(i * samples, (i + 1) * samples)
        right = [mark == "correct" for mark in marks[part]]
        given = [answer or "" for answer in answers[part]]
        found.append(Answered(row.id, row.kind, groups(row), right, given))
    return found


def _about_rows(cell: EvalTask) -> dict[str, Any]:
    """How many rows the data set had, and what the loader warned of."""
    benchmark = BENCHMARKS.get(cell.how.benchmark)
    if benchmark is None:
        return {"rows": None, "warnings": []}
    manifest = cell.questions.manifest()
    assert manifest is not None  # the questions were read
    metrics = manifest["metrics"]
    rows = {
        "all": metrics["rows"], "kept": metrics["kept"],
        "expected_all": benchmark.rows, "expected_kept": benchmark.kept,
    }  # fmt: skip
    named = f"{cell.how.benchmark}: "
    return {"rows": rows, "warnings": [text.removeprefix(named) for text in metrics["warnings"]]}
