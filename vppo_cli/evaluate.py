"""``vppo eval``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evals.benchmarks import check_names
from evals.run import RESULTS
from pipelines import runs, settings
from pipelines.chain import Chain
from pipelines.checkpoint import pick, saved
from pipelines.errors import UserError
from pipelines.run import stage_steps, train_stage
from vppo_cli import display
from vppo_cli.choose import Choice, choose
from vppo_cli.results import entry


def evaluate(
    run: str | None, checkpoint: str, model: str | None, overrides: Sequence[str], *, as_json: bool
) -> None:
    """Evaluate a checkpoint of a run, or a model on its own."""
    if model is None:
        choice = choose(run, None, overrides, new=False)
        step = _which(choice.chain, checkpoint)
    else:
        choice, step = _model_alone(model, overrides), 0
    source = model or (f"checkpoint {step}" if step else "starting model")
    with display.watching(choice.wanted, as_json=as_json) as watch:
        if not as_json:
            display.line("model", f"{source} of {choice.run}" if model is None else source)
        train_stage(choice.chain, choice.chain, "prepare", [0], watch, force=False)
        train_stage(choice.chain, choice.wanted, "eval", [step], watch, force=False)
    rows = _rows(choice, step, source)
    if as_json:
        display.print_json({"run": choice.run.name, "evaluations": rows})
    else:
        display.evaluation_table(rows)


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


def _model_alone(model: str, overrides: Sequence[str]) -> Choice:
    unused = [
        "data.glyphs.train=1",
        "data.glyphs.validation=1",
    ]  # only the test questions are asked
    config = settings.load(None, [*unused, *overrides, f"model.path={model}"])
    check_names(config.eval.benchmarks)
    name = f"{Path(model).name}-{hashlib.sha256(model.encode()).hexdigest()[:4]}"
    chain = Chain(config, runs.runs_folder() / "models" / name)
    runs.write_config(chain.run, config)
    return Choice(chain, chain)


def _rows(choice: Choice, step: int, source: str) -> list[dict[str, Any]]:
    rows = []
    for made in stage_steps(choice.chain, choice.wanted, "eval", step):
        row = entry(made, source)
        results = json.loads((made.path / RESULTS).read_text())
        rows.append({
            "benchmark": made.name, "questions": len(results["questions"]),
            "samples": results["sampling"]["samples"], "results": [row],
        })  # fmt: skip
    return rows
