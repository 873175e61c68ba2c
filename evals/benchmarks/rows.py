"""One row of a public benchmark -> a question, or None where the paper's filter drops it.

Each benchmark has one short function here, from (row, where it stands) to a ``Question``. What the
paper keeps are rows whose answer can be compared exactly; docs name the counts,
``evals.benchmarks.questions`` checks them. Golds are filtered as they are written: MathVision's "11 " is
not ``-?\\d+``.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines.model.control_tokens import IMAGE
from pipelines.model.images import Unusable
from pipelines.prepare.rows import kind_of

LONGEST_OPTIONS = 100_000
"""Longer texts (characters) are not parsed as a list of options."""

MOST_IMAGES = 32
"""A question that refers to more pictures than this is left out."""

READ_IMAGE = "Answer the multiple-choice question in the image with the letter of its right option."
"""The text of MMMU-Pro's vision questions, which are all image."""

_INTEGER = re.compile(r"-?\d+")
_LETTER = re.compile(r"[A-Za-z]")
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


# --- the benchmarks -------------------------------------------------------------------------------


def mathverse(raw: Mapping[str, Any], where: Where) -> Question | None:
    """Multiple choice only. The choices are in the question; of Vision Only rows, in the image."""
    if raw["question_type"] != "multi-choice":
        return None
    about = raw.get("metadata")
    about = about if isinstance(about, Mapping) else {}
    return _one_image(
        raw["sample_index"], raw["question"], raw["image"], raw["answer"],
        version=raw.get("problem_version"), problem=raw.get("problem_index"),
        subject=about.get("subject"), subfield=about.get("subfield"),
    )  # fmt: skip


def dynamath(raw: Mapping[str, Any], where: Where) -> Question | None:
    """Integers and single letters. The ten splits are ten variants of the same seeds.

    In one file of all splits, variants are told apart by their order.
    """
    gold = _text(raw["ground_truth"])
    if not _exact(gold):
        return None
    number = re.fullmatch(r"sample_variant(\d+)", where.split or "")
    variant = number[1] if number else str(where.repeat)
    choice = raw["answer_type"] == "multiple choice" and bool(_LETTER.fullmatch(gold))
    return _one_image(
        f"{raw['id']}-{variant}", raw["question"], raw["decoded_image"],
        gold.upper() if choice else gold, kind="choice" if choice else None,
        seed=raw["id"], variant=variant, subject=raw.get("subject"), level=raw.get("knowledge_level"),
    )  # fmt: skip


def mmk12(raw: Mapping[str, Any], where: Where) -> Question | None:
    return _one_image(
        raw["id"], raw["question"], raw["image"], raw["answer"], subject=raw.get("subject")
    )


def geo3k(raw: Mapping[str, Any], where: Where) -> Question | None:
    """The value is asked for: choices, and the letter among them, are not used."""
    images = _list(raw["images"])
    problem = _text(raw["problem"])
    return Question(_text(raw["id"]), problem, images, _text(raw["answer"]).strip(), "value")


def mathvision(raw: Mapping[str, Any], where: Where) -> Question | None:
    """Integers and single letters. All of a question's pictures are in one composite image."""
    gold = _text(raw["answer"])
    if not _exact(gold):
        return None
    problem = with_options(_text(raw["question"]), parse_options(raw["options"] or []))
    return _one_image(
        raw["id"],
        problem,
        raw["decoded_image"],
        gold,
        level=raw.get("level"),
        subject=raw.get("subject"),
    )


def wemath(raw: Mapping[str, Any], where: Where) -> Question | None:
    """``ID`` joins a composite (key ``2steps_multi``) with its one-step parts (``2steps_1`` ...)."""
    steps, _, part = _text(raw["key"]).partition("_")
    return _one_image(
        f"{raw['ID']}-{part}", f"{_text(raw['question'])}\n{_text(raw['option'])}",
        raw["image_path"], raw["answer"],
        id=raw["ID"], key=raw["key"], steps=steps[:1] if part == "multi" else "1",
    )  # fmt: skip


def logicvista(raw: Mapping[str, Any], where: Where) -> Question | None:
    """One row is empty. A gold may be a set of letters ("B, D")."""
    if not _text(raw["question"]).strip() or not _text(raw["answer"]).strip():
        return None
    return _one_image(f"row-{where.row}", raw["question"], raw["image"], raw["answer"])


def mmmu_pro(raw: Mapping[str, Any], where: Where) -> Question | None:
    """The ``vision`` subset: question and options are in the image."""
    return _one_image(
        raw["id"], READ_IMAGE, raw["image"], raw["answer"], subject=raw.get("subject")
    )


