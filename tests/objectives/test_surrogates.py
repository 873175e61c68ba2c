"""Surrogates: by hand, against loops with autograd, on-policy, in the trainer, and what is refused.

Two tokens of one response by hand: old log-probs 0 (a density's; no matter), ratios 1.1 and 1.5, A = 2; and the same
with A = -2.
"""

from __future__ import annotations

import math

import applied
import pytest
import torch
from random_batch import random_batch

from pipelines import vppo
from pipelines.checks import check_parts
from pipelines.config import settings as config_files
from pipelines.config.schema import UpdateConfig
from pipelines.errors import UserError
from pipelines.objectives.batch import Terms
from pipelines.objectives.surrogates import SURROGATES
from pipelines.objectives.table import SURROGATE_AVERAGES, check_read
from pipelines.update.torch_engine import TorchTrainer

NAMES = tuple(SURROGATES)


def computed(name, logp_BT, old_BT, mask_BT, adv, **other):
    """Losses of tokens, their gradients by their own log-prob, and what was clipped."""
    logp_BT = logp_BT.clone().requires_grad_()
    settings = UpdateConfig(surrogate=name, **other)
    terms = Terms(adv, mask_BT, settings.clip_low, settings.clip_high, settings.loss_average)
    loss_BT, clipping = SURROGATES[name](logp_BT, old_BT, mask_BT, terms, settings)
    (gradient_BT,) = torch.autograd.grad(loss_BT[mask_BT].sum(), logp_BT)
    return loss_BT.detach(), gradient_BT, clipping


# --- by hand --------------------------------------------------------------------------------------

R, S = (1.1, 1.5), math.sqrt(1.1 * 1.5)
HAND = [
    # min(r A, clip(r) A) with clip to [0.8, 1.28]; a gradient of r A where it is not clipped. With A < 0 a
    # ratio above is not, and 1.5 is below the dual clip of 3.
    ("ppo", 2.0, (-2.2, -2.56), (-2.2, 0.0)),
    ("ppo", -2.0, (2.2, 3.0), (2.2, 3.0)),
    ("dr_grpo", 2.0, (-2.2, -2.56), (-2.2, 0.0)),
    # s = sqrt(1.1 1.5) = 1.2845 for both, far above 1.0004: clipped with A > 0, and not with A < 0.
    ("gspo", 2.0, (-2 * 1.0004, -2 * 1.0004), (0.0, 0.0)),
    ("gspo", -2.0, (2 * S, 2 * S), (2 * S, 2 * S)),
    # -min(r, 1.28) A log pi; log pi = log r. Its gradient -min(r, 1.28) A is never 0, whatever the sign.
    ("cispo", 2.0, (-2.2 * math.log(1.1), -2.56 * math.log(1.5)), (-2.2, -2.56)),
    ("cispo", -2.0, (2.2 * math.log(1.1), 2.56 * math.log(1.5)), (2.2, 2.56)),
    # -4 / tau sigmoid(tau (r - 1)) A. With tau 1: sigmoid(0.1) = 0.524979, sigmoid(0.5) = 0.622459.
    # Gradient -4 p (1 - p) r A: 4 p (1 - p) = 0.997504 and 0.940015.
    ("sapo", 2.0, (-8 * 0.524979, -8 * 0.622459), (-2.2 * 0.997504, -3.0 * 0.940015)),
    # With tau 1.05: sigmoid(0.105) = 0.526226, sigmoid(0.525) = 0.628316; 4 p (1 - p) = 0.997249, 0.934139.
    ("sapo", -2.0, (8 / 1.05 * 0.526226, 8 / 1.05 * 0.628316), (2.2 * 0.997249, 3.0 * 0.934139)),
]


