"""Ways of a vision tower that cost less: its windows in one call, its patches by a product.

The library's towers of the Qwen and GLM families attend window by window, one call of SDPA each. Here
windows of one length attend as one batch: the same numbers to the last bit on a CPU. The library's code
is not changed: it looks functions up by name, and those whose name says flash are told where the
windows begin.

They embed patches by a convolution whose kernel is the whole patch. That is a product of patches and
weights, which adds in another order (1e-6 of the largest output in float32), is faster on a CPU, and
spares GPUs their convolutions of bfloat16 volumes.
"""

from __future__ import annotations

import copy
import inspect
import itertools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention
from torch.utils.weak import WeakTensorKeyDictionary

NAME = "flash_windows"


class PatchProduct(nn.Conv3d):
    """A convolution that takes inputs of its kernel's size as a product."""

    def forward(self, input: Tensor) -> Tensor:
        if input.shape[2:] != self.weight.shape[2:]:
            return super().forward(input)
        return linear(input.flatten(1), self.weight.flatten(1), self.bias)[..., None, None, None]


def use(model: Any) -> None:
    """Let a model's vision tower go these ways, where it is of a kind that can."""
    patches_by_product(model)
    attend_in_windows(model)


def attend_in_windows(model: Any) -> None:
    """Let windows of one length attend in one call, where there are windows."""
    if _in_windows(model):
        from transformers import AttentionInterface, AttentionMaskInterface
        from transformers.masking_utils import sdpa_mask

        AttentionInterface.register(NAME, attention)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        model.set_attn_implementation({"vision_config": NAME})


def patches_by_product(model: Any) -> None:
    """Let convolutions whose kernel may be a whole patch be products, in place."""
    for module in model.modules():
        if type(module) is nn.Conv3d and module.padding == (0, 0, 0) and module.groups == 1:
            module.__class__ = PatchProduct


def leave(model: Any, attention: str) -> None:
    """Let it go the library's ways, with this implementation of attention."""
    for module in model.modules():
        if type(module) is PatchProduct:
            object.__setattr__(module, "__class__", nn.Conv3d)
    leave_windows(model, attention)


def leave_windows(model: Any, attention: str = "sdpa") -> None:
    """Let windows attend one by one, as the library does."""
    if _in_windows(model):
        model.set_attn_implementation({"vision_config": attention})


def config_of(model: Any) -> Any:
    """A copy of a model's config that a model can be made of: for our name it would seek a kernel."""
    config = copy.deepcopy(model.config)
    tower = getattr(config, "vision_config", None)
    if tower is not None and getattr(tower, "_attn_implementation", None) == NAME:
        tower._attn_implementation = "sdpa"
    return config


def _in_windows(model: Any) -> bool:
    """Whether its vision tower's attention is given where windows begin."""
    return hasattr(model.config, "vision_config") and any(
        "cu_seqlens" in inspect.signature(module.forward).parameters for module in model.modules()
    )


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    cu_seq_lens_q: Tensor | None = None,
    scaling: float | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """What the library's towers call: [1, heads, N, D] each -> [1, N, heads, D], within windows.

    Args:
        cu_seq_lens_q: where each window begins, and N; None for a sequence without any.
    """
    if cu_seq_lens_q is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **settings)
    lengths, order_N, back_N = _windows(cu_seq_lens_q)
    parts, place = [], 0
    if order_N is not None:
        query, key, value = (x.index_select(2, order_N) for x in (query, key, value))
    for length, count in lengths:
        q, k, v = (
            x[0, :, place : place + length * count].unflatten(1, (count, length)).transpose(0, 1)
            for x in (query, key, value)
        )
        found = scaled_dot_product_attention(q, k, v, scale=scaling)  # [count, heads, length, D]
        parts.append(found.transpose(1, 2).flatten(0, 1))
        place += length * count
    out_NHD = parts[0] if len(parts) == 1 else torch.cat(parts)
    return (out_NHD if back_N is None else out_NHD.index_select(0, back_N))[None], None


Windows = tuple[list[tuple[int, int]], Tensor | None, Tensor | None]
_seen = WeakTensorKeyDictionary()
"""Windows by the tensor that says where they begin: one for all layers of a pass."""


def _windows(starts: Tensor) -> Windows:
    """How many windows there are of each length; how their tokens are ordered by it, and back.

    The orders are None where windows of one length stand together already.
    """
    if starts in _seen:
        return _seen[starts]
    by_length: dict[int, list[int]] = {}
    for begin, end in itertools.pairwise(starts.tolist()):
        if end > begin:
            by_length.setdefault(end - begin, []).append(begin)
    order = [torch.tensor(begins)[:, None] + torch.arange(length) for length, begins in by_length.items()]
    order_N = torch.cat([x.flatten() for x in order])
    found: Windows = [(length, len(begins)) for length, begins in by_length.items()], None, None
    if not torch.equal(order_N, torch.arange(len(order_N))):
        found = found[0], order_N.to(starts.device), order_N.argsort().to(starts.device)
    _seen[starts] = found
    return found
