"""Intervals by the cluster bootstrap: questions are drawn again, each with all its samples.

Samples of one question are not independent, so a question is drawn whole. Nor are questions made from
one original (the five versions of a MathVerse problem, the ten variants of a DynaMath seed): such a
cluster is drawn whole too. All intervals are 95 % percentile intervals of 10,000 resamples, and all
are seeded: the same values always give the same interval.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipelines.seeds import generator

RESAMPLES = 10_000
_BLOCK = 1 << 20  # draws held at once: 8 MiB, whatever the number of questions

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A mean over questions and its 95 % confidence interval (percentile bootstrap)."""

    mean: float
    low: float
    high: float


def bootstrap(values: Sequence[float], clusters: Sequence[Hashable] | None = None, stream: str = "") -> Interval:
    """The mean of one value per question, with its interval; arguments as of ``resampled``."""
    return interval(float(np.mean(values)), resampled(values, clusters, stream))


def resampled(values: Sequence[float], clusters: Sequence[Hashable] | None = None, stream: str = "") -> Array:
    """The means of 10,000 resamples of ``values``.

    Args:
        values: one per question, such as the fraction of its samples that are right.
        clusters: the cluster of each question; None: every question is its own. As many clusters are
            drawn as there are, so a resample's number of questions varies with their sizes, and its
            mean is the ratio of the two sums.
        stream: what is resampled. Two benchmarks with equally many clusters are drawn independently
            only if their streams differ; two models on one benchmark may share a stream.

    Raises:
        ValueError: there are no values, or not one cluster per value.
    """
    if clusters is None:
        return resampled_ratio(values, np.ones(len(values)), stream)
    if len(clusters) != len(values):
        raise ValueError(f"{len(clusters)} clusters do not fit {len(values)} values")
    number: dict[Hashable, int] = {}
    member = [number.setdefault(cluster, len(number)) for cluster in clusters]
    sizes = np.bincount(member).astype(np.float64)
    return resampled_ratio(np.bincount(member, weights=values), sizes, stream)


def resampled_ratio(above: ArrayLike, below: ArrayLike, stream: str = "") -> Array:
    """sum(above) / sum(below) of 10,000 resamples of the units both have an entry for (0 / 0 is 0).

    Raises:
        ValueError: there are no units.
    """
    above_N, below_N = np.asarray(above, np.float64), np.asarray(below, np.float64)
    count = len(above_N)
    if not count:
        raise ValueError("nothing to resample")
    equal = bool((below_N == below_N[0]).all())  # then the sum below is the same in every resample
    rng = generator(0, "bootstrap", count, *([stream] if stream else []))
    ratios, rows = [], max(1, _BLOCK // count)
    for start in range(0, RESAMPLES, rows):
        # Where the blocks end has no influence on what is drawn.
        drawn = rng.integers(count, size=(min(rows, RESAMPLES - start), count))
        tops = above_N[drawn].sum(1)
        bottoms = np.full(len(tops), below_N[0] * count) if equal else below_N[drawn].sum(1)
        ratios.append(np.divide(tops, bottoms, out=np.zeros_like(tops), where=bottoms != 0))
    return np.concatenate(ratios)


def interval(mean: float, resamples: Array) -> Interval:
    """The interval that holds the middle 95 % of ``resamples``."""
    low, high = np.quantile(resamples, [0.025, 0.975])
    return Interval(mean, float(low), float(high))


def average(resamples: Sequence[Array], means: Sequence[float]) -> Interval:
    """The unweighted mean of several benchmarks, with its interval.

    The benchmarks' questions have nothing to do with each other, so resample i of the average is the
    mean of everyone's resample i: draw them with different streams.

    Args:
        resamples: what ``resampled`` gave for each benchmark.
        means: their means.

    Raises:
        ValueError: there are none, or not one mean for each.
    """
    if not resamples or len(resamples) != len(means):
        raise ValueError(f"{len(resamples)} sets of resamples and {len(means)} means")
    return interval(float(np.mean(means)), np.mean(np.stack(resamples), axis=0))


def rate(above: ArrayLike, below: ArrayLike, stream: str, about: str) -> dict[str, Any]:
    """A benchmark's own score: sum(above) / sum(below) over its units (0 / 0 is 0), as reports hold it.

    Args:
        above: one per unit, such as a seed or a composite.
        below: likewise.
        stream: as of ``resampled``.
        about: what the score means.

    Returns:
        ``value`` and ``interval`` (fractions) and ``about``.
    """
    above_N, below_N = np.asarray(above, np.float64), np.asarray(below, np.float64)
    value = float(above_N.sum() / below_N.sum()) if below_N.any() else 0.0
    found = interval(value, resampled_ratio(above_N, below_N, stream))
    return {"value": value, "interval": [found.low, found.high], "about": about}
