"""``vppo status``: a run at a glance, once or for as long as it works."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from pipelines.errors import Interrupted, UserError
from vppo_cli.options import Json, RunName

EVERY_S = 2.0
"""Seconds between two looks of --watch."""


def status(
    seconds: Annotated[
        float | None,
        typer.Argument(metavar="SECONDS", min=0.1, help="With --watch: look this often (default: every 2 s)."),
    ] = None,
    run: RunName = None,
    watch: Annotated[bool, typer.Option("--watch", help="Go on looking until the run ends, or Ctrl-C.")] = False,
    json: Json = False,
) -> None:
    """Show a run at a glance, also while it trains in another terminal.

    With --watch the view is redrawn in place; in a pipe, a line is printed
    whenever something changed, and with --json a JSON object. Exit code 0 when
    the run has ended as it should, 1 when it failed or was stopped, 130 after
    Ctrl-C, which leaves the run alone.

    [bold]Examples[/bold]

    vppo status --watch

    vppo status --run tiny-7f3a --watch 30 --json
    """
    if seconds is not None and not watch:
        raise UserError(f"status {seconds:g}", "goes with --watch.", "Name a run with --run.")
    from pipelines import runs
    from vppo_cli.screen import glance

    path = runs.find_run(run)
    if watch:
        _watch(path, seconds or EVERY_S, as_json=json)
    else:
        glance.show(path, as_json=json)


def _watch(path: Path, every: float, *, as_json: bool) -> None:
    """Look again and again until the run ends; exits with 1 if it failed, 130 after Ctrl-C."""
    from vppo_cli.screen import display, glance

    try:
        if display.console.is_terminal and not as_json:
            last = glance.redraw(path, every)
        else:
            last = glance.tell(path, every, as_json=as_json)
    except Interrupted:  # of this view: the run goes on
        sys.exit(130)
    if last.state.state in ("failed", "stopped"):
        sys.exit(1)
