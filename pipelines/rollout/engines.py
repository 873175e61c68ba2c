"""Rollout engines by name, and what is seen to of one that is a user's own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from pipelines.config.contracts import PAGE, Forms, find_factory, plain_list, plain_value, told
from pipelines.disk.records import Sample
from pipelines.errors import UserError
from pipelines.model.policy import Policy
from pipelines.model.sampling import Sampling
from pipelines.rollout.engine import Engine, LiveEngine, Name, Response
from pipelines.rollout.hf import HuggingFaceEngine
from pipelines.words import counted


def _vllm(policy: Policy) -> LiveEngine:
    """vLLM behind ``rollout.server``, or in this process; imported where it is used.

    Raises:
        UserError: it cannot ban what the policy never samples, is not there, or does not start.
    """
    from pipelines.rollout.vllm.engine import VLLMEngine, check_banned
    from pipelines.rollout.vllm.server import VLLMServer

    check_banned(policy)
    return VLLMServer(policy) if policy.config.rollout.server else VLLMEngine(policy)


ENGINES: dict[str, Callable[[Policy], Engine | LiveEngine]] = {"hf": HuggingFaceEngine, "vllm": _vllm}
"""An import path ``package.module:factory`` works as well."""

ONCE, KEPT = ("generate",), ("sync", "view", "sleep", "close")
"""The methods of an ``Engine``, and of a ``LiveEngine``."""


def find_engine(name: str) -> Callable[[Policy], Engine | LiveEngine]:
    """What makes the engine of this name. One of a user's own tells what it raises, and what it generates is looked at.

    Raises:
        UserError: there is none, or it lacks methods; from its methods, what they raised or returned.
    """
    factory = find_factory("rollout.engine", name, ENGINES, (ONCE, KEPT))
    if name in ENGINES:
        return factory
    place = f"rollout.engine: {name}"

    def make(policy: Policy) -> Any:
        vocabulary, never = policy.vocabulary, frozenset(policy.suppressed_ids.tolist())

        def look(found: Any, samples: Sequence[Sample], names: Sequence[Name], sampling: Sampling) -> Any:
            found = _plain(found)
            if problem := _problem_of(found, len(samples), sampling, vocabulary, never):
                raise UserError(place, f"generate returned {problem}", PAGE)
            return found

        def seen(engine: Any, forms: Forms) -> Any:
            looks: dict[str, Callable[..., Any]] = {"generate": look, "view": lambda view, _: seen(view, (ONCE,))}
            return told(place, engine, forms, looks)

        return seen(factory(policy), (ONCE, KEPT))

    return make


def _plain(found: Any) -> Any:
    """What an engine generated, with numpy's numbers as Python's own; what else it is, as it is."""
    if not isinstance(found, list | tuple):
        return found
    return [[*map(_plain_one, rows)] if isinstance(rows, list | tuple) else rows for rows in found]


def _plain_one(given: Any) -> Any:
    if not isinstance(given, Response):
        return given
    values = {name: getattr(given, name) for name in RESPONSE}
    plain = {name: (plain_list if name in MANY else plain_value)(value) for name, value in values.items()}
    same = all(plain[name] is value for name, value in values.items())
    return given if same else Response(**plain)


def _problem_of(found: Any, prompts: int, sampling: Sampling, vocabulary: int, never: frozenset[int]) -> str:
    """What is wrong with what an engine generated; "" if nothing is."""
    if not isinstance(found, list | tuple):
        return f"a {type(found).__name__}, not a list."
    if len(found) != prompts:
        return f"lists for {counted(len(found), 'prompt')}, and was asked for {prompts}."
    for number, responses in enumerate(found, start=1):
        of = f"prompt {number} of {prompts}"
        if not isinstance(responses, list | tuple):
            return f"for {of} a {type(responses).__name__}, not a list."
        if len(responses) != sampling.samples:
            return f"{counted(len(responses), 'response')} to {of}, and was asked for {sampling.samples}."
        for response in responses:
            if problem := _problem_of_one(response, sampling.max_new_tokens, vocabulary, never):
                return f"a response to {of} {problem}"
    return ""


def _problem_of_one(response: Any, most: int, vocabulary: int, never: frozenset[int]) -> str:
    if not isinstance(response, Response):
        return f"of type {type(response).__name__}, not pipelines.rollout.engine.Response."
    ids, logp = response.ids, response.logp
    for name, kinds in RESPONSE.items():
        value, many = getattr(response, name), name in MANY
        if many and not isinstance(value, list | tuple):
            return f"whose {name} are of type {type(value).__name__}, not a list."
        for kind in {*map(type, value)} if many else {type(value)}:  # few, where values are many
            if not issubclass(kind, kinds) or (kind is bool) != (kinds is bool):
                return f"with {name} of type {kind.__name__}."
    if not 0 < len(ids) <= most:
        return f"of {counted(len(ids), 'token')}: it has 1 to {most}."
    if len(logp) != len(ids):
        return f"of {counted(len(ids), 'token')} and {counted(len(logp), 'log-prob')}."
    if not 0 <= min(ids) <= max(ids) < vocabulary:
        return f"with the id {min(ids) if min(ids) < 0 else max(ids)}: there are 0 to {vocabulary - 1}."
    if not never.isdisjoint(ids):
        return f"with the id {min(never.intersection(ids))}, which the policy never samples (Policy.suppressed_ids)."
    return "" if all(map(math.isfinite, logp)) else "with a log-prob that is not finite."


RESPONSE: dict[str, type | tuple[type, ...]] = {
    "ids": int,
    "logp": (int, float),
    "text": str,
    "truncated": bool,
    "prompt_tokens": int,
}
"""Field of a ``Response`` -> its type, or that of its entries."""

MANY = ("ids", "logp")
"""Those with entries."""
