"""Objectives on the same tensors: what each does to advantages, tokens, clipping and averaging.

To add one, write a function from (Batch, UpdateConfig) to Terms and name it in ``OBJECTIVES``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch

from pipelines import vppo
from pipelines.config.schema import UpdateConfig


@dataclass(frozen=True)
class Batch:
    """One whole update batch, all responses of all its prompts.

    Attributes:
        adv_B: group-relative advantages (vppo.group_advantages).
        dependency_B: mean token perception of each response.
        keep_BT: tokens of highest perception (vppo.keep_top_fraction).
        mask_BT: response tokens.
        mini_batch_B, micro_batch_B: the mini-batch and the micro-batch each response falls into, by
            ``published.mini_batch_responses`` and ``micro_batch_responses``; only
            ``shaping_statistics: micro_batch`` looks at them.
        depends_B: whether the response can depend on an image (score/scoring.py); shaping leaves the
            others as they are, and out of its statistics.
    """

    adv_B: torch.Tensor
    dependency_B: torch.Tensor
    keep_BT: torch.Tensor
    mask_BT: torch.Tensor
    mini_batch_B: torch.Tensor
    micro_batch_B: torch.Tensor
    depends_B: torch.Tensor


@dataclass(frozen=True)
class Terms:
    """What the loss needs: advantages and tokens to use, clipping widths, and how to average."""

    adv_B: torch.Tensor
    keep_BT: torch.Tensor
    clip_low: float
    clip_high: float
    average: Literal["token", "sequence"]


def dapo(batch: Batch, settings: UpdateConfig) -> Terms:
    """DAPO (arXiv 2503.14476): every token, advantages as they are."""
    return Terms(batch.adv_B, batch.mask_BT, settings.clip_low, settings.clip_high, settings.loss_average)


def grpo(batch: Batch, settings: UpdateConfig) -> Terms:
    """GRPO (arXiv 2402.03300): symmetric clipping, the mean of per-response means."""
    return Terms(batch.adv_B, batch.mask_BT, settings.clip_low, settings.clip_low, "sequence")


def vppo_tas(batch: Batch, settings: UpdateConfig) -> Terms:
    """DAPO with trajectory-level advantage shaping (paper eq. 5)."""
    terms = dapo(batch, settings)
    return replace(terms, adv_B=shaping(batch, settings) * batch.adv_B)


def vppo_tgf(batch: Batch, settings: UpdateConfig) -> Terms:
    """DAPO with token-level gradient filtering."""
    return replace(dapo(batch, settings), keep_BT=batch.keep_BT)


def vppo_both(batch: Batch, settings: UpdateConfig) -> Terms:
    """VPPO (paper eq. 6): shaped advantages on the kept tokens."""
    return replace(vppo_tas(batch, settings), keep_BT=batch.keep_BT)


OBJECTIVES: dict[str, Callable[[Batch, UpdateConfig], Terms]] = {
    "vppo": vppo_both,
    "vppo-tas": vppo_tas,
    "vppo-tgf": vppo_tgf,
    "dapo": dapo,
    "grpo": grpo,
}


def shaping(batch: Batch, settings: UpdateConfig) -> torch.Tensor:
    """The weights alpha_B of eq. 5, over the batch or as the authors' code takes them."""
    alpha_B, some_B = torch.ones_like(batch.dependency_B), batch.depends_B
    if not some_B.any():
        return alpha_B
    dependency_B = batch.dependency_B[some_B]
    if settings.shaping_statistics == "batch":
        alpha_B[some_B] = vppo.shaping_weights(dependency_B, settings.beta_min, settings.beta_max)
        return alpha_B
    alpha_B[some_B] = vppo.shaping_weights_published(
        dependency_B, batch.mini_batch_B[some_B], batch.micro_batch_B[some_B], settings.beta_min, settings.beta_max
    )
    return alpha_B
