"""``vppo report``: the page of a run (vppo_cli/report/) as a file; the tables of an evaluation are evals/report/'s."""

from __future__ import annotations

import re
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.errors import UserError
from vppo_cli.options import Json

if TYPE_CHECKING:
    from vppo_cli.report.lines import Line
    from vppo_cli.report.source import RunSource

PAGE, PAGES = "report.html", "reports"
"""Of a run, in its folder; those of several runs, a folder beside the runs."""

MOST_NAMED = 3
"""Runs that a page's title names; the legend names all."""


def report(
    run: Annotated[
        str | None,
        typer.Argument(metavar="RUN", help="A run (default: the latest), or several by a shell pattern, quoted."),
    ] = None,
    compare: Annotated[
        list[str] | None, typer.Option("--compare", metavar="RUN", help="Draw the same beside it; may be repeated.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The page (default: report.html in the run's folder; of several, in reports/ beside them).",
        ),
    ] = None,
    steps: Annotated[
        str | None, typer.Option(metavar="A..B", help="Show these steps in the token viewer: 3 or 3..5.")
    ] = None,
    json: Json = False,
) -> None:
    """Write a run as one HTML page: its curves, and what every token looked at.

    Learning curves, the distribution of token perception, the words that look
    most, evaluations, settings; and a viewer that shades every token of a
    response by how much it depends on the image. The page needs no network and
    stays under 20 MB. A pattern stands for the runs of a method that differ in
    their seed: their mean is drawn, in a band from the lowest to the highest.

    [bold]Examples[/bold]

    vppo report

    vppo report tiny-7f3a --compare tiny-02bc --out both.html

    vppo report 'dapo-*' --compare 'vppo-*' --out methods.html
    """
    from pipelines.page import write_page
    from pipelines.words import counted
    from vppo_cli.choose import parse_steps
    from vppo_cli.report import collect
    from vppo_cli.screen import display
    from vppo_cli.screen.words import ranges, size

    lines = [_line(name) for name in (run, *(compare or []))]
    first, names = lines[0].sources[0], [line.name for line in lines]
    everyone = [source.name for line in lines for source in line.sources]
    twice = next((name for name in everyone if everyone.count(name) > 1), None)
    if twice:
        raise UserError(f"--compare {twice}", "the run is there already.", "Name each run once.")
    asked = parse_steps(steps, first.chain) if steps else None
    if asked and not set(asked) & set(first.perceived):
        raise UserError(
            f"--steps {steps}",
            "no step of these whose perception is known is on disk.",
            f"There: {ranges(first.perceived) or 'none'}.",
        )
    title = " against ".join([names[0], *(names[1:] if len(names) <= MOST_NAMED else [f"{len(names) - 1} others"])])
    path = out or (first.chain.run / PAGE if len(lines[0].sources) == 1 else _page_of_several(title))
    if path.is_dir():
        raise UserError(f"--out {path}", "is a folder.", f"Name a file, such as {path / PAGE}")
    sections = collect(lines, asked)
    write_page(path, title, sections)
    written = path.stat().st_size
    shown = sorted({entry["step"] for entry in sections["viewer"]})
    if json:
        display.print_json(
            {
                "run": names[0],
                "runs": [[source.name for source in line.sources] for line in lines],
                "compared": names[1:],
                "page": str(path),
                "bytes": written,
                "viewer_steps": shown,
                "viewer_left_out": sections["viewer_left_out"],
            }
        )
        return
    display.line("wrote", f"{path}  ({size(written)})")
    if shown:
        prompts = len(sections["viewer"])
        whose = f" of {first.name}" if len(lines[0].sources) > 1 else ""
        display.line("viewer", f"{counted(prompts, 'prompt')} of step{'s' * (len(shown) > 1)} {ranges(shown)}{whose}")
    if sections["viewer_left_out"]:
        left = sections["viewer_left_out"]
        display.line(
            "left out",
            f"steps {ranges(left)} for the page's size; "
            f"vppo report {first.name} --steps {left[0]} --out step-{left[0]}.html",
        )
    display.line("next", "open it in a browser; it needs no network")


def _page_of_several(title: str) -> Path:
    """Where the page of a method with several runs goes: ``dapo-* against vppo-*`` is dapo-against-vppo.html."""
    from pipelines.runs import runs_folder

    name = re.sub(r"[^\w.]+", "-", title).strip("-")
    return runs_folder() / PAGES / f"{name or 'all'}.html"


def _line(name: str | None) -> Line:
    """A run, or the runs that fit a pattern, by seed."""
    from pipelines import runs
    from vppo_cli.report.lines import Line

    if name and runs.is_pattern(name):
        found = [_open(path.name) for path in runs.matching(name)]
        return Line(name.rpartition("/")[2], sorted(found, key=lambda one: (one.chain.config.seed, one.name)))
    opened = _open(name)
    return Line(opened.name, [opened])


def _open(name: str | None) -> RunSource:
    """The run, by name or by its folder's path, or an error that names one that is spelled alike."""
    from pipelines import runs
    from vppo_cli.report.source import RunSource

    if name and Path(name).resolve().parent == runs.runs_folder().resolve():
        name = Path(name).name
    known = [path.name for path in runs.known_runs()]
    near = get_close_matches(name or "", known, n=1)
    if name and name not in known and near:
        raise UserError(f"run {name}", f"no such run in {runs.runs_folder()}/.", f"Did you mean {near[0]}?")
    return RunSource.open(name)
