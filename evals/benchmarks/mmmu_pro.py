"""MMMU-Pro: college questions, all image (the paper's) or with images and text apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evals.benchmarks.base import IMAGES_1_TO_7, Benchmark, Question, Where, as_text, mmmu, one_image, parse_options
from pipelines.model.images import Unusable

READ_IMAGE = "Answer the multiple-choice question in the image with the letter of its right option."
"""The text of vision questions, which are all image."""


def vision(raw: Mapping[str, Any], where: Where) -> Question | None:
    """The ``vision`` subset: question and options are in the image; the column of options is not asked."""
    try:
        options = parse_options(raw.get("options") or [])
    except Unusable:
        options = []
    return one_image(raw["id"], READ_IMAGE, raw["image"], raw["answer"], options=options, subject=raw.get("subject"))


def standard(raw: Mapping[str, Any], where: Where) -> Question | None:
    """The ``standard`` subsets: pictures stand where the text refers to them."""
    return mmmu(raw, as_text(raw.get("subject")), choice=True)


MMMU_PRO = Benchmark(
    "mmmu_pro",
    "MMMU-Pro",
    "college questions that are all image (the vision subset)",
    "MMMU/MMMU_Pro",
    ("id", "image", "answer"),
    1730,
    1730,
    vision,
    subsets=("vision",),
    choices=True,
    breakdowns=("subject",),
    optional=("subject", "options"),
    alias="mmmu",
    published={
        "Qwen2.5-VL-7B": (25.1, 35.2, 35.9, 37.9, 36.3, 30.3, 28.0, 37.0, 34.5, 35.1),
        "Qwen2.5-VL-32B": (39.6, 45.4, 46.4, 47.1, 43.1, 43.1),
        "Qwen3-VL-8B": (33.7, 52.4),
    },
)


def _standard(options: int) -> Benchmark:
    return Benchmark(
        f"mmmu_pro_standard{options}",
        f"MMMU-Pro standard, {options} options",
        f"college questions with up to {options} options, images and text apart",
        "MMMU/MMMU_Pro",
        ("id", "question", "options", "answer", "image_1"),
        1730,
        1730,
        standard,
        choices=True,
        subsets=(f"standard ({options} options)",),
        breakdowns=("subject",),
        optional=("subject", *IMAGES_1_TO_7[1:]),
    )


MMMU_PRO_STANDARD10, MMMU_PRO_STANDARD4 = _standard(10), _standard(4)
