"""MathVerse: geometry and functions, each problem in five versions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evals.benchmarks.base import Benchmark, Question, Where, one_image


def question(raw: Mapping[str, Any], where: Where) -> Question | None:
    """Multiple choice only. The choices are in the question; of Vision Only rows, in the image."""
    if raw["question_type"] != "multi-choice":
        return None
    about = raw.get("metadata")
    about = about if isinstance(about, Mapping) else {}
    return one_image(
        raw["sample_index"], raw["question"], raw["image"], raw["answer"],
        version=raw.get("problem_version"), problem=raw.get("problem_index"),
        subject=about.get("subject"), subfield=about.get("subfield"),
    )  # fmt: skip


MATHVERSE = Benchmark(
    "mathverse", "MathVerse",
    "geometry and functions in five versions, from all text to all image", "AI4Math/MathVerse",
    ("sample_index", "question", "image", "answer", "question_type"), 3940, 2180, question,
    subsets=("testmini",), splits=("testmini",), cluster="problem",
    breakdowns=("version", "subject"),
    levels=("Text Dominant", "Text Lite", "Vision Intensive", "Vision Dominant", "Vision Only"),
    optional=("problem_index", "problem_version", "metadata"),
    published={
        "Qwen2.5-VL-7B": (39.0, 66.5, 68.3, 71.6, 68.6),
        "Qwen2.5-VL-32B": (68.5, 74.2, 73.3, 75.1),
        "Qwen3-VL-8B": (67.7, 83.8),
    },
)  # fmt: skip
