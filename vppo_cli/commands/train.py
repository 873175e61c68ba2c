"""``vppo train`` and ``vppo prepare``."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from pipelines import runs
from pipelines.chain import Chain
from pipelines.checkpoints import newest
from pipelines.config import hub
from pipelines.config.settings import shortened
from pipelines.errors import UserError
from pipelines.ranks.ranks import ranks
from pipelines.run import train, train_stage
from vppo_cli.choose import Choice, choose
from vppo_cli.screen import display
from vppo_cli.screen.live import watching
from vppo_cli.screen.results import evaluation_rows, write_report, write_reports

STAGES = ("prepare", "rollout", "score", "update", "checkpoint", "eval")


def train_all(
    name: str | None,
    config: Path | None,
    overrides: Sequence[str],
    until: int | None,
    *,
    as_json: bool,
) -> None:
    """Make everything that is missing, then show the evaluation."""
    everyone = ranks()
    chain, notes = everyone.on_main(lambda: begun(choose(name, config, overrides, new=True)))
    with watching(chain, as_json=as_json) as watch:
        watch.begin()
        for note in notes:
            watch.note(note)
        made = train(chain, watch, until=until)
    if not everyone.main:
        return
    write_reports(chain, again=bool(made))
    rows = evaluation_rows(chain)
    if as_json:
        display.print_json({"run": chain.run.name, "made": len(made), "evaluations": rows})
        return
    if not made:
        last = min(until or chain.config.run.steps, chain.config.run.steps)
        display.line("done", f"nothing to do: all {last} steps are on disk with these settings")
    display.evaluation_table(rows)
    display.next_steps(chain)


def train_one(
    name: str | None, config: Path | None, overrides: Sequence[str], stage: str, steps: str | None,
    *, force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Make one stage again from what is on disk."""
    if stage not in STAGES:
        near = difflib.get_close_matches(stage, STAGES, n=1)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise UserError(
            f"--stage {stage}", "no such stage.", f"{hint}Known: all {' '.join(STAGES)}."
        )
    everyone = ranks()
    first = 0 if stage == "eval" else 1  # 0 is the starting model

    def decide() -> tuple[Choice, list[int], list[str]]:
        choice = choose(name, config, overrides, new=stage in ("prepare", "rollout"))
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
    if stage == "eval":
        for step in chosen:
            write_report(choice.chain, choice.wanted.config, step)
    if as_json:
        display.print_json(
            {"run": choice.run.name, "stage": stage, "made": [s.path.name for s in made]}
        )
    else:
        display.made(choice.chain, choice.wanted, stage, made, overrides)


def begun(choice: Choice) -> tuple[Chain, list[str]]:
    """The run with the commits of what it reads from the hub, resolved where it is new; what to say."""
    chain, notes = choice.wanted, [choice.note] if choice.note else []
    named = list(hub.named_on_hub(chain.config))
    unknown = [one for one in named if one.revision is None]
    if not named or all(step.path.is_dir() for step in chain.all()):
        return chain, notes
    if not unknown:
        return chain, notes + list(hub.moved(chain.config))
    if chain.prepare.path.is_dir():  # questions and rollouts are there, of what the hub had then
        names = ", ".join(f"{one.setting} {one.name}" for one in unknown)
        return chain, [
            *notes,
            f"begun before revisions were kept: {names} may have changed on the hub",
        ]
    config = hub.resolved(chain.config)
    notes += [
        f"{one.setting} {one.name} is at revision {one.revision or 'unknown'}"
        for one in hub.named_on_hub(config)
    ]
    return Chain(config, chain.run), notes


def parse_steps(text: str | None, chain: Chain, lowest: int = 1) -> list[int]:
    """``3`` or ``3..5`` -> the steps.

    Raises:
        UserError: it is neither, or lies outside the run.
    """
    if text is None:
        return []
    first, _, last = text.partition("..")
    if not all(number.isdecimal() and len(number) < 1000 for number in (first, last or first)):
        raise UserError(
            f"--steps {shortened(text)}", "is neither a step nor a range.", "Write 3 or 3..5."
        )
    steps = range(int(first), int(last or first) + 1)
    if not steps or steps[0] < lowest or steps[-1] > chain.config.run.steps:
        raise UserError(
            f"--steps {shortened(text)}", f"the run has steps {lowest}..{chain.config.run.steps}.",
            "Extend it with --set run.steps=N.",
        )  # fmt: skip
    return list(steps)


def default_steps(chain: Chain, stage: str) -> list[int]:
    """The training steps whose inputs for this stage are on disk.

    Raises:
        UserError: there are none.
    """
    last = chain.config.run.steps
    if stage == "prepare":
        return [0]
    if stage == "eval":
        done = newest(chain, last)
        return [0, done] if chain.config.eval.baseline and done else [done]
    ready = {
        "rollout": lambda t: t == 1 or chain.update(t - 1).path.is_dir(),
        "score": lambda t: chain.rollout(t).path.is_dir(),
        "update": lambda t: chain.score(t).path.is_dir(),
        "checkpoint": lambda t: chain.update(t).path.is_dir() and chain.has_checkpoint(t),
    }[stage]
    steps = [t for t in range(1, last + 1) if ready(t)]
    if not steps:
        before = {"score": "rollout", "update": "score", "checkpoint": "update"}[stage]
        raise UserError(
            f"--stage {stage}", f"run {chain.run.name} has no {before} on disk to work from.",
            f"Make it first: vppo train --run {chain.run.name} --stage {before}",
        )  # fmt: skip
    return steps


def rebuild_tiny(out: Path, steps: int | None, *, as_json: bool) -> None:
    """Build and warm-start the tiny model again, as the shipped one was."""
    if out.exists() and any(out.iterdir()):
        raise UserError(str(out), "is not empty.", "Name a new folder with --out.")
    from pipelines.embedded.tiny import STEPS, rebuild

    with display.bar("warm start", as_json=as_json) as progress:
        metrics = rebuild(out, steps=steps or STEPS, progress=progress)
    if as_json:
        display.print_json({"out": str(out), **metrics})
    else:
        display.line("wrote", f"{out}  {display.summary(metrics)}")
        display.line("next", f"vppo train --set model.path={out}")
