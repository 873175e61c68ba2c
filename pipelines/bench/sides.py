"""A training step by ``vppo`` and the same step by TRL, each in a process of its own.

A parent tells a side to make one step and waits for its answer, so the two take turns and neither shares
memory with the other. Each line is one JSON object.

    python -m pipelines.bench.sides vppo /tmp/x '{"prompts": 32, ...}'
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil


@dataclass(frozen=True)
class Work:
    """What a step is: the embedded default's own, every group trained on."""

    prompts: int = 32
    samples: int = 8
    max_new_tokens: int = 64
    micro_prompts: int = 32
    learning_rate: float = 2e-4
    threads: int = 2
    steps: int = 16
    seed: int = 0
    image_tokens: int | None = None
    """Images of noise with so many tokens, instead of the embedded data; rewards alternate."""
    looks: int = 4
    """Groups of a step that are kept to be looked at."""
    estimator: str = "kl"
    """``entropy``: ``score`` is the old log-probs alone, the perturbed view is not looked at."""
    objective: str = "vppo"


Step = Callable[[], dict[str, Any]]


def vppo_steps(work: Work, folder: Path) -> Iterator[Step]:
    """Rollout, score and update, each committed to disk, as in a run."""
    from pipelines.chain import Chain
    from pipelines.config import settings
    from pipelines.disk.step import committed
    from pipelines.live import Session
    from pipelines.runs import write_config
    from pipelines.stages import make
    from pipelines.watch import Silent

    noise = _noise(work, folder) if work.image_tokens else []
    config = settings.load(
        None,
        [
            f"seed={work.seed}",
            f"run.threads={work.threads}",
            f"run.steps={work.steps}",
            f"data.glyphs.train={work.prompts * work.steps}",
            "rollout.dynamic_sampling=false",
            f"rollout.prompts_per_step={work.prompts}",
            f"rollout.samples_per_prompt={work.samples}",
            f"rollout.max_new_tokens={work.max_new_tokens}",
            f"update.batch_prompts={work.prompts}",
            f"update.micro_batch_prompts={work.micro_prompts}",
            f"update.learning_rate={work.learning_rate}",
            *noise,
            f"score.estimator={work.estimator}",
            f"score.looks={work.looks}",
            "score.watch=0",
            f"update.objective={work.objective}",
        ],
    )
    chain = Chain(config, folder / "run")
    write_config(chain.run, config)
    session = Session(chain, Silent(), chain.config)
    with committed(chain.prepare) as (out, metrics):
        metrics |= make(session.ask(chain.prepare, config), session, out)
    session.policy(0)
    for index in range(1, work.steps + 1):

        def step(index: int = index) -> dict[str, Any]:
            stages: dict[str, float] = {}
            found: dict[str, Any] = {}
            for made in (chain.rollout(index), chain.score(index), chain.update(index)):
                begun = time.perf_counter()
                with committed(made) as (out, metrics):
                    metrics |= make(session.ask(made, config), session, out)
                stages[made.name] = time.perf_counter() - begun
                found |= metrics
            return {"tokens": found["tokens_sampled"], "stages": stages}

        yield step


def _noise(work: Work, folder: Path) -> list[str]:
    """Settings of a run on images of noise, which are written first."""
    from pipelines.bench.scale import write_questions
    from pipelines.capacity.lookup import find_shape
    from pipelines.config.schema import ModelConfig

    assert work.image_tokens is not None
    seen, data = find_shape(ModelConfig()).vision, folder / "questions"
    cell = seen.patch * seen.merge
    area = write_questions(data, work.prompts * work.steps, work.image_tokens, cell)
    return [
        f"data.source={data}",
        "data.validation_count=0",
        f"data.min_pixels={area}",
        f"data.max_pixels={area}",
        "data.max_prompt_tokens=4096",
        "reward.function=pipelines.bench.scale:alternating",
        "rollout.temperature=3",
        f"score.batch_prompts={work.micro_prompts}",
    ]


