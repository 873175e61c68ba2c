"""What generates responses: a rollout engine's one method, and what all of them need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from pipelines.disk.records import Rollout, Sample
from pipelines.errors import UserError
from pipelines.grading.reward import Graded
from pipelines.model.policy import Policy
from pipelines.model.sampling import Sampling

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


def group_row(
    sample: Sample, position: int, responses: Sequence[Response], marks: Sequence[Graded] = (), step: int = 0
) -> Rollout:
    """The responses to one prompt, and their marks if they were graded."""
    return Rollout(
        sample_id=sample.id,
        position=position,
        response_ids=[r.ids for r in responses],
        response=[r.text for r in responses],
        logp=[r.logp for r in responses],
        truncated=[r.truncated for r in responses],
        answer=[m.answer for m in marks],
        outcome=[m.outcome for m in marks],
        reward=[m.reward for m in marks],
        named={name: [m.named[name] for m in marks] for name in (marks[0].named if marks else ())},
        step=step,
        prompt_tokens=responses[0].prompt_tokens,
    )


class Engine(Protocol):
    """Generates ``sampling.samples`` responses to each prompt with the policy's current weights."""

    def generate(self, samples: Sequence[Sample], names: Sequence[Name], sampling: Sampling) -> list[list[Response]]:
        """One list of responses per sample; ``names`` seed them (see pipelines/model/sampling.py)."""


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


def encoded(policy: Policy, sample: Sample) -> dict[str, torch.Tensor]:
    """The policy's prompt.

    Raises:
        UserError: the processor refuses the sample.
    """
    try:
        return policy.encoder.encode(sample)
    except (ValueError, StopIteration, IndexError) as error:  # the processor's own checks
        raise UserError(
            f"question {sample.id}",
            f"the model's processor refuses it ({error or 'no reason told'}).",
            "Images far longer than wide, or a model's own special tokens in the text, are the "
            "usual reasons: leave the row out of the data.",
        ) from error


def cut(policy: Policy, ids: list[int], logp: list[float], prompt_tokens: int) -> Response:
    """The response up to its first end token."""
    ends = [i for i, token in enumerate(ids) if token in policy.eos_ids]
    length = ends[0] + 1 if ends else len(ids)
    ids = ids[:length]
    text = policy.tokenizer.decode(ids, skip_special_tokens=True)
    return Response(ids, logp[:length], text, not ends, prompt_tokens)
