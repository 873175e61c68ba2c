"""A run at a glance, once or for as long as it works, for ``vppo status``. Reads only; torch-free."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.text import Text

from pipelines import checkpoints, runs
from pipelines.chain import ANSWERS, TRAINING, Chain
from pipelines.disk.lock import is_running
from pipelines.tracking import timing
from pipelines.words import counted
from vppo_cli.screen import display, facts
from vppo_cli.screen.display import labelled, warned
from vppo_cli.screen.live import cropped
from vppo_cli.screen.results import evaluation_rows, recent_rows
from vppo_cli.screen.words import duration, size, sparkline

SILENT_S = 300.0
"""A run that gives no sign for so long may be stuck, unless its stage usually takes long:"""
SILENT_TIMES = 3
"""so many times as long as the stage took lately is still usual."""

Stamp = tuple[Any, ...]


@dataclass
class Glance:
    """What there is to know of a run; ``stamp`` tells whether it has to be looked up again."""

    chain: Chain
    state: runs.State
    stamp: Stamp
    rows: list[dict[str, Any]]
    recent: list[dict[str, float]]
    saved: list[int]
    best: int | None
    evaluations: list[dict[str, Any]]
    edited: list[str]
    used: int

    @property
    def silent(self) -> float:
        """Seconds for which a running run has given no sign, if that is longer than usual; else 0."""
        usual = self.recent[-1].get(self.state.stage, 0.0) if self.recent else 0.0
        silent = self.state.silent_s()
        return silent if silent > max(SILENT_S, SILENT_TIMES * usual) else 0.0

    @property
    def left(self) -> float | None:
        """Seconds of training left; None if it does not train or nobody knows."""
        steps = self.chain.config.run.steps - len(self.rows)
        running = self.state.state == "running" and steps > 0
        return facts.seconds_left(steps, self.recent) if running else None

    @property
    def warnings(self) -> list[str]:
        """What is wrong with the run's folder, though nothing else depends on it."""
        damaged = f"{self.chain.run / runs.STATE} is damaged: what the run is doing is not known"
        return [f"{damaged}; it is written again when the run goes on"] * self.state.damaged

    def json(self) -> dict[str, Any]:
        """For a program."""
        state, config = self.state, self.chain.config
        spent = self.recent[-1] if self.recent else {}
        rates = timing.rates(self.rows[-1], spent, config.update.epochs) if self.rows else {}
        return {
            "run": self.chain.run.name,
            "state": state.state,
            "why": state.why,
            "stage": state.stage,
            "step": state.step,
            "doing": state.doing,
            "done": state.done,
            "total": state.total,
            "pid": state.pid,
            "host": state.host,
            "updated": state.updated,
            "silent_s": round(self.silent),
            "steps_done": len(self.rows),
            "steps": config.run.steps,
            "left_s": None if self.left is None else round(self.left),
            "seconds": spent,
            "tokens_per_second": rates,
            "memory": state.memory,
            "gpu_memory": state.gpu_memory,
            "metrics": self.rows[-1] if self.rows else {},
            "checkpoints": self.saved,
            "best": self.best,
            "best_key": config.checkpoint.best_key,
            "evaluations": self.evaluations,
            "edited": self.edited,
            "warnings": self.warnings,
        }


def look(path: Path, before: Glance | None = None) -> Glance:
    """Look at a run; what did not change since ``before`` is not looked up again."""
    state = runs.read_state(path)
    stamp = (_stamp(path / runs.CONFIG), _stamp(path / runs.METRICS), state.state, state.stage, state.step)
    if before and before.stamp == stamp:
        before.state = state
        return before
    chain = runs.as_made(runs.read_config(path), path, *TRAINING, *ANSWERS)
    rows, saved = recent_rows(chain), checkpoints.saved(chain)
    return Glance(
        chain,
        state,
        stamp,
        rows,
        facts.recent_seconds(chain, rows),
        saved,
        next(iter(checkpoints.best(chain, saved)), None),
        evaluation_rows(chain),
        chain.edited(),
        used(path),
    )


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        about = path.stat()
    except FileNotFoundError:
        return None
    return about.st_mtime_ns, about.st_size


