"""Surrogates: what the ratio to the policy that sampled becomes, by name (``update.surrogate``)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pipelines import vppo
from pipelines.config.schema import UpdateConfig
from pipelines.objectives.batch import Terms
from pipelines.objectives.table import surrogate_constants
from pipelines.vppo import Clipping

Surrogate = Callable[[Tensor, Tensor, Tensor, Terms, UpdateConfig], tuple[Tensor, Clipping]]
"""(logp_BT, old_logp_BT, mask_BT, terms, settings) -> (loss_BT, what was clipped); of ``terms`` the advantage
and the clipping widths, cut as logp_BT is."""


def ppo(
    logp_BT: Tensor, old_logp_BT: Tensor, mask_BT: Tensor, terms: Terms, settings: UpdateConfig
) -> tuple[Tensor, Clipping]:
    """PPO's clipping with DAPO's two widths and dual clip (vppo.clipped_loss_BT)."""
    return vppo.clipped_loss_BT(
        logp_BT, old_logp_BT, terms.advantage, terms.clip_low, terms.clip_high, settings.dual_clip
    )


def gspo(
    logp_BT: Tensor, old_logp_BT: Tensor, mask_BT: Tensor, terms: Terms, settings: UpdateConfig
) -> tuple[Tensor, Clipping]:
    """GSPO (arXiv 2507.18071): the ratio of the sequence, s = exp(mean over tokens of log r), clipped.

    In its token form (GSPO-token, section 4.3 there), s_t = sg[s] pi_t / sg[pi_t]: the value is s, the gradient
    reaches every token's log-prob alike, and advantages and weights may differ from token to token. For those
    that do not it is GSPO itself. s is of all response tokens, whatever their weights.
    """
    widths = surrogate_constants(settings)
    gap_BT = torch.where(mask_BT, logp_BT.detach() - old_logp_BT, 0.0)
    sequence_B1 = vppo.masked_mean(gap_BT, mask_BT).unsqueeze(-1)
    # As a log-ratio: value the sequence's, gradient the token's. The difference is 0 and comes first: added to
    # a log-prob of 10 nats, s would be rounded by some 1e-6, and its clipping widths are 3e-4.
    shifted_BT = sequence_B1 + (logp_BT - logp_BT.detach())
    return vppo.clipped_loss_BT(
        shifted_BT,
        torch.zeros_like(old_logp_BT),
        terms.advantage,
        widths["gspo_clip_low"],
        widths["gspo_clip_high"],
        None,
    )


def cispo(
    logp_BT: Tensor, old_logp_BT: Tensor, mask_BT: Tensor, terms: Terms, settings: UpdateConfig
) -> tuple[Tensor, Clipping]:
    """CISPO (arXiv 2506.13585): -sg[min(r, 1 + clip_high)] A log pi: no token loses its gradient.

    The ratio has no lower bound, as theirs; their upper one is tuned, and 0.28 is DAPO's. It bounds the ratio
    whatever the sign of A.
    """
    adv_BT = _of_tokens(terms.advantage, logp_BT)
    ratio_BT = (logp_BT.detach() - old_logp_BT).clamp(-20.0, 20.0).exp()
    most = 1.0 + terms.clip_high
    loss_BT = -ratio_BT.clamp(max=most) * adv_BT * logp_BT
    none_BT = torch.zeros_like(mask_BT)
    return loss_BT, Clipping(ratio_BT, none_BT, ratio_BT > most, none_BT)


def sapo(
    logp_BT: Tensor, old_logp_BT: Tensor, mask_BT: Tensor, terms: Terms, settings: UpdateConfig
) -> tuple[Tensor, Clipping]:
    """SAPO (arXiv 2511.20347): a soft gate in place of clipping, f(r) = sigmoid(tau (r - 1)) 4 / tau.

    tau is ``sapo_tau_positive`` where A > 0, else ``sapo_tau_negative``; on-policy its gradient is r's. A is
    the token's, so where an objective gives tokens of a response different signs, they have different gates.
    """
    taus = surrogate_constants(settings)
    adv_BT = _of_tokens(terms.advantage, logp_BT)
    ratio_BT = (logp_BT - old_logp_BT).clamp(-20.0, 20.0).exp()
    tau_BT = torch.where(adv_BT > 0, taus["sapo_tau_positive"], taus["sapo_tau_negative"])
    loss_BT = -torch.sigmoid(tau_BT * (ratio_BT - 1.0)) * 4.0 / tau_BT * adv_BT
    none_BT = torch.zeros_like(mask_BT)
    return loss_BT, Clipping(ratio_BT.detach(), none_BT, none_BT, none_BT)


def _of_tokens(advantage: Tensor, like_BT: Tensor) -> Tensor:
    return (advantage.unsqueeze(-1) if advantage.dim() == 1 else advantage).expand_as(like_BT)


SURROGATES: dict[str, Surrogate] = {"ppo": ppo, "gspo": gspo, "cispo": cispo, "dr_grpo": ppo, "sapo": sapo}
"""``dr_grpo`` (arXiv 2503.20783) is PPO's; its advantages and its averaging (table.SURROGATE_AVERAGES) are its own."""
