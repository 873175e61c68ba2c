"""Plain MMMU: college questions of 30 subjects, the validation split."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from evals.benchmarks.base import IMAGES_1_TO_7, Benchmark, Question, Where, as_text, mmmu

SUBJECTS = (
    "Accounting",
    "Agriculture",
    "Architecture_and_Engineering",
    "Art",
    "Art_Theory",
    "Basic_Medical_Science",
    "Biology",
    "Chemistry",
    "Clinical_Medicine",
    "Computer_Science",
    "Design",
    "Diagnostics_and_Laboratory_Medicine",
    "Economics",
    "Electronics",
    "Energy_and_Power",
    "Finance",
    "Geography",
    "History",
    "Literature",
    "Manage",
    "Marketing",
    "Materials",
    "Math",
    "Mechanical_Engineering",
    "Music",
    "Pharmacy",
    "Physics",
    "Psychology",
    "Public_Health",
    "Sociology",
)


def question(raw: Mapping[str, Any], where: Where) -> Question | None:
    """An open question may have several golds; any counts."""
    named = re.fullmatch(r"[a-z]+_(.+)_\d+", as_text(raw["id"]))  # validation_Accounting_1
    subject = where.subset or (named[1] if named else "")
    return mmmu(raw, subject, choice=raw["question_type"] == "multiple-choice")


MMMU_VAL = Benchmark(
    "mmmu_val",
    "MMMU",
    "college questions of 30 subjects, the validation split",
    "MMMU/MMMU",
    ("id", "question", "options", "answer", "question_type", "image_1"),
    900,
    900,
    question,
    subsets=SUBJECTS,
    splits=("validation",),
    breakdowns=("subject",),
    optional=IMAGES_1_TO_7[1:],
)
