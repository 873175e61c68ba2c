"""What is said in tables: evaluations beside the published rows, settings, versions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from evals.compare import Comparison, MeanChange, compare, load, same_questions
from evals.groups import compare_groups, group_of
from evals.numbers.statistics import Interval
from evals.report import tables as report_tables
from evals.report.build import REPORT, read
from pipelines.config.settings import setting_names
from pipelines.disk.files import find
from pipelines.errors import UserError
from pipelines.runs import made_with
from vppo_cli.report.lines import Line
from vppo_cli.report.source import RunSource
from vppo_cli.screen.results import evaluation_rows, shown_benchmarks


def evaluations(lines: Sequence[Line]) -> dict[str, Any]:
    """Every run's accuracies with intervals, differences between runs or methods, and the full reports.

    Of a method with several runs the full report is its first run's.
    """
    sources = [source for line in lines for source in line.sources]
    own = []
    for source in sources:
        for row in evaluation_rows(source.chain):
            for entry in row["results"]:
                own.append(
                    {
                        "run": source.name,
                        "benchmark": row["benchmark"],
                        "policy": entry["policy"],
                        "asked": f"{row['questions']} × {row['samples']}",
                        "accuracy": entry["accuracy"],
                        "interval": entry["interval"],
                        "difference": entry.get("difference"),
                        "difference_interval": entry.get("difference_interval"),
                        "rewards": entry.get("rewards", {}),
                    }
                )
    found: dict[str, Any] = {"own": own, "changes": [], "reports": _reports([line.sources[0] for line in lines])}
    if len(sources) > len(lines):
        found |= _between(lines)
    else:
        found |= _changes(sources)
    if not own and not found["reports"]:
        name = sources[0].name
        found["empty"] = f"Not evaluated yet: vppo eval --run {name}"
    return found


def _changes(sources: Sequence[RunSource]) -> dict[str, Any]:
    """Each compared run minus the first one, on the questions both have: paired differences."""
    found: dict[str, Any] = {"changes": [], "notes": []}
    first = sources[0]
    for other in sources[1:]:
        both: list[list[dict[str, Any]]] = []
        unlike = f"{other.name} is not compared with {first.name}"
        for benchmark in shown_benchmarks(first.chain):
            try:
                steps = [one.chain.eval(one.chain.config.run.steps, benchmark) for one in (first, other)]
            except UserError:  # a test set of the first one's
                continue
            if not all(step.path.is_dir() for step in steps):
                continue
            try:
                results = [load(str(step.path), rewards=True)[1][0] for step in steps]
                same_questions(benchmark, dict(zip((first.name, other.name), results, strict=True)))
                both.append(results)
            except UserError as error:
                found["notes"].append(f"{unlike}: {error}")
        if both:
            try:
                result = compare(*zip(*both, strict=True))
            except UserError as error:  # they share no question
                found["notes"].append(f"{unlike}: {error}")
                continue
            found["changes"] += _differences(result, other.name, first.name)
            found["notes"] += result.notes
    return found


def _between(lines: Sequence[Line]) -> dict[str, Any]:
    """Each compared method minus the first one, over seeds and questions."""
    found: dict[str, Any] = {"methods": True, "changes": [], "notes": []}
    for line in lines[1:]:
        try:
            first, other = (group_of(x.name, [source.chain.run for source in x.sources]) for x in (lines[0], line))
            result = compare_groups(first, other)
        except UserError as error:  # nothing in common, asked in ways that do not compare, or one run twice
            found["notes"].append(f"{line.name} is not compared with {lines[0].name}: {error}")
            continue
        found["changes"] += _differences(result, other.pattern, first.pattern)
        drawn = f"{other.pattern} {MINUS} {first.pattern}: 95 % intervals over {result.over}"
        pairs = ", seeds in pairs" if result.paired else ", seeds group by group" if "seeds" in result.over else ""
        found["notes"] += [f"{drawn}{pairs}.", *result.notes]
    found["notes"] = list(dict.fromkeys(found["notes"]))
    return found


MINUS = "\u2212"


def _differences(result: Comparison, run: str, against: str) -> list[dict[str, Any]]:
    """A row a benchmark, with its reward's lists, and one of the average: ``difference`` is in points of accuracy."""
    rows = []
    changes: list[tuple[str, Interval, dict[str, MeanChange]]]
    changes = [(one.benchmark, one.change, one.rewards) for one in result.changes]
    for benchmark, change, rewards in [*changes, *([("average", result.average, {})] if result.average else [])]:
        paid = {name: one.as_row() for name, one in rewards.items()}
        points = {"difference": 100 * change.mean, "interval": [100 * change.low, 100 * change.high]}
        rows.append({"run": run, "against": against, "benchmark": benchmark, **points, "rewards": paid})
    return rows


def _reports(sources: Sequence[RunSource]) -> list[dict[str, Any]]:
    """The report of each run's latest evaluated step, published rows included."""
    reports = []
    for source in sources:
        files = find(source.chain.run, f"eval/*/{REPORT}")
        if not files:
            continue
        try:
            report = read(files[-1])
            tables = [report_tables.main_table(report)]
            tables += filter(None, [report_tables.verdict_table(report), report_tables.reward_table(report)])
            tables += report_tables.detail_tables(report)
            tables += filter(None, [report_tables.score_table(report)])
            tables += report_tables.breakdown_tables(report)
            reports.append(
                {
                    "run": source.name,
                    "model": report["model"],
                    "warnings": report["warnings"],
                    "tables": [
                        {"caption": t.caption, "header": t.header, "rows": t.rows, "bold": t.bold, "right": t.right()}
                        for t in tables
                    ],
                }
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                str(files[-1]),
                f"is not a report of vppo eval ({type(error).__name__}: {error}).",
                f"Write it again: vppo eval --run {source.name}",
            ) from error
    return reports


def settings(sources: Sequence[RunSource]) -> dict[str, Any]:
    """Every setting of every run, which differ, and the versions that made them."""
    rows = []
    for name, about in setting_names():
        values = [_value(source, name) for source in sources]
        rows.append({"name": name, "about": about.replace("``", ""), "values": values, "differs": len(set(values)) > 1})
    made_by = [made_with(source.chain) for source in sources]
    names = list(dict.fromkeys(name for found in made_by for name in found))
    versions = [
        {
            "name": name,
            "values": [found.get(name, "") for found in made_by],
            "differs": len({found.get(name, "") for found in made_by}) > 1,
        }
        for name in names
    ]
    return {"runs": [source.name for source in sources], "rows": rows, "versions": versions}


def _value(source: RunSource, name: str) -> str:
    value: Any = source.chain.config.model_dump(mode="json")
    for part in name.split("."):
        value = value[part]
    return "none" if value is None else value if isinstance(value, str) else json.dumps(value)