def trl_steps(work: Work, folder: Path) -> Iterator[Step]:
    """TRL's GRPOTrainer on the same model, questions, group size, lengths, optimizer and reward.

    What it does not need is off: logging, saving, gradient checkpointing, the KL term.
    """
    import threading
    from queue import Queue

    turns: Queue[Any] = Queue()
    answers: Queue[Any] = Queue()

    def train() -> None:
        try:
            _trl_trainer(work, folder, turns, answers).train()
        except BaseException as error:
            answers.put(error)

    threading.Thread(target=train, daemon=True).start()
    ready = answers.get()
    if isinstance(ready, BaseException):
        raise ready

    def step() -> dict[str, Any]:
        turns.put(None)
        found = answers.get()
        if isinstance(found, BaseException):
            raise found
        return found

    for _ in range(work.steps):
        yield step


def _trl_trainer(work: Work, folder: Path, turns: Any, answers: Any) -> Any:
    from datasets import Dataset
    from transformers import AutoModelForImageTextToText, AutoProcessor, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from pipelines.config.settings import shipped_config
    from pipelines.embedded.glyphs import GlyphsOptions, make_samples
    from pipelines.grading.reward import make_reward
    from pipelines.model.prompts import messages, open_image

    where = str(shipped_config("tiny_model"))
    samples = make_samples("train", work.prompts * work.steps, work.seed, GlyphsOptions())
    by_name = {sample.id: sample for sample in samples}
    rows = [{"prompt": messages(s, ""), "image": open_image(s.images[0]), "name": s.id} for s in samples]
    grade = make_reward("outcome", "mathruler", 5.0, 1)
    counted = {"tokens": 0}

    def reward(completions: list[Any], name: list[str], completion_ids: list[list[int]], **_: Any) -> Any:
        counted["tokens"] = sum(map(len, completion_ids))
        texts = [c[0]["content"] if isinstance(c, list) else c for c in completions]
        cut = [len(ids) >= work.max_new_tokens for ids in completion_ids]
        return [mark.reward for mark in grade(texts, [by_name[n] for n in name], cut)]

    class Turns(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            answers.put("ready")
            turns.get()
            self.begun = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            answers.put({"tokens": counted["tokens"], "seconds": time.perf_counter() - self.begun})
            turns.get()
            self.begun = time.perf_counter()

    model = AutoModelForImageTextToText.from_pretrained(where, dtype="float32", trust_remote_code=False)
    each = work.micro_prompts * work.samples
    processor = AutoProcessor.from_pretrained(where, padding_side="left", trust_remote_code=False)
    return GRPOTrainer(
        model=model,
        reward_funcs=reward,
        train_dataset=Dataset.from_list(rows),
        processing_class=processor,
        callbacks=[Turns()],
        args=GRPOConfig(
            output_dir=str(folder / "trl"),
            per_device_train_batch_size=each,
            gradient_accumulation_steps=work.prompts // work.micro_prompts,
            num_generations=work.samples,
            max_completion_length=work.max_new_tokens,
            learning_rate=work.learning_rate,
            weight_decay=0.01,
            lr_scheduler_type="constant",
            max_grad_norm=1.0,
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            beta=0.0,
            loss_type="dapo",
            epsilon=0.2,
            epsilon_high=0.28,
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            max_steps=work.steps,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_num_workers=0,
            seed=work.seed,
        ),
    )


SIDES = {"vppo": vppo_steps, "trl": trl_steps}


def main(arguments: Sequence[str]) -> None:
    """Make a step for each line that comes in, and answer with one."""
    side, folder, settings = arguments
    work = Work(**json.loads(settings))
    os.environ["OMP_NUM_THREADS"] = str(work.threads)
    from pipelines.model.torchvision_ops import ensure_importable

    ensure_importable()
    import torch

    torch.set_num_threads(work.threads)
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the libraries print is no answer
    steps = SIDES[side](work, Path(folder))
    step = next(steps)
    loaded = psutil.Process().memory_info().rss
    print(json.dumps({"loaded": loaded}), file=output, flush=True)
    for _ in sys.stdin:
        begun = time.perf_counter()
        found = step()
        found.setdefault("seconds", time.perf_counter() - begun)
        found["peak"] = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps(found), file=output, flush=True)
        following = next(steps, None)
        if following is None:
            break
        step = following
    os._exit(0)


def command(side: str, work: Work, folder: Path) -> list[str]:
    """How a side is started."""
    return [sys.executable, "-m", "pipelines.bench.sides", side, str(folder), json.dumps(asdict(work))]


if __name__ == "__main__":
    main(sys.argv[1:])
