r"""pass@k, majorities, breakdowns, and the scores of DynaMath and We-Math, all worked out by hand."""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.benchmarks import dynamath, wemath
from evals.benchmarks.table import BENCHMARKS
from evals.numbers.majority import majority, normalise, vote
from evals.numbers.scores import Answered, in_order, majority_accuracy, pass_at_k, summarise
from evals.numbers.statistics import bootstrap

NUMBERS = itertools.count()


def answered(right: str, answers: str | None = None, kind: str = "value", **groups: str) -> Answered:
    """``answered("10", "5 6")``: two samples, the first right."""
    marks = [mark == "1" for mark in right]
    given_ = answers.split(" ") if answers else [str(int(mark)) for mark in marks]
    return Answered(f"question {next(NUMBERS)}", kind, groups, marks, given_)


marks = st.text("01", min_size=8, max_size=8)

# --- pass@k ---------------------------------------------------------------------------------------


def test_pass_at_k_by_hand():
    # One of four right: 1 - C(3,1)/C(4,1) = 1/4, 1 - C(3,2)/C(4,2) = 1/2, 1 - 0/1 = 1.
    assert pass_at_k([answered("0100")]) == {"1": 0.25, "2": 0.5, "4": 1.0}
    # Two of four: 1/2, 1 - C(2,2)/C(4,2) = 5/6, 1. With the question above: 3/8, 2/3, 1.
    assert pass_at_k([answered("0100"), answered("1001")]) == pytest.approx({"1": 0.375, "2": 2 / 3, "4": 1.0})
    # Three samples: 1, 2 and all 3. One right of three: 1/3, 1 - C(2,2)/C(3,2) = 2/3, 1.
    assert pass_at_k([answered("010")]) == pytest.approx({"1": 1 / 3, "2": 2 / 3, "3": 1.0})
    assert pass_at_k([answered("1"), answered("0")]) == {"1": 0.5}


@given(st.lists(marks, min_size=1, max_size=6))
def test_pass_at_k_grows_from_accuracy_to_any(questions):
    rows = [answered(question) for question in questions]
    found = pass_at_k(rows)
    assert list(found) == ["1", "2", "4", "8"]
    assert found["1"] == pytest.approx(sum(row.accuracy for row in rows) / len(rows))
    assert found["8"] == sum("1" in question for question in questions) / len(questions)
    assert list(found.values()) == sorted(found.values())


# --- majorities -----------------------------------------------------------------------------------

SAME = [
    ("5", "$5$", "5.", "05", "5.0", "5.", "+5", r"\text{5}", r" \left 5 \right", r"\(5\)", "005.00"),
    ("0", "-0", "0.0", "-0.00", "000"),
    ("0.5", ".5", "0.50", "00.5"),
    ("-0.5", "-.5", "- 0.5"),
    (r"\frac{1}{2}", r"\dfrac{1}{2}", r"\tfrac {1}{2}", r"$\displaystyle\frac{1}{2}$"),
    ("(1,2)", "( 1 , 2 )", r"\left(1,\,2\right)", r"(1,~2)"),
    ("5cm", r"5\text{ cm}", r"5~\mathrm{cm}.", r"5\ \text{cm}"),
    ("1 1/2", "1  1/2", "1\n1/2", "1~1/2"),
    ("Yes", r"\textbf{Yes}", "Yes."),
]


@pytest.mark.parametrize("spellings", SAME, ids=lambda spellings: spellings[0])
def test_spellings_of_one_answer(spellings):
    assert {normalise(spelling) for spelling in spellings} == {spellings[0]}


def test_other_answers_stay_apart():
    different = [
        *(spellings[0] for spellings in SAME),
        "11/2",
        "50",
        "5.5",
        "-5",
        "1/2",
        r"\frac12",
        "x=5",
        "1.2.3",
        r"\leftarrow",
        "arrow",
        r"\frac{12}{3}",
        r"\frac{1}{23}",
        "no",
        ".",
        "(1,3)",
        "+",
    ]
    assert len({normalise(text) for text in different}) == len(different)


def test_what_an_answer_votes_for():
    choice = [vote(text, "choice") for text in ("A", "(a)", r"\text{A}", "A. 5", "Option A")]
    assert choice == [frozenset("A")] * 5
    assert vote("B, D", "choice") == vote("DB", "choice") == frozenset("BD")
    assert vote("Apple", "choice") == "Apple"
    assert vote("A", "value") == "A" != vote("a", "value")
    assert vote("", "value") is vote(" $ $ ", "choice") is None


