"""CGPO: alpha on the batch's tokens that depend on the evidence, the plain advantage on its uncertain ones."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from pipelines.config.schema import UpdateConfig
from pipelines.objectives.batch import Batch, Terms, given
from pipelines.objectives.dapo import dapo
from pipelines.objectives.table import constants
from pipelines.objectives.tokens import top_of_batch


def cgpo(batch: Batch, settings: UpdateConfig) -> Terms:
    """alpha_i A_i on the batch's share of highest S, A_i on its share of highest entropy, no gradient elsewhere.

    alpha_i = 1 + ``strength`` tanh((mean S_i - m) / (MAD + 1e-8)), m the median of the responses' mean S, MAD
    that of |mean S_i - m|, unscaled; the median of an even number is the lower of the middle two. A token in both
    shares has alpha_i A_i. The loss is averaged over all response tokens, chosen or not.

    Known from the authors' code (github.com/zsxm1998/awesome-perception-aware-rlvr), their second one: the
    paper's (doi 10.1145/3767308.3835969) is not released. It differs from this in four things:

    - Its shares are of the tokens of a micro-batch, its median and MAD over the responses of a rollout batch.
      Here all are of the update batch.
    - Its entropy is that of the policy in training. Here it is that of the policy that scored.
    - Its S compares the image with itself where the regions that the response names in its text are filled with
      their mean colour. Here they are the regions that the answer needs, black (``score.perturbation: evidence``).
    - The tokens that name these regions have alpha_i A_i too. Responses here name none.

    Just so many tokens are taken; of equal ones the earlier. Responses without an image keep all their tokens, and
    are out of the shares and of the statistics.
    """
    known = constants("cgpo", settings)
    some_B, adv_B1 = batch.depends_B, batch.adv_B[:, None]
    alpha_B = torch.ones_like(batch.adv_B)
    if some_B.any():
        alpha_B[some_B] = 1 + known["strength"] * torch.tanh(_deviations(given(batch.dependency_B)[some_B]))
    seen_BT = batch.mask_BT & some_B[:, None]
    perceives_BT = top_of_batch(given(batch.perception_BT), seen_BT, known["perception_share"])
    reasons_BT = top_of_batch(batch.entropy_BT, seen_BT, known["reasoning_share"])
    chosen_BT = perceives_BT | reasons_BT | (batch.mask_BT & ~some_B[:, None])
    advantage_BT = torch.where(perceives_BT, alpha_B[:, None] * adv_B1, adv_B1)
    return replace(dapo(batch, settings), advantage=advantage_BT, weight_BT=chosen_BT)


def _deviations(x_B: Tensor) -> Tensor:
    """(x - median) / (MAD + 1e-8)."""
    x_B = x_B.double()
    centred_B = x_B - _median(x_B)
    return (centred_B / (_median(centred_B.abs()) + 1e-8)).float()


def _median(x_B: Tensor) -> Tensor:
    """The lower of the middle two, where their number is even; by a sort, which has one result on any device."""
    return x_B.sort().values[(len(x_B) - 1) // 2]
