"""The rollout stage. Torch-free until it runs."""

from __future__ import annotations

from pathlib import Path

from pipelines.stages import Ask, Live, Metrics

VERSION = 4
"""Raised when the same policy and questions give other rollouts."""
READS = ("rollout", "reward", "seed", "published.drop_surplus", "published.choice_rule")
"""The settings that its key holds."""
PARTS = ("rollout.engine", "reward.function", "reward.grader")
"""Those that may be an import path: its source is in the key."""


def rollout(ask: Ask, live: Live, out: Path) -> Metrics:
    """train.parquet, and what the step before left over -> rollouts.parquet, surplus.parquet, next.json."""
    from pipelines.rollout import groups

    groups.check_reward(ask.config, ask.step, live.samples, live.reward, ask.watch)
    engine = live.engine(ask.step - 1)
    return groups.rollout(
        ask.config,
        ask.step,
        live.samples,
        ask.inputs.get("previous"),
        engine,
        live.reward,
        out,
        ask.watch,
        live.policy(ask.step - 1).encoder.expect,
    )
