"""Between ragged lists (group -> response -> token), flat tensors [N] and padded tensors [B, T]."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch


def batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Consecutive slices of at most ``size`` items."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def split_like(flat_N: torch.Tensor, groups: Sequence[Sequence[Sequence[int]]]) -> list[list[Any]]:
    """Cut a flat per-token tensor back into group -> response -> token lists."""
    values, start, result = flat_N.tolist(), 0, []
    for group in groups:
        rows = []
        for response in group:
            rows.append(values[start : start + len(response)])
            start += len(response)
        result.append(rows)
    return result


def join(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Several prompts' images in one tensor: along the first axis, the others zero-padded.

    Processors fill up with zeros too where one prompt has more tiles than another
    ([prompts, tiles, C, H, W]), and the models skip tiles of zeros.
    """
    shape = [max(sizes) for sizes in zip(*(t.shape[1:] for t in tensors), strict=True)]
    padded = []
    for tensor in tensors:
        missing = [most - size for most, size in zip(shape, tensor.shape[1:], strict=True)]
        ends = [x for n in reversed(missing) for x in (0, n)]
        padded.append(torch.nn.functional.pad(tensor, ends) if any(missing) else tensor)
    return torch.cat(padded)


def pad_lists(rows: Sequence[Sequence[Any]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ragged lists -> (values_BT float32, zero-padded; mask_BT bool)."""
    lengths_B = torch.tensor([len(row) for row in rows])
    mask_BT = torch.arange(int(lengths_B.max())) < lengths_B[:, None]
    flat_N = torch.tensor([value for row in rows for value in row], dtype=torch.float32)
    return torch.zeros(mask_BT.shape).masked_scatter_(mask_BT, flat_N), mask_BT
