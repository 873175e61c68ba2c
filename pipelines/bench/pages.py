"""Tables that a command makes inside a page of the docs."""

from __future__ import annotations

from pathlib import Path

from pipelines.errors import UserError


def marks(name: str) -> tuple[str, str]:
    """The lines between which a page has the table of this name."""
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def put(page: Path, name: str, text: str) -> None:
    """Write a page anew with this table in its place.

    Raises:
        UserError: the page has no place for it.
    """
    first, last = marks(name)
    before, begin, rest = page.read_text(encoding="utf-8").partition(first)
    _, end, after = rest.partition(last)
    if not (begin and end):
        raise UserError(str(page), f"has no place for the table ({first} ... {last}).", "Name the page that has it.")
    page.write_text(f"{before}{first}\n{text}\n{last}{after}", encoding="utf-8")
