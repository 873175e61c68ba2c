"""The head of a page: what its run, or the runs of its method, are, and their few most telling numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines import checkpoints, runs
from pipelines.objectives.table import measured_by
from pipelines.page.viewer import unit
from pipelines.words import signed
from vppo_cli.report.lines import Line
from vppo_cli.report.source import RunSource

Fact = list[str]
"""[label, value, remark]"""


def summary(line: Line, evaluated: dict[str, Any]) -> dict[str, Any]:
    """What the page is about, and a few numbers of it.

    Of several runs a number is their mean, beside the lowest and the highest; what one of them alone has is left out.

    Args:
        evaluated: the evaluations of all runs of the page (``tables.evaluations``).
    """
    sources, configs = line.sources, [source.chain.config for source in line.sources]
    own = [[row for row in evaluated["own"] if row["run"] == source.name] for source in sources]
    states = Counter(runs.read_state(source.chain.run).state for source in sources)
    several = len(sources) > 1
    return {
        "run": line.name if several else sources[0].name,
        "mean_of": f"mean of {len(sources)} runs, seeds {', '.join(str(c.seed) for c in configs)}" if several else "",
        "state": next(iter(states)) if len(states) == 1 else ", ".join(f"{n} {state}" for state, n in states.items()),
        "done": min(len(source.rows) for source in sources),
        "steps": max(config.run.steps for config in configs),
        "model": _either(config.model.path for config in configs),
        "data": _either(config.data.source for config in configs),
        "objective": _either(config.update.objective for config in configs),
        "estimator": _either(measured_by(config) for config in configs),
        "facts": _of_several(sources, own) if several else _of_one(sources[0], own[0]),
    }


def _either(values: Iterable[str]) -> str:
    return " or ".join(dict.fromkeys(values))


@dataclass(frozen=True)
class Form:
    """How a number is printed."""

    places: int
    unit: str
    scale: float = 1

    def text(self, *values: float) -> str:
        """``0.231 nats``, ``37.5 to 62.5 %``"""
        return " ".join([" to ".join(f"{self.scale * value:.{self.places}f}" for value in values), self.unit]).strip()


PERCENT = Form(1, "%", 100)


def _metrics(sources: Sequence[RunSource]) -> list[tuple[str, str, Form]]:
    """Label, metric and form; perception has the estimators' unit, where it is one."""
    units = {unit(measured_by(source.chain.config)) for source in sources}
    return [
        ("Training accuracy", "rollout/accuracy", PERCENT),
        ("Token perception", "score/perception_mean", Form(3, units.pop() if len(units) == 1 else "")),
        ("Perception in kept tokens", "score/perception_in_kept", PERCENT),
        ("Response length", "rollout/response_tokens_mean", Form(0, "tokens")),
    ]


def _of_one(source: RunSource, own: Sequence[dict[str, Any]]) -> list[Fact]:
    facts = []
    for row in [row for row in own if row["difference"] is not None][:1]:
        low, high = row["difference_interval"]
        gain = f"{signed(row['difference'], 1)} points [{signed(low, 1)}, {signed(high, 1)}] over the start"
        facts.append([f"{row['benchmark']} accuracy", PERCENT.text(row["accuracy"]), gain])
    for label, key, form in _metrics([source]):
        at, (values,) = _common([source], key)
        if at:
            facts.append([label, form.text(values[-1]), _course(at, values, form, len(source.rows))])
    best = checkpoints.best(source.chain, checkpoints.saved(source.chain))[:1]
    if best:
        facts.append(["Best checkpoint", str(best[0]), f"by validation {source.chain.config.checkpoint.best_key}"])
    return facts


def _of_several(sources: Sequence[RunSource], own: Sequence[Sequence[dict[str, Any]]]) -> list[Fact]:
    facts = []
    for benchmark, asked in dict.fromkeys((row["benchmark"], row["asked"]) for row in own[0]):
        gained = [
            row
            for rows in own
            for row in rows
            if (row["benchmark"], row["asked"]) == (benchmark, asked) and row["difference"] is not None
        ]
        if len(gained) == len(sources):
            gains = [row["difference"] for row in gained]
            gain, low, high = (signed(value, 1) for value in (_mean(gains), min(gains), max(gains)))
            over = f"{gain} points over the start, {low} to {high}"
            facts.append(_fact(f"{benchmark} accuracy", [row["accuracy"] for row in gained], PERCENT, over))
            break
    done = min(len(source.rows) for source in sources)
    for label, key, form in _metrics(sources):
        at, values = _common(sources, key)
        if at:
            means = [_mean(step) for step in zip(*values, strict=True)]
            facts.append(_fact(label, [run[-1] for run in values], form, _course(at, means, form, done)))
    return facts


def _common(sources: Sequence[RunSource], key: str) -> tuple[list[int], list[list[float]]]:
    """The steps at which all runs have a metric, and each run's values there."""
    known = [{row["step"]: row[key] for row in source.rows if key in row} for source in sources]
    at = [step for step in known[0] if all(step in values for values in known)]
    return at, [[values[step] for step in at] for values in known]


def _course(at: Sequence[int], values: Sequence[float], form: Form, done: int) -> str:
    """Where a metric came from; and of which step it is, if not of the last of all that are done."""
    here = f"at step {at[-1]}" if at[-1] < done else ""
    came = f"from {form.text(values[0])} at step {at[0]}" if len(at) > 1 else ""
    return ", ".join(filter(None, [here, came]))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _fact(label: str, values: Sequence[float], form: Form, remark: str) -> Fact:
    """A mean over runs."""
    low, high = min(values), max(values)
    alike = form.text(low) == form.text(high)
    runs_have = f"all runs {form.text(low)}" if alike else f"runs {form.text(low, high)}"
    return [label, form.text(_mean(values)), "; ".join(filter(None, [runs_have, remark]))]
