"""Rollout engines by name."""

from __future__ import annotations

from collections.abc import Callable

from pipelines.model.policy import Policy
from pipelines.rollout.engine import Engine, LiveEngine
from pipelines.rollout.hf import HuggingFaceEngine


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
