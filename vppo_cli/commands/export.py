"""``vppo export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vppo_cli.options import Json, RunName


def export(
    out: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder for the model.")],
    run: RunName = None,
    checkpoint: Annotated[str, typer.Option(metavar="WHICH", help="last, best or a step number.")] = "last",
    json: Json = False,
) -> None:
    """Copy a checkpoint's model out, in Hugging Face format."""
    from pipelines import checkpoints, runs
    from pipelines.chain import ANSWERS, TRAINING
    from vppo_cli.screen import display

    path = runs.find_run(run)
    chain = runs.as_made(runs.read_config(path), path, *TRAINING, *ANSWERS)
    step = checkpoints.export(chain, checkpoint, out)
    if json:
        display.print_json({"run": path.name, "step": step, "out": str(out)})
        return
    display.line("wrote", f"{out}  (checkpoint {step} of {path.name})")
    display.line("next", f'AutoModelForImageTextToText.from_pretrained("{out}")')
