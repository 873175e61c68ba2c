"""Geometry3k: plane geometry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evals.benchmarks.base import Benchmark, Question, Where, as_list, as_text


def question(raw: Mapping[str, Any], where: Where) -> Question | None:
    """The value is asked for: choices, and the letter among them, are not used."""
    images = as_list(raw["images"])
    problem = as_text(raw["problem"])
    return Question(as_text(raw["id"]), problem, images, as_text(raw["answer"]).strip(), "value")


GEO3K = Benchmark(
    "geo3k",
    "Geometry3k",
    "plane geometry, answered by a value",
    "hiyouga/geometry3k",
    ("id", "images", "problem", "answer"),
    601,
    601,
    question,
    published={
        "Qwen2.5-VL-7B": (37.1, 40.2, 41.5, 46.5, 44.1, 40.3, 37.6, 40.7, 51.8, 41.2),
        "Qwen2.5-VL-32B": (47.0, 51.4, 51.4, 53.4, 51.0, 56.6),
        "Qwen3-VL-8B": (57.5, 71.9),
    },
)
