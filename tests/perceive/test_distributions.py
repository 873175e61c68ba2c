"""How perception is distributed over a data set: counts, shares, charts and tables, from rows made by hand."""

import json

import numpy as np
import pytest

from pipelines.disk.records import Perceived, Sample
from pipelines.embedded.glyphs import GlyphsOptions, make_samples
from pipelines.perceive.distributions import Distributions

WORDS = ["<think>", " b1", " shows", " 9", ".", " 9", " +", " 1", " =", " 10", " </think>"]


def row(outcome, perception, keep, tokens=None):
    unknown = [[] for _ in range(3)]
    tokens = tokens or ["a"] * len(perception)
    mean = float(np.mean(perception))
    return Perceived(
        *("id", "problem", "1" if outcome else None, "", False, False, None, outcome, None, mean),
        *([0] * len(tokens), tokens, perception, keep, [0.0], [0.0], [0.0]),
        *unknown,
        *unknown,
    )


def own(count):
    return [Sample("id", "problem", [], "")] * count


def test_shares_and_outcomes():
    seen = Distributions()
    rows = [row("correct", [3.0, 1.0], [True, False]), row("wrong", [0.0, 0.5], [False, True])]
    seen.add([*rows, row("truncated", [0.5], [True])], own(3))
    counts = seen.counts()
    assert (counts["graded"], counts["correct"], counts["tokens"], counts["given"]) == (3, 1, 5, 0)
    assert (counts["dependency"], counts["dependency_wrong"]) == pytest.approx(((2 + 0.25 + 0.5) / 3, 0.375))
    assert counts["kept_share"] == pytest.approx(3 / 5)
    assert counts["perception_in_kept"] == pytest.approx(4 / 5)
    assert counts["roles"] is None
    shown = seen.figures("nats", 0.4)
    perception, few, dependency = shown["charts"]
    assert sum(perception["series"][0]["y"]) == pytest.approx(1)
    assert perception["series"][0]["y"][0] == pytest.approx(0.2)  # one of five tokens is 0
    assert few["marks"][0]["x"] == 40
    assert few["series"][0]["y"][-1] == 1
    assert [series["name"] for series in dependency["series"]] == ["correct", "not correct"]
    assert all(sum(series["y"]) == pytest.approx(1) for series in dependency["series"])
    [table] = shown["tables"]
    assert [cells[:3] for cells in table["rows"]] == [
        ["correct", "1", "2"],
        ["wrong", "1", "0.25"],
        ["truncated", "1", "0.5"],
    ]
    json.dumps(shown, allow_nan=False)


def test_true_roles_where_they_are_known():
    seen = Distributions()
    perception = [0.0] * 3 + [2.0] + [0.0] * 5 + [0.5] + [0.0]
    [sample] = make_samples("test", 1, 0, GlyphsOptions())
    seen.add([row("correct", perception, [p > 0 for p in perception], WORDS)], [sample])
    roles = seen.counts()["roles"]
    assert roles["perception"]["perception_share"] == pytest.approx(0.8)
    assert roles["perception"]["kept_share"] == 1
    assert sum(role["tokens"] for role in roles.values()) == len(WORDS)
    shown = seen.figures("nats", 0.4)
    assert [s["name"] for s in shown["charts"][-1]["series"]] == ["perception", "reasoning", "template"]
    assert shown["tables"][-1]["rows"][0][0] == "perception"
    seen.add([row(None, [1.0], [True])], own(1))  # one of which nobody knows
    assert seen.counts()["roles"] is None


def test_a_column_solution_of_ones_own_data_makes_no_roles():
    seen = Distributions()
    sample = Sample("id", "problem", [], "10", metadata=json.dumps({"solution": "".join(WORDS), "task": "sum"}))
    seen.add([row("correct", [0.5] * len(WORDS), [True] * len(WORDS), WORDS)], [sample])
    assert seen.counts()["roles"] is None


def test_what_has_no_share_gives_none():
    seen = Distributions()
    seen.add([row(None, [-1.0, 0.5], [False, True])], own(1))  # such as log_ratio
    assert seen.counts()["perception_in_kept"] is None
    shown = seen.figures("", 0.4)
    assert [chart["title"] for chart in shown["charts"]] == ["Token perception", "Dependency"]
    assert (shown["tables"], shown["charts"][0]["x"]) == ([], "")
    zero = Distributions()
    zero.add([row(None, [0.0, 0.0], [True, False])], own(1))
    json.dumps(zero.figures("nats", 0.4), allow_nan=False)
