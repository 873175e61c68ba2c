"""How much two next-token distributions differ, per token, without ever holding all logits.

Two views of the same response (with the image, and with the perturbed image) give two hidden states
for each response token. The language-model head turns them into logits a chunk of tokens at a time,
so the largest tensor has ``max_elements`` numbers where all logits would have N * V.

Axes, the last letters of a tensor's name:

    N  tokens: all response tokens of a batch, flat      V  vocabulary      D  hidden size

The hidden state at n is the one that predicts token n. The policy is the distribution that is
sampled from: softmax(logits / temperature), with ``suppressed_ids`` having probability 0.
Logits and all that follows are float32 whatever the dtype of the inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from pipelines.vppo import k3

# Stands in for the -inf logit of a suppressed id. Its probability is 0 to the last bit, but
# 0 * -1e30 is 0 and -1e30 - -1e30 is 0, where the same sums with -inf are NaN.
_SUPPRESSED = -1e30

DEFAULT_MAX_ELEMENTS = 2**24
"""Numbers in a chunk of logits: 64 MiB in float32, 110 tokens of a vocabulary of 152 000. Some six
such tensors are alive at once. Every chunk reads the whole head: on a large GPU 2**26 is faster."""


@dataclass(frozen=True)
class TokenStatistics:
    """One float32 number per token, [N] each. p: the policy; q: the policy on the perturbed view.

    The last six are None when no perturbed view was given.
    """

    logp: Tensor
    """log p of the sampled token; -1e30 if that id is suppressed."""
    entropy: Tensor
    """Entropy of p, nats."""
    logp_perturbed: Tensor | None = None
    """log q of the sampled token."""
    kl: Tensor | None = None
    """KL(p || q) over the whole vocabulary (arXiv 2510.09285, eq. 3), nats."""
    jsd: Tensor | None = None
    """Jensen-Shannon divergence of p and q, nats; at most log 2."""
    top1_drop: Tensor | None = None
    """p - q of the id that p likes best; in (-1, 1]."""
    log_ratio: Tensor | None = None
    """log p/q of the sampled token, signed: above 0 where the image argues for the token."""


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in float32: a sum of exact products for half-precision inputs, never rounded to half.

    Autocast is off, as it would round the result.
    """
    with torch.autocast(a.device.type, enabled=False):
        if a.is_cuda and a.dtype == b.dtype and a.dtype in (torch.bfloat16, torch.float16):
            return torch.mm(a, b, out_dtype=torch.float32)  # on the tensor cores; CUDA only
        return a.float() @ b.float()


def _log_probs_NV(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    temperature: float,
    suppressed_ids: Tensor | None,
) -> Tensor:
    """log softmax of the policy, [n, V] float32. Both passes use it, so both get the same bits."""
    logits_NV = _matmul(hidden_ND, weight_VD.T)
    if bias_V is not None:
        logits_NV += bias_V
    logits_NV /= temperature
    if suppressed_ids is not None:
        logits_NV.index_fill_(1, suppressed_ids, _SUPPRESSED)
    return logits_NV.log_softmax(-1)


def _at(x_NV: Tensor, id_N: Tensor) -> Tensor:
    """The entry of each row at one id -> [N]."""
    return x_NV.gather(1, id_N.unsqueeze(1)).squeeze(1)


def _entropy_N(logp_NV: Tensor) -> Tensor:
    return -(logp_NV.exp() * logp_NV).sum(-1)


def _kl_N(logp_NV: Tensor, logq_NV: Tensor) -> Tensor:
    """KL(p || q) -> [N]; the clamp removes rounding below 0."""
    return (logp_NV.exp() * (logp_NV - logq_NV)).sum(-1).clamp(min=0.0)


