"""The report on one model: its results beside the published ones, with everything to judge them by.

``build`` gathers it, ``write`` puts it into a folder in four formats; ``report.json`` is complete (it
holds the results with every question's marks), so a comparison needs no other file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from evals.benchmarks import published
from evals.benchmarks.table import BENCHMARKS, EIGHT, TABLE_8
from evals.numbers.scores import AS_PUBLISHED, RIGHT_AS_PUBLISHED, in_order
from evals.numbers.statistics import average, resampled
from evals.report.formats import as_csv, as_latex, as_markdown
from pipelines.config.schema import profile_name
from pipelines.contents import SEAL, intact, sealed
from pipelines.disk.step import disk_errors, unreadable, write_atomic
from pipelines.errors import UserError
from pipelines.words import counted

FORMAT = 3
"""2 has no verdict as published; 1 no hash of itself either. Both are read."""

REPORT = "report.json"
FILES = (REPORT, "report.csv", "report.md", "report.tex")


def build(model: str, results: Iterable[dict[str, Any]], path: str = "") -> dict[str, Any]:
    """The report on ``model``.

    Args:
        model: its name, as people should read it.
        results: the content of each benchmark's results.json, each benchmark once.
        path: the folder or hub id that the model is, or was trained from; it picks the published rows.

    Returns:
        ``results`` (the paper's eight first, in its order), ``average`` (fractions, of the first grader
        and, where all are graded so, ``as_published``; None with the reason in ``no_average``),
        ``warnings`` (sentences) and ``published`` (%, all rows).

    Raises:
        ValueError: there are no results, or two of one benchmark.
    """
    rows = sorted((_ordered(row) for row in results), key=_place)
    names = [row["benchmark"] for row in rows]
    if not names or len(names) != len(set(names)):
        raise ValueError(f"a report needs results, each benchmark once: {names}")
    family = published.nearest_family(path)
    missing = _no_average(rows)
    printed = [asdict(row) for row in published.ROWS]
    return {
        "format": FORMAT,
        "model": model,
        "results": rows,
        "average": None if missing is not None else _average(rows),
        "no_average": missing or "",
        "warnings": _warnings(rows, family),
        "published": {
            "source": published.beside(printed),
            "metric": f"avg@{published.SAMPLES}, %",
            "nearest": family,
            "rows": printed,
        },
    }


def write(report: dict[str, Any], folder: Path) -> list[Path]:
    """Write report.json, .csv, .md and .tex; each file is replaced in one instant."""
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    as_json = json.dumps(sealed(report), indent=1, allow_nan=False)
    contents = (as_json, as_csv(report), as_markdown(report), as_latex(report))
    for name, content in zip(FILES, contents, strict=True):
        write_atomic(folder / name, content)
    return [folder / name for name in FILES]


def read(path: Path) -> dict[str, Any]:
    """A report.json, compared with the hash that it holds; one of an earlier version has none.

    Raises:
        UserError: it changed since it was written, is no report, or cannot be read.
    """
    fix = f"Delete it; vppo eval writes it again: rm {path}"
    try:
        found = json.loads(path.read_bytes())
        if not isinstance(found, dict) or not isinstance(found.get("results"), list):
            raise ValueError("it has no results")
    except (OSError, ValueError, RecursionError) as error:
        raise unreadable(
            path, error, f"is not a report of vppo eval ({type(error).__name__}: {error}).", fix
        ) from error
    if (found.get("format", 1) != 1 or SEAL in found) and not intact(found):
        raise UserError(str(path), "changed since it was written.", fix)
    for row in found["results"]:
        if isinstance(row, dict) and "profile" in row:
            row["profile"] = profile_name(row["profile"])
    return found


def _place(row: dict[str, Any]) -> int:
    """The paper's benchmarks in its order, then others as they were given."""
    return EIGHT.index(row["benchmark"]) if row["benchmark"] in EIGHT else len(EIGHT)


def _ordered(row: dict[str, Any]) -> dict[str, Any]:
    """With the levels of every breakdown, and each k, in the order in which people list them, and the
    profile as it is called now.
    """
    benchmark = BENCHMARKS.get(row["benchmark"])
    breakdowns = {
        group: {level: levels[level] for level in (in_order(levels, benchmark.levels) if benchmark else levels)}
        for group, levels in row["breakdowns"].items()
        if levels  # none where the data does not tell
    }
    by_k = {
        name: dict(sorted(row[name].items(), key=lambda item: int(item[0]))) for name in ("pass_at_k", "majority_at_k")
    }
    return {**row, **by_k, "breakdowns": breakdowns, "profile": profile_name(row["profile"])}


# -- the average -----------------------------------------------------------------------------------


