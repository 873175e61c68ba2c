"""A-OKVQA: multiple-choice questions that need knowledge of the world (the paper's Table 8)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evals.benchmarks.base import Benchmark, Question, Where, as_text, one_image, parse_options, with_options
from pipelines.model.images import Unusable


def question(raw: Mapping[str, Any], where: Where) -> Question | None:
    """The gold is the number of a choice; the direct answers, another task, are not used."""
    options, gold = parse_options(raw["choices"]), raw["correct_choice_idx"]
    if not isinstance(gold, int) or not 0 <= gold < len(options):
        raise Unusable("no answer", f"choice {gold!r} of {len(options)}")
    problem = with_options(as_text(raw["question"]), options)
    letter = chr(ord("A") + gold)
    return one_image(raw["question_id"], problem, raw["image"], letter, options=options)


AOKVQA = Benchmark(
    "aokvqa",
    "A-OKVQA",
    "photographs and knowledge of the world, the validation split",
    "HuggingFaceM4/A-OKVQA",
    ("image", "question_id", "question", "choices", "correct_choice_idx"),
    1145,
    1145,
    question,
    splits=("validation",),
    choices=True,
    published={"Qwen2.5-VL-7B": (84.2, 87.4, 87.9, 87.9)},
)
