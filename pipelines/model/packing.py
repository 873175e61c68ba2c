"""Which rows a group's responses go in, and which groups a pass takes. Torch-free.

All responses stand behind one copy of their prompt, or each has a row of its own. A shared row reads the
prompt and its image once. But causal attention over a plain row skips half of its pairs, and a shared
row's responses, which stand beside each other, skip none: where responses are much longer than their
prompt, plain rows cost less.
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
    """Pairs of positions that attention goes through (pipelines/model/shared_prefix.py).

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


def fill(tokens: Sequence[int], most: int, budget: int | None, passes: int = 1, step: int = 1) -> list[list[int]]:
    """Which groups each pass takes: all of about the same number of tokens, none above the budget.

    Args:
        tokens: of each group.
        most: groups of a pass, at most.
        budget: tokens of a pass, at most; a group that has more goes alone. None: passes take ``most``
            groups each, in their order.
        passes: at least so many passes, if there are so many groups.
        step: their number is a multiple of this, if there are so many groups.
    """
    count = len(tokens)
    if budget is None and passes <= -(-count // most) and step == 1:
        return [list(range(i, min(i + most, count))) for i in range(0, count, most)]
    limit = budget or sum(tokens)
    least = -(-sum(min(n, limit) for n in tokens) // limit)
    for number in range(max(passes, -(-count // most), least), count):
        if number % step == 0:
            found = _deal(tokens, most, number)
            if all(len(part) == 1 or sum(tokens[i] for i in part) <= limit for part in found):
                return found
    return [[i] for i in range(count)]


def _deal(tokens: Sequence[int], most: int, number: int) -> list[list[int]]:
    """The largest group first, each to the pass with the fewest tokens so far that has room."""
    parts: list[list[int]] = [[] for _ in range(number)]
    loads = [0] * number
    for i in sorted(range(len(tokens)), key=lambda i: (-tokens[i], i)):
        place = min((p for p in range(number) if len(parts[p]) < most), key=lambda p: (loads[p], p))
        parts[place].append(i)
        loads[place] += tokens[i]
    return [sorted(part) for part in parts]
