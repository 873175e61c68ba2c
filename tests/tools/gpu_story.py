"""What a run does, on an emulated GPU (tests/tools/fake_gpu.py): tests/test_fake_gpu.py starts it.

    python tests/tools/gpu_story.py whole model.dtype=bfloat16   # every stage, and what a killed run does
    python tests/tools/gpu_story.py steps update.lora_rank=4     # the first rollout, score and update
    python tests/tools/gpu_story.py table                        # the same for every setting (slow)
    python tests/tools/gpu_story.py counts                       # what docs/performance.md says
    python tests/tools/gpu_story.py first                        # two parts of make gpu
    python tests/tools/gpu_story.py checks                       # the emulator itself (gpu_checks.py)

Several with a + between them go one after another in one process. The last line is a JSON list of what
each found, or how it failed.
"""

from __future__ import annotations

# ruff: noqa: E402
import fake_gpu

fake_gpu.preload()  # before anything imports torch, so imports follow

import json
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import torch
from command_line import contents
from fake_gpu_tensors import Counts, FakeGpu
from safetensors import safe_open

from pipelines.chain import Chain
from pipelines.config import settings
from pipelines.config.schema import ModelConfig, RolloutConfig, ScoreConfig, UpdateConfig
from pipelines.model import determinism
from pipelines.run import train
from pipelines.runs import write_config
from pipelines.watch import Silent

SMALL = (
    "data.glyphs.train=16",
    "data.glyphs.validation=2",
    "data.glyphs.test=2",
    "run.steps=2",
    "run.threads=1",
    "run.device=cuda",
    "rollout.prompts_per_step=2",
    "rollout.samples_per_prompt=2",
    "rollout.max_new_tokens=8",
    "rollout.dynamic_sampling=false",
    "score.batch_prompts=1",
    "reward.function=pipelines.bench.scale:alternating",
    "score.looks=1",
    "update.batch_prompts=2",
    "update.micro_batch_prompts=1",
    "checkpoint.every=1",
    "checkpoint.validation_samples=1",
    "eval.samples=1",
    "eval.baseline=false",
)
"""As small as can be, with two passes and two micro-batches a step."""


class Seen(Silent):
    """What each step asked of the GPU, and what was said."""

    def __init__(self, gpu: FakeGpu) -> None:
        self.gpu, self.steps, self.notes = gpu, dict[str, Counts](), list[str]()

    def note(self, text: str) -> None:
        self.notes.append(text)

    def stage(self, name: str, index: int) -> None:
        self._before = self.gpu.counts

    def finished(self, name: str, index: int, metrics: dict[str, Any]) -> None:
        self.steps[f"{name} {index}"] = self.gpu.counts - self._before


def began(folder: Path, overrides: Sequence[str]) -> Chain:
    """A run with these settings, nothing made yet."""
    chain = Chain(settings.load(None, [*SMALL, *overrides]), folder / "run")
    write_config(chain.run, chain.config)
    return chain


def whole(folder: Path, gpu: FakeGpu, overrides: Sequence[str]) -> dict[str, Any]:
    """Every stage; then what a killed run does: checkpoint 1 is loaded, update 2 replayed."""
    chain, watch = began(folder, overrides), Seen(gpu)
    train(chain, watch)
    model = chain.checkpoint(2).path / "model" / "model.safetensors"
    with safe_open(model, "pt") as file:
        names = list(file.keys())
    _perceived(chain)
    first, again = contents(chain.run), Seen(gpu)
    shutil.rmtree(chain.checkpoint(2).path)
    train(chain, again)
    return {
        "steps": {name: asdict(counts) for name, counts in watch.steps.items()},
        "resumed": list(again.steps),
        "notes": watch.notes + again.notes,
        "same": contents(chain.run) == first,
        "tensors": names,
        "loose": gpu.loose,
    }


def _perceived(chain: Chain) -> None:
    from PIL import Image

    from pipelines.perceive.one import perceive

    how = [f"model.dtype={chain.config.model.dtype}", "run.device=cuda"]
    picture = Image.new("RGB", (56, 56))
    perceive("tiny", picture, "What is the digit?", max_new_tokens=4, settings=how)


def steps(folder: Path, gpu: FakeGpu, overrides: Sequence[str]) -> dict[str, Any]:
    """Prepare, and the first rollout, score and update."""
    chain, watch = began(folder, ["checkpoint.every=9", "run.steps=9", *overrides]), Seen(gpu)
    train(chain, watch, until=1)
    return {"steps": {name: asdict(counts) for name, counts in watch.steps.items()}}


