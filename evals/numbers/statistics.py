"""Intervals by the cluster bootstrap: questions are drawn again, each with all its samples.

Samples of one question are not independent, so a question is drawn whole. Nor are questions made from
one original (the five versions of a MathVerse problem, the ten variants of a DynaMath seed): such a
cluster is drawn whole too. All intervals are 95 % percentile intervals of 10,000 resamples, and all
are seeded: the same values always give the same interval.

Training runs that differ in their seed are a second level: ``over_seeds`` draws them too. Runs and questions
are crossed (every run answers all questions), so the questions of a resample are the same for all its
runs: Owen, The pigeonhole bootstrap, Annals of Applied Statistics 1 (2007).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
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


def fraction(values: Sequence[float], clusters: Sequence[Hashable] | None = None, stream: str = "") -> Interval:
    """The same of values from 0 to 1, such as accuracies, which may all be 0, or all be 1 (``unanimous``)."""
    units = len(values) if clusters is None else len(set(clusters))
    return unanimous(bootstrap(values, clusters, stream), units)


def unanimous(found: Interval, units: int) -> Interval:
    """What n units without an exception leave open, of which resamples, all the same, say nothing.

    Values from 0 to 1 of mean m are above 0 with a probability of at least m, so all n are 0 with at most
    (1 - m)^n: 95 % intervals end at 1 - 0.025^(1/n), Clopper and Pearson's bound, as they begin at 0.025^(1/n)
    where all are 1. Of clusters that differ in size it is about that.

    Args:
        found: an interval from 0 to 0 or from 1 to 1; any other is returned as it is.
        units: how many were drawn: questions, or clusters of them.
    """
    open_end = 1 - 0.025 ** (1 / units)
    if found.low == found.high == 0.0:
        return Interval(found.mean, 0.0, open_end)
    return Interval(found.mean, 1 - open_end, 1.0) if found.low == found.high == 1.0 else found


def resampled(values: ArrayLike, clusters: Sequence[Hashable] | None = None, stream: str = "") -> Array:
    """The means of 10,000 resamples of ``values``.

    Args:
        values: one per question, such as the fraction of its samples that are right: [N]; or a row for each of
            several runs, [S, N], whose resamples then hold the same questions: [S, 10,000].
        clusters: the cluster of each question; None: every question is its own. As many clusters are
            drawn as there are, so a resample's number of questions varies with their sizes, and its
            mean is the ratio of the two sums.
        stream: what is resampled. Two benchmarks with equally many clusters are drawn independently
            only if their streams differ; two models on one benchmark may share a stream.

    Raises:
        ValueError: there are no values, or not one cluster per value.
    """
    values = np.asarray(values, np.float64)
    count = values.shape[-1]
    if clusters is None:
        return resampled_ratio(values, np.ones(count), stream)
    if len(clusters) != count:
        raise ValueError(f"{len(clusters)} clusters do not fit {count} values")
    if not count:
        raise ValueError("nothing to resample")
    number: dict[Hashable, int] = {}
    member = [number.setdefault(cluster, len(number)) for cluster in clusters]
    sizes = np.bincount(member).astype(np.float64)
    sums = np.apply_along_axis(lambda row: np.bincount(member, weights=row), -1, values)
    return resampled_ratio(sums, sizes, stream)


def resampled_ratio(above: ArrayLike, below: ArrayLike, stream: str = "") -> Array:
    """sum(above) / sum(below) of 10,000 resamples of the units both have an entry for (0 / 0 is 0).

    Args:
        above: [N], or [S, N] for several sums over the same units.
        below: [N].

    Raises:
        ValueError: there are no units.
    """
    above_N, below_N = np.asarray(above, np.float64), np.asarray(below, np.float64)
    count = len(below_N)
    if not count:
        raise ValueError("nothing to resample")
    equal = bool((below_N == below_N[0]).all())  # then the sum below is the same in every resample
    rng = generator(0, "bootstrap", count, *([stream] if stream else []))
    ratios, rows = [], max(1, _BLOCK // above_N.size)
    for start in range(0, RESAMPLES, rows):
        # Where the blocks end has no influence on what is drawn.
        drawn = rng.integers(count, size=(min(rows, RESAMPLES - start), count))
        tops = np.take(above_N, drawn, axis=-1).sum(-1)
        bottoms = np.full(len(drawn), below_N[0] * count) if equal else below_N[drawn].sum(1)
        ratios.append(np.divide(tops, bottoms, out=np.zeros_like(tops), where=bottoms != 0))
    return np.concatenate(ratios, axis=-1)


def over_seeds(means_SR: Array, means_S: ArrayLike, freedom: int, stream: str = "") -> Array:
    """Resamples of the mean over seeds: the questions' resamples, with seeds drawn again as well.

    A run's mean differs from another seed's by what the seeds do, and by what was sampled of each question.
    The questions' resamples have the latter already, so half of it is taken from the variance of the drawn seeds'
    deviations, down to none (all of it would be right on average, but of few seeds too much too often). A resample
    of few seeds varies too little, by (S - 1) / S, and an estimated variance asks for Student's t instead of the
    normal distribution: deviations are stretched by both (Hesterberg, What Teachers Should Know About the
    Bootstrap, The American Statistician 69 (2015)). tests/evals/test_groups.py has how often it holds the truth.

    Args:
        means_SR: ``resampled`` of S runs that differ in their seed: [S, 10,000]. One run: its resamples.
        means_S: the runs' means, or their paired differences.
        freedom: degrees of freedom that the seeds leave: all runs less the number of groups of them.
        stream: what is drawn; two groups are drawn independently only if their streams differ.
    """
    mean_S = np.asarray(means_S, np.float64)
    middle_R, count = means_SR.mean(0), len(mean_S)
    spread = float(mean_S.var(ddof=1)) if count > 1 else 0.0
    sampled = float((means_SR - middle_R).var(axis=1).sum()) / max(count - 1, 1)
    if spread <= sampled / 2:
        return middle_R
    left = 1 - sampled / 2 / spread
    stretch = math.sqrt(left * count / (count - 1)) * student(freedom) / NormalDist().inv_cdf(0.975)
    drawn_RS = generator(0, "seeds", count, stream).integers(count, size=(RESAMPLES, count))
    return middle_R + stretch * (mean_S - mean_S.mean())[drawn_RS].mean(1)


STUDENT = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)


def student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t; beyond 10 degrees of freedom by its expansion
    (Abramowitz and Stegun, 26.7.5), to 0.0003.
    """
    if freedom <= len(STUDENT):
        return STUDENT[freedom - 1]
    z, n = NormalDist().inv_cdf(0.975), freedom
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    return z + first / n + second / n**2 + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)


