"""We-Math: composite problems beside their one-step parts.

Its own score asks whether a composite is solved for the right reason (Qiao et al., arXiv 2407.01284,
section 3, and the authors' evaluation script). A composite ("multi") problem comes with its two or
three single-step problems, all with one ID. With "known" for "all its steps are right", each
composite is one of

    IK  insufficient knowledge      not known, composite wrong
    IG  inadequate generalization   known,     composite wrong
    CM  complete mastery            known,     composite right
    RM  rote memorization           not known, composite right

The loose reading forgives a wrong step when the composite is right: it is CM if any step is right, RM
only if none is. IK and IG are the same in both. The score is CM + IG / 2, that is 1 - IK - RM - IG / 2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evals.benchmarks.base import Benchmark, Question, Where, as_text, listed_options, one_image
from evals.numbers.scores import Answered
from evals.numbers.statistics import rate

_PARTS = {"2steps": ("1", "2", "multi"), "3steps": ("1", "2", "3", "multi")}


def question(raw: Mapping[str, Any], where: Where) -> Question | None:
    """``ID`` joins a composite (key ``2steps_multi``) with its one-step parts (``2steps_1`` ...)."""
    steps, _, part = as_text(raw["key"]).partition("_")
    option = as_text(raw["option"])
    return one_image(
        f"{raw['ID']}-{part}",
        f"{as_text(raw['question'])}\n{option}",
        raw["image_path"],
        raw["answer"],
        options=listed_options(option),
        id=raw["ID"],
        key=raw["key"],
        steps=steps[:1] if part == "multi" else "1",
    )


def scores(rows: Sequence[Answered]) -> dict[str, dict[str, Any]]:
    """The four dimensions and the score, strict and loose, over the complete composites.

    Read from the groups ``id`` (one for all parts of a composite) and ``key`` (``2steps_1``,
    ``3steps_multi`` ...). Sample i of all the parts is one run of the authors' script; IK, IG, CM and
    the scores are the mean of the runs. RM is, as the authors have it, relative to the composites
    that are right, CM + RM (all other rates are of all composites), over all runs together.

    Returns:
        {} if no composite has all its parts among the questions.
    """
    composites: dict[tuple[str, str], dict[str, list[bool]]] = {}
    for row in rows:
        steps, _, part = row.groups.get("key", "").partition("_")
        if steps in _PARTS and "id" in row.groups:
            composites.setdefault((row.groups["id"], steps), {})[part] = row.right
    known, part_known, solved = [], [], []  # each: composite by sample
    for (_, steps), found in composites.items():
        if found.keys() == set(_PARTS[steps]):
            right_PN = np.array([found[part] for part in _PARTS[steps]], dtype=bool)
            known.append(right_PN[:-1].all(0))
            part_known.append(right_PN[:-1].any(0))
            solved.append(right_PN[-1])
    if not solved:
        return {}
    known_CN, part_known_CN, solved_CN = map(np.array, (known, part_known, solved))
    of = f"{len(solved)} composites"
    ik, ig = ~known_CN & ~solved_CN, known_CN & ~solved_CN
    result = {
        "IK": _score(ik, None, "IK", f"insufficient knowledge: step and composite wrong; {of}"),
        "IG": _score(ig, None, "IG", f"inadequate generalization: only composite wrong; {of}"),
    }
    for reading, enough_CN, steps in [("strict", known_CN, "all steps"), ("loose", part_known_CN, "any step")]:
        cm, rm = enough_CN & solved_CN, ~enough_CN & solved_CN
        for name, above, below, about in [
            (f"CM_{reading}", cm, None, f"complete mastery: composite and {steps} right; {of}"),
            (f"RM_{reading}", rm, solved_CN, f"rote memorization: right without {steps}; of those right"),
            (f"score_{reading}", cm + ig / 2, None, f"CM + IG / 2, {reading}; {of}"),
        ]:
            result[name] = _score(above, below, name, about)
    return result


def _score(above_CN: np.ndarray, below_CN: np.ndarray | None, name: str, about: str) -> dict[str, Any]:
    """The rate of ``above`` among ``below`` (None: all), with its interval over the composites."""
    above = above_CN.mean(1)
    below = np.ones(len(above)) if below_CN is None else below_CN.mean(1)
    return rate(above, below, f"We-Math/{name}", about)


WEMATH = Benchmark(
    "wemath",
    "We-Math",
    "composite problems beside their one-step parts",
    "We-Math/We-Math",
    ("ID", "key", "question", "option", "answer", "image_path"),
    1740,
    1740,
    question,
    splits=("testmini",),
    choices=True,
    authors_file="We_Math",
    cluster="id",
    unit="composite",
    breakdowns=("steps",),
    scores=scores,
    published={
        "Qwen2.5-VL-7B": (46.4, 68.1, 68.0, 71.5, 68.3, 65.5, 66.5, 68.9, 71.0, 69.9),
        "Qwen2.5-VL-32B": (71.0, 76.7, 76.2, 77.7, 75.0, 75.7),
        "Qwen3-VL-8B": (69.0, 84.3),
    },
)
