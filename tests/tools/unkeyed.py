"""What a step and an evaluation find, and whether two findings differ by more than last bits."""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from pipelines.chain import Chain
from pipelines.config.schema import Config
from pipelines.disk.records import ROLLOUTS, SCORES, Rollout, Scored, read_rows
from pipelines.disk.step import committed
from pipelines.live import Session
from pipelines.stages import make
from pipelines.update.moments import OPTIMIZER
from pipelines.watch import Silent

STEP = (
    "data.glyphs.train=4",
    "data.glyphs.validation=2",
    "data.glyphs.test=3",
    "rollout.prompts_per_step=4",
    "rollout.samples_per_prompt=4",
    "rollout.max_new_tokens=24",
    "rollout.dynamic_sampling=false",
    "rollout.batch_prompts=4",
    "score.batch_prompts=4",
    "update.batch_prompts=4",
    "update.micro_batch_prompts=4",
    "update.learning_rate=1e-5",
    "update.entropy_estimator=sampled",
    "update.entropy_penalty=0.06",
    "eval.samples=2",
    "eval.batch_prompts=3",
    "run.threads=1",
    "run.device=cpu",
    "run.steps=1",
)
"""The step that all is compared with."""


OF_SCALE = {
    "rollout.server",
    "rollout.tensor_parallel",
    "rollout.memory_fraction",
    "update.zero_stage",
    "update.offload",
}
"""Tried in tests/scale (test_unkeyed_scale.py), where there are vLLM, DeepSpeed and several ranks."""


def numbers(config: Config, folder: Path) -> dict[str, Any]:
    """Everything that a step comes to: what it writes, and the weights after it."""
    chain, threads = Chain(config, folder), torch.get_num_threads()
    steps = (chain.rollout(1), chain.score(1), chain.update(1))
    found: dict[str, Any] = {}
    with closing(Session(chain, Silent(), chain.config)) as session:
        for one in (chain.prepare, *steps, chain.cell(1, "glyphs").results):
            with committed(one) as (out, metrics):
                metrics |= make(session.ask(one, config), session, out)
            found[f"{one.name} metrics"] = metrics
        found["rollouts"] = [asdict(row) for row in read_rows(steps[0].path / ROLLOUTS, Rollout)]
        found["scores"] = [asdict(row) for row in read_rows(steps[1].path / SCORES, Scored)]
        policy = session.policy(1)
        found["weights"] = {n: w.detach().cpu().clone() for n, w in policy.placement.weights(policy.model)}
        if config.update.engine == "torch":
            session.trainer().save(folder)
            state = load_file(folder / OPTIMIZER)
            found["moments"] = {n: x for n, x in state.items() if n.startswith("exp_avg/")}
        found["journal"] = chain.cell(1, "glyphs").journal.read_text()
    torch.set_num_threads(threads)
    return found


def close(one: Any, other: Any) -> bool:
    """Whether two values, or all that they hold, are equal; numbers to 1e-5."""
    if isinstance(one, torch.Tensor):
        return torch.allclose(one, other, rtol=0, atol=1e-5)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(close(one[n], other[n]) for n in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(close, one, other))
    if isinstance(one, float):
        return math.isclose(one, other, rel_tol=1e-5, abs_tol=1e-5)
    return bool(one == other)


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """In what two steps differ by more than rounding."""
    return [name for name in one if not close(one[name], other[name])]
