"""Words that go with numbers."""

from __future__ import annotations


def counted(count: int, one: str, several: str = "") -> str:
    """``1 step``, ``3 steps``.

    Args:
        one: what is counted, of one.
        several: of any other number, where that is not ``one`` and an s.
    """
    return f"{count} {one if count == 1 else several or one + 's'}"
