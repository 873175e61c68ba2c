"""The math of VPPO (arXiv 2510.09285): plain tensors in, plain tensors out.

Nothing here knows a config, a model or other ranks. What one batch cannot know alone (statistics of
other ranks, the denominator of the whole update batch) comes in as an argument.

Axes, the last letters of a tensor's name:

    B  responses             P  prompts               mask_BT  1 (or True) on response tokens, up to
    T  response tokens       G  responses a prompt             and including the end token

Whatever stands where ``mask_BT`` is 0 is never read by a mean or a ranking. A mask may be of any
dtype. Reductions run in float32 or wider.

"The authors' code" is the public one: what was published was computed by it (docs/published.md), and it
differs from the paper's equations where a docstring says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

LossAverage = Literal["token", "sequence", "max_length"]


def _wide(x: Tensor) -> Tensor:
    """``x`` in float32, or in its own dtype when that is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _like(x: Tensor | float, other: Tensor) -> Tensor:
    """A number or a tensor, in the dtype and on the device of ``other``."""
    return torch.as_tensor(x, dtype=other.dtype, device=other.device)


def _masked_sum(x_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Sum over T -> [B]. A product with the mask would let NaN and inf through from padding."""
    x_BT = _wide(x_BT)
    return torch.where(mask_BT.bool(), x_BT, torch.zeros_like(x_BT)).sum(-1)


def masked_mean(x_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Mean over each response's own tokens -> [B]; 0 for a response without tokens."""
    return _masked_sum(x_BT, mask_BT) / mask_BT.bool().sum(-1).clamp(min=1)


# --- Token perception and trajectory dependency (paper sections 3 and 4) --------------------------


def k3(logp: Tensor, logp_other: Tensor) -> Tensor:
    """Schulman's k3 estimate of KL(p || q) from tokens sampled from p, elementwise.

    d = log q - log p, clamped to [-20, 20]; k3 = e^d - d - 1, clamped to [0, 10], as in the paper's
    appendix B and the authors' code. It reaches the upper clamp at d = 2.61 but only at d = -11.0.

    Args:
        logp: log p of the sampled tokens, any shape.
        logp_other: log q of the same tokens, same shape.
    """
    d = (_wide(logp_other) - _wide(logp)).clamp(-20.0, 20.0)
    return (d.exp() - d - 1).clamp(0.0, 10.0)


def trajectory_dependency(perception_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Mean token perception of each response -> dependency_B (S-bar; paper eq. 4)."""
    return masked_mean(perception_BT, mask_BT)


# --- Trajectory-level advantage shaping, TAS (paper eq. 5) ----------------------------------------


def normalized_dependency(dependency_B: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    """z_B = (S-bar - low) / (high - low), within [0, 1].

    Its mean over all ranks is ``mean_z`` of :func:`shaping_weights_from`.

    Args:
        dependency_B: S-bar.
        low, high: smallest and largest S-bar of the batch: scalars, or [B].
    """
    dependency_B = _wide(dependency_B)
    low_B, high_B = _like(low, dependency_B), _like(high, dependency_B)
    span_B = (high_B - low_B).clamp(min=torch.finfo(dependency_B.dtype).tiny)  # 0 / tiny is 0
    return ((dependency_B - low_B) / span_B).clamp(0.0, 1.0)


def shaping_weights_from(
    dependency_B: Tensor,
    low: Tensor | float,
    high: Tensor | float,
    mean_z: Tensor | float,
    beta_min: float = 0.9,
    beta_max: float | None = None,
    eps: float = 1e-6,
) -> Tensor:
    """Weights alpha_B (paper eq. 5) from statistics that were taken elsewhere.

    alpha = beta_min + (beta_max - beta_min) z, by default with the beta_max that makes mean(alpha) 1:
    beta_min + (1 - beta_min) / mean(z). Where high - low < ``eps`` every response depends on the image
    alike, and alpha is 1. Where mean(z) is 0, every z is 0 and alpha is beta_min (a micro-batch can be so).

    Args:
        dependency_B: S-bar.
        low, high: smallest and largest S-bar of the batch: scalars, or [B].
        mean_z: mean of :func:`normalized_dependency` over the batch: scalar, or [B]; not looked at
            with a fixed ``beta_max``.
        beta_max: the largest weight, fixed (paper Table 3); none: as above.
    """
    z_B = normalized_dependency(dependency_B, low, high)
    span_B = _like(high, z_B) - _like(low, z_B)
    if beta_max is None:
        alpha_B = beta_min + (1.0 - beta_min) * z_B / _like(mean_z, z_B).clamp(min=1e-8)
    else:
        alpha_B = beta_min + (beta_max - beta_min) * z_B
    return torch.where(span_B < eps, torch.ones_like(alpha_B), alpha_B)


def shaping_weights(
    dependency_B: Tensor, beta_min: float = 0.9, beta_max: float | None = None, eps: float = 1e-6
) -> Tensor:
    """Weights alpha_B over the whole update batch; mean(alpha) = 1 without a ``beta_max`` (paper eq. 5).

    A response without tokens has no dependency: leave its row out.
    """
    low, high = dependency_B.min(), dependency_B.max()
    mean_z = normalized_dependency(dependency_B, low, high).mean()
    return shaping_weights_from(dependency_B, low, high, mean_z, beta_min, beta_max, eps)


def shaping_weights_published(
    dependency_B: Tensor,
    minibatch_ids_B: Tensor,
    microbatch_ids_B: Tensor,
    beta_min: float = 0.9,
    beta_max: float | None = None,
    eps: float = 1e-6,
) -> Tensor:
    """Weights alpha_B as the authors' code takes them, so dependent on the batching.

    Minimum and maximum are of a device's mini-batch, mean(z) of a micro-batch: mean(alpha) is 1
    within every micro-batch that holds a z above 0.

    Args:
        dependency_B: S-bar.
        minibatch_ids_B: int; responses of one device's mini-batch share a number.
        microbatch_ids_B: int; the same for micro-batches, counted within a mini-batch or overall.
    """
    dependency_B = _wide(dependency_B)
    mini_B = minibatch_ids_B.unique(return_inverse=True)[1]
    micro_B = torch.stack([mini_B, microbatch_ids_B]).unique(dim=1, return_inverse=True)[1]

    def over(group_B: Tensor, x_B: Tensor, how: str) -> Tensor:
        """Reduce within each group, and give every response its group's value -> [B]."""
        empty = x_B.new_zeros(int(group_B.max()) + 1)
        return empty.scatter_reduce(0, group_B, x_B, how, include_self=False)[group_B]

    low_B, high_B = over(mini_B, dependency_B, "amin"), over(mini_B, dependency_B, "amax")
    mean_z_B = over(micro_B, normalized_dependency(dependency_B, low_B, high_B), "mean")
    return shaping_weights_from(dependency_B, low_B, high_B, mean_z_B, beta_min, beta_max, eps)


# --- Token-level gradient filtering, TGF (paper eq. 6) --------------------------------------------


def keep_top_fraction(perception_BT: Tensor, mask_BT: Tensor, fraction: float) -> Tensor:
    """The ceil(fraction * length) tokens of highest perception of each response -> keep_BT, bool.

    Of equal tokens the earlier one is kept, so the result is deterministic; padding never is kept.

    Args:
        perception_BT: any score, signed or not; finite on response tokens.
        mask_BT: response tokens.
        fraction: in (0, 1], to six decimals. It is read as the decimal it was written as: in
            floats ceil(0.55 * 100) is 56 and ceil(0.07 * 100) is 8.
    """
    assert 0 < fraction <= 1, f"fraction must be in (0, 1], not {fraction}"
    mask_BT = mask_BT.bool()
    assert torch.isfinite(perception_BT[mask_BT]).all(), "perception of a token is NaN or infinite"
    exact = Fraction(str(fraction)).limit_denominator(10**6)
    length_B = mask_BT.sum(-1)
    # Integer ceiling; at least one token of a response that has any, however small the fraction.
    count_B = -((-length_B * exact.numerator) // exact.denominator)
    count_B = torch.minimum(count_B.clamp(min=1), length_B)

    score_BT = _wide(perception_BT).masked_fill(~mask_BT, -torch.inf)
    order_BT = score_BT.argsort(dim=-1, descending=True, stable=True)
    positions_T = torch.arange(mask_BT.shape[-1], device=mask_BT.device)
    return torch.zeros_like(mask_BT).scatter(-1, order_BT, positions_T < count_B.unsqueeze(-1))


HALVINGS = 64
"""Of the interval that holds c of :func:`soft_weights`: of a width of 2 sqrt(T), more than float64 tells apart."""


def soft_weights(perception_BT: Tensor, mask_BT: Tensor, fraction: float) -> Tensor:
    """Soft weights in place of the filter (paper appendix I, Table 6) -> weight_BT in (0, 1), float32.

    w_t = sigmoid(z_t - c), where z is the perception of the response's tokens, standardised (by the standard
    deviation of the population, as the sample's is that of no response of one token), and c is such that the
    mean of w over the response is ``fraction``: found by bisection, in float64. Where all tokens have the same
    perception, z is 0 and every w is ``fraction``. Padding has 0.

    Args:
        perception_BT: any score, signed or not; finite on response tokens.
        mask_BT: response tokens.
        fraction: in (0, 1]; at 1 every w is 1.
    """
    assert 0 < fraction <= 1, f"fraction must be in (0, 1], not {fraction}"
    mask_BT = mask_BT.bool()
    assert torch.isfinite(perception_BT[mask_BT]).all(), "perception of a token is NaN or infinite"
    if fraction == 1:
        return mask_BT.float()
    score_BT = perception_BT.double()
    length_B1 = mask_BT.sum(-1, keepdim=True).clamp(min=1)

    def mean(x_BT: Tensor) -> Tensor:
        return torch.where(mask_BT, x_BT, 0.0).sum(-1, keepdim=True) / length_B1

    least_B1 = score_BT.masked_fill(~mask_BT, torch.inf).amin(-1, keepdim=True)
    most_B1 = score_BT.masked_fill(~mask_BT, -torch.inf).amax(-1, keepdim=True)
    centred_BT = torch.where(mask_BT & (most_B1 > least_B1), score_BT - mean(score_BT), 0.0)
    spread_B1 = mean(centred_BT**2).sqrt()
    z_BT = centred_BT / torch.where(spread_B1 > 0, spread_B1, 1.0)
    # Were all z the least (the most) one, c would be the first (the second) of these. Padding has z's mean, 0.
    logit = math.log(fraction / (1 - fraction))
    low_B1, high_B1 = z_BT.amin(-1, keepdim=True) - logit, z_BT.amax(-1, keepdim=True) - logit
    for _ in range(HALVINGS):
        c_B1 = (low_B1 + high_B1) / 2
        above_B1 = mean(torch.sigmoid(z_BT - c_B1)) > fraction
        low_B1, high_B1 = torch.where(above_B1, c_B1, low_B1), torch.where(above_B1, high_B1, c_B1)
    weight_BT = torch.sigmoid(z_BT - (low_B1 + high_B1) / 2)
    return torch.where(mask_BT, weight_BT, 0.0).float()


# --- Advantages and the base objective (GRPO, DAPO) -----------------------------------------------


def group_advantages(reward_B: Tensor, group_size: int, eps: float = 1e-6, *, standardize: bool = True) -> Tensor:
    """(R - mean) / (std + eps) within each prompt's group -> adv_B (arXiv 2402.03300, eq. 3).

    Args:
        reward_B: the responses of a prompt stand next to each other.
        group_size: G, at least 2: the standard deviation is the unbiased one.
        standardize: whether to divide; Dr. GRPO does not (arXiv 2503.20783).
    """
    assert group_size >= 2, f"a group needs two responses or more, not {group_size}"
    reward_PG = _wide(reward_B).reshape(-1, group_size)
    centered_PG = reward_PG - reward_PG.mean(-1, keepdim=True)
    if not standardize:
        return centered_PG.reshape(-1)
    return (centered_PG / (reward_PG.std(-1, keepdim=True) + eps)).reshape(-1)


class Clipping(NamedTuple):
    """What the clipping did to each token; bool but for the ratio. No gradient."""

    ratio_BT: Tensor
    """exp(logp - old_logp)."""
    low_BT: Tensor
    """A < 0 and the ratio below 1 - clip_low: no gradient."""
    high_BT: Tensor
    """A > 0 and the ratio above 1 + clip_high: no gradient."""
    dual_BT: Tensor
    """A < 0 and the ratio above dual_clip: no gradient."""


def clipped_loss_BT(
    logp_BT: Tensor,
    old_logp_BT: Tensor,
    adv: Tensor,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    dual_clip: float | None = 3.0,
) -> tuple[Tensor, Clipping]:
    """Each token's clipped loss, to be minimised -> (loss_BT, what was clipped).

    loss = -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), with r = exp(logp - old_logp): PPO
    with DAPO's two widths (arXiv 2503.14476, eq. 8). For A < 0 it is held at or below
    -dual_clip * A (dual clip, arXiv 1912.09729, eq. 5), as nothing else bounds it there.

    Args:
        logp_BT: of the policy being trained; the one argument with a gradient. Finite on padding.
        old_logp_BT: of the policy that wrote the responses.
        adv: adv_B or adv_BT, shaped or not.
        dual_clip: above 1 + clip_high; None for none.
    """
    adv_BT = _wide(adv.unsqueeze(-1) if adv.dim() == 1 else adv).expand_as(logp_BT)
    # exp overflows at 89; every ratio beyond e^20 is clipped by the rules below anyway.
    log_ratio_BT = (_wide(logp_BT) - _wide(old_logp_BT)).clamp(-20.0, 20.0)
    ratio_BT = log_ratio_BT.exp()
    clipped_BT = ratio_BT.clamp(1.0 - clip_low, 1.0 + clip_high)
    loss_BT = torch.maximum(-ratio_BT * adv_BT, -clipped_BT * adv_BT)

    negative_BT = adv_BT < 0
    dual_BT = torch.zeros_like(negative_BT)
    if dual_clip is not None:
        dual_BT = negative_BT & (ratio_BT > dual_clip)
        loss_BT = torch.where(dual_BT, -dual_clip * adv_BT, loss_BT)
    return loss_BT, Clipping(
        ratio_BT=ratio_BT.detach(),
        low_BT=negative_BT & (ratio_BT < 1.0 - clip_low),
        high_BT=(adv_BT > 0) & (ratio_BT > 1.0 + clip_high),
        dual_BT=dual_BT,
    )


def loss_denominator(mask_BT: Tensor, how: LossAverage = "token", max_length: int = 0) -> Tensor:
    """What :func:`average_loss` divides by: response tokens, responses that have any, or those times the
    longest that a response can be.

    Sum it over the whole update batch (micro-batches and ranks) and pass the sum to every call.
    """
    _check_average(how)
    if how == "token":
        return mask_BT.bool().sum()
    responses = mask_BT.bool().any(-1).sum()
    return responses * max_length if how == "max_length" else responses


def average_loss(
    loss_BT: Tensor,
    keep_BT: Tensor,
    mask_BT: Tensor,
    how: LossAverage = "token",
    denominator: Tensor | float | None = None,
) -> Tensor:
    """One number from the tokens' losses -> scalar.

    ``token``: sum(loss * keep * mask) / sum(mask): the mean over ALL response tokens; what the
    filter drops counts as 0 (paper Table 9, authors' code, DAPO). ``sequence``: the mean over responses
    of sum(loss * keep * mask) / length (as the paper writes eq. 6, and GRPO). ``max_length``: the sum over
    responses times the longest there can be (Dr. GRPO, arXiv 2503.20783), which ``denominator`` has to give.

    Args:
        loss_BT: any per-token quantity.
        keep_BT: tokens that pass the filter (bool; ``mask_BT`` itself for no filter), or weights (of any other dtype).
        mask_BT: response tokens.
        denominator: :func:`loss_denominator` of the whole update batch; by default of this one.
            With it, the losses of the micro-batches add up to the loss of the batch, however it
            was cut.
    """
    _check_average(how)
    assert denominator is not None or how != "max_length", "the longest length is not known here"
    if denominator is None:
        denominator = loss_denominator(mask_BT, how).clamp(min=1)
    weighted_BT = loss_BT if keep_BT.dtype == torch.bool else loss_BT * keep_BT
    kept_B = _masked_sum(weighted_BT, keep_BT.bool() & mask_BT.bool())
    if how == "sequence":
        kept_B = kept_B / mask_BT.bool().sum(-1).clamp(min=1)
    return kept_B.sum() / denominator


def _check_average(how: str) -> None:
    if how not in (known := get_args(LossAverage)):
        raise ValueError(f"how must be one of {' '.join(known)}, not {how!r}")


# --- Optional terms ------------------------------------------------------------------------------


def _no_penalty(logp_BT: Tensor, entropy_BT: Tensor) -> Tensor:
    return torch.zeros_like(_wide(logp_BT))


def _sampled_entropy(logp_BT: Tensor, entropy_BT: Tensor) -> Tensor:
    return -_wide(logp_BT)


def _exact_entropy(logp_BT: Tensor, entropy_BT: Tensor) -> Tensor:
    return _wide(entropy_BT)


ENTROPY_PENALTIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "none": _no_penalty,
    "sampled": _sampled_entropy,
    "exact": _exact_entropy,
}
"""(logp_BT, entropy_BT) -> penalty_BT, to be averaged over ALL response tokens, multiplied by a
positive coefficient and added to the loss: it lowers the entropy.

``sampled`` is, as in the authors' code, -log p of the sampled tokens. Its value estimates the entropy, but
its on-policy gradient is 0 in expectation (E[grad log p] = 0): what is left is noise. ``exact`` is
the entropy over the whole vocabulary, with its true gradient."""


def soft_overlong_penalty(length_B: Tensor, max_length: int, cache: int) -> Tensor:
    """DAPO's length penalty, to be added to the reward -> penalty_B in [-1, 0].

    0 up to max_length - cache, then linear down to -1 at max_length (arXiv 2503.14476, eq. 13).

    Args:
        length_B: tokens of each response.
        max_length: most tokens a response may have.
        cache: width of the linear part, in tokens; at least 1.
    """
    return ((max_length - cache - _wide(length_B)) / cache).clamp(-1.0, 0.0)


def without_truncated(mask_BT: Tensor, truncated_B: Tensor) -> Tensor:
    """The mask without the responses cut off by the length limit -> bool [B, T].

    DAPO's overlong filtering (arXiv 2503.14476, section 3.4), for the loss only.
    """
    return mask_BT.bool() & ~truncated_B.bool().unsqueeze(-1)


def tis_weights(logp_trainer: Tensor, logp_rollout: Tensor, cap: float = 2.0) -> Tensor:
    """Truncated importance weights min(p_trainer / p_rollout, cap), elementwise; no gradient.

    They multiply the loss of a token that an engine with other log-probs sampled, such as vLLM
    (Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL training").

    Args:
        logp_trainer: log-probs by the trainer, of the policy version that sampled.
        logp_rollout: log-probs the rollout engine reported for the same tokens.
        cap: largest weight; above 1 for a rare upper bound, 1 to only ever weigh down.
    """
    gap = _wide(logp_trainer.detach()) - _wide(logp_rollout.detach())
    return gap.clamp(max=math.log(cap)).exp()
