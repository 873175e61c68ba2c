"""What benchmarks share: the form of an entry, and the parts that row functions are made of.

A row function takes (row, where it stands) to a ``Question``, or to None where the paper's filter
drops it. What the paper keeps are rows whose answer can be compared exactly; the entry names the
counts, ``evals.benchmarks.questions`` checks them. Golds are filtered as they are written:
MathVision's "11 " is not ``-?\\d+``.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from evals.numbers.scores import Answered
from pipelines.model.control_tokens import IMAGE
from pipelines.model.images import Unusable
from pipelines.prepare.rows import kind_of

if TYPE_CHECKING:
    from pipelines.config.schema import Config

LONGEST_OPTIONS = 100_000
"""Longer texts (characters) are not parsed as a list of options."""

IMAGES_1_TO_7 = tuple(f"image_{n}" for n in range(1, 8))
"""The columns of MMMU's images."""

LETTER = re.compile(r"[A-Za-z]")

_INTEGER = re.compile(r"-?\d+")
_MARKER = re.compile(r"<image\s*(\d{0,2})>")
_STRING = r"""(?:'(?:[^'\\]|\\.)*+'|"(?:[^"\\]|\\.)*+")\s*+"""
_FLAT = rf"\[\s*+(?:{_STRING}(?:,\s*+{_STRING})*+(?:,\s*+)?)?\]\s*+"
_LIST = re.compile(_FLAT, re.DOTALL)
"""A flat list of string literals. It never backtracks: the text comes from outside."""
_ITEM = rf"(?:{_STRING}|{_FLAT})"
_NESTED = re.compile(rf"\[\s*+{_ITEM}(?:,\s*+{_ITEM})*+(?:,\s*+)?\]", re.DOTALL)
"""A list that holds such lists."""
_OPTION = re.compile(r"(?<![^\s;,])(?:(\()([A-J])\)|([A-J])([.:)]))")


@dataclass(frozen=True)
class Where:
    """Where a row stands: its subset and split, where the source tells them, and its number.

    ``row`` counts from 0 over all parts, ``repeat`` from 1 over rows with one value of the column
    ``Benchmark.repeats``.
    """

    subset: str | None = None
    split: str | None = None
    row: int = 0
    repeat: int = 1


@dataclass(frozen=True)
class Question:
    """A question whose images are still as the source has them.

    ``answer`` is the gold as the data set has it; ``golds`` are what counts as right where that is more,
    or something else. ``options`` are the texts of a choice's, in the order of their letters.
    """

    id: str
    problem: str
    images: list[Any]
    answer: str
    kind: str
    groups: dict[str, str] = field(default_factory=dict)
    options: list[str] = field(default_factory=list)
    golds: list[str] = field(default_factory=list)


Row = Callable[[Mapping[str, Any], Where], Question | None]
Scores = Callable[[Sequence[Answered]], dict[str, dict[str, Any]]]


@dataclass(frozen=True)
class Benchmark:
    """A public benchmark.

    ``rows`` and ``kept`` count the whole split, before and after the filter (None: not known).
    ``cluster`` is the group whose questions the bootstrap draws together ("": each question alone),
    ``unit`` what a cluster is called where the group's name does not say it; ``breakdowns`` are the
    groups to report by, and ``levels`` those of their levels that the alphabet would put in the wrong
    order. ``subsets`` times ``splits`` are read in order. ``columns`` are those that every part must
    have, ``optional`` those that are read where they are, and ``repeats`` one whose repeated values are
    counted for the row function. ``choices``: every question is a multiple choice, however its gold is
    written; ``options_of`` is a group whose questions have the same options. ``scores`` are what the
    benchmark defines beside accuracy. ``published`` has the printed numbers (%) by family, in the order
    of ``published.AVERAGES``, as many as there are. ``note`` is said in every report, ``alias`` is
    another name, and ``authors_file`` what the authors' file is called if not ORG_REPO.
    """

    name: str
    title: str
    about: str
    hub: str
    columns: tuple[str, ...]
    rows: int
    kept: int | None
    row: Row
    subsets: tuple[str | None, ...] = (None,)
    splits: tuple[str, ...] = ("test",)
    cluster: str = ""
    unit: str = ""
    breakdowns: tuple[str, ...] = ()
    levels: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    repeats: str = ""
    choices: bool = False
    options_of: str = ""
    scores: Scores | None = None
    published: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    note: str = ""
    alias: str = ""
    authors_file: str = ""


@dataclass(frozen=True)
class Own:
    """A run's own questions: a file of its prepare step, and a check that the settings have it made."""

    name: str
    file: str
    check: Callable[[Config], None]


# --- parts of row functions -----------------------------------------------------------------------


def with_options(question: str, options: Sequence[Any]) -> str:
    """The question with its options listed as ``(A) ...``, unless they are just the letters."""
    letters = [chr(ord("A") + i) for i in range(len(options))]
    texts = [as_text(option) for option in options]
    if len(letters) > 26:
        raise Unusable("options", f"{len(letters)} of them")
    if not texts or [text.strip() for text in texts] == letters:
        return question
    lines = [f"({letter}) {text}" for letter, text in zip(letters, texts, strict=True)]
    return "\n".join([question.rstrip(), *lines])


