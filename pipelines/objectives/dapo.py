"""DAPO and GRPO: every token alike, the baselines of all others."""

from __future__ import annotations

from pipelines.config.schema import UpdateConfig
from pipelines.objectives.batch import Batch, Terms


def dapo(batch: Batch, settings: UpdateConfig) -> Terms:
    """DAPO (arXiv 2503.14476): every token, advantages as they are."""
    return Terms(batch.adv_B, batch.mask_BT, settings.clip_low, settings.clip_high, settings.loss_average)


def grpo(batch: Batch, settings: UpdateConfig) -> Terms:
    """GRPO (arXiv 2402.03300): symmetric clipping, the mean of per-response means."""
    return Terms(batch.adv_B, batch.mask_BT, settings.clip_low, settings.clip_low, "sequence")
