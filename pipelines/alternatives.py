"""What else the policy would have said: the likeliest tokens under both views, per position.

Like pipelines/divergence.py, whose axis letters and conventions these are, it makes logits a chunk of
tokens at a time. K is the number of alternatives.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipelines.divergence import DEFAULT_MAX_ELEMENTS, _at, _chunks, _log_probs_NV


@dataclass(frozen=True)
class Alternatives:
    """The K likeliest tokens at each position, likeliest first. p: the policy; q: on the perturbed view.

    The last four are None when no perturbed view was given.
    """

    logp_N: Tensor
    """log p of the token that was sampled, nats."""
    top_NK: Tensor
    """Ids that p likes best."""
    top_p_NK: Tensor
    """Their probability under p."""
    logq_N: Tensor | None = None
    """log q of the token that was sampled, nats."""
    top_q_NK: Tensor | None = None
    """The probability of ``top_NK`` under q."""
    perturbed_NK: Tensor | None = None
    """Ids that q likes best."""
    perturbed_p_NK: Tensor | None = None
    """Their probability under p."""
    perturbed_q_NK: Tensor | None = None
    """Their probability under q."""


@torch.no_grad()
def top_alternatives(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    token_N: Tensor,
    count: int,
    *,
    perturbed_ND: Tensor | None = None,
    temperature: float = 1.0,
    max_elements: int = DEFAULT_MAX_ELEMENTS,
    suppressed_ids: Tensor | None = None,
) -> Alternatives:
    """The ``count`` likeliest tokens under each view; no gradient.

    Args:
        hidden_ND: last hidden states (after the final norm) with the image.
        weight_VD: weight of the language-model head, whole.
        token_N: the sampled ids, int64.
        count: K; at most V.
        perturbed_ND: the same hidden states with the perturbed image.
        temperature: the rollout's.
        max_elements: numbers in one chunk of logits; it changes memory and speed only.
        suppressed_ids: ids that are never sampled, int64, a vector.
    """
    chunks: list[tuple[Tensor, ...]] = []
    for part in _chunks(len(token_N), len(weight_VD), max_elements):
        logp_NV = _log_probs_NV(hidden_ND[part], weight_VD, None, temperature, suppressed_ids)
        best, top_NK = logp_NV.topk(count, dim=-1)
        found: tuple[Tensor, ...] = (_at(logp_NV, token_N[part]), top_NK, best.exp())
        if perturbed_ND is not None:
            logq_NV = _log_probs_NV(
                perturbed_ND[part], weight_VD, None, temperature, suppressed_ids
            )
            best, other_NK = logq_NV.topk(count, dim=-1)
            found += (
                _at(logq_NV, token_N[part]), logq_NV.gather(1, top_NK).exp(),
                other_NK, logp_NV.gather(1, other_NK).exp(), best.exp(),
            )  # fmt: skip
        chunks.append(found)
    return Alternatives(*(torch.cat(columns) for columns in zip(*chunks, strict=True)))
