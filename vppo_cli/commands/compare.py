"""``vppo compare``."""

from __future__ import annotations

from dataclasses import asdict

import typer

from evals.compare import Comparison, load
from evals.compare import compare as paired
from evals.numbers.statistics import Interval
from vppo_cli.screen import display


def compare(before: str, after: str, fail_below: float, *, as_json: bool) -> None:
    """Show the differences; leave with exit code 1 if one is below ``fail_below`` for certain.

    Args:
        fail_below: points of accuracy.
    """
    (old_model, old), (new_model, new) = load(before), load(after)
    found = paired(old, new)
    worse = found.regressions(fail_below / 100)
    if as_json:
        display.print_json({
            "before": old_model, "after": new_model, **asdict(found), "fail_below": fail_below,
            "regressions": worse,
        })  # fmt: skip
    else:
        display.line("A", f"{before}  ({old_model})" if old_model != before else before)
        display.line("B", f"{after}  ({new_model})" if new_model != after else after)
        display.console.print()
        _table(found, worse)
        display.console.print()
        for note in found.notes:
            display.line("note", note)
        limit = f"surely below {fail_below:g} points"
        if worse:
            display.line("regression", f"{', '.join(worse)}: {limit}", style="bold red")
        else:
            display.line("fine", f"no change is {limit}")
    if worse:
        raise typer.Exit(1)


def _table(found: Comparison, worse: list[str]) -> None:
    rows = [("", "questions", "A", "B", "B - A, points", "95 % interval")]
    for one in found.changes:
        scores = (f"{100 * one.before:.1f}", f"{100 * one.after:.1f}")
        rows.append((one.benchmark, str(one.questions), *scores, *_points(one.change)))
    if found.average:
        means = [
            sum(getattr(one, side) for one in found.changes) / len(found.changes)
            for side in ("before", "after")
        ]
        scores = (f"{100 * means[0]:.1f}", f"{100 * means[1]:.1f}")
        rows.append(("average", "", *scores, *_points(found.average)))
    styles = ["dim", *("bold red" if row[0] in worse else "" for row in rows[1:])]
    display.columns(rows, indent=display.LABEL, gap=3, styles=styles)


def _points(change: Interval) -> tuple[str, str]:
    low, high = 100 * change.low, 100 * change.high
    return f"{100 * change.mean:+.1f}", f"[{low:+.1f}, {high:+.1f}]"
