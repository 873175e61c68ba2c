"""TPAE by hand, and its covariances against scikit-learn's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from random_batch import random_batch
from sklearn.covariance import LedoitWolf

from pipelines.config.schema import UpdateConfig
from pipelines.objectives.tpae import distances, tpae


def test_it_by_hand():
    # [S, H] of one token in four correct responses: (2, 1), (0, 1), (1, 2), (1, 0). Mean (1, 1), covariance 1/2 in
    # both directions, and shrinking changes nothing. They are sqrt(2) off: within 3.03. The wrong response's (1, 4.5)
    # is 3.5 sqrt(2) = 4.9497 off: sigmoid(3.03 - 4.9497) - 0.5 = -0.37211. The last tokens occur once each.
    batch = random_batch(
        groups=1,
        size=5,
        longest=2,
        mask_BT=torch.ones(5, 2, dtype=torch.bool),
        ids_BT=torch.tensor([[7, 8], [7, 9], [7, 10], [7, 11], [7, 12]]),
        perception_BT=torch.tensor([[2.0, 9], [0, 9], [1, 9], [1, 9], [1, 9]]),
        entropy_BT=torch.tensor([[1.0, 9], [1, 9], [2, 9], [0, 9], [4.5, 9]]),
        correct_B=torch.tensor([True, True, True, True, False]),
        adv_B=torch.tensor([0.5, 0.5, 0.5, 0.5, -2.0]),
    )
    terms = tpae(batch, UpdateConfig(objective="tpae"))
    torch.testing.assert_close(terms.advantage, torch.tensor([*[[0.5, 0.5]] * 4, [-2.37211, -2.0]]))


def test_a_shrunk_covariance_by_hand():
    # (0, 1), (1, 1), (2, 1): variance 2/3 along S and 0 along H; target 1/3. b = (2/3 - 4/9) / 6 = 1/27 and
    # d = (4/9 - 2/9) / 2 = 1/9, so a third is the target's: 5/9 along S, 1/9 along H. (1, 3) is 2 * 3 = 6 off.
    z = np.array([[0.0, 1], [1, 1], [2, 1], [1, 3]])
    found = distances(z, np.zeros(4, int), np.array([True, True, True, False]))
    assert found == pytest.approx([math.sqrt(9 / 5), 0, math.sqrt(9 / 5), 6])


def test_the_covariance_is_scikit_learns():
    draw = np.random.default_rng(0)
    for count in (3, 4, 10, 200):
        z = draw.normal(size=(count, 2)) @ [[1.0, 0.3], [0.0, 0.2]] + draw.normal(size=2)
        fit = LedoitWolf().fit(z)
        everyone = np.ones(count, bool)
        assert distances(z, np.full(count, 5), everyone) ** 2 == pytest.approx(fit.mahalanobis(z), rel=1e-9)


@pytest.mark.parametrize("points", [[], [[1, 1]], [[0, 1], [2, 3]], [[1, 1]] * 5, [[0, 0], [1, 1]] * 2], ids=str)
def test_what_spans_no_plane_is_no_reference(points):
    z = np.array([*points, [5.0, -9.0]], dtype=float)
    correct = np.array([True] * len(points) + [False])
    assert (distances(z, np.zeros(len(z), int), correct) == 0).all()


def test_a_question_is_no_reference_for_another():
    # The same tokens, correct in the first group and wrong in the second.
    z = torch.tensor([[0.0], [1], [2], [3], [40], [41], [42], [43]])
    batch = random_batch(
        groups=2,
        size=4,
        longest=1,
        mask_BT=torch.ones(8, 1, dtype=torch.bool),
        ids_BT=torch.full((8, 1), 7),
        perception_BT=z,
        entropy_BT=z**2,
        correct_B=torch.arange(8) < 4,
    )
    torch.testing.assert_close(tpae(batch, UpdateConfig(objective="tpae")).advantage[4:, 0], batch.adv_B[4:])
