"""Charts of how numbers are distributed, as the script charts.js draws them. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.page.viewer import short

Array = npt.NDArray[Any]

Chart = dict[str, Any]

BINS = 60


def histogram(
    title: str,
    about: str,
    values: Mapping[int, Array],
    unit: str,
    *,
    log: bool,
    names: Sequence[str] = (),
    bins: int = BINS,
) -> Chart:
    """Shares of values in equal bins, a series each.

    Args:
        values: place of a series -> its numbers, one at least.
        unit: what they are measured in; "" for none.
        log: the shares on a log scale.
        names: of the series, by place; none: the page's runs.
        bins: how many.
    """
    edges = _edges(list(values.values()), bins)
    series = []
    for place, value_N in values.items():
        count, _ = np.histogram(value_N, edges)
        shares = {"x": [short(e) for e in edges], "y": [short(c / len(value_N)) for c in count]}
        series.append({"run": place, "kind": "steps", **shares} | ({"name": names[place]} if names else {}))
    return {"title": title, "about": about, "x": unit, "format": "percent", "log": log, "series": series}


def _edges(values: Sequence[Array], bins: int) -> Array:
    low = min(0.0, *(float(v.min()) for v in values))
    high = max(float(v.max()) for v in values)
    return np.linspace(low, high if high > low else low + 1.0, bins + 1)


def concentration(values: Mapping[int, Array], kept: float) -> Chart | None:
    """Share of all perception in the tokens that look most: few tokens look, or all do.

    Args:
        values: place of a series -> the perception of tokens.
        kept: the share of tokens that is marked.

    Returns:
        None where perception can be negative, or is 0 throughout.
    """
    share_T = np.unique(np.concatenate([np.linspace(0, 0.1, 41), np.linspace(0.1, 1, 91)]))
    series: list[Chart] = []
    for place, perception_N in values.items():
        if perception_N.min() < 0 or perception_N.sum() <= 0:
            continue
        sums_N = np.concatenate([[0.0], np.sort(perception_N)[::-1].cumsum()])
        y = np.interp(share_T * len(perception_N), np.arange(len(sums_N)), sums_N) / sums_N[-1]
        series.append({"run": place, "x": [short(100 * x) for x in share_T], "y": [short(v) for v in y]})
    if not series:
        return None
    return {
        "title": "Few tokens look",
        "about": "share of all perception in the tokens that look most",
        "x": "% of tokens",
        "format": "percent",
        "series": series,
        "marks": [{"x": short(100 * kept), "label": f"kept: {100 * kept:g} %"}],
    }
