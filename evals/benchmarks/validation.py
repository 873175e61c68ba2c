"""A run's own validation questions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evals.benchmarks.base import Own
from pipelines.errors import UserError

if TYPE_CHECKING:
    from pipelines.config.schema import Config


def check(config: Config) -> None:
    """Refuse settings that hold no questions out.

    Raises:
        UserError: they hold none out.
    """
    if not config.data.has_validation:
        raise UserError(
            "eval.benchmarks: validation",
            "the settings hold no questions out.",
            "Set data.validation_count, or name a data.validation_source.",
        )


VALIDATION = Own("validation", "validation.parquet", check)
