"""VPPO's variants of its paper's Tables 5, 6 and 7, by hand."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from random_batch import random_batch

from pipelines import vppo
from pipelines.config.schema import UpdateConfig
from pipelines.objectives.vppo import shaping, vppo_both, vppo_grpo, vppo_reward, vppo_soft

# One group of two responses: S = [1, 3] and [2, -]; rewards 1 and 0.
# Mean S: 2 and 2, so alpha is 1 for both.
TWO = {
    "groups": 1,
    "size": 2,
    "longest": 2,
    "mask_BT": torch.tensor([[True, True], [True, False]]),
    "perception_BT": torch.tensor([[1.0, 3.0], [2.0, 0.0]]),
    "dependency_B": torch.tensor([2.0, 2.0]),
    "keep_BT": torch.tensor([[False, True], [True, False]]),
    "reward_B": torch.tensor([1.0, 0.0]),
    "adv_B": torch.tensor([0.5, -0.5]),
}


def test_soft_weights_by_hand():
    # z = [-1, 1]. sigmoid(-1 - c) + sigmoid(1 - c) = 0.8 is, with x = e^c, x^2 - (e + 1/e) x / 4 - 3 / 2 = 0:
    # x = 1.669833, so the second is e / (e + x) = 0.619465, and the first 0.8 less that, 0.180535.
    # A response of one token has z = 0, and sigmoid(-c) = 0.4.
    weights = vppo.soft_weights(TWO["perception_BT"], TWO["mask_BT"], 0.4)
    torch.testing.assert_close(weights, torch.tensor([[0.180535, 0.619465], [0.4, 0.0]]), atol=1e-6, rtol=0)
    terms = vppo_soft(random_batch(**TWO), UpdateConfig())
    expected = torch.tensor([[0.5 * 0.180535, 0.5 * 0.619465], [-0.5 * 0.4, 0.0]])
    torch.testing.assert_close(terms.token_weight_BT, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("fraction", [0.05, 0.4, 0.55, 0.99])
def test_soft_weights_have_the_mean_and_the_order(fraction):
    batch = random_batch(3, longest=200)
    weights = vppo.soft_weights(batch.perception_BT, batch.mask_BT, fraction)
    mean_B = vppo.masked_mean(weights, batch.mask_BT)
    torch.testing.assert_close(mean_B, torch.full_like(mean_B, fraction), atol=1e-6, rtol=0)
    assert bool((weights[~batch.mask_BT] == 0).all())
    assert bool((weights[batch.mask_BT] > 0).all())
    order = batch.perception_BT[1].argsort(stable=True)  # the longest
    assert bool((weights[1][order].diff() >= 0).all())


def test_soft_weights_of_tokens_that_are_alike():
    # 0.1 has no exact float: its mean is off by rounding, which is no reason to tell tokens apart.
    mask_BT = torch.ones(2, 7, dtype=torch.bool)
    weights = vppo.soft_weights(torch.full((2, 7), 0.1), mask_BT, 0.4)
    torch.testing.assert_close(weights, torch.full((2, 7), 0.4), atol=1e-7, rtol=0)
    assert bool((vppo.soft_weights(torch.rand(2, 7), mask_BT, 1.0) == 1).all())
    none = vppo.soft_weights(torch.zeros(1, 7), torch.zeros(1, 7, dtype=torch.bool), 0.4)
    assert bool((none == 0).all())


def test_soft_weights_do_not_look_at_scale_place_or_padding():
    batch = random_batch(1)
    found = vppo.soft_weights(batch.perception_BT, batch.mask_BT, 0.4)
    moved = vppo.soft_weights(1e-3 * batch.perception_BT - 5e-3, batch.mask_BT, 0.4)
    torch.testing.assert_close(moved, found, atol=1e-5, rtol=0)
    more_BT = torch.nn.functional.pad(batch.mask_BT, (0, 40))
    padded = torch.nn.functional.pad(batch.perception_BT, (0, 40), value=math.nan)
    torch.testing.assert_close(vppo.soft_weights(padded, more_BT, 0.4)[:, :9], found, atol=1e-7, rtol=0)


def test_a_response_that_cannot_depend_on_an_image_is_trained_whole():
    batch = random_batch(2)
    blind = ~batch.depends_B
    weights = vppo_soft(batch, UpdateConfig()).weight_BT
    assert bool((weights[blind] == batch.mask_BT[blind].float()).all())
    assert bool((weights[~blind] < 1).all())


def test_shaped_rewards_by_hand():
    # Mean S 1 and 3 and beta_min 0.9: z = [0, 1], mean 1/2, so alpha = [0.9, 1.1]. Rewards 1 and 1 become
    # 0.9 and 1.1: mean 1, deviations of 0.1, unbiased std 0.1 sqrt(2), so advantages of -+1 / sqrt(2).
    # Advantages shaped afterwards would be 0.
    batch = random_batch(**TWO | {"dependency_B": torch.tensor([1.0, 3.0]), "reward_B": torch.ones(2)})
    terms = vppo_reward(batch, UpdateConfig())
    expected = torch.tensor([-1.0, 1.0]) / math.sqrt(2)
    torch.testing.assert_close(terms.advantage, expected, atol=1e-5, rtol=0)
    assert terms.weight_BT is batch.keep_BT
    # Rewards 1 and 0: 0.9 and 0, as far from their mean as 1 and 0 are once divided by the deviation.
    batch = dataclasses.replace(batch, reward_B=torch.tensor([1.0, 0.0]))
    found = vppo_reward(batch, UpdateConfig()).advantage
    torch.testing.assert_close(found, -expected, atol=1e-5, rtol=0)
    # Not divided by it they are not: 0.9 and 0 against 1 and 0.
    raw = vppo_reward(dataclasses.replace(batch, standardized=False), UpdateConfig(surrogate="dr_grpo")).advantage
    torch.testing.assert_close(raw, torch.tensor([0.45, -0.45]))


def test_on_grpo_clipping_and_average_are_its_own():
    batch, settings = random_batch(4), UpdateConfig()
    one, other = vppo_grpo(batch, settings), vppo_both(batch, settings)
    assert (one.clip_low, one.clip_high, one.average) == (0.2, 0.2, "sequence")
    assert (other.clip_low, other.clip_high, other.average) == (0.2, 0.28, "token")
    assert torch.equal(one.advantage, shaping(batch, settings) * batch.adv_B)
    assert torch.equal(one.token_weight_BT, other.token_weight_BT)
