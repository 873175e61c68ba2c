r"""What a response answers, read from its text: the last ``\boxed{...}`` and the rule for choices.

Pure text work in linear time: a model under training sends anything, megabytes of braces included.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

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
    r"\\{1,2}(?:text|math|operatorname|boxed|mbox|fbox|displaystyle|underline|emph|bm|bf|rm|boldsymbol)"
    r"[a-z]*|\\{1,2}(?:left|right|q?quad)(?![a-z])|\\[,;:! {}()\[\]]|[{}$~`\"“”]|</?answer>"
)
_BOLD = re.compile(r"(?<![A-Za-z0-9)*])(\*\*?)(?=[^\s*])([^*]{1,200})\1(?![A-Za-z0-9(*])")
_WIDE = str.maketrans("、。【】", ",.()")  # what Unicode's compatibility forms leave alone
_LEAD = re.compile(
    r"(?:(?:the|my) )?(?:(?:correct|right|best|final) )*(?:answers?|options?|choices?)"
    r"(?: (?:is|are))?(?: ?: ?| )(?=\S)"
    r"|(?:i )?(?:choose|select|pick) (?=\S)|(?:only|both) (?=\S)"
    r"|(?:故|应)?(?:正确)?(?:答案|选项|选择|选)(?:应?[是为选])? ?:? ?(?=\S)",
    re.IGNORECASE,
)
_TAIL = re.compile(
    r" (?:only|is (?:the )?(?:correct|right|best)(?: (?:answer|option|choice))?)", re.IGNORECASE
)
# "A. 5", "(A) 5", "A: x", "A.\frac12"; not the formulas "A:B" and "(A)\times 2".
_OPENS = r"(?=[ 0-9]|-[0-9]|\\[dt]?frac|\\sqrt|[\u0370-\U0010ffff])"
_LABEL = re.compile(rf"(?:\(([A-Za-z])\)[.:]?|([A-Za-z])[.):]){_OPENS}")
_NEXT_LABEL = re.compile(rf"(.)(?<![A-Za-z0-9\\^_])(?:\(([A-J])\)|([A-J])[.):]){_OPENS}")
_OTHERWISE = re.compile(r"(?:answer|option|choice) is|correct (?:answer|option|choice)", re.I)
_RUN = re.compile(r"[A-J]{2,10}")  # "BD"; no benchmark here offers more than ten options
_ONE = re.compile(r"\(?([A-Za-z])\)?")
_BETWEEN = re.compile(r"(?: ?[,;&和与] ?| )(?:and |& ?)?")
_OR = re.compile(r" ?,? ?(?<![a-z])or (?=\(?[A-Z]\)?(?: |,|$))")

_LONGEST_CHOICE = 2_000  # characters; what is longer names an option nowhere near clearly


def choice_letters(text: str) -> frozenset[str] | None:
    r"""The options that ``text`` clearly names, upper case, or None if it does not name any.

    Clear are a letter (``A``, ``a``, ``(A)``, ``A)``, ``Option A``, ``the answer is A``,
    ``\text{A}``, ``**A**``, ``选A``, and full-width or circled letters), a labelled option
    (``A. 5``, ``A: because``), and several of them (``B, D``, ``BD``, ``B and D``,
    ``A. 5, B. 6``). Words (``Apple``) and formulas (``A+1``, ``A:B``) are not.

    The empty set: it leaves open which (``A or B``), and so is right for no gold.
    """
    if len(text) > _LONGEST_CHOICE:
        return None
    plain = unicodedata.normalize("NFKC", text).translate(_WIDE).replace("\\&", "&")
    plain = " ".join(_MARKUP.sub(" ", _BOLD.sub(r"\2", plain)).split())
    plain = plain.replace("( ", "(").replace(" )", ")").replace(".)", ")")
    for _ in range(3):  # "the answer is option A", "I choose option A"
        lead = _LEAD.match(plain)
        plain = plain[lead.end() :] if lead else plain
    plain = plain.rstrip(" .:;,")
    if "*" not in plain:
        tail = _TAIL.search(plain)
        plain = plain[: tail.start()] if tail and tail.end() == len(plain) else plain
    if _RUN.fullmatch(plain) and len(set(plain)) == len(plain):
        return frozenset(plain)
    if plain[:1] + plain[-1:] in ("()", "[]") and plain.count("(") + plain.count("[") == 1:
        plain = plain[1:-1].strip()  # "(A, B)" and "(A)"
    open_choice, several = _letters(_OR.split(plain)), _letters(_BETWEEN.split(plain))
    if several is not None:
        return several
    if open_choice is not None:
        return frozenset()
    return _labels(plain)


def _letters(parts: Sequence[str]) -> frozenset[str] | None:
    """The letters, if every part is one or a list of several."""
    found: set[str] = set()
    for part in parts:
        ones = [_ONE.fullmatch(one) for one in (_BETWEEN.split(part) if len(parts) > 1 else [part])]
        if not all(ones):
            return None
        found.update(one.group(1).upper() for one in ones if one)
    return frozenset(found)


def _labels(plain: str) -> frozenset[str] | None:
    """The letters of labelled options: ``A. 5``, or ``A. 5, B. 6``."""
    label = _LABEL.match(plain)
    if not label or _OTHERWISE.search(plain):
        return None
    letters = {(label.group(1) or label.group(2)).upper()}
    rest = plain[label.end() :]
    for other in _NEXT_LABEL.finditer(rest):
        before = rest[: other.start() + 1].rstrip()
        if before.endswith(" or"):
            return frozenset()
        if not before.endswith((",", ";", " and", "&")):
            return None  # "A. 5 B. 6", or a text such as "A. vitamin C: acid"
        letters.add(other.group(2) or other.group(3))
    return frozenset(letters)


def choice_verdict(answer: str, gold: str) -> bool | None:
    """Whether ``answer`` names the same set of options as ``gold``; None: the rule cannot tell."""
    gold_letters = choice_letters(gold)
    answer_letters = choice_letters(answer) if gold_letters else None
    return None if answer_letters is None else answer_letters == gold_letters
