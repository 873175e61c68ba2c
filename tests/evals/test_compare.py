"""Comparing two evaluations: paired by question, regressions for certain, files that are none."""

from __future__ import annotations

import json

import pytest
from command_line import vppo

from evals.compare import MeanChange, compare, load, made_otherwise
from evals.numbers.statistics import Interval
from pipelines.errors import UserError


def result(right, benchmark="geo3k", **other):
    return {
        "benchmark": benchmark,
        "right": right,
        "samples": 2,
        "profile": "published",
        "grader": "mathruler",
        "settings": {"top_p": 1.0, "limit": None},
        **other,
    }


UNVARIED = "geo3k: the difference is the same at every question; that the interval has no width says nothing of others"


def steady(before, after, questions=40, **other):
    """Two results in which every question changes alike, so that the interval is a point."""
    return [result({str(i): row for i in range(questions)}, **other) for row in (before, after)]


def test_two_evaluations_are_compared_on_the_questions_they_share():
    # Shared: a, from 1/2 to 1, and b, from 0 to 1/2. Both gain 1/2; c and d are in one only.
    before = result({"a": [1, 0], "b": [0, 0], "c": [1, 1]})
    after = result({"a": [1, 1], "b": [1, 0], "d": [0, 0]})
    found = compare([before], [after])
    (change,) = found.changes
    assert (change.questions, change.before, change.after) == (2, 0.25, 0.75)
    assert (change.change.mean, change.change.low, change.change.high) == (0.5, 0.5, 0.5)
    assert found.average is None
    assert found.notes == ["geo3k: 2 questions are in one of the two only and are left out", UNVARIED]


def test_the_interval_is_that_of_the_pairs():
    # 100 questions, of which 20 change from wrong to right: mean 0.2, standard error of the mean
    # sqrt(0.2 * 0.8 / 100) = 0.04.
    before = result({str(i): [0] for i in range(100)})
    after = result({str(i): [int(i < 20)] for i in range(100)})
    found = compare([before], [after])
    change = found.changes[0].change
    assert found.notes == []
    assert change.mean == pytest.approx(0.2)
    assert change.low == pytest.approx(0.2 - 1.96 * 0.04, abs=0.011)
    assert change.high == pytest.approx(0.2 + 1.96 * 0.04, abs=0.011)