@pytest.mark.parametrize(
    ("answers", "right", "expected"),
    [
        ("5 5 6", "110", 1.0),
        ("6 5 6", "010", 0.0),
        ("5 6", "10", 0.5),  # a tie of two
        ("5 6 7 5 6 7 8", "1001000", 1 / 3),  # a tie of three
        ("5 5.0 $5$ 6 6 7", "111000", 1.0),  # three spellings, one answer
        ("5    6 6", "100011", 1.0),  # the empty ones do not vote
        ("   ", "0000", 0.0),  # no answer at all
        ("5 05 7", "100", 0.5),  # one answer of which the grader knew one spelling only
    ],
)
def test_majorities_by_hand(answers, right, expected):
    row = answered(right, answers)
    assert majority([vote(a, "value") for a in row.answers], row.right) == expected


@given(st.lists(st.sampled_from(["1", "2", "3", ""]), min_size=1, max_size=8), st.randoms())
def test_majorities_do_not_depend_on_order(answers, random):
    shuffled = random.sample(answers, len(answers))
    first, second = ([a == "1" for a in some] for some in (answers, shuffled))
    assert majority(answers, first) == majority(shuffled, second)
    only = [a for a in answers if a == "1"]
    assert majority([a or None for a in only], [True] * len(only)) == float(bool(only))


HOSTILE = [
    "0" * 500_000 + "." + "0" * 500_000 + "x",
    r"\text{" * 160_000,
    " " * 1_000_000 + "x",
    "1 " * 500_000,
    r"\ " * 500_000,
    "A," * 500_000,
    "{" * 1_000_000,
    "(" * 1_000_000,
    "the answer is " * 70_000,
    r"\text   " * 125_000,
    "." * 1_000_000 + "1",
    "9" * 1_000_000,
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:6])
@pytest.mark.parametrize("kind", ["choice", "value"])
def test_a_megabyte_is_read_in_linear_time(text, kind):
    start = time.process_time()
    vote(text, kind)
    assert time.process_time() - start < 5  # about 0.3; quadratic time would be hours


# --- summaries ------------------------------------------------------------------------------------


def test_a_summary_of_own_data():
    rows = [answered("10", "5 6"), answered("11", "7 7"), answered("00", "1 1")]
    found = summarise(None, rows)
    assert found["accuracy"] == 0.5
    assert found["interval"][0] < 0.5 < found["interval"][1]
    assert (found["cluster"], found["breakdowns"], found["scores"]) == ("question", {}, {})
    assert found["pass_at_k"] == pytest.approx({"1": 0.5, "2": 2 / 3})
    assert found["majority_at_k"] == {"2": 0.5}  # 1/2 (a tie), 1, 0


def test_a_summary_of_mathverse():
    # Two problems: in one version the first is right and the second wrong; and so on, see below.
    marks_ = {
        "Vision Only": ("00", "00"),
        "Text Lite": ("10", "11"),
        "Vision Dominant": ("11", "11"),
        "Text Dominant": ("11", "10"),
        "Vision Intensive": ("01", "00"),
    }
    rows = [
        Answered(
            f"{version}-{i}",
            "choice",
            {"version": version, "problem": str(i), "subject": "s"},
            [mark == "1" for mark in right],
            ["A" if mark == "1" else "B" for mark in right],
        )
        for version, both in marks_.items()
        for i, right in enumerate(both)
    ]
    found = summarise(BENCHMARKS["mathverse"], rows)
    assert found["accuracy"] == 11 / 20
    assert (found["cluster"], found["clusters"]) == ("problem", 2)
    # The first problem has 6/10, the second 5/10, and they are drawn whole.
    assert found["interval"] == pytest.approx([0.5, 0.6])
    versions = found["breakdowns"]["version"]
    assert [(name, v["accuracy"], v["questions"]) for name, v in versions.items()] == [
        ("Text Dominant", 0.75, 2),
        ("Text Lite", 0.75, 2),
        ("Vision Intensive", 0.25, 2),
        ("Vision Dominant", 1.0, 2),
        ("Vision Only", 0.0, 2),
    ]
    assert versions["Text Lite"]["interval"] == [0.5, 1.0]
    assert versions["Vision Dominant"]["interval"] == pytest.approx([0.025**0.5, 1.0])  # two of two right
    subject = found["breakdowns"]["subject"]["s"]
    assert (subject["accuracy"], subject["questions"]) == (11 / 20, 10)
    assert subject["interval"] == pytest.approx([0.5, 0.6])
    # 7 questions have one mark twice: they are as right as their mark. Ties: 1/2 each, 3 of them.
    assert found["majority_at_k"] == {"2": (4 + 3 / 2) / 10}


