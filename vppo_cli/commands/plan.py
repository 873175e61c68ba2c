"""``vppo plan``."""

from __future__ import annotations

from typing import Annotated

import typer

from vppo_cli.options import ConfigFile, Json, RunName, Settings


def plan(
    config: ConfigFile = None,
    settings: Settings = None,
    run: RunName = None,
    gpu: Annotated[
        str | None, typer.Option(metavar="NAME", help="Say too what it takes on this GPU: H100, A100-80 ...")
    ] = None,
    gpus: Annotated[int | None, typer.Option(metavar="N", min=1, help="On so many of them (default: 8).")] = None,
    response_tokens: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Mean response length to expect (default: half).")
    ] = None,
    json: Json = False,
) -> None:
    """Say what would run, what would be kept, and why, without running anything.

    With --gpu, or for any model but tiny: memory by part, operations, time
    and disk, and what to change if it does not fit.

    [bold]Examples[/bold]

    vppo plan --set score.keep_fraction=0.2

    vppo plan --config qwen2_5_vl_7b.yaml --gpu A100-80 --gpus 8
    """
    from pipelines import runs
    from pipelines.disk.part_sources import check_part_sources
    from pipelines.opening import check_inputs
    from vppo_cli.choose import to_train
    from vppo_cli.screen import capacity, display
    from vppo_cli.screen import plan as screen

    known = [path.name for path in runs.known_runs()]
    new = (config is not None and run not in known) or (run is None and not known)
    choice = to_train(run, config, settings or [], new=new)
    wanted = choice.wanted
    check_part_sources(wanted.config)
    check_inputs(wanted)
    rows, variants = screen.plan_rows(wanted), list(screen.other_variants(wanted))
    needs = None
    if capacity.wanted(wanted.config, gpu, gpus, response_tokens):
        needs = capacity.count(wanted.config, gpu, gpus, response_tokens)
    if json:
        found = {"run": choice.run.name, "plan": rows, "also_on_disk": variants}
        display.print_json(found | ({"capacity": needs} if needs else {}))
    else:
        screen.show(wanted, choice.notes, rows, variants, needs)
