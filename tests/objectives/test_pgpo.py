"""PGPO by hand, in both forms."""

from __future__ import annotations

import math

import pytest
import torch
from random_batch import random_batch

from pipelines.config.schema import UpdateConfig
from pipelines.objectives.pgpo import pgpo


def batch():
    """Three tokens whose I is 0, 0.2 and 1, and two that depend on the image alike."""
    return random_batch(
        groups=1,
        size=2,
        longest=3,
        mask_BT=torch.tensor([[True, True, True], [True, True, False]]),
        perception_BT=torch.tensor([[0.0, math.exp(0.2) - 1, math.exp(1.0) - 1], [0.3, 0.3, 0.0]]),
        adv_B=torch.tensor([2.0, -1.0]),
    )


# paper: w = 0, 0.2 / 0.4, 1 + 2 (1 - 0.4) / (1 - 0.4) = 0, 0.5, 3, times 3 / 3.5.
# code: the threshold is the I of place floor(0.4 * 3) = 1 in rising order, 0.2: w = 0, but at least 0.1;
# 1 + 2 (0.2 - 0.2) / 0.8; 1 + 2 (1 - 0.2) / 0.8. Nothing is scaled.
@pytest.mark.parametrize(
    ("variant", "weights"), [(None, (0, 3 / 7, 18 / 7)), ("paper", (0, 3 / 7, 18 / 7)), ("code", (0.1, 1, 3))]
)
def test_paper_and_code_by_hand(variant, weights):
    terms = pgpo(batch(), UpdateConfig(objective="pgpo", variant=variant))
    expected = torch.tensor([[2.0 * w for w in weights], [-1.0, -1.0, 0.0]])
    torch.testing.assert_close(terms.advantage, expected)
    torch.testing.assert_close(terms.token_weight_BT, expected)


def test_the_constants_are_those_of_the_settings():
    # tau 0.1, beta 1: w = 0, 1 + 0.1 / 0.9, 2: their sum is 28 / 9.
    terms = pgpo(batch(), UpdateConfig(objective="pgpo", constants={"tau": 0.1, "beta": 1}))
    torch.testing.assert_close(terms.advantage[0], 2 * torch.tensor([0.0, 10 / 9, 2.0]) * 27 / 28)
