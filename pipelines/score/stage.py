"""The score stage. Torch-free until it runs."""

from __future__ import annotations

from pathlib import Path

from pipelines.stages import Ask, Live, Metrics

VERSION = 4
"""Raised when the same rollouts give other scores."""
READS = ("score", "seed", "published.filter_text_only")
"""The settings that its key holds."""
PARTS = ("score.estimator", "score.perturbation")
"""Those that may be an import path: its source is in the key."""


def score(ask: Ask, live: Live, out: Path) -> Metrics:
    """rollouts.parquet of the step -> scores.parquet, looks.parquet.

    Raises:
        UserError: the engine did not sample with the trainer's weights.
    """
    from pipelines.disk.records import ROLLOUTS, Rollout, read_rows
    from pipelines.score import mismatch, scoring

    rollouts = read_rows(ask.inputs["rollout"] / ROLLOUTS, Rollout)
    policy = live.reader(ask.step - 1)
    metrics = scoring.score(ask.config, ask.step, rollouts, live.samples, policy, out, ask.watch)
    mismatch.check_mismatch(ask.config, ask.step, metrics, mismatch.of_first(ask.inputs))
    return metrics
