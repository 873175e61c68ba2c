"""What fits where, and what to change where it does not: the tables of docs/plan.md.

Each cell is what ``vppo plan`` says of a run, by its own code.

python -m pipelines.capacity.table --out docs/plan.md          # make plan-table; a few seconds
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from pipelines.capacity.fitting import Advice, advice, larger, problems
from pipelines.capacity.gpus import GPUS
from pipelines.capacity.lookup import KNOWN
from pipelines.capacity.work import Run
from pipelines.config import settings
from pipelines.config.schema import Config

SIZES = ("3B", "7B", "32B")
CARDS = ("RTX4090", "A100-40", "H100", "H200")
COUNTS = (1, 2, 4, 8)
RANK = 64

SHORT = {
    "update.gradient_checkpointing": "C",
    "update.micro_batch_prompts": "M",
    "score.batch_prompts": "S",
    "rollout.batch_prompts": "R",
    "rollout.memory_fraction": "F",
    "rollout.tensor_parallel": "T",
    "model.shared_prefix": "P",
    "update.zero_stage": "Z",
    "update.offload": "O",
    "update.engine": "",
    "rollout.engine": "",
    "model.dtype": "",
    "update.lora_rank": "LoRA ",
}
"""Setting -> what a cell calls it; engines and compute types are called by their values."""

INTRODUCTION = f"""# What fits where

Made by `make plan-table`, from `vppo plan`'s own code: computed, not measured. Rows are the model
(Qwen2.5-VL), what is trained (LoRA: `update.lora_rank={RANK}`) and the GPU; columns are the number of GPUs.
A cell says **fits**, or what has to be changed so that it does, as `vppo plan` advises: the fewest settings
that change no result but for rounding; where these are not enough, in italics, what does change it
(engines, compute type, LoRA) or a larger GPU; **no** where nothing helps, not even the largest GPU of the
table.

| in a cell | setting |
|---|---|
| C | `update.gradient_checkpointing=true` |
| M1 | `update.micro_batch_prompts=1` |
| S4, R8 | `score.batch_prompts=4`, `rollout.batch_prompts=8` |
| Z3, O | `update.zero_stage=3`, `update.offload=true` |
| T2, F0.3 | `rollout.tensor_parallel=2`, `rollout.memory_fraction=0.3` |
| Pfalse | `model.shared_prefix=false` |
| deepspeed, hf, vllm | `update.engine=deepspeed`, `rollout.engine=hf` or `vllm` |
| bfloat16, LoRA 64 | `model.dtype=bfloat16`, `update.lora_rank=64` |
| H200: | `--gpu H200`, and what follows |
"""


def configs() -> Iterator[tuple[str, Config]]:
    """The defaults of every setting, and the config of the 7B."""
    yield "The defaults (hf, torch, float32; prompts of 4,096 tokens)", settings.load(base={})
    yield "configs/qwen2_5_vl_7b.yaml (vllm, deepspeed, bfloat16)", settings.load(Path("qwen2_5_vl_7b.yaml"))


def cell(run: Run) -> str:
    """What the plan says of a run, in a few characters."""
    if not problems(run):
        return "**fits**"
    if found := advice(run):
        return _short(found)
    card, found = next(larger(run), (None, None))
    return f"*{card.name}:* {_short(found)}".strip() if card and found else "**no**"


def _short(found: Advice) -> str:
    words = []
    for key, value in found.settings.items():
        word = SHORT[key] + ("" if value is True else str(value).lower())
        words.append(f"*{word}*" if key in found.deciding else word)
    return " ".join(words)


def table() -> str:
    """The whole page."""
    parts = [INTRODUCTION]
    for title, config in configs():
        lines = [f"## {title}\n", f"| | {' | '.join(map(str, COUNTS))} |", "|---" * (len(COUNTS) + 1) + "|"]
        for size in SIZES:
            for rank in (0, RANK):
                update = config.update.model_copy(update={"lora_rank": rank})
                asked = config.model_copy(update={"update": update})
                for name in CARDS:
                    gpu, shape = GPUS[name], KNOWN[f"Qwen/Qwen2.5-VL-{size}-Instruct"]
                    cells = [cell(Run(asked, shape, gpu, count)) for count in COUNTS]
                    head = f"{size}, {'LoRA' if rank else 'full'}, {name} ({gpu.memory:.0f} GiB)"
                    lines.append(f"| {head} | {' | '.join(cells)} |")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/plan.md"))
    parser.parse_args().out.write_text(table(), encoding="utf-8")


if __name__ == "__main__":
    main()
