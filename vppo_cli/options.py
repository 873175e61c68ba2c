"""The options that several commands share, and what --nproc-per-node does: give ranks the command."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from pipelines.errors import UserError
from pipelines.ranks.launch import Launch, RankFailed, launch, without

_PANEL = "Several GPUs or nodes"

ConfigFile = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="A YAML config (default: tiny.yaml).")
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting; may be repeated.")
]
RunName = Annotated[str | None, typer.Option("--run", metavar="NAME", help="The run's folder name.")]
Processes = Annotated[
    int | None,
    typer.Option(
        "--nproc-per-node", metavar="N", min=1, help="Start N ranks here, one for each GPU.", rich_help_panel=_PANEL
    ),
]
Nodes = Annotated[int, typer.Option("--nnodes", metavar="N", min=1, help="Nodes of the run.", rich_help_panel=_PANEL)]
NodeRank = Annotated[
    int, typer.Option("--node-rank", metavar="R", min=0, help="Which of them this is, from 0.", rich_help_panel=_PANEL)
]
Master = Annotated[
    str | None,
    typer.Option("--master", metavar="HOST[:PORT]", help="The first node, where all meet.", rich_help_panel=_PANEL),
]


def _for_a_program(context: typer.Context, given: bool) -> bool:
    if given:
        from vppo_cli.screen.display import reserved_output

        context.with_resource(reserved_output())
    return given


Json = Annotated[
    bool, typer.Option("--json", callback=_for_a_program, help="Print one JSON object for a program to read.")
]


def hand_over(nproc_per_node: int | None, nnodes: int = 1, node_rank: int = 0, master: str | None = None) -> NoReturn:
    """Give this command to every rank instead, and end as they do."""
    options = ("--nproc-per-node", "--nnodes", "--node-rank", "--master")
    try:
        code = launch(Launch(nproc_per_node or 1, nnodes, node_rank, master), without(sys.argv[1:], *options))
    except RankFailed as error:
        from vppo_cli.screen.display import show_error

        kept = "What was committed is kept; the same command goes on from there."
        show_error(UserError(str(error), "all ranks were stopped.", kept))
        code = 1
    sys.exit(code)
