"""The content of ``vppo report``: what a run's page shows, from its artifacts. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipelines.objectives.table import measured_by
from pipelines.page import embedded_json
from pipelines.page.viewer import unit
from vppo_cli.report.curves import curves
from vppo_cli.report.entries import viewer
from vppo_cli.report.figures import figures, pooled, read
from vppo_cli.report.lines import Line
from vppo_cli.report.source import RunSource, vocabulary
from vppo_cli.report.summary import summary
from vppo_cli.report.tables import evaluations, settings
from vppo_cli.report.words import WordCount, words

PAGE_BYTES = 19_000_000
"""Bytes that a page may take: it stays under 20 MB with its style and scripts."""


def collect(
    shown: Sequence[RunSource | Line], steps: Sequence[int] | None = None, most_bytes: int = PAGE_BYTES
) -> dict[str, Any]:
    """The sections of the page about the first run or method, the others beside it.

    Args:
        shown: runs, or methods with several.
        steps: training steps for the token viewer; None: all, as many as fit.
        most_bytes: bytes that all data of the page may take.

    Raises:
        UserError: an artifact is damaged.
    """
    lines = [one if isinstance(one, Line) else Line(one.name, [one]) for one in shown]
    sources = [source for line in lines for source in line.sources]
    tokens = [vocabulary(line.sources[0].chain) for line in lines]
    readings = []
    for line, known in zip(lines, tokens, strict=True):
        count = WordCount(known) if known else None
        readings.append(pooled([read(source, count) for source in line.sources]))
    names = [line.name for line in lines]
    evaluated = evaluations(lines)
    sections: dict[str, Any] = {
        "runs": names,
        "summary": summary(lines[0], evaluated),
        "curves": curves(lines),
        "figures": figures(names, [line.sources[0] for line in lines], readings),
        "words": words(names, [reading.words for reading in readings]),
        "evaluations": evaluated,
        "config": settings(sources),
    }
    sections["figures"]["legend"] = [line.together for line in lines]
    used = len(embedded_json(sections).encode())
    found = viewer(sources[0], tokens[0], max(most_bytes - used, 0), steps)
    sections["viewer"], sections["viewer_notes"] = found.entries, found.notes
    sections["viewer_left_out"] = found.left_out
    if len(lines[0].sources) > 1:
        sections["viewer_notes"] = [f"The responses are those of {sources[0].name}.", *found.notes]
    sections["estimator"] = measured_by(sources[0].chain.config)
    sections["unit"] = unit(sections["estimator"])
    return sections