def test_questions_of_one_cluster_are_drawn_together():
    # The same 100 questions in 10 clusters, two of which change: far less certain.
    owners = {str(i): str(i // 10) for i in range(100)}
    before = result({name: [0] for name in owners})
    after = result({name: [int(int(name) < 20)] for name in owners}, clusters_of=owners)
    change = compare([before], [after]).changes[0].change
    assert change.high - change.low == pytest.approx(2 * 1.96 * 0.4 / 10**0.5, abs=0.06)


def test_several_benchmarks_have_an_average():
    old_a, new_a = steady([0, 0], [1, 1])
    old_b, new_b = steady([1, 1], [1, 0], benchmark="wemath")
    found = compare([old_a, old_b], [new_b, new_a])
    assert [change.change.mean for change in found.changes] == [1.0, -0.5]
    assert found.average.mean == pytest.approx(0.25)
    assert found.regressions(0.0) == ["wemath"]
    assert found.regressions(0.3) == ["wemath", "average"]
    assert found.regressions(-0.5) == []


def paid(of, **lists):
    """Two questions, and the means of a reward's lists on each."""
    values = {name: dict(zip("ab", means, strict=True)) for name, means in lists.items()}
    found = result({"a": [1, 0], "b": [1, 1]}, rewards={name: {} for name in lists})
    return found | {"rewards_by_question": {"of": of, "values": values}}


def test_rewards_are_paired_by_question_too():
    # The list that all have: from 0.1 and 0.5 to 0.2 and 1, so by 0.1 and 0.5: a draw of two has the ends in 1 of 4.
    before, after = paid("pay 1", reward=[0.1, 0.5], brief=[0, 0]), paid("pay 1", reward=[0.2, 1.0])
    (change,) = compare([before], [after]).changes
    assert list(change.rewards) == ["reward"]
    found = change.rewards["reward"]
    ends = (found.before, found.after, found.change.low, found.change.mean, found.change.high, found.places)
    assert ends == pytest.approx((0.3, 0.6, 0.1, 0.3, 0.5, 3))
    assert compare([result({"a": [1]})], [after]).changes[0].rewards == {}


def test_rewards_that_do_not_compare_are_told():
    before, after = paid("pay 1", reward=[0.1, 0.5]), paid("pay 2", reward=[0.2, 1.0])
    found = compare([before], [after])
    assert found.changes[0].rewards == {}
    why = "they are of other functions, or sources of one: pay 1 (A), pay 2 (B)"
    assert f"geo3k: rewards are not compared: {why}" in found.notes
    del after["rewards_by_question"]  # a report.json far from its run
    why = "question by question they are in answers.parquet, which is not beside the results of B"
    assert f"geo3k: rewards are not compared: {why}" in compare([before], [after]).notes


def test_small_rewards_have_digits():
    change = MeanChange(0.5, 0.5, Interval(0.0003, -0.0001, 0.0010))
    assert (change.places, MeanChange(0, 0, Interval(0, 0, 0)).places) == (4, 3)


def test_what_made_runs_is_told_where_it_differs():
    made = {"a-1": {"torch": "2.1", "commit": "1"}, "a-2": {"torch": "2.1"}, "new": {}, "b-1": {"torch": "2.1"}}
    assert made_otherwise(made) == {"commit": {"1": ["a-1"], "none": ["a-2", "b-1"]}}


def test_what_else_differs_is_told():
    before, after = steady([1, 0], [1, 0])
    after |= {"grader": "math-verify", "settings": {"top_p": 0.9, "limit": 5}}
    only = result({"x": [1]}, benchmark="wemath")
    notes = compare([before, only], [after]).notes
    assert notes == [
        "wemath is in A only and is left out",
        "geo3k: grader mathruler -> math-verify",
        "geo3k: top_p 1.0 -> 0.9",
        UNVARIED,
    ]


def test_a_profile_under_its_earlier_name_is_the_same():
    before, after = steady([1, 0], [1, 0])
    assert compare([before | {"profile": "paper"}], [after]).notes == [UNVARIED]
    notes = compare([before | {"profile": "paper"}], [after | {"profile": "matched"}]).notes
    assert notes == ["geo3k: profile published -> matched", UNVARIED]


def test_nothing_to_compare():
    with pytest.raises(UserError, match="share no question"):
        compare([result({"a": [1]})], [result({"b": [1]})])
    with pytest.raises(UserError, match="A has geo3k; B has wemath") as caught:
        compare([result({"a": [1]})], [result({"a": [1]}, benchmark="wemath")])
    assert caught.value.place == "vppo compare"


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        "null",
        '{"results": 1}',
        '{"right": {}}',
        '{"benchmark": 1, "right": {}}',
        '{"benchmark": "a", "right": {"q": []}}',
        '{"benchmark": "a", "right": {"q": ["x"]}}',
        "[" * 99999,
        '{"benchmark": "a", "right": {"q": 1}}',
        '{"benchmark": "a", "right": {"q": {"1": 1}}}',
        *(
            f'{{"benchmark": "a", "right": {{"q": [1, {mark}]}}}}'
            for mark in ("NaN", "Infinity", "2", "-1", "0.5", "1.0", "true", "null", '"x"', "[1]")
        ),
        '{"benchmark": "a", "right": {"": [1]}}',
        '{"benchmark": "a", "right": [["q", [1]]]}',
        '{"benchmark": "a", "right": {"q": [1]}, "settings": []}',
        '{"benchmark": "a", "right": {"q": [1]}, "rewards": 1}',
        '{"benchmark": "a", "right": {"q": [1]}, "settings": null}',
        '{"benchmark": "a", "right": {"q": [1]}, "clusters_of": ["q"]}',
        '{"benchmark": "a", "right": {"q": [1]}, "clusters_of": {"q": []}}',
    ],
)
def test_files_that_are_no_evaluation(tmp_path, content):
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(UserError, match=r"is not a report of vppo eval"):
        load(str(tmp_path))


