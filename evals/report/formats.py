"""The report as CSV, Markdown and LaTeX. Names come from data sets and people: all are escaped."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from typing import Any

from evals.benchmarks.published import GRADER, beside
from evals.benchmarks.table import EIGHT
from evals.numbers.scores import AS_PUBLISHED
from evals.report import tables as report_tables
from evals.report.tables import NUMBERS, Report, Result, Table, plain
from pipelines.grading.reward import OUTCOMES

# -- CSV -------------------------------------------------------------------------------------------

COLUMNS = (
    "model",
    "source",
    "profile",
    "benchmark",
    "group",
    "group_value",
    "metric",
    "verdict",
    "grader",
    "value",
    "low",
    "high",
    "n",
    "unit",
)
"""One row per (benchmark, group, group value, metric, verdict); n questions or, of outcomes and of what
the verdicts tell apart, responses. The source is that of printed rows, and empty of ours; the verdict is
ours or as published."""

OURS, PUBLISHED = "ours", "as published"


def as_csv(report: Report) -> str:
    """Tidy rows of our numbers, then the printed ones, which have a source."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in _tidy(report):
        writer.writerow([cell if isinstance(cell, int | float) else csv_text(cell) for cell in row])
    return out.getvalue()


def csv_text(text: Any) -> str:
    """A cell that no spreadsheet takes for a formula: a leading = + - @ gets an apostrophe before it."""
    text = plain(text)
    return f"'{text}" if text[:1] in tuple("=+-@＝＋－＠") else text


def _tidy(report: Report) -> Iterator[list[Any]]:
    for result in report["results"]:
        start = [report["model"], "", result["profile"], result["benchmark"]]
        for row in _tidy_result(result):
            yield [*start, *row]
    if average := report["average"]:
        start = [report["model"], "", report["results"][0]["profile"], "average", "", "", "accuracy"]
        for grader, value in average["graders"].items():
            main = grader == report["results"][0]["grader"]
            bounds = _percents(average["interval"]) if main else ["", ""]
            yield [*start, OURS, grader, _percent(value), *bounds, len(EIGHT), "%"]
        if found := average.get(AS_PUBLISHED):
            yield [
                *start,
                PUBLISHED,
                GRADER,
                _percent(found["accuracy"]),
                *_percents(found["interval"]),
                len(EIGHT),
                "%",
            ]
    for row in report["published"]["rows"]:
        for name, value in [*row["accuracy"].items(), ("average", row["average"])]:
            yield [row["model"], beside([row]), "", name, "", "", "accuracy", PUBLISHED, GRADER, value, "", "", "", "%"]


def _tidy_result(result: Result) -> Iterator[list[Any]]:
    n, by = result["questions"], result["grader"]
    graded = [(OURS, grader, found) for grader, found in result["graders"].items()]
    if AS_PUBLISHED in result:
        graded.append((PUBLISHED, GRADER, result[AS_PUBLISHED]))
    for verdict, grader, found in graded:
        yield ["", "", "accuracy", verdict, grader, _percent(found["accuracy"]), *_percents(found["interval"]), n, "%"]
        for outcome in OUTCOMES:
            count = found["outcomes"].get(outcome, 0)
            yield ["", "", outcome, verdict, grader, count, "", "", n * result["samples"], "responses"]
    for name, count in result.get("differ", {}).items():
        if count is not None:
            yield ["", "", name, "", "", count, "", "", n * result["samples"], "responses"]
    for name in ("pass_at_k", "majority_at_k"):
        for k, value in result[name].items():
            yield ["", "", name.replace("at_k", f"at_{k}"), OURS, by, _percent(value), "", "", n, "%"]
    for name, found in result.get("rewards", {}).items():
        yield [*("reward", name, "reward", OURS, by, found["value"]), *found["interval"], n, ""]
    for name, found in result["scores"].items():
        yield ["score", name, "score", OURS, by, _percent(found["value"]), *_percents(found["interval"]), n, "%"]
    for group, levels in result["breakdowns"].items():
        for level, found in levels.items():
            yield [
                group,
                level,
                "accuracy",
                OURS,
                by,
                _percent(found["accuracy"]),
                *_percents(found["interval"]),
                found["questions"],
                "%",
            ]
    yield ["", "", "response_tokens", "", "", result["response_tokens_mean"], "", "", n * result["samples"], "tokens"]
    for name, value in result["settings"].items():
        if isinstance(value, int | float):
            yield ["settings", name, "setting", "", "", value, "", "", "", ""]


def _percent(fraction: float) -> float:
    return round(100 * fraction, 4)


def _percents(bounds: list[float]) -> list[float]:
    return [_percent(bound) for bound in bounds]


# -- Markdown --------------------------------------------------------------------------------------


