"""TPAE (arXiv 2609.39168): a penalty for tokens unlike those of correct responses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from pipelines.config.schema import UpdateConfig
from pipelines.objectives.batch import Batch, Terms, given
from pipelines.objectives.dapo import dapo
from pipelines.objectives.table import constants

FEWEST = 3
"""Correct occurrences of a token below which there is no reference: two points span a line, not a plane."""

Array = np.ndarray[Any, Any]


def tpae(batch: Batch, settings: UpdateConfig) -> Terms:
    """A_t = A + sigmoid(min(0, tau - M)) - 0.5, on every token.

    M is the Mahalanobis distance of z = [S, H], a token's perception and entropy, from the normal distribution of
    all z of the same token id in the correct responses to the same question, of which the covariance is shrunk as
    Ledoit and Wolf do (2004); tau = 3.03 is where 99 % of a plane's normal distribution lie within. A token that is no
    outlier keeps A; the penalty is above -0.5, in correct and wrong responses alike.

    Known from summaries of the paper's text; its code was not to be had. What they leave open was read so:

    - References are of one question: formulas number rollouts and tokens, not questions, G is 16, and the shrinkage is
      for want of samples.
    - An id with fewer than 3 correct occurrences, or whose covariance is singular even when shrunk (all of them
      equal, say), has no reference: its tokens keep A.

    Responses without an image keep A. Computed in float64 on the CPU, by sums in a fixed order.
    """
    tau = constants("tpae", settings)["tau"]
    mask_BT = batch.mask_BT.cpu().numpy()
    row_N = mask_BT.nonzero()[0]
    z_N2 = np.stack(
        [x_BT.double().cpu().numpy()[mask_BT] for x_BT in (given(batch.perception_BT), batch.entropy_BT)], axis=1
    )
    ids_N, group_N = batch.ids_BT.cpu().numpy()[mask_BT], batch.group_B.cpu().numpy()[row_N]
    seen_N, correct_N = (x_B.cpu().numpy()[row_N] for x_B in (batch.depends_B, batch.correct_B))
    word_N = group_N * (ids_N.max(initial=0) + 1) + ids_N
    distance_N = distances(z_N2, word_N, correct_N)
    trust_N = np.where(seen_N, np.minimum(0.0, tau - distance_N), 0.0)
    penalty_BT = np.zeros(mask_BT.shape)
    penalty_BT[mask_BT] = torch.sigmoid(torch.from_numpy(trust_N)).numpy() - 0.5
    penalized_BT = batch.adv_B.unsqueeze(-1) + torch.from_numpy(penalty_BT).to(batch.adv_B)
    return replace(dapo(batch, settings), advantage=torch.where(batch.mask_BT, penalized_BT, 0.0))


def distances(z_N2: Array, word_N: Array, correct_N: Array) -> Array:
    """Mahalanobis distance of each point from the correct points of its word -> [N]; 0 where they are no reference.

    The covariance is (1 - s) C + s (trace C / 2) 1, with C that of the points (by their number, not one less) and
    s = min(b, d) / d: b the mean of ||x x' - C||^2 / n, d that of C from the target, both halved (scikit-learn's
    ``LedoitWolf`` for two features).

    Args:
        z_N2: points.
        word_N: int; only points with the same number are compared.
        correct_N: bool; the points that are references.
    """
    place_N = np.unique(word_N, return_inverse=True)[1]
    words, chosen = int(place_N.max(initial=-1)) + 1, place_N[correct_N]
    count_K = np.bincount(chosen, minlength=words)

    def mean(x_C: Array) -> Array:
        """Of the correct points of each word -> [K]."""
        return np.bincount(chosen, weights=x_C, minlength=words) / np.maximum(count_K, 1)

    mean_K2 = np.stack([mean(z_N2[correct_N, i]) for i in range(2)], axis=1)
    x_N, y_N = (z_N2 - mean_K2[place_N]).T
    x_C, y_C = x_N[correct_N], y_N[correct_N]
    xx_K, yy_K, xy_K = mean(x_C * x_C), mean(y_C * y_C), mean(x_C * y_C)
    target_K = (xx_K + yy_K) / 2
    squared_K = xx_K**2 + yy_K**2 + 2 * xy_K**2
    noise_K = (mean((x_C**2 + y_C**2) ** 2) - squared_K) / (2 * np.maximum(count_K, 1))
    spread_K = squared_K / 2 - target_K**2
    shrunk_K = np.clip(noise_K / np.where(spread_K > 0, spread_K, np.inf), 0.0, 1.0)

    xx_K, yy_K = ((1 - shrunk_K) * x_K + shrunk_K * target_K for x_K in (xx_K, yy_K))
    xy_K = (1 - shrunk_K) * xy_K
    volume_K = xx_K * yy_K - xy_K**2
    known_K = (count_K >= FEWEST) & (volume_K > 1e-9 * target_K**2)
    squares_N = yy_K[place_N] * x_N**2 - 2 * xy_K[place_N] * x_N * y_N + xx_K[place_N] * y_N**2
    squares_N = np.where(known_K[place_N], squares_N / np.where(known_K, volume_K, 1.0)[place_N], 0.0)
    return np.sqrt(np.maximum(squares_N, 0.0))
