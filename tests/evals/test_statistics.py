"""Intervals: draws, clusters, streams and averages against closed forms worked out by hand."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.numbers.statistics import RESAMPLES, average, bootstrap, fraction, rate, resampled, resampled_ratio
from pipelines.seeds import generator

fractions = st.integers(0, 8).map(lambda right: right / 8)


def coins(count: int, stream: str = "") -> np.ndarray:
    """Resamples of ``count`` questions, every other one right."""
    return resampled([float(i % 2) for i in range(count)], stream=stream)


# --- questions alone ------------------------------------------------------------------------------


def test_equal_values_leave_no_doubt():
    interval = bootstrap([0.25] * 10, [0, 0, 0, 1, 1, 2, 3, 4, 5, 5])
    assert (interval.mean, interval.low, interval.high) == (0.25, 0.25, 0.25)


def test_the_interval_of_many_coins_by_hand():
    # 400 questions, half right: the standard error is sqrt(0.25 / 400) = 0.025, and 95 % lie
    # within 1.96 of it: 0.451 .. 0.549.
    interval = bootstrap([0.0, 1.0] * 200)
    assert interval.mean == 0.5
    assert interval.low == pytest.approx(0.451, abs=0.003)
    assert interval.high == pytest.approx(0.549, abs=0.003)
    assert bootstrap([0.0, 1.0] * 200) == interval  # seeded


def test_a_resample_draws_as_many_questions_as_there_are():
    # Drawn in blocks of 2**20 // 700 rows, of which 10,000 is no multiple: as if drawn at once.
    values = np.arange(700) / 7
    drawn = generator(0, "bootstrap", 700).integers(700, size=(RESAMPLES, 700))
    assert resampled(values.tolist()).tolist() == pytest.approx(values[drawn].mean(1).tolist())


@pytest.mark.parametrize("count", [1, 12, 300])
def test_answers_without_an_exception_leave_something_open(count):
    """Clopper and Pearson's bound: the accuracy at which none of n right has a probability of 2.5 %."""
    none, every = fraction([0.0] * count), fraction([1.0] * count)
    assert (none.mean, none.low, every.mean, every.high) == (0, 0, 1, 1)
    assert (1 - none.high) ** count == pytest.approx(0.025)
    assert every.low == pytest.approx(1 - none.high)
    clustered = fraction([0.0] * 3 * count, [i // 3 for i in range(3 * count)])
    assert clustered == none
    assert rate([0] * count, [1] * count, "", "")["interval"] == [none.low, none.high]
    assert fraction([0.5, *[0.0] * count]) == bootstrap([0.5, *[0.0] * count])
    assert rate([2] * count, [1] * count, "", "")["interval"] == [2, 2]  # no share
    assert bootstrap([0.0] * count).high == 0  # of a reward, whose range nobody knows


@pytest.mark.parametrize("units", [[2] * 8, [12, 40, 700], [300] * 4])
def test_benchmarks_without_an_exception_leave_no_larger_average_open(units):
    high = average([np.zeros(9)] * len(units), [0.0] * len(units), units).high
    # All accuracies under which nothing but zeros has a probability of 2.5 %: what each takes of its logarithm.
    taken = -math.log(0.025) * np.random.default_rng(0).dirichlet(np.full(len(units), 0.5), 20_000)
    averages = (1 - np.exp(-taken / np.array(units))).mean(1)
    assert averages.max() <= high
    even = (1 - np.exp(math.log(0.025) / len(units) / min(units))).item()
    assert high == pytest.approx(even)  # which is reached where all are as small


def test_the_memory_of_a_bootstrap_is_bounded():
    # All 15,271 questions at once would be 10,000 x 15,271 x 8 bytes = 1.2 GB.
    tracemalloc.start()
    coins(15_271)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40e6


# Upper bounds of the sampling error, in points: right or wrong by a coin in each of 8 samples, so
# 100 * sqrt(0.25 / (8 * questions)). LogicVista: 50 / sqrt(3576) = 0.836.
SAMPLING_ERRORS = [
    (447, 0.84),
    (601, 0.72),
    (1730, 0.43),
    (1740, 0.42),
    (2000, 0.40),
    (2180, 0.38),
    (2907, 0.33),
    (3666, 0.29),
]


@pytest.mark.parametrize(("questions", "points"), SAMPLING_ERRORS)
def test_sampling_errors_of_the_eight_benchmarks(questions, points):
    tosses = generator(3, "tosses", questions).integers(2, size=(questions, 8))
    drawn = resampled(tosses.mean(1).tolist())
    # The spread of 447 values is known to 1 / sqrt(2 * 447) = 3.3 % only; allow three times that.
    assert 100 * drawn.std() == pytest.approx(points, rel=0.1)


@given(st.lists(fractions, min_size=1, max_size=12))
@settings(deadline=None, max_examples=40)
def test_an_interval_holds_its_mean_and_stays_among_the_values(values):
    interval = bootstrap(values)
    assert min(values) <= interval.low <= interval.high <= max(values)
    assert interval.low - 1e-12 <= interval.mean <= interval.high + 1e-12


def test_nothing_to_resample():
    for call in (lambda: resampled([]), lambda: resampled([], []), lambda: resampled_ratio([], [])):
        with pytest.raises(ValueError, match="nothing to resample"):
            call()


# --- clusters -------------------------------------------------------------------------------------


def test_a_cluster_counts_as_one():
    # 100 problems in five versions that are all right or all wrong: 100 coins, not 500.
    # Standard error sqrt(0.25 / 100) = 0.05, where 500 coins have sqrt(0.25 / 500) = 0.022.
    values = [float(i // 5 % 2) for i in range(500)]
    assert resampled(values, [i // 5 for i in range(500)]).std() == pytest.approx(0.05, rel=0.03)
    assert resampled(values).std() == pytest.approx(0.0224, rel=0.03)


def test_clusters_of_unequal_size_by_hand():
    # One cluster of three right questions, one of a wrong one: two draws give both right ones (1),
    # one of each (3/4), both wrong ones (0), with probabilities 1/4, 1/2, 1/4.
    drawn = resampled([1.0, 1.0, 0.0, 1.0], ["a", "a", "b", "a"])
    for value, share in [(1.0, 0.25), (0.75, 0.5), (0.0, 0.25)]:
        assert (drawn == value).mean() == pytest.approx(share, abs=0.02)
    assert set(drawn) == {0.0, 0.75, 1.0}


def test_clusters_of_unequal_size_and_the_linearised_error():
    # The standard error of a ratio r = sum(S) / sum(n) over clusters, to first order:
    # sqrt(sum((S - r n)^2)) / sum(n)  (Cochran, Sampling Techniques, chapter 6).
    rng = generator(5, "clusters")
    sizes = rng.integers(1, 11, size=501)
    chance = np.repeat(rng.random(501), sizes)
    values = rng.binomial(8, chance) / 8
    clusters = np.repeat(np.arange(501), sizes)
    sums = np.bincount(clusters, weights=values)
    ratio = sums.sum() / sizes.sum()
    error = np.sqrt(((sums - ratio * sizes) ** 2).sum()) / sizes.sum()
    assert bootstrap(values.tolist(), clusters.tolist()).mean == pytest.approx(ratio)
    assert resampled(values.tolist(), clusters.tolist()).std() == pytest.approx(error, rel=0.03)


@given(st.lists(fractions, min_size=1, max_size=10))
@settings(deadline=None, max_examples=20)
def test_clusters_of_one_are_no_clusters(values):
    names = [f"question {i}" for i in range(len(values))]
    assert resampled(values, names).tolist() == resampled(values).tolist()


def test_clusters_that_do_not_fit():
    with pytest.raises(ValueError, match="1 clusters do not fit 2 values"):
        bootstrap([1.0, 0.0], ["a"])


def test_nothing_of_nothing_is_nothing():
    # Units (0 of 0) and (1 of 1): a resample is 0/0, which counts as 0, or 1/1 = 2/2 = 1.
    drawn = resampled_ratio([0, 1], [0, 1])
    assert set(drawn) == {0.0, 1.0}
    assert (drawn == 0).mean() == pytest.approx(0.25, abs=0.02)


# --- streams, averages, rates ---------------------------------------------------------------------


def test_streams_are_independent():
    one, two = coins(400, "MMK12"), coins(400, "MMMU-Pro")
    assert abs(np.corrcoef(one, two)[0, 1]) < 0.04  # four standard errors, 4 / sqrt(10,000)
    assert (coins(400, "MMK12") == one).all()
    assert (one != coins(400)).any()


def test_the_average_of_two_benchmarks_by_hand():
    # Means 1/2 and 1/2 of 100 and of 400 coins: (0.25 / 100 + 0.25 / 400) / 2^2 is the variance of
    # their average, whose root is 0.02795; 1.96 of that: 0.445 .. 0.555.
    found = average([coins(100, "a"), coins(400, "b")], [0.5, 0.5])
    assert found.mean == 0.5
    assert found.low == pytest.approx(0.4452, abs=0.003)
    assert found.high == pytest.approx(0.5548, abs=0.003)
    # Unweighted: (0.2 + 0.8) / 2, although one has four times the questions.
    assert average([np.full(9, 0.2), np.full(9, 0.8)], [0.2, 0.8]).mean == pytest.approx(0.5)


def test_an_average_of_nothing():
    with pytest.raises(ValueError, match="0 sets of resamples and 0 means"):
        average([], [])
    with pytest.raises(ValueError, match="1 sets of resamples and 2 means"):
        average([coins(4)], [0.5, 0.5])


def test_a_rate_by_hand():
    # Units (1 of 1) and (0 of 3): 1/4 in all; a resample has 1/1, 1/4 or 0/3.
    found = rate([1, 0], [1, 3], "a", "of all")
    assert found == {"value": 0.25, "interval": [0.0, 1.0], "about": "of all"}
    assert rate([0, 0], [0, 0], "a", "")["value"] == 0.0


def test_a_rate_is_drawn_from_its_stream():
    above, below = [float(i % 3 == 0) for i in range(50)], [float(1 + i % 7) for i in range(50)]
    low, high = np.quantile(resampled_ratio(above, below, "a"), [0.025, 0.975])
    assert rate(above, below, "a", "")["interval"] == [low, high]
    assert rate(above, below, "b", "")["interval"] != [low, high]
