"""Rollout engine ``hf``: the policy's own model samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pipelines.disk.records import Sample
from pipelines.model import decoding
from pipelines.model.policy import Policy
from pipelines.model.sampling import Sampling, uniforms
from pipelines.rollout.engine import Name, Response, cut, encoded


class HuggingFaceEngine:
    """The policy's own model, with each prompt read once for all its samples (decoding.py)."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def generate(self, samples: Sequence[Sample], names: Sequence[Name], sampling: Sampling) -> list[list[Response]]:
        policy = self.policy
        prompts = [encoded(policy, sample) for sample in samples]
        uniform_RT = torch.cat([uniforms(sampling, name, policy.device) for name in names])
        with policy.placement.gathered():
            ids_RT, logp_RT = decoding.sample(policy, prompts, uniform_RT, sampling)
        found = zip(ids_RT, logp_RT, strict=True)
        return [
            [cut(policy, *next(found), len(prompt["input_ids"])) for _ in range(sampling.samples)] for prompt in prompts
        ]
