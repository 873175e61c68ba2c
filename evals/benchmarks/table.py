"""The benchmarks as one table: name -> where its rows are, how many, and what becomes of each.

To add one, write a row function (``evals/benchmarks/rows.py``) and name it in ``BENCHMARKS``.
The paper is arXiv 2510.09285; its eight benchmarks are ``all``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from evals.benchmarks import rows as benchmark_rows
from evals.benchmarks.rows import Row
from pipelines.errors import UserError


@dataclass(frozen=True)
class Benchmark:
    """A public benchmark.

    ``rows`` and ``kept`` count the whole split, before and after the filter. ``cluster`` is the
    group whose questions the bootstrap draws together ("": each question alone); ``breakdowns`` are
    the groups to report by. ``subsets`` times ``splits`` are read in order. ``columns`` are those
    that every part must have, ``optional`` those that are read where they are, and ``repeats``
    one whose repeated values are counted for the row function.
    """

    title: str
    about: str
    hub: str
    columns: tuple[str, ...]
    rows: int
    kept: int
    row: Row
    subsets: tuple[str | None, ...] = (None,)
    splits: tuple[str, ...] = ("test",)
    cluster: str = ""
    breakdowns: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    repeats: str = ""


_MMMU_SUBJECTS = (
    "Accounting", "Agriculture", "Architecture_and_Engineering", "Art", "Art_Theory",
    "Basic_Medical_Science", "Biology", "Chemistry", "Clinical_Medicine", "Computer_Science",
    "Design", "Diagnostics_and_Laboratory_Medicine", "Economics", "Electronics",
    "Energy_and_Power", "Finance", "Geography", "History", "Literature", "Manage", "Marketing",
    "Materials", "Math", "Mechanical_Engineering", "Music", "Pharmacy", "Physics", "Psychology",
    "Public_Health", "Sociology",
)  # fmt: skip

_IMAGES_1_TO_7 = tuple(f"image_{n}" for n in range(1, 8))


def _mmmu_pro_standard(options: int) -> Benchmark:
    return Benchmark(
        f"MMMU-Pro standard, {options} options",
        f"college questions with up to {options} options, images and text apart",
        "MMMU/MMMU_Pro", ("id", "question", "options", "answer", "image_1"), 1730, 1730,
        benchmark_rows.mmmu_pro_standard, subsets=(f"standard ({options} options)",),
        breakdowns=("subject",), optional=("subject", *_IMAGES_1_TO_7[1:]),
    )  # fmt: skip


BENCHMARKS: dict[str, Benchmark] = {
    "mathverse": Benchmark(
        "MathVerse", "geometry and functions in five versions, from all text to all image",
        "AI4Math/MathVerse",
        ("sample_index", "question", "image", "answer", "question_type"), 3940, 2180,
        benchmark_rows.mathverse,
        subsets=("testmini",), splits=("testmini",), cluster="problem",
        breakdowns=("version", "subject"), optional=("problem_index", "problem_version", "metadata"),
    ),
    "dynamath": Benchmark(
        "DynaMath", "501 seed questions in ten variants each", "DynaMath/DynaMath_Sample",
        ("id", "question", "decoded_image", "ground_truth", "answer_type"), 5010, 3666,
        benchmark_rows.dynamath,
        splits=tuple(f"sample_variant{n}" for n in range(1, 11)), cluster="seed",
        breakdowns=("subject", "level"), optional=("subject", "knowledge_level"), repeats="id",
    ),
    "mmk12": Benchmark(
        "MMK12", "school mathematics, physics, chemistry, biology; the paper also validates on it",
        "FanqingM/MMK12", ("id", "question", "image", "answer"), 2000, 2000,
        benchmark_rows.mmk12, breakdowns=("subject",), optional=("subject",),
    ),
    "geo3k": Benchmark(
        "Geometry3k", "plane geometry, answered by a value", "hiyouga/geometry3k",
        ("id", "images", "problem", "answer"), 601, 601, benchmark_rows.geo3k,
    ),
    "mathvision": Benchmark(
        "MathVision", "competition mathematics of five levels", "MathLLMs/MathVision",
        ("id", "question", "options", "decoded_image", "answer"), 3040, 2907,
        benchmark_rows.mathvision, breakdowns=("level", "subject"), optional=("level", "subject"),
    ),
    "wemath": Benchmark(
        "We-Math", "composite problems beside their one-step parts", "We-Math/We-Math",
        ("ID", "key", "question", "option", "answer", "image_path"), 1740, 1740,
        benchmark_rows.wemath, splits=("testmini",), cluster="id", breakdowns=("steps",),
    ),
    "logicvista": Benchmark(
        "LogicVista", "visual logic puzzles", "lscpku/LogicVista", ("question", "image", "answer"),
        448, 447, benchmark_rows.logicvista,
    ),
    "mmmu_pro": Benchmark(
        "MMMU-Pro", "college questions that are all image (the vision subset)", "MMMU/MMMU_Pro",
        ("id", "image", "answer"), 1730, 1730, benchmark_rows.mmmu_pro,
        subsets=("vision",), breakdowns=("subject",), optional=("subject",),
    ),
    "mmmu_val": Benchmark(
        "MMMU", "college questions of 30 subjects, the validation split", "MMMU/MMMU",
        ("id", "question", "options", "answer", "question_type", "image_1"), 900, 900,
        benchmark_rows.mmmu_val, subsets=_MMMU_SUBJECTS, splits=("validation",),
        breakdowns=("subject",), optional=_IMAGES_1_TO_7[1:],
    ),
    "mmmu_pro_standard10": _mmmu_pro_standard(10),
    "mmmu_pro_standard4": _mmmu_pro_standard(4),
}  # fmt: skip
"""Public benchmarks by name."""

EIGHT = (
    "mathverse", "dynamath", "mmk12", "geo3k", "mathvision", "wemath", "logicvista", "mmmu_pro",
)  # fmt: skip
"""The paper's, in its order; ``all`` on the command line."""

OWN = {"glyphs": "test.parquet", "validation": "validation.parquet"}
"""A run's own questions: the file of the prepare step."""

ALIASES = {"mmmu": "mmmu_pro"}


def canonical(names: Iterable[str]) -> tuple[str, ...]:
    """Benchmark names with aliases and ``all`` resolved; a repeated name counts once.

    Raises:
        UserError: there is no such benchmark; the nearest is named.
    """
    known = (*OWN, *BENCHMARKS)
    found: dict[str, None] = {}
    for name in names:
        resolved = EIGHT if name == "all" else (ALIASES.get(name, name),)
        if not set(resolved) <= set(known):
            near = difflib.get_close_matches(name, (*known, *ALIASES, "all"), n=1)
            hint = f"Did you mean {near[0]}? " if near else ""
            raise UserError(
                name, "no such benchmark.", f"{hint}Known: {' '.join(known)}, and all (the paper's eight)."
            )  # fmt: skip
        found |= dict.fromkeys(resolved)
    return tuple(found)


def check_data(names: Iterable[str], data_source: str) -> None:
    """Refuse, before anything is made, a benchmark that the run's data cannot serve.

    Raises:
        UserError: glyphs is asked for and the data is not the embedded one.
    """
    if "glyphs" in names and data_source != "glyphs":
        raise UserError(
            "eval.benchmarks: glyphs", f"needs the embedded data, and data.source is {data_source}.",
            "Use eval.benchmarks=[validation].",
        )  # fmt: skip
