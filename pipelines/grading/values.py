r"""What an answer says besides its value, which graders leave out; and short facts, which have none.

Pure text work in linear time.
"""

from __future__ import annotations

import re
import unicodedata

_GROUP = re.compile(r"\\(?:text|math(?:rm|bf|it|sf|tt)|mbox|operatorname)[a-z]*\s*\{([^{}]*)\}")
_BLANK_GROUP = re.compile(r"\\(?:text|math(?:rm|bf|it|sf|tt)|mbox|operatorname)[a-z]*\s*\{[\s~]*\}")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")
_OTHER_VALUE = frozenset(
    (
        "not",
        "no",
        "nor",
        "neither",
        "never",
        "wrong",
        "incorrect",
        "false",
        "untrue",
        "isn't",
        "isn",
        "aren't",
        "aren",
        "wasn't",
        "but",
        "except",
        "unless",
        "maybe",
        "perhaps",
        "possibly",
        "cannot",
        "can't",
        "instead",
        "rather",
        "than",
        "more",
        "less",
        "fewer",
        "greater",
        "larger",
        "smaller",
        "least",
        "most",
        "above",
        "below",
        "half",
        "halves",
        "hundred",
        "hundreds",
        "thousand",
        "thousands",
        "million",
        "millions",
        "billion",
        "billions",
        "trillion",
        "trillions",
        "dozen",
        "dozens",
    )
)
"""Words that deny a value, or make it another one."""
_ALTERNATIVES = frozenset(("or", "and", "either"))
_VERBS = frozenset(["is", "are", "was", "were", "would", "should", "could", "can"])
_SEVERAL = re.compile(r",(?!\d{3}(?!\d))|;|\\\{|\\(?:pm|mp|cup|vee|lor|q?quad)|\b(?:or|and)\b|±")
_AFTER_UNIT = re.compile(
    r"\s*(?:\^\s*(?:\{[^{}]*\}|\\circ|-?\w)|[.$}/)\]~*]"
    r"|\\(?:cdot|times)(?![a-z])(?=\s*\\)|\\[,;:! )\]]|\s)*"
)
_EQUALS = re.compile(r"(?<![<>!:=\\]):?=+")
_ARROW = re.compile(r"\\(?:to|implies|iff|(?:[Ll]ong)?[Rr]ightarrow)(?![a-z])|[=-]>|[→⇒]")
_RELATION = re.compile(r"(?<!<)<(?!<)|(?<!>)>(?!>)|[≠≤≥]|!=|\\(?:neq?|geq?|leq?|gt|lt)(?![a-z])")
_OPEN = re.compile(rf"{_RELATION.pattern}|[\[(]|infty")
_TAG = re.compile(r"</?[a-z]+>")
_NAME = re.compile(r"\s*\$?\s*([A-Za-z])\s*=[^=]")
_CONFIRMS = re.compile(r"\bis (?:(?:the|my) (?:(?:correct|right|final) )?(?:answer|value|result)|correct|right)\b")
_FIRST = re.compile(r"[\s~]*(?:squared|cubed|doubled|tripled|halved|factorial)\b")
_LONGEST_VALUE = 2_000


def says_otherwise(answer: str, gold: str) -> bool:
    r"""Whether ``answer`` denies, doubts or changes the value that a grader would read from it.

    Both graders leave words out of a comparison, mathruler all that follows a ``\text{ ``: to them
    ``5\text{ is wrong}`` is 5, ``3 \text{ or } 4`` is 3, ``5 \text{ million}`` is 5. So is a word that
    denies, an alternative to a single gold, a verb after the value, an inequality, another name (``y=5``
    for ``x=5``), and more than a unit's power after a unit, unless the gold has it too.
    """
    if len(answer) > _LONGEST_VALUE or answer.strip() == gold.strip():
        return False
    text = _TAG.sub(" ", unicodedata.normalize("NFKC", answer).replace("’", "'"))
    text = _CONFIRMS.sub(" ", text)
    found, known = _words(text), _words(gold)
    if found & _OTHER_VALUE - known or ("?" in text and "?" not in gold):
        return True
    name, other = _NAME.match(text), _NAME.match(gold)
    if name and other and name[1] != other[1]:  # "y=5" for "x=5"
        return True
    single = not _SEVERAL.search(gold)
    if single and (found & _ALTERNATIVES or (_RELATION.search(text) and not _OPEN.search(gold))):
        return True
    number = re.search(r"\d", text)
    if number and _words(text[number.end() :]) & _VERBS - known:
        return True
    return single and not _GROUP.search(gold) and _goes_on(text)


def _words(text: str) -> set[str]:
    r"""The words of a text in lower case, those in ``\text{...}`` included, without commands."""
    plain = _COMMAND.sub(" ", _GROUP.sub(r" \1 ", text)).lower()
    return set(_WORD.findall(plain))


def _goes_on(text: str) -> bool:
    r"""Whether more than a unit follows a number: ``2\text{ h }30\text{ min}``, ``3 \text{ , } 4``."""
    for group in _GROUP.finditer(text):
        before, words = text[: group.start()].rstrip(), group.group(1)
        if not re.search(r"\d", before):
            continue  # "x_{\text{max}} = 5", "\text{(A) } 5"
        if re.search(r"[,;]\s*\S|\d", words) or (before[-1:].isdigit() and _FIRST.match(words)):
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
    steps = _ARROW.split(_BLANK_GROUP.sub(" ", answer))
    if len(steps) == 1 or not all(map(_is_number, steps)):  # of a derivation the last step counts
        steps = _EQUALS.split(steps[-1])
    numbers = [step.strip(" $") for step in steps if _is_number(step)]
    return numbers if len(numbers) > 1 else []


def _is_number(side: str) -> bool:
    """Whether a side of an equation has digits, and no letter, such as of a variable or a unit."""
    named = _GROUP.search(side) or re.search(r"[^\W\d_]", _COMMAND.sub(" ", side))
    return bool(re.search(r"\d", side)) and not named


# --- short facts -----------------------------------------------------------------------------------

_ARTICLES = frozenset(("a", "an", "the"))
_HEDGES = frozenset(["or", "nor", "neither", "either", "not", "maybe", "perhaps", "possibly", "isn"])


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
