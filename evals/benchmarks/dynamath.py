"""DynaMath (Zou et al., arXiv 2411.00836): seed questions in ten variants each.

Its own scores ask what holds in every variant of a seed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evals.benchmarks.base import LETTER, Benchmark, Question, Where, as_text, is_exact, one_image
from evals.numbers.majority import vote
from evals.numbers.scores import Answered
from evals.numbers.statistics import rate

VARIANTS = 10  # of each seed


def question(raw: Mapping[str, Any], where: Where) -> Question | None:
    """Integers and single letters. The ten splits are ten variants of the same seeds.

    In one file of all splits, variants are told apart by their order.
    """
    gold = as_text(raw["ground_truth"])
    if not is_exact(gold):
        return None
    number = re.fullmatch(r"sample_variant(\d+)", where.split or "")
    variant = number[1] if number else str(where.repeat)
    choice = raw["answer_type"] == "multiple choice" and bool(LETTER.fullmatch(gold))
    return one_image(
        f"{raw['id']}-{variant}",
        raw["question"],
        raw["decoded_image"],
        gold.upper() if choice else gold,
        kind="choice" if choice else None,
        seed=raw["id"],
        variant=variant,
        subject=raw.get("subject"),
        level=raw.get("knowledge_level"),
    )


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
        "worst_case": (worst_S, ones_S, f"all ten variants of a seed right, mean over the samples; {of}"),
        "reasoning_robustness": (worst_S, mean_S, f"worst-case accuracy divided by the same seeds' accuracy; {of}"),
    }
    if right_SVN.shape[2] > 1:
        same_S = np.array([np.mean([_agreement(row) for row in variants]) for variants in whole])
        about = f"two samples of a question give the same answer; {of}"
        found["repetition_consistency"] = (same_S, ones_S, about)
    return {name: rate(above, below, f"DynaMath/{name}", about) for name, (above, below, about) in found.items()}


def _agreement(row: Answered) -> float:
    """The fraction of pairs of samples with the same answer; no answer agrees with nothing.

    The paper compares repetitions with one first answer; here each sample is the first in turn.
    """
    votes = [vote(answer, row.kind) for answer in row.answers]
    n = len(votes)
    pairs = sum(votes.count(one) - 1 for one in votes if one is not None)
    return pairs / (n * (n - 1))


DYNAMATH = Benchmark(
    "dynamath",
    "DynaMath",
    "501 seed questions in ten variants each",
    "DynaMath/DynaMath_Sample",
    ("id", "question", "decoded_image", "ground_truth", "answer_type"),
    5010,
    3666,
    question,
    splits=tuple(f"sample_variant{n}" for n in range(1, VARIANTS + 1)),
    cluster="seed",
    breakdowns=("subject", "level"),
    levels=("elementary school", "high school", "undergraduate"),
    optional=("subject", "knowledge_level"),
    repeats="id",
    scores=scores,
    published={
        "Qwen2.5-VL-7B": (55.7, 65.8, 66.6, 68.1, 66.8, 65.4, 64.6, 65.7, 65.5, 65.1),
        "Qwen2.5-VL-32B": (68.7, 71.6, 72.6, 73.1, 72.0, 72.2),
        "Qwen3-VL-8B": (72.2, 80.0),
    },
)
