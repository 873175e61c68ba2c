"""The benchmarks as one table. To build one in, write its file beside this one, and name it here.

What else a config's names stand for: its own test sets (``eval.sources``), and benchmarks by import path.

The paper is arXiv 2510.09285; the eight of its Table 1 are ``all``.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING

from evals.benchmarks import imported
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
from pipelines.config.schema import SourceConfig
from pipelines.errors import UserError
from pipelines.stages import STAGES

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


RESERVED = {*BENCHMARKS, *ALIASES, *OWN, *STAGES, "all", "average", "model"}
"""What no benchmark of one's own may be called: these name others, or steps, or lines of a report."""


def canonical(names: Iterable[str], config: Config | None = None) -> tuple[str, ...]:
    """Benchmark names with aliases, ``all`` and import paths resolved; a repeated name counts once.

    Args:
        config: whose ``eval.sources`` are names, too, and those of its benchmarks by import path.

    Raises:
        UserError: there is no such benchmark, and the nearest is named; or two have one name.
    """
    sources = config.eval.sources if config else {}
    for name in sources:
        if name in RESERVED:
            raise UserError(f"eval.sources.{name}", "the name is taken by a built-in one.", "Choose another.")
    known = (*OWN, *BENCHMARKS, *sources)
    found: dict[str, str] = {}
    for name in names:
        if ":" in name:
            resolved: tuple[str, ...] = (imported.load(name).name,)
            taken = "eval.sources" if resolved[0] in sources else found.get(resolved[0], name)
            if resolved[0] in RESERVED or taken != name:
                who = "a built-in one" if resolved[0] in RESERVED else taken
                raise UserError(f"eval.benchmarks: {name}", f"is called {resolved[0]}, as {who} is.", "Rename it.")
        else:
            resolved = EIGHT if name == "all" else (ALIASES.get(name, name),)
        if ":" not in name and not set(resolved) <= set(known) and name not in _imported(config):
            near = difflib.get_close_matches(name, (*known, *ALIASES, "all"), n=1)
            hint = f"Did you mean {near[0]}? " if near else ""
            raise UserError(
                name,
                "no such benchmark.",
                f"{hint}Known: {' '.join(known)}, and all (the paper's eight); or eval.sources names a test set "
                "of yours, and module:NAME a benchmark.",
            )
        found |= dict.fromkeys(resolved, name)
    return tuple(found)


def _imported(config: Config | None) -> Iterator[str]:
    """What the benchmarks that a config names by import path are called."""
    return (imported.load(part).name for part in config.eval.benchmarks if ":" in part) if config else iter(())


def find(name: str, config: Config) -> tuple[Benchmark | SourceConfig, str]:
    """What a name that ``canonical`` gave stands for, and its import path, if it has one.

    Raises:
        UserError: the config has no such benchmark.
    """
    if name in BENCHMARKS:
        return BENCHMARKS[name], ""
    if name in config.eval.sources:
        return config.eval.sources[name], ""
    for part in config.eval.benchmarks:
        if ":" in part and (benchmark := imported.load(part)).name == name:
            return benchmark, part
    raise UserError(name, "no such benchmark in these settings.", "Name it in eval.sources or eval.benchmarks.")


def check_own(names: Collection[str], config: Config) -> None:
    """Refuse, before anything is made, own questions that the settings do not make.

    Raises:
        UserError: glyphs without the embedded data; validation with no questions held out.
    """
    for own in OWN.values():
        if own.name in names:
            own.check(config)
