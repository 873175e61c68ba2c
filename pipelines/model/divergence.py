"""How much two next-token distributions differ, per token, without ever holding all logits.

Two views of the same response (with the image, and with the perturbed image) give two hidden states
for each response token. The language-model head turns them into logits a tile at a time, some tokens by
some of the vocabulary, and running sums are kept for each token (online log-sum-exp): so the largest tensor
has ``max_elements`` numbers where all logits would have N * V.

Axes, the last letters of a tensor's name:

    N  tokens: all response tokens of a batch, flat, or those of a tile
    V  vocabulary, or a tile's part of it      D  hidden size

The hidden state at n is the one that predicts token n. The policy is the distribution that is
sampled from: softmax(logits / temperature), with ``suppressed_ids`` having probability 0.
Logits and all that follows are float32 whatever the dtype of the inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from pipelines.vppo import k3

# Stands in for the -inf logit of a suppressed id. Its probability is 0 to the last bit, but
# 0 * -1e30 is 0 and -1e30 - -1e30 is 0, where the same sums with -inf are NaN.
_SUPPRESSED = -1e30

DEFAULT_MAX_ELEMENTS, WIDTH = 2**24, 2**14
"""Numbers in a tile of logits (64 MiB in float32; some five such tensors are alive at once), and its part
of the vocabulary at most: the more tokens share it, the less often the head is read."""

CPU_MAX_ELEMENTS, CPU_WIDTH = 2**20, 2**12
"""The same on a CPU, whose caches hold a small tile."""


@dataclass(frozen=True)
class TokenStatistics:
    """One float32 number per token, [N] each. p: the policy; q: the policy on the perturbed view.

    What a perturbed view gives is None where there was none, ``jsd`` also unless it was asked for. The last
    two come from hidden states (``Policy.with_similarities``) and are None unless they were asked for.
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
    argmax_drop: Tensor | None = None
    """p - q of the id that p likes best; in (-1, 1]."""
    log_ratio: Tensor | None = None
    """log p/q of the sampled token, signed: above 0 where the image argues for the token."""
    entropy_perturbed: Tensor | None = None
    """Entropy of q, nats."""
    image_similarity: Tensor | None = None
    """Cosine of the last hidden state that predicts the token with the mean of the image tokens'."""
    layer_similarity: Tensor | None = None
    """The mean of the same over all layers."""


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in float32: a sum of exact products for half-precision inputs, never rounded to half.

    Autocast is off, as it would round the result.
    """
    with torch.autocast(a.device.type, enabled=False):
        if a.is_cuda and a.dtype == b.dtype and a.dtype in (torch.bfloat16, torch.float16):
            return torch.mm(a, b, out_dtype=torch.float32)  # on the tensor cores; CUDA only
        return a.float() @ b.float()


@dataclass(frozen=True)
class Head:
    """The language-model head as the policy has it.

    Attributes:
        weight_VD: whole.
        bias_V: its bias, if it has one.
        temperature: the rollout's.
        suppressed_ids: ids that are never sampled, int64, a vector.
    """

    weight_VD: Tensor
    bias_V: Tensor | None = None
    temperature: float = 1.0
    suppressed_ids: Tensor | None = None

    def part(self, ids: slice) -> Head:
        """The head of a part of the vocabulary; ids count from its first."""
        if ids.start == 0 and ids.stop >= len(self.weight_VD):
            return self
        bias_V, suppressed = self.bias_V, self.suppressed_ids
        if suppressed is not None:
            suppressed = suppressed[(suppressed >= ids.start) & (suppressed < ids.stop)] - ids.start
        return Head(self.weight_VD[ids], None if bias_V is None else bias_V[ids], self.temperature, suppressed)

    def logits_NV(self, hidden_ND: Tensor) -> Tensor:
        """Logits over the temperature, float32. Both passes use it, so both get the same bits."""
        logits_NV = _matmul(hidden_ND, self.weight_VD.T)
        if self.bias_V is not None:
            logits_NV += self.bias_V
        if self.temperature != 1:
            logits_NV /= self.temperature
        if self.suppressed_ids is not None:
            logits_NV.index_fill_(1, self.suppressed_ids, _SUPPRESSED)
        return logits_NV


class _Parts:
    """The head cut into tiles' widths, once for all tokens."""

    def __init__(self, head: Head, max_elements: int | None) -> None:
        vocabulary, cpu = len(head.weight_VD), not head.weight_VD.is_cuda
        max_elements = max_elements or (CPU_MAX_ELEMENTS if cpu else DEFAULT_MAX_ELEMENTS)
        width = min(vocabulary, CPU_WIDTH if cpu else WIDTH, max_elements)
        cuts = [slice(i, min(i + width, vocabulary)) for i in range(0, vocabulary, width)]
        self.parts = [(cut.start, head.part(cut)) for cut in cuts]
        self.rows = max(1, max_elements // width)

    def tokens(self, count: int) -> list[slice]:
        """Ranges of tokens whose tiles have ``max_elements`` numbers or fewer.

        One empty range for no tokens, so that the callers need no special case.
        """
        starts = range(0, max(count, 1), self.rows)
        return [slice(i, min(i + self.rows, count)) for i in starts]


def _at(x_NV: Tensor, first: int, id_N: Tensor, otherwise_N: Tensor) -> Tensor:
    """The entry of each row at an id, where the tile that begins with id ``first`` has it -> [N]."""
    place_N = id_N - first
    here_N = (place_N >= 0) & (place_N < x_NV.shape[1])
    found_N = x_NV.gather(1, place_N.clamp(0, x_NV.shape[1] - 1).unsqueeze(1)).squeeze(1)
    return torch.where(here_N, found_N, otherwise_N)


class _Sums:
    """Running sums over the vocabulary for the tokens of one range.

    With a the logits and ``top`` their maximum so far: ``mass`` is sum(e^(a - top)), ``spread`` is
    sum(e^(a - top) (a - top)). ``chosen`` is the logit of the sampled token, ``best`` the likeliest id.
    """

    def __init__(self, token_N: Tensor) -> None:
        self.token_N = token_N
        self.top_N = token_N.new_full(token_N.shape, -torch.inf, dtype=torch.float32)
        self.mass_N = torch.zeros_like(self.top_N)
        self.spread_N, self.chosen_N = self.mass_N, self.mass_N
        self.best_N = torch.zeros_like(token_N)

    def add(self, first: int, logits_NV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Take a tile in; it becomes a - max. Returns it, e^(a - max), and the fall of the maximum."""
        top_N, best_N = logits_NV.max(-1)
        self.chosen_N = _at(logits_NV, first, self.token_N, self.chosen_N)
        self.best_N = torch.where(top_N > self.top_N, best_N + first, self.best_N)
        top_N = torch.maximum(self.top_N, top_N)
        fall_N = torch.where(self.mass_N > 0, self.top_N - top_N, 0.0)
        self.top_N = top_N
        below_NV = logits_NV.sub_(top_N.unsqueeze(1))
        weight_NV = below_NV.exp()
        shrink_N = fall_N.exp()
        self.spread_N = (self.spread_N + self.mass_N * fall_N) * shrink_N + _dot(weight_NV, below_NV)
        self.mass_N = self.mass_N * shrink_N + weight_NV.sum(-1)
        return below_NV, weight_NV, fall_N

    @property
    def logp_N(self) -> Tensor:
        """log p of the chosen token."""
        return self.chosen_N - self.total_N

    @property
    def total_N(self) -> Tensor:
        """log of the sum of e^a."""
        return self.top_N + self.mass_N.log()

    @property
    def entropy_N(self) -> Tensor:
        """Entropy of p, nats."""
        return self.mass_N.log() - self.spread_N / self.mass_N


def _dot(a_NV: Tensor, b_NV: Tensor) -> Tensor:
    """Row by row -> [N], without a product in between."""
    return torch.bmm(a_NV.unsqueeze(1), b_NV.unsqueeze(2)).flatten()


def _one_view(hidden_ND: Tensor, parts: _Parts, token_N: Tensor) -> _Sums:
    """The sums of one range of tokens."""
    p = _Sums(token_N)
    for first, head in parts.parts:
        p.add(first, head.logits_NV(hidden_ND))
    return p


@dataclass(frozen=True)
class _Both:
    """The sums of one range of tokens under both views."""

    p: _Sums
    q: _Sums
    kl_N: Tensor
    other_N: Tensor
    """q's logit of the id that p likes best."""


def _both_views(hidden_ND: Tensor, perturbed_ND: Tensor, parts: _Parts, token_N: Tensor) -> _Both:
    """Both views in one pass over the vocabulary."""
    p, q = _Sums(token_N), _Sums(token_N)
    apart_N = torch.zeros_like(p.mass_N)  # sum(e^(a - top) ((a - top) - (b - top of b)))
    other_N = torch.zeros_like(p.mass_N)
    for first, head in parts.parts:
        logits_NV = head.logits_NV(perturbed_ND)
        mass_N = p.mass_N
        below_NV, weight_NV, fall_N = p.add(first, head.logits_NV(hidden_ND))
        other_N = _at(logits_NV, first, p.best_N, other_N)
        below_q_NV, _, fall_q_N = q.add(first, logits_NV)
        apart_N = (apart_N + mass_N * (fall_N - fall_q_N)) * fall_N.exp()
        # Not a dot product: its plain sum would be off by some 5e-6 where views differ much.
        apart_N = apart_N + below_NV.sub_(below_q_NV).mul_(weight_NV).sum(-1)
        del logits_NV, below_NV, weight_NV, below_q_NV, _  # before the next tile is made
    # sum p (log p - log q), whose maxima cancel; the clamp removes rounding below 0.
    return _Both(p, q, (apart_N / p.mass_N - p.mass_N.log() + q.mass_N.log()).clamp(min=0.0), other_N)


def _two_views(hidden_ND: Tensor, perturbed_ND: Tensor, parts: _Parts, token_N: Tensor, jsd: bool) -> TokenStatistics:
    """The statistics of one range of tokens."""
    both = _both_views(hidden_ND, perturbed_ND, parts, token_N)
    p, q = both.p, both.q
    logp_N, logq_N = p.logp_N, q.logp_N
    argmax_drop_N = 1 / p.mass_N - (both.other_N - q.total_N).exp()
    jsd_N = None
    if jsd:
        jsd_N = _jsd(hidden_ND, perturbed_ND, parts, p.total_N, q.total_N)
    return TokenStatistics(logp_N, p.entropy_N, logq_N, both.kl_N, jsd_N, argmax_drop_N, logp_N - logq_N, q.entropy_N)


def _jsd(hidden_ND: Tensor, perturbed_ND: Tensor, parts: _Parts, total_N: Tensor, total_q_N: Tensor) -> Tensor:
    """(KL(p || m) + KL(q || m)) / 2 with m = (p + q) / 2: a second pass, as m needs both sums."""
    jsd_N = torch.zeros_like(total_N)
    for _, head in parts.parts:
        logp_NV = head.logits_NV(hidden_ND).sub_(total_N.unsqueeze(1))
        logq_NV = head.logits_NV(perturbed_ND).sub_(total_q_N.unsqueeze(1))
        logm_NV = torch.logaddexp(logp_NV, logq_NV).sub_(math.log(2.0))
        for log_NV in (logp_NV, logq_NV):
            jsd_N = jsd_N + _dot(log_NV.exp(), log_NV.sub_(logm_NV)) / 2
        del logp_NV, logq_NV, logm_NV, log_NV
    return jsd_N.clamp(min=0.0)


def _check(hidden_ND: Tensor, weight_VD: Tensor, token_N: Tensor, temperature: float) -> None:
    assert hidden_ND.dim() == 2, f"hidden states must be [N, D], not {tuple(hidden_ND.shape)}"
    assert token_N.shape == hidden_ND.shape[:1], "one hidden state per token"
    assert weight_VD.shape[1] == hidden_ND.shape[1], "the head does not fit the hidden states"
    assert temperature > 0, "a policy of temperature 0 has no divergence"


@torch.no_grad()
def token_statistics(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    token_N: Tensor,
    *,
    perturbed_ND: Tensor | None = None,
    bias_V: Tensor | None = None,
    temperature: float = 1.0,
    max_elements: int | None = None,
    suppressed_ids: Tensor | None = None,
    jsd: bool = True,
) -> TokenStatistics:
    """Log-probs and entropy of the sampled tokens, and how far the perturbed view is; no gradient.

    Args:
        hidden_ND: last hidden states (after the final norm) with the image.
        weight_VD: weight of the language-model head, whole.
        token_N: the sampled ids, int64.
        perturbed_ND: the same hidden states with the perturbed image.
        bias_V: bias of the head.
        temperature: the rollout's.
        max_elements: numbers in one tile of logits; it changes memory and speed only. None: what suits
            the device.
        suppressed_ids: ids that are never sampled, int64, a vector.
        jsd: whether to compute it, which takes a second pass over the vocabulary.
    """
    _check(hidden_ND, weight_VD, token_N, temperature)
    assert perturbed_ND is None or perturbed_ND.shape == hidden_ND.shape, "views differ in shape"
    parts = _Parts(Head(weight_VD, bias_V, temperature, suppressed_ids), max_elements)
    found: list[TokenStatistics] = []
    for part in parts.tokens(len(token_N)):
        if perturbed_ND is None:
            p = _one_view(hidden_ND[part], parts, token_N[part])
            found.append(TokenStatistics(p.logp_N, p.entropy_N))
        else:
            views = hidden_ND[part], perturbed_ND[part]
            found.append(_two_views(*views, parts, token_N[part], jsd))
    names = [f.name for f in fields(TokenStatistics) if getattr(found[0], f.name) is not None]
    return TokenStatistics(**{n: torch.cat([getattr(c, n) for c in found]) for n in names})


class _TokenLogp(torch.autograd.Function):
    """Streamed log-prob and entropy whose backward computes each tile's logits again.

    Written out, not checkpointed tile by tile, for one reason: the tiles' gradients of the head
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
        max_elements: int | None,
        suppressed_ids: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        parts = _Parts(Head(weight_VD, bias_V, temperature, suppressed_ids), max_elements)
        sums = [_one_view(hidden_ND[part], parts, token_N[part]) for part in parts.tokens(len(token_N))]
        logp_N = torch.cat([p.logp_N for p in sums])
        entropy_N = torch.cat([p.entropy_N for p in sums])
        total_N = torch.cat([p.total_N for p in sums])
        ctx.save_for_backward(hidden_ND, weight_VD, bias_V, token_N, suppressed_ids, entropy_N, total_N)
        ctx.temperature, ctx.max_elements = temperature, max_elements
        return logp_N, entropy_N

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_logp_N: Tensor, d_entropy_N: Tensor) -> tuple[Tensor | None, ...]:
        hidden_ND, weight_VD, bias_V, token_N, suppressed_ids, entropy_N, total_N = ctx.saved_tensors
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        parts = _Parts(Head(weight_VD, bias_V, ctx.temperature, suppressed_ids), ctx.max_elements)
        d_hidden = torch.zeros_like(hidden_ND, dtype=torch.float32) if need_hidden else None
        d_weight = torch.zeros_like(weight_VD, dtype=torch.float32) if need_weight else None
        d_bias = torch.zeros_like(bias_V, dtype=torch.float32) if need_bias else None
        plain = not d_entropy_N.any()
        for first, head in parts.parts:
            ids = slice(first, first + len(head.weight_VD))
            for part in parts.tokens(len(token_N)):
                logp_NV = head.logits_NV(hidden_ND[part]).sub_(total_N[part].unsqueeze(1))
                # d logp[token] / d logit_v = [v = token] - p_v;  d H / d logit_v = -p_v (log p_v + H).
                d_logp_N1 = d_logp_N[part].unsqueeze(1)
                if plain:
                    d_logits_NV = logp_NV.exp_().mul_(-d_logp_N1)
                else:
                    p_NV = logp_NV.exp()
                    logp_NV += entropy_N[part].unsqueeze(1)
                    logp_NV *= -d_entropy_N[part].unsqueeze(1)
                    d_logits_NV = logp_NV.sub_(d_logp_N1).mul_(p_NV)
                _add_chosen(d_logits_NV, first, token_N[part], d_logp_N[part])
                sums = _at_part(d_hidden, part), _at_part(d_weight, ids), _at_part(d_bias, ids)
                _through_head(d_logits_NV, head, hidden_ND[part], *sums)
        return (
            None if d_hidden is None else d_hidden.to(hidden_ND.dtype),
            None if d_weight is None else d_weight.to(weight_VD.dtype),
            None if d_bias is None else d_bias.to(bias_V.dtype),
            *(None,) * 4,
        )


def _add_chosen(d_logits_NV: Tensor, first: int, token_N: Tensor, d_logp_N: Tensor) -> None:
    """Add the gradient of each row's chosen token, where the tile that begins with id ``first`` has it."""
    place_N1, width = token_N.unsqueeze(1) - first, d_logits_NV.shape[1]
    here_N1 = (place_N1 >= 0) & (place_N1 < width)
    d_logits_NV.scatter_add_(1, place_N1.clamp(0, width - 1), torch.where(here_N1, d_logp_N.unsqueeze(1), 0.0))


def _at_part(sum_: Tensor | None, part: slice) -> Tensor | None:
    return None if sum_ is None else sum_[part]


def _through_head(
    d_logits_NV: Tensor,
    head: Head,
    hidden_ND: Tensor,
    d_hidden_ND: Tensor | None,
    d_weight_VD: Tensor | None,
    d_bias_V: Tensor | None,
) -> None:
    """Add a tile's gradient to those of its hidden states, weights and biases, float32, where they are wanted."""
    if head.suppressed_ids is not None:  # a suppressed logit is a constant
        d_logits_NV.index_fill_(1, head.suppressed_ids, 0.0)
    if head.temperature != 1:
        d_logits_NV /= head.temperature
    if d_bias_V is not None:
        d_bias_V += d_logits_NV.sum(0)
    d_logits_NV = d_logits_NV.to(head.weight_VD.dtype)
    if d_hidden_ND is not None:
        d_hidden_ND += _matmul(d_logits_NV, head.weight_VD)
    if d_weight_VD is not None:
        d_weight_VD += _matmul(d_logits_NV.T, hidden_ND)


def token_logp(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    token_N: Tensor,
    *,
    bias_V: Tensor | None = None,
    temperature: float = 1.0,
    max_elements: int | None = None,
    suppressed_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-prob of the sampled tokens and exact entropy -> (logp_N, entropy_N), with gradients.

    Gradients reach ``hidden_ND``, ``weight_VD`` and ``bias_V``; the logits are computed again in
    the backward pass, so the head must still be whole then. The values are bit for bit those of
    :func:`token_statistics` with the same ``max_elements``, given the same hidden states: on-policy the
    ratio is exactly 1 where groups are scored and trained in the same passes, else 1 but for rounding
    (docs/gpu.md). Arguments as there.
    """
    _check(hidden_ND, weight_VD, token_N, temperature)
    logp_N, entropy_N = _TokenLogp.apply(
        hidden_ND, weight_VD, bias_V, token_N, temperature, max_elements, suppressed_ids
    )
    return logp_N, entropy_N


class _TwoViews(torch.autograd.Function):
    """``_TokenLogp`` of both views and their divergence, in one pass over the vocabulary each way.

    With a, b the logits of both, p = softmax(a), q = softmax(b):
    d KL / d a_v = p_v (log p_v - log q_v - KL), d KL / d b_v = q_v - p_v; the others as there.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        perturbed_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        token_N: Tensor,
        temperature: float,
        max_elements: int | None,
        suppressed_ids: Tensor | None,
    ) -> tuple[Tensor, ...]:
        parts = _Parts(Head(weight_VD, bias_V, temperature, suppressed_ids), max_elements)
        found = [
            _both_views(hidden_ND[part], perturbed_ND[part], parts, token_N[part])
            for part in parts.tokens(len(token_N))
        ]
        entropy_N, entropy_q_N = (torch.cat([s.entropy_N for s in sums]) for sums in _views(found))
        total_N, total_q_N = (torch.cat([s.total_N for s in sums]) for sums in _views(found))
        logp_N, logq_N = (torch.cat([s.logp_N for s in sums]) for sums in _views(found))
        kl_N = torch.cat([both.kl_N for both in found])
        ctx.save_for_backward(
            hidden_ND,
            perturbed_ND,
            weight_VD,
            bias_V,
            token_N,
            suppressed_ids,
            entropy_N,
            entropy_q_N,
            total_N,
            total_q_N,
            kl_N,
        )
        ctx.temperature, ctx.max_elements = temperature, max_elements
        return logp_N, entropy_N, logq_N, entropy_q_N, kl_N

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *d_N: Tensor) -> tuple[Tensor | None, ...]:
        d_logp_N, d_entropy_N, d_logq_N, d_entropy_q_N, d_kl_N = d_N
        hidden_ND, perturbed_ND, weight_VD, bias_V, token_N, suppressed_ids, *sums = ctx.saved_tensors
        entropy_N, entropy_q_N, total_N, total_q_N, kl_N = sums
        need_hidden, need_perturbed, need_weight, need_bias = ctx.needs_input_grad[:4]
        parts = _Parts(Head(weight_VD, bias_V, ctx.temperature, suppressed_ids), ctx.max_elements)
        d_hidden = torch.zeros_like(hidden_ND, dtype=torch.float32) if need_hidden else None
        d_perturbed = torch.zeros_like(perturbed_ND, dtype=torch.float32) if need_perturbed else None
        d_weight = torch.zeros_like(weight_VD, dtype=torch.float32) if need_weight else None
        d_bias = torch.zeros_like(bias_V, dtype=torch.float32) if need_bias else None
        for first, head in parts.parts:
            ids = slice(first, first + len(head.weight_VD))
            for part in parts.tokens(len(token_N)):
                logp_NV = head.logits_NV(hidden_ND[part]).sub_(total_N[part, None])
                logq_NV = head.logits_NV(perturbed_ND[part]).sub_(total_q_N[part, None])
                p_NV, q_NV, d_kl_N1 = logp_NV.exp(), logq_NV.exp(), d_kl_N[part, None]
                apart_NV = (logp_NV - logq_NV).sub_(kl_N[part, None]).mul_(d_kl_N1)
                logp_NV.add_(entropy_N[part, None]).mul_(-d_entropy_N[part, None]).sub_(d_logp_N[part, None])
                d_a_NV = logp_NV.add_(apart_NV).mul_(p_NV)
                del apart_NV, logp_NV
                logq_NV.add_(entropy_q_N[part, None]).mul_(-d_entropy_q_N[part, None]).sub_(d_logq_N[part, None])
                d_b_NV = logq_NV.add_(d_kl_N1).mul_(q_NV).sub_(p_NV.mul_(d_kl_N1))
                del p_NV, q_NV, logq_NV
                views = ((d_a_NV, d_logp_N, hidden_ND, d_hidden), (d_b_NV, d_logq_N, perturbed_ND, d_perturbed))
                for d_logits_NV, d_chosen_N, states_ND, d_states in views:
                    _add_chosen(d_logits_NV, first, token_N[part], d_chosen_N[part])
                    into = _at_part(d_states, part), _at_part(d_weight, ids), _at_part(d_bias, ids)
                    _through_head(d_logits_NV, head, states_ND[part], *into)
        return (
            None if d_hidden is None else d_hidden.to(hidden_ND.dtype),
            None if d_perturbed is None else d_perturbed.to(perturbed_ND.dtype),
            None if d_weight is None else d_weight.to(weight_VD.dtype),
            None if d_bias is None else d_bias.to(bias_V.dtype),
            *(None,) * 4,
        )


def _views(found: list[_Both]) -> tuple[list[_Sums], list[_Sums]]:
    return [both.p for both in found], [both.q for both in found]


def views_logp(
    hidden_ND: Tensor,
    perturbed_ND: Tensor,
    weight_VD: Tensor,
    token_N: Tensor,
    *,
    bias_V: Tensor | None = None,
    temperature: float = 1.0,
    max_elements: int | None = None,
    suppressed_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """:func:`token_logp` of both views, and KL(p || q) over the vocabulary: (logp_N, entropy_N, logq_N,
    entropy_q_N, kl_N), with gradients to both.

    The values are bit for bit those of :func:`token_statistics` with the same ``max_elements``. In the backward
    pass some six tiles of ``max_elements`` numbers are alive at once. Arguments as there.
    """
    _check(hidden_ND, weight_VD, token_N, temperature)
    assert perturbed_ND.shape == hidden_ND.shape, "views differ in shape"
    logp_N, entropy_N, logq_N, entropy_q_N, kl_N = _TwoViews.apply(
        hidden_ND, perturbed_ND, weight_VD, bias_V, token_N, temperature, max_elements, suppressed_ids
    )
    return logp_N, entropy_N, logq_N, entropy_q_N, kl_N


def _given(statistic_N: Tensor | None) -> Tensor:
    assert statistic_N is not None, "this estimator needs what was not read"
    return statistic_N


ESTIMATORS: dict[str, Callable[[TokenStatistics], Tensor]] = {
    "kl": lambda s: _given(s.kl),
    "k3": lambda s: k3(s.logp, _given(s.logp_perturbed)),
    "jsd": lambda s: _given(s.jsd),
    "log_ratio": lambda s: _given(s.log_ratio),
    "top1_drop": lambda s: s.logp.exp() - _given(s.logp_perturbed).exp(),
    "argmax_drop": lambda s: _given(s.argmax_drop),
    "entropy": lambda s: s.entropy,
    "image_similarity": lambda s: _given(s.image_similarity),
    "layer_similarity": lambda s: _given(s.layer_similarity),
}
"""Statistics -> token perception S, [N]. ``kl`` is eq. 3, ``k3`` what the authors ran, ``top1_drop``
pi(o | I) - pi(o | I') of the sampled token (paper appendix G), ``argmax_drop`` that of the likeliest."""

SIMILARITIES = ("image_similarity", "layer_similarity")
"""Estimators from hidden states. Those that are not in ESTIMATORS, ``random`` and ``oracle``, are not the model's."""
