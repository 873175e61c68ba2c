"""Sampling token after token, with each prompt read and kept once for all its samples.

(For a policy that takes the plain way it is the model's own ``generate``, one prompt at a time so that
nothing is filled up, with our sampler.)

Each step feeds the newest token of every response that goes on; the room of those that ended is given
back. A token's attention goes in two parts, over its prompt (one product for all samples of the prompt) and
over what its response has said so far, which are put together by their softmax denominators.

Axes, the last letters of a tensor's name:

    B  prompts     G  samples of a prompt     R  responses that go on     T  tokens of a response
    P  tokens of the longest prompt           D  channels of a head, or of the model
    K  key heads   Q  query heads of a key head
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pipelines.model import shared_prefix
from pipelines.model.divergence import DEFAULT_MAX_ELEMENTS, Head
from pipelines.model.policy import Encoded, Policy
from pipelines.model.sampling import Sampling, next_token

KEEP_ABOVE = 0.8
"""Ended responses are taken out once no more than this share goes on: copying the others costs too."""
ROOM = 32
"""Tokens for which a response has room at first; it doubles."""


@torch.no_grad()
def sample(
    policy: Policy, prompts: Sequence[Encoded], uniform_RT: Tensor, sampling: Sampling
) -> tuple[list[list[int]], list[list[float]]]:
    """Sample responses to prompts with the policy's whole weights.

    Args:
        uniform_RT: the numbers that draw each response's tokens, prompt by prompt.
        sampling: ``samples`` responses to each prompt, of ``max_new_tokens`` at most.

    Returns:
        The ids of each response, and log pi of each (temperature applied, before top-k and top-p);
        what stands after the first end token is without meaning.
    """
    if policy.plain:
        return _generate(policy, prompts, uniform_RT, sampling)
    device = policy.device
    lengths = [len(prompt["input_ids"]) for prompt in prompts]
    prefill = Prefill(lengths, device)
    with shared_prefix.used(policy.model), policy.compute_type():
        hidden_ND = _hidden_ND(policy, **policy.prompts(prompts), prefix_layout=prefill)
        last_B = torch.tensor(lengths, device=device).cumsum(0) - 1
        hidden_RD = hidden_ND[last_B].repeat_interleave(sampling.samples, 0)
        next_B = [int(policy.with_positions(p)["position_ids"].max()) + 1 for p in prompts]
        position_R = torch.tensor(next_B, device=device).repeat_interleave(sampling.samples)
        axes = len(prompts[0]["position_ids"])
        cache = KVCache(prefill, sampling.samples, sampling.max_new_tokens - 1)
        ends = torch.tensor(policy.eos_ids, device=device)
        ids_RT = torch.zeros(uniform_RT.shape, dtype=torch.long, device=device)
        logp_RT = torch.zeros(uniform_RT.shape, device=device)
        row_R = torch.arange(len(uniform_RT), device=device)
        ended_R = torch.zeros_like(row_R, dtype=torch.bool)
        for t in range(sampling.max_new_tokens):
            token_R, logp_R = _draw(policy, hidden_RD, uniform_RT[row_R, t], sampling)
            ids_RT[row_R, t], logp_RT[row_R, t] = token_R, logp_R
            ended_R |= torch.isin(token_R, ends)
            left = int((~ended_R).sum())
            if t + 1 == sampling.max_new_tokens or not left:
                break
            if left <= KEEP_ABOVE * len(row_R):
                kept = (~ended_R).nonzero()[:, 0]
                cache.keep(kept)
                row_R, token_R, ended_R = row_R[kept], token_R[kept], ended_R[kept]
            at_1R = (position_R[row_R] + t)[None]
            hidden_RD = _hidden_ND(
                policy,
                input_ids=token_R[None],
                attention_mask=torch.ones(1, 1, 1, 1, device=device),
                position_ids=at_1R if axes == 1 else at_1R.expand(axes, 1, -1),
                prefix_layout=cache,
            )
            cache.length += 1
    return ids_RT[:, : t + 1].tolist(), logp_RT[:, : t + 1].tolist()


def _hidden_ND(policy: Policy, **batch: Any) -> Tensor:
    return policy.model.base_model(**batch, use_cache=False).last_hidden_state[0]


def _draw(policy: Policy, hidden_RD: Tensor, uniform_R: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """The next token of each response and its log-prob."""
    head = Head(policy.head_weight, None, sampling.temperature, policy.suppressed_ids)
    rows = max(1, DEFAULT_MAX_ELEMENTS // len(head.weight_VD))
    found = [
        next_token(head.logits_NV(hidden_RD).log_softmax(-1), uniform_R, sampling)
        for hidden_RD, uniform_R in zip(hidden_RD.split(rows), uniform_R.split(rows), strict=True)
    ]
    token_R, logp_R = (torch.cat(parts) for parts in zip(*found, strict=True))
    return token_R, logp_R


def _generate(
    policy: Policy, prompts: Sequence[Encoded], uniform_RT: Tensor, sampling: Sampling
) -> tuple[list[list[int]], list[list[float]]]:
    """``sample`` the plain way."""
    from transformers import GenerationConfig, LogitsProcessorList

    model, ids, logp = policy.model, [], []
    # The model's own settings have no say: a repetition penalty would sample from another policy.
    own, model.generation_config = (
        model.generation_config,
        GenerationConfig(
            max_new_tokens=sampling.max_new_tokens,
            do_sample=False,
            eos_token_id=policy.eos_ids,
            pad_token_id=policy.eos_ids[0],
        ),
    )
    try:
        for prompt, uniform_GT in zip(prompts, uniform_RT.split(sampling.samples), strict=True):
            batch, sampler = (policy.copies(prompt, sampling.samples), _Sampler(policy, uniform_GT, sampling))
            with policy.compute_type():
                model.generate(**batch, logits_processor=LogitsProcessorList([sampler]), use_cache=True)
            ids += torch.stack(sampler.token_TG, 1).tolist()
            logp += torch.stack(sampler.logp_TG, 1).tolist()
    finally:
        model.generation_config = own
    return ids, logp


class _Sampler:
    """Draws the next token of every sample of a prompt, and leaves ``generate`` that one alone."""

    def __init__(self, policy: Policy, uniform_GT: Tensor, sampling: Sampling) -> None:
        self._policy, self._uniform_GT, self._sampling = policy, uniform_GT, sampling
        self.token_TG: list[Tensor] = []
        self.logp_TG: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        logits_GV = scores.float() / self._sampling.temperature
        logits_GV[:, self._policy.suppressed_ids] = -torch.inf
        uniform_G = self._uniform_GT[:, len(self.token_TG)]
        token_G, logp_G = next_token(logits_GV.log_softmax(-1), uniform_G, self._sampling)
        self.token_TG.append(token_G)
        self.logp_TG.append(logp_G)
        return torch.full_like(scores, -torch.inf).scatter_(1, token_G[:, None], 0.0)


class Prefill:
    """The pass over the prompts: every token sees its own prompt, and keys and values are kept."""

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        self.layout = shared_prefix.layout(lengths, [[] for _ in lengths]).to(device)
        self.lengths_B = torch.tensor(lengths, device=device)
        self.read: dict[int, tuple[Tensor, Tensor]] = {}

    def attend(self, layer: int, query_NHD: Tensor, key_NHD: Tensor, value_NHD: Tensor, scale: float) -> Tensor:
        """Attention of every token to its prompt [N, H, D]."""
        places_BP = self.layout.prompt_BP.clamp(max=len(key_NHD) - 1)
        # As the steps want them: [B, K, D, P] and [B, K, P, D].
        self.read[layer] = (
            key_NHD[places_BP].permute(0, 2, 3, 1).contiguous(),
            value_NHD[places_BP].transpose(1, 2).contiguous(),
        )
        return self.layout.attend(layer, query_NHD, key_NHD, value_NHD, scale)


class KVCache:
    """Keys and values of the prompts, and of what the responses to them said so far.

    Args:
        prefill: the pass over the prompts.
        samples: G.
        most: the most tokens that a response feeds.
    """

    def __init__(self, prefill: Prefill, samples: int, most: int) -> None:
        self.length, self._most = 0, most
        self._prompts = prefill.read
        lengths_B, longest = prefill.lengths_B, prefill.layout.prompt_BP.shape[1]
        past_BP = torch.arange(longest, device=lengths_B.device) >= lengths_B[:, None]
        self._bias_B11P = torch.zeros(past_BP.shape, device=past_BP.device).masked_fill(past_BP, -torch.inf)[
            :, None, None
        ]
        self._own: dict[int, tuple[Tensor, Tensor]] = {}
        self._set(torch.arange(len(lengths_B), device=lengths_B.device).repeat_interleave(samples))

    def _set(self, owner_R: Tensor) -> None:
        """Which prompt each response belongs to, in ascending order; each prompt has some."""
        self._owner_R = owner_R
        count_B = owner_R.bincount()
        self._most_of_one = int(count_B.max())
        number_R = torch.arange(len(owner_R), device=owner_R.device)
        within_R = number_R - (count_B.cumsum(0) - count_B)[owner_R]
        self._slot_R = owner_R * self._most_of_one + within_R

    def keep(self, place_R: Tensor) -> None:
        """Go on with these responses alone (ascending places)."""
        left_B, owner_R = self._owner_R[place_R].unique(return_inverse=True)
        if len(left_B) < len(self._bias_B11P):
            self._prompts = {layer: (key[left_B], value[left_B]) for layer, (key, value) in self._prompts.items()}
            self._bias_B11P = self._bias_B11P[left_B]
        self._set(owner_R)
        for layer, kept in self._own.items():
            self._own[layer] = tuple(self._roomy(x[place_R, :, : self.length]) for x in kept)  # type: ignore[assignment]

    def _roomy(self, said_RKTD: Tensor) -> Tensor:
        """The same with room for more."""
        rows, heads, length, channels = said_RKTD.shape
        room = min(max(ROOM, 2 * length), self._most)
        made = said_RKTD.new_empty(rows, heads, room, channels)
        made[:, :, :length] = said_RKTD
        return made

    def _append(self, layer: int, *new: Tensor) -> list[Tensor]:
        """Add the newest token's key and value [R, K, D] -> all so far [R, K, T, D]."""
        kept = self._own.get(layer) or tuple(self._roomy(x[:, :, None][:, :, :0]) for x in new)
        if kept[0].shape[2] == self.length:
            kept = tuple(self._roomy(x) for x in kept)
        for buffer, x in zip(kept, new, strict=True):
            buffer[:, :, self.length] = x
        self._own[layer] = kept  # type: ignore[assignment]
        return [x[:, :, : self.length + 1] for x in kept]

    def attend(self, layer: int, query_NHD: Tensor, key_NHD: Tensor, value_NHD: Tensor, scale: float) -> Tensor:
        """Attention of each response's newest token, which joins what was said [R, H, D]."""
        rows, heads, channels = query_NHD.shape
        own_RKTD, value_RKTD = self._append(layer, key_NHD, value_NHD)
        prompt_BKDP, value_BKPD = self._prompts[layer]
        query_RKQD = query_NHD.reshape(rows, own_RKTD.shape[1], -1, channels)

        over_RKQT = _product(query_RKQD, own_RKTD.transpose(-1, -2)) * scale
        over_BKXP = _product(self._by_prompt(query_RKQD), prompt_BKDP) * scale + self._bias_B11P
        top_BKX1 = over_BKXP.amax(-1, keepdim=True)
        share_BKXP = (over_BKXP - top_BKX1).exp_()
        read_RKQD = self._by_response(_product(share_BKXP.to(value_BKPD.dtype), value_BKPD), rows)
        sum_RKQ1 = self._by_response(share_BKXP.sum(-1, keepdim=True), rows)
        top_RKQ1 = self._by_response(top_BKX1, rows)

        both_RKQ1 = torch.maximum(over_RKQT.amax(-1, keepdim=True), top_RKQ1)
        share_RKQT = (over_RKQT - both_RKQ1).exp_()
        weight_RKQ1 = (top_RKQ1 - both_RKQ1).exp_()
        found = _product(share_RKQT.to(value_RKTD.dtype), value_RKTD) + read_RKQD * weight_RKQ1
        found = found / (share_RKQT.sum(-1, keepdim=True) + sum_RKQ1 * weight_RKQ1)
        return found.to(query_NHD.dtype).reshape(rows, heads, channels)

    def _by_prompt(self, x_RKQD: Tensor) -> Tensor:
        """[R, K, Q, D] -> [B, K, G * Q, D]; nothing where a prompt has fewer responses."""
        rows, heads, queries, channels = x_RKQD.shape
        prompts, each = len(self._bias_B11P), self._most_of_one
        if rows < prompts * each:
            grid = x_RKQD.new_zeros(prompts * each, *x_RKQD.shape[1:])
            x_RKQD = grid.index_copy_(0, self._slot_R, x_RKQD)
        grid = x_RKQD.view(prompts, each, heads, queries, channels).transpose(1, 2)
        return grid.reshape(prompts, heads, each * queries, channels)

    def _by_response(self, x_BKXD: Tensor, rows: int) -> Tensor:
        """And back."""
        prompts, heads, _, channels = x_BKXD.shape
        each = self._most_of_one
        flat = x_BKXD.view(prompts, heads, each, -1, channels).transpose(1, 2).flatten(0, 1)
        return flat if rows == len(flat) else flat.index_select(0, self._slot_R)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Batched a @ b [..., n, m] in float32, of exact products for half-precision inputs."""
    with torch.autocast(a.device.type, enabled=False):
        if a.is_cuda and a.dtype in (torch.bfloat16, torch.float16):
            flat = torch.bmm(a.flatten(0, 1), b.flatten(0, 1), out_dtype=torch.float32)
            return flat.view(*a.shape[:-1], b.shape[-1])
        return a.float() @ b.float()
