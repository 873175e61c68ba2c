"""What generates responses: one method, one dict of implementations."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from transformers import GenerationConfig

from pipelines.errors import UserError
from pipelines.policy import Policy
from pipelines.ragged import join
from pipelines.records import Sample
from pipelines.sampling import Sampling, SeededSampler, uniforms

Name = tuple[int | str, ...]


@dataclass(frozen=True)
class Response:
    """One sampled response: its ids (with the end token unless truncated), log-probs and text."""

    ids: list[int]
    logp: list[float]
    text: str
    truncated: bool


class Engine(Protocol):
    """Generates ``sampling.samples`` responses to each prompt with the policy's current weights."""

    def generate(
        self, samples: Sequence[Sample], names: Sequence[Name], sampling: Sampling
    ) -> list[list[Response]]:
        """One list of responses per sample; ``names`` seed them (see pipelines/sampling.py)."""


@runtime_checkable
class LiveEngine(Protocol):
    """An engine with weights of its own, kept for the whole session."""

    def sync(self, policy: Policy) -> None:
        """Take over the policy's weights, and forget what was computed with others."""

    def view(self, policy: Policy) -> Engine:
        """The engine asked as this policy asks: its images' sizes, its instruction."""

    def sleep(self) -> None:
        """Give the GPU's memory back until ``wake``."""

    def wake(self) -> None:
        """Take it again."""

    def close(self) -> None:
        """End."""


class HuggingFaceEngine:
    """transformers ``generate``: one left-padded batch, images encoded once per prompt."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    @torch.no_grad()
    def generate(
        self, samples: Sequence[Sample], names: Sequence[Name], sampling: Sampling
    ) -> list[list[Response]]:
        policy = self.policy
        batch = self._left_padded(samples)
        uniform_BT = torch.cat([uniforms(sampling, name, policy.device) for name in names])
        sampler = SeededSampler(sampling, uniform_BT, policy.suppressed_ids)
        with (
            policy.placement.gathered(),
            policy.compute_type(),
            _own_generation_settings_off(policy.model),
        ):
            output_BL = policy.model.generate(
                **batch, logits_processor=[sampler], do_sample=True, temperature=1.0, top_k=0,
                top_p=1.0, num_return_sequences=sampling.samples, use_cache=True,
                max_new_tokens=sampling.max_new_tokens, eos_token_id=policy.eos_ids,
                pad_token_id=policy.tokenizer.pad_token_id,
            )  # fmt: skip
        ids_BT = output_BL[:, batch["input_ids"].shape[1] :].tolist()
        logp_BT = torch.stack(sampler.logp, dim=1).tolist()
        responses = [cut(policy, ids, logp) for ids, logp in zip(ids_BT, logp_BT, strict=True)]
        count = sampling.samples
        return [responses[i : i + count] for i in range(0, len(responses), count)]

    def _left_padded(self, samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
        policy = self.policy
        prompts = [encoded(policy, sample) for sample in samples]
        longest = max(len(prompt["input_ids"]) for prompt in prompts)
        batch: dict[str, torch.Tensor] = {}
        for name in dict.fromkeys(name for prompt in prompts for name in prompt):
            if name == "position_ids":
                continue
            # A question without an image has no pixels.
            values = [prompt[name] for prompt in prompts if name in prompt]
            if name in ("input_ids", "mm_token_type_ids"):
                fill = policy.tokenizer.pad_token_id if name == "input_ids" else 0
                batch[name] = torch.stack(
                    [torch.nn.functional.pad(v, (longest - len(v), 0), value=fill) for v in values]
                )
            else:
                batch[name] = join(values)
        batch["attention_mask"] = torch.stack(
            [(torch.arange(longest) >= longest - len(p["input_ids"])).long() for p in prompts]
        )
        return {name: value.to(policy.device) for name, value in batch.items()}


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


def cut(policy: Policy, ids: list[int], logp: list[float]) -> Response:
    """The response up to its first end token."""
    ends = [i for i, token in enumerate(ids) if token in policy.eos_ids]
    length = ends[0] + 1 if ends else len(ids)
    ids = ids[:length]
    text = policy.tokenizer.decode(ids, skip_special_tokens=True)
    return Response(ids, logp[:length], text, truncated=not ends)


@contextlib.contextmanager
def _own_generation_settings_off(model: Any) -> Iterator[None]:
    """Without what the model's folder says about generating.

    ``generate`` would apply a repetition penalty found there before our sampler sees the logits:
    responses and log-probs would not be the policy's.
    """
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


def _vllm(policy: Policy) -> Engine:
    from pipelines.vllm_engine import make_engine  # vLLM is imported where it is used

    return make_engine(policy)


ENGINES: dict[str, Callable[[Policy], Engine]] = {"hf": HuggingFaceEngine, "vllm": _vllm}
"""Rollout engines by name; an import path ``package.module:factory`` works as well."""
