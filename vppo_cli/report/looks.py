"""Reading ``looks.parquet``: the two views of a step's first groups, as the scoring stage saw them."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import pyarrow as pa


class Looks:
    """The rows of one step by position, each read when asked for: images are large."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    @cached_property
    def positions(self) -> list[int]:
        return list(self._table["position"].to_pylist())

    def row(self, position: int) -> dict[str, Any]:
        return dict(self._table.slice(self.positions.index(position), 1).to_pylist()[0])
