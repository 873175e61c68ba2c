"""VGPO: advantages shaped by how like the image's a token's hidden state is, within and between responses."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from pipelines import vppo
from pipelines.config.schema import UpdateConfig
from pipelines.objectives.batch import Batch, Terms, given
from pipelines.objectives.dapo import dapo
from pipelines.objectives.table import constants, variant
from pipelines.objectives.tokens import minmax


def vgpo(batch: Batch, settings: UpdateConfig) -> Terms:
    """VGPO (arXiv 2604.09349): A_t = inter_i intra_t A_i.

    With s the cosine of the last hidden state with the mean of the image tokens', t from 0, T tokens:

    - rho_t = s_t - min(0, the batch's smallest s); variant ``paper``: s_t + 1
    - rho_t *= 1 + ``late`` t / (T - 1) on the share ``share`` of highest rho of the tokens from ``start`` T on, those
      equal to the last of them included
    - intra_t = 1 + w_t - mean w within [``intra_low``, ``intra_high``], w = minmax_i(rho)
    - inter_i = 1 + m_i - mean m within [``inter_low``, ``inter_high``], m the minmax in the group of sum_t w_t

    Known from the authors' code (wzb-bupt/VGPO), which differs in four points: it takes the hidden state that read
    the token, of the policy that is trained, where ours is the one that predicts it, of the policy that scored;
    its smallest s is a micro-batch's (and 0 where that has padding); its groups are any so many responses that
    stand together in a micro-batch; a response without an image is shaped by position, where ours stays as it
    is.
    """
    given_by = constants("vgpo", settings)
    mask_BT = batch.mask_BT
    similarity_BT = given(batch.image_similarity_BT).float()
    if variant("vgpo", settings) == "paper":
        rho_BT = similarity_BT + 1.0
    else:
        seen_N = similarity_BT[mask_BT & batch.has_image_B[:, None]]
        rho_BT = similarity_BT - (seen_N.min().clamp(max=0.0) if len(seen_N) else 0.0)
    length_B1 = mask_BT.sum(-1, keepdim=True)
    place_T = torch.arange(mask_BT.shape[1], device=mask_BT.device)
    ramp_BT = given_by["late"] * place_T / (length_B1 - 1).clamp(min=1)
    late_BT = _late(rho_BT, length_B1, place_T, given_by["start"], given_by["share"])
    rho_BT = torch.where(late_BT, rho_BT * (1.0 + ramp_BT), rho_BT)

    weight_BT = minmax(rho_BT, mask_BT)
    mean_B1 = vppo.masked_mean(weight_BT, mask_BT)[:, None]
    intra_BT = (1.0 + weight_BT - mean_B1).clamp(given_by["intra_low"], given_by["intra_high"])
    sum_PG = weight_BT.sum(-1).reshape(-1, batch.group_size)
    among_PG = minmax(sum_PG, torch.ones_like(sum_PG, dtype=torch.bool))
    inter_PG = 1.0 + among_PG - among_PG.mean(-1, keepdim=True)
    inter_B1 = inter_PG.clamp(given_by["inter_low"], given_by["inter_high"]).reshape(-1, 1)
    factor_BT = torch.where(batch.has_image_B[:, None], inter_B1 * intra_BT, 1.0)
    return replace(dapo(batch, settings), advantage=batch.adv_B[:, None] * factor_BT)


def _late(rho_BT: Tensor, length_B1: Tensor, place_T: Tensor, start: float, share: float) -> Tensor:
    """The share of highest rho of each response's tokens from ``start`` of its length on -> bool [B, T]."""
    first_B1 = (length_B1.double() * start).floor()
    range_BT = (place_T >= first_B1) & (place_T < length_B1)
    count_B1 = (range_BT.sum(-1, keepdim=True).double() * share).floor().long().clamp(min=1)
    score_BT = rho_BT.masked_fill(~range_BT, -torch.inf)
    last_B1 = score_BT.sort(-1, descending=True).values.gather(-1, count_B1 - 1)
    return range_BT & (score_BT >= last_B1)
