"""How perception is distributed over a data set: over tokens, responses, outcomes, and true roles where known."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipelines.disk.records import Perceived, Sample
from pipelines.embedded.glyphs import is_embedded, token_roles
from pipelines.page.distributions import BINS, Array, concentration, histogram

OUTCOMES = ("correct", "wrong", "no_answer", "timed_out", "truncated")
ROLES = ("perception", "reasoning", "template")


class Distributions:
    """What was seen so far: five bytes a token."""

    def __init__(self) -> None:
        self._perception, self._keep, self._roles = array("f"), array("b"), array("b")
        self._dependency: dict[str | None, array[float]] = {}
        self._given = self._truncated = 0
        self._responses = 0

    def add(self, rows: Sequence[Perceived], samples: Sequence[Sample]) -> None:
        """Responses, and their questions."""
        for row, sample in zip(rows, samples, strict=True):
            self._responses += 1
            self._given += row.given
            self._truncated += row.truncated
            self._perception.extend(row.perception)
            self._keep.extend(row.keep)
            self._dependency.setdefault(row.outcome, array("f")).append(row.dependency)
            if is_embedded(sample):  # what each word is for is known
                self._roles.extend(ROLES.index(role) for role in token_roles(row.tokens))

    @property
    def responses(self) -> int:
        return self._responses

    def counts(self) -> dict[str, Any]:
        """Counts, means and shares; None where there is nothing to take them of."""
        found = self._dependency
        right = list(found.get("correct", []))
        wrong = [d for name, ds in found.items() if name not in (None, "correct") for d in ds]
        perception_N, keep_N = self._tokens()
        return {
            "responses": self._responses,
            "given": self._given,
            "truncated": self._truncated,
            "graded": len(right) + len(wrong),
            "correct": len(right),
            "dependency": _mean([d for ds in found.values() for d in ds]),
            "dependency_correct": _mean(right),
            "dependency_wrong": _mean(wrong),
            "tokens": len(perception_N),
            "kept_share": _mean(keep_N),
            "perception_in_kept": _share(perception_N, keep_N),
            "roles": self._by_role() or None,
        }

    def figures(self, unit: str, kept: float) -> dict[str, Any]:
        """The section of the page: charts, and tables that say the same in numbers.

        Args:
            unit: what perception is measured in.
            kept: the share of tokens that was to be kept.
        """
        perception_N, _ = self._tokens()
        counts, measured = self.counts(), f"{unit} " if unit else ""
        charts = [
            histogram(
                "Token perception",
                f"{measured}a token; share of tokens, on a log scale",
                {0: perception_N},
                unit,
                log=True,
            ),
            concentration({0: perception_N}, kept),
            self._of_responses(unit, measured),
            self._of_roles(unit, measured, perception_N),
        ]
        facts = [
            ["Responses", str(counts["responses"]), f"{counts['truncated']} cut off" if counts["truncated"] else ""],
            ["Token perception", f"{perception_N.mean():.3g} {unit}", f"mean of {len(perception_N):,} tokens"],
        ]
        if counts["graded"]:
            right = 100 * counts["correct"] / counts["graded"]
            facts.insert(1, ["Correct", f"{right:.1f} %", f"{counts['correct']} of {counts['graded']} graded"])
        if (inside := counts["perception_in_kept"]) is not None:
            share = f"which are {100 * counts['kept_share']:.1f} % of all"
            facts.append(["Perception in kept tokens", f"{100 * inside:.1f} %", share])
        return {
            "facts": facts,
            "charts": [one for one in charts if one],
            "tables": [*self._outcome_table(unit), *self._role_table(unit)],
        }

    def _tokens(self) -> tuple[Array, Array]:
        return np.frombuffer(self._perception, np.float32).astype(np.float64), np.frombuffer(self._keep, np.int8)

    def _of_responses(self, unit: str, measured: str) -> dict[str, Any]:
        """Dependency, of right and other responses apart where they are graded."""
        right = np.array(self._dependency.get("correct", ()))
        other = np.concatenate([np.empty(0), *(np.array(v) for k, v in self._dependency.items() if k != "correct")])
        about = f"{measured}, mean over a response; share of ".replace(" ,", ",").removeprefix(", ")
        graded = {0: right, 1: other}
        few = min(len(v) for v in (right, other) if len(v))
        bins = min(BINS, max(8, round(2 * few**0.5)))
        if len(right) and len(other) and None not in self._dependency:
            names = ("correct", "not correct")
            return histogram("Dependency by outcome", f"{about}each", graded, unit, log=False, names=names, bins=bins)
        every = {0: np.concatenate([right, other])}
        return histogram("Dependency", f"{about}responses", every, unit, log=False, bins=bins)

    def _of_roles(self, unit: str, measured: str, perception_N: Array) -> dict[str, Any] | None:
        roles_N = self._all_roles()
        if roles_N is None:
            return None
        values = {place: perception_N[roles_N == place] for place in range(len(ROLES))}
        values = {place: found for place, found in values.items() if len(found)}
        about = f"{measured}a token, by what it is truly for; share of each, on a log scale"
        return histogram("Perception by role", about, values, unit, log=True, names=ROLES)

    def _all_roles(self) -> Array | None:
        """The role of every token, as a place in ``ROLES``; None where some are not known."""
        known = len(self._roles) and len(self._roles) == len(self._perception)
        return np.frombuffer(self._roles, np.int8) if known else None

    def _by_role(self) -> dict[str, dict[str, Any]]:
        roles_N = self._all_roles()
        if roles_N is None:
            return {}
        perception_N, keep_N = self._tokens()
        total = perception_N.sum()
        return {
            role: {
                "tokens": int(here.sum()),
                "perception": float(perception_N[here].mean()),
                "perception_share": float(perception_N[here].sum() / total) if total > 0 else None,
                "kept_share": float(keep_N[here].mean()),
            }
            for place, role in enumerate(ROLES)
            if (here := roles_N == place).any()
        }

    def _outcome_table(self, unit: str) -> list[dict[str, Any]]:
        graded = [name for name in OUTCOMES if name in self._dependency]
        rows = []
        for name in graded:
            value_N = np.array(self._dependency[name])
            middle = [f"{value:.4g}" for value in (value_N.mean(), *np.quantile(value_N, (0.25, 0.5, 0.75)))]
            rows.append([name.replace("_", " "), str(len(value_N)), *middle])
        header = ["Outcome", "Responses", "Mean", "25 %", "Median", "75 %"]
        about = "Dependency by outcome: mean perception of a response's tokens"
        return [_table(f"{about}, {unit}".removesuffix(", "), header, rows)] if rows else []

    def _role_table(self, unit: str) -> list[dict[str, Any]]:
        rows = [
            [
                role,
                f"{of['tokens']:,}",
                f"{of['perception']:.4g}",
                "\u2013" if of["perception_share"] is None else f"{100 * of['perception_share']:.1f} %",
                f"{100 * of['kept_share']:.1f} %",
            ]
            for role, of in self._by_role().items()
        ]
        mean = f"Mean perception, {unit}".removesuffix(", ")
        header = ["What a token is for", "Tokens", mean, "Share of all perception", "Kept"]
        return [_table("Tokens by their true role, which the embedded data know", header, rows)] if rows else []


def _table(caption: str, header: list[str], rows: list[list[str]]) -> dict[str, Any]:
    right = [False, *[True] * (len(header) - 1)]
    return {"caption": caption, "header": header, "rows": rows, "bold": [], "right": right}


def _mean(values: Sequence[float] | Array) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _share(value_N: Array, keep_N: Array) -> float | None:
    """Of their sum what is in those that are kept; None where values can be negative or are 0 throughout."""
    total = float(value_N.sum())
    return None if not total > 0 or value_N.min() < 0 else float(value_N[keep_N.astype(bool)].sum() / total)
