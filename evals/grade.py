"""Responses -> outcomes by every grader, and as published -> results: work on text, without a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from evals.benchmarks.published import GRADER
from evals.benchmarks.questions import groups, options
from evals.benchmarks.table import BENCHMARKS, OWN
from evals.journal import Entry, question_digest
from evals.numbers.majority import normalise
from evals.numbers.scores import AS_PUBLISHED, RIGHT_AS_PUBLISHED, Answered, mean_accuracy, summarise
from evals.numbers.statistics import bootstrap
from evals.profiles import Evaluation, PromptSettings
from pipelines.disk.records import Sample, reward_column
from pipelines.errors import UserError
from pipelines.grading.answer import choice_letters, extract_answer
from pipelines.grading.graders import GraderPool
from pipelines.grading.reward import OUTCOMES, Outcome, OwnReward, golds, outcomes_of, published_outcomes
from pipelines.watch import Watch

if TYPE_CHECKING:
    from evals.cells import EvalTask

ANSWERS = "answers.parquet"

FORMAT = 2
"""Of results.json. 1, of earlier versions, tells no format, and has no verdict as published."""

MOST_WITHOUT_VERDICT = 0.05
"""A larger share of answers without a verdict is warned of."""

PART = 2048
"""Answers graded between two reports of progress."""


def grade(
    cell: EvalTask,
    rows: Sequence[Sample],
    entries: Mapping[str, Sequence[Entry]],
    pool: GraderPool,
    training: PromptSettings | None,
    watch: Watch,
    whole: Sequence[Sample],
) -> tuple[dict[str, Any], pa.Table]:
    """Grade complete entries: (what results.json holds, the table of answers).

    Args:
        rows: the questions, without their images.
        whole: the same with them, and perhaps more after them.
    """
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
    first = how.graders[0]
    published = _published(flat, owners, pool, watch)
    by_content = _by_content(answers, owners, marks[first], pool)
    benchmark = cell.benchmark
    summaries = {
        grader: summarise(benchmark, _answered(rows, how.samples, answers, marks[grader])) for grader in how.graders
    }
    theirs = mean_accuracy(benchmark, _answered(rows, how.samples, answers, published))
    about = _about_rows(cell)
    about["warnings"] += _without_verdict(marks) + _refused(refused)
    results: dict[str, Any] = {
        "format": FORMAT,
        "benchmark": how.benchmark,
        "title": benchmark.title if benchmark else how.benchmark,
        "accuracy": summaries[first]["accuracy"],
        "interval": summaries[first]["interval"],
        "questions": len(rows),
        "samples": how.samples,
        "profile": how.profile,
        **about,
        "settings": {**how.asking.as_dict(), "seed": how.seed, "limit": how.limit},
        "training": training.as_dict() if training else None,
        "policy": cell.results.inputs["policy"],
        "grader": first,
        "graders": {
            grader: {
                "accuracy": summary["accuracy"],
                "interval": summary["interval"],
                "outcomes": {name: marks[grader].count(name) for name in OUTCOMES},
            }
            for grader, summary in summaries.items()
        },
        "outcomes": {name: marks[first].count(name) for name in OUTCOMES},
        AS_PUBLISHED: {
            "accuracy": theirs.mean,
            "interval": [theirs.low, theirs.high],
            "outcomes": {name: published.count(name) for name in OUTCOMES},
        },
        "differ": _differ(marks[first], published, by_content),
        "response_tokens_mean": sum(entry.tokens for entry in flat) / len(flat),
        **summaries[first],
        "right": _right(rows, how.samples, marks[first]),
        RIGHT_AS_PUBLISHED: _right(rows, how.samples, published),
    }
    if benchmark and how.benchmark not in BENCHMARKS:  # of which reports know nothing
        results["unit"] = benchmark.unit
    if how.benchmark not in BENCHMARKS:  # a name that anyone's questions may have
        hashes = {row.id: question_digest(whole[i]) for i, row in enumerate(rows)}
        results["asked"] = {"folder": cell.questions.path.name, "hashes": hashes}
    if benchmark and benchmark.cluster:
        results["clusters_of"] = {row.id: groups(row).get(benchmark.cluster, row.id) for row in rows}
    rewards = {}
    if how.reward:
        as_trained = marks[first]
        if not how.choice_rule:
            as_trained = _published(flat, owners, pool, watch, first)
        rewards = _rewards(how, whole, flat, as_trained, watch)
        results["rewards"] = {name: _mean(values, how.samples) for name, values in rewards.items()}
    columns = {
        "question": [entry.question for entry in flat],
        "sample": [entry.sample for entry in flat],
        "answer": [(answer or "").encode(errors="replace").decode() for answer in answers],
        "tokens": [entry.tokens for entry in flat],
        **marks,
        AS_PUBLISHED: published,
        "by_content": pa.array(by_content, pa.bool_()),
        **{reward_column(name): pa.array(values, pa.float32()) for name, values in rewards.items()},
    }
    return results, pa.table(columns)


def _without_verdict(marks: Mapping[str, Sequence[Outcome]]) -> list[str]:
    """A grader that often comes to no verdict is more likely broken than the model."""
    found = []
    for grader, outcomes in marks.items():
        graded = [outcome for outcome in outcomes if outcome in ("correct", "wrong", "timed_out")]
        lost = graded.count("timed_out")
        if lost > MOST_WITHOUT_VERDICT * len(graded):
            found.append(f"{grader} came to no verdict on {lost} of {len(graded)} answers: it failed, or was too slow")
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
    """One row a response: its answer, each grader's outcome in a column of the grader's name, the outcome
    as published, and whether it is the right option's text (None: not known).
    """
    pq.write_table(answers, path, compression="zstd", write_page_checksum=True)


def _outcomes(
    answers: Sequence[str | None],
    owners: Sequence[Sample],
    truncated: Sequence[bool],
    pool: GraderPool,
    grader: str,
    watch: Watch,
) -> list[Outcome]:
    found: list[Outcome] = []
    for start in range(0, len(answers), PART):
        watch.progress(f"answers, {grader}", start, len(answers))
        part = slice(start, start + PART)
        found += outcomes_of(answers[part], owners[part], truncated[part], pool, grader)
    watch.progress(f"answers, {grader}", len(answers), len(answers))
    return found


def _published(
    entries: Sequence[Entry], owners: Sequence[Sample], pool: GraderPool, watch: Watch, grader: str = GRADER
) -> list[Outcome]:
    found: list[Outcome] = []
    for start in range(0, len(entries), PART):
        watch.progress("answers, as published", start, len(entries))
        part = entries[start : start + PART]
        texts, cut = [entry.response for entry in part], [entry.truncated for entry in part]
        found += published_outcomes(texts, owners[start : start + PART], cut, pool, grader)
    watch.progress("answers, as published", len(entries), len(entries))
    return found


def _rewards(
    how: Evaluation, questions: Sequence[Sample], entries: Sequence[Entry], outcomes: Sequence[Outcome], watch: Watch
) -> dict[str, list[float]]:
    """What a reward function of one's own returns, by name; a question's responses come together."""
    samples, found = how.samples, dict[str, list[float]]()
    reward = OwnReward(how.reward)
    step = samples * max(1, PART // samples)
    for start in range(0, len(entries), step):
        watch.progress("rewards", start, len(entries))
        part = entries[start : start + step]
        owners = [questions[(start + i) // samples] for i in range(len(part))]
        try:
            lists = reward([entry.response for entry in part], owners, outcomes[start : start + step])
        except UserError as error:
            place = f"{error.place}, on {how.benchmark}, questions {owners[0].id} to {owners[-1].id}"
            kept = (
                "Mend it. vppo eval then goes on with what was trained; vppo train would train anew by what is mended."
            )
            raise UserError(place, error.problem, kept) from error
        for name, values in lists.items():
            found.setdefault(name, []).extend(values)
    watch.progress("rewards", len(entries), len(entries))
    return found


def _mean(values: Sequence[float], samples: int) -> dict[str, Any]:
    """The mean over questions, with its interval."""
    means = [sum(values[i : i + samples]) / samples for i in range(0, len(values), samples)]
    found = bootstrap(means)
    return {"value": found.mean, "interval": [found.low, found.high]}


def _by_content(
    answers: Sequence[str | None], owners: Sequence[Sample], marks: Sequence[Outcome], pool: GraderPool
) -> list[bool | None]:
    """Whether an answer that is wrong, and names no option, is the text of the right one.

    None where that is not known: no multiple choice, or the options' texts are not.
    """
    texts = {id(owner): _right_text(owner) for owner in owners}
    found: list[bool | None] = [None if texts[id(owner)] is None else False for owner in owners]
    asked = []
    for i, (answer, owner, mark) in enumerate(zip(answers, owners, marks, strict=True)):
        text = texts[id(owner)]
        if text is not None and answer is not None and mark != "correct":
            named = choice_letters(answer)
            if named is None or not named <= set(_letters(owner)):
                asked.append((i, (answer, text, "value")))
    verdicts = pool.grade([item for _, item in asked], "mathruler")
    for (i, (answer, text, _)), verdict in zip(asked, verdicts, strict=True):
        found[i] = bool(verdict) or normalise(answer).lower() == normalise(text).lower()
    return found


def _letters(sample: Sample) -> list[str]:
    return [chr(ord("A") + i) for i in range(len(options(sample)))]


def _right_text(sample: Sample) -> str | None:
    """The text of a choice's right option, if it is one and known, and more than its letter."""
    named = choice_letters(golds(sample)[0]) if sample.kind == "choice" else None
    texts = dict(zip(_letters(sample), options(sample), strict=True))
    (letter,) = named if named and len(named) == 1 else [""]
    text = texts.get(letter, "").strip()
    return text if text and text != letter else None