def mmmu_pro_standard(raw: Mapping[str, Any], where: Where) -> Question | None:
    return _mmmu(raw, _text(raw.get("subject")), choice=True)


def mmmu_val(raw: Mapping[str, Any], where: Where) -> Question | None:
    """Plain MMMU. An open question may have several golds: the first is taken."""
    named = re.fullmatch(r"[a-z]+_(.+)_\d+", _text(raw["id"]))  # validation_Accounting_1
    subject = where.subset or (named[1] if named else "")
    return _mmmu(raw, subject, choice=raw["question_type"] == "multiple-choice")


def _mmmu(raw: Mapping[str, Any], subject: str, *, choice: bool) -> Question:
    """Pictures stand where ``<image N>`` refers to them, in the question and its options."""
    options = parse_options(raw["options"]) if choice else []
    gold = _text(raw["answer"]).strip()
    if not choice and _LIST.fullmatch(gold):
        gold = (parse_options(gold) or [""])[0]
    text = with_options(_text(raw["question"]), options)
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
    return Question(_text(raw["id"]), text, images, gold, kind, _groups(subject=subject))


# --- the authors' own files -----------------------------------------------------------------------

_INSTRUCTION = "you first think"
"""How the authors' instruction begins (their ``math_format_perception.jinja``), in lower case."""

LONGEST_INSTRUCTION = 400
"""Characters from there to the end of the question; what is longer is not an instruction."""


def authors(raw: Mapping[str, Any], where: Where) -> Question | None:
    """A row of the authors' evaluation files: chat messages, the last of them the gold.

    Their instruction at the end of the question is taken off: the runner adds its own.

    Source: PAPO-Eval's ``data/dataset_info.json`` (columns messages and images; tags role, content;
    user asks, assistant has the gold), which VPPO's README names as its evaluation.
    """
    said: dict[str, str] = {}
    for message in _list(raw["messages"]):
        if not isinstance(message, Mapping):
            raise Unusable("no question", "a message is not an object")
        said[_text(message.get("role"))] = _text(message.get("content"))
    if "user" not in said or not said.get("assistant", "").strip():
        raise Unusable("no question", f"messages of {', '.join(said) or 'nobody'}")
    answer = said["assistant"].strip()
    problem = without_instruction(said["user"])
    name = _text(raw.get("id")) or f"row-{where.row}"
    return Question(name, problem, _list(raw["images"]), answer, kind_of(answer))


def without_instruction(text: str) -> str:
    """The question without the authors' instruction to think first and to box the answer."""
    start = text.lower().rfind(_INSTRUCTION)
    return text if start < 0 or len(text) - start > LONGEST_INSTRUCTION else text[:start].rstrip()


# --- parts of the above ---------------------------------------------------------------------------


def with_options(question: str, options: Sequence[Any]) -> str:
    """The question with its options listed as ``(A) ...``, unless they are just the letters."""
    letters = [chr(ord("A") + i) for i in range(len(options))]
    texts = [_text(option) for option in options]
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
        return [_text(option) for option in value]
    text = _text(value).strip()
    if len(text) <= LONGEST_OPTIONS and _LIST.fullmatch(text):
        try:
            return [str(option) for option in ast.literal_eval(text)]
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            pass
    raise Unusable("options", f"not a list of texts: {text[:80]}")


def _exact(gold: str) -> bool:
    return bool(_INTEGER.fullmatch(gold) or _LETTER.fullmatch(gold))


def _one_image(
    name: Any, problem: Any, image: Any, answer: Any, /, *, kind: str | None = None, **groups: Any
) -> Question:
    """A question with one image: at the only ``<image1>`` there is, else before the text.

    Further numbered places are parts of the one image: ``<image3>`` becomes ``[image 3]``.
    """
    text = _text(problem)
    markers = _MARKER.findall(text)
    if len(markers) == 1:
        text = _MARKER.sub(IMAGE, text)
    else:
        text = _MARKER.sub(lambda marker: f"[image {marker[1]}]" if marker[1] else "", text)
    gold = _text(answer).strip()
    return Question(_text(name), text, [image], gold, kind or kind_of(gold), _groups(**groups))


def _groups(**groups: Any) -> dict[str, str]:
    return {name: _text(value) for name, value in groups.items() if value not in (None, "")}


def _list(value: Any) -> list[Any]:
    """A cell as a list; anything but a list is its only member."""
    if isinstance(value, (list, tuple)):
        return list(value)
    return [] if value is None else [value]


def _text(value: Any) -> str:
    """A cell as text; a missing one is empty."""
    if value is None or isinstance(value, (Mapping, list, tuple, bytes)):
        return ""
    text = str(value)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Unusable("not text", "it is not valid Unicode") from error
    return text
