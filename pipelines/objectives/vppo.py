"""VPPO (arXiv 2510.09285) and its parts, as objectives; its equations are in pipelines/vppo.py."""

from __future__ import annotations

from dataclasses import replace

import torch

from pipelines import vppo
from pipelines.config.schema import UpdateConfig
from pipelines.objectives.batch import Batch, Terms, given
from pipelines.objectives.dapo import dapo


def vppo_tas(batch: Batch, settings: UpdateConfig) -> Terms:
    """DAPO with trajectory-level advantage shaping (paper eq. 5)."""
    return replace(dapo(batch, settings), advantage=shaping(batch, settings) * batch.adv_B)


def vppo_tgf(batch: Batch, settings: UpdateConfig) -> Terms:
    """DAPO with token-level gradient filtering."""
    return replace(dapo(batch, settings), weight_BT=given(batch.keep_BT))


def vppo_both(batch: Batch, settings: UpdateConfig) -> Terms:
    """VPPO (paper eq. 6): shaped advantages on the kept tokens."""
    return replace(vppo_tas(batch, settings), weight_BT=given(batch.keep_BT))


def vppo_soft(batch: Batch, settings: UpdateConfig) -> Terms:
    """VPPO whose tokens are weighted softly in place of the filter (paper appendix I, Table 6).

    w_t = sigmoid(z_t - c) of mean k over each response (vppo.soft_weights). Advantages are shaped: the table is
    read as VPPO with nothing else exchanged. A response that cannot depend on an image has w = 1, as its tokens
    are all kept otherwise.
    """
    weight_BT = vppo.soft_weights(given(batch.perception_BT), batch.mask_BT, batch.keep_fraction)
    weight_BT = torch.where(batch.depends_B[:, None], weight_BT, batch.mask_BT.float())
    return replace(vppo_tas(batch, settings), weight_BT=weight_BT)


def vppo_reward(batch: Batch, settings: UpdateConfig) -> Terms:
    """VPPO whose weights alpha multiply the rewards, before they become advantages (paper Table 7).

    The tokens are the kept ones: the table is read as VPPO with nothing else exchanged. A reward of 0 stays 0, so
    among wrong responses dependency decides nothing; among right ones of a group it does, even where all are right.
    """
    return replace(vppo_tgf(batch, settings), advantage=batch.advantages(shaping(batch, settings) * batch.reward_B))


def vppo_grpo(batch: Batch, settings: UpdateConfig) -> Terms:
    """VPPO on GRPO (paper Table 5): symmetric clipping, the mean of per-response means.

    The paper does not describe its GRPO; this is ``grpo``. That groups all right or all wrong are not sampled
    again is ``rollout.dynamic_sampling``.
    """
    return replace(vppo_both(batch, settings), clip_high=settings.clip_low, average="sequence")


def shaping(batch: Batch, settings: UpdateConfig) -> torch.Tensor:
    """The weights alpha_B of eq. 5, over the batch or as the authors' code takes them."""
    dependency_B, some_B = given(batch.dependency_B), batch.depends_B
    alpha_B = torch.ones_like(dependency_B)
    if not some_B.any():
        return alpha_B
    dependency_B = dependency_B[some_B]
    if settings.shaping_statistics == "batch":
        alpha_B[some_B] = vppo.shaping_weights(dependency_B, settings.beta_min, settings.beta_max)
        return alpha_B
    alpha_B[some_B] = vppo.shaping_weights_published(
        dependency_B, batch.mini_batch_B[some_B], batch.micro_batch_B[some_B], settings.beta_min, settings.beta_max
    )
    return alpha_B
