"""What is told of a ledger, the same on every screen: its columns, its places, what the theorem assumes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from pipelines.ledger.credit import Disagreement
from pipelines.ledger.step import Ledger, Line
from pipelines.ledger.theorem import Assumptions, Estimate
from pipelines.words import counted


@dataclass(frozen=True)
class Column:
    """A number of a line: its name in JSON, on a page, what it means, and where it stands in the line."""

    key: str
    title: str
    about: str
    of: Callable[[Line], float | None]
    places: int = 2


def _share(role: str) -> Callable[[Line], float | None]:
    return lambda line: line.shares[role] if line.shares else None


COLUMNS = (
    Column("mass", "token mass", "(sum |w|)^2 / sum w^2 over the number of tokens", lambda x: x.mass),
    Column("overlap", "VPPO's top", "of its most weighted tokens, the share that VPPO keeps", lambda x: x.overlap),
    Column("correlation", "rank", "rank correlation of |w| with VPPO's over all tokens", lambda x: x.correlation),
    Column("perception", "perception", "share of |w| on tokens that tell what was seen", _share("perception")),
    Column("reasoning", "reasoning", "share of |w| on tokens that compute", _share("reasoning")),
    Column("template", "template", "share of |w| on all other tokens", _share("template")),
    Column("to_vppo", "cos VPPO", "cosine of the gradient with VPPO's", lambda x: x.to_vppo),
    Column("to_dapo", "cos DAPO", "cosine of the gradient with DAPO's", lambda x: x.to_dapo),
    Column("norm", "norm", "of the gradient, before clipping", lambda x: x.norm, 3),
    Column("variance", "variance", "of the gradient over the groups, DAPO's is 1", lambda x: x.variance),
    Column("predicted", "theory", "the variance by sum w^2 (Theorem 3.1's argument)", lambda x: x.predicted),
)


def cell(value: float | None, places: int = 2) -> str:
    """A number in fixed places; "" for none."""
    return "" if value is None else f"{value:.{places}f}"


def place_of(found: Ledger, row: int) -> tuple[int, int]:
    """(prompt, response) of a response, both from 1, by its number in the step."""
    for prompt, (rollout, _) in enumerate(found.groups, start=1):
        if row < len(rollout.response_ids):
            return prompt, row + 1
        row -= len(rollout.response_ids)
    raise IndexError(row)


def disagreement(found: Ledger, one: Disagreement) -> dict[str, Any]:
    """A token that two objectives rank differently; ``token`` counts from 1."""
    prompt, response = place_of(found, one.row)
    return asdict(one) | {
        "prompt": prompt,
        "response": response,
        "token": one.token + 1,
        "text": found.tokens[one.row][one.token],
        "role": found.roles[one.row][one.token] if found.roles else None,
    }


def size(found: Ledger) -> str:
    """``32 prompts x 8 responses, 6,912 tokens``."""
    counts = {len(rollout.response_ids) for rollout, _ in found.groups}
    each = counted(counts.pop(), "response") if len(counts) == 1 else "responses"
    return f"{counted(len(found.groups), 'prompt')} x {each}, {found.token_count:,} tokens"


def drawn(found: Assumptions) -> str:
    """What the assumptions were looked at on."""
    return f"{counted(found.tokens, 'token')} of {counted(found.responses, 'response')}"


def assumption_rows(found: Assumptions) -> list[tuple[str, str, Estimate]]:
    """(what, what the theorem assumes, what was found)."""
    return [
        ("cosine of the gradients of two tokens of a response", "0", found.cosine),
        ("spread of their norms (standard deviation over mean)", "0", found.spread),
        ("mean square norm of VPPO's tokens over that of all", "1", found.kept),
        ("rank correlation of norm and alpha", "0", found.alpha_norm),
        ("rank correlation of norm and |A|", "0", found.advantage_norm),
        ("rank correlation of alpha and |A|", "0", found.alpha_advantage),
    ]
