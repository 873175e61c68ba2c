"""A ledger in the terminal: one line an objective, then what the theorem says, then where they disagree."""

from __future__ import annotations

import json
import textwrap

from pipelines.ledger.columns import COLUMNS, assumption_rows, cell, disagreement, drawn, size
from pipelines.ledger.step import Ledger, Line
from pipelines.words import counted
from vppo_cli.screen import display

HEADS = {
    "mass": ("token", "mass"),
    "overlap": ("VPPO's", "top"),
    "correlation": ("", "rank"),
    "perception": ("|w| on", "perc"),
    "reasoning": ("", "reas"),
    "to_vppo": ("cosine", "vppo"),
    "to_dapo": ("", "dapo"),
    "norm": ("", "norm"),
    "variance": ("vari-", "ance"),
    "predicted": ("", "theory"),
}
"""Two lines above each number."""

SHOWN = 3
"""Disagreements that are told of."""


def show(found: Ledger) -> None:
    """Print one step."""
    display.console.print()
    batches = f" in {found.batches} update batches" if found.batches > 1 else ""
    display.line(
        f"step {found.step}",
        f"{size(found)}{batches}; S by {found.estimator}; policy after {counted(found.step - 1, 'update')}",
    )
    _table(found)
    display.console.print()
    _theorem(found)
    for number, one in enumerate(found.disagreements[:SHOWN]):
        told = disagreement(found, one)
        role = f" ({told['role']})" if told["role"] else ""
        ranks = ", ".join(f"{name} {one.ranks[name]:g}" for name in (one.most, one.least))
        _wrapped(
            "" if number else "disagree",
            f"{json.dumps(told['text'], ensure_ascii=False)}{role} in prompt {told['prompt']}.{told['response']}: "
            f"{ranks} of {one.length}",
        )
    for number, (name, reason) in enumerate(found.left_out.items()):
        _wrapped("" if number else "left out", f"{name}: {reason}")
    if found.moved is not None and found.moved > 1e-4:
        _wrapped(
            "note", f"log-probs are {found.moved:.2g} nats from the run's own scores on average: not quite its policy"
        )


def _table(found: Ledger) -> None:
    columns = [column for column in COLUMNS if column.key in HEADS]
    body = [[line.name, *_cells(line)] for line in found.lines]
    if found.role_shares:
        body.append(["all tokens", *(cell(found.role_shares.get(column.key)) for column in columns)])
    some = [i for i in range(len(body[0])) if not i or any(row[i].strip("-") for row in body)]
    heads = [["", *(HEADS[column.key][i] for column in columns)] for i in (0, 1)]
    rows = [[row[i] for i in some] for row in (*heads, *body)]
    styles = ["dim", "dim", *("" for _ in found.lines), *(["dim"] if found.role_shares else [])]
    display.columns(rows, styles=styles)


def _cells(line: Line) -> list[str]:
    return [cell(column.of(line), column.places) or "-" for column in COLUMNS if column.key in HEADS]


def _theorem(found: Ledger) -> None:
    vppo = next(line for line in found.lines if line.name == "vppo")
    seen = "" if vppo.variance is None else f"; found {vppo.variance:.2f}"
    _wrapped(
        "theorem",
        f"k E[alpha^2] = {cell(vppo.paper, 3)} of DAPO's variance for vppo (k = {found.kept_share:.3f}){seen}",
    )
    if found.assumptions is None:
        return
    _wrapped("", f"assumed and found on {drawn(found.assumptions)}, 95 %:")
    rows = [
        [text, assumed, f"{value.value:.3f}", f"[{value.low:.3f}, {value.high:.3f}]"]
        for text, assumed, value in assumption_rows(found.assumptions)
        if value.value is not None
    ]
    display.columns(rows, indent=display.LABEL)


def _wrapped(label: str, text: str) -> None:
    width = max(display.console.width - display.LABEL, 40)
    for number, part in enumerate(
        textwrap.wrap(display.plain(text), width, break_long_words=False, break_on_hyphens=False)
    ):
        display.line("" if number else label, part)
