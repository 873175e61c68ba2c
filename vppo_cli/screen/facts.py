"""A run and its steps in words: what the views of a run, here and elsewhere, say of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from pipelines.chain import Chain
from pipelines.tracking import timing
from vppo_cli.screen.words import compact, duration, size, sparkline

RECENT = 20
"""Steps from whose times the time left is told."""


def in_words(chain: Chain) -> str:
    """What a whole run does, in a line."""
    last, names = chain.config.run.steps, chain.benchmarks
    saved = sum(chain.has_checkpoint(step) for step in range(1, last + 1))
    told = ", ".join(names) if len(names) < 4 else f"{len(names)} benchmarks"
    return (
        f"{last} steps of rollout, score, update; {saved} checkpoints; eval on {told or 'nothing'}"
    )


def step_line(row: Mapping[str, Any], last: int) -> str:
    """``step  29/30  accuracy 0.712  reward 0.712  informative 32/53  ...``: for logs."""
    return (
        f"step {row['step']:>3}/{last}  accuracy {row['rollout/accuracy']:.3f}  "
        f"reward {row['rollout/reward']:.3f}  informative {_informative(row, '/')}  "
        f"perception {row['score/perception_mean']:.2f} nats  in kept {_share(row):.1f} %  "
        f"entropy {row['score/entropy']:.2f}"
    )


def time_line(
    row: Mapping[str, Any], last: int, spent: Mapping[str, float], rates: Mapping[str, float],
    left: str, memory: str,
) -> str:  # fmt: skip
    """``time  29/30  rollout 3.5 s 2.2 k/s  score ...  left 6 s  memory 1.4 GB``: for logs."""
    parts = [
        f"{name} {value:.1f} s" + (f" {compact(rates[name])}/s" if name in rates else "")
        for name, value in spent.items()
    ]
    parts += [text for text in (left, memory) if text]
    return f"time {row['step']:>3}/{last}  " + "  ".join(parts)


def perception(row: Mapping[str, Any]) -> str:
    """``0.26 nats, 99.9 % in kept tokens``: a token's mean, and how much of all the kept ones have."""
    return f"{row['score/perception_mean']:.2f} nats, {_share(row):.1f} % in kept tokens"


def _share(row: Mapping[str, Any]) -> float:
    share: float = row["score/perception_in_kept"]
    return 100.0 if share == 1 else min(99.9, 100 * share)  # what rounds to all of it is not all


def step_rows(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """(label, text) of the newest training step, with the course of accuracy; at most 60 columns."""
    row = rows[-1]
    accuracy = [r["rollout/accuracy"] for r in rows]
    yield "accuracy", f"{accuracy[-1]:.3f} {sparkline(accuracy, 24)}"
    groups, entropy = _informative(row, " of "), row["score/entropy"]
    yield "reward", f"{row['rollout/reward']:.3f}   informative {groups}   entropy {entropy:.2f}"
    yield "perception", perception(row)


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
    """``left 1 m 34 s``; "" where nobody knows."""
    return "" if seconds is None else f"left {duration(max(seconds, 0.0))}"


def bar(done: float, total: float | None, width: int = 24) -> str:
    """``━━━━────``."""
    filled = round(width * min(done / total, 1.0)) if total else 0
    return "━" * filled + "─" * (width - filled)


def _informative(row: Mapping[str, Any], between: str) -> str:
    """Groups with right and wrong responses, of those sampled."""
    return f"{row['rollout/groups_informative']}{between}{row['rollout/groups_sampled']}"
