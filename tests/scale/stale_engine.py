"""A vLLM engine whose weights are never synchronised, for the test of the guard."""

from __future__ import annotations

from pipelines.policy import Policy
from pipelines.vllm_engine import VLLMEngine


class StaleEngine(VLLMEngine):
    def sync(self, policy: Policy) -> None:
        """Do nothing: the engine keeps the weights it began with."""
