"""``vppo prepare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.errors import UserError
from vppo_cli.commands.train import one_stage
from vppo_cli.options import ConfigFile, Json, RunName, Settings


def prepare(
    config: ConfigFile = None,
    settings: Settings = None,
    run: RunName = None,
    rebuild_tiny: Annotated[
        bool, typer.Option("--rebuild-tiny", help="Train the shipped tiny model again instead.")
    ] = False,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where --rebuild-tiny writes the model.")] = Path(
        "tiny_model"
    ),
    steps: Annotated[
        int | None, typer.Option(min=1, help="Warm-start steps of --rebuild-tiny (default: 1200).")
    ] = None,
    json: Json = False,
) -> None:
    """Turn a data set into checked samples.

    Embedded digits, a hub id, Parquet, JSONL, an image folder. Over-long
    prompts and unreadable images are left out, counted, and listed in
    rejected.jsonl.
    """
    if rebuild_tiny:
        _rebuild_tiny(out, steps, as_json=json)
    else:
        one_stage(run, config, settings or [], "prepare", None, force=False, as_json=json)


def _rebuild_tiny(out: Path, steps: int | None, *, as_json: bool) -> None:
    """Build and warm-start the tiny model again, as the shipped one was."""
    if out.exists() and any(out.iterdir()):
        raise UserError(str(out), "is not empty.", "Name a new folder with --out.")
    from pipelines.embedded.tiny import STEPS, rebuild
    from vppo_cli.screen import display

    with display.bar("warm start", as_json=as_json) as progress:
        metrics = rebuild(out, steps=steps or STEPS, progress=progress)
    if as_json:
        display.print_json({"out": str(out), **metrics})
    else:
        display.line("wrote", f"{out}  {display.summary(metrics)}")
        display.line("next", f"vppo train --set model.path={out}")
