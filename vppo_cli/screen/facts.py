"""A run and its steps in words: what the views of a run, here and elsewhere, say of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from pipelines.chain import Chain
from pipelines.disk.records import NAMED
from pipelines.tracking import timing
from pipelines.words import counted
from vppo_cli.screen.words import compact, duration, size, sparkline

RECENT = 20
"""Steps from whose times the time left is told."""


def in_words(chain: Chain) -> str:
    """What a whole run does, in a line."""
    last, names = chain.config.run.steps, chain.benchmarks
    saved = sum(chain.has_checkpoint(step) for step in range(1, last + 1))
    told = ", ".join(names) if len(names) < 4 else counted(len(names), "benchmark")
    steps, weights = counted(last, "step"), counted(saved, "checkpoint")
    return f"{steps} of rollout, score, update; {weights}; eval on {told or 'nothing'}"


def prepared(metrics: Mapping[str, Any]) -> str:
    """``train 40  validation 8  3 left out (2 image not found, 1 no answer)``: what a prepare step made."""
    parts = [_said(metrics, "train {}", "train"), _said(metrics, "validation {}", "validation")]
    parts.append(f"test {metrics['test']}" if metrics.get("test") else "")
    if "rejected" in metrics:
        begins = "rejected_"
        reasons = sorted(((n, name) for name, n in metrics.items() if name.startswith(begins)), key=lambda one: -one[0])
        named = ", ".join(f"{n} {name.removeprefix(begins).replace('_', ' ')}" for n, name in reasons)
        parts.append(f"{metrics['rejected'] or 'none'} left out" + f" ({named})" * bool(named))
    return "  ".join(part for part in parts if part)


def step_line(row: Mapping[str, Any], last: int) -> str:
    """``step  29/30  accuracy 0.712  reward 0.712  informative 32/53  ...``: for logs.

    What a stage of one's own does not tell is left out.
    """
    parts = [
        f"step {row['step']:>3}/{last}",
        _said(row, "accuracy {:.3f}", "rollout/accuracy"),
        _said(row, "reward {:.3f}", "rollout/reward"),
        *(f"{name} {value:.3f}" for name, value in named(row).items()),
        _said(row, "informative {}/{}", *INFORMATIVE),
        _said(row, "perception {:.2f} nats", "score/perception_mean"),
        f"in kept {share}" if (share := _share(row)) else "",
        _said(row, "entropy {:.2f}", "score/entropy"),
    ]
    return "  ".join(part for part in parts if part)


INFORMATIVE = ("rollout/groups_informative", "rollout/groups_sampled")
"""Groups with right and wrong responses, of those sampled."""


def named(row: Mapping[str, Any]) -> dict[str, float]:
    """The means of what a reward of one's own names besides ``reward``."""
    prefix = f"rollout/{NAMED}"
    return {key.removeprefix(prefix): value for key, value in row.items() if key.startswith(prefix)}


MOST = 49
"""Columns of a text beside its label."""


def fitting(parts: Iterable[str]) -> str:
    """As many of them as fit into a line."""
    text = ""
    for part in parts:
        if len(text) + len(part) + 3 > MOST:
            return f"{text} ..."
        text += f"   {part}" if text else part
    return text


def _said(row: Mapping[str, Any], form: str, *names: str) -> str:
    """The metrics of these names in words; "" where one is not told."""
    return form.format(*(row[name] for name in names)) if row.keys() >= set(names) else ""


def time_line(
    row: Mapping[str, Any], last: int, spent: Mapping[str, float], rates: Mapping[str, float], left: str, memory: str
) -> str:
    """``time  29/30  rollout 3.5 s 2.2 k/s  score ...  left 6 s  memory 1.4 GB``: for logs."""
    parts = [
        f"{name} {value:.1f} s" + (f" {compact(rates[name])}/s" if name in rates else "")
        for name, value in spent.items()
    ]
    parts += [text for text in (left, memory) if text]
    return f"time {row['step']:>3}/{last}  " + "  ".join(parts)


def perception(row: Mapping[str, Any]) -> str:
    """``0.26 nats, 99.9 % in kept tokens``: a token's mean, and how much of all the kept ones have."""
    share = _share(row)
    parts = [_said(row, "{:.2f} nats", "score/perception_mean"), f"{share} in kept tokens" if share else ""]
    return ", ".join(part for part in parts if part)


def _share(row: Mapping[str, Any]) -> str:
    share = row.get("score/perception_in_kept")
    if share is None:
        return ""
    shown = 100.0 if share == 1 else min(99.9, 100 * share)  # what rounds to all of it is not all
    return f"{shown:.1f} %"


def step_rows(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """(label, text) of the newest training step, with the course of accuracy; at most 60 columns."""
    row = rows[-1]
    accuracy = [r["rollout/accuracy"] for r in rows if "rollout/accuracy" in r]
    if accuracy:
        yield "accuracy", f"{accuracy[-1]:.3f} {sparkline(accuracy, 24)}"
    parts = [
        _said(row, "{:.3f}", "rollout/reward"),
        _said(row, "informative {} of {}", *INFORMATIVE),
        _said(row, "entropy {:.2f}", "score/entropy"),
    ]
    if told := "   ".join(part for part in parts if part):
        yield "reward", told
    if lists := named(row):
        yield "rewards", fitting(f"{name} {value:.3f}" for name, value in lists.items())
    if told := perception(row):
        yield "perception", told


def time_rows(spent: Mapping[str, float], rates: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    """(label, text) of the stages' times and speeds, one under the other."""
    texts = {name: f"{spent[name]:.1f} s" for name in timing.TIMED if name in spent}
    speeds = {name: compact(rates[name]) if name in rates else "-" for name in texts}
    widths = {name: max(len(texts[name]), len(speeds[name])) for name in texts}
    for label, cells in (("time", texts), ("tokens/s", speeds)):
        if texts:
            yield label, "   ".join(f"{n} {cells[n]:<{widths[n]}}" for n in texts).rstrip()


def memory_text(resident: int, gpu: int) -> str:
    """``1.4 GB, GPU 12.3 GB at most``; "" if nothing is known."""
    text = size(resident) if resident else ""
    return f"{text}, GPU {size(gpu)} at most" if gpu else text


def recent_seconds(chain: Chain, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """The times of the newest training steps, from disk, newest last."""
    found = [timing.seconds(chain, row["step"]) for row in rows[-RECENT:]]
    return [spent for spent in found if len(spent) == len(timing.TIMED)]


def seconds_left(steps: int, recent: Sequence[Mapping[str, float]]) -> float | None:
    """Seconds that ``steps`` more training steps take, judged by recent ones; None: nobody knows."""
    if not recent:
        return None
    return steps * median(sum(spent.values()) for spent in recent[-RECENT:])


def left_text(seconds: float | None) -> str:
    """``left 1 m 34 s``; "" where nobody knows, or where steps are none left: an evaluation may follow."""
    return "" if seconds is None or round(seconds) <= 0 else f"left {duration(seconds)}"


def bar(done: float, total: float | None, width: int = 24) -> str:
    """``━━━━────``."""
    filled = round(width * min(done / total, 1.0)) if total else 0
    return "━" * filled + "─" * (width - filled)
