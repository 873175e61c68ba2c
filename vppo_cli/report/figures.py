"""The paper's figures for a run: how token perception and trajectory dependency are distributed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipelines.objectives.table import measured_by
from pipelines.page.distributions import concentration, histogram
from pipelines.page.viewer import short, unit
from vppo_cli.report.curves import chart
from vppo_cli.report.source import Array, RunSource, flat, lengths, spread
from vppo_cli.report.words import WordCount

MOST_STEPS = 60
MOST_TOKENS = 200_000
"""Tokens read of one step (whole responses): enough for every figure, however long the run."""

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass
class Reading:
    """What the figures need of a run, gathered in one pass over its scores."""

    steps: list[int] = field(default_factory=list)
    perception: list[Array] = field(default_factory=list)
    dependency: list[Array] = field(default_factory=list)
    kept_share: list[float] = field(default_factory=list)
    words: WordCount | None = None
    complete: bool = True


def read(source: RunSource, words: WordCount | None = None) -> Reading:
    """Read at most ``MOST_STEPS`` steps, evenly, and ``MOST_TOKENS`` tokens of each."""
    reading = Reading(words=words)
    reading.steps = spread(source.perceived, MOST_STEPS)
    reading.complete = len(reading.steps) == len(source.perceived)
    for step in reading.steps:
        rollouts, scores = source.tables(step)
        length_B = lengths(scores)
        count = int(np.searchsorted(length_B.cumsum(), MOST_TOKENS, side="right"))
        count = max(count, 1)
        reading.complete &= count >= len(length_B)
        tokens = int(length_B[:count].sum())
        perception_N = flat(scores, "perception")[:tokens].astype(np.float64)
        keep_N = flat(scores, "keep")[:tokens].astype(bool)
        total = np.abs(perception_N).sum()
        reading.perception.append(perception_N)
        reading.dependency.append(flat(scores, "dependency").astype(np.float64))
        reading.kept_share.append(float(np.abs(perception_N[keep_N]).sum() / max(total, 1e-12)))
        if words is not None:
            words.add(flat(rollouts, "response_ids")[:tokens], perception_N, length_B[:count])
    return reading


def pooled(readings: Sequence[Reading]) -> Reading:
    """The runs of a method as one, over the steps that all have: their tokens and responses together."""
    steps = [step for step in readings[0].steps if all(step in other.steps for other in readings)]
    found = Reading(steps=steps, words=readings[0].words, complete=all(r.complete for r in readings))
    for step in steps:
        places = [(r, r.steps.index(step)) for r in readings]
        found.perception.append(np.concatenate([r.perception[i] for r, i in places]))
        found.dependency.append(np.concatenate([r.dependency[i] for r, i in places]))
        found.kept_share.append(float(np.mean([r.kept_share[i] for r, i in places])))
    return found


def figures(names: Sequence[str], sources: Sequence[RunSource], readings: Sequence[Reading]) -> dict[str, Any]:
    """The charts, and in a sentence what those of the first run, or method, that has some say.

    Args:
        names: what is drawn: runs, or methods.
        sources: each one's first run.
        readings: of each.
    """
    known = [(i, r) for i, r in enumerate(readings) if r.steps]
    if not known:
        return {
            "charts": [],
            "empty": "No scored step of this run is on disk, so nothing is known "
            "about what its tokens look at. vppo train makes them.",
        }
    units = {unit(measured_by(sources[i].chain.config)) for i, _ in known}
    nats = units.pop() if len(units) == 1 else ""
    charts = [
        histogram(
            "Token perception",
            f"{nats + ' ' if nats else ''}a token; share of tokens, on a log scale",
            {i: np.concatenate(r.perception) for i, r in known},
            nats,
            log=True,
        ),
        concentration(
            {i: np.concatenate(r.perception) for i, r in known}, sources[known[0][0]].chain.config.score.keep_fraction
        ),
        histogram(
            "Trajectory dependency",
            f"{nats + ', ' if nats else ''}mean over a response; share of responses",
            {i: np.concatenate(r.dependency) for i, r in known},
            nats,
            log=False,
        ),
        _bands(
            "Perception by step",
            [(i, r.steps, r.perception) for i, r in known],
            f"{nats + '; ' if nats else ''}median, and 75, 90, 95 % quantiles",
            (0.5, 0.75, 0.9, 0.95),
        ),
        _bands(
            "Dependency by step",
            [(i, r.steps, r.dependency) for i, r in known],
            f"{nats + '; ' if nats else ''}median, and the middle 50 and 90 %",
            QUANTILES,
        ),
        _kept(known),
    ]
    place, first = known[0]
    lead = _lead(sources[place], first)
    if lead and len(names) > 1:
        lead = f"{names[place]}: {lead}"
    notes = []
    if not all(r.complete for _, r in known):
        notes.append(f"Drawn from at most {MOST_STEPS} steps, spread evenly, and {MOST_TOKENS:,} tokens of each.")
    return {"charts": [c for c in charts if c], "lead": lead, "notes": notes}


def _lead(source: RunSource, reading: Reading) -> str:
    """The method's claim, in this run's numbers."""
    perception_N = np.concatenate(reading.perception)
    total = perception_N.sum()
    if perception_N.min() < 0 or total <= 0:
        return ""
    sorted_N = np.sort(perception_N)[::-1]
    needed = int(np.searchsorted(sorted_N.cumsum(), 0.9 * total)) + 1
    share = 100 * needed / len(sorted_N)
    dependency_B = np.concatenate(reading.dependency)
    low, high = np.quantile(dependency_B, [0.1, 0.9])
    return (
        f"{_percent(share)} of the tokens carry 90 % of the perception. A response at the 90th "
        f"percentile depends on the image {high / low:.1f} times as much as one at the 10th."
        if low > 0
        else f"{_percent(share)} of the tokens carry 90 % of the perception."
    )


def _percent(share: float) -> str:
    return f"{share:.1f} %" if share < 10 else f"{share:.0f} %"


def _bands(
    title: str, values: Sequence[tuple[int, list[int], list[Array]]], about: str, quantiles: Sequence[float]
) -> dict[str, Any]:
    series = []
    for run, steps, by_step in values:
        at_Q = np.array([np.quantile(v, quantiles) for v in by_step]).T
        x = list(steps)
        cut = [[short(v) for v in row] for row in at_Q]
        middle = list(quantiles).index(0.5)
        pairs = [(0, 4), (1, 3)] if len(quantiles) == 5 else [(middle, 3), (middle, 2), (middle, 1)]
        for low, high in pairs:
            label = f"{100 * quantiles[high]:g} % quantile"
            series.append(
                {"run": run, "kind": "band", "x": x, "low": cut[low], "high": cut[high], "y": cut[high], "name": label}
            )
        series.append({"run": run, "x": x, "y": cut[middle], "name": "median"})
    return chart(title, "number", about, series)


def _kept(known: Sequence[tuple[int, Reading]]) -> dict[str, Any]:
    series = [{"run": run, "x": list(r.steps), "y": [short(v) for v in r.kept_share]} for run, r in known]
    return chart("Perception in kept tokens", "percent", "share of the total", series)
