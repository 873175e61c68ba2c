"""MMK12: school questions of four subjects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evals.benchmarks.base import Benchmark, Question, Where, one_image


def question(raw: Mapping[str, Any], where: Where) -> Question | None:
    """Every question; all but its image is text."""
    return one_image(raw["id"], raw["question"], raw["image"], raw["answer"], subject=raw.get("subject"))


MMK12 = Benchmark(
    "mmk12",
    "MMK12",
    "school mathematics, physics, chemistry, biology; the authors' code validates on it",
    "FanqingM/MMK12",
    ("id", "question", "image", "answer"),
    2000,
    2000,
    question,
    breakdowns=("subject",),
    optional=("subject",),
    note="The MMK12 test set is also what the authors' code validates on while training.",
    authors_file="PAPO_MMK12",
    published={
        "Qwen2.5-VL-7B": (42.5, 72.3, 82.1, 82.8, 80.6, 67.5, 62.6, 68.3, 50.0, 70.9),
        "Qwen2.5-VL-32B": (68.8, 80.7, 86.4, 86.3, 73.4, 60.2),
        "Qwen3-VL-8B": (62.0, 80.6),
    },
)
