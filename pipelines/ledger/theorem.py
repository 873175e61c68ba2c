"""The paper's Theorem 3.1 on one step: what it predicts, and how far its assumptions hold.

It says Var(g_VPPO) = k E[alpha^2] Var(g_GRPO), if the gradients of log pi of a trajectory's tokens are
uncorrelated, of equal norm, and independent of alpha and A. The same argument gives for any weights w that
multiply them: the variance is proportional to sum w^2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipelines.disk.records import SampleTable
from pipelines.ledger.credit import Array, spearman
from pipelines.ledger.gradients import LedgerTrainer
from pipelines.seeds import generator
from pipelines.update.batches import Groups

TOKENS, PER_RESPONSE = 256, 8
"""Tokens that are drawn, and of each response at most: pairs need several of one."""

RESAMPLES = 2000


def paper_ratio(alpha_B: Tensor, keep_BT: Tensor, mask_BT: Tensor) -> float:
    """k E[alpha^2]: k is the share of tokens that are kept, the mean is over responses."""
    k = keep_BT.sum() / mask_BT.sum()
    return (k * alpha_B.double().square().mean()).item()


def square_ratio(w_BT: Tensor, dapo_BT: Tensor) -> float | None:
    """sum w^2 over that of DAPO's weights, A: the theorem's argument without independence of A and w."""
    below = dapo_BT.square().sum()
    return (w_BT.square().sum() / below).item() if below > 0 else None


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % interval: percentile bootstrap, whole responses drawn again."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Assumptions:
    """How far the theorem's assumptions hold, on drawn tokens of a step. Norms are of d log pi / d weights.

    Attributes:
        tokens, responses: that were drawn.
        cosine: of the gradients of two tokens of a response, the mean over pairs (assumed 0).
        spread: standard deviation of the norms over their mean (assumed 0).
        kept: mean square norm of the tokens that VPPO keeps over that of all (assumed 1).
        alpha_norm, advantage_norm: rank correlation of a token's norm with its response's alpha and |A| (0).
        alpha_advantage: that of alpha and |A| of all responses of the step (0).
    """

    tokens: int
    responses: int
    cosine: Estimate
    spread: Estimate
    kept: Estimate
    alpha_norm: Estimate
    advantage_norm: Estimate
    alpha_advantage: Estimate


@dataclass(frozen=True)
class Drawn:
    """The tokens of one response: cosines of pairs [pairs], norms and kept [tokens], its alpha and |A|."""

    cosines: Array
    norms: Array
    kept: Array
    alpha: float
    advantage: float


def draw(seed: int, step: int, length_B: Sequence[int]) -> list[tuple[int, list[int]]]:
    """(response, tokens in order): ``PER_RESPONSE`` of each of as many responses as make ``TOKENS``, all of a
    shorter one; those of one token are passed over."""
    rng = generator(seed, "ledger", step)
    found, left = [], TOKENS
    for row in rng.permutation(len(length_B)).tolist():
        count = min(PER_RESPONSE, length_B[row], left)
        if count < 2:
            continue
        found.append((row, sorted(rng.choice(length_B[row], count, replace=False).tolist())))
        left -= count
    return found


def measure(
    trainer: LedgerTrainer,
    groups: Groups,
    samples: SampleTable,
    drawn: Sequence[tuple[int, list[int]]],
    keep_BT: Tensor,
    alpha_B: Tensor,
    adv_B: Tensor,
    progress: Callable[[int], None],
) -> list[Drawn]:
    """The gradients of the drawn tokens, as what is told of them.

    Args:
        drawn: of the responses of all groups, counted through.
        progress: told how many responses are done.
    """
    places = [(group, row) for group in groups for row in range(len(group[0].response_ids))]
    found = []
    for number, (response, tokens) in enumerate(drawn):
        progress(number)
        group, row = places[response]
        gradient_NW = trainer.token_gradients(group, samples, row, tokens)
        norm_N = torch.linalg.vector_norm(gradient_NW, dim=-1, dtype=torch.float64)
        unit_NW = gradient_NW / norm_N.clamp(min=1e-30).unsqueeze(-1).float()
        cosine_NN = (unit_NW @ unit_NW.T).double().cpu()
        pair = torch.triu_indices(len(tokens), len(tokens), 1)
        found.append(
            Drawn(
                cosine_NN[pair[0], pair[1]].numpy(),
                norm_N.cpu().numpy(),
                keep_BT[response, tokens].double().cpu().numpy(),
                float(alpha_B[response]),
                float(adv_B[response].abs()),
            )
        )
    return found


def assumptions(drawn: Sequence[Drawn], alpha_B: Tensor, adv_B: Tensor, seed: int, step: int) -> Assumptions:
    """What the drawn tokens say, and all responses, with intervals."""

    def estimate(statistic: Callable[[Array], float | None], count: int = len(drawn)) -> Estimate:
        """Of the responses by number, so that one can be there several times."""
        value = statistic(np.arange(count))
        if value is None:
            return Estimate(None, None, None)
        again = generator(seed, "ledger bootstrap", step).integers(count, size=(RESAMPLES, count))
        values = [x for row in again if (x := statistic(row)) is not None]
        low, high = np.quantile(values, [0.025, 0.975])
        return Estimate(value, float(low), float(high))

    def of_norms(name: str) -> Estimate:
        """The correlation of a token's norm with a number of its response."""
        return estimate(lambda rows: spearman(_joined(drawn, "norms", rows), _repeated(drawn, name, rows)))

    both = alpha_B.cpu().double().numpy(), adv_B.abs().cpu().double().numpy()

    return Assumptions(
        tokens=sum(len(one.norms) for one in drawn),
        responses=len(drawn),
        cosine=estimate(lambda rows: float(_joined(drawn, "cosines", rows).mean())),
        spread=estimate(lambda rows: _spread(_joined(drawn, "norms", rows))),
        kept=estimate(lambda rows: _kept(_joined(drawn, "norms", rows), _joined(drawn, "kept", rows))),
        alpha_norm=of_norms("alpha"),
        advantage_norm=of_norms("advantage"),
        alpha_advantage=estimate(lambda rows: spearman(both[0][rows], both[1][rows]), len(alpha_B)),
    )


def _joined(drawn: Sequence[Drawn], name: str, rows: Array) -> Array:
    return np.concatenate([getattr(drawn[i], name) for i in rows])


def _repeated(drawn: Sequence[Drawn], name: str, rows: Array) -> Array:
    return np.repeat([getattr(drawn[i], name) for i in rows], [len(drawn[i].norms) for i in rows])


def _spread(norm_N: Array) -> float | None:
    return float(norm_N.std() / norm_N.mean()) if norm_N.any() else None


def _kept(norm_N: Array, kept_N: Array) -> float | None:
    square_N = norm_N**2
    some = kept_N.any() and square_N.any()
    return float((square_N * kept_N).sum() / kept_N.sum() / square_N.mean()) if some else None
