"""Attention of responses that share one copy of their prompt, without a mask of all against all.

A row is ``[prompt | response 1 | ... | response G]``: the prompt attends to itself, and each response to
the prompt and to itself, causally. Of the L x L pairs of a row these are few, so attention goes in two
calls: the prompt's tokens as one causal sequence, then all responses side by side, as a batch, over the
prompt's keys and their own. A plain row is all prompt. The library's models call this through their
attention interface; nothing in them is changed, and calls without a layout (generation) are SDPA's.

Axes, the last letters of a tensor's name:

    B  rows     G  responses of a row     L  tokens of a row     H  heads     D  channels of a head
    P  tokens of the longest prompt       R  fed tokens of the longest response
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

NAME = "shared_prefix"


@dataclass(frozen=True)
class Layout:
    """Where prompts and responses are in a batch of right-padded rows.

    Attributes:
        prompts: P.
        index_BGR: column of each response's fed tokens; L, one past the row, where it has fewer.
        seen_BGRK: whether a response's token sees a key: the P columns of the prompts, then the R of
            its own response. None where no row has a response.
    """

    prompts: int
    index_BGR: Tensor
    seen_BGRK: Tensor | None
    _biases: dict[torch.dtype, Tensor] = field(default_factory=dict, repr=False)

    def to(self, device: torch.device) -> Layout:
        """The same on a device."""
        seen = None if self.seen_BGRK is None else self.seen_BGRK.to(device)
        return Layout(self.prompts, self.index_BGR.to(device), seen)

    def bias(self, dtype: torch.dtype) -> Tensor:
        """[B * G, 1, R, K]: 0 where a key is seen, else -inf. Made once, for the layers of a pass."""
        assert self.seen_BGRK is not None
        if dtype not in self._biases:
            seen = self.seen_BGRK.flatten(0, 1)[:, None]
            zeros = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
            self._biases[dtype] = zeros.masked_fill_(~seen, -torch.inf)
        return self._biases[dtype]


def layout(prompts: Sequence[int], responses: Sequence[Sequence[int]]) -> Layout:
    """The layout of rows.

    Args:
        prompts: tokens of each row's prompt.
        responses: fed tokens of each row's responses. Where no row has two, a prompt is taken with
            its response as one plain sequence.
    """
    if all(len(row) == 1 for row in responses):
        prompts = [n + row[0] for n, row in zip(prompts, responses, strict=True)]
        responses = [[] for _ in prompts]
    rows, most, longest = len(prompts), max(map(len, responses)), max(prompts)
    length = max(n + sum(row) for n, row in zip(prompts, responses, strict=True))
    fed = max((n for row in responses for n in row), default=0)
    index_BGR = torch.full((rows, most, fed), length)
    for b, (column, row) in enumerate(zip(prompts, responses, strict=True)):
        for g, count in enumerate(row):
            index_BGR[b, g, :count] = torch.arange(column, column + count)
            column += count
    if not index_BGR.numel():
        return Layout(longest, index_BGR, None)
    prompt_BP = torch.arange(longest) < torch.tensor(prompts)[:, None]
    seen_BGRK = torch.cat([
        prompt_BP[:, None, None].expand(rows, most, fed, longest),
        torch.ones(fed, fed, dtype=torch.bool).tril().expand(rows, most, fed, fed),
    ], dim=-1)  # fmt: skip
    return Layout(longest, index_BGR, seen_BGRK)


def attend(
    query_BHLD: Tensor, key_BHLD: Tensor, value_BHLD: Tensor, at: Layout, scale: float
) -> Tensor:
    """Attention of every token to what its row lets it see -> [B, H, L, D]."""
    rows, heads, length, channels = query_BHLD.shape
    query_BHPD, key_BHPD, value_BHPD = (
        x[:, :, : at.prompts] for x in (query_BHLD, key_BHLD, value_BHLD)
    )
    out_BHPD = scaled_dot_product_attention(
        query_BHPD, key_BHPD, value_BHPD, is_causal=True, scale=scale
    )
    if at.seen_BGRK is None:
        return out_BHPD
    count, fed = at.index_BGR.shape[1:]
    # One more column stands for the tokens that shorter responses lack.
    first_B11 = torch.arange(rows, device=query_BHLD.device)[:, None, None]
    own = (first_B11 * length + at.index_BGR.clamp(max=length - 1)).flatten()
    target = (first_B11 * (length + 1) + at.index_BGR).flatten()

    def responses(x_BHLD: Tensor) -> Tensor:
        """[B, H, L, D] -> [B * G, H, R, D]; a token's heads lie together, and are moved so."""
        found = x_BHLD.transpose(1, 2).reshape(rows * length, -1).index_select(0, own)
        return found.view(rows * count, fed, heads, channels).transpose(1, 2)

    def behind(x_BHLD: Tensor) -> Tensor:
        """Keys or values: the prompt's, and the response's own."""
        prompt = x_BHLD[:, None, :, : at.prompts].expand(-1, count, -1, -1, -1)
        return torch.cat([prompt.flatten(0, 1), responses(x_BHLD)], dim=2)

    found = scaled_dot_product_attention(
        responses(query_BHLD), behind(key_BHLD), behind(value_BHLD),
        attn_mask=at.bias(query_BHLD.dtype), scale=scale,
    ).transpose(1, 2).reshape(target.numel(), -1)  # fmt: skip
    rest = out_BHPD.new_zeros(rows, length + 1 - at.prompts, heads, channels)
    # A shorter prompt's row has responses where the longest prompt still goes on: they are set now.
    whole = torch.cat([out_BHPD.transpose(1, 2), rest], dim=1).view(rows * (length + 1), -1)
    whole = whole.index_copy(0, target, found).view(rows, length + 1, heads, channels)
    return whole[:, :length].transpose(1, 2)


def attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    prefix_layout: Layout | None = None, **settings: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """What the library's models call: [B, heads, L, D] and fewer key heads -> [B, L, heads, D]."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if prefix_layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:
        key, value = (x.repeat_interleave(repeats, dim=1) for x in (key, value))
    scale = settings.get("scaling") or query.shape[-1] ** -0.5
    return attend(query, key, value, prefix_layout, scale).transpose(1, 2), None


def use(model: Any) -> None:
    """Let a model's language part attend so."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation({"text_config": NAME})
