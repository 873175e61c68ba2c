"""What else the policy would have said: the likeliest tokens under both views, per position.

Axis letters and conventions are those of pipelines/model/divergence.py; K is the number of alternatives.
Few tokens are looked at, so that logits are made of some tokens at a time and the whole vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipelines.model.divergence import DEFAULT_MAX_ELEMENTS, Head


@dataclass(frozen=True)
class Alternatives:
    """The K likeliest tokens at each position, likeliest first. p: the policy; q: on the perturbed view.

    The last four are None when no perturbed view was given.
    """

    top_NK: Tensor
    """Ids that p likes best."""
    top_p_NK: Tensor
    """Their probability under p."""
    top_q_NK: Tensor | None = None
    """Their probability under q."""
    perturbed_NK: Tensor | None = None
    """Ids that q likes best."""
    perturbed_p_NK: Tensor | None = None
    """Their probability under p."""
    perturbed_q_NK: Tensor | None = None
    """Their probability under q."""


@torch.no_grad()
def top_alternatives(
    hidden_ND: Tensor,
    head: Head,
    count: int,
    *,
    perturbed_ND: Tensor | None = None,
    max_elements: int = DEFAULT_MAX_ELEMENTS,
) -> Alternatives:
    """The ``count`` likeliest tokens under each view; no gradient.

    Args:
        hidden_ND: last hidden states (after the final norm) with the image; one at least.
        head: of the language model, whole.
        count: K; at most V.
        perturbed_ND: the same hidden states with the perturbed image.
        max_elements: numbers in one chunk of logits; it changes memory and speed only.
    """
    rows = max(1, max_elements // len(head.weight_VD))
    chunks: list[tuple[Tensor, ...]] = []
    for start in range(0, len(hidden_ND), rows):
        part = slice(start, start + rows)
        logp_NV = head.logits_NV(hidden_ND[part]).log_softmax(-1)
        best_NK, top_NK = logp_NV.topk(count, dim=-1)
        found: tuple[Tensor, ...] = (top_NK, best_NK.exp())
        if perturbed_ND is not None:
            logq_NV = head.logits_NV(perturbed_ND[part]).log_softmax(-1)
            best_NK, other_NK = logq_NV.topk(count, dim=-1)
            found += (logq_NV.gather(1, top_NK).exp(), other_NK, logp_NV.gather(1, other_NK).exp(), best_NK.exp())
        chunks.append(found)
    return Alternatives(*(torch.cat(columns) for columns in zip(*chunks, strict=True)))
