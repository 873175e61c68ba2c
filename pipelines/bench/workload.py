"""Stored rollouts of a fixed shape: what the three passes go over."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pipelines.capacity.lookup import KNOWN, find_shape
from pipelines.capacity.shapes import Shape
from pipelines.config import settings
from pipelines.config.schema import Config, ModelConfig
from pipelines.disk.records import Rollout, Sample, SampleTable, Scored, write_samples
from pipelines.model import determinism
from pipelines.model.load import load_policy
from pipelines.model.policy import Policy, choose_device
from pipelines.model.prompts import limit_pixels
from pipelines.score.scoring import group_statistics
from pipelines.seeds import generator
from pipelines.update.torch_engine import TorchTrainer

SHAPES = {"tiny": None, "3b": "Qwen/Qwen2.5-VL-3B-Instruct", "7b": "Qwen/Qwen2.5-VL-7B-Instruct"}


@dataclass(frozen=True)
class Lengths:
    """Of every group: tokens of its image and its text, responses and their tokens."""

    image: int
    text: int
    samples: int
    response: int
    prompts: int


class Workload:
    """A policy, questions, and random responses to them.

    Args:
        shape: ``tiny`` (the shipped model), or a known size with random weights, made on the device.
        folder: where the questions are written.
        layers: where weights are random, only so many layers of the language model and of the vision
            tower: kernels do not care how often they are called.
    """

    def __init__(self, at: Lengths, shape: str, folder: Path, *overrides: str, layers: int | None = None) -> None:
        self.at = at
        known = SHAPES[shape]
        side = find_shape(ModelConfig(path=known or "tiny")).vision
        self.cell = side.patch * side.merge
        self.config = settings.load(
            None,
            [
                f"model.path={known or 'tiny'}",
                "data.max_prompt_tokens=100000",
                "data.instruction=''",
                *(("model.dtype=bfloat16", "update.gradient_checkpointing=true") if shape != "tiny" else ()),
                f"rollout.samples_per_prompt={at.samples}",
                f"rollout.max_new_tokens={at.response}",
                f"update.batch_prompts={at.prompts}",
                f"update.micro_batch_prompts={at.prompts}",
                "data.min_pixels=1",
                "data.max_pixels=100000000",
                *overrides,
            ],
        )
        self.policy = random_policy(KNOWN[known], self.config, layers) if known else load_policy(self.config)
        samples = [self._sample(number) for number in range(at.prompts)]
        write_samples(folder / "questions.parquet", samples)
        self.samples = SampleTable(folder / "questions.parquet")
        allowed = sorted(set(range(len(self.policy.tokenizer))) - set(self.policy.suppressed_ids.tolist()))
        self.rollouts = [self._rollout(number, allowed) for number in range(at.prompts)]
        self.trainer = TorchTrainer(self.policy, self.config)

    def _sample(self, number: int) -> Sample:
        rows = max(n for n in range(1, int(self.at.image**0.5) + 1) if self.at.image % n == 0)
        size = (rows * self.cell, self.at.image // rows * self.cell, 3)
        noise = generator(0, "bench", number).integers(0, 256, size, dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(noise).save(file, "PNG")
        problem = "<image>" + " row" * self.at.text
        return Sample(str(number), problem, [file.getvalue()], "1")

    def _rollout(self, number: int, allowed: list[int]) -> Rollout:
        count, length = self.at.samples, self.at.response
        drawn = generator(0, "bench responses", number).choice(allowed, (count, length)).tolist()
        prompt = self.policy.encoder.encode(self.samples[number])
        return Rollout(
            str(number),
            number,
            drawn,
            [""] * count,
            [[0.0] * length] * count,
            [False] * count,
            [""] * count,
            ["wrong"] * count,
            [float(i % 2) for i in range(count)],
            1,
            len(prompt["input_ids"]),
        )

    def with_settings(self, **model: object) -> Config:
        """The config with other settings of its model."""
        changed = self.config.model.model_copy(update=model)
        return self.config.model_copy(update={"model": changed})

    def passes(self, config: Config) -> Passes:
        """The passes with these settings, over the same weights."""
        policy = Policy(self.policy.model, self.policy.processor, config)
        policy.encoder = self.policy.encoder
        return Passes(self, policy, config)


class Passes:
    """The three passes over a workload: old log-probs, both views, update.

    All of a workload's have one trainer between them: two would hold AdamW's moments twice.
    """

    def __init__(self, work: Workload, policy: Policy, config: Config) -> None:
        self.work, self.policy, self.config = work, policy, config
        self.owners = list(work.samples)
        self.trainer = work.trainer
        shape = [[0.0] * work.at.response] * work.at.samples
        self.scores = [
            Scored(
                str(n),
                n,
                shape,
                shape,
                shape,
                [[True] * work.at.response] * work.at.samples,
                [float(i) for i in range(work.at.samples)],
            )
            for n in range(work.at.prompts)
        ]

    def old_logp(self) -> object:
        """The trainer's own log-probs: one view."""
        return self._statistics(perturbed=False)

    def scoring(self) -> object:
        """The same, and exact KL to the perturbed view."""
        return self._statistics(perturbed=True)

    def _statistics(self, perturbed: bool) -> object:
        return group_statistics(self.config, 1, self.work.rollouts, self.owners, self.policy, perturbed=perturbed)

    def update(self) -> object:
        """Forward, backward, and the optimizer's step."""
        self.trainer.policy = self.policy
        with determinism.strict(self.policy.device):  # as in a run
            return self.trainer.update(self.work.rollouts, self.scores, self.work.samples)


def random_policy(shape: Shape, config: Config, layers: int | None) -> Policy:
    """A policy with random float32 weights on the config's device; ``layers`` as of ``Workload``."""
    from pipelines.bench.scale import random_model

    if layers:
        vision = replace(shape.vision, layers=layers, full_layers=1)
        shape = replace(shape, layers=layers, vision=vision)
    model, processor = random_model(shape, torch.float32, choose_device(config))
    limit_pixels(processor.image_processor, config.data)
    return Policy(model.requires_grad_(True).eval(), processor, config)
