"""A large model with random weights through rollout, score and update, beside what ``vppo plan`` says.

The model has the published sizes of a known one (``--shape 3b``), the images so many tokens, and nearly
every response the same length, since a random model seldom ends one. Everything else is the pipeline's
own: the run is an ordinary one, in a folder, stopped before its first checkpoint. Its first step warms
up; the figures are medians over the others.

    python -m pipelines.bench.scale --out build/gpu          # one GPU; a part of make gpu
    python -m pipelines.bench.scale --out /tmp/b --shape tiny --prompts 2 --response-tokens 16 --repeats 1
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, fields
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from pipelines.capacity.gpus import GPUS, Gpu
from pipelines.capacity.lookup import KNOWN, find_shape
from pipelines.capacity.shapes import Shape
from pipelines.capacity.work import GIB, OVERHEAD, TEXT_TOKENS, Run
from pipelines.chain import Chain
from pipelines.config import settings
from pipelines.config.schema import Config, ModelConfig
from pipelines.disk.records import Sample
from pipelines.disk.step import write_atomic
from pipelines.errors import UserError
from pipelines.model.torchvision_ops import ensure_importable
from pipelines.run import train
from pipelines.runs import write_config
from pipelines.seeds import generator
from pipelines.watch import Silent

SHAPES = {
    "3b": "Qwen/Qwen2.5-VL-3B-Instruct",
    "7b": "Qwen/Qwen2.5-VL-7B-Instruct",
    "32b": "Qwen/Qwen2.5-VL-32B-Instruct",
}
STAGES = ("rollout", "score", "update")
NEVER = 10_000
"""Steps of the run: its first checkpoint is not reached."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, and write ``scale_benchmark.json``."""
    asked = parsed(arguments)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        found = measure(asked)
    except UserError as error:
        print(f"error  {error}", file=sys.stderr)
        sys.exit(2)
    file = asked.out / "scale_benchmark.json"
    write_atomic(file, json.dumps(found, indent=1))
    show(found)
    Console().print(f"\nwritten to {file}")


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """Run the stages and compare.

    Returns:
        What was run and where; by stage seconds, tokens, operations, and peak memory in bytes, each
        measured and predicted (None where there is no such figure, as memory on a CPU).
    """
    cuda = torch.cuda.is_available()
    if asked.shape != "tiny" and not cuda:
        raise UserError(f"--shape {asked.shape}", "needs a GPU, and none is here.", "Try --shape tiny.")
    config = configured(asked, cuda)
    shape = find_shape(config.model)
    watch = Timer(cuda, asked.steps or asked.out / "scale_benchmark_steps.json")
    chain = Chain(config, asked.out / f"run-{time.time_ns()}")
    write_config(chain.run, config)
    train(chain, watch, until=1 + asked.repeats)
    steps = range(2, 2 + asked.repeats)
    rows = [chain.rollout(i).manifest()["metrics"] for i in steps]  # type: ignore[index]
    response = median(row["response_tokens_mean"] for row in rows)
    gpu = _gpu() if cuda else None
    run = Run(config, shape, gpu or GPUS["H100"], 1, response)
    flops, memory, seconds = run.flops(), run.memory(), run.seconds()
    at = run.expected
    tokens = config.rollout.prompts_per_step * (at.prompt + run.samples * at.response)
    return {
        "device": torch.cuda.get_device_name() if cuda else platform.processor() or "CPU",
        "date": time.strftime("%Y-%m-%d"),
        "command": f"python -m pipelines.bench.scale {' '.join(asked.line)}",
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "shape": asked.shape,
        "parameters": shape.parameters,
        "trained": run.trained,
        "tokens": asdict(at),
        "gpu": gpu.name if gpu else None,
        "config": config.model_dump(mode="json"),
        "stages": {
            stage: {
                "seconds": median(watch.seconds[stage, i] for i in steps),
                "seconds_predicted": seconds[stage] if gpu else None,
                "tokens": tokens,
                "flops": flops[stage].total,
                "bytes": max(watch.peak[stage, i] for i in steps) if cuda else None,
                "bytes_predicted": memory[stage].total - OVERHEAD,
                "parts_predicted": {f.name: getattr(memory[stage], f.name) for f in fields(memory[stage])},
            }
            for stage in STAGES
        },
        "peak_flops": gpu and 1e12 * (gpu.bfloat16 if run.half else gpu.float32),
    }


