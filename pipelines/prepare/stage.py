"""The prepare stage. Torch-free until it runs."""

from __future__ import annotations

from pathlib import Path

from pipelines.ranks.ranks import ranks
from pipelines.stages import Ask, Live, Metrics

VERSION = 1
"""Raised when the same source gives other questions."""
READS = ("data", "model")
"""The settings that its key holds."""


def prepare(ask: Ask, live: Live, out: Path) -> Metrics:
    """A source of data -> train.parquet, validation.parquet, test.parquet, rejected.jsonl."""
    from pipelines.prepare import samples

    return ranks().on_main(lambda: samples.prepare(ask.config, out, ask.watch))
