"""What benchmarks share: the form of an entry, and the parts that row functions are made of.

A row function takes (row, where it stands) to a ``Question``, or to None where the paper's filter
drops it. What the paper keeps are rows whose answer can be compared exactly; the entry names the
counts, ``evals.benchmarks.questions`` checks them. Golds are filtered as they are written:
MathVision's "11 " is not ``-?\\d+``.
"""

from __future__ import annotations

import ast
import re
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

MOST_IMAGES = 32
"""A question that refers to more pictures than this is left out."""

IMAGES_1_TO_7 = tuple(f"image_{n}" for n in range(1, 8))
"""The columns of MMMU's images."""

LETTER = re.compile(r"[A-Za-z]")

_INTEGER = re.compile(r"-?\d+")
_MARKER = re.compile(r"<image\s*(\d{0,2})>")
_STRING = r"""(?:'(?:[^'\\]|\\.)*+'|"(?:[^"\\]|\\.)*+")\s*+"""
_LIST = re.compile(rf"\[\s*+(?:{_STRING}(?:,\s*+{_STRING})*+(?:,\s*+)?)?\]", re.DOTALL)
"""A flat list of string literals. It never backtracks: the text comes from outside."""


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
    """A question whose images are still as the source has them."""

    id: str
    problem: str
    images: list[Any]
    answer: str
    kind: str
    groups: dict[str, str] = field(default_factory=dict)


Row = Callable[[Mapping[str, Any], Where], Question | None]
Scores = Callable[[Sequence[Answered]], dict[str, dict[str, Any]]]


@dataclass(frozen=True)
class Benchmark:
    """A public benchmark.

    ``rows`` and ``kept`` count the whole split, before and after the filter. ``cluster`` is the
    group whose questions the bootstrap draws together ("": each question alone), ``unit`` what a
    cluster is called where the group's name does not say it; ``breakdowns`` are the groups to report
    by, and ``levels`` those of their levels that the alphabet would put in the wrong order.
    ``subsets`` times ``splits`` are read in order. ``columns`` are those that every part must have,
    ``optional`` those that are read where they are, and ``repeats`` one whose repeated values are
    counted for the row function. ``scores`` are what the benchmark defines beside accuracy.
    ``published`` has the paper's numbers (%) by family, in the order of ``published.AVERAGES``:
    benchmarks that have them are ``all`` on the command line. ``note`` is said in every report,
    ``alias`` is another name, and ``authors_file`` what the authors' file is called if not ORG_REPO.
    """

    name: str
    title: str
    about: str
    hub: str
    columns: tuple[str, ...]
    rows: int
    kept: int
    row: Row
    subsets: tuple[str | None, ...] = (None,)
    splits: tuple[str, ...] = ("test",)
    cluster: str = ""
    unit: str = ""
    breakdowns: tuple[str, ...] = ()
    levels: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    repeats: str = ""
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

    Only flat lists of string literals are parsed; anything else makes the row unusable.
    """
    if isinstance(value, (list, tuple)):
        return [as_text(option) for option in value]
    text = as_text(value).strip()
    if len(text) <= LONGEST_OPTIONS and _LIST.fullmatch(text):
        try:
            return [str(option) for option in ast.literal_eval(text)]
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            pass
    raise Unusable("options", f"not a list of texts: {text[:80]}")


def is_exact(gold: str) -> bool:
    return bool(_INTEGER.fullmatch(gold) or LETTER.fullmatch(gold))


def one_image(
    name: Any, problem: Any, image: Any, answer: Any, /, *, kind: str | None = None, **groups: Any
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
    return Question(as_text(name), text, [image], gold, kind or kind_of(gold), grouped(**groups))


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
    """Pictures stand where ``<image N>`` refers to them, in the question and its options."""
    options = parse_options(raw["options"]) if choice else []
    gold = as_text(raw["answer"]).strip()
    if not choice and _LIST.fullmatch(gold):
        gold = (parse_options(gold) or [""])[0]
    text = with_options(as_text(raw["question"]), options)
    places = [int(number) for number in _MARKER.findall(text) if number]
    if len(places) > MOST_IMAGES:
        raise Unusable("image count", f"{len(places)} places for images")
    if places:
        images = [raw.get(f"image_{place}") for place in places]
        text = _MARKER.sub(lambda marker: IMAGE if marker[1] else "", text)
    else:
        images = [raw[name] for name in (f"image_{n}" for n in range(1, 8)) if raw.get(name)]
        text = _MARKER.sub("", text)
    kind = "choice" if choice else "value"
    return Question(as_text(raw["id"]), text, images, gold, kind, grouped(subject=subject))
