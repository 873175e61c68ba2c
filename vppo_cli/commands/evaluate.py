"""``vppo eval``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from evals.benchmarks.table import ALIASES, BENCHMARKS, OWN, canonical
from evals.run import without_rows
from evals.stage import regrade
from pipelines import runs
from pipelines.chain import JOURNALS, TRAINING, Chain
from pipelines.checkpoints import best, pick, saved
from pipelines.config import hub, settings
from pipelines.config.schema import EvalConfig
from pipelines.disk.lock import file_lock
from pipelines.errors import UserError
from pipelines.ranks.ranks import ranks
from pipelines.run import train_stage
from vppo_cli.choose import Choice, choose
from vppo_cli.screen import display
from vppo_cli.screen import report as screen
from vppo_cli.screen.live import watching
from vppo_cli.screen.results import policy_name, write_report


def evaluate(
    run: str | None, checkpoint: str, model: str | None, config: Path | None,
    overrides: Sequence[str], *, regraded: bool, as_json: bool,
) -> None:  # fmt: skip
    """Evaluate a checkpoint of a run, or a model on its own; or grade what was sampled again."""
    everyone = ranks()
    choice, step, label, place = everyone.on_main(
        lambda: _asked_for(run, checkpoint, model, config, overrides, regraded=regraded)
    )
    names = choice.wanted.benchmarks
    if not names:
        raise UserError(
            "eval.benchmarks", "names none.", "Say which: --benchmarks mathverse,mmmu, or all."
        )
    again = "the same command goes on where it was"
    with watching(choice.wanted, as_json=as_json, again=again) as watch:
        watch.single = "eval"
        if not as_json:
            display.line("model", place)
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
        display.print_json({
            "run": choice.run.name, "step": step, "model": label,
            "evaluations": [without_rows(found) for found in made["results"]],
            "average": made["average"], "warnings": made["warnings"], "files": list(map(str, files)),
        })  # fmt: skip
    else:
        screen.show(made, files)


def _asked_for(
    run: str | None, checkpoint: str, model: str | None, config: Path | None,
    overrides: Sequence[str], *, regraded: bool,
) -> tuple[Choice, int, str, str]:  # fmt: skip
    """The run, the step of its policy, and what to call that, briefly and in full."""
    if model is not None:
        choice = _model_alone(model, config, overrides)
        revision = choice.wanted.config.model.revision
        label = f"{model}@{revision[:12]}" if revision else model
        return choice, 0, label, label
    choice = choose(_run_of(run, config), config if run else None, overrides, new=False)
    refuse_another_model(choice)
    if regraded:  # what was sampled by the code of then is graded by today's
        as_sampled = runs.as_made(choice.chain.config, choice.run, *TRAINING, "sampling")
        choice = replace(choice, chain=as_sampled)
    find = _sampled_step if regraded else which_checkpoint
    step = find(choice.made, checkpoint)
    policy = policy_name(step)
    return choice, step, f"{policy} of {choice.run.name}", f"{policy} of {choice.run}"


def _run_of(run: str | None, config: Path | None) -> str | None:
    """The run that was named, or the one that ``vppo train --config`` makes of a config."""
    if run is None and config is not None:
        return runs.run_of(settings.load(config))[0].name
    return run


def _say_what_may_surprise(asked: EvalConfig, overrides: Sequence[str]) -> None:
    for name in asked.benchmarks:
        if name == "mmmu":
            display.line(
                "note", f"mmmu is {BENCHMARKS[ALIASES[name]].title} here, as in the paper; for plain "
                "MMMU (validation, 900 questions) ask for mmmu_val",
            )  # fmt: skip
        if name == "validation" and any(
            o.startswith(("eval.samples=", "eval.limit=")) for o in overrides
        ):
            display.line(
                "note",
                "validation is always asked in full, checkpoint.validation_samples times each",
            )


def refuse_another_model(choice: Choice) -> None:
    """A run's checkpoint is evaluated as the run loads it: other settings would go unheeded."""
    own, asked = (chain.config.model.keyed("model") for chain in (choice.chain, choice.wanted))
    for name, value in asked.items():
        if value != own[name]:
            raise UserError(
                f"{name} {value}", f"run {choice.run.name} has {own[name]}, and its checkpoints too.",
                "Evaluate another model, or this one otherwise, with --model PATH.",
            )  # fmt: skip


def which_checkpoint(chain: Chain, checkpoint: str) -> int:
    """The step of the checkpoint that is meant; 0 is the starting model.

    Raises:
        UserError: it is not on disk.
    """
    step = pick(chain, checkpoint)
    if step is not None:
        return step
    if checkpoint in ("0", "last"):  # with no checkpoint yet, the last policy is the first
        return 0
    raise UserError(
        f"--checkpoint {checkpoint}", f"run {chain.run.name} has no such checkpoint on disk.",
        f"It has: {' '.join(map(str, [0, *saved(chain)]))}; also: last, best.",
    )  # fmt: skip


def _sampled_step(chain: Chain, checkpoint: str) -> int:
    """The step whose journals are meant; its weights need not be there any more."""
    steps = sorted(
        int(folder.parent.name)
        for folder in chain.run.glob(f"eval/*/{JOURNALS}") if folder.parent.name.isdigit()
    )  # fmt: skip
    named = {"last": steps[-1:], "best": best(chain, steps)[:1]}
    found = named.get(checkpoint, [step for step in steps if str(step) == checkpoint])
    if not found:
        raise UserError(
            f"--checkpoint {checkpoint}", f"run {chain.run.name} has sampled nothing of it.",
            f"Sampled: {' '.join(map(str, steps)) or 'nothing yet'}; also: last, best.",
        )  # fmt: skip
    return found[0]


def _model_alone(model: str, config: Path | None, overrides: Sequence[str]) -> Choice:
    path = Path(model)
    if path.is_file() or not model.strip():
        raise UserError(f"--model {model}", "is not a model folder.", "Name a folder, or a hub id.")
    given = config is not None or any(text.startswith("data.") for text in overrides)
    unused = [] if given else ["data.glyphs.train=1", "data.glyphs.validation=1"]
    quoted = "'" + model.replace("'", "''") + "'"
    asked = settings.load(config, [*unused, *overrides, f"model.path={quoted}"])
    if not given and "validation" in canonical(asked.eval.benchmarks):
        raise UserError(
            "validation", "a model on its own has no validation questions.",
            "Say whose they are, with --config FILE, or ask for another benchmark.",
        )  # fmt: skip
    # As it is on the hub now: other answers than an earlier commit's, which keep their folders.
    asked = hub.resolved(asked)
    where = path.resolve() if path.exists() else path
    chain = Chain(asked, runs.models_folder(str(where)))
    if runs.config_text(chain.run) != runs.marked(asked):
        with file_lock(chain.run / "lock", f"run {chain.run.name}", "", wait=True, over=chain.run):
            runs.write_config(chain.run, asked)
    return Choice(chain, chain)
