"""The checkpoint stage. Torch-free until it runs."""

from __future__ import annotations

from pathlib import Path

from pipelines.stages import Ask, Live, Metrics

VERSION = 1
READS = ()
"""The settings that its key holds: none, as the policy's key says it all."""


def checkpoint(ask: Ask, live: Live, out: Path) -> Metrics:
    """The live policy -> model/, ready for plain transformers, and trainer/, the optimizer's state."""
    from pipelines.checkpoint import saving

    saving.save(ask.step, live.policy(ask.step), live.trainer(), out)
    return {}
