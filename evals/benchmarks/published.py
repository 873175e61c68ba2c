"""The numbers that the paper printed, to be shown beside ours (avg@8: the mean of 8 samples, in %).

Source: "Spotlight on Token Perception for Multimodal Reinforcement Learning", arXiv 2510.09285: the
tables of results on eight benchmarks. Its average is the unweighted mean of the eight columns; the
mean of each row below agrees with the printed average to within the rounding of either (0.05), so
the two were computed from the same numbers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from evals.benchmarks.table import EIGHT

PAPER = "arXiv 2510.09285"
SAMPLES = 8

COLUMNS = EIGHT
"""The columns of the table, in its order."""

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


@dataclass(frozen=True)
class Row:
    """One printed row: a model that started as ``family`` and was trained by ``method``."""

    model: str
    family: str
    method: str  # "base": the family's model as it came
    accuracy: dict[str, float]  # of each of COLUMNS, %
    average: float  # as printed, %


def _row(family: str, method: str, *percent: float, model: str = "") -> Row:
    *accuracy, average = percent
    model = model or (family if method == "base" else f"{family} + {method}")
    return Row(model, family, method, dict(zip(COLUMNS, accuracy, strict=True)), average)


ROWS: tuple[Row, ...] = (
    _row("Qwen2.5-VL-7B", "base", 39.0, 55.7, 42.5, 37.1, 18.4, 46.4, 42.4, 25.1, 38.3),
    _row("Qwen2.5-VL-7B", "GRPO", 66.5, 65.8, 72.3, 40.2, 30.7, 68.1, 45.6, 35.2, 53.1),
    _row("Qwen2.5-VL-7B", "DAPO", 68.3, 66.6, 82.1, 41.5, 30.5, 68.0, 46.8, 35.9, 55.0),
    _row("Qwen2.5-VL-7B", "VPPO", 71.6, 68.1, 82.8, 46.5, 33.3, 71.5, 47.9, 37.9, 57.5),
    _row("Qwen2.5-VL-7B", "PAPO-D", 68.6, 66.8, 80.6, 44.1, 30.6, 68.3, 46.7, 36.3, 55.3,
         model="PAPO-D-7B"),
    _row("Qwen2.5-VL-32B", "base", 68.5, 68.7, 68.8, 47.0, 39.3, 71.0, 52.8, 39.6, 57.0),
    _row("Qwen2.5-VL-32B", "GRPO", 74.2, 71.6, 80.7, 51.4, 42.8, 76.7, 58.3, 45.4, 62.6),
    _row("Qwen2.5-VL-32B", "DAPO", 73.3, 72.6, 86.4, 51.4, 42.8, 76.2, 58.9, 46.4, 63.5),
    _row("Qwen2.5-VL-32B", "VPPO", 75.1, 73.1, 86.3, 53.4, 44.6, 77.7, 59.2, 47.1, 64.6),
    _row("Qwen3-VL-8B", "base", 67.7, 72.2, 62.0, 57.5, 37.8, 69.0, 50.1, 33.7, 56.3),
    _row("Qwen3-VL-8B", "VPPO", 83.8, 80.0, 80.6, 71.9, 55.9, 84.3, 62.3, 52.4, 71.4),
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
