"""Sampling that does not depend on how work is batched.

Each response has its own stream of uniform numbers, named by (run seed, step, prompt, sample); token
t is drawn with the t-th of them by inverting the cumulative distribution. So the same response comes
out after any crash, and whatever else is in the batch as far as that leaves its log-probs alone: to the
last bits in float32, not so in bfloat16 (docs/gpu.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pipelines.seeds import generator


@dataclass(frozen=True)
class Sampling:
    """How to sample: temperature, nucleus mass, top-k (0 is off), tokens and samples per prompt.

    ``first`` is the number of a prompt's first sample: samples 4 to 7 of eight can be drawn alone.
    """

    temperature: float
    top_p: float
    top_k: int
    max_new_tokens: int
    samples: int
    seed: int
    first: int = 0


def uniforms(sampling: Sampling, name: tuple[int | str, ...], device: torch.device) -> torch.Tensor:
    """The numbers that draw the responses to one prompt [G, T], in [0, 1)."""
    rows = [
        torch.from_numpy(generator(sampling.seed, "sampling", *name, sample).random(sampling.max_new_tokens))
        for sample in range(sampling.first, sampling.first + sampling.samples)
    ]
    return torch.stack(rows).to(device)


def truncate(logp_BV: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor:
    """Set tokens outside the k likeliest, or outside the nucleus of mass p, to -inf.

    The nucleus is the smallest set of likeliest tokens whose mass reaches ``top_p``; it always holds
    the likeliest one.
    """
    if top_k and top_k < logp_BV.shape[-1]:
        floor_B1 = logp_BV.topk(top_k, dim=-1).values[:, -1:]
        logp_BV = logp_BV.masked_fill(logp_BV < floor_B1, -torch.inf)
    if top_p < 1:
        sorted_BV, order_BV = logp_BV.softmax(-1).sort(dim=-1, descending=True, stable=True)
        before_BV = sorted_BV.cumsum(-1) - sorted_BV
        outside_BV = torch.zeros_like(logp_BV, dtype=torch.bool)
        outside_BV.scatter_(-1, order_BV, before_BV >= top_p)
        logp_BV = logp_BV.masked_fill(outside_BV, -torch.inf)
    return logp_BV


def draw(logp_BV: torch.Tensor, uniform_B: torch.Tensor) -> torch.Tensor:
    """The token whose share of the cumulative distribution holds the uniform number [B]."""
    cumulative_BV = logp_BV.double().exp().cumsum(-1)
    total_B1 = cumulative_BV[:, -1:]
    # Strictly below the total, or rounding could pick a token past the last possible one.
    target_B1 = torch.minimum(uniform_B[:, None] * total_B1, total_B1.nextafter(total_B1 * 0))
    return torch.searchsorted(cumulative_BV, target_B1, right=True)[:, 0]


def next_token(logp_BV: torch.Tensor, uniform_B: torch.Tensor, sampling: Sampling) -> tuple[torch.Tensor, torch.Tensor]:
    """The token that each number draws, and its log-prob before top-k and top-p, [B] each.

    Args:
        logp_BV: log pi at the sampling's temperature.
        uniform_B: numbers in [0, 1).
    """
    token_B = draw(truncate(logp_BV, sampling.top_k, sampling.top_p), uniform_B)
    return token_B, logp_BV.gather(-1, token_B[:, None])[:, 0]