def as_markdown(report: Report) -> str:
    """The tables of the report under headings, as people paste them into a README."""
    parts = [f"# {markdown_text(report['model'])}", markdown_table(report_tables.main_table(report))]
    if report["no_average"]:
        parts.append(f"No average: it {markdown_text(report['no_average'])}.")
    if report["warnings"]:
        parts += ["## Warnings", _bullets(report["warnings"])]
    if table := report_tables.verdict_table(report):
        parts += ["## Two verdicts", markdown_table(table)]
    if table := report_tables.reward_table(report):
        parts += ["## Rewards", markdown_table(table)]
    parts += ["## How it was counted", *map(markdown_table, report_tables.detail_tables(report))]
    if table := report_tables.score_table(report):
        parts += ["## Scores of the benchmarks' own", markdown_table(table)]
    if tables := report_tables.breakdown_tables(report):
        parts += ["## Breakdowns", *map(markdown_table, tables)]
    parts += [
        "## Settings",
        _bullets(
            [
                f"{who}: {values}; instruction: {instruction}"
                for who, values, instruction in report_tables.settings(report)
            ]
        ),
    ]
    return "\n\n".join(parts) + "\n"


def markdown_text(text: Any) -> str:
    """Text that Markdown shows as it is: no table cell, link, image, HTML or emphasis starts in it."""
    text = plain(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*{}\[\]#|~$])", r"\\\1", text)
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)  # inside a word it is just itself


def markdown_table(table: Table) -> str:
    """A table under its caption."""
    lines = [table.header, ["---:" if right else "---" for right in table.right()]]
    for i, row in enumerate(table.rows):
        cells = [cell if NUMBERS.fullmatch(cell) else markdown_text(cell) for cell in row]
        lines.append([f"**{c}**" if c else "" for c in cells] if i in table.bold else cells)
    lines[0] = [markdown_text(cell) for cell in table.header]
    rows = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{markdown_text(table.caption)}\n\n{rows}"


def _bullets(sentences: list[str]) -> str:
    return "\n".join(f"- {markdown_text(sentence)}" for sentence in sentences)


# -- LaTeX -----------------------------------------------------------------------------------------


def as_latex(report: Report) -> str:
    """Tables for ``\\input``; they need the package booktabs."""
    notes = [*report["warnings"], *(" ".join(way) for way in report_tables.settings(report))]
    comments = [f"% {plain(note)}" for note in ["\\usepackage{booktabs}", *notes]]
    tables = [
        report_tables.main_table(report, apart=True),
        *filter(None, [report_tables.verdict_table(report), report_tables.reward_table(report)]),
        *report_tables.detail_tables(report),
        *filter(None, [report_tables.score_table(report)]),
        *report_tables.breakdown_tables(report),
    ]
    return "\n".join(comments) + "\n\n" + "\n".join(map(latex_table, tables))


def latex_text(text: Any) -> str:
    """Text that LaTeX sets as it is: specials escaped, other alphabets as far as LaTeX has them."""
    from pylatexenc.latexencode import UnicodeToLatexEncoder

    encoder = UnicodeToLatexEncoder(
        unknown_char_policy="replace", unknown_char_warning=False, replacement_latex_protection="braces"
    )
    # A bracket after a \\ would be read as its option, and two hyphens become a dash.
    parts = re.split(r"([\[\]]|-(?=-))", plain(text))
    return "".join(f"{{{p}}}" if p in ("[", "]", "-") else encoder.unicode_to_latex(p) for p in parts)


def _column(right: bool, cells: Sequence[str]) -> str:
    long = max(map(len, cells)) > 60
    return "p{0.5\\textwidth}" if long else "r" if right else "l"


def latex_table(table: Table) -> str:
    """A floating table; it needs the package booktabs."""
    # The first row that is ours is ruled off from the published ones.
    lines = []
    for i, row in enumerate(table.rows):
        if table.bold[:1] == [i] and i:
            lines.append("\\midrule")
        first, *others = row  # after a \\ even a number in brackets is read as its option
        cells = [latex_text(first), *(c if NUMBERS.fullmatch(c) else latex_text(c) for c in others)]
        if table.bold[:1] == [i]:
            cells = [f"\\textbf{{{cell}}}" if cell else "" for cell in cells]
        lines.append(" & ".join(cells) + " \\\\")
    body = "\n".join(lines)
    align = "".join(
        _column(right, cells) for right, cells in zip(table.right(), zip(*table.rows, strict=True), strict=True)
    )
    head = " & ".join(map(latex_text, table.header))
    return f"""\\begin{{table*}}[t]
\\centering
\\scriptsize
\\caption{{{latex_text(table.caption)}}}
\\begin{{tabular}}{{{align}}}
\\toprule
{head} \\\\
\\midrule
{body}
\\bottomrule
\\end{{tabular}}
\\end{{table*}}
"""
