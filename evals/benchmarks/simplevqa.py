"""SimpleVQA, English questions: short facts (the paper's Table 8)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evals.benchmarks.base import Benchmark, Question, Where, as_text, one_image

LANGUAGE = "EN"


def question(raw: Mapping[str, Any], where: Where) -> Question | None:
    """The rows in English. The image is text, base64."""
    if as_text(raw["language"]).strip().upper() != LANGUAGE:
        return None
    name = as_text(raw.get("data_id")) or f"row-{where.row}"
    return one_image(
        name, raw["question"], raw["image"], raw["answer"], kind="fact", category=raw.get("original_category")
    )


SIMPLEVQA = Benchmark(
    "simplevqa",
    "SimpleVQA-EN",
    "short facts about what is shown, English questions",
    "m-a-p/SimpleVQA",
    ("image", "question", "answer", "language"),
    2025,
    None,
    question,
    breakdowns=("category",),
    optional=("data_id", "original_category"),
    published={"Qwen2.5-VL-7B": (38.6, 43.1, 42.9, 43.8)},
    note="SimpleVQA's own metric is a judge model, and the paper does not say how it graded. Here an "
    "answer is right that is the gold or has it among its words: no match for a judge's number.",
)