def interval(mean: float, resamples: Array) -> Interval:
    """The interval that holds the middle 95 % of ``resamples``."""
    low, high = np.quantile(resamples, [0.025, 0.975])
    return Interval(mean, float(low), float(high))


def average(resamples: Sequence[Array], means: Sequence[float], units: Sequence[int] = ()) -> Interval:
    """The unweighted mean of several benchmarks, with its interval.

    The benchmarks' questions have nothing to do with each other, so resample i of the average is the
    mean of everyone's resample i: draw them with different streams.

    Args:
        resamples: what ``resampled`` gave for each benchmark.
        means: their means.
        units: of accuracies, how many units each has (``unanimous``); of anything else, none.

    Raises:
        ValueError: there are none, or not one mean for each.
    """
    if not resamples or len(resamples) != len(means):
        raise ValueError(f"{len(resamples)} sets of resamples and {len(means)} means")
    found = interval(float(np.mean(means)), np.mean(np.stack(resamples), axis=0))
    # k benchmarks of n units each, all 0, leave open what k n units do: log(1 - m) is concave in m.
    return unanimous(found, len(units) * min(units)) if units else found


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
    if below_N.any() and ((above_N >= 0) & (above_N <= below_N)).all():  # a share of its units
        found = unanimous(found, int((below_N > 0).sum()))
    return {"value": value, "interval": [found.low, found.high], "about": about}
