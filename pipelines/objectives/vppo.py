"""VPPO (arXiv 2510.09285) and its parts."""

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
