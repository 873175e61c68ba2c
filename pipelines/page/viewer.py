"""The token viewer's entries, one a prompt, of the rows that stages write. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

from pipelines.disk.records import Look, Perceived, Rollout, Sample, Scored

Entry = dict[str, Any]

NATS = ("kl", "k3", "jsd", "log_ratio", "entropy")


LIMITS = {
    "kl": (0.0, math.inf),
    "k3": (0.0, math.inf),
    "jsd": (0.0, math.log(2)),
    "entropy": (0.0, math.inf),
    "top1_drop": (-1.0, 1.0),
    "argmax_drop": (-1.0, 1.0),
    "random": (0.0, 1.0),
    "oracle": (0.0, 1.0),
}
"""Estimators between whose limits every token's perception lies, and so a response's mean."""


def unit(estimator: str) -> str:
    """What perception by an estimator is measured in; "" for shares, ranks, and those of one's own."""
    return "nats" if estimator in NATS else ""


def perceived(
    sample: Sample, group: Rollout, scored: Scored, look: Look, index: int = 0, *, given: bool = False
) -> Perceived:
    """One response of a group, of the group's rows; log-probs are those of ``look``."""
    names = {field.name for field in fields(Perceived)} - {"named"}
    columns: Entry = dict.fromkeys(("answer", "outcome", "reward"))  # of a response that is not graded
    for row in (group, scored, look):
        columns |= {name: values[index] for name, values in vars(row).items() if name in names and values}
    columns["named"] = {name: values[index] for name, values in group.named.items()}
    return Perceived(
        id=sample.id,
        problem=sample.problem,
        gold=sample.answer or None,
        given=given,
        token_ids=group.response_ids[index],
        **columns,
    )


def alternatives(row: Perceived, *, perturbed: bool = False) -> list[list[tuple[str, float, float | None]]]:
    """Per token the likeliest ones, with the image or with the perturbed one: (text, its probability
    with the image, with the perturbed one or None). Empty where that view is not known."""
    columns: tuple[Any, ...] = (row.top, row.top_p, row.top_q or [[None] * len(texts) for texts in row.top])
    if perturbed:
        columns = (row.top_perturbed, row.top_perturbed_p, row.top_perturbed_q)
    return [list(zip(*token, strict=True)) for token in zip(*columns, strict=True)]


def prompt_entry(
    responses: Sequence[Perceived],
    images: Sequence[bytes],
    views: Sequence[Sequence[bytes]],
    urls: Callable[[Sequence[bytes]], list[str]],
    *,
    step: int | None = None,
    position: int | None = None,
    advantages: Sequence[tuple[float | None, float | None]] | None = None,
) -> Entry:
    """What ``write_page`` shows of one prompt; numbers as a page can show them.

    Args:
        responses: the rows of one prompt, one at least.
        images, views: the prompt's, and those of each perturbed view.
        urls: data URLs of images.
        advantages: of each response, and as shaped; None: not known.
    """
    first = responses[0]
    return {
        "step": step,
        "position": position,
        "sample_id": first.id,
        "problem": first.problem,
        "gold": first.gold,
        "images": urls(images),
        "perturbed": [urls(view) for view in views],
        "responses": [
            _response(row, *pair)
            for row, pair in zip(responses, advantages or [(None, None)] * len(responses), strict=True)
        ],
    }


def _response(row: Perceived, advantage: float | None, shaped_advantage: float | None) -> Entry:
    return {
        "tokens": row.tokens,
        "perception": [short(x, 7) for x in row.perception],
        "keep": row.keep,
        "logp": [short(x, 4) for x in row.logp],
        "logp_perturbed": [short(x, 4) for x in row.logp_perturbed] or None,
        "entropy": [short(x, 4) for x in row.entropy],
        "top": _shown(alternatives(row)),
        "top_perturbed": _shown(alternatives(row, perturbed=True)),
        "dependency": short(row.dependency, 7),
        "reward": short(row.reward),
        "named": {name: short(value) for name, value in row.named.items()} or None,
        "outcome": row.outcome,
        "answer": row.answer,
        "truncated": row.truncated,
        "advantage": short(advantage),
        "shaped_advantage": short(shaped_advantage),
    }


def _shown(tokens: Sequence[Sequence[tuple[str, float, float | None]]]) -> list[list[Any]] | None:
    return [[[text, short(p, 3), short(q, 3)] for text, p, q in token] for token in tokens] or None


def mask_entry(row: Perceived) -> Entry:
    """What one of several perturbed views gave, of a row by that view alone."""
    found = _response(row, None, None)
    return {name: found[name] for name in ("perception", "logp_perturbed", "top", "top_perturbed")}


def short(value: float | None, digits: int = 5) -> Any:
    """A number with as many digits as a page can show; None for one that is not known or not finite."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.{digits}g}")
