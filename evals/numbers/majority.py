r"""Which of several answers are the same, and what their majority says (self-consistency).

Wang et al., "Self-Consistency Improves Chain of Thought Reasoning", arXiv 2203.11171: the answer that
most samples give. All in linear time: an answer may be megabytes of anything.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Sequence

from pipelines.grading.answer import choice_letters

_WORDS = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_NOTHING = re.compile(r"\$|\\(?:left|right|displaystyle)(?![A-Za-z])|\\[,;:!()\[\]]")
_SPACE = re.compile(r"\\ |~|\\q?quad(?![A-Za-z])")
# Possessive: what a part has taken it keeps, or a megabyte of zeros would take quadratic time.
_NUMBER = re.compile(r"([+-]?)0*+([0-9]*+)(?:\.([0-9]*+))?")


def vote(answer: str, kind: str) -> Hashable | None:
    """What ``answer`` votes for: equal votes, same answer. None: an empty answer does not vote.

    Of a choice question: the set of options that it names, so that ``A``, ``(A)`` and ``A. 5`` are one.
    Otherwise, or if it names none: its text, normalised.
    """
    letters = choice_letters(answer) if kind == "choice" else None
    return letters or normalise(answer) or None


def normalise(answer: str) -> str:
    r"""``answer`` without what only changes how it looks.

    Dropped are ``$``, ``\(`` ``\)`` ``\[`` ``\]``, ``\left``, ``\right``, ``\displaystyle``, the wrapper
    of ``\text{...}`` and its kin, all space (but not between two digits: ``1 1/2`` is not ``11/2``) and
    a full stop at the end; ``\dfrac`` and ``\tfrac`` become ``\frac``. A plain decimal number loses
    ``+``, leading zeros and a fraction's trailing zeros: ``05.0`` is ``5``. Values are not computed:
    ``1/2`` and ``0.5`` stay two answers.
    """
    text = _WORDS.sub(r"\1", answer)
    text = _SPACE.sub(" ", _NOTHING.sub("", text))
    text = text.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    text = re.sub(r"(?<![0-9]) | (?![0-9])", "", " ".join(text.split()))
    text = text.rstrip(".")
    number = _NUMBER.fullmatch(text)
    if not number or not any(character.isdigit() for character in text):
        return text
    sign, whole, part = number[1], number[2] or "0", (number[3] or "").rstrip("0")
    sign = "-" if sign == "-" and (whole, part) != ("0", "") else ""
    return f"{sign}{whole}.{part}" if part else f"{sign}{whole}"


def majority(votes: Sequence[Hashable | None], right: Sequence[bool]) -> float:
    """How probably the most frequent answer is right, 0 if there is no answer at all.

    Of several equally frequent answers each is as likely to be taken: the result is the fraction of
    them that is right. (Should a grader judge two spellings of one answer differently, either
    spelling is as likely to be taken as it is frequent.)
    """
    counts = Counter(vote for vote in votes if vote is not None)
    most = max(counts.values(), default=0)
    taken = [ok for vote, ok in zip(votes, right, strict=True) if vote and counts[vote] == most]
    return sum(taken) / len(taken) if taken else 0.0
