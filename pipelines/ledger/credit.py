"""What objectives give each token of one step, and how that compares: plain tensors in, numbers out.

Axes as in pipelines/vppo.py. ``w_BT`` is an objective's credit: what a token's policy gradient is multiplied by
in the mean over all response tokens, signed, 0 on padding. Where a number has no meaning it is None.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipelines.objectives.batch import Terms

Array = npt.NDArray[Any]

CONSTANT = 1e-5
"""Weights of a response that differ by no more than this share of the largest are one weight."""


def credit_BT(terms: Terms, loss_mask_BT: Tensor, max_tokens: int) -> Tensor:
    """-d loss / d log pi of each token on-policy, times the number of response tokens -> w_BT, float64.

    That is ``Terms.token_weight_BT`` where the loss is a mean over tokens. Averaged by sequence, a token of a
    short response counts more; by ``max_length`` all count less. ``Terms.extra`` is no part of it.

    Args:
        loss_mask_BT: response tokens that the loss is taken over.
        max_tokens: longest response that there can be.
    """
    w_BT = torch.where(loss_mask_BT, terms.token_weight_BT.double(), 0.0)
    if terms.average == "token":
        return w_BT
    length_B1 = loss_mask_BT.sum(-1, keepdim=True).clamp(min=1)
    responses = loss_mask_BT.any(-1).sum().clamp(min=1)
    each_B1 = length_B1 if terms.average == "sequence" else torch.full_like(length_B1, max_tokens)
    return w_BT * loss_mask_BT.sum() / (responses * each_B1)


def mass(w_BT: Tensor, mask_BT: Tensor) -> float | None:
    """Effective token mass (sum |w|)^2 / sum w^2, as a share of the response tokens: 1 where all have the same
    |w|, k where a share k has it and the others none. None without any weight."""
    square = w_BT.square().sum()
    return (w_BT.abs().sum().square() / square / mask_BT.sum()).item() if square > 0 else None


def varies_B(w_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Responses whose tokens do not all have the same |w| -> bool."""
    size_BT = w_BT.abs()
    low_B = size_BT.masked_fill(~mask_BT, torch.inf).amin(-1)
    high_B = size_BT.amax(-1)
    return high_B - low_B > CONSTANT * high_B


def top_BT(w_BT: Tensor, mask_BT: Tensor, count_B: Tensor) -> Tensor:
    """The ``count_B`` tokens of each response with the largest |w|, bool: of equal ones the earlier, none of
    weight 0."""
    size_BT = w_BT.abs().masked_fill(~mask_BT, -1.0)
    order_BT = size_BT.argsort(dim=-1, descending=True, stable=True)
    place_T = torch.arange(w_BT.shape[-1], device=w_BT.device)
    first_BT = torch.zeros_like(mask_BT).scatter(-1, order_BT, place_T < count_B.unsqueeze(-1))
    return first_BT & (size_BT > 0)


def overlap(one_BT: Tensor, other_BT: Tensor, mask_BT: Tensor, count_B: Tensor) -> float | None:
    """Of the top tokens (``top_BT``) of the two, the smaller number of each response: the share in both.

    Over the responses within which the weights of both differ; None if there is none. By chance it is about
    the share of tokens that ``count_B`` takes.

    Args:
        count_B: as many as VPPO keeps.
    """
    some_B = varies_B(one_BT, mask_BT) & varies_B(other_BT, mask_BT) & (count_B > 0)
    tops = [top_BT(w_BT, mask_BT, count_B)[some_B] for w_BT in (one_BT, other_BT)]
    smaller = torch.minimum(tops[0].sum(-1), tops[1].sum(-1)).sum()
    return ((tops[0] & tops[1]).sum() / smaller).item() if smaller > 0 else None


def ranks_N(x_N: Array) -> Array:
    """Ranks from 1, the smallest first; equal ones share their mean rank. float64."""
    _, place_N, count_U = np.unique(x_N, return_inverse=True, return_counts=True)
    return np.asarray((count_U.cumsum() - (count_U - 1) / 2)[place_N])


def spearman(x_N: Array, y_N: Array) -> float | None:
    """Rank correlation, equal values at their mean rank; None where one of them is constant."""
    x_N, y_N = (ranks - ranks.mean() for ranks in (ranks_N(x_N), ranks_N(y_N)))
    size = np.sqrt((x_N @ x_N) * (y_N @ y_N))
    return float(x_N @ y_N / size) if size > 0 else None


def shares(w_BT: Tensor, roles: Mapping[str, Tensor]) -> dict[str, float] | None:
    """The share of sum |w| that lies on the tokens of each role."""
    whole = w_BT.abs().sum()
    return {name: (w_BT.abs()[x_BT].sum() / whole).item() for name, x_BT in roles.items()} if whole > 0 else None


MUCH, LITTLE = 2.0, 0.5
"""Of the mean |w| of a response's tokens."""


@dataclass(frozen=True)
class Disagreement:
    """A token that two objectives rank differently within its response.

    ``ranks``: by |w|, 1 for the largest, equal ones at their mean rank; objectives that weigh all tokens of the
    response alike have none. ``most`` and ``least`` are those that rank it highest and lowest.
    """

    row: int
    token: int
    length: int
    ranks: dict[str, float]
    most: str
    least: str


def disagreements(credits: Mapping[str, Tensor], mask_BT: Tensor, count: int) -> list[Disagreement]:
    """The tokens whose rank within their response differs most between two objectives, at most one a response.

    One of the two gives it ``MUCH`` of the response's mean weight or more, the other ``LITTLE`` or less: weights
    that hardly differ are ranked too.

    Ranks are compared as shares of the response's length; of equal differences the longer response's comes
    first, then the earlier.
    """
    named = {name: (w_BT.abs().cpu().numpy(), varies_B(w_BT, mask_BT).cpu()) for name, w_BT in credits.items()}
    found: list[tuple[float, int, Disagreement]] = []
    for row, length in enumerate(mask_BT.sum(-1).tolist()):
        ranked = [name for name, (_, some_B) in named.items() if some_B[row]]
        if len(ranked) < 2:
            continue
        size_OT = np.stack([named[name][0][row, :length] for name in ranked])
        share_OT = size_OT / size_OT.mean(1, keepdims=True)
        rank_OT = np.stack([ranks_N(-size_T) for size_T in size_OT])
        high_OT = np.where(share_OT >= MUCH, rank_OT, np.inf)
        low_OT = np.where(share_OT <= LITTLE, rank_OT, -np.inf)
        gap_T = (low_OT.max(0) - high_OT.min(0)) / (length - 1)
        token = int(gap_T.argmax())
        most, least = ranked[int(high_OT[:, token].argmin())], ranked[int(low_OT[:, token].argmax())]
        ranks = dict(zip(ranked, rank_OT[:, token].tolist(), strict=True))
        found.append((float(gap_T[token]), length, Disagreement(row, token, length, ranks, most, least)))
    found.sort(key=lambda one: (-one[0], -one[1], one[2].row))
    return [one for gap, _, one in found[:count] if gap > 0]


def matrix(names: Sequence[str], measure: Mapping[tuple[str, str], float | None]) -> list[list[float | None]]:
    """A symmetric measure of pairs as rows in the order of ``names``."""
    return [[measure[min(a, b), max(a, b)] for b in names] for a in names]
