"""MathVerse: geometry and functions, each problem in five versions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evals.benchmarks.base import Benchmark, Question, Where, as_text, listed_options, one_image


def question(raw: Mapping[str, Any], where: Where) -> Question | None:
    r"""Multiple choice only. The choices are in the question; of Vision Only rows, in the image and in
    ``question_for_eval``. Some golds are an option's text (``False``), or letters a line (``C\nD``).
    """
    if raw["question_type"] != "multi-choice":
        return None
    about = raw.get("metadata")
    about = about if isinstance(about, Mapping) else {}
    texts = (as_text(raw["question"]), as_text(raw.get("question_for_eval")))
    listed = next(filter(None, map(listed_options, texts)), [])
    return one_image(
        raw["sample_index"],
        raw["question"],
        raw["image"],
        raw["answer"],
        options=listed,
        version=raw.get("problem_version"),
        problem=raw.get("problem_index"),
        subject=about.get("subject"),
        subfield=about.get("subfield"),
    )


MATHVERSE = Benchmark(
    "mathverse",
    "MathVerse",
    "geometry and functions in five versions, from all text to all image",
    "AI4Math/MathVerse",
    ("sample_index", "question", "image", "answer", "question_type"),
    3940,
    2180,
    question,
    subsets=("testmini",),
    splits=("testmini",),
    cluster="problem",
    breakdowns=("version", "subject"),
    levels=("Text Dominant", "Text Lite", "Vision Intensive", "Vision Dominant", "Vision Only"),
    optional=("problem_index", "problem_version", "metadata", "question_for_eval"),
    choices=True,
    options_of="problem",
    published={
        "Qwen2.5-VL-7B": (39.0, 66.5, 68.3, 71.6, 68.6, 67.1, 64.2, 68.8, 67.8, 68.0),
        "Qwen2.5-VL-32B": (68.5, 74.2, 73.3, 75.1, 71.8, 73.0),
        "Qwen3-VL-8B": (67.7, 83.8),
    },
)
