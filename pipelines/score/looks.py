"""A few groups of each step, kept to be looked at: images of both views, and what each token might
have been. Written by the scoring stage from the hidden states it has anyway; they decide nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from pipelines.disk.records import Look, Rollout, Sample, SampleTable, write_rows
from pipelines.model.divergence import Head, TokenStatistics
from pipelines.model.policy import Encoded, Policy
from pipelines.model.ragged import split_like
from pipelines.model.token_texts import token_name, token_texts
from pipelines.score.alternatives import top_alternatives
from pipelines.score.pictures import pictures

LOOKS = "looks.parquet"
ALTERNATIVES = 3
"""Likeliest tokens kept for each token and view."""


@dataclass(frozen=True)
class TokenLooks:
    """One group's log-probs [G][T], and its alternatives [G][T][K] as ids and probabilities.

    Names are those of :class:`pipelines.score.alternatives.Alternatives`. Without a perturbed view its
    lists are [G] of empty ones.
    """

    logp: list[Any]
    logq: list[Any]
    top: list[Any]
    top_p: list[Any]
    top_q: list[Any]
    perturbed: list[Any]
    perturbed_p: list[Any]
    perturbed_q: list[Any]


def token_looks(
    policy: Policy,
    groups: Sequence[Rollout],
    statistics: TokenStatistics,
    hidden_ND: Tensor,
    perturbed_ND: Tensor | None,
    temperature: float,
    positions: Container[int],
) -> list[TokenLooks | None]:
    """What is kept of the groups at these positions; None for the others.

    Args:
        statistics, hidden_ND, perturbed_ND: of all groups' response tokens, in their order.
    """
    head = Head(policy.head_weight, None, temperature, policy.suppressed_ids)
    found: list[TokenLooks | None] = []
    start = 0
    for group in groups:
        responses = group.response_ids
        here = slice(start, start + sum(map(len, responses)))
        start = here.stop
        if group.position not in positions:
            found.append(None)
            continue
        others = top_alternatives(
            hidden_ND[here], head, ALTERNATIVES, perturbed_ND=None if perturbed_ND is None else perturbed_ND[here]
        )
        logq_N = statistics.logp_perturbed
        columns = [statistics.logp[here], None if logq_N is None else logq_N[here]]
        columns += [getattr(others, field.name) for field in fields(others)]
        found.append(TokenLooks(*(_lists(values, responses) for values in columns)))
    return found


def _lists(values: Tensor | None, responses: Sequence[Sequence[int]]) -> list[Any]:
    return [[] for _ in responses] if values is None else split_like(values, [responses])[0]


def look(policy: Policy, sample: Sample, group: Rollout, looks: TokenLooks, views: Sequence[Encoded]) -> Look:
    """One row: images and ids become pictures and texts.

    Args:
        views: the perturbed prompts that were scored: none, one, or one for each response.
    """
    shown = (policy.processor, policy.model.config, sample.images)
    names: dict[int, str] = {}

    def named(ids_GTK: list[Any]) -> list[Any]:
        for token in {token for ids_TK in ids_GTK for ids in ids_TK for token in ids} - names.keys():
            names[token] = token_name(policy.tokenizer, token)
        return [[[names[token] for token in ids] for ids in ids_TK] for ids_TK in ids_GTK]

    return Look(
        sample_id=sample.id,
        position=group.position,
        images=pictures(policy.encoder.encode(sample), *shown),
        perturbed_images=[pictures(view, *shown) for view in views],
        tokens=[token_texts(policy.tokenizer, ids) for ids in group.response_ids],
        logp=looks.logp,
        logp_perturbed=looks.logq,
        top=named(looks.top),
        top_perturbed=named(looks.perturbed),
        top_p=looks.top_p,
        top_q=looks.top_q,
        top_perturbed_p=looks.perturbed_p,
        top_perturbed_q=looks.perturbed_q,
    )


def write_looks(
    out: Path,
    groups: Sequence[Rollout],
    samples: SampleTable,
    policy: Policy,
    found: Sequence[TokenLooks | None],
    views: Callable[[Rollout, Sample], Sequence[Encoded]],
) -> None:
    """Write a row for each of the groups that has its alternatives.

    Args:
        found: one entry a group.
        views: (group, sample) -> the perturbed prompts that the group was scored with.
    """
    rows = []
    for group, looks in zip(groups, found, strict=True):
        if looks:
            sample = samples.by_id(group.sample_id)
            rows.append(look(policy, sample, group, looks, views(group, sample)))
    write_rows(out / LOOKS, Look, rows)
