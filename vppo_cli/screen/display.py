"""The only place that prints: others print by what is here, or on ``console``."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from pipelines.chain import Chain
from pipelines.disk.step import Step
from pipelines.errors import UserError
from pipelines.objectives.table import PERCEPTION, STORES, stored
from pipelines.ranks.ranks import is_main
from pipelines.words import counted, signed
from vppo_cli.screen.words import ranges

LABEL = 11

console = Console(highlight=False, soft_wrap=True, emoji=False, quiet=not is_main())
errors = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)


def plain(text: str, indent: int | None = None) -> str:
    """Text that a terminal only shows: data sets, models and file names are not to be trusted.

    Control characters, such as those that start an escape sequence or turn the direction of
    writing, become U+FFFD, and every white space a blank.

    Args:
        indent: keep the line breaks, each with this many blanks after it; None: they are blanks too.
    """
    safe = "".join(c if c.isprintable() or c == "\n" else " " if c.isspace() else "\ufffd" for c in text)
    return safe.replace("\n", " " if indent is None else "\n" + " " * indent)


def labelled(label: str, text: str) -> Text:
    """A short label, then what there is to say."""
    label, text = plain(label, 0), plain(text, LABEL)
    return Text.assemble((f"{label:<{LABEL}}", "bold"), text)


def warned(text: str) -> Text:
    """A line that warns."""
    found = labelled("warning", text)
    found.stylize("bold yellow")
    return found


def line(label: str, text: str, style: str = "") -> None:
    """One line of output: a short label, then what there is to say."""
    console.print(labelled(label, text), style=style or None)


def columns(rows: Sequence[Sequence[str]], *, indent: int = 0, gap: int = 2, styles: Sequence[str] = ()) -> None:
    """Rows in columns, one line each: never cut, whatever the width of the terminal or pipe."""
    texts = aligned(rows, indent=indent, gap=gap)
    for text, style in zip_longest(texts, styles, fillvalue=""):
        console.print(Text(text), style=str(style) or None)


def aligned(rows: Sequence[Sequence[str]], *, indent: int = 0, gap: int = 2) -> list[str]:
    """Rows as lines of text whose cells stand under each other."""
    safe = [[plain(cell) for cell in row] for row in rows]
    widths = [max(map(len, cells)) for cells in zip_longest(*safe, fillvalue="")]
    return [
        " " * indent + (" " * gap).join(c.ljust(w) for c, w in zip(row, widths, strict=False)).rstrip() for row in safe
    ]


_reserved: list[TextIO] = []


@contextlib.contextmanager
def reserved_output() -> Iterator[None]:
    """While this lasts, standard output is for ``print_json``: what parts of one's own print goes to standard error."""
    _reserved.append(sys.stdout)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        _reserved.pop()


def print_json(value: Any) -> None:
    """For a program: one JSON object, nothing else on standard output."""
    if is_main():
        out = _reserved[-1] if _reserved else sys.stdout
        out.write(json.dumps(value, ensure_ascii=False) + "\n")
        out.flush()


def print_text(text: str) -> None:
    """For a file: text as it is, nothing else on standard output."""
    if is_main():
        sys.stdout.write(text + "\n")


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


@contextlib.contextmanager
def running(again: str) -> Iterator[None]:
    """While this lasts, ``again`` is what to say after Ctrl-C on how to go on."""
    _running.append(again)
    yield
    _running.pop()


@contextlib.contextmanager
def bar(label: str, *, as_json: bool) -> Iterator[Callable[[int, int, float], None]]:
    """A progress bar for work outside a run: call it with (done, total, current loss)."""
    columns = (TextColumn(label), BarColumn(), TextColumn("{task.fields[loss]}"), TimeRemainingColumn())
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
    shown = [
        f"{n} {v:.4g}" if isinstance(v, float) else f"{n} {v}" for n, v in metrics.items() if isinstance(v, int | float)
    ]
    return "  ".join(shown[:most])


# -- at the end ----------------------------------------------------------------------------------


def evaluation_table(rows: Sequence[dict[str, Any]]) -> None:
    """Accuracy of the starting policy and of the checkpoint, with intervals, and the difference; under each
    what a reward of one's own gives it."""
    for text in evaluation_lines(rows):
        console.print(text)
    if rows:
        console.print()


def evaluation_lines(rows: Sequence[dict[str, Any]]) -> Iterator[Text]:
    """The lines of ``evaluation_table``."""
    for row in rows:
        yield Text()
        yield labelled(
            "eval",
            f"{row['benchmark']}, {counted(row['questions'], 'question')} x "
            f"{counted(row['samples'], 'sample')}, 95 % intervals over questions",
        )
        table = []
        for entry in row["results"]:
            low, high = entry["interval"]
            cells = [entry["policy"], f"{entry['accuracy']:.3f}", f"[{low:.3f}, {high:.3f}]"]
            if "difference" in entry:
                cells.append(changed(entry, 1, " points"))
            table.append(cells)
            for name, mean in entry.get("rewards", {}).items():
                low, high = mean["interval"]
                cells = [f"  {name}", f"{mean['value']:.3f}", f"[{low:.3f}, {high:.3f}]"]
                if "difference" in mean:
                    cells.append(changed(mean, mean["places"]))
                table.append(cells)
        yield from map(Text, aligned(table, indent=LABEL, gap=3))
        yield from map(warned, row.get("warnings", ()))


def changed(row: Mapping[str, Any], places: int, unit: str = "") -> str:
    """``+1.6 points [-1.6, +5.5]``: a ``difference`` and its interval; without width, that says nothing of others."""
    low, high = row["difference_interval"]
    change, down, up = (signed(value, places) for value in (row["difference"], low, high))
    return f"{change}{unit} [{down}, {up}]" if low < high else f"{change}{unit} at every question"


def next_steps(chain: Chain) -> None:
    """What one would do now."""
    name = chain.run.name
    if not all(step.path.is_dir() for step in chain.all()):
        line("next", f"vppo train --run {name}      go on")
        return
    line("next", f"vppo report {name}      a page: its curves, and what every token looked at")
    line("", f"vppo status --run {name}      what the run did")
    line("", f"vppo export {name}-model --run {name}      the model, for transformers")
    scored = "score.estimator=k3" if PERCEPTION in STORES[stored(chain.config)] else "score.store=all"
    line("", f"vppo train --run {name} --stage score --set {scored}      score the saved rollouts another way")


def made(chain: Chain, wanted: Chain, stage: str, steps: Sequence[Step], overrides: Sequence[str]) -> None:
    """What a single stage did."""
    if not steps:
        again = f"vppo train --stage {stage} --force makes it again"
        line("done", f"nothing to do: {stage} is on disk with these settings ({again})")
        return
    indices = [step.index for step in steps if step.index is not None]
    where = f" {ranges(indices)}" if indices else ""
    line("made", f"{stage}{where}: {steps[-1].path}")
    if chain is not wanted:
        settings = "".join(f" --set {text}" for text in overrides)
        line("next", f"vppo plan --run {chain.run.name}{settings}      what is stale if the run goes on so")
