"""Which objectives a ledger has, and with which settings of the run each is taken."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.config.schema import Config
from pipelines.errors import UserError
from pipelines.objectives import table
from pipelines.objectives.table import OBJECTIVES, ROLES, SURROGATE_CONSTANTS

REFERENCES = ("vppo", "dapo")
"""What all others are compared with: always there."""


@dataclass(frozen=True)
class Chosen:
    """An objective, and the run's settings with it in place of the run's own."""

    name: str
    config: Config

    @property
    def formula(self) -> str:
        """Of its row; none of one's own."""
        return OBJECTIVES[self.name].formula if self.name in OBJECTIVES else ""

    @property
    def source(self) -> str:
        """Where it was published; of one's own, where it is."""
        return OBJECTIVES[self.name].source if self.name in OBJECTIVES else self.name

    @property
    def variant(self) -> str | None:
        """The variant that was taken, where there are several."""
        row = OBJECTIVES.get(self.name)
        return table.variant(self.config.update) if row and row.variants else None

    @property
    def constants(self) -> dict[str, float]:
        """Those that were taken."""
        return table.constants(self.name, self.config.update) if self.name in OBJECTIVES else {}


def choose(config: Config, names: Sequence[str] = (), *, roles: bool) -> tuple[list[Chosen], dict[str, str]]:
    """The objectives of a ledger, the references included, and why others are left out.

    Each has the run's settings but ``update.objective``; ``update.variant`` and ``update.constants`` where it
    has such, and the run's surrogate if it has a meaning with it, else its own first.

    Args:
        config: of the run; ``update.constants`` may be those of several objectives.
        names: none: all of the table.
        roles: whether the true roles of tokens are known.

    Returns:
        In the order of the table, import paths last; name -> reason.

    Raises:
        UserError: there is no such objective, or no such constant of those.
    """
    for name in names:
        if name not in OBJECTIVES and ":" not in name:
            near = difflib.get_close_matches(name, OBJECTIVES, n=1)
            hint = f"Did you mean {near[0]}? " if near else ""
            known = f"Known: {' '.join(OBJECTIVES)}; or an import path package.module:name."
            raise UserError(f"--objectives {name}", "no such objective.", hint + known)
        table.find_objective(name)
    wanted = dict.fromkeys(n for n in OBJECTIVES if not names or n in names or n in REFERENCES)
    wanted |= dict.fromkeys(n for n in names if n not in OBJECTIVES)
    _check_constants(config, list(wanted))
    found, left_out = [], {}
    for name in wanted:
        one = Chosen(name, with_objective(config, name))
        if missing := [key for key, value in one.constants.items() if value is None]:
            left_out[name] = (
                f"its constant {missing[0]} is published nowhere: --set 'update.constants={{{missing[0]}: ...}}'"
            )
        elif ROLES in table.needs(one.config) and not roles:
            left_out[name] = "nobody knows the true roles of these tokens"
        elif (drawn := OBJECTIVES[name].perturbation if name in OBJECTIVES else None) not in (
            None,
            config.score.perturbation,
        ):
            left_out[name] = f"S is measured under {drawn} there: --set score.perturbation={drawn}"
        else:
            table.check(one.config)
            found.append(one)
    return found, left_out


def with_objective(config: Config, name: str) -> Config:
    """The same settings with another objective."""
    row, settings = OBJECTIVES.get(name), config.update
    changed: dict[str, Any] = {"objective": name}
    if row:
        surrogate = settings.surrogate if settings.surrogate in row.surrogates else row.surrogates[0]
        known = {*row.constants, *SURROGATE_CONSTANTS.get(surrogate, {})}
        changed |= {
            "surrogate": surrogate,
            "variant": settings.variant if settings.variant in row.variants else None,
            "constants": {key: value for key, value in settings.constants.items() if key in known},
        }
    score = config.score.model_copy(update={"store": "all", "looks": 0})
    return config.model_copy(update={"score": score, "update": settings.model_copy(update=changed)})


def _check_constants(config: Config, names: Sequence[str]) -> None:
    known = {key for name in names if name in OBJECTIVES for key in OBJECTIVES[name].constants}
    known |= {key for constants in SURROGATE_CONSTANTS.values() for key in constants}
    own = any(name not in OBJECTIVES for name in names)
    for constant in () if own else config.update.constants:
        if constant not in known:
            near = difflib.get_close_matches(constant, known, n=1)
            raise UserError(
                f"update.constants.{constant}",
                "none of these objectives has such a constant.",
                f"Did you mean {near[0]}?" if near else f"Known: {' '.join(sorted(known))}.",
            )
