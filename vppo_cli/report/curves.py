"""The learning curves: every number of metrics.jsonl that has a course, and the time of each stage."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pipelines.disk.records import NAMED
from pipelines.disk.step import MANIFEST, read_manifest
from pipelines.grading.reward import ACCURACY, REWARD
from pipelines.objectives.table import measured_by
from pipelines.page.viewer import LIMITS, short
from vppo_cli.report.lines import Chart, Line, fold, notes
from vppo_cli.report.source import RunSource
from vppo_cli.screen.facts import named


def curves(lines: Sequence[Line]) -> dict[str, Any]:
    """Groups of charts, each with one line a run, or one a method with several."""
    sources = [source for line in lines for source in line.sources]
    timed = [_times(source) for source in sources]
    groups = [
        (
            "Answers",
            "Does it answer better, and is there something to learn from?",
            [
                _metric("Accuracy", "rollout/accuracy", "percent", "of the responses sampled in training"),
                *_validation(sources),
                _metric("Reward", "rollout/reward", "number", "mean, of all sampled"),
                *(_metric(f"Reward, {name}", key, "number", "mean, of all sampled") for name, key in _named(sources)),
                _metric("Informative groups", "rollout/informative_share", "percent", _informative(sources)),
                _metric("Response length", "rollout/response_tokens_mean", "number", "tokens, mean"),
                _metric("Cut off", "rollout/truncated_share", "percent", "responses at the length limit"),
                _metric("No answer", "rollout/no_answer_share", "percent", "responses without one"),
            ],
        ),
        (
            "Perception",
            "How much the tokens depend on the image.",
            [
                _metric("Token perception", "score/perception_mean", "number", "mean over all tokens"),
                dependency,
                _range(
                    "Shaping weights",
                    "update/alpha_min",
                    "update/alpha_max",
                    "smallest and largest factor on an advantage",
                ),
            ],
        ),
        (
            "Policy",
            "How far and how steadily the policy moves.",
            [
                _metric("Entropy", "score/entropy", "number", "nats a token, mean"),
                _metric("Gradient norm", "update/grad_norm", "number", "before it is limited"),
                _metric("Policy KL", "update/policy_kl", "number", "nats a token, from the sampling policy"),
                _metric("KL to the start", "update/reference_kl", "number", "nats a token"),
                _metric("Clipped below", "update/clipped_low", "percent", "tokens"),
                _metric("Clipped above", "update/clipped_high", "percent", "tokens"),
                _metric("Dual clip", "update/clipped_dual", "percent", "tokens"),
                _metric("Engine mismatch", "score/mismatch_mean", "number", "nats, |rollout − trainer| a token"),
                _metric("Loss", "update/loss", "number", "policy loss"),
            ],
        ),
        (
            "Time",
            "Seconds a training step and tokens a second, by stage.",
            [
                *(
                    _timed(f"{stage.capitalize()} time", stage, "seconds", timed)
                    for stage in ("rollout", "score", "update")
                ),
                *(
                    _timed(f"{stage.capitalize()} speed", f"{stage}/speed", "number", timed)
                    for stage in ("rollout", "score", "update")
                ),
            ],
        ),
    ]
    made = []
    for title, about, makers in groups:
        charts = [fold(maker(sources), lines) for maker in makers]
        found = [chart for chart in charts if chart["series"]]
        if found:
            made.append({"title": title, "about": about, "charts": found})
    return {"groups": made, "legend": [line.said for line in lines], "notes": notes(lines)}


Maker = Callable[[Sequence[RunSource]], Chart]


def chart(title: str, form: str, about: str, series: list[dict[str, Any]]) -> Chart:
    """A chart over training steps."""
    return {
        "title": title,
        "about": about,
        "x": "step",
        "whole": True,
        "format": form,
        "sync": "step",
        "series": series,
    }


def _finite(row: dict[str, Any], *names: str) -> bool:
    values = [row.get(name) for name in names]
    return all(isinstance(v, int | float) and math.isfinite(v) for v in values)


def _rows(sources: Sequence[RunSource], *names: str) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Each run's number and its rows that have these metrics; runs without any are left out."""
    for index, source in enumerate(sources):
        rows = [row for row in source.rows if _finite(row, *names)]
        if rows:
            yield index, rows


def _metric(title: str, key: str, form: str, about: str) -> Maker:
    def make(sources: Sequence[RunSource]) -> Chart:
        series = []
        for index, rows in _rows(sources, key):
            series.append({"run": index, "x": [r["step"] for r in rows], "y": [short(r[key]) for r in rows]})
        return chart(title, form, about, series)

    return make


