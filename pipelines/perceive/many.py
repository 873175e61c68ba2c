"""Token perception of many responses, as one table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.config.imports import one_command
from pipelines.disk.records import Perceived, Sample, schema
from pipelines.errors import UserError
from pipelines.model.policy import Policy
from pipelines.perceive.example import question as checked
from pipelines.perceive.one import opened, remembering, see
from pipelines.perceive.provenance import METADATA


@one_command()
def score(
    model: str | Path | Policy,
    questions: Sequence[Sample | Mapping[str, Any]],
    responses: Sequence[str | Sequence[str] | None] | None = None,
    **how: Any,
) -> pa.Table:
    """How much each token of many responses depends on the image.

    Args:
        model: as of ``perceive``.
        questions: a ``Sample`` each (those of a run: ``run.questions()``), or a mapping with ``prompt`` and ``image``
            (one, or a list; whatever ``perceive`` takes; none: a question of text alone, in which, as in training,
            S is 0 and all tokens are kept), and if need be ``id`` and ``answer``.
        responses: for each question a text, several, or None: the model writes one. None: it writes all.
        how: the other arguments of ``perceive``: ``estimator``, ``masks``, ``seed``, ``settings`` ... Responses are
            read ``score.batch_prompts`` (16) at a time.

    Returns:
        A row for each response, in order; columns as of perception.parquet (docs/artifacts.md): ``id`` (by default
        the question's place), ``tokens``, ``perception``, ``keep`` [T] ... Masks are drawn anew for each row. What it
        was made with is JSON in ``table.schema.metadata[b"vppo"]``.

    Raises:
        UserError: as of ``perceive``; not as many responses as questions; none at all.
    """
    if responses is not None and len(responses) != len(questions):
        raise UserError("responses", f"{len(responses)} for {len(questions)} questions.", "Give one entry for each.")
    samples: list[Sample] = []
    texts: list[str | None] = []
    for place, question in enumerate(questions):
        sample = question if isinstance(question, Sample) else _question(place, question)
        given = responses[place] if responses is not None else None
        for text in [given] if given is None or isinstance(given, str) else given:
            samples.append(sample)
            texts.append(text)
    if not samples:
        raise UserError("questions", "there is none, or no response.", "Give one at least.")
    config, policy, made = opened(model, **how)
    size = config.score.batch_prompts
    policy = remembering(policy, size)
    rows: list[dict[str, Any]] = []
    columns = schema(Perceived).with_metadata({METADATA: json.dumps(made)})
    for first in range(0, len(samples), size):
        here = slice(first, first + size)
        found = see(config, policy, samples[here], texts[here], made["masks"] or 1, first, made=made)
        rows += [{name: getattr(row, name) for name in columns.names} for row in found]
    return pa.Table.from_pylist(rows, columns)


def _question(place: int, given: Mapping[str, Any]) -> Sample:
    """Raises UserError if it is not a question."""
    unknown = sorted(set(given) - {"prompt", "image", "id", "answer"})
    if "prompt" not in given or unknown:
        problem = f"{unknown[0]}: no such key." if unknown else "has no prompt."
        raise UserError(f"question {place}", problem, "A question has prompt, and if need be image, id and answer.")
    try:
        sample = checked(given.get("image"), given["prompt"], str(given.get("id", place)))
    except UserError as error:
        raise UserError(f"question {place}, {error.place}", error.problem, error.fix) from error
    answer = given.get("answer")
    return replace(sample, answer="" if answer is None else str(answer))
