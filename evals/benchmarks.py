"""The benchmarks as one table: name -> how to load its questions.

To add one, write a function from (prepared data folder) to samples and name it in ``BENCHMARKS``.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import UserError
from pipelines.records import Sample, read_rows


@dataclass(frozen=True)
class Benchmark:
    """A benchmark: what it is, and how its questions are loaded."""

    about: str
    load: Callable[[Path], list[Sample]]


def _prepared(name: str) -> Callable[[Path], list[Sample]]:
    def load(prepared: Path) -> list[Sample]:
        path = prepared / f"{name}.parquet"
        if not path.is_file():
            raise UserError(
                f"{name} questions", f"{path.parent.name} has none.",
                "The glyphs benchmark needs data.source=glyphs; name others with eval.benchmarks.",
            )  # fmt: skip
        return read_rows(path, Sample)

    return load


BENCHMARKS: dict[str, Benchmark] = {
    "glyphs": Benchmark("held-out questions of the embedded data", _prepared("test")),
    "validation": Benchmark("the run's own validation questions", _prepared("validation")),
}


def check_names(names: Iterable[str]) -> None:
    """Refuse unknown benchmarks, naming the nearest.

    Raises:
        UserError: a name is not in the table.
    """
    for name in names:
        if name not in BENCHMARKS:
            near = difflib.get_close_matches(name, BENCHMARKS, n=1)
            hint = f"Did you mean {near[0]}? " if near else ""
            raise UserError(name, "no such benchmark.", f"{hint}Known: {' '.join(BENCHMARKS)}.")


def check_data(names: Iterable[str], data_source: str) -> None:
    """Refuse, before anything is trained, a benchmark that the run's data cannot serve.

    Raises:
        UserError: glyphs is asked for and the data is not the embedded one.
    """
    if "glyphs" in names and data_source != "glyphs":
        raise UserError(
            "eval.benchmarks: glyphs", f"needs the embedded data, and data.source is {data_source}.",
            "Use eval.benchmarks=[validation].",
        )  # fmt: skip


def questions(name: str, prepared: Path, limit: int | None) -> Sequence[Sample]:
    """The questions of a benchmark, at most ``limit`` of them."""
    check_names([name])
    rows = BENCHMARKS[name].load(prepared)[:limit]
    if not rows:
        raise UserError(name, "has no questions.", "Prepare the data again, or name others.")
    return rows
