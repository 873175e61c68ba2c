"""``vppo eval``."""

from __future__ import annotations

from collections.abc import Sequence
from json import dumps  # JSON is YAML
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.errors import UserError
from vppo_cli.options import ConfigFile, Json, Processes, RunName, Settings, hand_over

if TYPE_CHECKING:
    from pipelines.config.schema import EvalConfig


def evaluate(
    benchmarks: Annotated[
        str | None, typer.Option(metavar="A,B", help="Benchmarks, or all (default: the config's).")
    ] = None,
    run: RunName = None,
    checkpoint: Annotated[
        str | None, typer.Option(metavar="WHICH", help="last (default), best, a step number; 0 is the starting model.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="PATH", help="Evaluate this model folder or hub id instead.")
    ] = None,
    config: ConfigFile = None,
    data_dir: Annotated[
        str | None, typer.Option(metavar="DIR", help="Local copies of the benchmarks, instead of the hub.")
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="published (the authors' pixels and sampling) or matched (training's)."),
    ] = None,
    samples: Annotated[int | None, typer.Option(help="Samples per question (paper: 8).")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first questions.")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Longest response (authors: 2048; 32B 4096; 8B 8192).")
    ] = None,
    regrade: Annotated[bool, typer.Option("--regrade", help="Grade what was sampled again; needs no model.")] = False,
    settings: Settings = None,
    json: Json = False,
    nproc_per_node: Processes = None,
) -> None:
    """Evaluate a checkpoint of a run, or any model.

    Alone, the newest checkpoint of the latest run. Benchmarks: mathverse,
    dynamath, mmk12, geo3k, mathvision, wemath, logicvista, mmmu_pro (all: these
    eight, as in the paper), mmmu_val, aokvqa, simplevqa; the run's own: glyphs,
    validation; and yours: names of eval.sources, module:NAME.

    Every response is journalled: an interrupted evaluation goes on where it
    was, and more --samples or a higher --limit add to what is there.

    [bold]Examples[/bold]

    vppo eval --benchmarks mathverse,mmmu

    vppo eval --benchmarks all --model Qwen/Qwen2.5-VL-7B-Instruct

    vppo eval --benchmarks geo3k --data-dir /data/benchmarks --limit 50

    vppo eval --benchmarks mytest --set eval.sources.mytest=data/mytest.jsonl

    vppo eval --benchmarks all --regrade --set eval.graders=\\[math-verify,mathruler]
    """
    if nproc_per_node:
        hand_over(nproc_per_node)
    if benchmarks is not None and not benchmarks.strip(", "):
        raise UserError("--benchmarks", "names none.", "Such as --benchmarks mathverse,mmmu, or all.")
    if data_dir == "":
        raise UserError("--data-dir", "names no folder.", "Such as --data-dir /data/benchmarks.")
    if model is not None:
        _refuse_with_model(run=run, checkpoint=checkpoint)
    options = {
        "benchmarks": [name.strip() for name in (benchmarks or "").split(",") if name.strip()],
        "data_dir": data_dir,
        "profile": profile,
        "samples": samples,
        "limit": limit,
        "max_new_tokens": max_new_tokens,
    }
    asked = [f"eval.{name}={dumps(v)}" for name, v in options.items() if v is not None and v != []]
    _evaluate(run, checkpoint or "last", model, config, [*(settings or []), *asked], regraded=regrade, as_json=json)


def _refuse_with_model(**given: str | None) -> None:
    for name, value in given.items():
        if value is not None:
            raise UserError(
                f"--{name} {value}",
                "belongs to a run; --model evaluates a model on its own.",
                f"Drop --{name} or --model; a run's starting model is --checkpoint 0.",
            )


def _evaluate(
    run: str | None,
    checkpoint: str,
    model: str | None,
    config: Path | None,
    overrides: Sequence[str],
    *,
    regraded: bool,
    as_json: bool,
) -> None:
    """Evaluate a checkpoint of a run, or a model on its own; or grade what was sampled again."""
    from evals.benchmarks.table import OWN
    from evals.run import without_rows
    from evals.stage import regrade
    from pipelines.ranks.ranks import ranks
    from pipelines.run import train_stage
    from vppo_cli.choose import which_policy
    from vppo_cli.screen import display
    from vppo_cli.screen import report as screen
    from vppo_cli.screen.live import watching
    from vppo_cli.screen.results import write_report

    everyone = ranks()
    choice, step, label, place = everyone.on_main(
        lambda: which_policy(run, checkpoint, model, config, overrides, sampled=regraded)
    )
    names = choice.wanted.benchmarks
    if not names:
        raise UserError("eval.benchmarks", "names none.", "Say which: --benchmarks mathverse,mmmu, or all.")
    again = "the same command goes on where it was"
    with watching(choice.wanted, as_json=as_json, again=again) as watch:
        watch.single = "eval"
        if not as_json:
            display.line("model", place)
            for note in choice.notes:
                display.line("note", note)
            _say_what_may_surprise(choice.wanted.config.eval, overrides)
        if regraded:
            everyone.on_main(lambda: regrade(choice.chain, choice.wanted, step, watch))
        else:
            if any(name in OWN for name in names):
                train_stage(choice.chain, choice.chain, "prepare", [0], watch, force=False)
            train_stage(choice.chain, choice.wanted, "eval", [step], watch, force=False)
    if not everyone.main:
        return
    made, files = write_report(choice.chain, choice.wanted.config, step, label)
    if as_json:
        display.print_json(
            {
                "run": choice.run.name,
                "step": step,
                "model": label,
                "evaluations": [without_rows(found) for found in made["results"]],
                "average": made["average"],
                "warnings": made["warnings"],
                "files": list(map(str, files)),
            }
        )
    else:
        screen.show(made, files)


def _say_what_may_surprise(asked: EvalConfig, overrides: Sequence[str]) -> None:
    from evals.benchmarks.table import ALIASES, BENCHMARKS
    from vppo_cli.screen import display

    for name in asked.benchmarks:
        if name == "mmmu":
            display.line(
                "note",
                f"mmmu is {BENCHMARKS[ALIASES[name]].title} here, as in the paper; for plain "
                "MMMU (validation, 900 questions) ask for mmmu_val",
            )
        if name == "validation" and any(o.startswith(("eval.samples=", "eval.limit=")) for o in overrides):
            display.line("note", "validation is always asked in full, checkpoint.validation_samples times each")
