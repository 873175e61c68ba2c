"""Reading ``looks.parquet``: the two views of a step's first groups, as the scoring stage saw them."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import pyarrow as pa

_TEXTS, _REALS = pa.list_(pa.string()), pa.list_(pa.float32())

LOOK_COLUMNS = pa.schema([
    ("position", pa.int64()),
    ("images", pa.list_(pa.binary())),
    ("perturbed_images", pa.list_(pa.list_(pa.binary()))),
    ("tokens", pa.list_(_TEXTS)),
    ("logp", pa.list_(_REALS)),
    ("logp_perturbed", pa.list_(_REALS)),
    ("top", pa.list_(pa.list_(_TEXTS))),
    ("top_p", pa.list_(pa.list_(_REALS))),
    ("top_q", pa.list_(pa.list_(_REALS))),
    ("top_perturbed", pa.list_(pa.list_(_TEXTS))),
    ("top_perturbed_p", pa.list_(pa.list_(_REALS))),
    ("top_perturbed_q", pa.list_(pa.list_(_REALS))),
])  # fmt: skip
"""The columns that the page shows; all lists begin [responses][tokens]."""


class Looks:
    """The rows of one step by position, each read when asked for: images are large."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    @cached_property
    def positions(self) -> list[int]:
        return list(self._table["position"].to_pylist())

    def row(self, position: int) -> dict[str, Any]:
        return dict(self._table.slice(self.positions.index(position), 1).to_pylist()[0])
