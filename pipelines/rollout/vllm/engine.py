"""The rollout engine ``vllm``: vLLM's continuous batching, kept alive for the whole session.

The engine has a copy of the weights, in ``model.dtype``; ``sync`` brings it the trainer's. It lives in
this process, beside the trainer on the same GPU, or behind HTTP (pipelines/rollout/vllm/server.py).

Sampling differs from the engine ``hf`` in the stream of random numbers only: here a response is drawn
by vLLM's generator, seeded by (run seed, prompt's name) plus the number of the sample. The same seed
gives the same responses however prompts are batched, but for a rounding difference that tips a token.

Recorded log-probs are of the policy: temperature applied, suppressed ids at 0, before top-k and top-p.
vLLM gives them so where nothing is truncated (its ``processed_logprobs``). With top-k or top-p it
records, at temperature 1, the model's own (``raw_logprobs``), which still count the suppressed ids:
lower by their mass, ``-log(1 - mass)``; at another temperature those after truncation, which are higher
by the mass that top-p or top-k cut off. Scoring computes the trainer's own in any case.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from pipelines.capacity.work import MAX_SEQUENCES, SLEEP_LEVEL
from pipelines.config.schema import Config
from pipelines.disk.records import Sample
from pipelines.errors import UserError
from pipelines.model import chat_template, determinism
from pipelines.model.files import cannot_load
from pipelines.model.policy import Policy, choose_device
from pipelines.model.prompts import model_location
from pipelines.model.sampling import Sampling
from pipelines.ranks.ranks import join_alone, ranks
from pipelines.rollout.engine import Engine, Name, Response, cut, encoded
from pipelines.seeds import generator

BAN = -100.0
"""The bias of a suppressed id: the lowest that vLLM takes. Below 1e-43 at temperature 1."""

MOST_BANNED = 1024
"""Ids that a request can ban with vLLM's runner for GPUs (Model Runner V2); the older has no limit."""

LEAST_TEMPERATURE = 0.01
"""Where vLLM's temperatures begin, but for 0."""

SPLIT = "VLLM_DISTRIBUTED_USE_SPLIT_GROUP"
OLD_RUNNER = "VLLM_USE_V2_MODEL_RUNNER"

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # weights are handed over inside this process
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}
CPU_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # or every rank would take the same core
    "TORCHDYNAMO_DISABLE": "1",  # half a minute of compiling, for nothing measurable
}


@dataclass(frozen=True)
class View:
    """A live engine asked as a policy asks: with its image sizes and its instruction."""

    engine: Any
    policy: Policy

    def generate(self, samples: Sequence[Sample], names: Sequence[Name], sampling: Sampling) -> list[list[Response]]:
        """One list of responses per sample."""
        return self.engine.generate_as(self.policy, samples, names, sampling)


class VLLMEngine:
    """vLLM in this process, on this rank's device.

    With several ranks each has its own, or ``rollout.tensor_parallel`` neighbours share one; those are
    given the same prompts. Weights are handed over by reference, one at a time, and cast while they
    are copied: a transfer between processes (CUDA IPC) has nothing to add here, and cannot open a
    handle in the process that made it.

    Raises:
        UserError: vLLM is not installed, or does not start with this model and memory.
    """

    def __init__(self, policy: Policy) -> None:
        self._cuda = policy.device.type == "cuda"
        self._free = partial(determinism.free, policy.device)
        with self._free():
            self._llm = _start(policy.config, self._cuda)
        self._asleep = False

    def sync(self, policy: Policy) -> None:
        """Copy the policy's weights into the engine; every rank calls it."""
        self._wake("weights")  # asleep, it gets them before its KV cache, whose room they need on their way
        weights = _detached(policy)
        with self._free():
            self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        for _ in weights:  # the ranks gather weights together: all of them iterate to the end
            pass
        self._wake("kv_cache")
        # What was computed with other weights: keys and values, and images behind the vision tower.
        self._llm.reset_prefix_cache()
        self._llm.llm_engine.reset_encoder_cache()

    def view(self, policy: Policy) -> Engine:
        """The engine asked as ``policy`` asks."""
        return View(self, policy)

    def sleep(self) -> None:
        """Move the weights to the machine's memory and drop the KV cache; on a CPU, nothing."""
        if self._cuda and not self._asleep:
            self._llm.sleep(level=SLEEP_LEVEL)
            self._asleep = True

    def _wake(self, *parts: str) -> None:
        """Give these parts their memory back; the last is ``kv_cache``."""
        if self._asleep:
            self._llm.wake_up(tags=list(parts))
            self._asleep = "kv_cache" not in parts

    def close(self) -> None:
        """Give its memory back."""
        self._llm.llm_engine.engine_core.shutdown()

    def generate_as(
        self, policy: Policy, samples: Sequence[Sample], names: Sequence[Name], sampling: Sampling
    ) -> list[list[Response]]:
        """One list of responses per sample, prompted as ``policy`` does.

        Raises:
            UserError: vLLM refuses a request, or reads it in other tokens than the trainer.
        """
        from vllm import SamplingParams
        from vllm.exceptions import VLLMClientError

        self._wake("weights", "kv_cache")
        prompts = [prompt(policy, sample) for sample in samples]
        try:
            settings = [
                SamplingParams(**sampling_settings(policy, name, sampling), logprobs=0, detokenize=False)
                for name in names
            ]
            with self._free():
                outputs = self._llm.generate(prompts, settings, use_tqdm=False)
        except (ValueError, VLLMClientError) as error:
            raise UserError(
                "rollout.engine: vllm",
                f"vLLM refuses a request: {error}",
                "Longer prompts than the model takes are the usual reason: see data.max_prompt_tokens "
                "and data.max_pixels.",
            ) from error
        found = []
        for sample, output in zip(samples, outputs, strict=True):
            check_prompt(policy, sample, output.prompt_token_ids)
            length = len(output.prompt_token_ids)
            found.append([_response(policy, done, length) for done in output.outputs])
        return found