def _no_average(rows: Sequence[dict[str, Any]]) -> str | None:
    """Why there is no average over the eight; None if there is one."""
    here = {row["benchmark"]: row for row in rows if row["benchmark"] in EIGHT}
    missing = [name for name in EIGHT if name not in here]
    limited = [row["title"] for row in here.values() if row["settings"]["limit"] is not None]
    counts = []
    for row in here.values():
        known = row["rows"]
        if known is None:
            counts.append(f"{row['title']} unknown")
        elif known["kept"] != known["expected_kept"]:
            counts.append(f"{row['title']} {known['kept']} of {known['expected_kept']}")
    if not here:
        return ""
    reasons = [f"not here: {', '.join(missing)}"] if missing else []
    reasons += [f"limited: {', '.join(limited)}"] if limited else []
    reasons += [f"questions in the data: {', '.join(counts)}"] if counts else []
    return f"needs all eight in full ({'; '.join(reasons)})" if reasons else None


def _average(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The unweighted mean of the eight with its interval, by every grader of all, and as published."""
    eight = [row for row in rows if row["benchmark"] in EIGHT]
    units = [row["clusters"] for row in eight]
    found = average([_resampled(row) for row in eight], [row["accuracy"] for row in eight], units)
    theirs = None
    if all(AS_PUBLISHED in row for row in eight):
        drawn = [_resampled(row, RIGHT_AS_PUBLISHED) for row in eight]
        mean = average(drawn, [row[AS_PUBLISHED]["accuracy"] for row in eight], units)
        theirs = {"accuracy": mean.mean, "interval": [mean.low, mean.high]}
    graders = {
        grader: sum(row["graders"][grader]["accuracy"] for row in eight) / len(eight)
        for grader in eight[0]["graders"]
        if all(grader in row["graders"] for row in eight)
    }
    return {"accuracy": found.mean, "interval": [found.low, found.high], "graders": graders, AS_PUBLISHED: theirs}


def _resampled(row: dict[str, Any], marks: str = "right") -> Any:
    """10,000 resampled accuracies of a benchmark, its clusters drawn whole."""
    right = row[marks]
    clusters = None if row["cluster"] == "question" else [row["clusters_of"][name] for name in right]
    return resampled([sum(marks) / len(marks) for marks in right.values()], clusters, row["title"])


# -- warnings --------------------------------------------------------------------------------------


def _warnings(rows: Sequence[dict[str, Any]], family: str) -> list[str]:
    """What a reader must know, each sentence once, with the benchmarks it is about."""
    about: dict[str, list[str]] = {}
    for row in rows:
        for sentence in _sentences(row, family):
            about.setdefault(sentence, []).append(row["title"])
    found = [
        sentence
        if len(titles) == len(rows) or all(title in sentence for title in titles)
        else f"{', '.join(titles)}: {sentence}"
        for sentence, titles in about.items()
    ]
    asked = {
        json.dumps([r["settings"], r["samples"], r["grader"]], sort_keys=True) for r in rows if r["benchmark"] in EIGHT
    }
    if len(asked) > 1:
        found.append("Settings, samples or grader differ between the benchmarks; see the settings.")
    return found


def _sentences(row: dict[str, Any], family: str) -> Iterator[str]:
    settings, beside = row["settings"], row["benchmark"] in (*EIGHT, *TABLE_8)
    yield from row["warnings"]
    training = {"system_prompt": ""} | row["training"] if row["training"] else {}
    for name, trained in training.items():
        if trained == settings.get(name, ""):
            continue
        if name in ("instruction", "system_prompt"):
            yield f"Trained with another {name.replace('_', ' ')} than evaluated with."
        else:
            yield f"Trained with {name} {_value(trained)}, evaluated with {_value(settings[name])}."
    if settings["limit"] is not None:
        whole = "; the printed numbers are of all questions and do not compare" if beside else ""
        first = counted(settings["limit"], "question was", "questions were")
        yield f"Only the first {first} asked (a limit is set){whole}."
    if beside:
        yield from _unlike_published(row, family)
    if (benchmark := BENCHMARKS.get(row["benchmark"])) and benchmark.note:
        yield benchmark.note


def _unlike_published(row: dict[str, Any], family: str) -> Iterator[str]:
    theirs = {**published.SETTINGS, "max_new_tokens": published.MAX_NEW_TOKENS[family]}
    differ = "; ".join(
        f"{name} {value}, here {_value(row['settings'][name])}"
        for name, value in theirs.items()
        if row["settings"][name] != value
    )
    if row["profile"] != "published":
        what = f" ({differ})" if differ else ""
        yield f"Profile {row['profile']}, not published: the printed numbers are sampled otherwise{what}."
    elif differ:
        yield f"The printed numbers of {family} are sampled otherwise: {differ}."
    if AS_PUBLISHED not in row:
        yield (
            "Graded by an earlier version, which had no verdict as published: nothing stands beside the "
            "printed numbers (vppo eval --regrade grades it again)."
        )


def _value(value: Any) -> str:
    return "unset" if value is None else str(value)
