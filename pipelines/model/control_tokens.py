"""Text from outside stays text: what a model would read as a control token is pulled apart, visibly.

A tokenizer reads ``<|im_end|>`` wherever it stands: in a question it could end the user's turn, or
announce an image that is not there. One function serves training, evaluation and perceive. Torch-free.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from functools import lru_cache
from typing import Any

IMAGE = "<image>"
"""Where an image goes in a question; no text in any case."""

THOUGHTS = ("<think>", "</think>")
"""Templates know these too, but they control nothing: questions name them to say how to answer."""

_CHAT = r"<\|[^<>|\s]{1,64}\|>"
"""A control token as most chat models write it: ``<|im_end|>``, ``<|image_pad|>``."""

_TEMPLATE = re.compile(rf"{_CHAT}|</?[^<>\s|/]{{1,64}}>|\[/?[A-Z_]{{2,64}}\]")
"""A marker in the source of a chat template: ``<start_of_turn>``, ``</s>``, ``[INST]``."""


@lru_cache(maxsize=8)
def control_tokens(processor: Any) -> frozenset[str]:
    """What the model at hand reads as control, as text.

    The special tokens of its tokenizer, its places for images and videos, and the markers of its chat
    template, be they tokens or not. Added tokens that are plain text (``<table>``, line breaks) are not.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    found = set(getattr(tokenizer, "all_special_tokens", ()))
    added = getattr(tokenizer, "added_tokens_decoder", {})
    found |= {token.content for token in added.values() if token.special}
    for holder in (processor, tokenizer):
        values = getattr(holder, "__dict__", {}).items()
        found |= {v for name, v in values if name.endswith("_token") and isinstance(v, str)}
        for source in _sources(getattr(holder, "chat_template", None)):
            found |= set(_TEMPLATE.findall(source)) - set(THOUGHTS)
    return frozenset(token for token in map(str, found) if len(token.strip()) > 1)


def _sources(template: Any) -> Iterator[str]:
    """The source of a chat template, of which there may be several by name."""
    if isinstance(template, str):
        yield template
    elif isinstance(template, dict):
        yield from (source for source in template.values() if isinstance(source, str))


def as_text(question: str, tokens: Collection[str] = frozenset()) -> str:
    """A question whose text holds no control token any more; the places of its images stay.

    Args:
        tokens: those of the model at hand. Without, only what most chat models write is found.
    """
    return IMAGE.join(without_tokens(part, tokens) for part in question.split(IMAGE))


def without_tokens(text: str, tokens: Collection[str] = frozenset()) -> str:
    """The text with control tokens pulled apart: ``< |im_end| >``, ``[ INST ]``."""
    return _pattern(frozenset(tokens)).sub(_apart, text)


@lru_cache(maxsize=8)
def _pattern(tokens: frozenset[str]) -> re.Pattern[str]:
    longest_first = sorted(tokens, key=lambda token: (-len(token), token))
    return re.compile("|".join([_CHAT, *map(re.escape, longest_first)]))


def _apart(match: re.Match[str]) -> str:
    token = match[0]
    return f"{token[0]} {token[1:-1]} {token[-1]}" if len(token) > 2 else " ".join(token)
