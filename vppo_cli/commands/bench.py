"""``vppo bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vppo_cli.options import Json


def bench(
    parts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PART]...", help="passes, curve, scoring, streamed, vision, bfloat16, trl (default: all)."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where bench.json and bench.png are written.")] = Path(
        "build/bench"
    ),
    shape: Annotated[
        str, typer.Option(help="tiny, or 3b, 7b (random weights; passes and streamed, on a GPU).")
    ] = "tiny",
    repeats: Annotated[int, typer.Option(min=1, help="Turns that count, after a warm-up.")] = 5,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 2,
    json: Json = False,
) -> None:
    """Measure this machine: ours against the alternative, in turn, in one run.

    passes: plain rows against rows that share their prompt. curve: over group
    sizes and prompt lengths. scoring: what exact scoring adds to a step.
    streamed: memory at a vocabulary of 152,064. vision: a tower's windows and
    patches. bfloat16: how far results move with what is beside them. trl: a whole
    step against TRL's GRPOTrainer.

    [bold]Examples[/bold]

    vppo bench passes trl

    vppo bench passes streamed --shape 3b
    """
    from pipelines.bench.run import ON_TINY, PARTS
    from pipelines.bench.run import bench as measure
    from vppo_cli.screen import display
    from vppo_cli.screen.bench import SHOWN

    chosen = parts or [p for p in PARTS if shape == "tiny" or p not in ON_TINY]
    with display.spinner("bench", as_json=json) as say:
        found = measure(chosen, shape, repeats, threads, out, say)
    if json:
        display.print_json({name: found[name] for name in chosen})
        return
    for name in chosen:
        SHOWN[name](found[name])
        display.console.print()
    picture = _drawn(found, out / "bench.png")
    display.line("files", f"{out / 'bench.json'}{picture}")


def _drawn(found: dict[str, Any], file: Path) -> str:
    """Draw the figures where matplotlib is installed -> what to say of it."""
    from pipelines.bench.plot import plot

    return f"  {file}" if plot(found, file) else "  (no picture: pip install 'vppo[bench]')"
