"""Words that go with numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


def counted(count: int, one: str, several: str = "") -> str:
    """``1 step``, ``3 steps``.

    Args:
        one: what is counted, of one.
        several: of any other number, where that is not ``one`` and an s.
    """
    return f"{count} {one if count == 1 else several or one + 's'}"


def who_has(ways: Mapping[str, Iterable[str]]) -> str:
    """Each value and who has it: ``1.0 (a-1, a-2), 0.9 (b-3)``."""
    return ", ".join(f"{value} ({', '.join(names)})" for value, names in ways.items())


def signed(value: float, places: int) -> str:
    """``+0.3``, ``-1.2``; what rounds to nothing is ``+0.0``."""
    return f"{round(value, places) + 0.0:+.{places}f}"
