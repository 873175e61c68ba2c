r"""What a response answers, read from its text: the last ``\boxed{...}``, the option, the value it says.

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
    r"\\{1,2}(?:text|math|operatorname|boxed|mbox|fbox|displaystyle|underline|emph|bm|bf|rm|boldsymbol)"
    r"[a-z]*|\\{1,2}(?:left|right|q?quad)(?![a-z])|\\[,;:! {}()\[\]]|[{}$~`\"“”]|</?answer>"
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
    r"|(?:i )?(?:choose|select|pick) (?=\S)|both (?=\S)"
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
    r"(?:both|either|neither|only|all|none|statements?|figures?|graphs?|equations?|reactions?|points?)"
    r"(?: of)?",
    re.IGNORECASE,
)
"""Before a label: the option's text speaks of others, "(E) Both (A) and (B)"."""
_FUNCTION = re.compile(r"(?:.*[^A-Za-z\\])?\\?(?:sin|cos|tan|log|ln|exp)|[A-Za-z]")
_OTHERWISE = re.compile(
    r"(?:answer|option|choice) is|correct (?:answer|option|choice)"
    r"|\bis(?:n't| not| wrong| incorrect| false)\b",
    re.IGNORECASE,
)
_BESIDE = re.compile(r"([A-Z]) \((.+)\)")  # "B (5)"
_NUMBERED = re.compile(r"([A-J]),? (-?\.?\d.*|\\(?:[dt]?frac|sqrt).*)")  # "D 24.3 kN"
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
    r"\b(?:not|neither|nor|but|except|instead|rather|unlike|never|is (?:wrong|incorrect|false))\b|n't",
    re.IGNORECASE,
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
        return None if _OTHERWISE.search(plain) else _with_others(label, plain[label.end() :])
    if beside := _BESIDE.fullmatch(plain):
        letters = _ONE.fullmatch(beside[2]) or not _balanced(beside[2])
        return None if letters or _DENIES.match(beside[2]) else frozenset(beside[1])
    if numbered := _NUMBERED.fullmatch(plain):
        letter, rest = numbered.groups()
        words = re.search(r"[a-z]{3}|\d-[a-z]", re.sub(r"\\[a-z]+", "", rest))
        several = _SEVERAL_OPTIONS.search(rest)
        return None if several or (letter == "A" and words) else frozenset(letter)
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


# --- what a value says besides ---------------------------------------------------------------------

_GROUP = re.compile(r"\\(?:text|math(?:rm|bf|it|sf|tt)|mbox|operatorname)[a-z]*\s*\{([^{}]*)\}")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")
_OTHER_VALUE = frozenset(
    "not no nor neither never wrong incorrect false untrue isn't isn aren't aren wasn't but except unless "
    "maybe perhaps possibly cannot can't instead rather than more less fewer greater larger smaller least "
    "most above below half halves hundred hundreds thousand thousands million millions billion billions "
    "trillion trillions dozen dozens".split()
)
"""Words that deny a value, or make it another one."""
_ALTERNATIVES = frozenset(("or", "and", "either"))
_VERBS = frozenset("is are was were would should could can".split())
_SEVERAL = re.compile(r"[,;{}|]|\\(?:pm|mp|cup|text|vee|lor|q?quad)|\b(?:or|and)\b|±")
_AFTER_UNIT = re.compile(
    r"\s*(?:\^\s*(?:\{[^{}]*\}|\\circ|-?\w)|[.$}/)\]~*]|\\(?:cdot|times)(?![a-z])(?=\s*\\)|\\[,;:! )\]]|\s)*"
)
_EQUALS = re.compile(r"(?<![<>!:=\\])=(?!=)")
_LONGEST_VALUE = 2_000


def says_otherwise(answer: str, gold: str) -> bool:
    r"""Whether ``answer`` denies, doubts or changes the value that a grader would read from it.

    Both graders leave words out of a comparison, mathruler all that follows a ``\text{ ``: to them
    ``5\text{ is wrong}`` is 5, ``3 \text{ or } 4`` is 3, ``5 \text{ million}`` is 5. So is a word that
    denies, an alternative to a single gold, a verb after the value, and more than a unit's power after a
    unit, unless the gold has it too.
    """
    if len(answer) > _LONGEST_VALUE or answer.strip() == gold.strip():
        return False
    text = unicodedata.normalize("NFKC", answer).replace("’", "'")
    found, known = _words(text), _words(gold)
    if found & _OTHER_VALUE - known:
        return True
    single = not _SEVERAL.search(gold)
    if single and found & _ALTERNATIVES:
        return True
    number = re.search(r"\d", text)
    if number and _words(text[number.end() :]) & _VERBS - known:
        return True
    return single and _goes_on(text)


def _words(text: str) -> set[str]:
    r"""The words of a text in lower case, those in ``\text{...}`` included, without commands."""
    plain = _COMMAND.sub(" ", _GROUP.sub(r" \1 ", text)).lower()
    return set(_WORD.findall(plain))


def _goes_on(text: str) -> bool:
    r"""Whether more than a unit follows the first number: ``2\text{ h }30\text{ min}``, ``3 \text{ , } 4``."""
    for group in _GROUP.finditer(text):
        before, words = text[: group.start()], group.group(1)
        if not re.search(r"\d", before):
            continue  # "x_{\text{max}} = 5", "\text{(A) } 5"
        if re.search(r"[,;]\s*\S|\d", words):
            return True
        rest = text[group.end() :]
        rest = rest[_AFTER_UNIT.match(rest).end() :]  # type: ignore[union-attr]  # it may be empty
        if rest and not _GROUP.match(rest) and not re.match(r"=|\\approx|\\(?:q?quad)\b\s*$", rest):
            return True
    return False


def sides(answer: str, gold: str) -> list[str]:
    r"""The sides of an equation that are numbers, where it has several: each has to be the gold.

    ``x = 5`` has one, ``3 \cdot 2 = 6`` two; and so has ``4=3``, of which graders read the last alone.
    Empty where there are not two, or the gold is an equation itself.
    """
    if len(answer) > _LONGEST_VALUE or _EQUALS.search(gold):
        return []
    parts = [part.strip(" $") for part in _EQUALS.split(answer)]
    numbers = [part for part in parts if re.search(r"\d", part) and not _named(part)]
    return numbers if len(parts) > 1 and len(numbers) > 1 else []


def _named(part: str) -> bool:
    """Whether a side of an equation has a letter in it, such as a variable or a unit."""
    return bool(re.search(r"[^\W\d_]", _COMMAND.sub(" ", part)) or _GROUP.search(part))


# --- short facts -----------------------------------------------------------------------------------

_ARTICLES = frozenset(("a", "an", "the"))
_HEDGES = frozenset("or nor neither either not maybe perhaps possibly isn".split())


def fact_verdict(answer: str, gold: str) -> bool:
    """Whether ``answer`` is ``gold``, or has it among its words, and leaves nothing open.

    Case, punctuation, accents and articles do not count. No judge: paraphrases are wrong.
    """
    asked, given = _plain_words(gold), _plain_words(answer)
    if not asked or len(answer) > _LONGEST_VALUE or (set(given) & _HEDGES) - set(asked):
        return False
    places = range(len(given) - len(asked) + 1)
    return any(given[place : place + len(asked)] == asked for place in places)


def _plain_words(text: str) -> list[str]:
    text = _COMMAND.sub(" ", _GROUP.sub(r" \1 ", text))
    letters = (c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    found = re.findall(r"\d+(?:[.,]\d+)*|[^\W\d_]+", "".join(letters).casefold())
    return [word for word in found if word not in _ARTICLES] or found
