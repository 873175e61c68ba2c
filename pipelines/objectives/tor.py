"""ToR (arXiv 2603.25077): tokens of reasoning and of perception, each with a weight of its own."""

from __future__ import annotations

from dataclasses import replace

import torch

from pipelines.config.schema import UpdateConfig
from pipelines.objectives.batch import Batch, Terms, given
from pipelines.objectives.dapo import dapo
from pipelines.objectives.table import constants
from pipelines.objectives.tokens import top_of_batch


def tor(batch: Batch, settings: UpdateConfig) -> Terms:
    """The batch's tokens of highest entropy weigh ``reasoning_weight``, those of highest |log p - log q| that are
    not among them ``perception_weight``, all others 0.

    Known from the paper's text as a re-implementation reports it (github.com/zsxm1998/awesome-perception-aware-rlvr);
    the authors released no code. Theirs differs from this in three things:

    - q has no image at all. Here it is the perturbed view as ``score`` is set; none of the perturbations takes the
      image's tokens away. ``grey`` comes nearest: it leaves no information, but the tokens.
    - Entropy is that of the 0.95 of probability that top-p keeps (its eq. 5). Here it is the whole distribution's.
    - Both shares are of the rollout batch. Here they are of the update batch.

    Just so many tokens are taken; of equal ones the earlier. Responses without an image weigh 1 everywhere, and
    are out of both shares.
    """
    fixed = constants("tor", settings)
    shift_BT = (given(batch.clean_logp_BT) - given(batch.perturbed_logp_BT)).abs()
    mask_BT, seen_B1 = batch.mask_BT, batch.depends_B.unsqueeze(-1)
    reasons_BT = top_of_batch(batch.entropy_BT, mask_BT & seen_B1, fixed["reasoning_share"])
    perceives_BT = top_of_batch(shift_BT, mask_BT & seen_B1, fixed["perception_share"])
    weight_BT = torch.where(perceives_BT, fixed["perception_weight"], 0.0)
    weight_BT = torch.where(reasons_BT, fixed["reasoning_weight"], weight_BT)
    return replace(dapo(batch, settings), weight_BT=torch.where(seen_B1, weight_BT, mask_BT.float()))
