"""Whose number it is: constants.csv, a row for each setting that the published runs fix.

A row has the setting, the model size (none: all), the value in YAML, its source and the place in it:

- ``paper``: arXiv 2510.09285v2, its table, equation or appendix;
- ``authors' code``: github.com/huaixuheqing/VPPO-RL, the file;
- ``authors' evaluation``: github.com/xhguo7/PAPO-Eval, with which they evaluate;
- ``ours``: nobody else's.
"""

from __future__ import annotations

import csv
import functools
from dataclasses import dataclass
from importlib.resources import files
from itertools import groupby
from typing import Any

import yaml

SOURCES = ("paper", "authors' code", "authors' evaluation", "ours")
FILE = "constants.csv"


@dataclass(frozen=True)
class Constant:
    """A row; ``size`` is "7B", "32B", "8B", or "" where the value is that of all."""

    setting: str
    size: str
    text: str
    source: str
    where: str

    @property
    def value(self) -> Any:
        """What a config would hold."""
        return yaml.safe_load(self.text)


@functools.cache
def constants() -> tuple[Constant, ...]:
    """The whole table."""
    lines = files("pipelines.config").joinpath(FILE).read_text(encoding="utf-8").splitlines()
    return tuple(Constant(*row) for row in list(csv.reader(lines))[1:])


def cited(setting: str) -> str:
    """``Paper (Table 9): 2048 for 7B, 4096 for 32B. Authors' code (...): ...``; "" for none but ours."""
    rows = [row for row in constants() if row.setting == setting and row.source != "ours"]
    parts = []
    for (source, where), group in groupby(rows, lambda row: (row.source, row.where)):
        values = [row.text + (f" for {row.size}" if row.size else "") for row in group]
        parts.append(f"{source.capitalize()} ({where}): {', '.join(values)}.")
    return " ".join(parts)
