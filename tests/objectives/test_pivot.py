"""PIVOT's advantages by hand."""

from __future__ import annotations

import math

import torch
from random_batch import random_batch

from pipelines.config.schema import UpdateConfig
from pipelines.objectives.pivot import pivot_vaa


def test_it_by_hand():
    # q / p is 1/2, 1 and 1/4 in the first response, so c = 0.5, 0, 0.75, and F = (0 + 0.8 * 0.75) / 1.8, 0.75, 0.
    # All H are equal: u = 1 - 1/e = 0.632121. u F = 0.210707, 0.474090, 0; their line over 0, 1/2, 1 has the slope
    # -0.210707 and the mean 0.228266, which leaves -0.122912, 0.245825, -0.122912. U = 0.438544, 0.122912, 0.688544.
    # The other two have one token with q / p = 3, c = -2: -1 - 2 |-1| is -3; 1 - 2 |1| would be -1, so 0.
    ratio = torch.tensor([[0.5, 1.0, 0.25], [3.0, 1.0, 1.0], [3.0, 1.0, 1.0]])
    clean_BT = torch.full((3, 3), -2.0)
    batch = random_batch(
        groups=1,
        size=3,
        longest=3,
        mask_BT=torch.tensor([[True, True, True], [True, False, False], [True, False, False]]),
        entropy_BT=torch.full((3, 3), 0.7),
        clean_logp_BT=clean_BT,
        perturbed_logp_BT=clean_BT + ratio.log(),
        adv_B=torch.tensor([2.0, -1.0, 1.0]),
    )
    terms = pivot_vaa(batch, UpdateConfig(objective="pivot-vaa", constants={"beta": 1.0}))
    expected = torch.tensor([[2.877088, 2.245824, 3.377088], [-3.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(terms.token_weight_BT, expected)


def test_a_ratio_beyond_all_numbers_stays_one():
    batch = random_batch(clean_logp_BT=torch.full((20, 9), -1e30), perturbed_logp_BT=torch.zeros(20, 9))
    terms = pivot_vaa(batch, UpdateConfig(objective="pivot-vaa", constants={"beta": 1.0}))
    assert terms.advantage.isfinite().all()
    assert terms.advantage.min() < -math.exp(19)
