"""What a page draws as one line: a run, or the runs of one method that differ in their seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.page.viewer import short
from pipelines.words import counted
from vppo_cli.report.source import RunSource

Chart = dict[str, Any]


@dataclass(frozen=True)
class Line:
    """A run by its name, or several by the pattern that they were asked for by."""

    name: str
    sources: list[RunSource]

    @property
    def said(self) -> str:
        """For the legend of the curves: whose line it is, and what its band is."""
        if len(self.sources) == 1:
            return self.name
        return f"{self.name}: mean of {len(self.sources)} runs, band from the lowest to the highest"

    @property
    def together(self) -> str:
        """For that of the distributions."""
        return self.name if len(self.sources) == 1 else f"{self.name}: {len(self.sources)} runs together"


def notes(lines: Sequence[Line]) -> list[str]:
    """Where a mean ends before some of its runs do."""
    told = []
    for line in lines:
        done = {source.name: len(source.rows) for source in line.sources}
        if min(done.values()) < max(done.values()):
            behind = [
                f"{name} has {counted(steps, 'step')}" for name, steps in done.items() if steps < max(done.values())
            ]
            told.append(
                f"{line.name}: {', '.join(behind)}, others {max(done.values())}; a mean is of steps that all have."
            )
    return told


def fold(chart: Chart, lines: Sequence[Line]) -> Chart:
    """A chart with a line for each run -> one with the mean of each method, and a band from lowest to highest.

    Points are those that all runs of a method have. A chart with ranges of its own (``plain`` says what it is without
    them) keeps them only where no method has several runs: two kinds of band would lie over each other.
    """
    place = [index for index, line in enumerate(lines) for _ in line.sources]
    several = len(place) > len(lines)
    plain = chart.pop("plain", "")
    made: list[dict[str, Any]] = []
    for index, line in enumerate(lines):
        own = [series for series in chart["series"] if place[series["run"]] == index]
        for name in dict.fromkeys(series.get("name") for series in own):
            these = [series for series in own if series.get("name") == name]
            made.append(these[0] | {"run": index} if len(line.sources) == 1 else _mean(these, index))
            if several and plain and len(line.sources) == 1:
                made[-1] = {key: value for key, value in made[-1].items() if key not in ("low", "high")}
    made = [series for series in made if series["x"]]
    return chart | {"series": made} | ({"about": plain} if several and plain else {})


def _mean(these: Sequence[dict[str, Any]], run: int) -> dict[str, Any]:
    """One series of several: the mean, the lowest and the highest where all have a value."""
    values = [dict(zip(series["x"], series["y"], strict=True)) for series in these]
    x = [step for step in values[0] if all(step in others for others in values)]
    y_ST = np.array([[one[step] for step in x] for one in values])
    made: dict[str, Any] = {key: these[0][key] for key in ("name", "dots") if key in these[0]}
    for key, row in (("y", y_ST.mean(0)), ("low", y_ST.min(0)), ("high", y_ST.max(0))) if x else ():
        made[key] = [short(v) for v in row]
    return {"run": run, "x": x, **made, "seeds": len(these)}
