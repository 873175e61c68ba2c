"""The paper's runs: every constant of its table, and siblings that differ in the objective only."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.config import settings
from pipelines.config.schema import Config

EVERY = {
    "update.learning_rate": 1e-6, "update.weight_decay": 0.01, "model.dtype": "bfloat16",
    "rollout.prompts_per_step": 384, "rollout.samples_per_prompt": 8, "update.batch_prompts": 128,
    "data.max_prompt_tokens": 4096, "data.min_pixels": 200704, "data.max_pixels": 1003520,
    "score.keep_fraction": 0.4, "score.probability": 0.5, "score.estimator": "kl",
    "score.perturbation": "patch_black", "update.beta_min": 0.9, "update.objective": "vppo",
    "update.clip_low": 0.2, "update.clip_high": 0.28, "update.dual_clip": 3.0,
    "update.kl_coefficient": 0.0, "update.loss_average": "token", "rollout.temperature": 1.0,
    "rollout.top_p": 0.99, "rollout.dynamic_sampling": True, "rollout.engine": "vllm",
    "update.engine": "deepspeed", "data.source": "chamber111/VPPO_ViRL39K_train",
    "eval.benchmarks": ["all"], "eval.samples": 8,
}  # fmt: skip
"""Section 5 of the method's notes; arXiv 2510.09285."""

EACH = {
    "qwen2_5_vl_7b": {
        "model.path": "Qwen/Qwen2.5-VL-7B-Instruct", "rollout.max_new_tokens": 2048,
        "update.entropy_penalty": 0.06,
    },
    "qwen2_5_vl_32b": {
        "model.path": "Qwen/Qwen2.5-VL-32B-Instruct", "rollout.max_new_tokens": 4096,
        "eval.max_new_tokens": 4096, "update.entropy_penalty": 0.06,
    },
    "qwen3_vl_8b": {
        "model.path": "Qwen/Qwen3-VL-8B-Instruct", "rollout.max_new_tokens": 8192,
        "eval.max_new_tokens": 8192, "update.entropy_penalty": 0.12,
    },
}  # fmt: skip
STEPS = {"qwen2_5_vl_7b": 2 * 38870 // 384, "qwen2_5_vl_32b": 2 * 38870 // 384, "qwen3_vl_8b": 130}


def load(name: str) -> Config:
    return settings.load(Path(f"{name}.yaml"))


def flat(config: Config) -> dict:
    """Every setting, ``run.steps`` left out."""
    return config.keyed("") | {
        f"update.{n}": getattr(config.update, n) for n in config.update.unkeyed
    }


@pytest.mark.parametrize("name", EACH)
def test_the_papers_constants(name):
    config = load(name)
    found = flat(config) | {"eval.benchmarks": list(config.eval.benchmarks)}
    expected = EVERY | EACH[name]
    assert {key: found[key] for key in expected} == expected
    assert config.run.steps == STEPS[name]
    assert config.data.instruction == (
        "You first think through the reasoning process as an internal monologue, enclosed within "
        "<think> </think> tags. Then, provide your final answer enclosed within \\boxed{}."
    )


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize(
    ("sibling", "changed"),
    [
        ("dapo", {"update.objective": "dapo"}),
        ("grpo", {"update.objective": "grpo", "rollout.dynamic_sampling": False}),
    ],
)
def test_siblings_differ_in_the_objective_only(name, sibling, changed):
    first, other = flat(load(name)), flat(load(f"{name}_{sibling}"))
    differing = {key: value for key, value in other.items() if first[key] != value}
    differing.pop("name")
    assert differing == changed
