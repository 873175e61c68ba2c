"""VGPO by hand, and where its variants differ."""

from __future__ import annotations

import torch
from random_batch import random_batch

from pipelines.config.schema import UpdateConfig
from pipelines.objectives.vgpo import vgpo

# One group of two responses, of three tokens and of one.
TWO = {
    "groups": 1,
    "size": 2,
    "longest": 3,
    "mask_BT": torch.tensor([[True, True, True], [True, False, False]]),
    "image_similarity_BT": torch.tensor([[0.1, -0.1, 0.3], [0.2, 0.0, 0.0]]),
    "adv_B": torch.tensor([1.0, -1.0]),
}


def weights(variant, **given):
    batch = random_batch(**(TWO | given))
    return vgpo(batch, UpdateConfig(objective="vgpo", variant=variant)).token_weight_BT


def test_the_code_by_hand():
    # The smallest s is -0.1: rho = [0.2, 0, 0.4], [0.3]. From token floor(1.5) = 1 on the highest is the last one:
    # 0.4 * (1 + 0.3 * 2 / 2) = 0.52. w = [5/13, 0, 1], mean 6/13: intra = [12/13, 7/13, 20/13]; of one token
    # w = 0, and intra 1. Sums 18/13 and 0, so 1 and 0 in the group, mean 1/2: inter = 1.5, and 0.5 held at 0.9.
    expected = torch.tensor([[12 / 13, 7 / 13, 20 / 13], [-0.6, 0.0, 0.0]]) * 1.5
    torch.testing.assert_close(weights("code"), expected)
    torch.testing.assert_close(weights(None), expected)  # the first variant


def test_the_paper_by_hand():
    # rho = [1.1, 0.9, 1.3], the last times 1.3: 1.69. w = [20/79, 0, 1], mean 33/79.
    expected = torch.tensor([[66 / 79, 46 / 79, 125 / 79], [-0.6, 0.0, 0.0]]) * 1.5
    torch.testing.assert_close(weights("paper"), expected)


def test_without_an_image_advantages_stay():
    blind = weights("code", has_image_B=torch.tensor([False, False]))
    assert blind.tolist() == [[1.0, 1.0, 1.0], [-1.0, 0.0, 0.0]]


def test_those_without_an_image_move_no_one_else():
    batch = random_batch(1)
    other = torch.where(batch.has_image_B[:, None], batch.image_similarity_BT, -5.0)
    settings = UpdateConfig(objective="vgpo")
    found = vgpo(random_batch(1, image_similarity_BT=other), settings).token_weight_BT
    assert torch.equal(found, vgpo(batch, settings).token_weight_BT)


def test_padding_and_empty_responses():
    batch = random_batch(2)
    settings = UpdateConfig(objective="vgpo")
    noisy = torch.where(batch.mask_BT, batch.image_similarity_BT, torch.nan)
    found = vgpo(random_batch(2, image_similarity_BT=noisy), settings).token_weight_BT
    assert torch.equal(found, vgpo(batch, settings).token_weight_BT)
    empty = vgpo(random_batch(2, mask_BT=torch.zeros_like(batch.mask_BT)), settings).token_weight_BT
    assert not empty.any()
