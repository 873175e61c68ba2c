"""CGPO: VPPO's two levels with other statistics, and evidence regions in place of random patches."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from pipelines import vppo
from pipelines.config.schema import UpdateConfig
from pipelines.objectives.batch import Batch, Terms, given
from pipelines.objectives.dapo import dapo
from pipelines.objectives.table import constants


def cgpo(batch: Batch, settings: UpdateConfig) -> Terms:
    """alpha_i A_i on the tokens in the top ``fraction`` of H or in the top ``fraction`` of S, else ``elsewhere``.

    alpha_i = 1 + strength tanh((mean S_i - m) / MAD), with m the median of mean S and MAD that of
    |mean S_i - m|, unscaled; where MAD is 0 alpha is 1. S compares the image with itself without its evidence
    regions: ``score.perturbation: evidence``, which the embedded data has (the cells that the answer needs).

    Known is the formula, not over what its statistics go. Read here: the median and MAD over the responses of
    the update batch, as VPPO's alpha; the shares of each response, as VPPO's filter; other tokens get no
    gradient, as there (``elsewhere``: 1 is the other reading, alpha and the whole response trained).
    """
    known = constants("cgpo", settings)
    some_B, mask_BT = batch.depends_B, batch.mask_BT
    alpha_B = torch.ones_like(batch.adv_B)
    if some_B.any():
        alpha_B[some_B] = 1 + known["strength"] * torch.tanh(_deviations(given(batch.dependency_B)[some_B]))
    chosen_BT = vppo.keep_top_fraction(batch.entropy_BT, mask_BT, known["fraction"])
    chosen_BT = chosen_BT | vppo.keep_top_fraction(given(batch.perception_BT), mask_BT, known["fraction"])
    chosen_BT = torch.where(some_B[:, None], chosen_BT, mask_BT)
    weight_BT = torch.where(chosen_BT, 1.0, torch.where(mask_BT, known["elsewhere"], 0.0))
    return replace(dapo(batch, settings), advantage=alpha_B * batch.adv_B, weight_BT=weight_BT)


def _deviations(x_B: Tensor) -> Tensor:
    """(x - median) / MAD, with the mean of the middle two as the median of an even number; 0 where MAD is."""
    x_B = x_B.double()
    centred_B = x_B - x_B.quantile(0.5)
    spread = centred_B.abs().quantile(0.5)
    return torch.where(spread > 0, centred_B / torch.where(spread > 0, spread, 1.0), 0.0).float()
