"""Weights and optimizer state that are numbers: what is not is named, before it is used or kept."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch


def first_not_finite(named: Iterable[tuple[str, torch.Tensor]]) -> tuple[str, float] | None:
    """The first of these tensors that holds NaN or an infinity, and which of them; None if none does."""
    for name, value in named:
        if value.is_floating_point() and value.numel() and not value.is_meta:
            # One pass, whose ends are NaN if any number is.
            for found in torch.stack(torch.aminmax(value.detach())).tolist():
                if not math.isfinite(found):
                    return name, found
    return None