def dependency(sources: Sequence[RunSource]) -> Chart:
    """Its mean, and how far responses spread around it: no further than a response's dependency can be."""
    mean, spread = "score/dependency_mean", "score/dependency_std"
    series: list[dict[str, Any]] = []
    cut: set[float] = set()
    for index, rows in _rows(sources, mean, spread):
        lowest, highest = LIMITS.get(measured_by(sources[index].chain.config), (-math.inf, math.inf))
        low, high = ([row[mean] + sign * row[spread] for row in rows] for sign in (-1, 1))
        cut |= {lowest} if min(low) < lowest else set()
        cut |= {highest} if max(high) > highest else set()
        series.append(
            {
                "run": index,
                "x": [row["step"] for row in rows],
                "y": [short(row[mean]) for row in rows],
                "low": [short(max(value, lowest)) for value in low],
                "high": [short(min(value, highest)) for value in high],
            }
        )
    ends = f", cut at {' and '.join(f'{limit:.3g}' for limit in sorted(cut))}" if cut else ""
    about = f"mean ± standard deviation over responses{ends}"
    return chart("Trajectory dependency", "number", about, series) | {"plain": "mean over responses"}


def _range(title: str, low: str, high: str, about: str) -> Maker:
    def make(sources: Sequence[RunSource]) -> Chart:
        series = []
        for index, rows in _rows(sources, low, high):
            x, below = [r["step"] for r in rows], [short(r[low]) for r in rows]
            above = [short(r[high]) for r in rows]
            series += [
                {"run": index, "name": "largest", "x": x, "y": above, "low": below, "high": above},
                {"run": index, "name": "smallest", "x": x, "y": below},
            ]
        return chart(title, "number", about, series) | {"plain": about}

    return make


def _informative(sources: Sequence[RunSource]) -> str:
    """What makes a group informative, by each run's ``rollout.filter_key``."""
    keys = {source.chain.config.rollout.filter_key for source in sources}
    told = ["neither all right nor all wrong"] if ACCURACY in keys else []
    return "; ".join([*told, *(f"not all of the same {key} (rollout.filter_key)" for key in sorted(keys - {ACCURACY}))])


def _named(sources: Sequence[RunSource]) -> list[tuple[str, str]]:
    """What rewards of one's own name besides ``reward``, and the metric of each."""
    keys = {f"rollout/{NAMED}{name}": name for source in sources for row in source.rows for name in named(row)}
    return [(name, key) for key, name in sorted(keys.items())]


def _validation(sources: Sequence[RunSource]) -> list[Maker]:
    """Accuracy on the validation questions of each measured policy, and the lists of a reward of one's own."""
    measured = [list(source.validations()) for source in sources]
    found = [_validation_chart("Validation accuracy", "percent", measured, lambda m: (m["accuracy"], m["interval"]))]
    names = dict.fromkeys(name for points in measured for _, metrics in points for name in metrics.get("rewards", ()))
    for name in names:
        having = [[(step, m) for step, m in points if name in m.get("rewards", ())] for points in measured]
        title = "Validation reward" if name == REWARD else f"Validation reward, {name}"

        def mean(metrics: dict[str, Any], name: str = name) -> tuple[float, list[float]]:
            return metrics["rewards"][name]["value"], metrics["rewards"][name]["interval"]

        found.append(_validation_chart(title, "number", having, mean))
    return found


def _validation_chart(
    title: str,
    form: str,
    measured: Sequence[Sequence[tuple[int, dict[str, Any]]]],
    of: Callable[[dict[str, Any]], tuple[float, list[float]]],
) -> Maker:
    series = []
    for index, found in enumerate(measured):
        points = [(step, *of(metrics)) for step, metrics in found]
        if points:
            series.append(
                {
                    "run": index,
                    "x": [p[0] for p in points],
                    "y": [short(p[1]) for p in points],
                    "low": [short(p[2][0]) for p in points],
                    "high": [short(p[2][1]) for p in points],
                    "dots": True,
                }
            )
    started = any(step == 0 for found in measured for step, _ in found)
    of_whom = f"of {'the starting model and ' if started else ''}the checkpoints"
    return lambda _: chart(title, form, f"{of_whom}, with 95 % intervals", series) | {"plain": of_whom}


def _times(source: RunSource) -> dict[str, list[tuple[int, float]]]:
    """Seconds and tokens a second of every stage: {"score": [(step, s)], "score/speed": ...}."""
    found: dict[str, list[tuple[int, float]]] = {}
    chain, rows = source.chain, {row["step"]: row for row in source.rows}
    for step in sorted(rows):
        for made in (chain.rollout(step), chain.score(step), chain.update(step)):
            if not (made.path / MANIFEST).is_file():
                continue
            seconds = read_manifest(made.path).get("seconds", 0)
            if made.name == "rollout":
                tokens = rows[step].get("rollout/tokens_sampled", 0)
            else:
                tokens = source.trained_tokens(step) if step in source.scored else 0
            if seconds > 0:
                found.setdefault(made.name, []).append((step, seconds))
                if tokens:
                    found.setdefault(f"{made.name}/speed", []).append((step, tokens / seconds))
    return found


def _timed(title: str, key: str, form: str, timed: list[dict[str, list[tuple[int, float]]]]) -> Maker:
    series = [
        {"run": index, "x": [p[0] for p in found[key]], "y": [short(p[1]) for p in found[key]]}
        for index, found in enumerate(timed)
        if key in found
    ]
    about = "seconds a step" if form == "seconds" else "response tokens a second"
    return lambda _: chart(title, form, about, series)
