"""What ``make gpu`` found, for people: a table in the terminal, and as markdown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

HEAD = ("part", "what", "found")
UNITS = {
    "_bytes_per_s": ((1e9, "GB/s"),),
    "_per_s": ((1, "/s"),),
    "_bytes": ((2**30, "GiB"), (2**20, "MiB")),
    "_flops": ((1e12, "TFLOP/s"), (1e9, "GFLOP/s")),
    "_share": ((0.01, "%"),),
    "_s": ((1, "s"), (1e-3, "ms"), (1e-6, "us")),
}
"""Ends of names (pipelines/bench/gpu/place.py) -> the units to choose from, the largest first."""


def show(parts: dict[str, dict[str, Any]], console: Console) -> None:
    """Print all parts as one table."""
    table = Table(*HEAD, box=None, pad_edge=False)
    table.columns[2].overflow = "fold"
    for part, what, found in _rows(parts):
        table.add_row(part, what, found)
    console.print(table)


def markdown(parts: dict[str, dict[str, Any]], command: str) -> str:
    """The same to be pasted into docs/gpu.md, under a line with device, date, versions and command."""
    known = next((part for part in parts.values() if "device" in part), None)
    head = f"`{command}`."
    if known:
        versions = (f"{name} {number}" for name, number in known["versions"].items())
        head = f"{known['device']}, {known['date']}; {', '.join(versions)}; {head}"
    lines = [head, "", f"| {' | '.join(HEAD)} |", "|---|---|---|"]
    for row in _rows(parts):
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |")
    return "\n".join(lines) + "\n"


def _rows(parts: dict[str, dict[str, Any]]) -> Iterator[tuple[str, str, str]]:
    """A part's name stands in its first row, which says how it ended."""
    for name, part in parts.items():
        yield name, "", f"{part['ended']}, {_figure('_s', part['seconds'])}"
        for what, figures in part.get("found", {}).items():
            yield (
                "",
                what,
                ", ".join(_figure(of, value) for of, value in figures.items() if not isinstance(value, list)),
            )  # lists are for the file alone


def _figure(name: str, value: Any) -> str:
    """A name and its value, in the unit that the name ends with."""
    end = next((end for end in UNITS if name.endswith(end)), "")
    words = name.removesuffix(end).replace("_", " ")
    if isinstance(value, bool):
        return f"{words}: {'yes' if value else 'NO'}"
    if isinstance(value, str):
        return f"{words}: {value}"
    if not end:
        return f"{words} {_number(value)}"
    unit, word = next((u for u in UNITS[end] if value >= u[0]), UNITS[end][-1])
    gap = "" if word == "%" else " "
    return f"{words} {_number(value / unit)}{gap}{word}".lstrip()


def _number(value: float) -> str:
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"
