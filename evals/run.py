"""Evaluate: sample, journal, grade, summarise.

Every finished batch of responses is appended to ``journal.jsonl`` and forced to the disk before the
next is sampled. An interrupted evaluation goes on after its last whole question; since each sample is
seeded by its question and number, the result is the one an undisturbed evaluation gives.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.statistics import Interval, bootstrap, paired_difference
from pipelines.config import EvalConfig
from pipelines.records import Sample
from pipelines.reward import RewardFunction
from pipelines.step import write_atomic
from pipelines.watch import Watch

if TYPE_CHECKING:
    from pipelines.engines import Engine

JOURNAL, RESULTS = "journal.jsonl", "results.json"


@dataclass(frozen=True)
class Entry:
    """One sampled response of the journal."""

    question: str
    sample: int
    response: str
    truncated: bool
    tokens: int


def evaluate(
    benchmark: str, questions: Sequence[Sample], engine: Engine, reward: RewardFunction,
    settings: EvalConfig, seed: int, out: Path, watch: Watch,
) -> dict[str, Any]:  # fmt: skip
    """Sample every question ``settings.samples`` times, grade, and write journal and results.

    Returns:
        The summary (also in results.json): accuracy, its interval, outcomes, settings.
    """
    from pipelines.ragged import batches  # brings torch, which reading results does not need
    from pipelines.sampling import Sampling

    journal = read_journal(out / JOURNAL, settings.samples)
    sampling = Sampling(
        settings.temperature, settings.top_p, settings.top_k, settings.max_new_tokens,
        settings.samples, seed,
    )  # fmt: skip
    missing = [question for question in questions if question.id not in journal]
    for part in batches(missing, settings.batch_prompts):
        watch.progress("questions", len(journal), len(questions))
        names: list[tuple[int | str, ...]] = [(benchmark, question.id) for question in part]
        generated = engine.generate(part, names, sampling)
        for question, responses in zip(part, generated, strict=True):
            journal[question.id] = [
                Entry(question.id, i, r.text, r.truncated, len(r.ids))
                for i, r in enumerate(responses)
            ]
        _append(out / JOURNAL, [e for question in part for e in journal[question.id]])
    watch.progress("questions", len(questions), len(questions))
    results = grade(benchmark, questions, journal, reward)
    results["sampling"] = asdict(sampling)
    write_atomic(out / RESULTS, json.dumps(results, indent=1, sort_keys=True))
    return {name: value for name, value in results.items() if name != "questions"}


def grade(
    benchmark: str, questions: Sequence[Sample], journal: dict[str, list[Entry]],
    reward: RewardFunction,
) -> dict[str, Any]:  # fmt: skip
    """Grade a complete journal."""
    entries = [entry for question in questions for entry in journal[question.id]]
    owners = [question for question in questions for _ in journal[question.id]]
    marks = reward([e.response for e in entries], owners, [e.truncated for e in entries])
    right: dict[str, list[bool]] = {question.id: [] for question in questions}
    for entry, mark in zip(entries, marks, strict=True):
        right[entry.question].append(mark.outcome == "correct")
    accuracy = bootstrap([sum(r) / len(r) for r in right.values()])
    return {
        "benchmark": benchmark,
        "accuracy": accuracy.mean,
        "interval": [accuracy.low, accuracy.high],
        "pass_at_k": sum(map(any, right.values())) / len(right),
        "outcomes": dict(sorted(Counter(mark.outcome for mark in marks).items())),
        "response_tokens_mean": sum(e.tokens for e in entries) / len(entries),
        "questions": {name: [int(x) for x in r] for name, r in right.items()},
    }


def compare(before: Path, after: Path) -> Interval:
    """The paired difference in accuracy between two evaluations of the same questions."""
    first, second = (json.loads((p / RESULTS).read_text())["questions"] for p in (before, after))
    shared = [name for name in first if name in second]
    means = [[sum(rows[n]) / len(rows[n]) for n in shared] for rows in (first, second)]
    return paired_difference(*means)


def read_journal(path: Path, samples: int) -> dict[str, list[Entry]]:
    """The questions that have all their samples; a line or question cut short is dropped.

    The file is rewritten to hold just those, so that what is appended next follows a whole line.
    """
    if not path.is_file():
        return {}
    found: dict[str, list[Entry]] = {}
    for line in path.read_bytes().split(b"\n")[:-1]:
        try:
            entry = Entry(**json.loads(line))
        except (ValueError, TypeError):
            break
        found.setdefault(entry.question, []).append(entry)
    whole = {name: entries for name, entries in found.items() if len(entries) == samples}
    write_atomic(path, "".join(_line(e) for entries in whole.values() for e in entries))
    return whole


def _append(path: Path, entries: Sequence[Entry]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(map(_line, entries)))
        file.flush()
        os.fsync(file.fileno())


def _line(entry: Entry) -> str:
    return json.dumps(asdict(entry)) + "\n"