class Timer(Silent):
    """Seconds and peak bytes of every step, written as it ends; the device is waited for at both ends."""

    def __init__(self, cuda: bool, file: Path) -> None:
        self.cuda, self.file = cuda, file
        self.seconds: dict[tuple[str, int], float] = {}
        self.peak: dict[tuple[str, int], int] = {}

    def stage(self, name: str, index: int) -> None:
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        self._begun = time.perf_counter()

    def finished(self, name: str, index: int, metrics: dict[str, Any]) -> None:
        if self.cuda:
            torch.cuda.synchronize()
            self.peak[name, index] = torch.cuda.max_memory_allocated()
        self.seconds[name, index] = time.perf_counter() - self._begun
        rows = [
            {"stage": at[0], "step": at[1], "seconds": seconds, "bytes": self.peak.get(at)}
            for at, seconds in self.seconds.items()
        ]
        write_atomic(self.file, json.dumps(rows, indent=1))


def alternating(responses: list[str], _: list[Sample]) -> list[float]:
    """A reward that half of each group gets, so that every group trains."""
    return [float(index % 2) for index in range(len(responses))]


# -- what is run -----------------------------------------------------------------------------------


def configured(asked: argparse.Namespace, cuda: bool) -> Config:
    """The run's settings; its model and its questions are written to ``--out`` first."""
    model, data = asked.out / f"model-{asked.shape}", asked.out / f"data-{asked.image_tokens}"
    if asked.shape == "tiny":
        model_path = "tiny"
    else:
        model_path = str(model)
        if not (model / "config.json").is_file():
            write_model(KNOWN[SHAPES[asked.shape]], model)
    side = find_shape(ModelConfig(path=model_path)).vision
    area = write_questions(data, asked.prompts * (2 + asked.repeats), asked.image_tokens, side.patch * side.merge)
    return settings.load(
        None,
        [
            f"data.source={data}",
            "data.validation_count=0",
            f"data.min_pixels={area}",
            f"data.max_pixels={area}",
            f"data.max_prompt_tokens={4 * (asked.image_tokens + TEXT_TOKENS)}",
            "data.instruction=''",
            f"model.path={model_path}",
            f"model.dtype={'bfloat16' if cuda else 'float32'}",
            f"rollout.engine={asked.rollout}",
            f"rollout.prompts_per_step={asked.prompts}",
            f"rollout.samples_per_prompt={asked.samples}",
            f"rollout.batch_prompts={asked.prompts}",
            f"rollout.max_new_tokens={asked.response_tokens}",
            "rollout.dynamic_sampling=false",
            "rollout.top_p=0.99",
            "score.looks=0",  # the paper's, and what is no part of a step's work
            "reward.function=pipelines.bench.scale:alternating",
            "score.batch_prompts=1",
            f"update.engine={asked.update}",
            f"update.batch_prompts={asked.prompts}",
            "update.micro_batch_prompts=1",
            "update.gradient_checkpointing=true",
            f"update.lora_rank={asked.lora_rank}",
            "update.learning_rate=1e-6",
            f"run.steps={NEVER}",
            f"checkpoint.every={NEVER}",
            "checkpoint.validation_samples=0",
            "eval.benchmarks=[]",
        ],
    )


