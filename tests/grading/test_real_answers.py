r"""Answers that public models gave, as published and by ours; and the kinds that they are examples of.

``tests/fixtures/answers.tsv``: 187 boxed answers of public model outputs with what mathruler says of each,
and what is right, judged by hand, where that was done.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.disk.records import Sample
from pipelines.grading.answer import choice_letters, choice_verdict, extract_answer, published_answer
from pipelines.grading.graders import GRADERS, GraderPool
from pipelines.grading.reward import outcomes_of, published_outcomes
from pipelines.grading.values import fact_verdict, says_otherwise, sides

TESTS = Path(__file__).parents[1]
DOCS = (TESTS.parent / "docs" / "grading.md").read_text()


def real() -> list[dict[str, str]]:
    lines = (TESTS / "fixtures" / "answers.tsv").read_text().splitlines()
    return list(csv.DictReader(lines[2:], delimiter="\t", quoting=csv.QUOTE_NONE))


ROWS = real()


@pytest.fixture(scope="module")
def pool() -> Iterator[GraderPool]:
    with GraderPool(workers=1, deadline_s=20.0) as pool:
        yield pool


def graded(pool: GraderPool, grader: str = "mathruler", *, alone: bool = False) -> list[bool]:
    items = [(row["answer"], row["gold"], row["kind"].split()[0]) for row in ROWS]
    return [verdict is True for verdict in pool.grade(items, grader, alone=alone)]


# --- real answers ---------------------------------------------------------------------------------


def test_as_published_is_mathruler(pool: GraderPool) -> None:
    assert len(ROWS) == 187
    found = graded(pool, alone=True)
    differ = [r for r, v in zip(ROWS, found, strict=True) if v is not (r["mathruler"] == "1")]
    assert differ == []


@pytest.mark.parametrize("grader", GRADERS)
def test_ours_refuses_no_right_choice_and_grants_nothing_wrong(pool: GraderPool, grader: str) -> None:
    found = dict(zip(map(id, ROWS), graded(pool, grader), strict=True))
    choices = [row for row in ROWS if row["kind"] == "choice"]
    assert [r for r in choices if r["right"] == "1" and not found[id(r)]] == []
    assert [r for r in ROWS if r["right"] == "0" and found[id(r)]] == []
    assert [r for r in choices if r["mathruler"] == "1" and not found[id(r)]] == []


def test_the_values_that_ours_still_refuses_are_listed(pool: GraderPool) -> None:
    found = graded(pool)
    refused = [r for r, v in zip(ROWS, found, strict=True) if r["right"] == "1" and not v]
    assert len(refused) == 9
    for row in refused:
        assert f"| `{row['answer']}` | `{row['gold']}` |" in DOCS


def test_the_kinds_in_which_ours_differs_are_listed(pool: GraderPool) -> None:
    """All differences here are choices that ours grants; the docs tell how many of which kind."""
    kinds: dict[str, int] = {}
    for row, ours in zip(ROWS, graded(pool), strict=True):
        if ours is not (row["mathruler"] == "1"):
            assert (ours, row["kind"]) == (True, "choice")
            kind = kind_of_difference(row["answer"])
            kinds[kind] = kinds.get(kind, 0) + 1
    for kind, count in kinds.items():
        assert f"| {kind} | {count} |" in DOCS, (kind, count)
    assert sum(kinds.values()) == 52


def kind_of_difference(answer: str) -> str:
    if answer.rstrip(".)") in "ABCDE":
        return "the letter and a full stop"
    if answer.endswith("(B)}"):
        return "the label at the end"
    return "the label and the option's text"


# --- the kinds: choices ---------------------------------------------------------------------------

LETTERS = "ABCDEFGHIJ"
TEXTS = (
    "24",
    "24.3 kN",
    "G",
    "I",
    "P and R",
    "C, A, B, D",
    "A or B",
    "A: 5.66%; B: 6.20%",
    "False",
    "-5",
    "The graph of y",
    r"\frac{1}{2}",
    r"\sqrt{3}",
    "arrow B only",
    "(6,2,1)",
    "None of the above",
    "2 : 1",
    "s^{2}+1-2 s",
    r"\angle A",
    "both (A) and (C)",
    "U.S. dollars",
    "Friday",
    "x = 3",
    "vitamin C: acid",
    "No correct answer",
    "the statement is false",
    "it is not even",
    "The sum of (A) and (B)",
    "Statement (A) is incorrect",
    "cannot be determined",
    "Henry Z. Smith",
    "red or blue",
    r"72 \text{ cm}^{2}",
    r"\frac{hd}{2h + d}",
    r"\$9.00",
)
IN_FRONT = (
    "(%s) %s",
    "%s) %s",
    "%s. %s",
    "%s: %s",
    r"\text{(%s) } %s",
    r"\textbf{(%s)}\ %s",
    r"\mathrm{(%s)}~%s",
    r"\text{%s. }%s",
    r"\text{%s}. %s",
    "**%s.** %s",
    r"%s.\quad %s",
    r"(%s)\; %s",
    "Option %s: %s",
    r"\text{(%s) %s}",
    "the answer is (%s) %s",
    "(%s)\n%s",
)


@pytest.mark.parametrize("written", IN_FRONT)
def test_an_option_with_its_label_is_that_option_whatever_its_text(written: str) -> None:
    wrong = [
        (letter, text)
        for text in TEXTS
        for letter in LETTERS
        if choice_letters(written % (letter, text)) != {letter}
        and (letter, text) != ("B", "vitamin C: acid")  # which "B: ..." may list after B
    ]
    assert wrong == []


AT_THE_END = ("%s (%s)", r"%s\textbf{ (%s)}", r"%s \text{(%s)}", "%s (option %s)", "%s, the answer is %s")


@pytest.mark.parametrize("written", AT_THE_END)
def test_a_label_at_the_end(written: str) -> None:
    for text in ("24", "24.3 kN", "-5", "False", "The graph of y", r"\frac{1}{2}", "x = 3", r"90^\circ"):
        for letter in LETTERS:
            assert choice_letters(written % (text, letter)) == {letter}, (text, letter)


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("A:The graph", "A"),
        ("(B)False", "B"),
        ("(H)arrow B only", "H"),
        ("B (5)", "B"),
        (r"C:\angle A", "C"),
        ("F ($9.00)", "F"),
        (r"\( \text{D} \) 24.3 kN", "D"),
        ("D 24.3 kN", "D"),
        (r"\text{B} \frac{1}{2}", "B"),
        ("$C$ 24", "C"),
        ("**E** Friday", "E"),
        ("A 5 cm", "A"),
        ("A:BC", "A"),
        ("B:y=2x+1", "B"),
        ("D)G", "D"),
        ("(C)x", "C"),
        (r"(A)\frac{1}{2}", "A"),
        ("A (2, 3)", "A"),
        ("E – none", "E"),
        ("(E) (A) and (B)", "E"),
        (r"(C) \sin (A)", "C"),
        ("(I) I", "I"),
        ("A. vitamin C: acid", "A"),
        ("C, 24", "C"),
        ("(E) none of (A) to (D)", "E"),
        ("Figure (C)", "C"),
        ("5, which is option B", "B"),
        ("A.Apple", "A"),
    ],
)
def test_options_are_recognised(answer: str, letter: str) -> None:
    assert choice_letters(answer) == {letter}
    assert choice_verdict(answer, letter) is True
    assert choice_verdict(answer, "J") is False


@pytest.mark.parametrize(
    "answer",
    [
        "A square",
        "only A",
        "A only",
        "x+y=a",
        "a square",
        "A is on BC",
        "A or B",
        "A, B",
        "(A) or (B)",
        "(A) 5 or (B) 6",
        "(A) 5, (B) 6",
        "(A) 5 (B) 6",
        "A. 5 B. 6",
        "A (B)",
        "B (A)",
        "not (A)",
        "5, not (A)",
        "A is wrong",
        "(A) is not right",
        "A+1",
        "A:B",
        "A=5",
        "f(A)",
        "P (A)",
        r"\sin (A)",
        r"2\overline{A}",
        "A-B",
        "A'",
        "U.S.",
        "A 30-60-90 triangle",
        "neither (A)",
        "A 5 or B 6",
        "B (5), A (6)",
        "(A) or 24",
        "",
        " ",
        "5",
        r"\frac{1}{2}",
        "A, 5, B",
        "all but (A)",
        "5 or (A)",
        "rather than (A)",
    ],
)
def test_what_names_no_option_or_several_is_wrong(pool: GraderPool, answer: str) -> None:
    for grader in GRADERS:
        assert pool.grade([(answer, "A", "choice")], grader) == [False]


@given(st.sampled_from(LETTERS), st.sampled_from(LETTERS), st.sampled_from(TEXTS), st.sampled_from(IN_FRONT))
def test_no_answer_is_right_for_two_golds(first: str, second: str, text: str, written: str) -> None:
    answer = written % (first, text)
    granted = choice_verdict(answer, second)
    assert granted is (first == second) or (text, first) == ("vitamin C: acid", "B")


@given(st.text(alphabet="AB()., :or and5\\-", max_size=20))
def test_at_most_one_single_letter_is_granted(answer: str) -> None:
    assert sum(choice_verdict(answer, letter) is True for letter in "ABC") <= 1


# --- the kinds: values ----------------------------------------------------------------------------

REFUSED = [  # (answer, gold)
    ("4=3", "3"),
    ("x=4=3", "3"),
    ("4 = 3", "3"),
    ("$4=3$", "3"),
    ("2 = 4 = 3", "3"),
    (r"\frac{1}{2}=3", "3"),
    (r"5\text{ is wrong}", "5"),
    (r"5\text{ is not it}", "5"),
    (r"5 \text{ isn't right}", "5"),
    ("5 is wrong", "5"),
    (r"5\text{, or maybe }6", "5"),
    (r"3 \text{ or } 4", "3"),
    ("3 or 4", "3"),
    (r"3 \text{ and } 4", "3"),
    (r"3\text{ , } 4", "3"),
    (r"3\text{ ; }4", "3"),
    (r"5 \text{ million}", "5"),
    (r"5\text{ dozen}", "5"),
    (r"\text{not } 5", "5"),
    (r"5\text{ hours }30\text{ minutes}", "5"),
    (r"5\text{ times }7", "5"),
    (r"\text{more than }5", "5"),
    (r"5\text{ or more}", "5"),
    (r"3 \mathrm{ or } 4", "3"),
    (r"5\text{ halves}", "5"),
    (r"5\text{ was expected}", "5"),
    ("4==3", "3"),
    ("4:=3", "3"),
    (r"4 \to 3", "3"),
    (r"4 \Rightarrow 3", "3"),
    (r"\neq 3", "3"),
    ("> 3", "3"),
    (r"\ge 3", "3"),
    (r"3\text{ squared}", "3"),
    (r"3\text{ }4", "3"),
    ("3?", "3"),
    (r"3\text{?}", "3"),
    ("y=5", "x=5"),
    (r"\frac{1}{2} \text{ or } 4", r"\frac{1}{2}"),
    (r"2\sqrt{3}\text{ is wrong}", r"2\sqrt{3}"),
    (r"5\text{ cm or }6\text{ cm}", r"5\text{ cm}"),
    (r"1,000 \text{ or } 4", "1,000"),
    (r"3\text{ out of 4}", "3"),
    (r"3\text{ plus }4", "3"),
    ("ab=4=3", "3"),
    (r"3 \text{ cm}, 4 \text{ cm}", "3"),
    (r"5\text{ }=6", "5"),
    (r"3\textbf{ or }4", "3"),
]
KEPT = [
    (r"5\text{ cm}", "5"),
    (r"25\text{ cm}^2", "25"),
    (r"26 \text{ square units}", "26"),
    ("x=5", "5"),
    (r"x_{\text{max}} = 5", "5"),
    ("1 or 2", "1, 2"),
    ("x=1 or x=2", "x=1 or x=2"),
    ("5 and 6", "5, 6"),
    (r"5\text{ cm} \cdot \text{s}", "5"),
    (r"60\text{ km}/\text{h}", "60"),
    ("not enough", "not enough"),
    (r"\text{The answer is } 5", "5"),
    (r"8 \text{ cm}^{2}.", "8"),
    ("2x=4", "2x=4"),
    (r"5\text{ million}", r"5\text{ million}"),
    (r"5\text{ cm squared}", "5"),
    (r"5\text{ is the answer}", "5"),
    ("x>3", "3<x"),
    ("x>3", r"(3, \infty)"),
    (r"\{1, 2\}", r"\{2, 1\}"),
    (r"2\text{ h }30\text{ min}", r"2\text{ h }30\text{ min}"),
    ("<answer>5</answer>", "5"),
    (r"30^\circ", "30"),
    (r"5\text{ m} = 500\text{ cm}", "5"),
    (r"1\text{ cm and }2\text{ cm}", "1, 2"),
]


def test_an_answer_that_takes_its_value_back_is_wrong(pool: GraderPool) -> None:
    items = [(answer, gold, "value") for answer, gold in REFUSED]
    for grader in GRADERS:
        granted = [i for i, v in zip(items, pool.grade(items, grader), strict=True) if v is not False]
        assert granted == []


def test_alone_a_grader_says_what_it_says(pool: GraderPool) -> None:
    """The traps are real: as published, which nothing here may change, mathruler grants them."""
    traps = [("4=3", "3"), (r"5\text{ is wrong}", "5"), (r"3 \text{ or } 4", "3")]
    items = [(*pair, "value") for pair in traps]
    assert pool.grade(items, "mathruler", alone=True) == [True] * 3
    assert pool.grade([("A square", "A", "choice")], "math-verify", alone=True) == [True]
    assert pool.grade([("A. 5", "A", "choice")], "mathruler", alone=True) == [False]


@pytest.mark.parametrize(("answer", "gold"), KEPT)
def test_units_names_and_several_values_go_to_the_grader(answer: str, gold: str) -> None:
    assert not says_otherwise(answer, gold)


def test_sides_of_an_equation_of_numbers() -> None:
    assert sides(r"3 \cdot 2 \cdot 1 = 6", "6") == [r"3 \cdot 2 \cdot 1", "6"]
    for answer in ("x = 5", "5", "x=1, y=2", r"m\angle J = 180", "5 cm = 0.05 m", "x \\neq 5", "a <= 5"):
        assert sides(answer, "5") == [], answer
    assert sides("4=3", "4=3") == []
    assert sides(r"2x=6 \Rightarrow x=3", "3") == []
    assert sides(r"4 \to 3", "3") == ["4", "3"]


def test_an_equation_whose_sides_all_are_the_gold_is_right(pool: GraderPool) -> None:
    items = [("24*24 = 576", "576", "value"), (r"3 \cdot 2 \cdot 1 = 6", "6", "value")]
    assert pool.grade(items, "math-verify") == [True, True]


LONG = ["\\text{" * 100_000, "=1" * 500_000, "1\\text{ }" * 100_000, " (A" * 300_000, "a " * 500_000]


@pytest.mark.parametrize("text", LONG, ids=range(len(LONG)))
def test_a_megabyte_takes_linear_time(text: str) -> None:
    says_otherwise(text, "1")
    sides(text, "1")
    choice_letters(text[:2_000])
    fact_verdict(text, "a b")
    published_answer("\\boxed{" + text + "}" * 200_000)


@given(st.text(max_size=60), st.text(max_size=20))
def test_no_text_breaks_the_rules(answer: str, gold: str) -> None:
    says_otherwise(answer, gold)
    sides(answer, gold)
    assert fact_verdict(answer, gold) in (True, False)


# --- as published: what is in the box -------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{ 7 }", "7"),
        (r"\boxed{1} and \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        ("no box", "None"),
        (r"\boxed{1} then \boxed{2", "None"),
        (r"\boxed{}", ""),
        (r"\boxed {7}", "None"),
        (r"\boxed{3 / 4}", "3/4"),
        (r"\boxed{x < 5}", "x<5"),
        (r"\boxed{a < / b}", "a</b"),
        (r"\boxed{\{1\}}", r"\{1\}"),
        (r"\boxed{\}}", "\\"),
        (r"\boxed{5} \boxed{\text{A}}", r"\text{A}"),
    ],
)
def test_the_published_extraction(text: str, answer: str) -> None:
    assert published_answer(text) == answer


def published_by_definition(text: str) -> str:
    """The authors' two steps, by the packages they use."""
    import re

    from mathruler.grader import extract_boxed_content

    return extract_boxed_content(re.sub(r"\s*(<|>|/)\s*", r"\1", text))