def prompt(policy: Policy, sample: Sample) -> dict[str, Any]:
    """A sample as vLLM takes it: the chat's text, and its images before the processor resizes them."""
    chat = policy.encoder.messages(sample)
    request: dict[str, Any] = {"prompt": chat_template.render(policy.processor, chat)}
    if sample.images:
        request["multi_modal_data"] = {"image": policy.encoder.images(sample)}
        request["mm_processor_kwargs"] = image_settings(policy)
    return request


def image_settings(policy: Policy) -> dict[str, Any]:
    """What the engine's own image processor has to know: the policy's limits, if it has some."""
    size = policy.processor.image_processor.size
    edges = {name: size.get(name) for name in ("shortest_edge", "longest_edge")}
    return {"size": edges} if all(edges.values()) else {}


def sampling_settings(policy: Policy, name: Name, sampling: Sampling) -> dict[str, Any]:
    """vLLM's sampling parameters of one prompt; the names are those of its HTTP interface too.

    vLLM draws sample i of a request with the generator of ``seed + i``. A temperature below 0.01 it
    would raise to 0.01: one sample is taken greedily instead.
    """
    greedy = sampling.temperature < LEAST_TEMPERATURE and sampling.samples == 1
    base = int(generator(sampling.seed, "vllm", *name).integers(2**62))
    return {
        "n": sampling.samples,
        "seed": base + sampling.first,
        "max_tokens": sampling.max_new_tokens,
        "temperature": 0.0 if greedy else sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "logit_bias": {int(token): BAN for token in policy.suppressed_ids.tolist()},
        # Ours decide alone: vLLM's own end token is the tokenizer's.
        "ignore_eos": True,
        "stop_token_ids": list(policy.eos_ids),
    }


def logprobs_mode(config: Config) -> str:
    """Which of vLLM's log-probs are nearest the policy's (see the module)."""
    rollout = config.rollout
    truncates = rollout.top_p < 1 or rollout.top_k
    return "raw_logprobs" if truncates and rollout.temperature == 1 else "processed_logprobs"


def check_prompt(policy: Policy, sample: Sample, found: Sequence[int] | None) -> None:
    """Compare the engine's prompt with the trainer's.

    Raises:
        UserError: they differ: log-probs of one would not be those of the other.
    """
    ours = encoded(policy, sample)["input_ids"].tolist()
    theirs = list(found or [])
    if theirs == ours:
        return
    shared = next(
        (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs))
    )
    raise UserError(
        f"question {sample.id}",
        f"vLLM reads it as {len(theirs)} tokens, the trainer as {len(ours)}; they differ from token {shared}.",
        "Both must use the same model folder (tokenizer, chat template, image processor) and the "
        "versions of transformers and vllm that the package asks for.",
    )


def _response(policy: Policy, completion: Any, prompt_tokens: int) -> Response:
    ids = list(completion.token_ids)
    logp = [at[token].logprob for token, at in zip(ids, completion.logprobs, strict=True)]
    return cut(policy, ids, logp, prompt_tokens)


def _detached(policy: Policy) -> Iterator[tuple[str, torch.Tensor]]:
    for name, value in policy.placement.in_use(policy.model):
        yield name, value.detach()


