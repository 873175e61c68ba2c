r"""What both graders really say of some 240 answers, beside what is true.

Where a grader's verdict is not the true one, the grader is wrong by its nature: the row records it, so that
an update of its package that changes a verdict shows, and so that both error rates can be read off
(docs/grading.md). ``True`` means what a teacher would grant: units, percent and degree signs may be left
out, unreduced and rewritten values are right, rounded ones wrong. Choices must all be right.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.grading.answer import choice_verdict
from pipelines.grading.graders import GRADERS, GraderPool

C, V = "choice", "value"
T, F = True, False

# fmt: off
# (answer, gold, kind, true verdict, mathruler's, math-verify's)
TABLE = [
    # choices
    ("A", "A", C, T, T, T),
    ("a", "A", C, T, T, T),
    ("B", "A", C, F, F, F),
    ("b", "A", C, F, F, F),
    ("A.", "A", C, T, T, T),
    ("A. 5", "A", C, T, T, T),
    ("A. 5", "B", C, F, F, F),
    ("(A)", "A", C, T, T, T),
    ("(a)", "A", C, T, T, T),
    ("A)", "A", C, T, T, T),
    ("Option A", "A", C, T, T, T),
    ("option B", "A", C, F, F, F),
    ("Option (A)", "A", C, T, T, T),
    ("Choice A", "A", C, T, T, T),
    ("Answer: A", "A", C, T, T, T),
    ("The answer is A.", "A", C, T, T, T),
    ("the correct option is (C)", "C", C, T, T, T),
    (r"\text{A}", "A", C, T, T, T),
    (r"\text{ A }", "A", C, T, T, T),
    (r"\text{(A)}", "A", C, T, T, T),
    (r"\textbf{(A)}", "A", C, T, T, T),
    (r"\mathrm{A}", "A", C, T, T, T),
    (r"\mathbf{B}", "A", C, F, F, F),
    (r"\text{Option A}", "A", C, T, T, T),
    ("**A**", "A", C, T, T, T),
    ("*A*", "A", C, T, T, T),
    ("**A.** 5 cm", "A", C, T, T, T),
    ("$A$", "A", C, T, T, T),
    (r"\(A\)", "A", C, T, T, T),
    ("[A]", "A", C, T, T, T),
    ("{A}", "A", C, T, T, T),
    ("A: 5 cm", "A", C, T, T, T),
    ("A: 5 cm", "B", C, F, F, F),
    ("(A) 5 cm", "A", C, T, T, T),
    ("A. Apple", "A", C, T, T, T),
    (r"A. $\frac{1}{2}$", "A", C, T, T, T),
    (r"A.\frac{1}{2}", "A", C, T, T, T),
    (r"A) \sqrt{3}", "A", C, T, T, T),
    ("A.\n5", "A", C, T, T, T),
    ("B, D", "B, D", C, T, T, T),
    ("BD", "B, D", C, T, T, T),
    ("D and B", "B, D", C, T, T, T),
    (r"\{B, D\}", "B, D", C, T, T, T),
    ("{B, D}", "B, D", C, T, T, T),
    ("D,B", "B, D", C, T, T, T),
    ("(B), (D)", "B, D", C, T, T, T),
    ("(B, D)", "B, D", C, T, T, T),
    ("B & D", "B, D", C, T, T, T),
    ("B D", "B, D", C, T, T, T),
    ("B", "B, D", C, F, F, F),
    ("D", "B, D", C, F, F, F),
    ("B, C", "B, D", C, F, F, F),
    ("B, C, D", "B, D", C, F, F, F),
    ("BCD", "B, D", C, F, F, F),
    ("B or D", "B, D", C, F, F, F),
    ("A and B", "A", C, F, F, F),
    ("A, B", "A", C, F, F, F),
    ("AB", "A", C, F, F, F),
    ("A or B", "A", C, F, F, F),
    ("A or B", "B", C, F, F, F),
    ("A. 5 or B. 6", "A", C, F, F, F),
    ("A. 5, B. 6", "A", C, F, F, F),
    ("A. 5 B. 6", "A", C, F, F, F),
    ("ABCD", "A", C, F, F, F),
    ("not A", "A", C, F, F, F),
    ("A is correct", "A", C, T, T, T),
    ("I choose B", "B", C, T, T, T),
    ("Ⓐ", "A", C, T, T, T),
    ("Ａ", "A", C, T, T, T),
    ("A，B", "A, B", C, T, T, T),
    ("A，B", "A", C, F, F, F),
    ("选A", "A", C, T, T, T),
    ("答案是B", "A", C, F, F, F),
    ("A、C", "A, C", C, T, T, T),
    ("5", "A", C, F, F, F),
    ("5 cm", "B", C, F, F, F),
    (r"\frac{1}{2}", "C", C, F, F, F),
    ("12", "D", C, F, F, F),
    ("Apple", "A", C, F, F, F),
    ("none", "A", C, F, F, F),
    ("", "A", C, F, F, F),
    ("x=5", "A", C, F, F, F),
    ("a+1", "A", C, F, F, F),
    ("A+B", "A", C, F, F, F),
    ("J", "J", C, T, T, T),
    ("H", "J", C, F, F, F),
    ("Yes", "yes", C, T, T, T),
    ("No", "yes", C, F, F, F),
    ("5", "5", C, T, T, T),
    # whole numbers
    ("5", "5", V, T, T, T),
    ("5", "6", V, F, F, F),
    ("-5", "5", V, F, F, F),
    ("-5", "-5", V, T, T, T),
    ("- 5", "-5", V, T, T, T),
    ("−5", "-5", V, T, F, T),
    ("+5", "5", V, T, T, T),
    ("005", "5", V, T, T, T),
    ("5.0", "5", V, T, T, T),
    ("5.", "5", V, T, T, F),
    ("5.1", "5", V, F, F, F),
    ("0", "-0", V, T, T, T),
    ("1,000", "1000", V, T, T, T),
    ("1,000,000", "1000000", V, T, T, T),
    ("1{,}000", "1000", V, T, T, T),
    ("1 000", "1000", V, T, T, F),
    ("1,000", "1", V, F, F, F),
    ("12,5", "12.5", V, F, F, F),
    ("five", "5", V, T, F, F),
    ("about 5", "5", V, T, F, F),
    # fractions, decimals, mixed
    ("1/2", "0.5", V, T, T, T),
    ("0.5", "1/2", V, T, T, T),
    (".5", "0.5", V, T, T, T),
    (r"\frac{1}{2}", "0.5", V, T, T, T),
    (r"\frac12", "1/2", V, T, T, T),
    (r"\dfrac{3}{4}", r"\frac{3}{4}", V, T, T, T),
    (r"\tfrac{3}{4}", "0.75", V, T, T, T),
    ("2/4", "1/2", V, T, F, T),
    (r"\frac{2}{4}", r"\frac{1}{2}", V, T, F, T),
    (r"-\frac{1}{2}", r"\frac{-1}{2}", V, T, T, T),
    (r"\frac{1}{-2}", "-0.5", V, T, T, T),
    ("1/3", "0.333", V, F, F, F),
    ("0.3333333333", "1/3", V, F, F, T),
    ("0.67", "2/3", V, F, F, F),
    ("1 1/2", "3/2", V, T, T, F),
    (r"1\frac{1}{2}", "1.5", V, T, T, T),
    (r"2\frac{1}{3}", r"\frac{7}{3}", V, T, T, T),
    ("3/2", "1.5", V, T, T, T),
    ("3/2", "2/3", V, F, F, F),
    ("6/3", "2", V, T, F, T),
    # percent
    ("50%", "50", V, T, T, T),
    (r"50\%", "50", V, T, T, T),
    ("50%", "0.5", V, T, F, T),
    (r"50\%", "0.5", V, T, F, T),
    ("0.5", "50%", V, T, F, T),
    (r"12.5\%", r"12.5\%", V, T, T, T),
    ("50%", "5", V, F, F, F),
    ("50 percent", "50%", V, T, F, T),
    # units
    ("5 cm", "5", V, T, T, T),
    (r"5\text{ cm}", "5", V, T, T, T),
    (r"5\,\text{cm}", "5", V, T, T, T),
    (r"5 \mathrm{~cm}", "5", V, T, T, T),
    ("5cm", "5 cm", V, T, T, T),
    ("5 meters", "5", V, T, T, T),
    ("5 m", "5", V, T, F, T),
    ("5 km", "5 cm", V, F, F, T),
    ("5 m", "5 cm", V, F, F, T),
    (r"25\text{ cm}^2", "25", V, T, T, T),
    ("25 cm^2", "25", V, T, T, F),
    ("60 km/h", "60", V, T, F, F),
    (r"\$5", "5", V, T, T, T),
    ("5 dollars", "5", V, T, F, F),
    ("5 kg", "5", V, T, F, T),
    ("30 minutes", "30", V, T, T, T),
    ("2 hours", "120 minutes", V, T, F, F),
    # degrees
    (r"30^\circ", "30", V, T, T, T),
    (r"30^{\circ}", r"30^\circ", V, T, T, T),
    ("30°", "30", V, T, F, F),
    ("30 degrees", "30", V, T, T, T),
    (r"30^\circ", "40", V, F, F, F),
    ("30", "30°", V, T, F, F),
    (r"\angle A = 30^\circ", "30", V, T, F, T),
    # scientific notation
    (r"1.5\times 10^3", "1500", V, T, F, T),
    (r"1.5 \times 10^{3}", "1500", V, T, F, T),
    ("1.5e3", "1500", V, T, T, F),
    (r"2\cdot10^{-3}", "0.002", V, T, T, T),
    (r"3 \times 10^8", r"3\times10^{8}", V, T, T, T),
    (r"1.5\times 10^3", "150", V, F, F, F),
    # roots, pi, powers
    (r"2\sqrt{3}", r"\sqrt{12}", V, T, T, T),
    (r"\sqrt{12}", r"2\sqrt{3}", V, T, T, T),
    (r"2\sqrt{221}", r"2\sqrt{221}", V, T, T, T),
    (r"2\sqrt{221}", "29.73", V, F, F, F),
    (r"\sqrt{2}", "1.414", V, F, F, F),
    (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}", V, T, T, T),
    (r"\sqrt3", r"\sqrt{3}", V, T, T, T),
    ("√3", r"\sqrt{3}", V, T, F, F),
    ("sqrt(3)", r"\sqrt{3}", V, T, T, T),
    (r"2\pi", r"\pi\cdot 2", V, T, T, T),
    ("2π", r"2\pi", V, T, F, T),
    ("3.14", r"\pi", V, F, F, F),
    ("6.28", r"2\pi", V, F, F, F),
    ("2^3", "8", V, T, F, T),
    (r"3\sqrt{2}", r"2\sqrt{3}", V, F, F, F),
    (r"\frac{5\sqrt{3}}{2}", r"2.5\sqrt{3}", V, T, T, T),
    # algebra, equations
    ("1+x", "x+1", V, T, T, T),
    ("(x+1)^2", "x^2+2x+1", V, T, T, T),
    ("(x+1)(x-1)", "x^2-1", V, T, T, T),
    ("2x", "x*2", V, T, T, T),
    ("x+1", "x+2", V, F, F, F),
    ("x = 5", "5", V, T, T, T),
    ("x=5", "x = 5", V, T, T, T),
    ("5", "x=5", V, T, T, T),
    ("y=5", "x=5", V, F, F, F),
    (r"x \approx 5", "5", V, T, F, T),
    ("x = 5 cm", "5", V, T, F, T),
    ("x=2, y=3", "(2,3)", V, T, F, T),
    ("y=2x+1", "y = 1+2x", V, T, F, T),
    ("2x+1=y", "y=2x+1", V, T, F, T),
    # sets, tuples, intervals
    ("(1,2)", "(1,2)", V, T, T, T),
    ("(1, 2)", "(1,2)", V, T, T, T),
    ("(2,1)", "(1,2)", V, F, F, F),
    ("1, 2", "1,2", V, T, T, T),
    ("2, 1", "1, 2", V, T, F, T),
    (r"\{1,2\}", r"\{2,1\}", V, T, F, T),
    ("1 and 2", "1, 2", V, T, T, T),
    ("1 or 2", "1, 2", V, T, T, T),
    (r"\{1,2,3\}", r"\{1,2\}", V, F, F, F),
    ("[1,2)", "[1,2)", V, T, T, T),
    ("[1,2)", "(1,2)", V, F, F, F),
    ("[1,2]", "[1, 2]", V, T, T, T),
    (r"(-\infty, 2)", r"(-\infty,2)", V, T, T, T),
    (r"(-\infty,1)\cup(2,\infty)", r"(2,\infty)\cup(-\infty,1)", V, T, F, T),
    ("x>3", "3<x", V, T, F, T),
    ("x>3", r"(3, \infty)", V, T, F, F),
    (r"x \ge 3", r"x \geq 3", V, T, T, T),
    ("x=1 or x=2", "1, 2", V, T, F, T),
    (r"(\frac{1}{2}, 3)", "(0.5, 3)", V, T, T, T),
    # ratios, matrices
    ("1:2", "1:2", V, T, T, T),
    ("2:4", "1:2", V, T, F, T),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", V, T, T, T),
    # text
    ("Blue", "blue", V, T, T, T),
    (r"\text{blue}", "blue", V, T, T, T),
    ("red", "blue", V, F, F, F),
    ("no", "yes", V, F, F, F),
    ("isosceles triangle", "isosceles", V, T, F, F),
    (r"\text{east}", "west", V, F, F, F),
    # values against letters, and junk
    ("A", "5", V, F, F, F),
    ("A. 5", "5", V, F, F, T),
    ("", "5", V, F, F, F),
    ("?", "5", V, F, F, F),
    ("a\x00b", "5", V, F, F, F),
    ("\ud800", "5", V, F, F, F),
    ("{{{{", "5", V, F, F, F),
    (r"\frac", "5", V, F, F, F),
    ("None", "5", V, F, F, F),
    ("9**9**9", "5", V, F, F, F),
    ("1/0", "5", V, F, F, F),
    ("nan", "5", V, F, F, F),
]
# fmt: on

DOCS = Path(__file__).parents[2] / "docs" / "grading.md"


@pytest.fixture(scope="module")
def pool() -> Iterator[GraderPool]:
    with GraderPool(workers=2, deadline_s=20.0) as pool:
        yield pool


@pytest.mark.parametrize("column", [0, 1], ids=GRADERS)
def test_the_graders_say_what_the_table_says(pool: GraderPool, column: int) -> None:
    verdicts = pool.grade([row[:3] for row in TABLE], GRADERS[column])
    wrong = [(row, v) for row, v in zip(TABLE, verdicts, strict=True) if v is not row[4 + column]]
    assert wrong == []


def test_the_choice_rule_is_never_wrong() -> None:
    rows = [(row, choice_verdict(*row[:2])) for row in TABLE if row[2] == C]
    assert [row for row, verdict in rows if verdict not in (None, row[3])] == []
    assert sum(verdict is not None for _, verdict in rows) > 70


def test_no_choice_is_graded_wrong() -> None:
    assert [row for row in TABLE if row[2] == C and row[4:] != (row[3], row[3])] == []


def test_rows_are_distinct() -> None:
    assert len({row[:3] for row in TABLE}) == len(TABLE)


@pytest.mark.parametrize("column", [0, 1], ids=GRADERS)
def test_the_docs_tell_the_error_rates(column: int) -> None:
    values = [row for row in TABLE if row[2] == V]
    missed = sum(row[3] and not row[4 + column] for row in values)
    granted = sum(row[4 + column] and not row[3] for row in values)
    line = f"| `{GRADERS[column]}` | {missed} | {granted} | {len(values)} |"
    assert line in DOCS.read_text()
