"""PAPO's terms by hand, and where its variants differ."""

from __future__ import annotations

import math

import pytest
import torch
from random_batch import random_batch

from pipelines.config import settings
from pipelines.config.schema import UpdateConfig
from pipelines.objectives.batch import Reading
from pipelines.objectives.dapo import dapo
from pipelines.objectives.papo import papo
from pipelines.objectives.table import PERTURBED, check, passes, stored

MASK = torch.tensor([[True, True], [True, False]])


def extra(variant, see=(True, True), **constants):
    """(terms, the terms' own) of two responses of two tokens and one; q of the scores is 1/2, 1/4 and 1/8."""
    logq_BT = torch.tensor([[math.log(1 / 2), math.log(1 / 4)], [math.log(1 / 8), 0.0]])
    batch = random_batch(
        groups=1, size=2, longest=2, mask_BT=MASK, perturbed_logp_BT=logq_BT, has_image_B=torch.tensor(see)
    )
    reading = Reading(
        rows_B=torch.tensor([1, 0]),  # the other way round
        mask_BT=MASK.flip(0),
        logp_BT=torch.tensor([[math.log(1 / 8), 0.0], [math.log(1 / 4), math.log(1 / 4)]]).requires_grad_(),
        entropy_BT=torch.tensor([[1.0, 0.0], [2.0, 3.0]]).requires_grad_(),
        perturbed_logp_BT=torch.tensor([[-1.0, 0.0], [-1.0, -1.0]]).requires_grad_(),
        perturbed_entropy_BT=torch.tensor([[0.5, 0.0], [0.25, 0.125]]).requires_grad_(),
        kl_BT=torch.tensor([[0.1, 0.0], [0.2, 0.3]]).requires_grad_(),
    )
    update = UpdateConfig(objective="papo", variant=variant, constants=constants)
    terms = papo(batch, update)
    assert torch.equal(terms.token_weight_BT, dapo(batch, update).token_weight_BT)
    return terms.extra(reading), reading


def test_the_code_by_hand():
    # d = log q - log p = 0; log 2, 0: k3 = 0; 2 - log 2 - 1, 0. Entropies: -log p - log q = 6 log 2; 3 log 2, 4 log 2.
    found, reading = extra("code")
    k3 = 1 - math.log(2)
    expected = torch.tensor([[0.0, 0.0], [k3, 0.0]])
    torch.testing.assert_close(found["perception_loss"] * reading.mask_BT, -0.01 * expected)
    expected = math.log(2) * torch.tensor([[6.0, 0.0], [3.0, 4.0]])
    torch.testing.assert_close(found["double_entropy_loss"] * reading.mask_BT, 0.03 * expected)
    # d k3 / d log p = 1 - e^d: -1 where q is twice p; the entropy's is -1, and q has none.
    sum((x * reading.mask_BT).sum() for x in found.values()).backward()
    torch.testing.assert_close(reading.logp_BT.grad, torch.tensor([[-0.03, 0.0], [0.01 - 0.03, -0.03]]))
    assert reading.perturbed_logp_BT.grad is None


def test_exact_by_hand():
    found, reading = extra("exact", gamma=0.5, eta=2.0)
    torch.testing.assert_close(found["perception_loss"], torch.tensor([[-0.05, 0.0], [-0.1, -0.15]]))
    torch.testing.assert_close(found["double_entropy_loss"], torch.tensor([[3.0, 0.0], [4.5, 6.25]]))
    sum(x.sum() for x in found.values()).backward()
    assert reading.kl_BT.grad.unique().tolist() == [-0.5]
    assert reading.entropy_BT.grad.unique().tolist() == reading.perturbed_entropy_BT.grad.unique().tolist() == [2.0]
    assert reading.logp_BT.grad is None


def test_without_an_image_there_is_no_divergence():
    found, _ = extra("code", see=(False, True))
    assert found["perception_loss"][1].tolist() == [0.0, 0.0]  # the first response
    found, _ = extra(None, see=(True, False))
    assert found["perception_loss"][1, 0] < 0  # by default the code


@pytest.mark.parametrize(("variant", "stores", "needed"), [("code", "views", set()), ("exact", "policy", {PERTURBED})])
def test_a_variant_takes_what_it_needs_and_no_more(variant, stores, needed):
    config = settings.load(None, ["update.objective=papo", f"update.variant={variant}"])
    check(config)
    assert stored(config) == stores
    assert passes(papo, config.update) == needed
