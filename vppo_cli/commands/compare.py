"""``vppo compare``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from math import isfinite
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.errors import UserError
from vppo_cli.options import Json

if TYPE_CHECKING:
    from evals.compare import Comparison
    from evals.groups import GroupComparison, RunGroup
    from evals.numbers.statistics import Interval


def compare(
    before: Annotated[
        str,
        typer.Argument(
            metavar="A",
            help="A run, an evaluation's folder, or a report.json; or several runs by a shell pattern, quoted.",
        ),
    ],
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

    A pattern such as 'dapo-*' stands for the runs of a method that differ in
    their seed: each group's mean is compared, and where both have several runs
    the interval is over seeds and questions.

    [bold]Examples[/bold]

    vppo compare tiny-a tiny-b

    vppo compare baseline.json runs/ci/eval/0008 --fail-below -3

    vppo compare 'dapo-*' 'vppo-*'
    """
    if not isfinite(fail_below):
        raise UserError(f"--fail-below {fail_below}", "is not a number of points.", "Such as -2.")
    from evals.compare import compare as paired
    from evals.compare import load, made_otherwise, made_run, remark
    from evals.groups import runs_differ
    from pipelines.runs import is_pattern
    from vppo_cli.screen import display

    if is_pattern(before) or is_pattern(after):
        _groups(before, after, fail_below, as_json=json)
        return
    (old_model, old), (new_model, new) = load(before, rewards=True), load(after, rewards=True)
    found = paired(old, new)
    found = replace(found, notes=[*filter(None, map(remark, (before, after))), *found.notes])
    made = made_otherwise(made_run(before) | made_run(after))
    differ = runs_differ(before, after)
    worse = found.regressions(fail_below / 100)
    if json:
        told = {"before": old_model, "after": new_model, **asdict(found), "settings": differ, "made_with": made}
        display.print_json({**told, "fail_below": fail_below, "regressions": worse})
    else:
        display.line("A", f"{before}  ({old_model})" if old_model != before else before)
        display.line("B", f"{after}  ({new_model})" if new_model != after else after)
        _settings(differ)
        _made_with(made)
        display.console.print()
        _table(found, worse)
        display.console.print()
        _verdict(found, worse, fail_below)
    if worse:
        raise typer.Exit(1)


def _settings(differing: dict[str, list[str]]) -> None:
    """Settings that are not the same in A and B."""
    from vppo_cli.screen import display

    for name, (old, new) in differing.items():
        display.line("A -> B", f"{name} {old} -> {new}")


def _made_with(differing: dict[str, dict[str, list[str]]]) -> None:
    """Versions and commits that are not the same in all runs."""
    from pipelines.words import who_has
    from vppo_cli.screen import display

    for name, versions in differing.items():
        display.line("made with", f"{name} {who_has(versions)}")


def _verdict(found: Comparison, worse: list[str], fail_below: float) -> None:
    from vppo_cli.screen import display

    for note in found.notes:
        display.line("note", note)
    limit = f"surely below {fail_below:g} points"
    if worse:
        display.line("regression", f"{', '.join(worse)}: {limit}", style="bold red")
    else:
        display.line("fine", f"no change is {limit}")


def _groups(before: str, after: str, fail_below: float, *, as_json: bool) -> None:
    """Groups of runs, each a method with several seeds."""
    from evals.groups import compare_groups, open_group
    from pipelines.words import counted
    from vppo_cli.screen import display

    groups = open_group(before), open_group(after)
    found = compare_groups(*groups)
    worse = found.regressions(fail_below / 100)
    if as_json:
        named = {
            side: {"pattern": group.pattern, "runs": [{"run": one.name, "seed": one.seed} for one in group.members]}
            for side, group in zip(("before", "after"), groups, strict=True)
        }
        display.print_json({**named, **asdict(found), "fail_below": fail_below, "regressions": worse})
    else:
        for side, group in zip("AB", groups, strict=True):
            size = len(group.members)
            display.line(side, f"{group.pattern}  ({counted(size, 'run')})")
        _settings(found.settings)
        _made_with(found.made_with)
        display.console.print()
        _runs(groups, found)
        display.console.print()
        _table(found, worse)
        display.console.print()
        drawn = "seeds in pairs" if found.paired else "seeds group by group"
        display.line("interval", f"95 % over {found.over}" + (f", {drawn}" if "seeds" in found.over else ""))
        _verdict(found, worse, fail_below)
    if worse:
        raise typer.Exit(1)


def _runs(groups: Sequence[RunGroup], found: GroupComparison) -> None:
    """The accuracy of every run, by benchmark."""
    from vppo_cli.screen import display

    rows = [("", "run", "seed", *(one.benchmark for one in found.changes))]
    for side, group, of in zip("AB", groups, ("before_runs", "after_runs"), strict=True):
        for one in group.members:
            scores = [f"{100 * getattr(change, of)[one.name]:.1f}" for change in found.changes]
            rows.append((side, one.name, "" if one.seed is None else str(one.seed), *scores))
    display.columns(rows, indent=display.LABEL, gap=3, styles=["dim"])


def _table(found: Comparison, worse: list[str]) -> None:
    from pipelines.words import signed
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
    rows = [("", "reward", "A", "B", "B - A", "95 % interval")]
    for one in found.changes:
        for name, paid in one.rewards.items():
            ends = (paid.change.low, paid.change.mean, paid.change.high)
            low, mean, high = (signed(value, paid.places) for value in ends)
            rows.append((one.benchmark, name, f"{paid.before:.3f}", f"{paid.after:.3f}", mean, f"[{low}, {high}]"))
    if rows[1:]:
        display.console.print()
        display.columns(rows, indent=display.LABEL, gap=3, styles=["dim"])


def _points(change: Interval) -> tuple[str, str]:
    from pipelines.words import signed

    low, mean, high = (signed(100 * end, 1) for end in (change.low, change.mean, change.high))
    return mean, f"[{low}, {high}]"