def test_a_question_without_the_group_is_alone_and_in_no_breakdown():
    rows = [Answered(str(i), "value", {}, [i < 2], ["1"]) for i in range(4)]
    rows.append(Answered("4", "value", {"problem": "0", "version": "Text Lite"}, [True], ["1"]))
    found = summarise(BENCHMARKS["mathverse"], rows)
    assert found["clusters"] == 5
    assert found["breakdowns"]["version"].keys() == {"Text Lite"}
    assert found["breakdowns"]["subject"] == {}


@pytest.mark.parametrize("name", ["mathverse", "dynamath", "wemath"])
def test_questions_without_groups_stand_alone_and_are_so_reported(name):
    rows = [Answered(f"row-{i}", "value", {}, [i < 2], ["1"]) for i in range(4)]
    found = summarise(BENCHMARKS[name], rows)
    assert (found["cluster"], found["clusters"], found["scores"]) == ("question", 4, {})
    assert not any(found["breakdowns"].values())
    alone = [row.accuracy for row in rows]
    expected = bootstrap(alone, None, BENCHMARKS[name].title)
    assert found["interval"] == [expected.low, expected.high]


def test_levels_are_listed_as_people_do():
    assert in_order(["10", "9", "1"]) == ["1", "9", "10"]
    assert in_order(["physics", "10", "Art", "2"]) == ["2", "10", "Art", "physics"]
    levels = ["undergraduate", "high school", "elementary school"]
    assert in_order([*levels, "12"], BENCHMARKS["dynamath"].levels) == [*levels[::-1], "12"]


def test_questions_need_equally_many_samples():
    for rows in ([], [answered("1"), answered("10")], [Answered("a", "value", {}, [], [])]):
        with pytest.raises(ValueError, match="equally many samples"):
            summarise(None, rows)


# --- DynaMath -------------------------------------------------------------------------------------


def test_dynamath_by_hand():
    # Seed a: variant 3 is wrong in the second sample. Worst case: 1 in the first, 0 in the second
    # sample, 1/2; accuracy 19/20. Seed b: variant 1 is never right and has no answer: 0, and 18/20.
    # Seed c has nine variants only.
    rows = (
        [answered("10" if v == 3 else "11", seed="a", variant=str(v)) for v in range(1, 11)]
        + [
            answered("00", " ", seed="b", variant="1") if v == 1 else answered("11", seed="b", variant=str(v))
            for v in range(1, 11)
        ]
        + [answered("11", seed="c", variant=str(v)) for v in range(1, 10)]
    )
    found = summarise(BENCHMARKS["dynamath"], rows)["scores"]
    assert found["worst_case"]["value"] == 0.25
    assert found["worst_case"]["interval"] == [0.0, 0.5]
    assert found["reasoning_robustness"]["value"] == pytest.approx(0.5 / (0.95 + 0.9))
    # Pairs of samples that agree: nine of ten variants in both seeds (no answer agrees with nothing).
    assert found["repetition_consistency"]["value"] == pytest.approx(0.9)
    assert all("2 of 3 seeds" in score["about"] for score in found.values())


def test_the_repetition_consistency_of_one_question_by_hand():
    # Of six pairs of the four samples, 5-5, 5-5.0 and 5-5.0 agree: 3/6.
    rows = [answered("1110", "5 5 5.0 6", seed="a", variant=str(v)) for v in range(10)]
    assert dynamath.scores(rows)["repetition_consistency"]["value"] == pytest.approx(0.5)


def test_dynamath_with_one_sample_or_no_whole_seed():
    rows = [answered("0", seed="a", variant=str(v)) for v in range(10)]
    found = dynamath.scores(rows)
    assert found.keys() == {"worst_case", "reasoning_robustness"}
    assert found["reasoning_robustness"]["value"] == 0  # 0 / 0
    assert dynamath.scores(rows[1:]) == {}
    assert dynamath.scores([answered("1")]) == {}


# --- We-Math --------------------------------------------------------------------------------------


def composite(name: str, *right: str) -> list[Answered]:
    """The rows of one composite: its steps' marks, then its own."""
    steps = len(right) - 1
    parts = [*map(str, range(1, steps + 1)), "multi"]
    return [answered(marks_, id=name, key=f"{steps}steps_{part}") for part, marks_ in zip(parts, right, strict=True)]


