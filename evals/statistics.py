"""Intervals by the cluster bootstrap: questions are drawn again, each with all its samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.seeds import generator

RESAMPLES = 10_000


@dataclass(frozen=True)
class Interval:
    """A mean over questions and its 95 % confidence interval (percentile bootstrap)."""

    mean: float
    low: float
    high: float


def bootstrap(per_question: Sequence[float]) -> Interval:
    """The mean of one value per question, with its interval.

    Samples of one question are not independent, so the question is the unit that is drawn.
    Seeded: the same values always give the same interval.
    """
    values = np.asarray(per_question, dtype=np.float64)
    rng = generator(0, "bootstrap", len(values))
    means = np.concatenate([
        values[rng.integers(len(values), size=(500, len(values)))].mean(1)
        for _ in range(RESAMPLES // 500)
    ])  # fmt: skip
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(values.mean()), float(low), float(high))


def paired_difference(before: Sequence[float], after: Sequence[float]) -> Interval:
    """The mean of after - before over the same questions, with its interval."""
    if len(before) != len(after):
        raise ValueError(f"{len(before)} and {len(after)} questions cannot be paired")
    return bootstrap(np.subtract(after, before).tolist())
