"""Where the code of evaluations is: found by name when it is needed, as evaluations are made from runs."""

from __future__ import annotations

from importlib import import_module
from typing import Any

EVALUATIONS = "evals.stage"


def of_evaluations(name: str) -> Any:
    """What the module of evaluations calls so."""
    return getattr(import_module(EVALUATIONS), name)