def values(rows: list[Answered]) -> dict[str, float]:
    return {name: score["value"] for name, score in wemath.scores(rows).items()}


def test_we_math_by_hand():
    # Sample by sample:
    #   a: all steps and the composite right (CM); one step wrong, composite right (RM, loosely CM)
    #   b: no step but the composite right (RM in both); all steps right, composite wrong (IG)
    #   c: wrong, and a step wrong (IK), twice
    # Of six: IK 2, IG 1, CM 1 (loosely 2), RM 2 (loosely 1), 3 composites right.
    # The authors' score: run 1: (3 - RM 1 - IK 1) / 3 = 1/3, run 2: (3 - IG 1/2 - RM 1 - IK 1) / 3 =
    # 1/6, mean 1/4. Loosely: 1/3 and (3 - 1/2 - 0 - 1) / 3 = 1/2, mean 5/12.
    rows = [
        *composite("a", "11", "10", "11"),
        *composite("b", "01", "01", "01", "10"),
        *composite("c", "10", "00", "00"),
        *composite("d", "11", "11", "11")[:2],
    ]
    expected = {
        "IK": 2 / 6,
        "IG": 1 / 6,
        "CM_strict": 1 / 6,
        "RM_strict": 2 / 3,
        "score_strict": 1 / 4,
        "CM_loose": 2 / 6,
        "RM_loose": 1 / 3,
        "score_loose": 5 / 12,
    }
    assert values(rows) == pytest.approx(expected)
    found = summarise(BENCHMARKS["wemath"], rows)["scores"]
    assert found["IK"]["interval"] == [0.0, 1.0]  # c alone is IK, in both samples
    assert "3 composites" in found["score_strict"]["about"]


def test_we_math_gives_the_published_row_of_gpt_4o():
    # Of the 525: IK 164, IG 80, all steps and composite right 185, some steps 93, none 3. As the
    # paper prints them (%): strict 42.86, IK 31.24, IG 15.24, CM 35.24, RM 34.16;
    # loose 60.57, CM 52.95, RM 1.07.
    kinds = [(164, "010"), (80, "110"), (185, "111"), (93, "101"), (3, "001")]
    rows = []
    for count, (first, second, multi) in kinds:
        for _ in range(count):
            rows += composite(str(len(rows)), first, second, multi)
    assert {name: round(100 * value, 2) for name, value in values(rows).items()} == {
        "IK": 31.24,
        "IG": 15.24,
        "CM_strict": 35.24,
        "RM_strict": 34.16,
        "score_strict": 42.86,
        "CM_loose": 52.95,
        "RM_loose": 1.07,
        "score_loose": 60.57,
    }


def test_one_id_in_both_lengths_is_two_composites():
    rows = [*composite("1", "1", "1", "1"), *composite("1", "0", "0", "0", "0")]
    assert values(rows)["score_strict"] == 0.5


def test_we_math_without_a_whole_composite():
    assert wemath.scores(composite("a", "1", "1", "1")[:2]) == {}
    assert wemath.scores([answered("1"), answered("0", key="2steps_1")]) == {}
    # No composite right: RM is 0 of 0.
    assert values(composite("a", "1", "1", "0"))["RM_strict"] == 0


@given(st.lists(st.tuples(marks, marks, marks), min_size=1, max_size=5))
def test_the_four_dimensions_cover_everything(problems):
    rows = [row for i, right in enumerate(problems) for row in composite(str(i), *right)]
    found = values(rows)
    for reading in ("strict", "loose"):
        solved = 1 - found["IK"] - found["IG"]
        remembered = found[f"RM_{reading}"] * solved
        assert found[f"CM_{reading}"] + remembered == pytest.approx(solved)
        score = 1 - found["IK"] - found["IG"] / 2 - remembered  # as the authors write it
        assert found[f"score_{reading}"] == pytest.approx(score)
    assert found["score_loose"] >= found["score_strict"] - 1e-12


def test_all_of_a_large_benchmark_is_summarised_in_seconds():
    rows = [
        Answered(
            str(i),
            "value",
            {"level": str(i % 5), "subject": str(i % 16)},
            [(i * j) % 3 == 0 for j in range(8)],
            [str((i * j) % 3) for j in range(8)],
        )
        for i in range(2907)
    ]
    start = time.process_time()
    summarise(BENCHMARKS["mathvision"], rows)
    assert time.process_time() - start < 5  # about one
    assert majority_accuracy(rows[:3]) > 0
