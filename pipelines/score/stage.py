"""The score stage. Torch-free until it runs."""

from __future__ import annotations

from pathlib import Path

from pipelines.stages import Ask, Live, Metrics

VERSION = 5
"""Raised when the same rollouts give other scores."""
READS = ("score", "seed", "published.filter_text_only")
"""The settings that its key holds."""
PARTS = ("score.estimator", "score.perturbation")
"""Those that may be an import path: its source is in the key."""


def score(ask: Ask, live: Live, out: Path) -> Metrics:
    """rollouts.parquet of the step -> scores.parquet; by ``score.store`` statistics.parquet, looks.parquet, or,
    where that names no S, now and then the folder ``watch``.

    Raises:
        UserError: the engine did not sample with the trainer's weights.
    """
    from pipelines.disk.records import ROLLOUTS, WATCH, Rollout, read_rows
    from pipelines.objectives.table import PERCEPTION, STORES, stored, watched
    from pipelines.score import mismatch, scoring

    rollouts = read_rows(ask.inputs["rollout"] / ROLLOUTS, Rollout)
    policy = live.reader(ask.step - 1)
    metrics = scoring.score(ask.config, ask.step, rollouts, live.samples, policy, out, ask.watch)
    mismatch.check_mismatch(ask.config, ask.step, metrics, mismatch.of_first(ask.inputs))
    if PERCEPTION not in STORES[stored(ask.config)] and is_watched(ask.step, ask.config.score.watch):
        (out / WATCH).mkdir(exist_ok=True)
        seen = watched(ask.config)
        metrics |= scoring.score(seen, ask.step, rollouts, live.samples, policy, out / WATCH, ask.watch)
    return metrics


def is_watched(step: int, every: int) -> bool:
    """Whether perception is measured at a step that does not need it: the first, and every so many."""
    return every > 0 and (step == 1 or step % every == 0)
