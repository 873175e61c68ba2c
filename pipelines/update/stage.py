"""The update stage. Torch-free until it runs."""

from __future__ import annotations

from pathlib import Path

from pipelines.stages import Ask, Live, Metrics

VERSION = 4
"""Raised when the same rollouts and scores give other weights."""
READS = (
    "update",
    "published.mini_batch_responses",
    "published.micro_batch_responses",
    "published.filter_text_only",
    "published.decay_all",
)
"""The settings that its key holds."""
PARTS = ("update.engine", "update.objective")
"""Those that may be an import path: its source is in the key."""


def update(ask: Ask, live: Live, out: Path) -> Metrics:
    """rollouts.parquet, scores.parquet of the step -> the policy's next weights, which stay live, and
    advantages.parquet.

    Made again from the same files when a run goes on behind its last checkpoint.
    """
    from pipelines.disk.records import ADVANTAGES, ROLLOUTS, Advantages, Rollout, read_rows, read_scores, write_rows

    rollouts = read_rows(ask.inputs["rollout"] / ROLLOUTS, Rollout)
    scores = read_scores(ask.inputs["score"], ask.step)
    with live.training(ask.step, ask.config) as trainer:
        metrics: Metrics = trainer.update(rollouts, scores, live.samples)
        used = getattr(trainer, "advantages_used", [])  # an engine of one's own need not tell
    if [row.position for row in used] == [group.position for group in rollouts]:
        write_rows(out / ADVANTAGES, Advantages, used)
    if skipped := metrics.get("updates_skipped"):
        ask.watch.note(
            f"WARNING update {ask.step}: optimizer steps left out, as their gradients were not finite: {skipped}"
        )
    return metrics
