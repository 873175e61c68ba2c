"""The table that the paper printed, to be shown beside ours (avg@8: the mean of 8 samples, in %).

Its columns are with the benchmarks (``Benchmark.published``); what holds of all of them is here.

Source: "Spotlight on Token Perception for Multimodal Reinforcement Learning", arXiv 2510.09285: the
tables of results on eight benchmarks. Its average is the unweighted mean of the eight columns; the
mean of each row below agrees with the printed average to within the rounding of either (0.05), so
the two were computed from the same numbers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from evals.benchmarks.table import BENCHMARKS, EIGHT

PAPER = "arXiv 2510.09285"
SAMPLES = 8

# How the published numbers were sampled and graded, by family; the rest is the same for all.
SETTINGS = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 50,
    "min_pixels": 1024,
    "max_pixels": 589_824,
}
MAX_NEW_TOKENS = {"Qwen2.5-VL-7B": 2048, "Qwen2.5-VL-32B": 4096, "Qwen3-VL-8B": 8192}
GRADER = "mathruler"

AVERAGES = {
    "Qwen2.5-VL-7B": {"base": 38.3, "GRPO": 53.1, "DAPO": 55.0, "VPPO": 57.5, "PAPO-D": 55.3},
    "Qwen2.5-VL-32B": {"base": 57.0, "GRPO": 62.6, "DAPO": 63.5, "VPPO": 64.6},
    "Qwen3-VL-8B": {"base": 56.3, "VPPO": 71.4},
}
"""The rows of the table, in its order, and their averages as printed, %: family -> how its models were
trained ("base": as it came) -> average."""


@dataclass(frozen=True)
class Published:
    """One printed row: a model that started as ``family`` and was trained by ``method``."""

    model: str
    family: str
    method: str  # "base": the family's model as it came
    accuracy: dict[str, float]  # of each of the eight, %
    average: float  # as printed, %


def _model(family: str, method: str) -> str:
    if method == "PAPO-D":
        return "PAPO-D-7B"
    return family if method == "base" else f"{family} + {method}"


ROWS = tuple(
    Published(
        _model(family, method), family, method,
        {name: BENCHMARKS[name].published[family][place] for name in EIGHT}, average,
    )
    for family, averages in AVERAGES.items()
    for place, (method, average) in enumerate(averages.items())
)  # fmt: skip


_SIZE = re.compile(r"(?<![0-9a-z.])(\d+(?:\.\d+)?)b(?![0-9a-z])")
_KIND = re.compile(r"(?<![0-9a-z])qwen[-_]?(2[._]5|3)[-_]?vl(?![0-9a-z])")
_FAMILIES = {
    ("2.5", "7"): "Qwen2.5-VL-7B",
    ("2.5", "32"): "Qwen2.5-VL-32B",
    ("3", "8"): "Qwen3-VL-8B",
}


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
