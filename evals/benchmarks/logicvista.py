"""LogicVista: visual logic puzzles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evals.benchmarks.base import Benchmark, Question, Where, as_text, one_image


def question(raw: Mapping[str, Any], where: Where) -> Question | None:
    """One row is empty. A gold may be a set of letters ("B, D")."""
    if not as_text(raw["question"]).strip() or not as_text(raw["answer"]).strip():
        return None
    return one_image(f"row-{where.row}", raw["question"], raw["image"], raw["answer"])


LOGICVISTA = Benchmark(
    "logicvista",
    "LogicVista",
    "visual logic puzzles",
    "lscpku/LogicVista",
    ("question", "image", "answer"),
    448,
    447,
    question,
    choices=True,
    published={
        "Qwen2.5-VL-7B": (42.4, 45.6, 46.8, 47.9, 46.7, 46.3, 39.4, 46.3, 47.3, 45.6),
        "Qwen2.5-VL-32B": (52.8, 58.3, 58.9, 59.2, 56.8, 56.2),
        "Qwen3-VL-8B": (50.1, 62.3),
    },
)
