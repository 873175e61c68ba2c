"""A benchmark of one's own: a ``Benchmark`` in a module outside the package, named by its import path."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import isfinite
from typing import Any

from evals.benchmarks.base import Benchmark, Question, Row, Where
from evals.numbers.scores import Answered
from pipelines.config.imports import part_hash
from pipelines.config.resolve import find_object, telling
from pipelines.config.schema import BENCHMARK_NAME
from pipelines.errors import UserError
from pipelines.model.images import Unusable

SETTING = "eval.benchmarks"
KINDS = ("value", "choice", "fact")


def load(part: str) -> Benchmark:
    """The benchmark at an import path; what its functions raise, or return wrongly, is told by this name.

    Raises:
        UserError: there is none, or it lacks what a benchmark needs.
    """
    found = find_object(SETTING, part, Benchmark)
    place = f"{SETTING}: {part}"
    for wrong, what in _lacking(found):
        if wrong:
            raise UserError(place, what, "See docs/extending.md, Benchmark.")
    scores = found.scores and _checked_scores(place, found.scores)
    return replace(found, row=_checked_row(place, found.row), scores=scores)


def source(part: str) -> dict[str, str]:
    """``{"source of shapes:SHAPES": hash}``, for keys, of a benchmark that was loaded."""
    try:
        found = part_hash(part)
    except OSError as error:
        found = f"not readable ({error.strerror})"
    return {f"source of {part}": found} if found else {}


def _lacking(one: Benchmark) -> list[tuple[bool, str]]:
    """What may be wrong with a benchmark, and whether it is."""
    texts = isinstance(one.columns, tuple) and all(isinstance(name, str) for name in one.columns)
    named = isinstance(one.name, str) and BENCHMARK_NAME.fullmatch(one.name)
    return [
        (not named, f"its name is {one.name!r}: letters, digits and _ are taken, the first a letter."),
        (not (isinstance(one.title, str) and one.title), f"its title is {one.title!r}, which is no text."),
        (not (isinstance(one.hub, str) and one.hub), f"its hub is {one.hub!r}, and no hub data set."),
        (not texts, f"its columns are {one.columns!r}: a tuple of names is needed."),
        (not (one.subsets and one.splits), "it has no subset or no split: (None,) and ('test',) are the defaults."),
        (not callable(one.row), f"its row is {one.row!r}, and no function."),
        (bool(one.published or one.alias), "published and alias are of built-in benchmarks: leave them out."),
    ]


def _checked_row(place: str, row: Row) -> Row:
    told: Callable[..., Any] = telling(place, row, (Unusable, KeyError))

    def call(raw: Mapping[str, Any], where: Where) -> Question | None:
        found = told(raw, where)
        if found is not None and not isinstance(found, Question):
            raise UserError(
                f"{place}, row {where.row}",
                f"its function returned a {type(found).__name__}.",
                "Return a Question (one_image makes one), or None to leave the row out.",
            )
        if found is not None:
            _check(f"{place}, row {where.row}", found)
        return found

    return call


def _check(place: str, question: Question) -> None:
    """See that a question can be written and graded.

    Raises:
        UserError: it cannot; names the field.
    """
    texts = {"id": [question.id], "problem": [question.problem], "answer": [question.answer]}
    texts |= {"options": question.options, "golds": question.golds}
    texts |= {"groups": [text for pair in question.groups.items() for text in pair]}
    for field, values in texts.items():
        for value in values:
            if not isinstance(value, str):
                raise UserError(place, f"{field} {value!r} is of type {type(value).__name__}, and no text.", "")
    if question.kind not in KINDS:
        raise UserError(place, f"kind {question.kind!r} is none.", f"Known: {', '.join(KINDS)}.")
    if not isinstance(question.images, list):
        raise UserError(place, f"images is a {type(question.images).__name__}.", "Give a list, if of one.")


def _checked_scores(place: str, scores: Callable[..., Any]) -> Callable[..., Any]:
    told = telling(place, scores)

    def call(rows: Sequence[Answered]) -> dict[str, dict[str, Any]]:
        found, plain = told(rows), {}
        try:
            for name, score in found.items():
                value, low, high = numbers = [float(score["value"]), *map(float, score["interval"])]
                if not (isinstance(name, str) and all(map(isfinite, numbers))):
                    raise ValueError(f"{name!r} has {numbers}")
                plain[name] = {"value": value, "interval": [low, high], "about": str(score["about"])}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{place}, scores",
                f"are not what a report holds ({type(error).__name__}: {error}).",
                "Return {name: evals.numbers.statistics.rate(...)}: value, interval (two numbers) and about.",
            ) from error
        return plain

    return call
