r"""Extraction of \boxed answers and the rule for choices: two tables, and inputs of a megabyte."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.grading.answer import choice_letters, choice_verdict, extract_answer

EXTRACTION = [
    (r"\boxed{5}", "5"),
    (r"so the area is $\boxed{12}$.", "12"),
    (r"\boxed{ 7 }", "7"),
    (r"\boxed {7}", "7"),
    ("\\boxed\n{7}", "7"),
    (r"\\boxed{7}", "7"),
    (r"first \boxed{1}, then \boxed{2}", "2"),
    (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
    (r"\boxed{\sqrt{\frac{a}{b}}} and more }", r"\sqrt{\frac{a}{b}}"),
    (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
    (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
    (r"\boxed{a\\{b}}", r"a\\{b}"),
    (r"\boxed{\text{A}}", r"\text{A}"),
    (r"\boxed{\boxed{5}}", "5"),
    (r"\boxed{A: \boxed{B} C}", "B"),
    (r"\boxed{5} \boxed{6", "5"),
    (r"\boxed{5} \boxed{\frac{6}{7}", "5"),
    (r"\boxed{x + \boxed{5}", "5"),
    (r"\boxed{4} \boxed{x + \boxed{5", "4"),
    (r"\boxed{5} as asked, in \boxed{}", "5"),
    (r"\boxed{5} \boxed{  }", "5"),
    (r"\boxed{5} \boxed{\}", "5"),
    (r"unclosed { before \boxed{5}", "5"),
    (r"stray } before \boxed{5}", "5"),
    (r"\boxed{5} and \boxedtext{6}", "5"),
    ("\\boxed{1\n2}", "1\n2"),
    ("\\boxed{a\0b}", "a\0b"),
    ("\\boxed{\ud800}", "\ud800"),
    (r"{ \boxed{5} } \boxed{6", "5"),
    (r"\\\boxed{5} \boxed{6", "5"),
    (r"\boxed{", None),
    (r"\boxed{}", None),
    (r"\boxed 5", None),
    (r"\boxed", None),
    ("the answer is 5", None),
    ("", None),
    ("}{", None),
]

CHOICES = [
    # (answer, gold, verdict); None: the gold is no letter
    ("A", "A", True),
    ("a", "A", True),
    ("A", "a", True),
    ("B", "A", False),
    ("A.", "A", True),
    ("A)", "A", True),
    ("(A)", "A", True),
    ("(a)", "A", True),
    ("( A )", "A", True),
    ("(A).", "A", True),
    ("A. 5", "A", True),
    ("A. 5", "B", False),
    ("A.5", "A", True),
    ("A) 5 cm", "A", True),
    ("(A) 5 cm", "A", True),
    ("A: foo", "A", True),
    ("A. C", "A", True),
    ("A. Apple", "A", True),
    (r"A. $\frac{1}{2}$", "A", True),
    (r"A.\quad 5", "A", True),
    ("Option A", "A", True),
    ("option (A)", "A", True),
    ("Option A: five", "A", True),
    ("Choice B", "B", True),
    ("Answer: A", "A", True),
    ("answer is A", "A", True),
    ("The answer is A.", "A", True),
    ("The correct answer is option A", "A", True),
    ("the final answer is: (C)", "C", True),
    ("the answer is B", "A", False),
    (r"\text{A}", "A", True),
    (r"\text{ A }", "A", True),
    (r"\textbf{(A)}", "A", True),
    (r"\text{A. 5}", "A", True),
    (r"\text{(A)} 5", "A", True),
    (r"\text{Option A}", "A", True),
    (r"\mathrm{(A)}", "A", True),
    (r"\mathbf{A}", "A", True),
    (r"\left(A\right)", "A", True),
    ("$A$", "A", True),
    ("**A**", "A", True),
    ("{A}", "A", True),
    ("B, D", "BD", True),
    ("D, B", "BD", True),
    ("BD", "B, D", True),
    ("DB", "B,D", True),
    ("B and D", "B,D", True),
    ("B, C, and D", "BCD", True),
    ("B & D", "BD", True),
    (r"B \& D", "BD", True),
    (r"\{B, D\}", "BD", True),
    ("(B), (D)", "BD", True),
    ("(B, D)", "BD", True),
    ("b, d", "B,D", True),
    (r"\text{B and D}", "BD", True),
    ("Options B and D", "BD", True),
    ("B", "BD", False),
    ("BD", "B", False),
    ("A, B, C, D", "A", False),
    ("ABCD", "A", False),
    ("J", "J", True),
    ("Apple", "A", False),
    ("A cat", "A", False),
    ("a+1", "A", False),
    ("A+B", "A", False),
    ("A*B", "AB", False),
    ("A:B", "A", False),
    ("A^2", "A", False),
    ("A1", "A", False),
    ("AA", "A", False),
    ("f(a)", "A", False),
    (r"(A)\times 2", "A", False),
    (r"A \rightarrow B", "AB", False),
    (r"\frac{A}{B}", "AB", False),
    ("A or B", "A", False),
    ("A or B", "AB", False),
    ("A, B or C", "C", False),
    ("A. 5 or B. 6", "A", False),
    ("A. 5, B. 6", "A", False),
    ("A. 5, B. 6", "AB", True),
    ("A. 5 B. 6", "A", False),
    ("A. red or blue", "A", True),
    ("A. 5, the answer is B", "A", False),
    ("A and B", "A", False),
    ("A and B only", "AB", True),
    ("both A and B", "AB", True),
    ("A is correct", "A", True),
    ("Option A is the correct answer.", "A", True),
    ("I choose B", "B", True),
    ("[A]", "A", True),
    (r"\(A\)", "A", True),
    (r"\\text{A}", "A", True),
    ("*A*", "A", True),
    ("**A**. 5", "A", True),
    ("**A.** 5", "A", True),
    ("A**B", "AB", False),
    ("`A`", "A", True),
    ("<answer>A</answer>", "A", True),
    ("A.)", "A", True),
    (r"A.\frac{1}{2}", "A", True),
    (r"(A)\frac{1}{2}", "A", True),
    ("A:-5", "A", True),
    ("Ⓐ", "A", True),
    ("Ａ", "A", True),
    ("A，B", "AB", True),
    ("A、B", "AB", True),
    ("A，B", "A", False),
    ("（A）", "A", True),
    ("A．5", "A", True),
    ("选A", "A", True),
    ("故选：A", "A", True),
    ("答案是B。", "B", True),
    ("选项C", "C", True),
    ("A.红色", "A", True),
    ("B和D", "BD", True),
    (r"\underline{A}", "A", True),
    (r"\textcircled{A}", "A", True),
    ("A or", "A", False),
    ("A nor B", "A", False),
    ("A" + "B" * 3000, "A", False),
    ("not A", "A", False),
    ("Option", "O", False),
    ("5", "A", False),
    ("bad", "ABD", False),
    ("U.S. dollars", "U", False),
    ("", "A", False),
    ("yes", "yes", None),
    ("A", "yes", None),
]


@pytest.mark.parametrize(("text", "answer"), EXTRACTION)
def test_extraction(text: str, answer: str | None) -> None:
    assert extract_answer(text) == answer


@pytest.mark.parametrize(("answer", "gold", "verdict"), CHOICES)
def test_choice_rule(answer: str, gold: str, verdict: bool | None) -> None:
    assert choice_verdict(answer, gold) is verdict


# A quadratic pass over any of these would take hours, not seconds.
MEGABYTES = [
    "{" * 10**6,
    "}" * 10**6,
    "\\" * 10**6,
    r"\boxed{" * 150_000,
    r"\boxed{" * 150_000 + "}" * 150_000,
    r"\boxed{1}" * 100_000 + r"\boxed{",
    "\\boxed" + " " * 10**6,
]


@pytest.mark.parametrize("text", MEGABYTES, ids=range(len(MEGABYTES)))
def test_a_megabyte_is_read_in_linear_time(text: str) -> None:
    extract_answer(text)
    choice_letters(text)


def test_the_last_complete_box_survives_a_megabyte_of_open_ones() -> None:
    assert extract_answer(r"\boxed{7}" + r"\boxed{" * 150_000) == "7"


@given(st.text(alphabet="ab\\{}$ ,.()AB", max_size=60))
def test_a_box_written_last_is_what_is_read(noise: str) -> None:
    # The newline keeps a trailing backslash of the noise from reaching the box.
    assert extract_answer(noise + "\n\\boxed{42}") == "42"


@given(st.text(max_size=40), st.text(max_size=40))
def test_no_text_breaks_the_choice_rule(answer: str, gold: str) -> None:
    assert choice_verdict(answer, gold) in (True, False, None)


@given(st.sets(st.sampled_from("ABCDEFGHIJ"), min_size=1), st.randoms())
def test_order_of_letters_does_not_matter(letters: set[str], random) -> None:
    shuffled = sorted(letters)
    random.shuffle(shuffled)
    assert choice_letters(", ".join(shuffled)) == letters
    assert choice_letters("".join(shuffled)) == letters