PIECES = [r"\boxed{", "{", "}", " ", "\n", "<", ">", "/", "x", "\\", "\t", "7"]


@settings(deadline=None)  # the first imports the package
@given(st.lists(st.sampled_from(PIECES), max_size=25).map("".join))
def test_the_published_extraction_is_theirs(text: str) -> None:
    assert published_answer(text) == published_by_definition(text)


def question(answer: str, kind: str = "value", metadata: str = "{}") -> Sample:
    return Sample("q", "?", [], answer, kind, metadata)


def test_both_verdicts_of_a_response(pool: GraderPool) -> None:
    rows = [question("A", "choice"), question("3"), question("7"), question("7"), question("None")]
    texts = [r"\boxed{A. 5}", r"\boxed{4=3}", r"\boxed{7} or \boxed{8", "cut off", "nothing"]
    cut = [False, False, False, True, False]
    ours = outcomes_of([extract_answer(text) for text in texts], rows, cut, pool, "mathruler")
    assert ours == ["correct", "wrong", "correct", "truncated", "no_answer"]
    theirs = published_outcomes(texts, rows, cut, pool)
    # The last: the authors' extraction says "None" where there is no box, and so it is right.
    assert theirs == ["wrong", "correct", "no_answer", "truncated", "correct"]


def test_of_several_golds_any_counts_for_ours(pool: GraderPool) -> None:
    row = question("24/7", metadata='{"golds": ["24/7", "3.429"]}')
    answers = ["3.429", "24/7", "3.4", None]
    outcomes = outcomes_of(answers, [row] * 4, [False] * 4, pool, "mathruler")
    assert outcomes == ["correct", "correct", "wrong", "no_answer"]
    texts = [rf"\boxed{{{answer}}}" for answer in answers[:3]]
    theirs = published_outcomes(texts, [row] * 3, [False] * 3, pool)
    assert theirs == ["wrong", "correct", "wrong"]
    letter = question("False", "choice", '{"golds": ["B"]}')
    assert outcomes_of(["B", "A"], [letter] * 2, [False] * 2, pool, "mathruler") == ["correct", "wrong"]


# --- short facts ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "gold", "right"),
    [
        ("Mount Fuji", "mount fuji", True),
        ("The Mount Fuji.", "Mount Fuji", True),
        ("It is Mount Fuji in Japan", "Mount Fuji", True),
        ("Fuji", "Mount Fuji", False),
        ("Café", "cafe", True),
        (r"\text{Paris}", "Paris", True),
        ("Parisian", "Paris", False),
        ("1985", "1985", True),
        ("in 1985", "1985", True),
        ("19856", "1985", False),
        ("1,985", "1985", False),
        ("Paris or Rome", "Paris", False),
        ("not Paris", "Paris", False),
        ("the The", "The The", True),
        ("", "Paris", False),
        ("Paris", "", False),
    ],
)
def test_short_facts(answer: str, gold: str, right: bool) -> None:
    assert fact_verdict(answer, gold) is right


def test_a_fact_is_asked_of_no_grader(pool: GraderPool) -> None:
    items = [("It is Mount Fuji", "Mount Fuji", "fact"), ("5", "5.0", "fact")]
    assert pool.grade(items, "mathruler") == [True, False]
    assert pool.grade(items, "mathruler", alone=True) == [False, True]
