"""How long the stages of a training step took, and at how many tokens a second. Torch-free.

Times are in the manifests, not in metrics.jsonl, so that equal runs have equal metrics.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.chain import Chain

TIMED = ("rollout", "score", "update")


def seconds(chain: Chain, step: int) -> dict[str, float]:
    """Stage -> seconds, for the stages of a training step that are on disk."""
    found = {}
    for made in (chain.rollout(step), chain.score(step), chain.update(step)):
        manifest = made.manifest()
        if manifest is not None and "seconds" in manifest:
            found[made.name] = float(manifest["seconds"])
    return found


def tokens(row: Mapping[str, Any], epochs: int = 1) -> dict[str, int]:
    """Stage -> the response tokens it works through: sampled, scored, trained on.

    Args:
        row: a training step's line of metrics.jsonl.
        epochs: passes of the update over its groups.
    """
    found = {"rollout": row.get("rollout/tokens_sampled", 0)}
    if used := row.get("rollout/tokens_used"):  # runs of earlier versions did not count them
        found |= {"score": used, "update": used * epochs}
    return found


def rates(row: Mapping[str, Any], spent: Mapping[str, float], epochs: int = 1) -> dict[str, float]:
    """Stage -> response tokens a second; without stages that had nothing to do."""
    worked = tokens(row, epochs)
    return {name: worked[name] / spent[name] for name in TIMED if worked.get(name) and spent.get(name)}
