"""The plan's memory against every tensor that lives while a small model samples, scores and learns."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from alive import Alive

from pipelines.capacity import work as capacity
from pipelines.capacity.gpus import GPUS
from pipelines.capacity.lookup import from_config
from pipelines.capacity.work import Lengths, Run
from pipelines.config import settings
from pipelines.disk.records import Rollout, Scored
from pipelines.embedded import tiny
from pipelines.embedded.glyphs import GlyphsOptions, make_samples
from pipelines.model import decoding, divergence
from pipelines.model.policy import Policy
from pipelines.model.sampling import Sampling
from pipelines.rollout.hf import HuggingFaceEngine
from pipelines.update.torch_engine import TorchTrainer

GROUPS, SAMPLES, TOKENS, TILE = 2, 4, 24, 2**16


def small_model(processor: Any, vocabulary: int, tied: bool) -> Any:
    """Sizes at which weights, activations and the head all count."""
    from transformers import AutoModelForImageTextToText

    config = tiny.build_model(processor.tokenizer, 1).config.to_dict()
    config["text_config"] |= {
        "hidden_size": 256,
        "num_hidden_layers": 4,
        "intermediate_size": 768,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [6, 5, 5]},
        "layer_types": None,
    }
    config["vision_config"] |= {"out_hidden_size": 256}
    config["tie_word_embeddings"] = tied
    made = type(tiny.build_model(processor.tokenizer, 1).config)(**config)
    return AutoModelForImageTextToText.from_config(made).eval()


class Table:
    def __init__(self, samples) -> None:
        self.samples = {sample.id: sample for sample in samples}

    def by_id(self, index):
        return self.samples[index]


@pytest.mark.parametrize(
    ("overrides", "vocabulary", "tied"),
    [
        pytest.param(  # a CPU is slow in bfloat16, which LoRA's case has as well
            ("model.dtype=bfloat16", "update.gradient_checkpointing=true"), 4096, True, marks=pytest.mark.nightly
        ),
        (("model.dtype=float32",), 4096, False),
        (("model.dtype=bfloat16", "update.lora_rank=8", "update.gradient_checkpointing=true"), 4096, True),
    ],
)
def test_memory_is_what_lives_at_once(monkeypatch, processor, overrides, vocabulary, tied):
    for module, name in (
        (capacity, "LOGITS_ELEMENTS"),
        (divergence, "CPU_MAX_ELEMENTS"),
        (decoding, "DEFAULT_MAX_ELEMENTS"),
    ):
        monkeypatch.setattr(module, name, TILE)
    model = small_model(processor, vocabulary, tied)
    config = settings.load(
        None,
        [
            f"rollout.samples_per_prompt={SAMPLES}",
            f"rollout.max_new_tokens={TOKENS}",
            "update.micro_batch_prompts=1",
            f"score.batch_prompts={GROUPS}",
            f"rollout.batch_prompts={GROUPS}",
            "run.device=cpu",
            *overrides,
        ],
    )
    policy = Policy(model, processor, config)
    samples, rng = make_samples("test", GROUPS, 0, GlyphsOptions()), random.Random(0)
    ids = [[rng.choices(range(20, 200), k=TOKENS) for _ in range(SAMPLES)] for _ in samples]
    numbers, words = [[-1.0] * TOKENS] * SAMPLES, [""] * SAMPLES
    rollouts = [
        Rollout(s.id, i, ids[i], words, numbers, [False] * SAMPLES, words, ["wrong"] * SAMPLES, [1.0, 0.0] * 2)
        for i, s in enumerate(samples)
    ]
    scores = [
        Scored(s.id, i, numbers, numbers, numbers, [[True] * TOKENS] * SAMPLES, [0.1] * SAMPLES)
        for i, s in enumerate(samples)
    ]
    trainer, table = TorchTrainer(policy, config), Table(samples)

    @contextmanager
    def peak(found: dict, stage: str) -> Iterator[None]:
        moments = [t for state in trainer.optimizer.state.values() for t in state.values()]
        kept = [*model.parameters(), *moments]
        alive = Alive()
        alive.known |= {t.untyped_storage()._cdata for t in kept}
        with alive:
            yield
        trainer.optimizer.zero_grad(set_to_none=True)
        found[stage] = alive.most + sum(t.nbytes for t in {t.data_ptr(): t for t in kept}.values())

    def score() -> None:
        prompts = [policy.encoder.encode(sample) for sample in samples]
        rows = [r for p, group in zip(prompts, ids, strict=True) for r in policy.rows(p, group)]
        token_N = torch.tensor([t for group in ids for response in group for t in response])
        with torch.no_grad():
            hidden_ND, perturbed_ND = policy.hidden_states(rows), policy.hidden_states(rows)
        divergence.token_statistics(hidden_ND, policy.head_weight, token_N, perturbed_ND=perturbed_ND, jsd=False)

    trainer.update(rollouts, scores, table)  # makes the moments
    found: dict[str, float] = {}
    with peak(found, "update"):
        trainer.update(rollouts, scores, table)
    with peak(found, "score"):
        score()
    with peak(found, "rollout"):
        HuggingFaceEngine(policy).generate(
            samples, [(1, i) for i in range(GROUPS)], Sampling(1.0, 0.99, 0, TOKENS, SAMPLES, seed=0)
        )
    encoded = [policy.encoder.encode(sample)["input_ids"] for sample in samples]
    run = Run(config, from_config(model.config.to_dict(), "here"), GPUS["H100"], 1)
    images = max(int((x == model.config.image_token_id).sum()) for x in encoded)
    run.longest = Lengths(max(map(len, encoded)), images, TOKENS)
    for stage, memory in run.memory().items():
        planned = memory.total - memory.overhead
        assert 0.97 < planned / found[stage] < 1.12, (stage, planned, found[stage])