# -- every setting ---------------------------------------------------------------------------------

NOT_HERE = {
    "model": {"path", "revision"},
    "rollout": {"engine", "server", "tensor_parallel", "memory_fraction"},
    "score": set[str](),
    "update": {"engine", "zero_stage", "offload", "adam_betas", "constants", "variant"},
}
"""What other engines read, numbers and variants of objectives, and what is no choice of a way."""
VALUES = {
    "rollout.filter_key": "reward",
    "rollout.top_k": 5,
    "rollout.accuracy_high": 0.9,
    "rollout.mismatch_limit": 9.0,
    "score.batch_tokens": 200,
    "update.micro_batch_tokens": 200,
    "update.beta_max": 1.5,
    "update.lora_rank": 4,
    "update.dual_clip": 2.0,
    "update.tis_cap": 2.0,
    "update.kl_coefficient": 0.1,
    "update.overlong_cache": 8,
}
"""Values of fields for which a rule finds none that says much."""
WITH = {
    'score.store="policy"': ("update.objective=dapo",),
    'score.store="hidden"': ("update.objective=dapo",),
    'update.shaping_statistics="micro_batch"': (
        "published.micro_batch_responses=2",
        "published.mini_batch_responses=4",
    ),
}
"""What a setting needs beside it."""
TOGETHER = {
    "data.workers=1": (),
    "update.lora_rank=4": ("update.kl_coefficient=0.1",),
    "update.lora_rank=2": ("update.gradient_checkpointing=true",),
}


def table() -> Iterator[tuple[str, ...]]:
    """Settings that differ from the default: one value of every kind that code branches on.

    Parts come from the code's own dicts and fields from the config's own classes, so what is added there
    is tested by itself.
    """
    from objectives_proof import cases

    from pipelines.score.perturb import PERTURBATIONS
    from pipelines.score.scoring import ESTIMATOR_NAMES

    yield from ((f"score.estimator={name}",) for name in ESTIMATOR_NAMES)
    yield from ((f"score.perturbation={name}",) for name in (*PERTURBATIONS, "raw_black"))
    yield from (tuple(case.settings) for case in cases())  # with what each of them asks for
    sections = {"model": ModelConfig, "rollout": RolloutConfig, "score": ScoreConfig, "update": UpdateConfig}
    named = {"estimator", "perturbation", "objective"}
    for section, kind in sections.items():
        for name, field in kind.model_fields.items():
            if name not in NOT_HERE[section] | named:
                for value in _others(f"{section}.{name}", field.annotation, field.default):
                    one = f"{section}.{name}={json.dumps(value)}"
                    yield (one, *WITH.get(one, ()))
    yield from ((one, *others) for one, others in TOGETHER.items())


def _others(name: str, kind: Any, default: Any) -> list[Any]:
    if name in VALUES:
        return [VALUES[name]]
    options = [kind, *get_args(kind)]
    literal = next((get_args(k) for k in options if get_origin(k) is Literal), ())
    values = [*literal, *([True, False] if bool in options else [])]
    if values:
        return [value for value in values if value != default]
    assert isinstance(default, int | float), f"{name}: name a value in VALUES of {__file__}"
    small = settings.load(None, SMALL)
    section, _, last = name.partition(".")
    now = getattr(getattr(small, section), last)
    return [now + 1 if isinstance(now, int) else now / 2 or 0.5]


def all_of(folder: Path, gpu: FakeGpu, overrides: Sequence[str]) -> dict[str, Any]:
    """``steps`` for each row of the table, in float32 and bfloat16; says which fail, and how."""
    wrong, count = {}, 0
    for row in table():
        for dtype in ("float32", "bfloat16"):
            line = (f"model.dtype={dtype}", *overrides, *row)
            begun, count = time.perf_counter(), count + 1
            try:
                steps(folder / str(count), gpu, line)
            except Exception as error:
                wrong[" ".join(line)] = f"{type(error).__name__}: {error}"
            said = wrong.get(" ".join(line), "")
            print(f"{time.perf_counter() - begun:5.1f} s  {' '.join(line)}  {said}", flush=True)
    return {"runs": count, "wrong": wrong}


# -- counts ----------------------------------------------------------------------------------------