@pytest.mark.parametrize(("name", "adv", "losses", "gradients"), HAND)
def test_two_tokens_by_hand(name, adv, losses, gradients):
    logp_BT, mask_BT = torch.tensor([R]).log(), torch.ones(1, 2, dtype=torch.bool)
    for advantage in (torch.tensor([adv]), torch.full((1, 2), adv)):
        loss_BT, gradient_BT, _ = computed(name, logp_BT, torch.zeros(1, 2), mask_BT, advantage)
        torch.testing.assert_close(loss_BT, torch.tensor([losses]), atol=3e-6, rtol=0)
        torch.testing.assert_close(gradient_BT, torch.tensor([gradients]), atol=6e-6, rtol=0)


def test_what_is_clipped_is_told():
    logp_BT, mask_BT = torch.tensor([R]).log(), torch.ones(1, 2, dtype=torch.bool)
    up = {}
    for name in NAMES:
        _, _, clipping = computed(name, logp_BT, torch.zeros(1, 2), mask_BT, torch.tensor([2.0]))
        up[name] = clipping.high_BT.tolist()[0]
        assert not clipping.low_BT.any()
        assert not clipping.dual_BT.any()
        expected = [S, S] if name == "gspo" else list(R)
        torch.testing.assert_close(clipping.ratio_BT, torch.tensor([expected]))
    below = [False, True]
    assert up == {"ppo": below, "gspo": [True, True], "cispo": below, "dr_grpo": below, "sapo": [False, False]}


def test_a_sequences_ratio_is_not_rounded_away():
    # Its widths are 3e-4 and 4e-4; between neighbours of 30 float32 has 2e-6.
    draw = torch.Generator().manual_seed(0)
    logp_BT = -30 - torch.rand(8, 5, generator=draw)
    old_BT, mask_BT = logp_BT - 5e-4 * torch.rand(8, 5, generator=draw), torch.ones(8, 5, dtype=torch.bool)
    _, _, clipping = computed("gspo", logp_BT, old_BT, mask_BT, torch.ones(8))
    expected_B = (logp_BT.double() - old_BT.double()).mean(-1).exp()
    assert (clipping.ratio_BT - expected_B[:, None]).abs().max() < 2e-7


# --- against loops --------------------------------------------------------------------------------


def naive_token(name, logp, old, adv, sequence):
    """The objective (not the loss) of a token with a log-prob that has a gradient."""
    r = torch.exp(logp - old)
    if name in ("ppo", "dr_grpo"):
        least = torch.minimum(r * adv, r.clamp(0.8, 1.28) * adv)
        return torch.maximum(least, 3 * adv) if adv < 0 else least
    if name == "gspo":
        s = sequence * torch.exp(logp - logp.detach())
        return torch.minimum(s * adv, s.clamp(1 - 3e-4, 1 + 4e-4) * adv)
    if name == "cispo":
        return min(r.item(), 1.28) * adv * logp
    tau = 1.0 if adv > 0 else 1.05
    return 4 / tau / (1 + torch.exp(-tau * (r - 1))) * adv


