r"""What a response answers, read from its text: the last ``\boxed{...}``, and the option it names.

Pure text work in linear time: a model under training sends anything, megabytes of braces included.
"""

from __future__ import annotations

import re
import unicodedata

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


def published_answer(text: str) -> str:
    r"""The content of the last ``\boxed{``, as the authors' evaluation takes it; "None" if there is none.

    mathruler's ``extract_boxed_content``: every brace counts, ``\{`` too, and an unclosed last box is no
    answer. Before it, their ``compute_accuracy_boxed_math`` (PAPO-Eval, papo_eval/eval_utils.py) takes the
    space around ``<``, ``>`` and ``/`` away, which leaves braces and boxes alone.
    """
    start = text.rfind(_BOX + "{")
    if start < 0:
        return NO_BOX
    start, depth = start + len(_BOX) + 1, 1
    for brace in re.finditer("[{}]", text[start:]):
        depth += 1 if brace.group() == "{" else -1
        if not depth:
            parts = re.split("([<>/])", text[start : start + brace.start()])
            return "".join(map(str.strip, parts)) if len(parts) > 1 else parts[0].strip()
    return NO_BOX


NO_BOX = "None"
"""What the authors' evaluation grades where there is no answer."""


# --- which option an answer names -----------------------------------------------------------------

# Markup that changes how a choice looks, never which one it is.
_MARKUP = re.compile(
    r"\\{1,2}(?:text)?color\s*\{[A-Za-z]*\}"
    r"|\\{1,2}(?:text|math|operatorname|boxed|mbox|fbox|displaystyle|underline|emph|bm|bf|rm|boldsymbol)"
    r"[a-z]*|\\{1,2}(?:left|right|q?quad|[Ll]arge|LARGE|[Hh]uge|small|tiny|bold)(?![a-z])"
    r"|\\[,;:! {}()\[\]]|[{}$~`\"“”]|</?answer>"
)
_BOLD = re.compile(r"(?<![A-Za-z0-9)*])(\*\*?)(?=[^\s*])([^*]{1,200})\1(?![A-Za-z0-9(*])")
_WIDE = str.maketrans("、。【】", ",.()")  # what Unicode's compatibility forms leave alone

# A letter alone in its markup, before something else: "\text{D} 24", "\( \text{D} \) 24", "**D** 24".
_WRAPPED = r"\\{1,2}(?:text|math)[a-z]*\s*\{\s*[A-Z]\s*\}"
_APART = re.compile(
    rf"\s*(?:\\\(\s*(?:{_WRAPPED}|[A-Z])\s*\\\)|\$\s*(?:{_WRAPPED}|[A-Z])\s*\$|{_WRAPPED}|\*\*[A-Z]\*\*)"
)
_VALUE_OR_WORD = re.compile(r"-?\.?\d|\\(?:[dt]?frac|sqrt)|(?!and |or |is |only)[A-Za-z]{2}")

_LEAD = re.compile(
    r"(?:(?:the|my) )?(?:(?:correct|right|best|final) )*(?:answers?|options?|choices?)"
    r"(?: (?:is|are))?(?: ?: ?| )(?=\S)"
    r"|(?:i )?(?:choose|select|pick) (?=\S)|both (?=\S)|(?:the )?letter (?=\S)"
    r"|it(?: is|'s) (?=\S)|(?:so|thus|therefore|hence),? (?=\S)"
    r"|(?:故|应)?(?:正确)?(?:答案|选项|选择|选)(?:应?[是为选])? ?:? ?(?=\S)",
    re.IGNORECASE,
)
_TAIL = re.compile(r" is (?:the )?(?:correct|right|best)(?: (?:answer|option|choice))?", re.IGNORECASE)
_ONLY = re.compile(r"(.*[^A-Za-z][A-Za-z]\)?) only")  # of several: "only D" is an option's text

_RUN = re.compile(r"[A-J]{2,10}")  # "BD"; no benchmark here offers more than ten options
_ONE = re.compile(r"(\(?)([A-Za-z])(\)?)")
_BETWEEN = re.compile(r"(?: ?[,;&和与] ?| )(?:(?:and|or) |& ?)?")