def counts(folder: Path, gpu: FakeGpu, overrides: Sequence[str]) -> dict[str, Any]:
    """Launches, copies and waits of a decoded token (any number of responses), of a scoring pass of one
    prompt and both views, and of an update's micro-batch of one prompt; the tiny model in bfloat16."""
    from pipelines.bench.workload import Lengths, Workload
    from pipelines.model import decoding
    from pipelines.model.sampling import Sampling, uniforms
    from pipelines.score.scoring import group_statistics

    lengths = Lengths(image=64, text=8, samples=4, response=12, prompts=3)
    work = Workload(
        lengths,
        "tiny",
        folder,
        "run.device=cuda",
        "model.dtype=bfloat16",
        "score.batch_prompts=1",
        "update.gradient_checkpointing=true",
        "update.micro_batch_prompts=1",
        "run.threads=1",
        *overrides,
    )
    policy, passes = work.policy, work.passes(work.config)
    prompts = [policy.encoder.encode(sample) for sample in work.samples]
    ends = torch.tensor(policy.eos_ids, device=policy.device)
    kept, policy.suppressed_ids = policy.suppressed_ids, torch.cat([policy.suppressed_ids, ends])

    def decoded(tokens: int) -> Counts:
        sampling = Sampling(1.0, 0.99, 0, tokens, lengths.samples, 0)
        uniform_RT = torch.cat([uniforms(sampling, (i,), policy.device) for i in range(3)])
        before = gpu.counts
        decoding.sample(policy, prompts, uniform_RT, sampling)
        return gpu.counts - before

    def trained(prompts: int) -> Counts:
        before = gpu.counts
        with determinism.strict(policy.device):
            passes.trainer.update(work.rollouts[:prompts], passes.scores[:prompts], work.samples)
        return gpu.counts - before

    token = _less(decoded(8) - decoded(4), 4)
    policy.suppressed_ids = kept
    before = gpu.counts
    group_statistics(work.config, 1, work.rollouts[:1], passes.owners[:1], policy, perturbed=True)
    scored = gpu.counts - before
    trained(1)  # which makes the optimizer's state
    micro_batch = trained(3) - trained(2)
    found = {"decoded token": token, "scoring pass": scored, "micro-batch": micro_batch}
    return {name: asdict(each) for name, each in found.items()}


def _less(whole: Counts, times: int) -> Counts:
    parts = {name: value / times for name, value in asdict(whole).items()}
    return replace(whole, **{name: round(value) for name, value in parts.items()})


def first_command(folder: Path, gpu: FakeGpu, overrides: Sequence[str]) -> dict[str, Any]:
    """What ``make gpu`` finds in its parts probe and bits (of bfloat16), at the tiny shape."""
    from pipelines.bench.gpu import bits, part, probe
    from pipelines.bench.gpu.place import Figures, Place
    from pipelines.model import determinism

    place, found = Place("tiny", torch.device("cuda"), folder, folder), dict[str, Figures]()
    determinism.settle(place.device)
    determinism.warning()
    part.measure(probe.findings(place), found.update)
    ours = (finding for finding in bits.findings(place) if finding[0].endswith("bfloat16"))
    part.measure(ours, found.update)
    return found


def tried(folder: Path, gpu: FakeGpu, overrides: Sequence[str]) -> dict[str, Any]:
    """The settings that the table differs in; fails where a new one has no value."""
    return {"settings": sorted({line.partition("=")[0] for lines in table() for line in lines})}


STORIES = {"whole": whole, "steps": steps, "table": all_of, "tried": tried, "counts": counts, "first": first_command}


def main(line: Sequence[str]) -> None:
    """Go through stories, each in a folder of its own."""
    from pipelines.model.torchvision_ops import ensure_importable

    ensure_importable()
    torch.set_num_threads(1)
    # What is found of a model here is nothing for a real GPU to remember.
    os.environ.setdefault("XDG_CACHE_HOME", str(fake_gpu.CACHE))
    found: list[Any] = []
    for part in " ".join(line).split(" + "):
        story, *overrides = part.split()
        if story == "checks":
            import gpu_checks  # noqa: F401

            found.append({})
            continue
        with tempfile.TemporaryDirectory() as folder, fake_gpu.emulated() as gpu:
            gpu.forget()
            try:
                found.append(STORIES[story](Path(folder), gpu, overrides))
            except Exception:
                found.append({"failed": traceback.format_exc()})
    print(json.dumps(found))
    if any(part.get("failed") or part.get("wrong") for part in found):
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
