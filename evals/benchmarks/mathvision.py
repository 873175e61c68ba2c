"""MathVision: competition mathematics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evals.benchmarks.base import Benchmark, Question, Where, as_text, is_exact, one_image, parse_options, with_options


def question(raw: Mapping[str, Any], where: Where) -> Question | None:
    """Integers and single letters. All of a question's pictures are in one composite image."""
    gold = as_text(raw["answer"])
    if not is_exact(gold):
        return None
    options = parse_options(raw["options"] or [])
    problem = with_options(as_text(raw["question"]), options)
    return one_image(
        raw["id"],
        problem,
        raw["decoded_image"],
        gold,
        options=options,
        level=raw.get("level"),
        subject=raw.get("subject"),
    )


MATHVISION = Benchmark(
    "mathvision",
    "MathVision",
    "competition mathematics of five levels",
    "MathLLMs/MathVision",
    ("id", "question", "options", "decoded_image", "answer"),
    3040,
    2907,
    question,
    breakdowns=("level", "subject"),
    optional=("level", "subject"),
    published={
        "Qwen2.5-VL-7B": (18.4, 30.7, 30.5, 33.3, 30.6, 31.1, 32.0, 31.9, 22.1, 30.1),
        "Qwen2.5-VL-32B": (39.3, 42.8, 42.8, 44.6, 43.2, 27.9),
        "Qwen3-VL-8B": (37.8, 55.9),
    },
)
