"""VEPO (arXiv 2606.03937): the tokens that are both uncertain and sensitive to the image."""

from __future__ import annotations

import torch

from pipelines import vppo
from pipelines.config.schema import UpdateConfig
from pipelines.objectives.batch import Batch, Terms, given
from pipelines.objectives.table import constants
from pipelines.objectives.tokens import minmax


def vepo(batch: Batch, settings: UpdateConfig) -> Terms:
    """GRPO's loss on each response's ceil(share T) tokens of highest s, averaged over those alone.

    s = (1 - (1 - J)^alpha (1 - D)^(1 - alpha)) H, of the Jensen-Shannon divergence J of both views, the
    difference D of their entropies without its sign, and the clean view's entropy H, each brought into [0, 1] over
    the response. Score type D of the authors' code (github.com/Leonnnnnn929/VEPO), whose README and
    script name it as the default. Clipping is symmetric, at ``update.clip_low``.

    The authors' code averages over the kept tokens of a micro-batch; here it is over those of the whole update
    batch, so that it does not depend on the cutting. Responses without an image keep all their tokens.

    The view that VEPO compares with has normal noise on the normalised pixels, unclipped: of standard deviation 2 by
    the code's comment and as strong by the paper, but 6.93 as the code runs, which adds it twelve times to the one
    image of twelve responses. Here it is what ``score.perturbation`` says: ``gaussian_noise`` is the nearest, of
    0.74 of the pixels' range and clipped, where 2 is about 0.5 of it.
    """
    fixed = constants("vepo", settings)
    divergence_BT = minmax(given(batch.jsd_BT), batch.mask_BT)
    gap_BT = minmax((batch.entropy_BT - given(batch.perturbed_entropy_BT)).abs(), batch.mask_BT)
    seen_BT = 1.0 - (1.0 - divergence_BT) ** fixed["alpha"] * (1.0 - gap_BT) ** (1.0 - fixed["alpha"])
    score_BT = seen_BT * minmax(batch.entropy_BT, batch.mask_BT)
    keep_BT = vppo.keep_top_fraction(score_BT, batch.mask_BT, fixed["share"])
    keep_BT = torch.where(batch.depends_B.unsqueeze(-1), keep_BT, batch.mask_BT)
    # The loss is divided by all tokens that it counts: this makes it the mean over the kept ones.
    counted_BT = vppo.without_truncated(batch.mask_BT, batch.truncated_B) if settings.mask_truncated else batch.mask_BT
    share = (keep_BT & counted_BT).sum() / counted_BT.sum().clamp(min=1)
    weight_BT = keep_BT / torch.where(share > 0, share, 1.0)
    return Terms(batch.adv_B, weight_BT, settings.clip_low, settings.clip_low, "token")
