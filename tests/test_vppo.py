"""pipelines/vppo.py: every number below is derived by hand in the comment beside it."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from pipelines import vppo

# One shape of response lengths, used where only the mask matters: 3 tokens and 1 token of 4.
MASK = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])


def close(actual, expected, tolerance=1e-6):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), atol=tolerance, rtol=tolerance)


@st.composite
def batches(draw):
    """(scores_BT, mask_BT): up to 6 responses of 1..9 tokens, with ties and NaN as padding."""
    lengths = draw(st.lists(st.integers(1, 9), min_size=1, max_size=6))
    width = max(lengths) + draw(st.integers(0, 2))
    seed = draw(st.integers(0, 10**6))
    rng = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 5, (len(lengths), width), generator=rng).double() / 4
    mask = torch.arange(width) < torch.tensor(lengths).unsqueeze(1)
    return scores.masked_fill(~mask, math.nan), mask


# --- means ---------------------------------------------------------------------------------------


def test_masked_mean_by_hand():
    # (1 + 2 + 6) / 3 = 3; 5 / 1 = 5. What is padding, here NaN and inf, does not matter.
    x = torch.tensor([[1.0, 2.0, 6.0, math.nan], [5.0, math.inf, 7.0, 7.0]])
    close(vppo.masked_mean(x, MASK), [3.0, 5.0])


def test_masked_mean_of_an_empty_response_is_zero():
    close(vppo.masked_mean(torch.ones(1, 2), torch.zeros(1, 2)), [0.0])


def test_masked_mean_sums_half_precision_in_float32():
    # In bfloat16 a running sum of ones stops at 256.
    ones = torch.ones(1, 1000, dtype=torch.bfloat16)
    mean = vppo.masked_mean(ones, ones)
    assert mean.dtype == torch.float32
    close(mean, [1.0])


def test_trajectory_dependency_by_hand():
    # (0.5 + 0.0 + 1.0) / 3 = 0.5; 0.2 / 1.
    perception = torch.tensor([[0.5, 0.0, 1.0, 9.0], [0.2, 9.0, 9.0, 9.0]])
    close(vppo.trajectory_dependency(perception, MASK), [0.5, 0.2])


# --- k3 ------------------------------------------------------------------------------------------


def test_k3_by_hand():
    # d = log q - log p: 0 -> 0; log 2 -> 2 - log 2 - 1; -log 2 -> 1/2 + log 2 - 1.
    log2 = math.log(2)
    logp_other = torch.tensor([-1.0, -1.0 + log2, -1.0 - log2])
    close(vppo.k3(torch.full((3,), -1.0), logp_other), [0.0, 1 - log2, log2 - 0.5])


def test_k3_saturates_early_upwards_and_late_downwards():
    # e^2.6 - 3.6 = 9.8637, e^2.62 - 3.62 = 10.1157 -> 10.
    # e^-10 + 9 = 9.00005, e^-11 + 10 = 10.00002 -> 10. Beyond +-20, d itself is clamped.
    d = torch.tensor([2.6, 2.62, -10.0, -11.0, 100.0, -100.0])
    close(vppo.k3(torch.zeros(6), d), [9.863738, 10.0, 9.000045, 10.0, 10.0, 10.0], 1e-5)


def test_k3_ranks_a_token_the_image_argues_against_first():
    # The image makes the first token e^2 times less likely, the second e^2 times more likely:
    # d = +2 gives e^2 - 3 = 4.389, d = -2 gives e^-2 + 1 = 1.135.
    close(vppo.k3(torch.zeros(2), torch.tensor([2.0, -2.0])), [4.389056, 1.135335])


# --- shaping -------------------------------------------------------------------------------------


def test_shaping_weights_by_hand():
    # z = (0, 1/4, 1); mean 5/12; beta_max = 0.9 + 0.1 * 12/5 = 1.14;
    # alpha = 0.9 + 0.24 z = (0.9, 0.96, 1.14); their mean is 3 / 3 = 1.
    close(vppo.shaping_weights(torch.tensor([1.0, 2.0, 5.0])), [0.9, 0.96, 1.14])


def test_shaping_weights_with_another_beta_min():
    # z = (0, 1), mean 1/2, beta_max = 0.5 + 0.5 * 2 = 1.5.
    close(vppo.shaping_weights(torch.tensor([3.0, 7.0]), beta_min=0.5), [0.5, 1.5])


def test_shaping_weights_with_a_fixed_beta_max():
    # z = (0, 1/4, 1); alpha = 0.8 + 0.4 z, whatever the mean of z is (paper Table 3: .8/1.2).
    dependency = torch.tensor([1.0, 2.0, 5.0])
    close(vppo.shaping_weights(dependency, 0.8, 1.2), [0.8, 0.9, 1.2])
    close(vppo.shaping_weights_from(dependency, 1.0, 5.0, 0.0, 0.8, 1.2), [0.8, 0.9, 1.2])
    each = torch.tensor([0, 1, 2])  # micro-batches of one do not count
    one = torch.zeros(3, dtype=torch.long)
    close(vppo.shaping_weights_published(dependency, one, each, 0.8, 1.2), [0.8, 0.9, 1.2])
    close(vppo.shaping_weights(torch.tensor([0.3, 0.3]), 0.8, 1.2), [1.0, 1.0])


@pytest.mark.parametrize("dependency", [[0.3], [0.3, 0.3], [0.0, 9e-7]])
def test_shaping_weights_are_one_where_nothing_differs(dependency):
    close(vppo.shaping_weights(torch.tensor(dependency)), [1.0] * len(dependency))


def test_normalized_dependency_by_hand():
    # (2 - 1) / (5 - 1) = 1/4; outside the range it is held at its ends.
    z = vppo.normalized_dependency(torch.tensor([2.0, 0.0, 6.0]), 1.0, 5.0)
    close(z, [0.25, 0.0, 1.0])


def test_shaping_weights_from_other_ranks_statistics():
    # This rank holds (1, 2) of the batch (1, 2, 5) above, and gets its weights.
    z = vppo.normalized_dependency(torch.tensor([1.0, 2.0, 5.0]), 1.0, 5.0)
    alpha = vppo.shaping_weights_from(torch.tensor([1.0, 2.0]), 1.0, 5.0, z.mean())
    close(alpha, [0.9, 0.96])


def test_shaping_weights_from_a_mean_of_zero_are_beta_min():
    close(vppo.shaping_weights_from(torch.tensor([1.0]), 1.0, 5.0, 0.0), [0.9])


def test_shaping_weights_published_by_hand():
    # Mini-batch 0 holds (1, 2, 5, 3): range 1..5, z = (0, 1/4, 1, 1/2).
    #   Micro-batch 0 (1, 2): mean z = 1/8; alpha = 0.9 + 0.1 * 8 z = (0.9, 1.1).
    #   Micro-batch 1 (5, 3): mean z = 3/4; alpha = 0.9 + 0.1 * 4/3 z = (1.033333, 0.966667).
    # Mini-batch 1 holds (10, 20): z = (0, 1), in micro-batches of one.
    #   (10): mean z = 0; alpha = 0.9.     (20): mean z = 1; alpha = 1.
    alpha = vppo.shaping_weights_published(
        torch.tensor([1.0, 2.0, 5.0, 3.0, 10.0, 20.0]),
        torch.tensor([0, 0, 0, 0, 1, 1]),
        torch.tensor([0, 0, 1, 1, 0, 1]),
    )
    close(alpha, [0.9, 1.1, 1.033333, 0.966667, 0.9, 1.0], 1e-5)


def test_shaping_weights_published_with_one_batch_is_the_papers():
    dependency = torch.tensor([0.1, 0.7, 0.2, 0.3])
    one = torch.zeros(4, dtype=torch.long)
    close(vppo.shaping_weights_published(dependency, one, one), vppo.shaping_weights(dependency).tolist())


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 10, width=32), min_size=1, max_size=20), st.floats(0.0, 0.99))
def test_mean_shaping_weight_is_one(dependency, beta_min):
    alpha = vppo.shaping_weights(torch.tensor(dependency, dtype=torch.float64), beta_min)
    close(alpha.mean(), 1.0, 1e-9)
    assert (alpha >= beta_min - 1e-9).all()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 10, width=32), min_size=2, max_size=12), st.randoms(use_true_random=False))
def test_permuting_the_batch_permutes_the_weights(dependency, random):
    order = list(range(len(dependency)))
    random.shuffle(order)
    dependency = torch.tensor(dependency, dtype=torch.float64)
    close(vppo.shaping_weights(dependency[order]), vppo.shaping_weights(dependency)[order].tolist())


# --- filtering -----------------------------------------------------------------------------------


def test_keep_top_fraction_by_hand():
    # Length 3: ceil(0.4 * 3 = 1.2) = 2 tokens, those of 0.9 and 0.5. Length 1: ceil(0.4) = 1.
    # The 9s are padding.
    perception = torch.tensor([[0.5, 0.1, 0.9, 9.0], [0.0, 9.0, 9.0, 9.0]])
    keep = vppo.keep_top_fraction(perception, MASK, 0.4)
    assert keep.tolist() == [[True, False, True, False], [True, False, False, False]]


def test_keep_top_fraction_breaks_ties_by_position():
    keep = vppo.keep_top_fraction(torch.tensor([[1.0, 2.0, 1.0, 1.0]]), torch.ones(1, 4), 0.75)
    assert keep.tolist() == [[True, True, True, False]]


def test_keep_top_fraction_of_signed_scores():
    # The highest, not the largest in size: -1 goes before -3.
    keep = vppo.keep_top_fraction(torch.tensor([[-3.0, -1.0]]), torch.ones(1, 2), 0.5)
    assert keep.tolist() == [[False, True]]


def test_keep_top_fraction_takes_a_known_mask_as_scores():
    known = torch.tensor([[False, True, False, True]])
    assert vppo.keep_top_fraction(known, torch.ones(1, 4), 0.5).tolist() == known.tolist()


@pytest.mark.parametrize(
    ("fraction", "length", "count"),
    [
        (0.4, 5, 2),
        (0.55, 100, 55),  # 0.55 * 100 is 55.00000000000001 in floats
        (0.07, 100, 7),  # 7.000000000000001
        (0.4, 8192, 3277),  # 3276.8
        (1 / 3, 3, 1),
        (2 / 3, 3, 2),
        (1.0, 7, 7),
        (1e-9, 7, 1),
    ],
)
def test_keep_top_fraction_counts_exactly(fraction, length, count):
    keep = vppo.keep_top_fraction(torch.zeros(1, length), torch.ones(1, length), fraction)
    assert keep.sum() == count


def test_keep_top_fraction_of_an_empty_response_is_empty():
    assert not vppo.keep_top_fraction(torch.ones(1, 3), torch.zeros(1, 3), 0.4).any()


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.1])
def test_keep_top_fraction_rejects_a_fraction_that_is_none(fraction):
    with pytest.raises(AssertionError, match="fraction"):
        vppo.keep_top_fraction(torch.ones(1, 3), torch.ones(1, 3), fraction)


def test_keep_top_fraction_rejects_nan_but_not_in_padding():
    nan = torch.tensor([[0.0, math.nan]])
    with pytest.raises(AssertionError, match="NaN"):
        vppo.keep_top_fraction(nan, torch.ones(1, 2), 0.5)
    assert vppo.keep_top_fraction(nan, torch.tensor([[1, 0]]), 0.5).tolist() == [[True, False]]


@settings(max_examples=60, deadline=None)
@given(batches(), st.sampled_from([0.1, 0.25, 0.4, 0.5, 1.0]))
def test_filter_keeps_the_highest_and_never_padding(batch, fraction):
    scores, mask = batch
    keep = vppo.keep_top_fraction(scores, mask, fraction)
    assert not (keep & ~mask).any()
    for score, kept, real in zip(scores, keep, mask, strict=True):
        assert kept.sum() == math.ceil(round(fraction * real.sum().item(), 6))
        dropped = real & ~kept
        assert not dropped.any() or score[kept].min() >= score[dropped].max()


@settings(max_examples=30, deadline=None)
@given(batches())
def test_filter_of_a_response_does_not_depend_on_the_batch(batch):
    scores, mask = batch
    keep = vppo.keep_top_fraction(scores, mask, 0.4)
    alone = [vppo.keep_top_fraction(s[None], m[None], 0.4) for s, m in zip(scores, mask, strict=True)]
    assert torch.equal(keep, torch.cat(alone))
    assert torch.equal(vppo.keep_top_fraction(scores.flip(0), mask.flip(0), 0.4), keep.flip(0))


# --- advantages and groups -----------------------------------------------------------------------


def test_group_advantages_by_hand():
    # (1, 0, 0, 0): mean 1/4, unbiased variance (9/16 + 3/16) / 3 = 1/4, std 1/2: (1.5, -0.5 ...).
    # (1, 1, 0, 0): mean 1/2, variance 4 * 1/4 / 3 = 1/3: 0.5 * sqrt(3) = 0.866025.
    reward = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0])
    expected = [1.5, -0.5, -0.5, -0.5, 0.866025, 0.866025, -0.866025, -0.866025]
    close(vppo.group_advantages(reward, 4), expected, 1e-5)


def test_group_advantages_add_eps_to_the_standard_deviation():
    # (1, 0): centred +-1/2, std sqrt(1/2); with eps = 1: 0.5 / 1.707107 = 0.292893.
    close(vppo.group_advantages(torch.tensor([1.0, 0.0]), 2, eps=1.0), [0.292893, -0.292893])


def test_group_advantages_of_equal_rewards_are_zero():
    close(vppo.group_advantages(torch.ones(4), 4), [0.0] * 4)


def test_group_advantages_need_two_responses():
    with pytest.raises(AssertionError, match="two responses"):
        vppo.group_advantages(torch.ones(4), 1)


# --- the clipped loss ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient", "clipped"),
    [
        # Loss -r A, gradient with respect to logp -r A, wherever nothing is clipped.
        (1.0, 2.0, -2.0, -2.0, ""),
        (0.5, 2.0, -1.0, -1.0, ""),  # A > 0 and r small: may grow back
        (1.5, 2.0, -2.56, 0.0, "high"),  # -1.28 * 2
        (1.28, 2.0, -2.56, None, ""),  # on the edge
        (0.5, -2.0, 1.6, 0.0, "low"),  # -0.8 * -2
        (1.5, -2.0, 3.0, 3.0, ""),  # A < 0 and r large: may shrink back
        (2.9, -2.0, 5.8, 5.8, ""),
        (4.0, -2.0, 6.0, 0.0, "dual"),  # -3 * -2
        (4.0, 0.0, 0.0, 0.0, ""),
    ],
)
def test_clipped_loss_by_hand(ratio, advantage, loss, gradient, clipped):
    logp = torch.tensor([[math.log(ratio) - 1]], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([[-1.0]], dtype=torch.float64)
    loss_BT, what = vppo.clipped_loss_BT(logp, old, torch.tensor([advantage]))
    close(loss_BT, [[loss]])
    close(what.ratio_BT, [[ratio]])
    if gradient is not None:
        flags = {"low": what.low_BT, "high": what.high_BT, "dual": what.dual_BT}
        assert [name for name, flag in flags.items() if flag.item()] == [clipped] * bool(clipped)
        close(torch.autograd.grad(loss_BT.sum(), logp)[0], [[gradient]])


def test_clipped_loss_without_dual_clip():
    # -4 * -2.
    logp, old = torch.tensor([[math.log(4.0)]]), torch.zeros(1, 1)
    loss, what = vppo.clipped_loss_BT(logp, old, torch.tensor([-2.0]), dual_clip=None)
    close(loss, [[8.0]], 1e-5)
    assert not what.dual_BT.any()


def test_clipped_loss_with_symmetric_grpo_clip():
    # -1.2 * 1.
    logp, old = torch.tensor([[math.log(1.25)]]), torch.zeros(1, 1)
    loss, what = vppo.clipped_loss_BT(logp, old, torch.tensor([1.0]), clip_high=0.2)
    close(loss, [[-1.2]])
    assert what.high_BT.all()


def test_clipped_loss_takes_an_advantage_for_each_token():
    # On-policy, r = 1: loss = -A.
    adv = torch.tensor([[1.0, -2.0], [0.5, 0.0]])
    logp = torch.full((2, 2), -3.0)
    close(vppo.clipped_loss_BT(logp, logp, adv)[0], (-adv).tolist())
    close(vppo.clipped_loss_BT(logp, logp, adv[:, 0])[0], [[-1.0, -1.0], [-0.5, -0.5]])


@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize("gap", [500.0, -500.0])
def test_clipped_loss_of_an_absurd_ratio_is_finite(gap, advantage):
    logp = torch.tensor([[gap]], requires_grad=True)
    loss, _ = vppo.clipped_loss_BT(logp, torch.zeros(1, 1), torch.tensor([advantage]))
    assert torch.isfinite(loss).all()
    assert torch.isfinite(torch.autograd.grad(loss.sum(), logp)[0]).all()


# --- averaging -----------------------------------------------------------------------------------


def test_average_loss_by_hand():
    # Kept: 1 and 3 of the first response, 5 of the second; 4 response tokens, 2 responses.
    # Tokens: (1 + 3 + 5) / 4 = 2.25. Sequences: ((1 + 3) / 3 + 5 / 1) / 2 = 19/6.
    loss = torch.tensor([[1.0, 2.0, 3.0, math.nan], [5.0, 6.0, 7.0, 8.0]])
    keep = torch.tensor([[1, 0, 1, 1], [1, 1, 0, 0]])  # kept padding does not count
    close(vppo.average_loss(loss, keep, MASK), 2.25)
    close(vppo.average_loss(loss, keep, MASK, "sequence"), 19 / 6)
    assert vppo.loss_denominator(MASK) == 4
    assert vppo.loss_denominator(MASK, "sequence") == 2


def test_average_loss_with_a_denominator_from_elsewhere():
    # (1 + 1 + 1 + 1) / 8; sequences (3/3 + 1/1) / 4.
    ones = torch.ones(2, 4)
    close(vppo.average_loss(ones, MASK, MASK, denominator=8), 0.5)
    close(vppo.average_loss(ones, MASK, MASK, "sequence", denominator=4), 0.5)


def test_average_loss_of_nothing_is_zero():
    none = torch.zeros(2, 3)
    close(vppo.average_loss(torch.ones(2, 3), none, none), 0.0)
    close(vppo.average_loss(torch.ones(2, 3), none, none, "sequence"), 0.0)


def test_average_loss_rejects_an_unknown_average():
    with pytest.raises(ValueError, match="token sequence max_length, not 'batch'"):
        vppo.loss_denominator(MASK, "batch")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="token sequence max_length, not 'batch'"):
        vppo.average_loss(MASK, MASK, MASK, "batch", denominator=1)  # type: ignore[arg-type]


@settings(max_examples=40, deadline=None)
@given(batches(), st.integers(1, 6), st.sampled_from(["token", "sequence"]), st.integers(0, 999))
def test_loss_and_gradient_do_not_depend_on_micro_batches_or_order(batch, size, how, seed):
    """The whole chain: dependency, shaping, filter, clipped loss, average."""
    perception, mask = batch
    rng = torch.Generator().manual_seed(seed)
    old = -torch.rand(mask.shape, generator=rng, dtype=torch.float64)
    new = old + torch.randn(mask.shape, generator=rng, dtype=torch.float64)
    adv = torch.randn(len(mask), generator=rng, dtype=torch.float64)
    dependency = vppo.trajectory_dependency(perception, mask)
    low, high = dependency.min(), dependency.max()
    mean_z = vppo.normalized_dependency(dependency, low, high).mean()
    total = vppo.loss_denominator(mask, how)

    def run(parts):
        logp = new.clone().requires_grad_()
        loss = torch.zeros((), dtype=torch.float64)
        for part in parts:
            alpha = vppo.shaping_weights_from(dependency[part], low, high, mean_z)
            keep = vppo.keep_top_fraction(perception[part], mask[part], 0.4)
            loss_BT, _ = vppo.clipped_loss_BT(logp[part], old[part], alpha * adv[part])
            loss = loss + vppo.average_loss(loss_BT, keep, mask[part], how, total)
        return loss.detach(), torch.autograd.grad(loss, logp)[0]

    whole, whole_grad = run([torch.arange(len(mask))])
    shuffled = torch.randperm(len(mask), generator=rng)
    cut, cut_grad = run(shuffled.split(size))
    close(cut, whole, 1e-12)
    torch.testing.assert_close(cut_grad, whole_grad, atol=1e-12, rtol=1e-12)
    assert (whole_grad[~mask] == 0).all()


# --- optional terms ------------------------------------------------------------------------------


def test_entropy_penalties_by_hand():
    # Sampled: mean of 1, 2, 3 and 4 = 2.5. Exact: mean of 0.1, 0.2, 0.3 and 0.8 = 0.35.
    logp = torch.tensor([[-1.0, -2.0, -3.0, -99.0], [-4.0, -99.0, -99.0, -99.0]])
    entropy = torch.tensor([[0.1, 0.2, 0.3, 99.0], [0.8, 99.0, 99.0, 99.0]])
    means = {
        name: vppo.average_loss(penalty(logp, entropy), MASK, MASK).item()
        for name, penalty in vppo.ENTROPY_PENALTIES.items()
    }
    assert means == pytest.approx({"none": 0.0, "sampled": 2.5, "exact": 0.35})


def test_sampled_entropy_penalty_has_no_expected_gradient_and_the_exact_one_has():
    # p = (0.8, 0.2). E_p[grad -log p] = -sum_v p_v grad log p_v = -grad sum_v p_v = 0.
    # dH/dlogit_v = -p_v (log p_v + H): H = 0.500402, so -0.8 * (-0.223144 + 0.500402) = -0.221807.
    logits = torch.tensor([0.8, 0.2], dtype=torch.float64).log().requires_grad_()
    logp = logits.log_softmax(-1)
    p = logp.exp().detach()
    entropy = -(logp.exp() * logp).sum()
    sampled = (p * vppo.ENTROPY_PENALTIES["sampled"](logp, entropy)).sum()
    exact = vppo.ENTROPY_PENALTIES["exact"](logp, entropy)
    close(torch.autograd.grad(sampled, logits, retain_graph=True)[0], [0.0, 0.0])
    close(torch.autograd.grad(exact, logits)[0], [-0.221807, 0.221807])


def test_soft_overlong_penalty_by_hand():
    # Free up to 100 - 20 = 80; at 85 a quarter of the way down; -1 from 100 on.
    length = torch.tensor([10, 80, 85, 90, 100, 120])
    close(vppo.soft_overlong_penalty(length, 100, 20), [0.0, 0.0, -0.25, -0.5, -1.0, -1.0])


def test_without_truncated_by_hand():
    mask = vppo.without_truncated(MASK, torch.tensor([True, False]))
    assert mask.int().tolist() == [[0, 0, 0, 0], [1, 0, 0, 0]]


def test_tis_weights_by_hand():
    # p_trainer / p_rollout: 1, 1/2, 3 -> capped at 2, and an overflow -> capped as well.
    trainer = torch.tensor([0.0, -math.log(2), math.log(3), 500.0], requires_grad=True)
    weights = vppo.tis_weights(trainer, torch.zeros(4))
    close(weights, [1.0, 0.5, 2.0, 2.0])
    assert not weights.requires_grad