def check(config: Config) -> Any:
    """What vLLM, in this process, makes of the model (its ModelConfig), before anything is paid.

    Raises:
        UserError: it is not installed, does not know the model, or cannot run it with these settings.
    """
    if os.environ.get(SPLIT, "0") != "0":
        raise UserError(
            f"{SPLIT}: {os.environ[SPLIT]}",
            "vLLM cannot divide a process group that it did not make.",
            "Unset it in the environment.",
        )
    on_cpu = {} if choose_device(config).type == "cuda" else CPU_ENVIRONMENT
    os.environ.update(ENVIRONMENT | on_cpu | dict(os.environ))
    try:
        from vllm.config import ModelConfig
    except ImportError as error:
        raise not_installed(error) from error
    try:
        found = ModelConfig(**_model(config))
    except ValueError as error:
        raise UserError(
            f"model.path {config.model.path}",
            f"vLLM does not take it: {_said(error)}",
            "rollout.engine=hf runs every model that is trained here.",
        ) from error
    except OSError as error:
        raise cannot_load(model_location(config.model), error) from error
    parts, heads = config.rollout.tensor_parallel, found.model_arch_config.total_num_attention_heads
    if heads % parts:
        raise UserError(
            f"rollout.tensor_parallel: {parts}",
            f"does not divide the model's {heads} attention heads.",
            f"Choose one of {', '.join(str(n) for n in range(1, heads + 1) if heads % n == 0)}.",
        )
    if config.rollout.max_new_tokens >= found.max_model_len:
        raise UserError(
            f"rollout.max_new_tokens: {config.rollout.max_new_tokens}",
            f"the model has {found.max_model_len} positions, for a prompt and its response.",
            "Lower it by the length of a prompt at least.",
        )
    return found


def check_banned(policy: Policy) -> None:
    """See that vLLM can ban every id that is never sampled.

    Raises:
        UserError: they are more than its runner for GPUs takes.
    """
    count, limited = len(policy.suppressed_ids), policy.device.type == "cuda"
    if limited and count > MOST_BANNED and os.environ.get(OLD_RUNNER) != "0":
        raise UserError(
            f"model.path {policy.config.model.path}",
            f"has {count} special and unused ids, never to be sampled; vLLM bans {MOST_BANNED} at most.",
            f"Set rollout.engine=hf; or {OLD_RUNNER}=0 in the environment, for vLLM's older runner.",
        )


def _model(config: Config) -> dict[str, Any]:
    """How vLLM is to read the model; as long as its positions, and the memory for its KV cache, allow."""
    return {
        "model": model_location(config.model),
        "revision": config.model.revision,
        "dtype": config.model.dtype,
        "max_model_len": -1,
        "generation_config": "vllm",
        "trust_remote_code": False,
        "logprobs_mode": logprobs_mode(config),
        "seed": 0,
    }


def _start(config: Config, cuda: bool) -> Any:
    known = check(config)
    from vllm import LLM

    several, parts = ranks().world > 1, config.rollout.tensor_parallel
    if cuda and config.update.engine == "deepspeed":
        join_alone(torch.device("cuda"))  # before vLLM does
    ranks().workers(parts)
    try:
        made = LLM(
            **_model(config),
            enable_prefix_caching=True,
            enforce_eager=not cuda,
            gpu_memory_utilization=config.rollout.memory_fraction,
            enable_sleep_mode=cuda,
            tensor_parallel_size=parts,
            max_num_seqs=MAX_SEQUENCES,
            # Or it tries itself on one of 114,688 tokens as it starts. (Limits of images change nothing: as
            # many as fill its largest batch are tried.)
            limit_mm_per_prompt={"video": 0},
            mm_processor_cache_gb=0,  # 4 GiB of the host's memory for images that come once
            # It cannot be captured where the allocator has expandable segments, as clusters like to set.
            disable_custom_all_reduce=parts > 1,
            # vLLM 0.32 rewinds a seeded generator after a part of a prompt, which CPU ones cannot.
            enable_chunked_prefill=cuda,
            # Each rank drives the worker on its own device, in the process group there is.
            distributed_executor_backend="external_launcher" if several else None,
        )
    except (ValueError, torch.OutOfMemoryError) as error:
        raise UserError(
            "rollout.engine: vllm",
            f"vLLM does not start: {_said(error)}",
            "See rollout.memory_fraction and rollout.tensor_parallel; rollout.engine=hf needs no vLLM.",
        ) from error
    _check_room(config, known.max_model_len, made.llm_engine.model_config.max_model_len)
    return made


def _check_room(config: Config, positions: int, room: int) -> None:
    """See that no response is cut because the KV cache is small.

    Args:
        positions: tokens that the model takes.
        room: those that vLLM's memory has room for.

    Raises:
        UserError: the longest prompt and response are longer than that.
    """
    wanted = min(positions, config.data.max_prompt_tokens + config.rollout.max_new_tokens)
    if room < wanted:
        raise UserError(
            f"rollout.memory_fraction: {config.rollout.memory_fraction:g}",
            f"leaves vLLM room for {room} tokens, and a prompt and its response may have {wanted}.",
            "Raise it or rollout.tensor_parallel, or lower data.max_prompt_tokens.",
        )


def _said(error: Exception) -> str:
    """What an error says, without what pydantic puts around it."""
    found = error.errors() if hasattr(error, "errors") else []
    text = str(found[0]["msg"] if found else error)
    return (text.strip().splitlines() or [type(error).__name__])[0][:300]


def not_installed(error: ImportError) -> UserError:
    """The error for a machine without vLLM."""
    return UserError(
        "rollout.engine: vllm",
        f"cannot be imported here ({error}).",
        "Install it: pip install 'vppo[gpu]' (docs/rollout_vllm.md); or set rollout.engine=hf.",
    )