_LABEL = re.compile(r"\(([A-Za-z])\)[.:]?|([A-Za-z])([.):])")
_OPERATOR = re.compile(
    r"\\(?:times|cdot|div|pm|mp|[cs]up|cap|cup|to|in|ne|neq|l[et]q?|g[et]q?|approx|equiv|sim|circ|parallel"
    r"|perp|wedge|vee|subset|(?:left|right|Left|Right)arrow)(?![a-zA-Z])"
)
_OTHER_LABEL = {
    "(": r"(?<![A-Za-z0-9\\^_])\(([A-J])\)",
    ".": r"(?<![A-Za-z0-9\\^_(])([A-J])\.(?=[ 0-9\\-]|$|[^\x00-\u036f])",
    ":": r"(?<![A-Za-z0-9\\^_(])([A-J]):(?=[ 0-9\\-]|$|[^\x00-\u036f])",
    ")": r"(?<![A-Za-z0-9\\^_(])([A-J])\)",
}
"""How a label is written -> one of the same writing further on. Others are the option's own text."""
_MENTIONED = re.compile(
    r"(?:all|none) of|both|either|neither|only"
    r"|statements?|figures?|graphs?|equations?|reactions?|points?|cases?|of|in|than|to|for|from|with|by|as|if|that|when|where|between|not|but",
    re.IGNORECASE,
)
"""Before a label: the option's text speaks of others, "(E) Both (A) and (B)"."""
_FUNCTION = re.compile(r"(?:.*[^A-Za-z\\])?\\?(?:sin|cos|tan|log|ln|exp)|[A-Za-z]")
_OTHERWISE = re.compile(
    r"(?i:answer|option|choice) is:? \(?[A-J]\)?(?![A-Za-z])"
    r"|^(?:\S{1,3}) (?:is|was)(?:n't| not| wrong| incorrect)"
)
"""Takes back the label in front: "A. 5, the answer is B"."""
_BESIDE = re.compile(r"([A-Z]) \((.+)\)")  # "B (5)"
_NUMBERED = re.compile(
    r"([A-J]),? (-?\.?\d.*|\\(?:[dt]?frac|sqrt).*)|([A-J]), ([A-Z][a-z]+.*)"
)  # "D 24.3 kN", "E, None"
_SEVERAL_OPTIONS = re.compile(
    r"(?<![A-Za-z\\])[A-J](?![A-Za-z])[,.:)]? *-?\d|, *\(?[A-J]\)?(?![A-Za-z])|\b(?:or|and)\b"
)
_DASHED = re.compile(r"([A-Z]) (?:[–—] \S|- [A-Za-z]{2})")
_LAST = re.compile(
    r"(.*\S)(?: \((?i:option |choice |answer )?([A-J])\)"
    r"|(?i:[,;:]? (?:(?:so|which is|hence|thus|therefore),? )?(?:the )?(?:(?:correct|right) )?"
    r"(?:answer|option|choice)(?: is)?:? )\(?([A-J])\)?)"
)
_DENIES = re.compile(
    r"\b(?:not|neither|nor|but|except|instead|rather|unlike|never|is (?:wrong|incorrect|false))\b|n't", re.IGNORECASE
)

_LONGEST_CHOICE = 2_000  # characters; what is longer names an option nowhere near clearly


def choice_letters(text: str) -> frozenset[str] | None:
    r"""The options that ``text`` clearly names, upper case, or None if it does not name any.

    Clear are a letter (``A``, ``a``, ``(A)``, ``A)``, ``Option A``, ``the answer is A``,
    ``\text{A}``, ``**A**``, ``选A``, and full-width or circled letters); an option with its label,
    in front (``A. 5``, ``(A) 5``, ``A:because``, ``(B)False``, ``B (5)``, ``\textbf{(D)}\ x``) or at
    its end (``5 (B)``), whatever letters and labels its text has itself (``(D) G``, ``(A) P and R``,
    ``(I) A: 5; B: 6``); and several of them (``B, D``, ``BD``, ``B and D``, ``A. 5, B. 6``). Words
    (``Apple``, ``A square``), formulas (``A+1``, ``A:B``) and ``only D`` are not.

    The empty set: it leaves open which (``A or B``), and so is right for no gold.
    """
    if len(text) > _LONGEST_CHOICE:
        return None
    plain = unicodedata.normalize("NFKC", text).translate(_WIDE).replace("\\&", "&")
    apart = _APART.match(plain)
    if apart and _VALUE_OR_WORD.match(_unmarked(plain[apart.end() :])):
        letter = re.sub(r"[^A-Z]", "", _unmarked(apart.group()))
        plain = f"({letter}) {plain[apart.end() :]}"
    plain = _unmarked(plain)
    plain = plain.replace("( ", "(").replace(" )", ")").replace(".)", ")")
    plain = re.sub(r"^\[([A-Z])\](?=.)", r"(\1)", plain)  # "[A] 5"
    for _ in range(3):  # "the answer is option A", "I choose option A"
        lead = _LEAD.match(plain)
        plain = plain[lead.end() :] if lead else plain
    plain = re.sub(r"^(\(?[A-Za-z]\)?) (?=[.:)])", r"\1", plain.rstrip(" .:;,"))
    if "*" not in plain:
        tail = _TAIL.search(plain)
        plain = plain[: tail.start()] if tail and tail.end() == len(plain) else plain
        plain = only[1] if (only := _ONLY.fullmatch(plain)) else plain
    if _RUN.fullmatch(plain) and len(set(plain)) == len(plain):
        return frozenset(plain)
    if plain[:1] + plain[-1:] in ("()", "[]") and plain.count("(") + plain.count("[") == 1:
        plain = plain[1:-1].strip()  # "(A, B)" and "(A)"
    if all(_ONE.fullmatch(part) for part in _BETWEEN.split(plain)):
        return _letters(plain)
    return _labelled(plain)


