"""PAPO: DAPO, rewarded for what the image changes, and an entropy loss of both views."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from pipelines import vppo
from pipelines.config.schema import UpdateConfig
from pipelines.objectives.batch import Batch, Reading, Terms, given
from pipelines.objectives.dapo import dapo
from pipelines.objectives.table import constants, variant


def papo(batch: Batch, settings: UpdateConfig) -> Terms:
    """PAPO (arXiv 2507.06448), on DAPO: loss - ``gamma`` KL(p || q) + ``eta`` (H(p) + H(q)), over all tokens.

    p: the policy; q: on the perturbed image. KL is made larger, both entropies smaller.

    - variant ``code``, what the authors ran (MikeWangWZHL/PAPO): KL is k3 of the sampled token, H its -log p and
      -log q, and q is that of the policy that scored, without gradient: its entropy is a constant of the loss.
    - variant ``exact``: KL and entropies are over the whole vocabulary, and gradients go through both views, in a
      second pass of the update's own over the images that were scored.

    Published with gamma 0.01 on DAPO and 0.02 on GRPO, eta 0.03 (0.05: 7B on GRPO). Other settings' are the mask
    (``score.perturbation=raw_black``, ``score.probability=0.6``, one a prompt) and ``update.entropy_penalty``,
    which comes on top of eta: 0 for PAPO's own. Without an image both views are one, and there is no KL.
    """
    given_by, kind = constants("papo", settings), variant("papo", settings)
    gamma, eta = given_by["gamma"], given_by["eta"]

    def extra(reading: Reading) -> Mapping[str, Tensor]:
        if kind == "exact":
            kl_BT = given(reading.kl_BT)
            entropy_BT = reading.entropy_BT + given(reading.perturbed_entropy_BT)
        else:
            logq_BT = given(batch.perturbed_logp_BT)[reading.rows_B, : reading.mask_BT.shape[1]]
            sees_B1 = batch.has_image_B[reading.rows_B, None]
            kl_BT = torch.where(sees_B1, vppo.k3(reading.logp_BT, logq_BT), 0.0)
            entropy_BT = -reading.logp_BT - logq_BT
        return {"perception_loss": -gamma * kl_BT, "double_entropy_loss": eta * entropy_BT}

    return replace(dapo(batch, settings), extra=extra)
