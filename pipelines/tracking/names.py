"""What trackers are told: metrics.jsonl's names, times, and the names people know from elsewhere.

docs/artifacts.md has the table. Torch-free.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pipelines.chain import Chain
from pipelines.config.schema import Config, Section
from pipelines.disk.records import reward_column
from pipelines.disk.step import Step
from pipelines.runs import step_metrics
from pipelines.tracking import timing

STEP = "training/global_step"

ALIASES = {
    "critic/score/mean": "rollout/reward",
    "response_length/mean": "rollout/response_tokens_mean",
    "response_length/clip_ratio": "rollout/truncated_share",
    "actor/entropy": "score/entropy",
    "actor/pg_loss": "update/loss",
    "actor/grad_norm": "update/grad_norm",
    "actor/lr": "update/learning_rate",
    "actor/ppo_kl": "update/policy_kl",
    "actor/pg_clipfrac_lower": "update/clipped_dual",
    "timing_s/gen": "time/rollout",
    "timing_s/old_log_prob": "time/score",
    "timing_s/update_actor": "time/update",
}
"""The name in verl and EasyR1, on which the authors' code is built: ours. (``ppo_kl`` is the
k1 estimate there, k3 here; the quantity is the same.)"""


def metrics_of(chain: Chain, step: Step) -> dict[str, float]:
    """What trackers are told of a training step (by its update), or of an evaluation."""
    index = step.index or 0
    found = _training(chain, index) if step.name == "update" else _evaluation(step)
    return {
        name: float(value)
        for name, value in (found | {STEP: index}).items()
        if isinstance(value, int | float) and math.isfinite(value)
    }


def _training(chain: Chain, index: int) -> dict[str, Any]:
    row = step_metrics(chain, index)
    assert row is not None  # its update is on disk
    del row["step"]
    spent = timing.seconds(chain, index)
    rates = timing.rates(row, spent, chain.config.update.epochs)
    row |= {f"time/{stage}": value for stage, value in spent.items()}
    row |= {f"tokens_per_second/{stage}": value for stage, value in rates.items()}
    row |= {name: row[ours] for name, ours in ALIASES.items() if ours in row}
    row["timing_s/step"] = sum(spent.values())
    clipped = [row[name] for name in ("update/clipped_low", "update/clipped_high") if name in row]
    if clipped:
        row["actor/pg_clipfrac"] = sum(clipped)
    return row


def _evaluation(step: Step) -> dict[str, Any]:
    manifest = step.manifest()
    assert manifest is not None
    found, prefix = manifest["metrics"], f"eval/{step.name}"
    low, high = found["interval"]
    told = {"accuracy": found["accuracy"], "accuracy_low": low, "accuracy_high": high}
    told |= {f"pass_at_{k}": value for k, value in found["pass_at_k"].items()}
    told |= {reward_column(name): mean["value"] for name, mean in found.get("rewards", {}).items()}
    return {f"{prefix}/{name}": value for name, value in told.items()}


def flat(config: Config) -> dict[str, Any]:
    """A config's settings by dotted name; lists and mappings as text."""
    found: dict[str, Any] = {}

    def walk(values: Mapping[str, Any], prefix: str, sections: Any) -> None:
        for name, value in values.items():
            section = getattr(sections, name)
            if isinstance(section, Section):
                walk(value, f"{prefix}{name}.", section)
            else:
                plain = value is None or isinstance(value, str | int | float)
                found[prefix + name] = value if plain else str(value)

    walk(config.model_dump(mode="json"), "", config)
    return found
