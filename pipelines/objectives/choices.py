"""DAPO on some tokens only, chosen without looking at a second image: by entropy, or by what they truly are.

``random-k`` and ``entropy-response-k`` are ``vppo-tgf`` by another estimator (config/settings.TOKEN_CHOICES).
"""

from __future__ import annotations

from dataclasses import replace

from pipelines import vppo
from pipelines.config.schema import UpdateConfig
from pipelines.objectives.batch import Batch, Terms, given
from pipelines.objectives.dapo import dapo
from pipelines.objectives.table import constants


def entropy_k(batch: Batch, settings: UpdateConfig) -> Terms:
    """The tokens of highest entropy of the batch (arXiv 2506.01939): 1 where H_t >= tau, else 0.

    tau is the entropy of the last of the ceil(fraction N) highest of all N response tokens of the update batch, so
    a response may have many of them or none; what is as high as tau is kept too. Theirs is the entropy of the
    policy in training, in a batch whose size they do not give; here it is that of the policy that scored.
    """
    fraction = constants("entropy-k", settings)["fraction"]
    flat_1N, mask_1N = batch.entropy_BT.reshape(1, -1), batch.mask_BT.reshape(1, -1)
    highest_N = batch.entropy_BT.flatten()[vppo.keep_top_fraction(flat_1N, mask_1N, fraction)[0]]
    if not len(highest_N):
        return dapo(batch, settings)
    return replace(dapo(batch, settings), weight_BT=batch.mask_BT & (batch.entropy_BT >= highest_N.min()))


def oracle_k(batch: Batch, settings: UpdateConfig) -> Terms:
    """The tokens that truly are read from the image, and no others: never filled up to a share."""
    return replace(dapo(batch, settings), weight_BT=given(batch.perceives_BT))


def oracle_k_reasoning(batch: Batch, settings: UpdateConfig) -> Terms:
    """Those, and the tokens that depend on the image through what was read: all but template."""
    return replace(dapo(batch, settings), weight_BT=given(batch.perceives_BT) | given(batch.reasons_BT))