def naive_loss(name, logp_BT, batch, adv_BT, weight_BT, average):
    lengths = batch.mask_BT.sum(-1).tolist()
    total = torch.zeros((), dtype=torch.float64)
    for b, length in enumerate(lengths):
        gaps = [logp_BT[b, t].item() - batch.logp_BT[b, t].item() for t in range(length)]
        sequence = math.exp(sum(gaps) / length)
        share = {
            "token": sum(lengths),
            "sequence": length * len(lengths),
            "max_length": len(lengths) * batch.max_tokens,
        }
        for t in range(length):
            token = naive_token(name, logp_BT[b, t], batch.logp_BT[b, t], adv_BT[b, t], sequence)
            total = total - weight_BT[b, t] * token / share[average]
    return total


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("by_token", [False, True])
@pytest.mark.parametrize("spread", [0.5, 4e-4, 2.0])
def test_value_and_gradient_are_the_naive_ones(name, by_token, spread):
    batch = random_batch(5, groups=3)
    draw = torch.Generator().manual_seed(1)
    shape = batch.mask_BT.shape
    logp_BT = batch.logp_BT + torch.where(batch.mask_BT, spread * torch.randn(shape, generator=draw), 0.0)
    weight_BT = torch.where(batch.mask_BT, torch.rand(shape, generator=draw).round(decimals=1), 0.0)
    adv_BT = batch.adv_B[:, None].expand(shape)
    if by_token:
        adv_BT = adv_BT + torch.randn(shape, generator=draw)
    average = SURROGATE_AVERAGES.get(name, "token")

    settings = UpdateConfig(surrogate=name)
    mine_BT = logp_BT.clone().requires_grad_()
    terms = Terms(adv_BT if by_token else batch.adv_B, weight_BT, 0.2, 0.28, average)
    loss_BT, _ = SURROGATES[name](mine_BT, batch.logp_BT, batch.mask_BT, terms, settings)
    denominator = vppo.loss_denominator(batch.mask_BT, average, batch.max_tokens)
    loss = vppo.average_loss(loss_BT, weight_BT, batch.mask_BT, average, denominator)
    (found_BT,) = torch.autograd.grad(loss, mine_BT)

    theirs_BT = logp_BT.double().requires_grad_()
    expected = naive_loss(name, theirs_BT, batch, adv_BT.double(), weight_BT.double(), average)
    (expected_BT,) = torch.autograd.grad(expected, theirs_BT)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)
    torch.testing.assert_close(found_BT.double(), expected_BT, atol=1e-6, rtol=1e-5)
    assert bool((found_BT[~batch.mask_BT] == 0).all())


def test_gspo_of_equal_weights_is_the_clipped_ratio_of_sequences():
    # Not its token form: 1/B sum of min(s A, clip(s) A), differentiated through s itself.
    batch = random_batch(6, groups=3)
    draw = torch.Generator().manual_seed(2)
    noise_BT = 1e-3 * torch.randn(batch.mask_BT.shape, generator=draw)
    logp_BT = (batch.logp_BT + torch.where(batch.mask_BT, noise_BT, 0.0)).double()
    theirs_BT = logp_BT.clone().requires_grad_()
    s_B = vppo.masked_mean(theirs_BT - batch.logp_BT, batch.mask_BT).exp()
    adv_B = batch.adv_B.double()
    expected = -torch.minimum(s_B * adv_B, s_B.clamp(1 - 3e-4, 1 + 4e-4) * adv_B).mean()
    mine_BT = logp_BT.clone().requires_grad_()
    terms = Terms(adv_B, batch.mask_BT, 0.2, 0.28, "sequence")
    loss_BT, clipping = SURROGATES["gspo"](
        mine_BT, batch.logp_BT.double(), batch.mask_BT, terms, UpdateConfig(surrogate="gspo")
    )
    found = vppo.average_loss(loss_BT, batch.mask_BT, batch.mask_BT, "sequence")
    assert found.item() == pytest.approx(expected.item(), rel=1e-9)
    both = [torch.autograd.grad(x, y)[0] for x, y in ((found, mine_BT), (expected, theirs_BT))]
    torch.testing.assert_close(*both, atol=1e-12, rtol=1e-9)
    clipped_B = (clipping.low_BT | clipping.high_BT).any(-1)
    assert 0 < clipped_B.sum() < len(clipped_B)  # both happen


@pytest.mark.parametrize("name", NAMES)
def test_on_policy_it_is_the_plain_policy_gradient(name):
    batch = random_batch(7)
    _, gradient_BT, clipping = computed(name, batch.logp_BT, batch.logp_BT, batch.mask_BT, batch.adv_B)
    torch.testing.assert_close(gradient_BT, torch.where(batch.mask_BT, -batch.adv_B[:, None], 0.0))
    assert bool((clipping.ratio_BT[batch.mask_BT] == 1).all())


