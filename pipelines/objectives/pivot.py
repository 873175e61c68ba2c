"""PIVOT's vision-guided advantage allocation (arXiv 2609.18057, section 4.2), without its experience replay."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from pipelines import vppo
from pipelines.config.schema import UpdateConfig
from pipelines.objectives.batch import Batch, Terms, given
from pipelines.objectives.dapo import dapo
from pipelines.objectives.table import constants

MOST = 20.0
"""log q/p is held at this, so that it stays a number."""


def pivot_vaa(batch: Batch, settings: UpdateConfig) -> Terms:
    """A_t = A + beta |A| U_t, held at 0 where it would have the other sign (eq. 14 and 15).

    U = c + weight D(u F) (eq. 13), with

    - c_t = 1 - q/p of the sampled token (eq. 10), of mean 0 under p;
    - F_t the mean of the next ``window`` c, the k-th after the next weighted discount^k (eq. 11); of the last
      token 0;
    - u_t = 1 - exp(-H_t / mean of H over the batch) (eq. 12);
    - D what a straight line over the positions of the response leaves (least squares; eq. 25 to 27).

    All of it is the paper's text. Its beta is not: there is a figure of several, and no word of which was used. The
    paper goes by the reward's sign (R = 1 or 0), which is the advantage's but where a length penalty is
    added. Responses without an image keep their advantage and are out of the mean of H.
    """
    fixed = constants("pivot-vaa", settings)
    mask_BT, seen_BT = batch.mask_BT, batch.mask_BT & batch.depends_B.unsqueeze(-1)
    ratio_BT = (given(batch.perturbed_logp_BT) - given(batch.clean_logp_BT)).clamp(max=MOST).exp()
    support_BT = torch.where(mask_BT, 1.0 - ratio_BT, 0.0)
    future_BT = _future(support_BT, mask_BT, int(fixed["window"]), fixed["discount"])
    mean_entropy = batch.entropy_BT[seen_BT].mean() if seen_BT.any() else torch.tensor(1.0)
    gate_BT = 1.0 - (-batch.entropy_BT / mean_entropy.clamp(min=torch.finfo(torch.float32).tiny)).exp()
    utility_BT = support_BT + fixed["weight"] * _detrended(gate_BT * future_BT, mask_BT)

    adv_B1 = batch.adv_B.unsqueeze(-1)
    moved_BT = adv_B1 + fixed["beta"] * adv_B1.abs() * utility_BT
    moved_BT = torch.where(adv_B1 > 0, moved_BT.clamp(min=0.0), moved_BT.clamp(max=0.0))
    advantage_BT = torch.where(seen_BT, moved_BT, adv_B1)
    return replace(dapo(batch, settings), advantage=torch.where(mask_BT, advantage_BT, 0.0))


def _future(x_BT: Tensor, mask_BT: Tensor, window: int, discount: float) -> Tensor:
    """The discounted mean of the next ``window`` tokens that there are; 0 where there is none."""
    sum_BT, weight_BT = torch.zeros_like(x_BT), torch.zeros_like(x_BT)
    for step in range(1, min(window, x_BT.shape[1] - 1) + 1):
        factor = discount ** (step - 1)
        sum_BT[:, :-step] += factor * x_BT[:, step:]
        weight_BT[:, :-step] += factor * mask_BT[:, step:]
    return torch.where(weight_BT > 0, sum_BT / weight_BT.clamp(min=torch.finfo(torch.float32).tiny), 0.0)


def _detrended(x_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """What is left of each response's numbers without their least-squares line over the position."""
    length_B1 = mask_BT.sum(-1, keepdim=True)
    place_BT = torch.arange(mask_BT.shape[1], device=mask_BT.device) / (length_B1 - 1).clamp(min=1)

    def centred(y_BT: Tensor) -> Tensor:
        return torch.where(mask_BT, y_BT - vppo.masked_mean(y_BT, mask_BT).unsqueeze(-1), 0.0)

    x_BT, place_BT = centred(x_BT), centred(place_BT)
    spread_B1 = (place_BT**2).sum(-1, keepdim=True)
    slope_B1 = (x_BT * place_BT).sum(-1, keepdim=True) / spread_B1.clamp(min=torch.finfo(torch.float32).tiny)
    return x_BT - slope_B1 * place_BT
