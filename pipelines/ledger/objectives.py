"""Which objectives a ledger has, and with which settings of the run each is taken."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.config.schema import Config, UpdateConfig
from pipelines.config.settings import TOKEN_CHOICES
from pipelines.errors import UserError
from pipelines.objectives import table
from pipelines.objectives.table import OBJECTIVES, ROLES, SURROGATE_CONSTANTS, Objective

REFERENCES = ("vppo", "dapo")
"""What all others are compared with: always there."""


@dataclass(frozen=True)
class Chosen:
    """An objective by the name that it was asked for, and the run's settings with it in place of the run's own."""

    name: str
    config: Config

    @property
    def row(self) -> Objective | None:
        """Of the table; none of one's own."""
        return OBJECTIVES.get(self.config.update.objective)

    @property
    def formula(self) -> str:
        """What a token is weighted by."""
        if self.name in TOKEN_CHOICES:
            return ", ".join(TOKEN_CHOICES[self.name].values())
        return self.row.formula if self.row else ""

    @property
    def variant(self) -> str | None:
        """The variant that was taken, where there are several."""
        return (
            table.variant(self.config.update.objective, self.config.update) if self.row and self.row.variants else None
        )

    @property
    def constants(self) -> dict[str, float]:
        """Those that were taken."""
        return table.constants(self.config.update.objective, self.config.update) if self.row else {}

    @property
    def measured(self) -> tuple[str, str]:
        """How its S is measured: objectives that agree on it share a scoring."""
        return self.config.score.estimator, self.config.score.perturbation


KNOWN = (*OBJECTIVES, *TOKEN_CHOICES)
"""All that there are, in the order of a ledger."""


def choose(config: Config, names: Sequence[str] = (), *, roles: bool) -> tuple[list[Chosen], dict[str, str]]:
    """The objectives of a ledger, the references included, and why others are left out.

    Each has the run's settings but ``update.objective``; ``update.variant`` and ``update.constants`` where it
    has such; the run's surrogate if it has a meaning with it, else its own first; the default of what it does
    not read; and the estimator or the perturbation that it is defined by, if it is.

    Args:
        config: of the run; ``update.constants`` may be those of several objectives.
        names: none: all.
        roles: whether the data are embedded, so that the true roles of tokens and the evidence are known.

    Returns:
        In the order of ``KNOWN``, import paths last; name -> reason.

    Raises:
        UserError: there is no such objective, or no such constant of those.
    """
    for name in names:
        if name not in KNOWN and ":" not in name:
            near = difflib.get_close_matches(name, KNOWN, n=1)
            hint = f"Did you mean {near[0]}? " if near else ""
            known = f"Known: {' '.join(KNOWN)}; or an import path package.module:name."
            raise UserError(f"--objectives {name}", "no such objective.", hint + known)
    wanted = dict.fromkeys(n for n in KNOWN if not names or n in names or n in REFERENCES)
    wanted |= dict.fromkeys(n for n in names if n not in KNOWN)
    chosen = [with_objective(config, name) for name in wanted]
    _check_constants(config, chosen)
    found, left_out = [], {}
    for one in chosen:
        table.find_objective(one.config.update.objective)
        if missing := [key for key, value in one.constants.items() if value is None]:
            left_out[one.name] = (
                f"its constant {missing[0]} is published nowhere: --set 'update.constants={{{missing[0]}: ...}}'"
            )
        elif one.row and not roles and (ROLES in one.row.needs or one.row.perturbation == "evidence"):
            left_out[one.name] = "what it needs to know of the answers, only the embedded data tell"
        else:
            table.check(one.config)
            found.append(one)
    return found, left_out


def with_objective(config: Config, name: str) -> Chosen:
    """The same settings with another objective."""
    named = TOKEN_CHOICES.get(name, {"update.objective": name})
    settings, score = config.update, {"store": "all", "looks": 0}
    changed: dict[str, Any] = {"objective": named["update.objective"]}
    if row := OBJECTIVES.get(changed["objective"]):
        surrogate = settings.surrogate if settings.surrogate in row.surrogates else row.surrogates[0]
        known = {*row.constants, *SURROGATE_CONSTANTS.get(surrogate, {})}
        changed |= {
            "surrogate": surrogate,
            "variant": settings.variant if settings.variant in row.variants else None,
            "constants": {key: value for key, value in settings.constants.items() if key in known},
            **{key: UpdateConfig.model_fields[key].default for key in row.unread},
        }
        score |= {"perturbation": row.perturbation} if row.perturbation else {}
    if "score.estimator" in named:
        score |= {"estimator": named["score.estimator"]}
    return Chosen(
        name,
        config.model_copy(
            update={"score": config.score.model_copy(update=score), "update": settings.model_copy(update=changed)}
        ),
    )


def _check_constants(config: Config, chosen: Sequence[Chosen]) -> None:
    known = {key for one in chosen if one.row for key in one.row.constants}
    known |= {key for constants in SURROGATE_CONSTANTS.values() for key in constants}
    own = any(one.row is None for one in chosen)
    for constant in () if own else config.update.constants:
        if constant not in known:
            near = difflib.get_close_matches(constant, known, n=1)
            raise UserError(
                f"update.constants.{constant}",
                "none of these objectives has such a constant.",
                f"Did you mean {near[0]}?" if near else f"Known: {' '.join(sorted(known))}.",
            )