def parse_options(value: Any) -> list[str]:
    """The options of MMMU: a list, or the text of a Python list of strings.

    Only lists of string literals are parsed, and lists that hold such lists (MMMU-Pro has one), written
    out; anything else makes the row unusable.
    """
    if isinstance(value, (list, tuple)):
        return [as_text(option) for part in value for option in _flat(part)]
    text = as_text(value).strip()
    if len(text) <= LONGEST_OPTIONS and (_LIST.fullmatch(text) or _NESTED.fullmatch(text)):
        try:
            return [str(option) for part in ast.literal_eval(text) for option in _flat(part)]
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            pass
    raise Unusable("options", f"not a list of texts: {text[:80]}")


def _flat(part: Any) -> Sequence[Any]:
    return part if isinstance(part, (list, tuple)) else [part]


def listed_options(text: str) -> list[str]:
    """The options that a text lists in order, ``A. 5;B. 6`` or one a line; none where it lists none.

    All labels are written alike. Where letters begin anew, the last list counts.
    """
    found: dict[str, list[re.Match[str]]] = {}
    for label in _OPTION.finditer(text):
        run = found.setdefault(label[1] or label[4], [])
        letter = label[2] or label[3]
        if letter == "A":
            run[:] = [label]
        elif run and ord(letter) == ord("A") + len(run):
            run.append(label)
    labels = max(found.values(), key=len, default=[])
    if len(labels) < 2:
        return []
    ends = [*(label.start() for label in labels[1:]), len(text)]
    return [text[label.end() : end].strip(" \n\t;,") for label, end in zip(labels, ends, strict=True)]


def is_exact(gold: str) -> bool:
    return bool(_INTEGER.fullmatch(gold) or LETTER.fullmatch(gold))


def one_image(
    name: Any,
    problem: Any,
    image: Any,
    answer: Any,
    /,
    *,
    kind: str | None = None,
    options: Sequence[str] = (),
    **groups: Any,
) -> Question:
    """A question with one image: at the only ``<image1>`` there is, else before the text.

    Further numbered places are parts of the one image: ``<image3>`` becomes ``[image 3]``.
    """
    text = as_text(problem)
    markers = _MARKER.findall(text)
    if len(markers) == 1:
        text = _MARKER.sub(IMAGE, text)
    else:
        text = _MARKER.sub(lambda marker: f"[image {marker[1]}]" if marker[1] else "", text)
    gold = as_text(answer).strip()
    return Question(as_text(name), text, [image], gold, kind or kind_of(gold), grouped(**groups), list(options))


def grouped(**groups: Any) -> dict[str, str]:
    return {name: as_text(value) for name, value in groups.items() if value not in (None, "")}


def as_list(value: Any) -> list[Any]:
    """A cell as a list; anything but a list is its only member."""
    if isinstance(value, (list, tuple)):
        return list(value)
    return [] if value is None else [value]


def as_text(value: Any) -> str:
    """A cell as text; a missing one is empty."""
    if value is None or isinstance(value, (Mapping, list, tuple, bytes)):
        return ""
    text = str(value)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Unusable("not text", "it is not valid Unicode") from error
    return text


def mmmu(raw: Mapping[str, Any], subject: str, *, choice: bool) -> Question:
    """Pictures stand where ``<image N>`` first refers to them, in the question and its options.

    Where it does again, the picture is named: ``[image 1]``, as it then is at the first place, too. Of
    several golds of an open question any counts; the first is its answer.
    """
    options = parse_options(raw["options"]) if choice else []
    gold, golds = as_text(raw["answer"]).strip(), []
    if not choice and _LIST.fullmatch(gold):
        golds = parse_options(gold)
        gold = golds[0] if golds else ""
    text = with_options(as_text(raw["question"]), options)
    named = Counter(number for number in _MARKER.findall(text) if number)
    if named:
        images = [raw.get(f"image_{int(number)}") for number in named]
        text = _with_places(text, named)
    else:
        images = [raw[name] for name in (f"image_{n}" for n in range(1, 8)) if raw.get(name)]
        text = _MARKER.sub("", text)
    kind = "choice" if choice else "value"
    groups = grouped(subject=subject)
    golds = golds if len(golds) > 1 else []
    return Question(as_text(raw["id"]), text, images, gold, kind, groups, options, golds)


def _with_places(text: str, named: Mapping[str, int]) -> str:
    """``<image N>`` as a place for the picture, or as its name where it was shown before."""
    shown: set[str] = set()

    def place(marker: re.Match[str]) -> str:
        number = marker[1]
        if not number:
            return ""
        name = f"[image {number}]"
        if number in shown:
            return name
        shown.add(number)
        return f"{name} {IMAGE}" if named[number] > 1 else IMAGE

    return _MARKER.sub(place, text)
