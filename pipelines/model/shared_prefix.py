"""Attention of responses that share one copy of their prompt, without a mask of all against all.

A pass takes one sequence without padding: ``[prompt | response 1 | ... | response G | prompt | ...]``, row
after row. A prompt attends to itself, and each response to its prompt and to itself, causally. Of the
N x N pairs these are few, so attention goes in two calls: all prompts side by side, as a batch, then all
responses side by side, over their prompts' keys and their own. A plain row is all prompt. The library's
models call this through their attention interface; nothing in them is changed, and calls without a layout
are SDPA's.

Axes, the last letters of a tensor's name:

    B  rows     N  tokens of the sequence     H  heads     D  channels of a head
    P  tokens of the longest prompt           R  fed tokens of the longest response
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

NAME = "shared_prefix"
SIMILAR = 0.7
"""Responses attend beside those up to this much longer: what they lack is filled up."""


class Attends(Protocol):
    """What says who attends to whom in a pass; the models hand it on as ``prefix_layout``."""

    def attend(self, layer: int, query_NHD: Tensor, key_NHD: Tensor, value_NHD: Tensor, scale: float) -> Tensor:
        """Attention of every token [N, H, D]; keys and values may have fewer heads."""


@dataclass(frozen=True)
class ResponseBucket:
    """Responses of about one length, which attend side by side.

    Axes: C responses; K keys: those of the longest prompt, then R.

    Attributes:
        owner_C: the row each belongs to.
        index_CR: place of each response's fed tokens; N, one past the last, where it has fewer.
        seen_CRK: whether a token sees a key.
    """

    owner_C: Tensor
    index_CR: Tensor
    seen_CRK: Tensor
    _biases: dict[torch.dtype, Tensor] = field(default_factory=dict, repr=False)

    def to(self, device: torch.device) -> ResponseBucket:
        """The same on a device."""
        return ResponseBucket(self.owner_C.to(device), self.index_CR.to(device), self.seen_CRK.to(device))

    def bias(self, dtype: torch.dtype) -> Tensor:
        """[C, 1, R, K]: 0 where a key is seen, else -inf. Made once, for the layers of a pass."""
        if dtype not in self._biases:
            zeros = torch.zeros(self.seen_CRK.shape, dtype=dtype, device=self.seen_CRK.device)
            self._biases[dtype] = zeros.masked_fill_(~self.seen_CRK, -torch.inf)[:, None]
        return self._biases[dtype]


@dataclass(frozen=True)
class Layout:
    """Where prompts and responses are in the sequence.

    Attributes:
        prompt_BP: place of each prompt's tokens; N, one past the last, where it has fewer.
        responses: of similar lengths together, so that little is filled up.
        back_N: where each token is among the prompts', then the parts', filled up as they are.
    """

    prompt_BP: Tensor
    responses: tuple[ResponseBucket, ...]
    back_N: Tensor

    def to(self, device: torch.device) -> Layout:
        """The same on a device."""
        parts = tuple(part.to(device) for part in self.responses)
        return Layout(self.prompt_BP.to(device), parts, self.back_N.to(device))

    def attend(self, layer: int, query_NHD: Tensor, key_NHD: Tensor, value_NHD: Tensor, scale: float) -> Tensor:
        """Attention of every token to what its row lets it see -> [N, H, D]."""
        count, heads, channels = query_NHD.shape

        def taken(x_NHD: Tensor, index: Tensor) -> Tensor:
            """Tokens at these places; a token's heads lie together, and are moved so."""
            flat = x_NHD.reshape(count, -1).index_select(0, index.clamp(max=count - 1).flatten())
            return flat.view(*index.shape, *x_NHD.shape[1:])

        key_BPHD, value_BPHD = taken(key_NHD, self.prompt_BP), taken(value_NHD, self.prompt_BP)
        found = [_attention(taken(query_NHD, self.prompt_BP), key_BPHD, value_BPHD, scale, None)]
        for part in self.responses:
            longest = part.seen_CRK.shape[2] - part.index_CR.shape[1]

            def behind(own_NHD: Tensor, prompt_BPHD: Tensor, part: ResponseBucket, longest: int) -> Tensor:
                """Keys or values: the prompt's, and the response's own."""
                before = prompt_BPHD[:, :longest].index_select(0, part.owner_C)
                return torch.cat([before, taken(own_NHD, part.index_CR)], dim=1)

            found.append(
                _attention(
                    taken(query_NHD, part.index_CR),
                    behind(key_NHD, key_BPHD, part, longest),
                    behind(value_NHD, value_BPHD, part, longest),
                    scale,
                    part.bias(query_NHD.dtype),
                )
            )
        whole = torch.cat([x.reshape(-1, heads * channels) for x in found])
        return whole.index_select(0, self.back_N).view(count, heads, channels)


