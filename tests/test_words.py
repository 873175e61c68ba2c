"""Numbers as a person reads them."""

from pathlib import Path

import pytest

from pipelines.chain import Chain
from pipelines.config import settings
from pipelines.words import counted, signed
from vppo_cli.screen import facts
from vppo_cli.screen.words import duration, numbers, ranges, size, sparkline


def test_a_sparkline_goes_from_the_lowest_to_the_highest_bar() -> None:
    assert sparkline([0.0, 1.0]) == "▁█"
    # Eight equal steps over eight bars.
    assert sparkline([i / 7 for i in range(8)]) == "▁▂▃▄▅▆▇█"


def test_a_sparkline_averages_what_does_not_fit() -> None:
    # Four values in two bars: means 1 and 5.
    assert sparkline([0, 2, 4, 6], width=2) == "▁█"


def test_a_sparkline_of_nothing_much() -> None:
    assert sparkline([]) == ""
    assert sparkline([3.0]) == ""
    assert sparkline([3.0, 3.0, 3.0]) == "▁▁▁"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (94, "1 m 34 s"),
        (3600, "1 h 00 m"),
        (34140, "9 h 29 m"),
        (259_199, "71 h 59 m"),
        (363_600, "4 d 05 h"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_ranges_join_runs() -> None:
    assert ranges([3, 1, 2, 5, 7, 8]) == "1..3, 5, 7..8"
    assert ranges([4, 4]) == "4"
    assert ranges([]) == ""
    for some in ({3, 1, 2, 5, 7, 8}, {4}, set[int]()):
        assert numbers(ranges(some)) == some


@pytest.mark.parametrize(("count", "text"), [(999, "999 B"), (1500, "1.5 kB"), (2.5e9, "2.5 GB"), (4e12, "4.0 TB")])
def test_size(count: float, text: str) -> None:
    assert size(count) == text


def test_one_is_not_several() -> None:
    assert [counted(n, "step") for n in (0, 1, 2)] == ["0 steps", "1 step", "2 steps"]
    assert counted(1, "image is", "images are") == "1 image is"


def test_a_run_of_one_step(tmp_path: Path) -> None:
    config = settings.load(None, ["run.steps=1", "checkpoint.every=1"])
    assert facts.in_words(Chain(config, tmp_path)) == "1 step of rollout, score, update; 1 checkpoint; eval on glyphs"


def test_what_rounds_to_nothing_has_no_minus() -> None:
    assert [signed(value, 1) for value in (-0.04, 0.0, -0.06, 1.25)] == ["+0.0", "+0.0", "-0.1", "+1.2"]
