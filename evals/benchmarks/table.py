"""The benchmarks as one table. To add one, write its file beside this one, and name it here.

The paper is arXiv 2510.09285; the eight of its Table 1 are ``all``.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from evals.benchmarks.aokvqa import AOKVQA
from evals.benchmarks.base import Benchmark, Own
from evals.benchmarks.dynamath import DYNAMATH
from evals.benchmarks.geo3k import GEO3K
from evals.benchmarks.glyphs import GLYPHS
from evals.benchmarks.logicvista import LOGICVISTA
from evals.benchmarks.mathverse import MATHVERSE
from evals.benchmarks.mathvision import MATHVISION
from evals.benchmarks.mmk12 import MMK12
from evals.benchmarks.mmmu_pro import MMMU_PRO, MMMU_PRO_STANDARD4, MMMU_PRO_STANDARD10
from evals.benchmarks.mmmu_val import MMMU_VAL
from evals.benchmarks.simplevqa import SIMPLEVQA
from evals.benchmarks.validation import VALIDATION
from evals.benchmarks.wemath import WEMATH
from pipelines.errors import UserError

if TYPE_CHECKING:
    from pipelines.config.schema import Config

_EIGHT = (MATHVERSE, DYNAMATH, MMK12, GEO3K, MATHVISION, WEMATH, LOGICVISTA, MMMU_PRO)
_TABLE_8 = (AOKVQA, SIMPLEVQA)

BENCHMARKS: dict[str, Benchmark] = {
    one.name: one for one in (*_EIGHT, MMMU_VAL, MMMU_PRO_STANDARD10, MMMU_PRO_STANDARD4, *_TABLE_8)
}
"""Public benchmarks by name."""

OWN: dict[str, Own] = {one.name: one for one in (GLYPHS, VALIDATION)}
"""A run's own questions by name."""

EIGHT = tuple(one.name for one in _EIGHT)
"""Those of the paper's Table 1, in its order; ``all`` on the command line."""

TABLE_8 = tuple(one.name for one in _TABLE_8)
"""Two more that the paper has numbers of: out of domain, and in no average."""

ALIASES = {one.alias: one.name for one in BENCHMARKS.values() if one.alias}


def canonical(names: Iterable[str]) -> tuple[str, ...]:
    """Benchmark names with aliases and ``all`` resolved; a repeated name counts once.

    Raises:
        UserError: there is no such benchmark; the nearest is named.
    """
    known = (*OWN, *BENCHMARKS)
    found: dict[str, None] = {}
    for name in names:
        resolved = EIGHT if name == "all" else (ALIASES.get(name, name),)
        if not set(resolved) <= set(known):
            near = difflib.get_close_matches(name, (*known, *ALIASES, "all"), n=1)
            hint = f"Did you mean {near[0]}? " if near else ""
            raise UserError(name, "no such benchmark.", f"{hint}Known: {' '.join(known)}, and all (the paper's eight).")
        found |= dict.fromkeys(resolved)
    return tuple(found)


def check_own(names: Collection[str], config: Config) -> None:
    """Refuse, before anything is made, own questions that the settings do not make.

    Raises:
        UserError: glyphs without the embedded data; validation with no questions held out.
    """
    for own in OWN.values():
        if own.name in names:
            own.check(config)