def _attention(query_BLHD: Tensor, key_BKHD: Tensor, value_BKHD: Tensor, scale: float, bias: Tensor | None) -> Tensor:
    """SDPA of a batch -> [B, L, H, D]; causal where there is no bias."""
    query, key, value = (x.transpose(1, 2) for x in (query_BLHD, key_BKHD, value_BKHD))
    repeats = query.shape[1] // key.shape[1]
    grouped = repeats > 1 and not query.is_cuda  # on GPUs not every kernel takes grouped heads
    if repeats > 1 and not grouped:
        key, value = (x.repeat_interleave(repeats, dim=1) for x in (key, value))
    return scaled_dot_product_attention(
        query, key, value, attn_mask=bias, is_causal=bias is None, scale=scale, enable_gqa=grouped
    ).transpose(1, 2)


def layout(prompts: Sequence[int], responses: Sequence[Sequence[int]]) -> Layout:
    """The layout of rows that stand one after another.

    Args:
        prompts: tokens of each row's prompt.
        responses: fed tokens of each row's responses. Where no row has two, a prompt is taken with
            its response as one plain sequence.
    """
    if all(len(row) <= 1 for row in responses):
        prompts = [n + sum(row) for n, row in zip(prompts, responses, strict=True)]
        responses = [[] for _ in prompts]
    total = sum(prompts) + sum(map(sum, responses))
    prompt_BP = torch.full((len(prompts), max(prompts)), total)
    place, fed = 0, []
    for b, (prompt, row) in enumerate(zip(prompts, responses, strict=True)):
        prompt_BP[b, :prompt] = torch.arange(place, place + prompt)
        place += prompt
        for count in row:
            if count:
                fed.append((count, b, place))
            place += count
    fed.sort(key=lambda response: -response[0])
    parts, first = [], 0
    for i in range(1, len(fed) + 1):
        if i == len(fed) or fed[i][0] < SIMILAR * fed[first][0]:
            parts.append(_bucket(fed[first:i], prompts, total))
            first = i
    filled_M = torch.cat([prompt_BP.flatten(), *(part.index_CR.flatten() for part in parts)])
    back_N = torch.empty(total + 1, dtype=torch.long)
    back_N[filled_M] = torch.arange(len(filled_M))  # what fills up lands one past the last
    return Layout(prompt_BP, tuple(parts), back_N[:total])


def _bucket(fed: Sequence[tuple[int, int, int]], prompts: Sequence[int], total: int) -> ResponseBucket:
    """Responses (fed tokens, row, place of the first), the longest first."""
    count_C1, owner_C, place_C1 = (torch.tensor(x) for x in zip(*fed, strict=True))
    prompt_C1 = torch.tensor(prompts)[owner_C, None]
    longest, most = int(prompt_C1.max()), fed[0][0]
    step_R = torch.arange(most)
    index_CR = place_C1[:, None] + step_R
    seen_CRK = torch.cat(
        [
            (torch.arange(longest) < prompt_C1)[:, None].expand(-1, most, -1),
            torch.ones(most, most, dtype=torch.bool).tril().expand(len(fed), -1, -1),
        ],
        dim=-1,
    )
    return ResponseBucket(owner_C, index_CR.masked_fill(step_R >= count_C1[:, None], total), seen_CRK)


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    prefix_layout: Attends | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """What the library's models call: [1, heads, N, D] and fewer key heads -> [1, N, heads, D]."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if prefix_layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    # Rotary embeddings make them float32, which SDPA rounds under autocast: sampling's own products have to
    # as well. In training they stay so up to SDPA, that copies' gradients add up in float32.
    if not torch.is_grad_enabled():
        query, key = query.to(value.dtype), key.to(value.dtype)
    scale = settings.get("scaling") or query.shape[-1] ** -0.5
    query_NHD, key_NHD, value_NHD = (x[0].transpose(0, 1) for x in (query, key, value))
    return prefix_layout.attend(module.layer_idx, query_NHD, key_NHD, value_NHD, scale)[None], None


def use(model: Any) -> None:
    """Let a model's language part attend so."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation({"text_config": NAME})


@contextlib.contextmanager
def used(model: Any) -> Iterator[None]:
    """Let it attend so for now, whatever it does else."""
    own = model.config.get_text_config()._attn_implementation
    use(model)
    try:
        yield
    finally:
        model.set_attn_implementation({"text_config": own})
