"""``vppo train``."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.errors import UserError
from vppo_cli.options import ConfigFile, Json, Master, NodeRank, Nodes, Processes, RunName, Settings, hand_over

STAGES = ("prepare", "rollout", "score", "update", "checkpoint", "eval")


def train(
    stage: Annotated[
        str, typer.Option(help="all, or one of prepare, rollout, score, update, checkpoint, eval.")
    ] = "all",
    config: ConfigFile = None,
    settings: Settings = None,
    run: RunName = None,
    steps: Annotated[
        str | None, typer.Option(metavar="A..B", help="Training steps of a single stage: 3 or 3..5.")
    ] = None,
    until: Annotated[int | None, typer.Option(metavar="N", min=1, help="Stop after training step N.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Make a single stage again even if it is there.")] = False,
    json: Json = False,
    nproc_per_node: Processes = None,
    nnodes: Nodes = 1,
    node_rank: NodeRank = 0,
    master: Master = None,
) -> None:
    """Train: every stage in turn, or one alone.

    Without --run, a run is named after its settings, so the same command
    goes on with the same run, and does nothing once it is finished.

    With --stage, one stage is made again from what is on disk, with the
    settings given; the run itself keeps its own.

    [bold]Examples[/bold]

    vppo train

    vppo train --config ci.yaml --set run.steps=20 --set seed=1

    vppo train --stage score --set score.estimator=k3

    vppo train --config qwen2_5_vl_7b.yaml --nproc-per-node 8
    """
    if nproc_per_node or nnodes > 1:
        hand_over(nproc_per_node, nnodes, node_rank, master)
    if stage == "all":
        _refuse_with_all(steps=steps, force=force)
        _every_stage(run, config, settings or [], until, as_json=json)
    else:
        one_stage(run, config, settings or [], stage, steps, force=force, as_json=json)


def _refuse_with_all(**given: Any) -> None:
    for name, value in given.items():
        if value:
            raise UserError(f"--{name}", "goes with a single --stage.", f"Add --stage, or drop --{name}.")


def _every_stage(
    name: str | None, config: Path | None, overrides: Sequence[str], until: int | None, *, as_json: bool
) -> None:
    """Make everything that is missing, then show the evaluation."""
    from pipelines.ranks.ranks import ranks
    from pipelines.run import train as make_all
    from vppo_cli.choose import begun, to_train
    from vppo_cli.screen import display
    from vppo_cli.screen.live import watching
    from vppo_cli.screen.results import evaluation_rows, write_reports

    everyone = ranks()
    chain, notes = everyone.on_main(lambda: begun(to_train(name, config, overrides, new=True)))
    with watching(chain, as_json=as_json) as watch:
        watch.begin()
        for note in notes:
            watch.note(note)
        made = make_all(chain, watch, until=until)
    if not everyone.main:
        return
    write_reports(chain, again=bool(made))
    rows = evaluation_rows(chain)
    if as_json:
        display.print_json({"run": chain.run.name, "made": len(made), "evaluations": rows})
        return
    if not made:
        last = min(until or chain.config.run.steps, chain.config.run.steps)
        all_steps = f"all {last} steps are" if last > 1 else "its step is"
        display.line("done", f"nothing to do: {all_steps} on disk with these settings")
    display.evaluation_table(rows)
    display.next_steps(chain)


def one_stage(
    name: str | None,
    config: Path | None,
    overrides: Sequence[str],
    stage: str,
    steps: str | None,
    *,
    force: bool,
    as_json: bool,
) -> None:
    """Make one stage again from what is on disk."""
    from pipelines import runs
    from pipelines.ranks.ranks import ranks
    from pipelines.run import train_stage
    from vppo_cli.choose import Choice, begun, default_steps, parse_steps, to_train
    from vppo_cli.screen import display
    from vppo_cli.screen.live import watching
    from vppo_cli.screen.results import write_report

    if stage not in STAGES:
        near = difflib.get_close_matches(stage, STAGES, n=1)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise UserError(f"--stage {stage}", "no such stage.", f"{hint}Known: all {' '.join(STAGES)}.")
    everyone = ranks()
    first = 0 if stage == "eval" else 1  # 0 is the starting model

    def decide() -> tuple[Choice, list[int], list[str]]:
        choice = to_train(name, config, overrides, new=stage in ("prepare", "rollout"))
        notes: list[str] = []
        if not (choice.run / runs.CONFIG).is_file():
            chain, notes = begun(choice)
            choice = Choice(chain, chain)
        chosen = parse_steps(steps, choice.chain, first) or default_steps(choice.chain, stage)
        return choice, chosen, notes

    choice, chosen, notes = everyone.on_main(decide)
    with watching(choice.wanted, as_json=as_json) as watch:
        watch.begin(stage)
        for note in notes:
            watch.note(note)
        made = train_stage(choice.chain, choice.wanted, stage, chosen, watch, force=force)
    if not everyone.main:
        return
    if stage == "prepare" and not made:
        choice.wanted.prepare.verify()
    if stage == "eval":
        for step in chosen:
            write_report(choice.chain, choice.wanted.config, step)
    if as_json:
        display.print_json({"run": choice.run.name, "stage": stage, "made": [s.path.name for s in made]})
    else:
        display.made(choice.chain, choice.wanted, stage, made, overrides)