def _unmarked(text: str) -> str:
    return " ".join(_MARKUP.sub(" ", _BOLD.sub(r"\2", text)).split())


def _letters(plain: str) -> frozenset[str] | None:
    """The letters of a text that consists of some: a list, or a label whose option's text is letters."""
    ones = [one.groups() for one in map(_ONE.fullmatch, _BETWEEN.split(plain)) if one]
    between = _BETWEEN.findall(plain)
    first, *others = [letter.upper() for _, letter, _ in ones]
    writing, *writings = [before + after for before, _, after in ones]
    if others and between[0] == " ":
        if ")" in writing and not any(writings):  # "(D) G", "D) G", "(A) P and R"
            return frozenset(first)
        if ")" in writing and len(others) > 1 and " " not in between[1:]:  # "(E) (A) and (B)"
            return frozenset(first)
        if any(one != writing for one in writings):  # "A (B)"
            return None
    return frozenset() if any("or " in one for one in between) else frozenset((first, *others))


def _labelled(plain: str) -> frozenset[str] | None:
    """The letters of options that are written with their labels: ``A. 5``, ``A. 5, B. 6``, ``5 (B)``."""
    label = _LABEL.match(plain)
    if label and _opens(label, plain[label.end() :]):
        if plain.startswith(" or ", label.end()):
            return frozenset()
        return None if _OTHERWISE.search(plain) else _with_others(label, plain[label.end() :])
    if beside := _BESIDE.fullmatch(plain):
        letters = _ONE.fullmatch(beside[2]) or not _balanced(beside[2])
        return None if letters or _DENIES.match(beside[2]) else frozenset(beside[1])
    if numbered := _NUMBERED.fullmatch(plain):
        letter, rest = (numbered.group(1) or numbered.group(3), numbered.group(2) or numbered.group(4))
        words = re.search(r"[a-z]{3}|\d-[a-z]", re.sub(r"\\[a-z]+", "", rest))
        several = _SEVERAL_OPTIONS.search(rest)
        return None if several or (letter == "A" and words and "," not in plain[:2]) else frozenset(letter)
    if dashed := _DASHED.match(plain):
        return None if _OTHERWISE.search(plain) else frozenset(dashed[1])
    last = _LAST.fullmatch(plain)
    if last and not _DENIES.search(last[1]) and not re.search(r"\([A-J]\)", last[1]):
        open_choice = re.search(r"\b(?:or|and)$", last[1].rstrip(" ,"))
        if not open_choice and not (last[2] and _FUNCTION.fullmatch(last[1])):
            return frozenset(last[2] or last[3])
    return None


def _opens(label: re.Match[str], rest: str) -> bool:
    """Whether what follows a label is the text of an option, and not the rest of a formula."""
    if re.match(r" |\d|-\d|[\u0370-\U0010ffff]", rest):
        return True
    if rest.startswith("\\"):
        return not _OPERATOR.match(rest)
    letter, mark = label.group(1) or label.group(2), label.group(3) or "("
    if not letter.isupper():
        return False
    if mark == ":":  # "A:The graph", "A:y=2x"; not the ratio "A:B"
        return bool(re.match(r"[A-Za-z]{2}|[a-z]|[A-Z] [a-z]|\(", rest))
    if mark == ".":  # "A.Apple"; not "U.S."
        return bool(re.match(r"[A-Za-z]{2}(?!\.)|\((?![A-Za-z]\))", rest))
    return bool(re.match(r"[A-Za-z]|\((?![A-Za-z]\))", rest))  # "(B)False", "D)G"


def _with_others(label: re.Match[str], rest: str) -> frozenset[str] | None:
    """The label's letter, and those of further options that are written in the same way."""
    letters = {(label.group(1) or label.group(2)).upper()}
    mark = label.group(3) or "("
    for other in re.finditer(_OTHER_LABEL[mark], rest):
        before = rest[: other.start()].rstrip()
        word = before.rpartition(" ")[2]
        phrase = " ".join(before.split()[-2:])
        if not word or _MENTIONED.fullmatch(word) or _MENTIONED.fullmatch(phrase):  # the text's own
            return frozenset(letters)
        if mark == "(" and word and not before.endswith((",", ";")) and _FUNCTION.fullmatch(word):
            continue  # "\sin (A)"
        if before.endswith(" or"):
            return frozenset()
        if not before.endswith((",", ";", " and", "&")):
            if ord(other.group(1)) == ord(max(letters)) + 1:
                return None  # "A. 5 B. 6"
            continue  # "D. Henry B. Smith"
        letters.add(other.group(1))
    return frozenset(letters)


def _balanced(text: str) -> bool:
    depth = 0
    for character in text:
        depth += (character == "(") - (character == ")")
        if depth < 0:
            return False
    return depth == 0


def choice_verdict(answer: str, gold: str) -> bool | None:
    """Whether ``answer`` names the same set of options as ``gold``; None where ``gold`` is no letters.

    An answer that names no option clearly is wrong: graders would compare its words with the letter.
    """
    gold_letters = choice_letters(gold)
    return choice_letters(answer) == gold_letters if gold_letters else None