@pytest.mark.parametrize("name", NAMES)
def test_ratios_beyond_all_sense_stay_finite(name):
    old_BT, mask_BT = torch.tensor([[-200.0, 0.0], [0.0, -200.0]]), torch.ones(2, 2, dtype=torch.bool)
    for adv in (1.0, -1.0):
        loss_BT, gradient_BT, _ = computed(name, -200 - old_BT, old_BT, mask_BT, torch.full((2,), adv))
        assert bool(loss_BT.isfinite().all())
        assert bool(gradient_BT.isfinite().all())


# --- in the trainer -------------------------------------------------------------------------------


@pytest.fixture
def train(fresh_policy, table, rollouts, scores, configure):
    """``train(setting, ...)``: the gradients of one update on the tiny model, and its metrics."""

    def run(*overrides):
        config = configure("update.max_grad_norm=1e9", *overrides)
        trainer = TorchTrainer(fresh_policy(config), config)
        found = applied.gradients(trainer)
        metrics = trainer.update(rollouts, scores, table)
        return found, metrics

    return run


def near(one, other):
    size = max(gradient.abs().max() for gradient in other.values())
    assert all((one[n] - other[n]).abs().max() <= 1e-5 * size for n in other)


def test_dr_grpo_by_hand(train, rollouts):
    # Rewards 1, 0, 0, 1: advantages of +-1/2, undivided. At ratio 1 the loss is -1/2 (right - wrong tokens),
    # over 16 responses of at most 48 tokens.
    _, metrics = train("update.objective=dapo", "update.surrogate=dr_grpo")
    signed = sum(len(i) * s for g in rollouts for i, s in zip(g.response_ids, (1, -1, -1, 1), strict=True))
    assert metrics["loss"] == pytest.approx(-0.5 * signed / (16 * 48), rel=1e-5)
    # 8 of each sign: the unbiased deviation is 1/2 sqrt(16 / 15).
    assert metrics["advantage_std"] == pytest.approx(0.5 * math.sqrt(16 / 15), rel=1e-6)


def test_on_policy_all_train_alike_with_soft_weights(train):
    objective = "update.objective=vppo-soft"
    by_token, _ = train(objective)
    by_sequence, _ = train(objective, "update.loss_average=sequence")
    near(train(objective, "update.surrogate=cispo")[0], by_token)
    near(train(objective, "update.surrogate=gspo")[0], by_sequence)
    near(train(objective, "update.surrogate=sapo")[0], by_sequence)
    with pytest.raises(AssertionError):
        near(by_token, by_sequence)


# --- what has no meaning --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (("gspo", "clip_high=0.3"), "its width is update.constants.gspo_clip_high"),
        (("gspo", "clip_low=0.1"), "its width is update.constants.gspo_clip_low"),
        (("gspo", "dual_clip=2"), "it has none"),
        (("gspo", "tis_cap=2"), "one ratio for a response"),
        (("cispo", "clip_low=0.1"), "no lower bound"),
        (("cispo", "dual_clip=2"), "whatever the sign"),
        (("dr_grpo", "loss_average=sequence"), "longest length"),
        (("sapo", "clip_high=0.3"), "a gate stands in place of clipping"),
        (("sapo", "objective=grpo"), "brings its own clipping or averaging"),
        (("cispo", "objective=vppo-grpo"), "brings its own clipping or averaging"),
        (("gspo", "constants={sapo_tau_positive: 1}"), "no such constant"),
        (("sapo", "constants={sapo_tau_positive: 0}"), "is not in (0, inf)"),
    ],
)
def test_it_is_refused_by_name(asked, expected):
    name, setting = asked
    config = config_files.load(None, [f"update.surrogate={name}", f"update.{setting}"])

    def checked() -> None:
        check_parts(config)
        check_read(config)

    with pytest.raises(UserError) as caught:
        checked()
    told = str(caught.value)
    assert expected in told
    assert name in told or "constants" in told


@pytest.mark.parametrize("name", NAMES)
def test_in_both_modes_it_is_taken(name):
    for mode in ("exact", "published"):
        check_parts(config_files.load(None, [f"mode={mode}", f"update.surrogate={name}"]))
