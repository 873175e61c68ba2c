"""The report as tables of text, which every format draws in its own way."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from evals.benchmarks.published import beside
from evals.benchmarks.table import BENCHMARKS
from evals.numbers.scores import AS_PUBLISHED
from pipelines.grading.reward import OUTCOMES

NUMBERS = re.compile(r"(?!.*--)[-\d.,\[\] ]+( x \d+)?")
"""``41.5 [39.2, 43.8]``, ``-0.1``, ``2180 x 8``: a cell in which no format needs to escape anything."""

UNITS = {one.cluster: one.unit for one in BENCHMARKS.values() if one.unit}
"""What a cluster is called where its group's name does not say it."""

Report = dict[str, Any]
Result = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """A caption, a header and rows of as many cells; ``bold`` are the rows that are ours."""

    caption: str
    header: list[str]
    rows: list[list[str]]
    bold: list[int] = field(default_factory=list)

    def right(self) -> list[bool]:
        """For each column, whether it holds numbers, which stand to the right."""
        columns = zip(*self.rows, strict=True)
        return [all(NUMBERS.fullmatch(c) for c in cells if c) and any(cells) for cells in columns]


def plain(text: Any) -> str:
    """One line of printable characters: names in data sets and of models are not to be trusted."""
    words = " ".join(str(text).split())
    return "".join(c if c.isprintable() else "�" for c in words)


def percent(fraction: float) -> str:
    """``41.5``"""
    return f"{100 * fraction:.1f}"


def interval(bounds: Sequence[float]) -> str:
    """``[39.2, 43.8]``"""
    return f"[{percent(bounds[0])}, {percent(bounds[1])}]"


def accuracy(found: dict[str, Any]) -> str:
    """``41.5 [39.2, 43.8]``"""
    return f"{percent(found['accuracy'])} {interval(found['interval'])}"


def one_profile(results: Iterable[Result]) -> str:
    """The profile of all results, or nothing if they differ."""
    profiles = {r["profile"] for r in results}
    return profiles.pop() if len(profiles) == 1 else ""


def label(result: Result, results: Iterable[Result]) -> str:
    """``MathVerse``, with its profile where not all have the same."""
    return result["title"] if one_profile(results) else f"{result['title']} ({result['profile']})"


def other_graders(results: Iterable[Result]) -> list[str]:
    """The graders that do not decide, of any benchmark."""
    return list(dict.fromkeys(g for r in results for g in r["graders"] if g != r["grader"]))


def graded(result: Result, grader: str) -> str:
    """The accuracy that ``grader`` gives, or nothing."""
    found = result["graders"].get(grader)
    return percent(found["accuracy"]) if found else ""


def drawn(result: Result) -> str:
    """What the interval's resamples draw: ``436 problems``."""
    count, cluster = result["clusters"], result["cluster"]
    unit = result.get("unit") or UNITS.get(cluster, cluster)
    return f"{count} {unit}{'' if count == 1 else 's'}"


def ks(results: Iterable[Result], name: str) -> list[str]:
    """Every k of ``pass_at_k`` (1 is the accuracy) or ``majority_at_k``, in order."""
    found = {k for r in results for k in r[name]} - ({"1"} if name == "pass_at_k" else set())
    return sorted(found, key=int)


def at_k(result: Result, name: str, k: str) -> str:
    return percent(result[name][k]) if k in result[name] else ""


def main_table(report: Report, *, apart: bool = False) -> Table:
    """Our row, and all printed ones; ``apart``: intervals are a row of their own.

    Beside printed rows ours is graded as published. Where no benchmark has printed numbers, and in reports of earlier
    versions, which have no such verdict, it is ours.
    """
    results, average = report["results"], report["average"]
    profile = one_profile(results)
    model = report["model"] + (f" ({profile} profile)" if profile else "")
    wholes = [*results, *([average] if average else [])]
    graded = any(AS_PUBLISHED in r for r in results)
    rows = report["published"]["rows"] if graded else ()
    published = any(row["accuracy"].get(r["benchmark"]) is not None for row in rows for r in results)
    verdicts = [whole.get(AS_PUBLISHED) if published else whole for whole in wholes]
    if apart:
        ours = [
            [model, *(percent(v["accuracy"]) if v else "" for v in verdicts)],
            ["95 % interval", *(interval(v["interval"]) if v else "" for v in verdicts)],
        ]
    else:
        ours = [[model, *(accuracy(v) if v else "" for v in verdicts)]]
    theirs, printed = [], []
    for row in rows if published else ():
        cells = [_one(row["accuracy"].get(r["benchmark"])) for r in results]
        if any(cells):
            printed.append(row)
            theirs.append([row["model"], *cells, *([_one(row["average"])] if average else [])])
    samples = " or ".join(map(str, sorted({r["samples"] for r in results})))
    verdict = BY_PUBLISHED if published else BY_OURS if graded else BY_OURS_EARLIER
    return Table(
        f"Accuracy in %, graded {verdict}, mean of {samples} sample{'s' * (samples != '1')} a question, "
        f"with 95 % intervals by cluster bootstrap{f'; other rows: {beside(printed)}' if theirs else ''}.",
        ["model", *(label(r, results) for r in results), *(["average"] if average else [])],
        [*theirs, *ours],
        list(range(len(theirs), len(theirs) + len(ours))),
    )


BY_PUBLISHED = "as published (mathruler alone, on the boxed text)"
BY_OURS = "by the project's rules, then the grader (ours)"
BY_OURS_EARLIER = "by the project's rules, as earlier versions did"


