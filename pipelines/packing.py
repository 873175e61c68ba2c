"""Which rows a group's responses go in: all behind one copy of their prompt, or one each. Torch-free.

A shared row reads the prompt and its image once. But causal attention over a plain row skips half of
its pairs, and a shared row's responses, which stand beside each other, skip none: where responses are
much longer than their prompt, plain rows cost less.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Setting = bool | Literal["auto"]


@dataclass(frozen=True)
class Costs:
    """Operations of a forward pass: of a token's matrices, of a pair of positions, of an image."""

    token: float
    pair: float
    image: float


def pairs(prompt: float, responses: Sequence[float], shared: bool) -> float:
    """Pairs of positions that attention goes through (pipelines/shared_prefix.py).

    Args:
        prompt: tokens of the prompt.
        responses: fed tokens of each response.
    """
    if not shared:
        return sum((prompt + n) ** 2 / 2 for n in responses)
    longest = max(responses)
    return prompt**2 / 2 + len(responses) * longest * (prompt + longest)


def tokens(prompt: float, responses: Sequence[float], shared: bool) -> float:
    """Tokens that the matrices see."""
    return sum(responses) + prompt * (1 if shared else len(responses))


def operations(costs: Costs, prompt: float, responses: Sequence[float], shared: bool) -> float:
    """Of a forward pass over the group, without the head."""
    return (
        costs.token * tokens(prompt, responses, shared)
        + costs.pair * pairs(prompt, responses, shared)
        + costs.image * (1 if shared else len(responses))
    )


def share(setting: Setting, costs: Costs, prompt: float, responses: Sequence[float]) -> bool:
    """Whether the responses share a row: as set, or what costs less."""
    if setting != "auto":
        return setting
    return operations(costs, prompt, responses, True) <= operations(costs, prompt, responses, False)
