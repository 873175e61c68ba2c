"""The only place that prints."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from statistics import median
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.padding import Padding
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from pipelines.chain import Chain
from pipelines.errors import UserError
from pipelines.ranks import is_main
from pipelines.step import Step
from vppo_cli.results import recent_rows
from vppo_cli.words import Pace, duration, ranges, sparkline

LABEL = 11
EVERY_S = 30.0
"""Seconds between two lines of progress where the output is not a terminal."""

console = Console(highlight=False, soft_wrap=True, emoji=False, quiet=not is_main())
errors = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)


def plain(text: str, indent: int | None = None) -> str:
    """Text that a terminal only shows: data sets, models and file names are not to be trusted.

    Control characters, such as those that start an escape sequence or turn the direction of
    writing, become U+FFFD, and every white space a blank.

    Args:
        indent: keep the line breaks, each with this many blanks after it; None: they are blanks too.
    """
    safe = "".join(
        c if c.isprintable() or c == "\n" else " " if c.isspace() else "\ufffd" for c in text
    )
    return safe.replace("\n", " " if indent is None else "\n" + " " * indent)


def line(label: str, text: str, style: str = "") -> None:
    """One line of output: a short label, then what there is to say."""
    label, text = plain(label, 0), plain(text, LABEL)
    console.print(Text.assemble((f"{label:<{LABEL}}", "bold"), text), style=style or None)


def columns(
    rows: Sequence[Sequence[str]], *, indent: int = 0, gap: int = 2, styles: Sequence[str] = ()
) -> None:
    """Rows in columns, one line each: never cut, whatever the width of the terminal or pipe."""
    safe = [[plain(cell) for cell in row] for row in rows]
    widths = [max(map(len, cells)) for cells in zip_longest(*safe, fillvalue="")]
    for row, style in zip_longest(safe, styles, fillvalue=""):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        text = " " * indent + (" " * gap).join(cells).rstrip()
        console.print(Text(text), style=str(style) or None)


def print_json(value: Any) -> None:
    """For a program: one JSON object, nothing else on standard output."""
    if is_main():
        sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")


def show_error(error: UserError) -> None:
    """An expected error: what is wrong and what to do, without a traceback."""
    problem = plain(f"{error.place}: {error.problem}", 7)
    errors.print(Text.assemble(("error", "bold red"), "  ", problem))
    if error.fix:
        errors.print(Text("       " + plain(error.fix, 7)))


_running: list[str] = []  # how to go on with what Ctrl-C would stop


def show_interrupted() -> None:
    """After Ctrl-C: what is kept, and how to go on."""
    errors.print("[bold]stopped[/bold]    everything committed so far is kept")
    if _running:
        errors.print(Text.assemble(("next", "bold"), "       ", plain(_running[-1])))


# -- while it runs -------------------------------------------------------------------------------


class PlainWatch:
    """One line per training step, for logs and pipes."""

    def __init__(self, chain: Chain) -> None:
        self.chain, self.last = chain, chain.config.run.steps
        self.rows: list[dict[str, Any]] = []
        self.times: dict[str, float] = {}
        self.durations: list[float] = []
        self.single = self._stage = ""
        self.made = 0
        self._started = time.monotonic()
        self._pace = Pace()
        self._said = time.monotonic()

    def begin(self, stage: str = "all") -> None:
        """Say which run this is and what it will do."""
        self.rows = recent_rows(self.chain)
        new = not any(self.chain.run.glob("prepare-*"))
        line("run", f"{self.chain.run}  (new)" if new else str(self.chain.run))
        self.single = "" if stage == "all" else stage
        if self.single:
            line("stage", stage)
            return
        saved = sum(self.chain.has_checkpoint(t) for t in range(1, self.last + 1))
        line(
            "plan",
            f"prepare, {self.last} steps (rollout, score, update), {saved} checkpoints, "
            f"eval on {', '.join(self.chain.benchmarks)}",
        )

    def progress(self, label: str, done: int, total: int | None = None) -> None:
        left = self._pace.left(label, done, total)
        if total and left and time.monotonic() - self._said > EVERY_S:
            self._said = time.monotonic()
            self.say(f"{self._stage:<{LABEL}}{done}/{total} {label}  {left}")

    def note(self, text: str) -> None:
        if text.startswith("WARNING "):
            line("warning", text.removeprefix("WARNING "), style="bold yellow")
        else:
            line("note", text)

    def stage(self, name: str, index: int) -> None:
        self._started = self._said = time.monotonic()
        self._stage = name
        if name == "rollout":
            self.times = {}

    def finished(self, name: str, index: int, metrics: dict[str, Any]) -> None:
        self.made += 1
        self.times[name] = time.monotonic() - self._started
        if name == "update" and "rollout/accuracy" in metrics:
            self.rows.append(metrics)
            self.durations.append(sum(self.times.values()))
            self.say(self.step_line() + "  " + self.time_line())
        elif name == "prepare":
            self.say(f"{'prepare':<{LABEL}}" + summary(metrics))
        elif name == "validation":
            self.say(f"{'validation':<{LABEL}}step {index}  accuracy {metrics['accuracy']:.3f}")
        elif self.single and "interval" in metrics:
            low, high = metrics["interval"]
            self.say(
                f"{name:<{LABEL}}{metrics['questions']} questions x {metrics['samples']}  "
                f"accuracy {metrics['accuracy']:.3f} [{low:.3f}, {high:.3f}]"
            )
        elif self.single:
            place = f"step {index}  " if index else ""
            self.say(f"{name:<{LABEL}}{place}{summary(metrics)}")

    def say(self, text: str) -> None:
        console.print(Text(plain(text, LABEL)))

    def step_line(self) -> str:
        """``step  42/100  accuracy 0.47 ▁▂▃  ...``"""
        row = self.rows[-1]
        accuracy = [r["rollout/accuracy"] for r in self.rows]
        kept, sampled = row["rollout/groups_informative"], row["rollout/groups_sampled"]
        return (
            f"step {row['step']:>3}/{self.last}  accuracy {accuracy[-1]:.2f} {sparkline(accuracy)}  "
            f"groups kept {kept}/{sampled}  perception {row['score/perception_mean']:.2f} nats  "
            f"entropy {row['score/entropy']:.2f}"
        )

    def time_line(self) -> str:
        """``rollout 1.1 s  score 0.1 s  update 0.4 s  left 1 m 34 s``"""
        spent = "  ".join(f"{name} {seconds:.1f} s" for name, seconds in self.times.items())
        recent = self.durations[-20:]
        left = (self.last - self.rows[-1]["step"]) * median(recent)
        return f"{spent}  left {duration(left)}"


class LiveWatch(PlainWatch):
    """One calm view that stays in place, for a person at a terminal."""

    def __init__(self, chain: Chain) -> None:
        super().__init__(chain)
        self.live = Live(console=console, refresh_per_second=4, transient=True)
        self._step_text = self._time_text = self._now = ""
        self._bar: tuple[int, int | None] = (0, None)
        self._label = ""

    def progress(self, label: str, done: int, total: int | None = None) -> None:
        self._now, self._bar = f"{label}  {self._pace.left(label, done, total)}", (done, total)
        self._draw()

    def stage(self, name: str, index: int) -> None:
        super().stage(name, index)
        self._label, self._now, self._bar = name, "", (0, None)
        self._draw()

    def say(self, text: str) -> None:
        if self.times and text.startswith("step"):
            self._step_text, self._time_text = self.step_line(), self.time_line()
            self._draw()
        else:
            super().say(text)

    def leave(self) -> None:
        """Leave the last step on the screen when the view ends."""
        if self._step_text:
            console.print(Text(self._step_text))

    def _draw(self) -> None:
        done, total = self._bar
        now = Table.grid(padding=(0, 1))
        doing = f"{done}/{total} {self._now}" if total else self._now
        now.add_row(
            Text(f"{self._label:<{LABEL - 1}}", style="bold"),
            Text(_bar_text(done, total)), Text(plain(doing)),
        )  # fmt: skip
        parts: list[Any] = []
        if self._step_text:
            parts += [
                Text(self._step_text),
                Padding(Text(self._time_text, style="dim"), (0, 0, 0, LABEL)),
            ]
        self.live.update(Group(*parts, now))


def _bar_text(done: int, total: int | None, width: int = 24) -> str:
    filled = round(width * min(done / total, 1.0)) if total else 0
    return "━" * filled + "─" * (width - filled)


class QuietWatch(PlainWatch):
    """For --json: says nothing."""

    def begin(self, stage: str = "all") -> None: ...

    def note(self, text: str) -> None: ...

    def say(self, text: str) -> None: ...


@contextlib.contextmanager
def watching(chain: Chain, *, as_json: bool, again: str | None = None) -> Iterator[PlainWatch]:
    """The right watch for where standard output goes.

    Args:
        again: what to say after Ctrl-C on how to go on; by default the command that trains the run.
    """
    _running.append(f"vppo train --run {chain.run.name}" if again is None else again)
    if as_json:
        yield QuietWatch(chain)
    elif console.is_terminal:
        watch = LiveWatch(chain)
        try:
            with watch.live:
                yield watch
        finally:
            watch.leave()
    else:
        yield PlainWatch(chain)
    _running.pop()


@contextlib.contextmanager
def bar(label: str, *, as_json: bool) -> Iterator[Callable[[int, int, float], None]]:
    """A progress bar for work outside a run: call it with (done, total, current loss)."""
    columns = (
        TextColumn(label),
        BarColumn(),
        TextColumn("{task.fields[loss]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=as_json) as progress:
        task = progress.add_task(label, loss="")

        def report(done: int, total: int, loss: float) -> None:
            progress.update(task, completed=done, total=total, loss=f"loss {loss:.3f}")

        yield report


@contextlib.contextmanager
def spinner(label: str, *, as_json: bool) -> Iterator[Callable[[str], None]]:
    """What is being done now, for work without an end in sight: call it with a few words."""
    if as_json or not console.is_terminal:
        yield lambda text: None if as_json else line(label, text)
        return
    with console.status(label) as status:
        yield lambda text: status.update(plain(text))


def summary(metrics: dict[str, Any], most: int = 6) -> str:
    """The first metrics in one line."""
    shown = [f"{n} {v:.4g}" if isinstance(v, float) else f"{n} {v}"
             for n, v in metrics.items() if isinstance(v, int | float)]  # fmt: skip
    return "  ".join(shown[:most])


# -- at the end ----------------------------------------------------------------------------------


def evaluation_table(rows: Sequence[dict[str, Any]]) -> None:
    """Accuracy of the starting policy and of the checkpoint, with intervals, and the difference."""
    for row in rows:
        console.print()
        line("eval", f"{row['benchmark']}, {row['questions']} questions x {row['samples']} samples, "
             f"95 % intervals over questions")  # fmt: skip
        table = []
        for entry in row["results"]:
            low, high = entry["interval"]
            cells = [entry["policy"], f"{entry['accuracy']:.3f}", f"[{low:.3f}, {high:.3f}]"]
            if "difference" in entry:
                change, (down, up) = entry["difference"], entry["difference_interval"]
                cells.append(f"{change:+.1f} points [{down:+.1f}, {up:+.1f}]")
            table.append(cells)
        columns(table, indent=LABEL, gap=3)
    if rows:
        console.print()


def next_steps(chain: Chain) -> None:
    """What one would do now."""
    name = chain.run.name
    if not all(step.path.is_dir() for step in chain.all()):
        line("next", f"vppo train --run {name}      go on")
        return
    line("next", f"vppo report {name}      a page: its curves, and what every token looked at")
    line("", f"vppo status --run {name}      what the run did")
    line("", f"vppo export {name}-model --run {name}      the model, for transformers")
    line(
        "",
        f"vppo train --run {name} --stage score --set score.estimator=k3      "
        "score the saved rollouts another way",
    )


def made(
    chain: Chain, wanted: Chain, stage: str, steps: Sequence[Step], overrides: Sequence[str]
) -> None:
    """What a single stage did."""
    if not steps:
        line(
            "done",
            f"nothing to do: {stage} is on disk with these settings (--force makes it again)",
        )
        return
    indices = [step.index for step in steps if step.index is not None]
    where = f" {ranges(indices)}" if indices else ""
    line("made", f"{stage}{where}: {steps[-1].path}")
    if chain is not wanted:
        settings = "".join(f" --set {text}" for text in overrides)
        line(
            "next",
            f"vppo plan --run {chain.run.name}{settings}      what is stale if the run goes on so",
        )