def _chunks(count: int, vocabulary: int, max_elements: int) -> Iterator[slice]:
    """Ranges of tokens whose logits have ``max_elements`` numbers or fewer (one token at least).

    One empty range for no tokens, so that the callers need no special case.
    """
    rows = max(1, max_elements // vocabulary)
    for start in range(0, max(count, 1), rows):
        yield slice(start, min(start + rows, count))


def _check(
    hidden_ND: Tensor, weight_VD: Tensor, token_N: Tensor, temperature: float, max_elements: int
) -> None:
    assert hidden_ND.dim() == 2, f"hidden states must be [N, D], not {tuple(hidden_ND.shape)}"
    assert token_N.shape == hidden_ND.shape[:1], "one hidden state per token"
    assert weight_VD.shape[1] == hidden_ND.shape[1], "the head does not fit the hidden states"
    assert temperature > 0, "a policy of temperature 0 has no divergence"
    assert max_elements >= 1


@torch.no_grad()
def token_statistics(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    token_N: Tensor,
    *,
    perturbed_ND: Tensor | None = None,
    bias_V: Tensor | None = None,
    temperature: float = 1.0,
    max_elements: int = DEFAULT_MAX_ELEMENTS,
    suppressed_ids: Tensor | None = None,
) -> TokenStatistics:
    """Log-probs and entropy of the sampled tokens, and how far the perturbed view is; no gradient.

    Args:
        hidden_ND: last hidden states (after the final norm) with the image.
        weight_VD: weight of the language-model head, whole.
        token_N: the sampled ids, int64.
        perturbed_ND: the same hidden states with the perturbed image.
        bias_V: bias of the head.
        temperature: the rollout's.
        max_elements: numbers in one chunk of logits; it changes memory and speed only.
        suppressed_ids: ids that are never sampled, int64, a vector.
    """
    _check(hidden_ND, weight_VD, token_N, temperature, max_elements)
    assert perturbed_ND is None or perturbed_ND.shape == hidden_ND.shape, "views differ in shape"
    chunks: list[TokenStatistics] = []
    for part in _chunks(len(token_N), len(weight_VD), max_elements):
        token = token_N[part]
        logp_NV = _log_probs_NV(hidden_ND[part], weight_VD, bias_V, temperature, suppressed_ids)
        logp, entropy = _at(logp_NV, token), _entropy_N(logp_NV)
        if perturbed_ND is None:
            chunks.append(TokenStatistics(logp, entropy))
            continue
        logq_NV = _log_probs_NV(perturbed_ND[part], weight_VD, bias_V, temperature, suppressed_ids)
        best = logp_NV.argmax(-1)
        logq = _at(logq_NV, token)
        kl = _kl_N(logp_NV, logq_NV)
        top1_drop = _at(logp_NV, best).exp() - _at(logq_NV, best).exp()
        # JSD = (KL(p || m) + KL(q || m)) / 2 with m = (p + q) / 2.
        logm_NV = torch.logaddexp(logp_NV, logq_NV).sub_(math.log(2.0))
        jsd = (_kl_N(logp_NV, logm_NV) + _kl_N(logq_NV, logm_NV)) / 2
        chunks.append(TokenStatistics(logp, entropy, logq, kl, jsd, top1_drop, logp - logq))
    names = [f.name for f in fields(TokenStatistics) if getattr(chunks[0], f.name) is not None]
    return TokenStatistics(**{n: torch.cat([getattr(c, n) for c in chunks]) for n in names})


class _TokenLogp(torch.autograd.Function):
    """Chunked log-prob and entropy whose backward computes each chunk's logits again.

    Written out, not checkpointed chunk by chunk, for one reason: the chunks' gradients of the head
    add up in float32 here, where autograd would add them in the dtype of the weight (bfloat16).
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        token_N: Tensor,
        temperature: float,
        max_elements: int,
        suppressed_ids: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(hidden_ND, weight_VD, bias_V, token_N, suppressed_ids)
        ctx.temperature, ctx.max_elements = temperature, max_elements
        statistics = token_statistics(
            hidden_ND,
            weight_VD,
            token_N,
            bias_V=bias_V,
            temperature=temperature,
            max_elements=max_elements,
            suppressed_ids=suppressed_ids,
        )
        return statistics.logp, statistics.entropy

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_logp_N: Tensor, d_entropy_N: Tensor) -> tuple[Tensor | None, ...]:
        hidden_ND, weight_VD, bias_V, token_N, suppressed_ids = ctx.saved_tensors
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        d_hidden = torch.empty_like(hidden_ND) if need_hidden else None
        d_weight = torch.zeros_like(weight_VD, dtype=torch.float32) if need_weight else None
        d_bias = torch.zeros_like(bias_V, dtype=torch.float32) if need_bias else None
        for part in _chunks(len(token_N), len(weight_VD), ctx.max_elements):
            logp_NV = _log_probs_NV(
                hidden_ND[part], weight_VD, bias_V, ctx.temperature, suppressed_ids
            )
            # d logp[token] / d logit_v = [v = token] - p_v;  d H / d logit_v = -p_v (log p_v + H).
            p_NV = logp_NV.exp()
            logp_NV += _entropy_N(logp_NV).unsqueeze(1)
            logp_NV *= -d_entropy_N[part].unsqueeze(1)
            logp_NV -= d_logp_N[part].unsqueeze(1)
            d_logits_NV = logp_NV.mul_(p_NV)
            d_logits_NV.scatter_add_(1, token_N[part].unsqueeze(1), d_logp_N[part].unsqueeze(1))
            if suppressed_ids is not None:  # a suppressed logit is a constant
                d_logits_NV.index_fill_(1, suppressed_ids, 0.0)
            d_logits_NV /= ctx.temperature
            if d_bias is not None:
                d_bias += d_logits_NV.sum(0)
            d_logits_NV = d_logits_NV.to(weight_VD.dtype)
            if d_hidden is not None:
                d_hidden[part] = _matmul(d_logits_NV, weight_VD).to(hidden_ND.dtype)
            if d_weight is not None:
                d_weight += _matmul(d_logits_NV.T, hidden_ND[part])
        return (
            d_hidden,
            None if d_weight is None else d_weight.to(weight_VD.dtype),
            None if d_bias is None else d_bias.to(bias_V.dtype),
            *(None,) * 4,
        )


def token_logp(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    token_N: Tensor,
    *,
    bias_V: Tensor | None = None,
    temperature: float = 1.0,
    max_elements: int = DEFAULT_MAX_ELEMENTS,
    suppressed_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-prob of the sampled tokens and exact entropy -> (logp_N, entropy_N), with gradients.

    Gradients reach ``hidden_ND``, ``weight_VD`` and ``bias_V``; the logits are computed again in
    the backward pass, so the head must still be whole then. The values are bit for bit those of
    :func:`token_statistics` with the same ``max_elements``: on-policy the ratio is exactly 1.
    Arguments as there.
    """
    _check(hidden_ND, weight_VD, token_N, temperature, max_elements)
    logp_N, entropy_N = _TokenLogp.apply(
        hidden_ND, weight_VD, bias_V, token_N, temperature, max_elements, suppressed_ids
    )
    return logp_N, entropy_N


def _given(statistic_N: Tensor | None) -> Tensor:
    assert statistic_N is not None, "this estimator needs the perturbed view"
    return statistic_N


ESTIMATORS: dict[str, Callable[[TokenStatistics], Tensor]] = {
    "kl": lambda s: _given(s.kl),
    "k3": lambda s: k3(s.logp, _given(s.logp_perturbed)),
    "jsd": lambda s: _given(s.jsd),
    "log_ratio": lambda s: _given(s.log_ratio),
    "top1_drop": lambda s: _given(s.top1_drop),
    "entropy": lambda s: s.entropy,
}
"""Statistics -> token perception S, [N]. ``kl`` is the paper's, ``k3`` the reference's."""

ONE_VIEW = frozenset({"entropy", "random", "oracle"})
"""Estimators that need no forward with the perturbed image. ``random`` and ``oracle`` need none at
all and are not in ESTIMATORS: their scores do not come from the model."""
