"""The text of each token of a response, such that joined they are the response's text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_BROKEN = "\ufffd"
"""What a decoder makes of bytes that are no character, or not yet."""


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """One text a token; ``"".join`` of them is ``tokenizer.decode(ids, skip_special_tokens=True)``.

    A token that holds some bytes of a character is "", and the one that completes it has the
    character. Special tokens, such as the one that ends a response, are "".
    """
    whole = _decode(tokenizer, ids)
    texts = _by_windows(tokenizer, ids)
    return texts if "".join(texts) == whole else _by_prefixes(tokenizer, ids, whole)


def token_name(tokenizer: Any, token: int) -> str:
    """One token alone, as an alternative is shown: special tokens by their name."""
    return str(tokenizer.decode([token]))


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=True))


def _by_windows(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """What each token adds to the text of the few before it, back to the last complete character."""
    texts, start, done = [], 0, 0
    for end in range(1, len(ids) + 1):
        before, now = _decode(tokenizer, ids[start:done]), _decode(tokenizer, ids[start:end])
        if now.endswith(_BROKEN) or not now.startswith(before):
            texts.append("")
        else:
            texts.append(now[len(before) :])
            start, done = done, end
    return texts


def _by_prefixes(tokenizer: Any, ids: Sequence[int], whole: str) -> list[str]:
    """By how much of the whole text the first tokens give: slower, and right for any tokenizer."""
    texts, done = [], 0
    for end in range(1, len(ids) + 1):
        known = _common(_decode(tokenizer, ids[:end]), whole)
        known = len(whole) if end == len(ids) else max(done, known)
        texts.append(whole[done:known])
        done = known
    return texts


def _common(a: str, b: str) -> int:
    """How many characters they begin with in common."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
