"""A run's own held-out questions of the embedded data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evals.benchmarks.base import Own
from pipelines.errors import UserError

if TYPE_CHECKING:
    from pipelines.config.schema import Config


def check(config: Config) -> None:
    """Refuse settings whose data is not the embedded one.

    Raises:
        UserError: they name another source.
    """
    if config.data.source != "glyphs":
        raise UserError(
            "eval.benchmarks: glyphs",
            f"needs the embedded data, and data.source is {config.data.source}.",
            "Use eval.benchmarks=[validation].",
        )


GLYPHS = Own("glyphs", "test.parquet", check)
