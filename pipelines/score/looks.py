"""A few groups of each step, kept to be looked at: images of both views, and what each token might
have been. Made by the scoring stage of the hidden states it has anyway; they decide nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from functools import cache
from typing import Any

from torch import Tensor

from pipelines.disk.records import Look, Rollout, Sample
from pipelines.model.divergence import Head, TokenStatistics
from pipelines.model.policy import Encoded, Policy
from pipelines.model.ragged import split_like
from pipelines.model.token_texts import token_name, token_texts
from pipelines.score.alternatives import top_alternatives
from pipelines.score.pictures import pictures

LOOKS = "looks.parquet"
ALTERNATIVES = 3
"""Likeliest tokens kept for each token and view."""


def look_rows(
    policy: Policy,
    groups: Sequence[Rollout],
    samples: Sequence[Sample],
    statistics: TokenStatistics,
    hidden_ND: Tensor,
    perturbed_ND: Tensor | None,
    temperature: float,
    positions: Container[int],
    views: Callable[[Rollout, Sample], Sequence[Encoded]],
) -> list[Look | None]:
    """A row for each of the groups at these positions; None for the others.

    Args:
        statistics, hidden_ND, perturbed_ND: of all groups' response tokens, in their order.
        views: (group, sample) -> the perturbed prompts it was scored with: none, one, or one a response.
    """
    head = Head(policy.head_weight, None, temperature, policy.suppressed_ids)
    rows: list[Look | None] = []
    start = 0
    for group, sample in zip(groups, samples, strict=True):
        here = slice(start, start + sum(map(len, group.response_ids)))
        start = here.stop
        if group.position not in positions:
            rows.append(None)
            continue
        values = (hidden_ND, perturbed_ND, statistics.logp, statistics.logp_perturbed)
        own: list[Any] = [None if value is None else value[here] for value in values]
        rows.append(_look(policy, group, sample, head, views(group, sample), *own))
    return rows


def _look(
    policy: Policy,
    group: Rollout,
    sample: Sample,
    head: Head,
    views: Sequence[Encoded],
    hidden_ND: Tensor,
    perturbed_ND: Tensor | None,
    logp_N: Tensor,
    logq_N: Tensor | None,
) -> Look:
    """One group's row, of its own tokens."""
    others = top_alternatives(hidden_ND, head, ALTERNATIVES, perturbed_ND=perturbed_ND)
    shown = (policy.processor, policy.model.config, sample.images)
    name = cache(lambda token: token_name(policy.tokenizer, token))

    def lists(values: Tensor | None) -> list[Any]:
        responses = group.response_ids
        return [[] for _ in responses] if values is None else split_like(values, [responses])[0]

    def names(ids_NK: Tensor | None) -> list[list[list[str]]]:
        return [[[name(token) for token in ids] for ids in ids_TK] for ids_TK in lists(ids_NK)]

    return Look(
        sample_id=sample.id,
        position=group.position,
        images=pictures(policy.encoder.encode(sample), *shown),
        perturbed_images=[pictures(view, *shown) for view in views],
        tokens=[token_texts(policy.tokenizer, ids) for ids in group.response_ids],
        logp=lists(logp_N),
        logp_perturbed=lists(logq_N),
        top=names(others.top_NK),
        top_perturbed=names(others.perturbed_NK),
        top_p=lists(others.top_p_NK),
        top_q=lists(others.top_q_NK),
        top_perturbed_p=lists(others.perturbed_p_NK),
        top_perturbed_q=lists(others.perturbed_q_NK),
    )
