"""The report in the terminal: calm tables that are never cut, in 80 columns or more."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from evals.benchmarks.published import GRADER, TRAINED_HERE, beside
from evals.numbers.scores import AS_PUBLISHED
from evals.report import tables as report_tables
from evals.report.tables import plain
from pipelines.grading.reward import OUTCOMES
from vppo_cli.screen.display import LABEL, columns, console, line

GAP = 2
MOST_LEVELS = 16
"""A breakdown into more levels (MMMU's 30 subjects) is left to the files."""

COUNTS = re.compile(
    r"(.+: )(\d+) rows before the filter(, expected \d+; \d+) after it(, expected \d+)"
    r"|(.+: )\d+ questions, expected \d+"
)
"""A warning that a benchmark does not have the number of rows that it should."""

Row = Sequence[str]


def show(report: dict[str, Any], files: Iterable[Path] = ()) -> None:
    """Print a report that ``evals.report.build.build`` made, and where its files are.

    Details first: what one looks for stays on the screen.
    """
    results = report["results"]
    _breakdowns(results)
    _scores(results)
    _counts(results)
    if rewards := report_tables.reward_table(report):
        _table(["rewards", *rewards.header[1:]], rewards.rows)
    _accuracy(report)
    console.print()
    line("model", plain(report["model"]))
    for who, values, instruction in report_tables.settings(report):
        _wrapped("settings", (f"{who}: " if who != "all" else "") + values)
        if instruction:
            _wrapped("", f"instruction: {instruction}")
    for i, warning in enumerate(_calm(report["warnings"])):
        _wrapped("" if i else "warnings", warning, "bold yellow")
    for i, path in enumerate(files):
        line("" if i else "files", str(path))


def _calm(warnings: Sequence[str]) -> list[str]:
    """The warnings; those of row counts, if there are several, last and under one sentence."""
    counts = [warning for warning in warnings if COUNTS.fullmatch(warning)]
    if len(counts) < 2:
        return list(warnings)
    return [
        *(warning for warning in warnings if warning not in counts),
        "Numbers of rows other than expected (before the filter; after it):",
        *(COUNTS.sub(lambda m: m[0] if m[5] else f"{m[1]}{m[2]}{m[3]}{m[4]}", text) for text in counts),
    ]


def _accuracy(report: dict[str, Any]) -> None:
    """One line a benchmark: ours, by grader; then as published, beside the nearest family's numbers."""
    results, average, published = report["results"], report["average"], report["published"]
    others = report_tables.other_graders(results)
    body = [
        [
            report_tables.label(r, results),
            report_tables.accuracy(r),
            *(report_tables.graded(r, grader) for grader in others),
        ]
        for r in results
    ]
    if average:
        by = [average["graders"].get(grader) for grader in others]
        body.append(
            [
                "average",
                report_tables.accuracy(average),
                *("" if value is None else report_tables.percent(value) for value in by),
            ]
        )
    graders = "/".join(dict.fromkeys(r["grader"] for r in results))
    profile = report_tables.one_profile(results)
    above = f"ours{f', {profile} profile' if profile else ''}"
    _verdict(above, [["accuracy, %", graders, *others], *body], bool(average))
    rows = _beside(report)
    if rows:
        _as_published(report, rows)
    told = report_tables.verdicts(results)
    if told or rows or report["no_average"]:
        console.print()
    if told:
        _wrapped("verdicts", told)
    if rows:
        source = f"{beside(rows)}; {published['metric']}; the report's files have all rows"
        _wrapped("published", source)
    if report["no_average"]:
        _wrapped("average", report["no_average"])


def _beside(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The printed rows to show: the nearest family's, where they have one of these benchmarks."""
    rows = [
        row
        for row in report["published"]["rows"]
        if row["family"] == report["published"]["nearest"] and row["method"] in TRAINED_HERE
    ]
    shown = any(r["benchmark"] in row["accuracy"] for r in report["results"] for row in rows)
    return rows if shown else []


def _as_published(report: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    """The verdict that may stand beside printed numbers, of the benchmarks that have some."""

    def cells(label: str, found: dict[str, Any] | None, printed: Sequence[float | None]) -> list[str]:
        numbers = ("" if value is None else f"{value:.1f}" for value in printed)
        return [label, report_tables.accuracy(found) if found else "", *numbers]

    results, average = report["results"], report["average"]
    body = [
        cells(
            report_tables.label(r, results), r.get(AS_PUBLISHED), [row["accuracy"].get(r["benchmark"]) for row in rows]
        )
        for r in results
        if any(r["benchmark"] in row["accuracy"] for row in rows)
    ]
    if average:
        body.append(cells("average", average.get(AS_PUBLISHED), [row["average"] for row in rows]))
    head = ["accuracy, %", GRADER, *(row["method"] for row in rows)]
    _verdict("as published", [head, *body], bool(average), f"printed: {report['published']['nearest']}")


def _verdict(above: str, rows: Sequence[Row], average: bool, over: str = "") -> None:
    """A table of accuracies under the verdict that they are by; ``over`` stands over the third column."""
    table = _aligned(rows)
    widths = [len(cell) + GAP for cell in table[0]]
    above = above.rjust(sum(widths[:2]) - GAP)
    if over:
        above = above.ljust(sum(widths[:2])) + over
    console.print()
    columns([[above]], styles=["dim"])
    styles = ["dim", *([""] * (len(table) - 1 - average)), *(["bold"] if average else [])]
    columns(table, gap=GAP, styles=styles)


def _counts(results: Sequence[dict[str, Any]]) -> None:
    """Questions, what the intervals draw, pass@k, majority; then the outcomes."""
    passes, votes = (report_tables.ks(results, name) for name in ("pass_at_k", "majority_at_k"))
    by_k = [*(f"pass@{k}" for k in passes), *(f"majority@{k}" for k in votes)]
    _table(
        ["", "responses", "drawn", *by_k],
        [
            [
                r["title"],
                f"{r['questions']} x {r['samples']}",
                report_tables.drawn(r),
                *(report_tables.at_k(r, "pass_at_k", k) for k in passes),
                *(report_tables.at_k(r, "majority_at_k", k) for k in votes),
            ]
            for r in results
        ],
    )
    _table(
        ["", *(name.replace("_", " ") for name in OUTCOMES), "mean tokens"],
        [
            [r["title"], *(str(r["outcomes"].get(name, 0)) for name in OUTCOMES), f"{r['response_tokens_mean']:.0f}"]
            for r in results
        ],
    )


def _scores(results: Sequence[dict[str, Any]]) -> None:
    """The benchmarks' own scores, each with what it means."""
    for r in results:
        if not r["scores"]:
            continue
        console.print()
        line(f"{plain(r['title'])}: its own scores, %", "")
        cells = _aligned([[name.replace("_", " "), report_tables.score(found)] for name, found in r["scores"].items()])
        for (name, value), found in zip(cells, r["scores"].values(), strict=True):
            head = (" " * GAP).join([name, value, ""])
            for i, part in enumerate(_parts(plain(found["about"]), console.width - len(head))):
                columns([[(" " * len(head) if i else head) + part]])


def _breakdowns(results: Sequence[dict[str, Any]]) -> None:
    """Levels side by side, as many as fit, filled downwards."""
    for r in results:
        for group, levels in r["breakdowns"].items():
            if not levels:  # the data does not tell
                continue
            name = f"{plain(r['title'])} by {plain(group)}"
            if len(levels) > MOST_LEVELS:
                console.print()
                line(name, f": {len(levels)} levels, in the report's files")
                continue
            cells = _aligned(
                [[level, report_tables.accuracy(found), str(found["questions"])] for level, found in levels.items()]
            )
            items = [(" " * GAP).join(row) for row in cells]
            across = max(1, (console.width + 4) // (max(map(len, items)) + 4))
            down = -(-len(items) // across)
            console.print()
            line(name, ": accuracy in %, number of questions")
            columns([items[i::down] for i in range(down)], gap=4)


def _table(head: Row, body: Sequence[Row]) -> None:
    console.print()
    columns(_aligned([head, *body]), gap=GAP, styles=["dim"])


def _aligned(rows: Sequence[Row]) -> list[list[str]]:
    """Safe cells of equal width: the first column to the left, the others to the right."""
    safe = [[plain(cell) for cell in row] for row in rows]
    widths = [max(map(len, cells)) for cells in zip_longest(*safe, fillvalue="")]
    return [
        [
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=False))
        ]
        for row in safe
    ]


def _wrapped(label: str, text: str, style: str = "") -> None:
    """A line whose text goes on below itself where the terminal ends."""
    for i, part in enumerate(_parts(plain(text), console.width - LABEL)):
        line("" if i else label, part, style)


def _parts(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, max(width, 20), break_long_words=False, break_on_hyphens=False)