def write_model(shape: Shape, folder: Path) -> None:
    """A Qwen2.5-VL folder of this shape: seeded random weights in bfloat16, the tiny model's processor.

    Drawn on the GPU, where that takes seconds.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, processor = random_model(shape, torch.bfloat16, device)
    processor.save_pretrained(folder)
    model.save_pretrained(folder)


def random_model(shape: Shape, dtype: torch.dtype, device: torch.device) -> tuple[Any, Any]:
    """A Qwen2.5-VL of this shape with seeded random weights, made on the device; the tiny model's
    processor."""
    from pipelines.embedded.tiny import build_processor

    ensure_importable()
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    processor = build_processor()
    token, seen = processor.tokenizer.convert_tokens_to_ids, shape.vision
    section, apart = shape.head_dim // 2, seen.layers // seen.full_layers
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": shape.vocab,
            "hidden_size": shape.hidden,
            "intermediate_size": shape.intermediate,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.kv_heads,
            "max_position_embeddings": 32768,
            "tie_word_embeddings": shape.tied,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [section // 4, section * 3 // 8, section * 3 // 8],
            },
            "bos_token_id": None,
            "eos_token_id": token("<|im_end|>"),
            "pad_token_id": token("<|endoftext|>"),
        },
        vision_config={
            "depth": seen.layers,
            "hidden_size": seen.hidden,
            "intermediate_size": seen.intermediate,
            "num_heads": 16,
            "out_hidden_size": seen.out,
            "window_size": seen.window,
            "fullatt_block_indexes": list(range(apart - 1, seen.layers, apart)),
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=shape.tied,
    )
    torch.manual_seed(0)
    with device:
        model = Qwen2_5_VLForConditionalGeneration._from_config(config, dtype=dtype)
    model.generation_config.eos_token_id = token("<|im_end|>")
    model.generation_config.pad_token_id = token("<|endoftext|>")
    return model, processor


def write_questions(folder: Path, count: int, image_tokens: int, cell: int) -> int:
    """An image folder of noise with questions as long as ``vppo plan`` assumes.

    Args:
        cell: pixels along one side of what becomes one token.

    Returns:
        The area of an image in pixels.
    """
    height = max(n for n in range(1, int(image_tokens**0.5) + 1) if image_tokens % n == 0)
    size = (image_tokens // height * cell, height * cell)
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for index in range(count):
        noise = generator(0, "scale", index).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{index}.png")
        # Beside some ten tokens of the chat template.
        problem = "<image>What is it?" + " row" * (TEXT_TOKENS - 12)
        lines.append({"file_name": f"{index}.png", "problem": problem, "answer": "1"})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return size[0] * size[1]


def _gpu() -> Gpu | None:
    """The table's entry for the device that is here."""
    name = torch.cuda.get_device_name().upper()
    memory = torch.cuda.get_device_properties(0).total_memory / GIB
    named = [gpu for gpu in GPUS.values() if gpu.name.partition("-")[0] in name.replace(" ", "")]
    return min(named, key=lambda gpu: abs(gpu.memory - memory), default=None)


# -- what is said ----------------------------------------------------------------------------------


def show(found: dict[str, Any]) -> None:
    """Print the figures: each measured, and how many times the predicted."""
    at, console = found["tokens"], Console()
    console.print(
        f"{found['shape']}: {found['parameters'] / 1e9:.3g} billion weights; {found['device']}, "
        f"{found['date']}; prompts of {at['prompt']:.0f} tokens, responses of {at['response']:.0f}\n",
        soft_wrap=True,
    )
    heads = ("", "s", "predicted", "tokens/s", "TFLOP/s", "of peak", "GiB", "predicted", "ratio")
    table = Table(*heads, box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for stage, row in found["stages"].items():
        speed, peak = row["flops"] / row["seconds"], found["peak_flops"]
        table.add_row(
            stage,
            f"{row['seconds']:.2f}",
            _number(row["seconds_predicted"], 1),
            f"{row['tokens'] / row['seconds']:,.0f}",
            f"{speed / 1e12:.3g}",
            f"{speed / peak:.0%}" if peak else "",
            _number(row["bytes"], GIB),
            _number(row["bytes_predicted"], GIB),
            f"{row['bytes'] / row['bytes_predicted']:.2f}" if row["bytes"] else "",
        )
    console.print(table)


def _number(value: float | None, unit: float) -> str:
    return "" if value is None else f"{value / unit:.2f}"


def parsed(line: Sequence[str] | None) -> argparse.Namespace:
    """What is asked for; None: by the command line."""
    line = list(sys.argv[1:] if line is None else line)
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder for the model, the run and the result")
    add("--steps", type=Path, help="file of every step's seconds, written as it ends (in --out)")
    add("--shape", choices=("tiny", *SHAPES), default="3b")
    add("--prompts", type=int, default=4, help="groups a step")
    add("--samples", type=int, default=8, help="responses a prompt")
    add("--image-tokens", type=int, default=1280)
    add("--response-tokens", type=int, default=512)
    add("--rollout", choices=("hf", "vllm"), default="hf")
    add("--update", choices=("torch", "deepspeed"), default="torch")
    add("--lora-rank", type=int, default=0)
    add("--repeats", type=int, default=2, help="steps that count, after one that warms up")
    found = parser.parse_args(line)
    found.line = line
    found.out.mkdir(parents=True, exist_ok=True)
    return found


if __name__ == "__main__":
    main()
