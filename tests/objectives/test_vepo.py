"""VEPO by hand."""

from __future__ import annotations

import torch
from random_batch import random_batch

from pipelines.config.schema import UpdateConfig
from pipelines.objectives.vepo import vepo


def batch(**given):
    return random_batch(
        groups=1,
        size=2,
        longest=3,
        mask_BT=torch.tensor([[True, True, True], [True, False, False]]),
        jsd_BT=torch.tensor([[0.0, 0.2, 0.4], [0.1, 0.0, 0.0]]),
        entropy_BT=torch.tensor([[1.0, 3.0, 1.7], [0.5, 0.0, 0.0]]),
        perturbed_entropy_BT=torch.tensor([[1.0, 3.0, 0.7], [0.5, 0.0, 0.0]]),
        adv_B=torch.tensor([1.0, -1.0]),
        **given,
    )


def test_it_by_hand():
    # J: 0, 0.5, 1; differences 0, 0, 1; H: 0, 1, 0.35. s = 0, 1 - 0.5^0.7 = 0.384, 1 * 0.35: the second is kept
    # (with 0.3 and 0.7 exchanged, 1 - 0.5^0.3 = 0.188, it would be the third). Of four tokens two are kept, so the
    # mean over these is twice the sum divided by all.
    terms = vepo(batch(), UpdateConfig(objective="vepo", clip_low=0.1, loss_average="sequence"))
    torch.testing.assert_close(terms.token_weight_BT, torch.tensor([[0.0, 2.0, 0.0], [-2.0, 0.0, 0.0]]))
    assert (terms.clip_low, terms.clip_high, terms.average) == (0.1, 0.1, "token")


def test_the_mean_is_over_what_the_loss_counts():
    # Without the first response one token is left, and it is kept.
    cut = batch(truncated_B=torch.tensor([True, False]))
    terms = vepo(cut, UpdateConfig(objective="vepo", mask_truncated=True))
    assert terms.weight_BT[1, 0] == 1.0
    # With it, as above.
    assert vepo(cut, UpdateConfig(objective="vepo")).weight_BT[1, 0] == 2.0
