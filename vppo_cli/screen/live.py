"""What is shown while a run works: one view that stays in place, or lines for a log, or nothing."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.text import Text

from pipelines.chain import Chain
from pipelines.disk.files import find
from pipelines.tracking import memory, timing
from pipelines.words import counted
from vppo_cli.screen import facts
from vppo_cli.screen.display import LABEL, console, labelled, line, plain, running, summary
from vppo_cli.screen.results import recent_rows
from vppo_cli.screen.words import Pace, duration

EVERY_S = 30.0
"""Seconds between two lines of progress where the output is not a terminal."""


class PlainWatch:
    """Two lines per training step, for logs and pipes: what it came to, and the time it took."""

    def __init__(self, chain: Chain) -> None:
        self.chain, self.last = chain, chain.config.run.steps
        self.rows: list[dict[str, Any]] = []
        self.times: dict[str, float] = {}
        self.recent: list[dict[str, float]] = []
        self.single = self._stage = ""
        self.made = 0
        self._started = time.monotonic()
        self._pace = Pace()
        self._said = time.monotonic()

    def begin(self, stage: str = "all") -> None:
        """Say which run this is and what it will do."""
        self.rows = recent_rows(self.chain)
        self.recent = facts.recent_seconds(self.chain, self.rows)
        new = not find(self.chain.run, "prepare-*")
        line("run", f"{self.chain.run}  (new)" if new else str(self.chain.run))
        self.single = "" if stage == "all" else stage
        if self.single:
            line("stage", stage)
            return
        line("plan", facts.in_words(self.chain))

    def progress(self, label: str, done: int, total: int | None = None) -> None:
        left = self._pace.left(label, done, total)
        if total and left and time.monotonic() - self._said > EVERY_S:
            self._said = time.monotonic()
            self.say(f"{self._stage:<{LABEL - 1}} {done}/{total} {label}  {left}")

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
        if name == "update" and "step" in metrics:
            earlier = [row for row in self.rows if row["step"] < metrics["step"]]
            self.rows = [*earlier, metrics]
            self.recent = [*self.recent[-facts.RECENT :], dict(self.times)]  # which go on to grow
            self.step_done()
        elif name == "prepare":
            told = summary(metrics) if self.chain.config.stages.prepare else facts.prepared(metrics)
            self.say(f"{'prepare':<{LABEL}}{told}")
        elif name == "validation":
            means = {"accuracy": metrics["accuracy"]}
            means |= {key: mean["value"] for key, mean in metrics.get("rewards", {}).items()}
            told = "  ".join(f"{key} {mean:.3f}" for key, mean in means.items())
            self.say(f"{'validation':<{LABEL}}step {index}  {told}")
        elif self.single and "interval" in metrics:
            low, high = metrics["interval"]
            self.say(
                f"{name:<{LABEL}}{counted(metrics['questions'], 'question')} x {metrics['samples']}  "
                f"accuracy {metrics['accuracy']:.3f} [{low:.3f}, {high:.3f}]"
            )
        elif self.single:
            place = f"step {index}  " if index else ""
            self.say(f"{name:<{LABEL}}{place}{summary(metrics)}")

    def say(self, text: str) -> None:
        console.print(Text(plain(text, LABEL)))

    def step_done(self) -> None:
        """Tell of the training step that was just made."""
        row, spent = self.rows[-1], self.times
        self.say(facts.step_line(row, self.last))
        used = facts.memory_text(memory.resident(), memory.gpu_peak())
        left = facts.left_text(facts.seconds_left(self.last - row["step"], self.recent))
        self.say(facts.time_line(row, self.last, spent, self.rates(spent), left, f"memory {used}"))

    def rates(self, spent: dict[str, float]) -> dict[str, float]:
        """Tokens a second of the newest training step."""
        return timing.rates(self.rows[-1], spent, self.chain.config.update.epochs)


class LiveWatch(PlainWatch):
    """One calm view that stays in place, for a person at a terminal.

    Its lines are at most 60 columns wide, whatever the terminal: so it looks the same everywhere, and a
    window that is made smaller does not break them.
    """

    def __init__(self, chain: Chain) -> None:
        super().__init__(chain)
        self._index = 0
        self._doing: tuple[str, int, int | None, str] = ("", 0, None, "")
        self._stepped = time.monotonic()
        self._memory = ("", 0.0)
        self.live = Live(get_renderable=self._view, console=console, refresh_per_second=4, transient=True)

    def progress(self, label: str, done: int, total: int | None = None) -> None:
        self._doing = (label, done, total, self._pace.left(label, done, total))

    def stage(self, name: str, index: int) -> None:
        super().stage(name, index)
        self._index, self._doing = index, ("", 0, None, "")

    def step_done(self) -> None:
        self._stepped = time.monotonic()

    def leave(self) -> None:
        """Leave the last step on the screen when the view ends."""
        if self.made and not self.single:
            for label, text in self._step_rows():
                line(label, text)

    def _view(self) -> Group:
        rows = [] if self.single else [("step", self._step_text()), *self._step_rows()]
        rows += [("memory", self._memory_text()), (self._stage or "starting", self._stage_text())]
        return Group(*(cropped(labelled(label, plain(text).rstrip())) for label, text in rows))

    def _step_rows(self) -> Iterator[tuple[str, str]]:
        if self.rows:
            yield from facts.step_rows(self.rows)
            if self.recent:
                yield from facts.time_rows(self.recent[-1], self.rates(self.recent[-1]))

    def _step_text(self) -> str:
        done = self.rows[-1]["step"] if self.rows else 0
        at = self._index if self._stage in timing.TIMED else done
        left = facts.seconds_left(self.last - done, self.recent)
        if left is not None:
            left -= min(time.monotonic() - self._stepped, self._usual())
        told = facts.left_text(left) if done < self.last else ""
        return f"{facts.bar(done, self.last)}  {at}/{self.last}  {told}"

    def _usual(self) -> float:
        """Seconds of a training step; longer than that, a step counts as if it ended right now."""
        return facts.seconds_left(1, self.recent) or 0.0

    def _memory_text(self) -> str:
        text, at = self._memory
        if time.monotonic() - at > 1:
            text = facts.memory_text(memory.resident(), memory.gpu_peak())
            self._memory = (text, time.monotonic())
        return text

    def _stage_text(self) -> str:
        label, done, total, left = self._doing
        if total:
            return f"{facts.bar(done, total)}  {done}/{total} {label}  {left}"
        spent = time.monotonic() - self._started
        usual = self.recent[-1].get(self._stage) if self.recent else None
        told = f"{label} {done}" if label and done else label
        return f"{facts.bar(spent, usual)}  {duration(spent)}  {told}"


def cropped(text: Text) -> Text:
    """A line that is cut, not wrapped, where the terminal is too narrow: a view has to stay in place."""
    text.no_wrap, text.overflow = True, "ellipsis"
    return text


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
    with running(f"vppo train --run {chain.run.name}" if again is None else again):
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