def test_a_mark_that_is_none_is_named(tmp_path):
    (tmp_path / "results.json").write_text('{"benchmark": "a", "right": {"q7": [1, NaN]}}')
    with pytest.raises(UserError, match="question 'q7' has a mark nan, neither 0 nor 1"):
        load(str(tmp_path))


def test_what_an_evaluation_needs_is_little(tmp_path):
    small = {"benchmark": "a", "right": {"q": [1, 0]}}
    (tmp_path / "results.json").write_text(json.dumps(small))
    assert load(str(tmp_path)) == (str(tmp_path), [small])


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def reports(tmp_path):
    """``reports(before, after)``: two files, before.json and after.json."""

    def write(before, after):
        for name, found in (("before", before), ("after", after)):
            text = json.dumps({"model": f"the {name}", "results": [found]})
            (tmp_path / f"{name}.json").write_text(text)
        return tmp_path

    return write


@pytest.mark.parametrize(
    ("before", "after", "options", "code"),
    [
        ([1, 0], [1, 1], [], 0),  # better
        ([1, 0], [1, 0], [], 0),  # the same
        ([1, 1], [1, 0], [], 1),  # 50 points worse
        ([1, 1], [1, 0], ["--fail-below", "-60"], 0),  # that much may go
        ([1, 1], [1, 0], ["--fail-below", "-40"], 1),
        ([1, 0], [1, 1], ["--fail-below", "60"], 1),  # that much was asked for
    ],
)
def test_the_exit_code_tells_a_regression(reports, before, after, options, code):
    folder = reports(*steady(before, after))
    command = vppo("compare", "before.json", "after.json", *options, runs=folder / "runs", cwd=folder)
    assert command.code == code, command.err
    assert ("regression" in command.out) == (code == 1)
    assert "the before" in command.out
    assert command.err == ""


def test_a_change_that_may_be_chance_is_no_regression(reports):
    # 5 of 10 questions before, 4 after: one question says nothing.
    before = result({str(i): [int(i < 5)] for i in range(10)})
    after = result({str(i): [int(i < 4)] for i in range(10)})
    folder = reports(before, after)
    command = vppo("compare", "before.json", "after.json", "--json", runs=folder / "runs", cwd=folder)
    assert command.code == 0
    assert command.json["changes"][0]["change"]["mean"] == pytest.approx(-0.1)
    assert command.json["changes"][0]["change"]["high"] >= 0
    assert command.json["regressions"] == []


def test_a_finished_run_against_itself_and_its_start(finished, tmp_path):
    run, _ = finished
    command = vppo("compare", "small", "small", "--json", runs=run.parent).succeeded()
    assert command.json["changes"][0]["change"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    start = run / "eval" / "0000"
    command = vppo("compare", start, run, runs=run.parent).succeeded()
    assert "starting model of small" in command.out
    assert "checkpoint 3 of small" in command.out


def test_a_run_without_evaluation_and_names_of_nothing(tmp_path):
    runs = tmp_path / "runs"
    (runs / "new").mkdir(parents=True)
    (runs / "new" / "config.yaml").write_text("name: new\n")
    command = vppo("compare", "new", "other", runs=runs)
    assert command.code == 2
    assert "new: this run has no evaluation yet" in command.err
    assert "vppo eval --run new" in command.err
    command = vppo("compare", "nothing", "other", runs=runs)
    assert command.code == 2
    told = " ".join(command.err.split())
    assert "nothing: no such run in " in told
    assert "There: " in told
