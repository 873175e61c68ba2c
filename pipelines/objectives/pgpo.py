"""PGPO (arXiv 2604.01840): advantages reshaped by how much each token depends on the image."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import torch
from torch import Tensor

from pipelines import vppo
from pipelines.config.schema import UpdateConfig
from pipelines.objectives.batch import Batch, Terms, given
from pipelines.objectives.dapo import dapo
from pipelines.objectives.table import constants, variant
from pipelines.objectives.tokens import minmax

FLOOR = 0.1
"""Smallest weight below the threshold in ``code``."""


def pgpo(batch: Batch, settings: UpdateConfig) -> Terms:
    """A_t = w_t A, on every token (eq. 6 and 7).

    I = minmax(log(1 + S)) over the response; w = I / tau below the threshold tau, else
    1 + beta (I - tau) / (1 - tau); then w is scaled to a mean of 1 over the response.

    ``paper`` is that. ``code``: tau is the I of the response's own token number floor(tau T), counted from 0 in
    rising order; below it w is at least 0.1; w is not scaled. It is a snapshot of the authors' development code
    as a re-implementation reports it (github.com/zsxm1998/awesome-perception-aware-rlvr); nothing was released.

    Where all S of a response are equal nothing tells its tokens apart, and w is 1; so it is without an image. An S
    below 0, which some estimators have, counts as 0. PGPO's own S is KL(p || q), which the re-implementation estimates
    by k3, with q a pass whose attention to the image tokens is masked. Here it is what ``score`` is set to, and no
    setting is the same: ``grey`` comes nearest, which leaves no information, but the image tokens.
    """
    fixed = constants("pgpo", settings)
    importance_BT = minmax(given(batch.perception_BT).clamp(min=0.0).log1p(), batch.mask_BT)
    shape = _as_paper if variant("pgpo", settings) == "paper" else _as_code
    weight_BT = shape(importance_BT, batch.mask_BT, fixed["tau"], fixed["beta"])
    weight_BT = torch.where(batch.depends_B.unsqueeze(-1), weight_BT, 1.0)
    advantage_BT = torch.where(batch.mask_BT, weight_BT * batch.adv_B.unsqueeze(-1), 0.0)
    return replace(dapo(batch, settings), advantage=advantage_BT)


def _as_paper(importance_BT: Tensor, mask_BT: Tensor, tau: float, beta: float) -> Tensor:
    above_BT = 1.0 + beta * (importance_BT - tau) / (1.0 - tau)
    weight_BT = torch.where(importance_BT < tau, importance_BT / tau, above_BT)
    mean_B1 = vppo.masked_mean(weight_BT, mask_BT).unsqueeze(-1)
    return torch.where(mean_B1 > 0, weight_BT / mean_B1, 1.0)


def _as_code(importance_BT: Tensor, mask_BT: Tensor, tau: float, beta: float) -> Tensor:
    share, length_B = Fraction(str(tau)).limit_denominator(10**6), mask_BT.sum(-1)
    rising_BT = importance_BT.masked_fill(~mask_BT, torch.inf).sort(-1).values
    place_B = length_B * share.numerator // share.denominator
    threshold_B1 = rising_BT.gather(-1, place_B.unsqueeze(-1))
    tiny = torch.finfo(torch.float32).tiny  # what it divides then is 0
    below_BT = (importance_BT / threshold_B1.clamp(min=tiny)).clamp(min=FLOOR)
    above_BT = 1.0 + beta * (importance_BT - threshold_B1) / (1.0 - threshold_B1).clamp(min=tiny)
    return torch.where(importance_BT < threshold_B1, below_BT, above_BT)
