"""What one benchmark's marks amount to: accuracy, pass@k, majority, breakdowns, its own scores."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from math import comb
from typing import Any, Protocol

import numpy as np

from evals.numbers.majority import majority, vote
from evals.numbers.statistics import Interval, fraction

AS_PUBLISHED, RIGHT_AS_PUBLISHED = "as_published", "right_as_published"
"""Keys of results: what the verdict as published amounts to, and its marks by question."""


class Measured(Protocol):
    """What of a benchmark its numbers need (a ``Benchmark`` of evals/benchmarks has it)."""

    @property
    def title(self) -> str: ...
    @property
    def cluster(self) -> str: ...
    @property
    def breakdowns(self) -> tuple[str, ...]: ...
    @property
    def levels(self) -> tuple[str, ...]: ...
    @property
    def scores(self) -> Any: ...


@dataclass(frozen=True)
class Answered:
    """One question with its marked samples."""

    id: str
    kind: str  # "value", "choice" or "fact"
    groups: dict[str, str]  # what breakdowns, clusters and the benchmark's own scores are read from
    right: list[bool]  # of each sample
    answers: list[str]  # of each sample; "" where none was found

    @property
    def accuracy(self) -> float:
        return sum(self.right) / len(self.right)


def summarise(benchmark: Measured | None, rows: Sequence[Answered]) -> dict[str, Any]:
    """The numbers of one benchmark; all are fractions, intervals are [low, high].

    Args:
        benchmark: None for own data, which has neither clusters nor breakdowns.
        rows: its questions, all with equally many samples.

    Returns:
        accuracy, interval, cluster ("question" where no row has the benchmark's), clusters, pass_at_k,
        majority_at_k, breakdowns, scores.

    Raises:
        ValueError: there are no questions, or not equally many samples.
    """
    sizes = {len(row.right) for row in rows} | {len(row.answers) for row in rows}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(f"every question needs equally many samples, found {sorted(sizes)}")
    cluster = benchmark.cluster if benchmark else ""
    accuracy = mean_accuracy(benchmark, rows)
    return {
        "accuracy": accuracy.mean,
        "interval": [accuracy.low, accuracy.high],
        "cluster": cluster if any(row.groups.get(cluster) for row in rows) else "question",
        "clusters": len(set(clusters(rows, cluster))),
        "pass_at_k": pass_at_k(rows),
        "majority_at_k": {str(*sizes): majority_accuracy(rows)},
        "breakdowns": _breakdowns(rows, benchmark) if benchmark else {},
        "scores": benchmark.scores(rows) if benchmark and benchmark.scores else {},
    }


def mean_accuracy(benchmark: Measured | None, rows: Sequence[Answered]) -> Interval:
    """The accuracy of all questions, with its interval over the benchmark's clusters."""
    cluster, stream = (benchmark.cluster, benchmark.title) if benchmark else ("", "")
    return _accuracy(rows, cluster, stream)


def clusters(rows: Iterable[Answered], group: str) -> list[Hashable]:
    """The cluster of each question: its ``group``, or itself where it has none."""
    return [row.groups.get(group) or ("alone", row.id) for row in rows]


def in_order(levels: Iterable[str], known: Sequence[str] = ()) -> list[str]:
    """The levels of a group as people list them: known ones, then numbers, then the alphabet."""

    def key(level: str) -> tuple[int, float, str]:
        if level in known:
            return (0, known.index(level), level)
        return (1, float(level), level) if level.isdecimal() else (2, 0.0, level)

    return sorted(levels, key=key)


def pass_at_k(rows: Sequence[Answered]) -> dict[str, float]:
    """The probability that one of k samples is right, for k = 1, 2, 4 ... and all n.

    The unbiased estimate from n samples, c of them right: 1 - C(n - c, k) / C(n, k)
    (Chen et al., arXiv 2107.03374, equation 1), averaged over the questions.
    """
    n = len(rows[0].right)
    powers = [1 << i for i in range(n.bit_length())]
    return {
        str(k): sum(1 - comb(n - sum(row.right), k) / comb(n, k) for row in rows) / len(rows)
        for k in sorted({*powers, n})
        if k <= n
    }


def majority_accuracy(rows: Sequence[Answered]) -> float:
    """How often the most frequent of a question's answers is right (``evals.numbers.majority``)."""
    return float(np.mean([majority([vote(a, row.kind) for a in row.answers], row.right) for row in rows]))


def _breakdowns(rows: Sequence[Answered], benchmark: Measured) -> dict[str, dict[str, Any]]:
    """Of each group: {level: its accuracy, interval and number of questions}, in order."""
    result: dict[str, dict[str, Any]] = {}
    for group in benchmark.breakdowns:
        members: dict[str, list[Answered]] = {}
        for row in rows:
            if group in row.groups:
                members.setdefault(row.groups[group], []).append(row)
        result[group] = {}
        for level in in_order(members, benchmark.levels):
            stream = f"{benchmark.title}/{group}/{level}"
            found = _accuracy(members[level], benchmark.cluster, stream)
            result[group][level] = {
                "accuracy": found.mean,
                "interval": [found.low, found.high],
                "questions": len(members[level]),
            }
    return result


def _accuracy(rows: Sequence[Answered], cluster: str, stream: str) -> Interval:
    return fraction([row.accuracy for row in rows], clusters(rows, cluster), stream)
