r"""What a response answers, read from its text: the last ``\boxed{...}`` and the rule for choices.

Pure text work in linear time: a model under training sends anything, megabytes of braces included.
"""

from __future__ import annotations

import re

_BOX = "\\boxed"
# A box may follow a doubled backslash (JSON-escaped output). Any other backslash takes the next
# character with it, so that \{ and \} do not count as braces.
_TOKEN = re.compile(r"\\(?:\\?boxed\s*\{|.)|[{}]", re.DOTALL)


def extract_answer(text: str) -> str | None:
    r"""The content of the last complete ``\boxed{...}``, stripped, or None if there is none.

    Braces must balance; ``\{`` and ``\}`` are text. An unclosed box is passed over in favour of the
    last complete one, and so is a blank box: it holds no answer. Of nested boxes the inner one
    counts, as it starts last.
    """
    last = text.rfind(_BOX)
    if last < 0:
        return None
    # The last box nearly always decides; then the pass over everything from the first is spared.
    return _last_box(text, last) or _last_box(text, text.find(_BOX))


def _last_box(text: str, start: int) -> str | None:
    """The content of the complete, non-blank box that starts last at or after ``start``."""
    open_boxes: list[int | None] = []  # one entry per open brace: a box's content start, or None
    best_start, best = -1, None
    for token in _TOKEN.finditer(text, start):
        mark = token.group()
        if mark == "{":
            open_boxes.append(None)
        elif mark == "}":
            opened = open_boxes.pop() if open_boxes else None
            if opened is not None and opened > best_start:
                content = text[opened : token.start()].strip()
                if content:
                    best_start, best = opened, content
        elif len(mark) > 2:
            open_boxes.append(token.end())
    return best


# Markup that changes how a choice looks, never which one it is.
_MARKUP = re.compile(
    r"\\(?:text|math|operatorname|boxed|mbox|displaystyle)[a-z]*|\\(?:left|right|q?quad)(?![a-z])"
    r"|\\[,;:! {}]|[{}$~]|\*\*"
)
_LEAD = re.compile(
    r"(?:(?:the|my) )?(?:(?:correct|right|best|final) )*(?:answers?|options?|choices?)"
    r"(?: (?:is|are))?(?: ?: ?| )(?=\S)",
    re.IGNORECASE,
)
_LABEL = re.compile(r"(?:\(([A-Za-z])\)[.:]?|([A-Za-z])[.):])(?=[ 0-9])")  # "A. 5", "(A) 5", "A: x"
_RUN = re.compile(r"[A-J]{2,10}")  # "BD"; no benchmark here offers more than ten options
_ONE = re.compile(r"\(?([A-Za-z])\)?")
_BETWEEN = re.compile(r"(?: ?[,;&] ?| )(?:and |& ?)?")


def choice_letters(text: str) -> frozenset[str] | None:
    r"""The options that ``text`` clearly names, upper case, or None if it does not name any.

    Clear are a letter (``A``, ``a``, ``(A)``, ``A)``, ``Option A``, ``the answer is A``,
    ``\text{A}``), a labelled option (``A. 5``, ``A: because``), and several letters (``B, D``,
    ``BD``, ``B and D``). Words (``Apple``) and formulas (``A+1``, ``A:B``) are not.
    """
    plain = " ".join(_MARKUP.sub(" ", text.replace("\\&", "&")).split())
    plain = plain.replace("( ", "(").replace(" )", ")")
    for _ in range(2):  # "the answer is option A"
        lead = _LEAD.match(plain)
        plain = plain[lead.end() :] if lead else plain
    plain = plain.rstrip(" .:")
    if _RUN.fullmatch(plain) and len(set(plain)) == len(plain):
        return frozenset(plain)
    if plain.startswith("(") and plain.endswith(")") and plain.count("(") == 1:
        plain = plain[1:-1].strip()  # "(A, B)" and "(A)"
    parts = [_ONE.fullmatch(part) for part in _BETWEEN.split(plain)]
    letters = [part.group(1).upper() for part in parts if part]
    if len(letters) == len(parts):
        return frozenset(letters)
    label = _LABEL.match(plain)
    return frozenset((label.group(1) or label.group(2)).upper()) if label else None


def choice_verdict(answer: str, gold: str) -> bool | None:
    """Whether ``answer`` names the same set of options as ``gold``; None: the rule cannot tell."""
    gold_letters = choice_letters(gold)
    answer_letters = choice_letters(answer) if gold_letters else None
    return answer_letters == gold_letters if gold_letters and answer_letters else None
