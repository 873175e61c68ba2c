"""Numbers as a person reads them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from itertools import pairwise

BARS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float], width: int = 12) -> str:
    """The course of a series in ``width`` bars, each the mean of its share of the values."""
    if len(values) < 2:
        return ""
    width = min(width, len(values))
    edges = [round(i * len(values) / width) for i in range(width + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, span = min(means), max(means) - min(means)
    return "".join(BARS[int((m - low) / span * 7.999) if span else 0] for m in means)


def duration(seconds: float) -> str:
    """``4 d 05 h``, ``1 h 02 m``, ``1 m 34 s``, ``12 s``."""
    whole = round(seconds)
    if whole >= 3 * 86400:
        return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} m"
    if whole >= 60:
        return f"{whole // 60} m {whole % 60:02d} s"
    return f"{whole} s"


def ranges(numbers: Iterable[int]) -> str:
    """``1..40, 42``: sorted numbers, runs joined."""
    parts: list[list[int]] = []
    for number in sorted(set(numbers)):
        if parts and number == parts[-1][-1] + 1:
            parts[-1][-1:] = [parts[-1][-1], number] if len(parts[-1]) == 1 else [number]
        else:
            parts.append([number])
    return ", ".join(f"{p[0]}..{p[-1]}" if len(p) > 1 else str(p[0]) for p in parts)


def numbers(text: str) -> set[int]:
    """What ``ranges`` wrote."""
    found: set[int] = set()
    for part in filter(None, text.split(", ")):
        first, _, last = part.partition("..")
        found |= {*range(int(first), int(last or first) + 1)}
    return found


def size(count: float) -> str:
    """Bytes as ``1.2 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def compact(count: float) -> str:
    """A speed in few characters: ``87``, ``3320``, ``12.4 k``, ``1.2 M``."""
    if count < 10_000:
        return f"{count:.0f}"
    return f"{count / 1e3:.1f} k" if count < 1e6 else f"{count / 1e6:.1f} M"


class Pace:
    """How long work still takes, from how fast it has gone since it began."""

    def __init__(self) -> None:
        self._label, self._done, self._since = "", 0, 0.0

    def left(self, label: str, done: int, total: int | None) -> str:
        """``left 1 m 34 s``; "" while that cannot be told yet.

        Args:
            label: what is counted; another label, or a smaller count, begins again.
        """
        now = time.monotonic()
        if label != self._label or done < self._done:
            self._label, self._done, self._since = label, done, now
        made, spent = done - self._done, now - self._since
        if not total or done >= total or not made or spent < 1:
            return ""
        return f"left {duration((total - done) * spent / made)}"
