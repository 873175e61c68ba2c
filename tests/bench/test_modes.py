"""The table of modes: it has a row for every difference, and its numbers are what they are called."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipelines.bench import modes
from pipelines.bench.pages import marks
from pipelines.config import settings
from pipelines.disk.records import Scored

PAGE = (Path(__file__).parents[2] / "docs" / "method.md").read_text(encoding="utf-8")
BEGIN, END = marks("modes")


def test_every_difference_has_a_row_of_the_page() -> None:
    ours, theirs = settings.MODES["exact"], settings.MODES["published"]
    rows = [name for one in modes.DIFFERENCES for name in one.names]
    assert sorted(rows) == sorted(ours)
    assert all(ours[name] != theirs[name] for name in rows)
    table = PAGE.partition(BEGIN)[2].partition(END)[0]
    for one in modes.DIFFERENCES:
        assert sum(f"`{one.names[0]}`" in row and one.why in row for row in table.splitlines()) == 1


def test_the_text_of_the_page_is_the_commands() -> None:
    """But for the numbers, and for the lines that these shorten or lengthen."""
    said = modes.TEMPLATE.partition("{table}")[2]
    said = said.replace("{command}", "python -m pipelines.bench.modes --prompts 32")
    words = {word for word in said.split() if "{" not in word}
    assert words <= {*PAGE.partition(BEGIN)[2].split()}


def scored(perception: list[float], keep: list[bool]) -> Scored:
    return Scored("a", 0, [[]], [[]], [perception], [keep], [0.0])


def test_the_numbers_by_hand() -> None:
    one = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([4.0])}
    other = {"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([4.0])}
    assert modes.apart(one, other) == pytest.approx(1 / 5)
    first = [scored([0.0, 2.0, 0.0, 0.0], [True, True, False, False])]
    second = [scored([1.0, 2.0, 0.0, 0.0], [False, True, True, False])]
    assert modes.overlap(first, second) == 0.5
    assert modes.zeros(first) == (0.75, 0.5)


def test_responses_are_dealt_back_and_forth_by_length() -> None:
    device, place = modes.dealt(torch.tensor([5, 9, 7, 1, 3]), 2)
    # 9 and 7, then back: 5 and 3, then 1.
    assert device.tolist() == [1, 0, 1, 0, 0]
    assert place.tolist() == [0, 0, 1, 1, 2]


def test_kahans_compensation_lets_small_steps_in_later() -> None:
    gradient, weight = {"w": torch.ones(1)}, {"w": torch.full((1,), 0.05)}
    for steps, visible in ((1, False), (200, True)):  # whose neighbours are 2e-4 away
        exact, rounded = modes.kahan(gradient, weight, 1e-6, steps)
        assert exact["w"].item() == pytest.approx(-1e-6 * steps, rel=0.1)
        assert (rounded["w"].item() != 0) == visible
