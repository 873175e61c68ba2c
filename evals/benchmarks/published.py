"""The numbers that were printed, to be shown beside ours (avg@8: the mean of 8 samples, in %).

Their columns are with the benchmarks (``Benchmark.published``); what holds of all of them is here.

Source: "Spotlight on Token Perception for Multimodal Reinforcement Learning", arXiv 2510.09285, Table 1
(all its rows) and, of A-OKVQA and SimpleVQA, Table 8. Qwen3-VL-8B is the authors' later release; the
paper has no such model. The average is the unweighted mean of the eight columns; the mean of each row
agrees with the printed average to within the rounding of either (0.05), so the two were computed from the
same numbers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evals.benchmarks.table import BENCHMARKS, EIGHT, TABLE_8

PAPER = "arXiv 2510.09285, Table 1 (A-OKVQA, SimpleVQA: Table 8)"
LATER = "the authors' later release, not of the paper"
SAMPLES = 8

# How the published numbers were sampled and graded, by family; the rest is the same for all.
SETTINGS = {"temperature": 1.0, "top_p": 1.0, "top_k": 50, "min_pixels": 1024, "max_pixels": 589_824}
MAX_NEW_TOKENS = {"Qwen2.5-VL-7B": 2048, "Qwen2.5-VL-32B": 4096, "Qwen3-VL-8B": 8192}
GRADER = "mathruler"

AVERAGES = {
    "Qwen2.5-VL-7B": {
        "base": 38.3,
        "GRPO": 53.1,
        "DAPO": 55.0,
        "VPPO": 57.5,
        "PAPO-D": 55.3,
        "MM-Eureka": 51.7,
        "ThinkLite": 49.4,
        "VL-Rethinker": 53.5,
        "NoisyRollout": 51.3,
        "R1-ShareVL": 53.2,
    },
    "Qwen2.5-VL-32B": {"base": 57.0, "GRPO": 62.6, "DAPO": 63.5, "VPPO": 64.6, "MM-Eureka": 60.8, "NoisyRollout": 58.1},
    "Qwen3-VL-8B": {"base": 56.3, "VPPO": 71.4},
}
"""The rows, and their averages as printed, %: family -> how its models were trained ("base": as it came)
-> average."""

SOURCES = {"Qwen3-VL-8B": LATER}
"""Where a family's rows are from, if not of the paper."""

TRAINED_HERE = ("base", "GRPO", "DAPO", "VPPO", "PAPO-D")
"""What a terminal has room for; others' models are in the report's files."""

REMARKS = {"GRPO": "the paper does not describe its GRPO baseline", "NoisyRollout": "trained on Geometry3K"}
"""Method -> what to know of its rows."""


@dataclass(frozen=True)
class Published:
    """One printed row: a model that started as ``family`` and was trained by ``method``."""

    model: str
    family: str
    method: str  # "base": the family's model as it came
    accuracy: dict[str, float]  # of each of the eight, and of Table 8 where it has the row, %
    average: float  # of the eight, as printed, %
    source: str
    remark: str = ""


def _model(family: str, method: str) -> str:
    if method == "base":
        return family
    ours = method in ("GRPO", "DAPO", "VPPO")
    return f"{family} + {method}" if ours else f"{method}-{family.rpartition('-')[2]}"


def _columns(family: str, place: int) -> dict[str, float]:
    printed = {name: BENCHMARKS[name].published.get(family, ()) for name in (*EIGHT, *TABLE_8)}
    return {name: values[place] for name, values in printed.items() if place < len(values)}


ROWS = tuple(
    Published(
        _model(family, method),
        family,
        method,
        _columns(family, place),
        average,
        SOURCES.get(family, PAPER),
        REMARKS.get(method, ""),
    )
    for family, averages in AVERAGES.items()
    for place, (method, average) in enumerate(averages.items())
)


def beside(rows: Sequence[Mapping[str, Any]]) -> str:
    """What is to be said beside printed rows (as ``asdict`` gives them): their sources, and remarks.

    Rows of reports that earlier versions wrote do not tell their source.
    """
    sources: dict[str, list[str]] = {}
    for row in rows:
        source = row.get("source") or SOURCES.get(row["family"], PAPER)
        sources.setdefault(source, []).append(row["family"])
    found = [
        source if source == PAPER else f"{', '.join(dict.fromkeys(families))}: {source}"
        for source, families in sources.items()
    ]
    remarks = {f"{row['method']}: {row['remark']}" for row in rows if row.get("remark")}
    return "; ".join([*found, *sorted(remarks)])


_SIZE = re.compile(r"(?<![0-9a-z.])(\d+(?:\.\d+)?)b(?![0-9a-z])")
_KIND = re.compile(r"(?<![0-9a-z])qwen[-_]?(2[._]5|3)[-_]?vl(?![0-9a-z])")
_FAMILIES = {("2.5", "7"): "Qwen2.5-VL-7B", ("2.5", "32"): "Qwen2.5-VL-32B", ("3", "8"): "Qwen3-VL-8B"}


def nearest_family(path: str) -> str:
    """The family whose numbers to show first; the 7B if the model is of none, or unknown.

    Args:
        path: the model's folder or hub id. Of its parts, the last that names a family decides: its
            kind and, as the first size in it, one of the sizes that were published.
    """
    for name in reversed(path.lower().split("/")):
        kind, size = _KIND.search(name), _SIZE.search(name)
        if kind and size and (found := (kind[1].replace("_", "."), size[1])) in _FAMILIES:
            return _FAMILIES[found]
    return "Qwen2.5-VL-7B"
