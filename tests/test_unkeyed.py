"""No setting that is left out of keys decides a result: each is tried with two values.

One step (rollout, score, update) in float32, then an evaluation: the same tokens, values to 1e-5.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines import settings
from pipelines.chain import Chain
from pipelines.config import Config, Section
from pipelines.records import Rollout, Scored, read_rows
from pipelines.rollout import ROLLOUTS
from pipelines.run import committed
from pipelines.score import SCORES
from pipelines.session import Session
from pipelines.watch import Silent

STEP = (
    "data.glyphs.train=4", "data.glyphs.validation=2", "data.glyphs.test=3",
    "rollout.prompts_per_step=4", "rollout.samples_per_prompt=4", "rollout.max_new_tokens=24",
    "rollout.dynamic_sampling=false", "rollout.batch_prompts=4", "score.batch_prompts=4",
    "update.batch_prompts=4", "update.micro_batch_prompts=4", "update.learning_rate=1e-5",
    "update.entropy_estimator=sampled", "update.entropy_penalty=0.06", "eval.samples=2",
    "eval.batch_prompts=3", "run.threads=1", "run.device=cpu", "run.steps=1",
)  # fmt: skip
"""The step that all is compared with."""

OTHERWISE = {
    "data.workers": "1",
    "model.shared_prefix": "false",
    "rollout.batch_prompts": "3",
    "reward.workers": "2",
    "score.batch_prompts": "3",
    "score.batch_tokens": "300",
    "score.looks": "0",
    "update.micro_batch_prompts": "3",
    "update.micro_batch_tokens": "300",
    "update.gradient_checkpointing": "true",
    "run.threads": "2",
}
"""Setting -> another value than that of STEP, each tried alone."""

APART = {
    "rollout.mismatch_limit": "5",
    "checkpoint.every": "7", "checkpoint.keep_last": "1", "checkpoint.keep_best": "0",
    "eval.batch_prompts": "2", "eval.benchmarks": "[validation]", "eval.baseline": "false",
    "eval.data_dir": "somewhere", "run.steps": "9", "run.trackers": "[tensorboard]",
    "run.device": "auto",
}  # fmt: skip
"""The same of settings that no kernel sees, tried all at once."""

OF_SCALE = {
    "rollout.server", "rollout.tensor_parallel", "rollout.memory_fraction", "update.zero_stage",
    "update.offload",
}  # fmt: skip
"""Tried in tests/scale (test_unkeyed_scale.py), where there are vLLM, DeepSpeed and several ranks."""

DECIDES = "update.micro_batch_prompts"
"""Left out of keys unless ``shaping_statistics`` is ``micro_batch``."""


def unkeyed(section: type[Section] = Config, prefix: str = "") -> Iterator[str]:
    """Every setting that is left out of keys, whole sections field by field."""
    for name, info in section.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            whole = name in section.unkeyed
            names = kind.model_fields if whole else ()
            yield from (f"{prefix}{name}.{inner}" for inner in names)
            if not whole:
                yield from unkeyed(kind, f"{prefix}{name}.")
        elif name in section.unkeyed:
            yield prefix + name


def test_every_unkeyed_setting_is_tried_somewhere():
    assert set(unkeyed()) == OTHERWISE.keys() | APART.keys() | OF_SCALE


def test_what_reaches_a_kernel_is_recorded():
    config = settings.load(None)
    recorded = {
        name for section in ("model", "rollout", "score", "update", "eval", "run")
        for name in getattr(config, section).shape(section)
    }  # fmt: skip
    bystanders = {"data.workers", "reward.workers", "score.looks"}
    expected = OTHERWISE.keys() - bystanders | OF_SCALE | {"run.device", "eval.batch_prompts"}
    assert recorded == expected


@pytest.fixture(scope="module")
def step(tmp_path_factory):
    """``step(*overrides)``: the numbers of one step, made once for the same overrides."""
    known: dict[tuple[str, ...], dict[str, Any]] = {}

    def made(*overrides: str) -> dict[str, Any]:
        if overrides not in known:
            folder = tmp_path_factory.mktemp("run")
            known[overrides] = numbers(settings.load(None, [*STEP, *overrides]), folder)
        return known[overrides]

    return made


def numbers(config: Config, folder: Path) -> dict[str, Any]:
    """Everything that a step comes to: what it writes, and the weights after it."""
    chain, threads = Chain(config, folder), torch.get_num_threads()
    steps = (chain.rollout(1), chain.score(1), chain.update(1))
    found: dict[str, Any] = {}
    with closing(Session(chain, Silent(), chain.config)) as session:
        for one in (chain.prepare, *steps, chain.cell(1, "glyphs").results):
            with committed(one) as (out, metrics):
                metrics |= session.make(one, config, out)
            found[f"{one.name} metrics"] = metrics
        found["rollouts"] = [asdict(row) for row in read_rows(steps[0].path / ROLLOUTS, Rollout)]
        found["scores"] = [asdict(row) for row in read_rows(steps[1].path / SCORES, Scored)]
        policy = session.policy(1)
        found["weights"] = {
            n: w.detach().cpu().clone() for n, w in policy.placement.weights(policy.model)
        }
        if config.update.engine == "torch":
            state = session._trainer()._state()
            found["moments"] = {name: kept["exp_avg"] for name, kept in state if kept}
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


@pytest.mark.parametrize("setting", OTHERWISE)
def test_it_changes_nothing_but_last_bits(step, setting):
    changed = f"{setting}={OTHERWISE[setting]}"
    assert differences(step("mode=paper"), step("mode=paper", changed)) == []


@pytest.mark.parametrize("mode", ["paper", "reference"])
def test_what_no_kernel_sees_changes_nothing(step, mode):
    changed = [f"{name}={value}" for name, value in APART.items()]
    if mode == "reference":  # all at once
        changed += [f"{name}={value}" for name, value in OTHERWISE.items() if name != DECIDES]
    assert differences(step(f"mode={mode}"), step(f"mode={mode}", *changed)) == []


def test_a_setting_that_decides_is_seen(step):
    # In reference mode micro-batches decide the shaping weights, and so are part of the key.
    found = differences(step("mode=reference"), step("mode=reference", f"{DECIDES}=1"))
    assert {"update metrics", "weights", "moments"} <= set(found)
    assert not {"rollouts", "scores", "rollout metrics"} & set(found)
