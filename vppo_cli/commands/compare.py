"""``vppo compare``."""

from __future__ import annotations

from dataclasses import asdict
from math import isfinite
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.errors import UserError
from vppo_cli.options import Json

if TYPE_CHECKING:
    from evals.compare import Comparison
    from evals.numbers.statistics import Interval


def compare(
    before: Annotated[str, typer.Argument(metavar="A", help="A run, an evaluation's folder, or a report.json.")],
    after: Annotated[str, typer.Argument(metavar="B", help="The same, to be compared with A.")],
    fail_below: Annotated[
        float,
        typer.Option(
            metavar="POINTS", help="Exit with 1 if B - A is below this for certain (its whole 95 % interval)."
        ),
    ] = 0.0,
    json: Json = False,
) -> None:
    """Compare two evaluations on the questions both have; exit code 1 on a regression.

    A difference is B - A in points of accuracy, with a paired bootstrap
    interval. By default a change counts as a regression if it lies below 0 for
    certain; --fail-below -2 lets up to two points go, --fail-below 5 asks for a
    gain of five.

    [bold]Examples[/bold]

    vppo compare tiny-a tiny-b

    vppo compare baseline.json runs/ci/eval/0008 --fail-below -3
    """
    if not isfinite(fail_below):
        raise UserError(f"--fail-below {fail_below}", "is not a number of points.", "Such as -2.")
    from evals.compare import compare as paired
    from evals.compare import load
    from vppo_cli.screen import display

    (old_model, old), (new_model, new) = load(before), load(after)
    found = paired(old, new)
    worse = found.regressions(fail_below / 100)
    if json:
        display.print_json(
            {"before": old_model, "after": new_model, **asdict(found), "fail_below": fail_below, "regressions": worse}
        )
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
    from vppo_cli.screen import display

    rows = [("", "questions", "A", "B", "B - A, points", "95 % interval")]
    for one in found.changes:
        scores = (f"{100 * one.before:.1f}", f"{100 * one.after:.1f}")
        rows.append((one.benchmark, str(one.questions), *scores, *_points(one.change)))
    if found.average:
        means = [sum(getattr(one, side) for one in found.changes) / len(found.changes) for side in ("before", "after")]
        scores = (f"{100 * means[0]:.1f}", f"{100 * means[1]:.1f}")
        rows.append(("average", "", *scores, *_points(found.average)))
    styles = ["dim", *("bold red" if row[0] in worse else "" for row in rows[1:])]
    display.columns(rows, indent=display.LABEL, gap=3, styles=styles)


def _points(change: Interval) -> tuple[str, str]:
    low, high = 100 * change.low, 100 * change.high
    return f"{100 * change.mean:+.1f}", f"[{low:+.1f}, {high:+.1f}]"
