"""DynaMath's own scores (Zou et al., arXiv 2411.00836): what holds in every variant of a seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from evals.numbers.majority import vote
from evals.numbers.statistics import rate

if TYPE_CHECKING:
    from evals.benchmarks.scores import Answered

VARIANTS = 10  # of each seed


def scores(rows: Sequence[Answered]) -> dict[str, dict[str, Any]]:
    """Worst-case accuracy, reasoning robustness and repetition consistency.

    Read from the groups ``seed`` and ``variant``. The paper asks each variant once; here sample i of
    all the variants is one such run, and the runs are averaged. (All samples of all variants being
    right would be another quantity, which falls the more samples there are.) Only seeds whose ten
    variants are all among the questions count: whether "all ten are right" cannot be known of others.

    Returns:
        {} if no seed is complete.
    """
    seeds: dict[str, dict[str, Answered]] = {}
    for row in rows:
        if {"seed", "variant"} <= row.groups.keys():
            seeds.setdefault(row.groups["seed"], {})[row.groups["variant"]] = row
    whole = [list(found.values()) for found in seeds.values() if len(found) == VARIANTS]
    if not whole:
        return {}
    right_SVN = np.array([[row.right for row in variants] for variants in whole], np.float64)
    worst_S, mean_S = right_SVN.min(1).mean(1), right_SVN.mean((1, 2))
    ones_S = np.ones(len(whole))
    of = f"{len(whole)} of {len(seeds)} seeds have all ten variants among the questions"
    found = {
        "worst_case": (
            worst_S, ones_S, f"all ten variants of a seed right, mean over the samples; {of}",
        ),
        "reasoning_robustness": (
            worst_S, mean_S, f"worst-case accuracy divided by the same seeds' accuracy; {of}",
        ),
    }  # fmt: skip
    if right_SVN.shape[2] > 1:
        same_S = np.array([np.mean([_agreement(row) for row in variants]) for variants in whole])
        about = f"two samples of a question give the same answer; {of}"
        found["repetition_consistency"] = (same_S, ones_S, about)
    return {
        name: rate(above, below, f"DynaMath/{name}", about)
        for name, (above, below, about) in found.items()
    }


def _agreement(row: Answered) -> float:
    """The fraction of pairs of samples with the same answer; no answer agrees with nothing.

    The paper compares repetitions with one first answer; here each sample is the first in turn.
    """
    votes = [vote(answer, row.kind) for answer in row.answers]
    n = len(votes)
    pairs = sum(votes.count(one) - 1 for one in votes if one is not None)
    return pairs / (n * (n - 1))
