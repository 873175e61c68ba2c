"""We-Math's own score: is a composite problem solved for the right reason?

Qiao et al., arXiv 2407.01284, section 3, and the authors' evaluation script. A composite ("multi")
problem comes with its two or three single-step problems, all with one ID. With "known" for "all its
steps are right", each composite is one of

    IK  insufficient knowledge      not known, composite wrong
    IG  inadequate generalization   known,     composite wrong
    CM  complete mastery            known,     composite right
    RM  rote memorization           not known, composite right

The loose reading forgives a wrong step when the composite is right: it is CM if any step is right, RM
only if none is. IK and IG are the same in both. The score is CM + IG / 2, that is 1 - IK - RM - IG / 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from evals.numbers.statistics import rate

if TYPE_CHECKING:
    from evals.benchmarks.scores import Answered

_PARTS = {"2steps": ("1", "2", "multi"), "3steps": ("1", "2", "3", "multi")}


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
    for reading, enough_CN, steps in [
        ("strict", known_CN, "all steps"),
        ("loose", part_known_CN, "any step"),
    ]:
        cm, rm = enough_CN & solved_CN, ~enough_CN & solved_CN
        for name, above, below, about in [
            (f"CM_{reading}", cm, None, f"complete mastery: composite and {steps} right; {of}"),
            (f"RM_{reading}", rm, solved_CN, f"rote memorization: right without {steps}; of those right"),
            (f"score_{reading}", cm + ig / 2, None, f"CM + IG / 2, {reading}; {of}"),
        ]:  # fmt: skip
            result[name] = _score(above, below, name, about)
    return result


def _score(
    above_CN: np.ndarray, below_CN: np.ndarray | None, name: str, about: str
) -> dict[str, Any]:
    """The rate of ``above`` among ``below`` (None: all), with its interval over the composites."""
    above = above_CN.mean(1)
    below = np.ones(len(above)) if below_CN is None else below_CN.mean(1)
    return rate(above, below, f"We-Math/{name}", about)
