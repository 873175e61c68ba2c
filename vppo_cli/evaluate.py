"""``vppo eval``."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evals.benchmarks import ALIASES, BENCHMARKS, OWN, canonical
from pipelines import runs, settings
from pipelines.chain import Chain
from pipelines.checkpoint import pick, saved
from pipelines.errors import UserError
from pipelines.evaluation import regrade
from pipelines.run import train_stage
from vppo_cli import display
from vppo_cli import report as screen
from vppo_cli.choose import Choice, choose
from vppo_cli.results import write_report


def evaluate(
    run: str | None, checkpoint: str, model: str | None, config: Path | None,
    overrides: Sequence[str], *, regraded: bool, as_json: bool,
) -> None:  # fmt: skip
    """Evaluate a checkpoint of a run, or a model on its own; or grade what was sampled again."""
    if model is None:
        choice = choose(run, config, overrides, new=False)
        step = _which(choice.chain, checkpoint)
        policy = f"checkpoint {step}" if step else "starting model"
        label, place = f"{policy} of {choice.run.name}", f"{policy} of {choice.run}"
    else:
        choice, step = _model_alone(model, config, overrides), 0
        label = place = model
    names = choice.wanted.benchmarks
    with display.watching(choice.wanted, as_json=as_json) as watch:
        watch.single = "eval"
        if not as_json:
            display.line("model", place)
            _say_aliases(choice.wanted.config.eval.benchmarks)
        if regraded:
            regrade(choice.chain, choice.wanted, step, watch)
        else:
            if any(name in OWN for name in names):
                train_stage(choice.chain, choice.chain, "prepare", [0], watch, force=False)
            train_stage(choice.chain, choice.wanted, "eval", [step], watch, force=False)
    made, files = write_report(choice.chain, choice.wanted.config, step, label)
    if as_json:
        display.print_json({
            "run": choice.run.name, "step": step, "model": label,
            "evaluations": [_without_rows(found) for found in made["results"]],
            "average": made["average"], "warnings": made["warnings"], "files": list(map(str, files)),
        })  # fmt: skip
    else:
        screen.show(made, files)


def _without_rows(found: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if name not in ("right", "clusters_of")}


def _say_aliases(names: Sequence[str]) -> None:
    for name in names:
        if name == "mmmu":
            display.line(
                "note", f"mmmu is {BENCHMARKS[ALIASES[name]].title} here, as in the paper; for plain "
                "MMMU (validation, 900 questions) ask for mmmu_val",
            )  # fmt: skip


def _which(chain: Chain, checkpoint: str) -> int:
    step = pick(chain, checkpoint)
    if step is not None:
        return step
    if checkpoint in ("0", "last"):  # with no checkpoint yet, the last policy is the first
        return 0
    raise UserError(
        f"--checkpoint {checkpoint}", f"run {chain.run.name} has no such checkpoint on disk.",
        f"It has: {' '.join(map(str, [0, *saved(chain)]))}; also: last, best.",
    )  # fmt: skip


def _model_alone(model: str, config: Path | None, overrides: Sequence[str]) -> Choice:
    unused = [] if config else ["data.glyphs.train=1", "data.glyphs.validation=1"]
    asked = settings.load(config, [*unused, *overrides, f"model.path={model}"])
    canonical(asked.eval.benchmarks)
    name = f"{Path(model).name}-{hashlib.sha256(model.encode()).hexdigest()[:4]}"
    chain = Chain(asked, runs.runs_folder() / "models" / name)
    runs.write_config(chain.run, asked)
    return Choice(chain, chain)
