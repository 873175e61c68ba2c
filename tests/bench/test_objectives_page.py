"""docs/objectives.md says of every objective what its row declares; only the measured cost is the page's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.bench import objectives
from pipelines.bench.pages import marks
from pipelines.objectives.table import OBJECTIVES, STORES

PAGE = (Path(__file__).parents[2] / "docs" / "objectives.md").read_text(encoding="utf-8")


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_page_is_what_the_rows_declare() -> None:
    begin, end = marks("objectives")
    table = PAGE.partition(begin)[2].partition(end)[0].strip().splitlines()
    rows = {row[0].strip("`"): row for row in map(cells, table[2 : 2 + len(OBJECTIVES)])}
    assert list(rows) == list(OBJECTIVES)
    for name, row in rows.items():
        cost = row.pop(5)
        assert row == cells("|" + "|".join(objectives.described(name)) + "|")
        assert 0.3 < float(cost) < 10
    assert float(cells(table[2 + list(OBJECTIVES).index("dapo")])[5]) == 1


@pytest.mark.parametrize("store", STORES)
def test_every_set_is_on_the_page(store: str) -> None:
    assert f"| `{store}` |" in PAGE
