"""PEPO by hand, and over the course of training."""

from __future__ import annotations

import math

import pytest
import torch
from random_batch import random_batch

from pipelines.config import settings
from pipelines.config.schema import UpdateConfig
from pipelines.errors import UserError
from pipelines.objectives.pepo import pepo
from pipelines.objectives.table import check

TWO = {
    "groups": 1,
    "size": 2,
    "longest": 2,
    "mask_BT": torch.tensor([[True, True], [True, False]]),
    "layer_similarity_BT": torch.tensor([[0.9, 0.0], [0.4, 0.0]]),
    "entropy_BT": torch.tensor([[0.5, 0.5], [0.1, 0.0]]),
    "adv_B": torch.tensor([1.0, -2.0]),
}


def weights(updates, **given):
    update = UpdateConfig(objective="pepo", constants={"steps": 4})
    return pepo(random_batch(**(TWO | {"updates": updates} | given)), update).token_weight_BT


def test_by_hand():
    # x = [1 + 0, 0 + 0], mean 1/2: g of the first = 1 + 0.05 tanh(0.5) = 1.0231059, so the scores are 0.51155293
    # and 0: w = 2 [0.62516996, 0.37483004]. A response of one token has w = 1.
    w = 2 / (1 + math.exp(-0.9 * (1 + 0.05 * math.tanh(0.5)) / 1.8))
    assert w == pytest.approx(2 * 0.62516996, abs=1e-6)
    torch.testing.assert_close(weights(4), torch.tensor([[w, 2 - w], [-2.0, 0.0]]))
    torch.testing.assert_close(weights(1), torch.tensor([[0.75 + 0.25 * w, 1.25 - 0.25 * w], [-2.0, 0.0]]))


def test_it_comes_in_over_the_steps():
    assert weights(0).tolist() == [[1.0, 1.0], [-2.0, 0.0]]  # DAPO's
    assert torch.equal(weights(4), weights(400))
    assert not torch.equal(weights(3), weights(4))


def test_without_an_image_and_without_tokens():
    blind = weights(4, layer_similarity_BT=torch.zeros(2, 2))
    torch.testing.assert_close(blind, torch.tensor([[1.0, 1.0], [-2.0, 0.0]]))
    assert not weights(4, mask_BT=torch.zeros(2, 2, dtype=torch.bool)).any()


def test_its_steps_have_to_be_given():
    with pytest.raises(UserError, match="steps"):
        check(settings.load(None, ["update.objective=pepo"]))
    with pytest.raises(UserError, match="steps"):
        check(settings.load(None, ["update.objective=pepo", "update.constants={steps: 0}"]))
