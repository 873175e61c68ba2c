"""A vLLM engine whose weights are never synchronised, for the test of the guard."""

from __future__ import annotations

from pipelines.model.policy import Policy
from pipelines.rollout.vllm.engine import VLLMEngine


class StaleEngine(VLLMEngine):
    def sync(self, policy: Policy) -> None:
        """Do nothing: the engine keeps the weights it began with."""
