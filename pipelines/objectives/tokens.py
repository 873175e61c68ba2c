"""What several objectives do with a number of each token: bring it into [0, 1], take the batch's highest."""

from __future__ import annotations

import torch
from torch import Tensor

from pipelines import vppo


def minmax(x_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """(x - min) / (max - min) over each response's own tokens -> [B, T] in [0, 1]; 0 where all are equal."""
    x_BT = x_BT.float()
    low_B1 = x_BT.masked_fill(~mask_BT, torch.inf).amin(-1, keepdim=True)
    high_B1 = x_BT.masked_fill(~mask_BT, -torch.inf).amax(-1, keepdim=True)
    span_B1 = (high_B1 - low_B1).clamp(min=torch.finfo(torch.float32).tiny)
    return torch.where(mask_BT, (x_BT - low_B1) / span_B1, 0.0)


def top_of_batch(x_BT: Tensor, mask_BT: Tensor, fraction: float) -> Tensor:
    """The ceil(fraction * N) highest of the N tokens of a whole batch -> bool [B, T]; of equal ones the earlier."""
    x_N = x_BT[mask_BT]
    top_BT = torch.zeros_like(mask_BT)
    top_BT[mask_BT] = vppo.keep_top_fraction(x_N[None], torch.ones_like(x_N, dtype=torch.bool)[None], fraction)[0]
    return top_BT