def verdict_table(report: Report) -> Table | None:
    """The two verdicts of every answer: ours and as published, and what they tell apart."""
    rows = [
        [
            label(r, report["results"]),
            accuracy(r),
            accuracy(r[AS_PUBLISHED]),
            str(r["questions"] * r["samples"]),
            *map(_count, _differing(r)),
        ]
        for r in report["results"]
        if AS_PUBLISHED in r
    ]
    average = report["average"]
    if rows and average and average.get(AS_PUBLISHED):
        rows.append(["average", accuracy(average), accuracy(average[AS_PUBLISHED]), *[""] * 5])
    return (
        Table(
            "The two verdicts, in %, and how many answers they tell apart: ours (the project's rules, then the "
            "grader) and as published (mathruler alone). By content: wrong by ours and no letter, but the text "
            "of the right option.",
            [
                "benchmark",
                "ours",
                "as published",
                "answers",
                "differ",
                "right by ours only",
                "right as published only",
                "by content",
            ],
            rows,
        )
        if rows
        else None
    )


def _differing(result: Result) -> list[int | None]:
    """How many answers differ, which are right by ours only, which as published only, which by content."""
    found = result["differ"]
    ours, theirs = found["ours_only"], found["as_published_only"]
    return [ours + theirs, ours, theirs, found["by_content"]]


def _count(number: int | None) -> str:
    return "" if number is None else str(number)


def verdicts(results: Iterable[Result]) -> str:
    """What the two verdicts tell apart over all results, in a sentence; "" where it is not known."""
    graded = [r for r in results if AS_PUBLISHED in r]
    if not graded:
        return ""
    answers = sum(r["questions"] * r["samples"] for r in graded)
    differ, ours, theirs, content = (sum(filter(None, column)) for column in zip(*map(_differing, graded), strict=True))
    return (
        f"ours and as published differ on {differ} of {answers} answers: {ours} are right by ours only, "
        f"{theirs} as published only; wrong by ours, but the text of the right option: {content}"
    )


def detail_tables(report: Report) -> list[Table]:
    """How each benchmark was counted: graders, questions, pass@k, majority; and every outcome."""
    results = report["results"]
    others = other_graders(results)
    passes, votes = ks(results, "pass_at_k"), ks(results, "majority_at_k")
    counted = [
        [
            r["title"],
            f"{r['questions']} x {r['samples']}",
            drawn(r),
            r["profile"],
            r["grader"],
            percent(r["accuracy"]),
            *(graded(r, grader) for grader in others),
            *(at_k(r, "pass_at_k", k) for k in passes),
            *(at_k(r, "majority_at_k", k) for k in votes),
        ]
        for r in results
    ]
    outcomes = [
        [r["title"], *(str(r["outcomes"].get(name, 0)) for name in OUTCOMES), f"{r['response_tokens_mean']:.0f}"]
        for r in results
    ]
    return [
        Table(
            "Questions x samples, the units that the intervals draw, our verdict by grader, pass@k and "
            "majority vote, in %.",
            [
                "benchmark",
                "responses",
                "drawn",
                "profile",
                "grader",
                "accuracy",
                *others,
                *(f"pass@{k}" for k in passes),
                *(f"majority@{k}" for k in votes),
            ],
            counted,
        ),
        Table(
            "Outcomes of all responses, by the grader that decides, and mean response length.",
            ["benchmark", *(name.replace("_", " ") for name in OUTCOMES), "tokens"],
            outcomes,
        ),
    ]


def score_table(report: Report) -> Table | None:
    """The benchmarks' own scores."""
    rows = [
        [r["title"], name.replace("_", " "), score(found), found["about"]]
        for r in report["results"]
        for name, found in r["scores"].items()
    ]
    header = ["benchmark", "score", "%", "meaning"]
    return Table("The benchmarks' own scores, in %.", header, rows) if rows else None


def reward_table(report: Report) -> Table | None:
    """What a reward of one's own gives, each list by name."""
    names = list(dict.fromkeys(name for r in report["results"] for name in r.get("rewards", ())))
    rows = [
        [r["title"], *(mean(r["rewards"][name]) if name in r["rewards"] else "" for name in names)]
        for r in report["results"]
        if "rewards" in r
    ]
    caption = "What the run's own reward gives: means over questions, with 95 % intervals."
    return Table(caption, ["benchmark", *names], rows) if rows else None


def mean(found: dict[str, Any]) -> str:
    """``0.412 [0.390, 0.430]``"""
    low, high = found["interval"]
    return f"{found['value']:.3f} [{low:.3f}, {high:.3f}]"


def score(found: dict[str, Any]) -> str:
    return f"{percent(found['value'])} {interval(found['interval'])}"


def breakdown_tables(report: Report) -> list[Table]:
    """Accuracy by version, subject, level ..."""
    return [
        Table(
            f"{r['title']} by {group}: accuracy in %.",
            [group, "accuracy", "questions"],
            [[level, accuracy(found), str(found["questions"])] for level, found in levels.items()],
        )
        for r in report["results"]
        for group, levels in r["breakdowns"].items()
        if levels
    ]


def settings(report: Report) -> list[tuple[str, str, str]]:
    """(benchmarks, profile with every sampling and pixel setting, instruction), once for each way."""
    ways: dict[tuple[str, str], list[str]] = {}
    for r in report["results"]:
        values = {
            name: v
            for name, v in r["settings"].items()
            if name not in ("instruction", "system_prompt") and not (name == "limit" and v is None)
        }
        text = ", ".join(f"{name} {'unset' if v is None else v}" for name, v in values.items())
        said = r["settings"]["instruction"]
        if system := r["settings"].get("system_prompt"):
            said = f"{said} (system prompt: {system})".lstrip()
        way = (f"profile {r['profile']}: {text}", said)
        ways.setdefault(way, []).append(r["title"])
    return [
        ("all" if len(ways) == 1 else ", ".join(titles), text, instruction)
        for (text, instruction), titles in ways.items()
    ]


def _one(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