def _differ(
    ours: Sequence[Outcome], published: Sequence[Outcome], by_content: Sequence[bool | None]
) -> dict[str, int | None]:
    """How many answers the two verdicts tell apart, by direction, and how many are right by content."""
    right = [(a == "correct", b == "correct") for a, b in zip(ours, published, strict=True)]
    known = [one for one in by_content if one is not None]
    return {
        "ours_only": right.count((True, False)),
        "as_published_only": right.count((False, True)),
        "by_content": sum(known) if known else None,
    }


def _right(rows: Sequence[Sample], samples: int, marks: Sequence[Outcome]) -> dict[str, list[int]]:
    """Question -> 1 for each of its samples that is right, 0 for others."""
    right = [int(mark == "correct") for mark in marks]
    return {row.id: right[i * samples : (i + 1) * samples] for i, row in enumerate(rows)}


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
    benchmark = cell.benchmark
    if cell.how.benchmark in OWN:
        return {"rows": None, "warnings": []}
    manifest = cell.questions.manifest()
    assert manifest is not None  # the questions were read
    metrics = manifest["metrics"]
    rows = {
        "all": metrics["rows"],
        "kept": metrics["kept"],
        "expected_all": benchmark.rows if benchmark else None,
        "expected_kept": benchmark.kept if benchmark else None,
    }
    named = f"{cell.how.benchmark}: "
    warnings = [text.removeprefix(named) for text in metrics["warnings"]]
    if benchmark and benchmark.note and cell.how.benchmark not in BENCHMARKS:
        warnings.append(benchmark.note)
    return {"rows": rows, "warnings": warnings}
