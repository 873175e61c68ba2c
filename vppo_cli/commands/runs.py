"""``vppo runs``: all runs of a folder, and removing some."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.errors import UserError
from vppo_cli.options import Json


def runs(
    remove: Annotated[
        list[str] | None,
        typer.Option("--remove", metavar="NAME", help="Delete this run, all of its folder; may be repeated."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Delete without asking.")] = False,
    json: Json = False,
) -> None:
    """List the runs: state, steps, accuracy, size, and why one failed.

    They lie in the folder that the environment variable VPPO_RUNS names, or in runs/ here.

    [bold]Examples[/bold]

    vppo runs --json

    vppo runs --remove tiny-7f3a19c2 --yes
    """
    from pipelines.runs import runs_folder
    from vppo_cli.screen import display, listing

    if remove:
        listing.remove(remove, sure=yes)
        return
    rows = listing.rows()
    if json:
        display.print_json({"folder": str(Path(runs_folder()).resolve()), "runs": [vars(row) for row in rows]})
        return
    if not rows:
        raise UserError(str(runs_folder()), "holds no runs.", "Begin one: vppo train; or set VPPO_RUNS.")
    listing.show(rows)
