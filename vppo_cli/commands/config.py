"""``vppo config``."""

from __future__ import annotations

from difflib import get_close_matches
from functools import reduce
from json import dumps
from operator import getitem
from textwrap import fill, indent
from typing import Annotated

import typer

from pipelines.errors import UserError
from vppo_cli.options import ConfigFile, Json, RunName, Settings


def config(
    section: Annotated[str | None, typer.Argument(help="One section, such as score.")] = None,
    config: ConfigFile = None,
    settings: Settings = None,
    run: RunName = None,
    every: Annotated[bool, typer.Option("--all", help="Also what only `mode: published` needs.")] = False,
    json: Json = False,
) -> None:
    """List the settings: each with its value and its meaning."""
    from rich.markup import escape

    from pipelines import runs
    from pipelines.config.settings import load, setting_names
    from vppo_cli.screen import display

    file = config or (runs.config_file(runs.find_run(run)) if run else None)
    values = load(file, settings or [], stored=config is None and run is not None)
    names = [
        (name, about)
        for name, about in setting_names()
        if section == name
        or name.startswith(f"{section}.")
        or (section is None and (every or not name.startswith("published.")))
    ]
    if not names:
        known = list(type(values).model_fields)
        near = get_close_matches(section or "", known, n=1)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise UserError(f"config {section}", "no such section.", f"{hint}Known: {' '.join(known)}.")
    plain = values.model_dump(mode="json")
    if json:
        display.print_json({name: reduce(getitem, name.split("."), plain) for name, _ in names})
        return
    for name, about in names:
        value = dumps(reduce(getitem, name.split("."), plain))
        display.console.print(f"[bold]{name}[/bold]  {escape(value)}")
        text = indent(fill(about.replace("``", ""), 90), "    ")
        display.console.print(escape(text), style="dim")