def used(path: Path) -> int:
    """Bytes of a run's files, some of which may go while they are counted; of one that several runs share, a part."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                about = os.lstat(os.path.join(folder, name))
                total += about.st_size // about.st_nlink if stat.S_ISREG(about.st_mode) else 0
    return total


def show(path: Path, *, as_json: bool) -> None:
    """A run at a glance: what it is doing, how it goes, what it has on disk."""
    glance = look(path)
    if as_json:
        display.print_json(glance.json())
        return
    for text in lines(glance):
        display.console.print(text)
    if glance.evaluations:
        display.console.print()
    if glance.state.state in ("stopped", "failed", "idle"):
        display.line("next", f"vppo train --run {glance.chain.run.name}")


def lines(glance: Glance) -> Iterator[Text]:
    """What ``vppo status`` shows, line by line."""
    state, rows, chain = glance.state, glance.rows, glance.chain
    yield labelled("run", f"{chain.run}  ({state.state})")
    if state.why:
        yield labelled("why", state.why)
    for text in glance.warnings:
        yield warned(text)
    if glance.edited:
        again = f"vppo plan --run {chain.run.name} says what would be made again"
        yield labelled("edited", f"since its steps were made: {', '.join(glance.edited)}; {again}")
    if state.state == "running":
        yield labelled("now", doing(state))
        if glance.silent:
            silent = f"no sign for {duration(glance.silent)} (process {state.pid} on {state.host})"
            yield warned(silent)
    left = facts.left_text(glance.left)
    yield labelled("steps", f"{len(rows)} of {chain.config.run.steps} done   {left}".rstrip())
    for label, key, form in (
        ("accuracy", "rollout/accuracy", ".3f"),
        ("reward", "rollout/reward", ".3f"),
        ("perception", "score/perception_mean", ".3f"),
        ("dependency", "score/dependency_mean", ".3f"),
        ("entropy", "score/entropy", ".3f"),
        ("length", "rollout/response_tokens_mean", ".1f"),
        ("grad norm", "update/grad_norm", ".3f"),
    ):
        values = [row[key] for row in rows if key in row]
        same = key == "rollout/reward" and values == [row.get("rollout/accuracy") for row in rows]
        if values and not same:
            course = sparkline(values, 24)
            yield labelled(label, f"{course}  {values[0]:{form}} -> {values[-1]:{form}}")
        if key == "rollout/reward":
            for name in facts.named(rows[-1]) if rows else ():
                values = [facts.named(row)[name] for row in rows if name in facts.named(row)]
                course = sparkline(values, 24)
                yield labelled("", f"{course}  {values[0]:{form}} -> {values[-1]:{form}}  {name}")
    if rows and (told := facts.perception(rows[-1])):
        yield labelled("last step", told)
    if glance.recent and rows:
        spent = glance.recent[-1]
        rates = timing.rates(rows[-1], spent, chain.config.update.epochs)
        for label, text in facts.time_rows(spent, rates):
            yield labelled(label, text)
    if state.state == "running" and state.memory:
        yield labelled("memory", facts.memory_text(state.memory, state.gpu_memory))
    if glance.saved:
        key = chain.config.checkpoint.best_key
        named = [f"{t} (best {key})" if t == glance.best else str(t) for t in glance.saved]
        yield labelled("weights", f"checkpoint{'s' * (len(named) > 1)} {', '.join(named)}")
    free = shutil.disk_usage(chain.run).free
    yield labelled("disk", f"{size(glance.used)}, {size(free)} free")
    yield from display.evaluation_lines(glance.evaluations)


def doing(state: runs.State) -> str:
    """``rollout 7  ━━━━────  12/32 groups``."""
    text = f"{state.stage} {state.step or ''}".rstrip()
    if state.total:
        text += f"  {facts.bar(state.done, state.total)}  {state.done}/{state.total} {state.doing}"
    elif state.doing:
        text += f"  {state.doing} {state.done or ''}".rstrip()
    return text


# -- watch ---------------------------------------------------------------------------------------


def redraw(path: Path, every: float) -> Glance:
    """Look every so many seconds and draw it in place until the run ends; the last look."""
    glance = look(path)
    with Live(
        get_renderable=lambda: _screen(glance),
        console=display.console,
        auto_refresh=False,
        transient=True,
        vertical_overflow="crop",
    ) as live:
        while not _ended(glance):
            live.refresh()
            time.sleep(every)
            glance = look(path, glance)
    show(path, as_json=False)
    return glance


def _screen(glance: Glance) -> Group:
    return Group(*map(cropped, lines(glance)))


def tell(path: Path, every: float, *, as_json: bool) -> Glance:
    """Look every so many seconds and print what is new until the run ends; the last look."""
    glance, told, said = None, None, ""
    while True:
        glance = look(path, glance)
        news = _news(glance)
        if news != told:
            told = news
            text = _news_text(glance)
            if as_json:
                display.print_json(glance.json())
            elif text != said:  # a file may have changed of which the line says nothing
                said = text
                display.line(time.strftime("%H:%M:%S"), text)
        if _ended(glance):
            return glance
        time.sleep(every)


def _news(glance: Glance) -> Stamp:
    """What has to change for a line to be said."""
    state = glance.state
    return (*glance.stamp, state.doing, state.done, state.total, bool(glance.silent))


def _news_text(glance: Glance) -> str:
    state, rows = glance.state, glance.rows
    parts = [state.state if state.state != "running" else _doing_plainly(state)]
    parts.append(f"{len(rows)}/{counted(glance.chain.config.run.steps, 'step')}")
    if rows:
        parts.append(f"accuracy {rows[-1]['rollout/accuracy']:.3f}")
    if glance.silent:
        parts.append(f"no sign for {duration(glance.silent)}")
    return "  ".join([*parts, facts.left_text(glance.left)]).rstrip()


def _doing_plainly(state: runs.State) -> str:
    """``rollout 7 groups 12/32``."""
    text = f"{state.stage} {state.step or ''}".rstrip()
    how_far = f" {state.done}/{state.total}" if state.total else ""
    return f"{text} {state.doing}{how_far}" if state.doing else text


def _ended(glance: Glance) -> bool:
    """Whether nothing more is to come: a run that waits between two stages holds its lock."""
    state = glance.state.state
    return state not in ("running", "new") and is_running(glance.chain.run) is None
