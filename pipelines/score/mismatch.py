"""The guard against an engine that samples with other weights than the trainer has.

Log-probs of an inference engine are never quite the trainer's: 1e-6 nats apart in float32, 0.01 to
0.05 in bfloat16. Weights that did not arrive show as a mean difference far above what the run began
with, when the engine had read the same files as the trainer.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from statistics import fmean
from typing import Any

from pipelines.config.schema import Config
from pipelines.disk.records import ROLLOUTS, SCORES, Rollout, Scored, read_rows
from pipelines.errors import UserError

FIRST_LIMIT = 0.5
"""Nats at the first step, where nothing is known yet: more is another model, or another prompt."""
GROWTH, FLOOR = 10.0, 1e-3


def of_first(inputs: Mapping[str, Path]) -> float | None:
    """The mean |log p_trainer - log p_engine| of the run's first step, nats, from its artifacts; None where
    they are not among the inputs (the first step itself)."""
    if "first score" not in inputs:
        return None
    return _mean(inputs["first rollout"] / ROLLOUTS, inputs["first score"] / SCORES)


@lru_cache(maxsize=1)
def _mean(rollouts: Path, scores: Path) -> float:
    gaps = [
        abs(trained - sampled)
        for group, row in zip(read_rows(rollouts, Rollout), read_rows(scores, Scored), strict=True)
        for ours, theirs in zip(row.old_logp, group.logp, strict=True)
        for trained, sampled in zip(ours, theirs, strict=True)
    ]
    return fmean(gaps) if gaps else 0.0


def limit(config: Config, first: float | None) -> float:
    """The largest mean |difference| allowed, nats; ``first`` is that of the run's first step."""
    if config.rollout.mismatch_limit is not None:
        return config.rollout.mismatch_limit
    return FIRST_LIMIT if first is None else max(GROWTH * first, FLOOR)


def check_mismatch(config: Config, step: int, metrics: dict[str, Any], first: float | None) -> None:
    """Compare a step's mismatch with the limit.

    Args:
        metrics: of scoring; its ``mismatch_mean`` is the mean |log p_trainer - log p_engine| of the
            tokens that this step sampled.
        first: the first step's ``mismatch_mean``; None at the first step.

    Raises:
        UserError: it is above the limit.
    """
    found, most = metrics["mismatch_mean"], limit(config, first)
    if found <= most:
        return
    began = "" if first is None else f", {first:.2g} at step 1"
    raise UserError(
        f"rollout, step {step}",
        f"the log-probs of engine {config.rollout.engine} are {found:.2g} nats from the trainer's on "
        f"average (at most {metrics['mismatch_max']:.2g}; allowed {most:.2g}{began}): it does not "
        "sample with the trainer's weights.",
        f"Sample the step again with --stage rollout --steps {step} --force: if it happens again, the "
        "weights do not reach the engine. If such a difference is expected, set "
        "rollout.mismatch_limit (and update.tis_cap, which weighs it out).",
    )
