"""Taking turns: what is compared is measured alternately, in one run, on one machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch

Ways = dict[str, Callable[[], object]]


def alternate(ways: Ways, repeats: int) -> dict[str, list[float]]:
    """Seconds of each way, ``repeats`` times after one that warms up: A B C A B C ..."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, way in ways.items():
            took = timed(way)
            if turn:
                seconds[name].append(took)
    return seconds


def timed(way: Callable[[], object]) -> float:
    """Seconds of one call; a GPU is waited for at both ends."""
    _wait()
    begun = time.perf_counter()
    way()
    _wait()
    return time.perf_counter() - begun


def ratio(slow: list[float], fast: list[float]) -> float:
    """Median of slow / fast, turn by turn: the machine's mood cancels."""
    return median(a / b for a, b in zip(slow, fast, strict=True))


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def device() -> str:
    """What computes."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} threads"
