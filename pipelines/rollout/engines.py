"""What generates responses: one method, one dict of implementations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from pipelines.disk.records import Sample
from pipelines.errors import UserError
from pipelines.model.policy import Policy
from pipelines.rollout import decoding
from pipelines.rollout.sampling import Sampling, uniforms

Name = tuple[int | str, ...]


@dataclass(frozen=True)
class Response:
    """One sampled response: its ids (with the end token unless truncated), log-probs and text, and how
    many tokens its prompt has."""

    ids: list[int]
    logp: list[float]
    text: str
    truncated: bool
    prompt_tokens: int = 0


class Engine(Protocol):
    """Generates ``sampling.samples`` responses to each prompt with the policy's current weights."""

    def generate(
        self, samples: Sequence[Sample], names: Sequence[Name], sampling: Sampling
    ) -> list[list[Response]]:
        """One list of responses per sample; ``names`` seed them (see pipelines/rollout/sampling.py)."""


@runtime_checkable
class LiveEngine(Protocol):
    """An engine with weights of its own, kept for the whole session; it keeps no policy alive."""

    def sync(self, policy: Policy) -> None:
        """Take over the policy's weights, and forget what was computed with others."""

    def view(self, policy: Policy) -> Engine:
        """The engine asked as this policy asks: its images' sizes, its instruction."""

    def sleep(self) -> None:
        """Give the GPU's memory back until there is something to do."""

    def close(self) -> None:
        """End."""


class HuggingFaceEngine:
    """The policy's own model, with each prompt read once for all its samples (decoding.py)."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def generate(
        self, samples: Sequence[Sample], names: Sequence[Name], sampling: Sampling
    ) -> list[list[Response]]:
        policy = self.policy
        prompts = [encoded(policy, sample) for sample in samples]
        uniform_RT = torch.cat([uniforms(sampling, name, policy.device) for name in names])
        with policy.placement.gathered():
            ids_RT, logp_RT = decoding.sample(policy, prompts, uniform_RT, sampling)
        found = zip(ids_RT, logp_RT, strict=True)
        return [
            [cut(policy, *next(found), len(prompt["input_ids"])) for _ in range(sampling.samples)]
            for prompt in prompts
        ]


def encoded(policy: Policy, sample: Sample) -> dict[str, torch.Tensor]:
    """The policy's prompt.

    Raises:
        UserError: the processor refuses the sample.
    """
    try:
        return policy.encoder.encode(sample)
    except (ValueError, StopIteration, IndexError) as error:  # the processor's own checks
        raise UserError(
            f"question {sample.id}", f"the model's processor refuses it ({error or 'no reason told'}).",
            "Images far longer than wide, or a model's own special tokens in the text, are the "
            "usual reasons: leave the row out of the data.",
        ) from error  # fmt: skip


def cut(policy: Policy, ids: list[int], logp: list[float], prompt_tokens: int) -> Response:
    """The response up to its first end token."""
    ends = [i for i, token in enumerate(ids) if token in policy.eos_ids]
    length = ends[0] + 1 if ends else len(ids)
    ids = ids[:length]
    text = policy.tokenizer.decode(ids, skip_special_tokens=True)
    return Response(ids, logp[:length], text, not ends, prompt_tokens)


def _vllm(policy: Policy) -> LiveEngine:
    from pipelines.rollout.vllm.engine import make_engine  # vLLM is imported where it is used

    return make_engine(policy)


ENGINES: dict[str, Callable[[Policy], Engine | LiveEngine]] = {
    "hf": HuggingFaceEngine,
    "vllm": _vllm,
}
"""Rollout engines by name; an import path ``package.module:factory`` works as well."""
