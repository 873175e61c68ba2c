"""Which run, steps and checkpoint a command is about, and with which settings."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from evals.benchmarks.table import canonical
from pipelines import runs
from pipelines.chain import ANSWERS, JOURNALS, OUTSIDE, TRAINING, Chain, gone
from pipelines.checkpoints import best, newest, pick, saved, unnamed
from pipelines.config import hub, settings
from pipelines.disk.files import find
from pipelines.disk.lock import file_lock
from pipelines.errors import UserError
from pipelines.objectives import table
from vppo_cli.screen.results import policy_name


@dataclass(frozen=True)
class Choice:
    """A run as it stands (``chain``) and as it is asked for now (``wanted``); the same if new.

    What trained it stands as the code of then made it; its evaluations are today's.
    """

    chain: Chain
    wanted: Chain
    notes: tuple[str, ...] = ()

    @property
    def run(self) -> Path:
        return self.wanted.run

    @property
    def made(self) -> Chain:
        """The run as it stands, its evaluations too as the code of then made them."""
        return runs.as_made(self.chain.config, self.run, *TRAINING, *ANSWERS)


def choose(name: str | None, config: Path | None, overrides: Sequence[str], *, new: bool) -> Choice:
    """Find the run, or name a new one after its settings.

    Args:
        name: the run's name; none: with ``new`` the run of these settings, else the latest run.
        config: a config file; none: the run's own, or the embedded default for a new run.
        overrides: ``key=value`` settings on top.
        new: whether the command may start a run.
    """
    note = ""
    named = name is not None and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}", name)
    if name is not None and not (named and (runs.runs_folder() / name / runs.CONFIG).is_file()):
        if not new:
            runs.find_run(name)  # says which runs there are
        if not named:
            raise UserError(
                f"--run {settings.shortened(name)}",
                "is not a name (at most 200 letters, digits, dot, dash, underscore).",
                "Runs lie in runs/ (VPPO_RUNS).",
            )
        asked = settings.load(config, overrides)
        path = runs.runs_folder() / name
    elif name is None and (new or config is not None):
        asked = settings.load(config, overrides)
        path, note = runs.run_of(asked)
    else:
        path = runs.find_run(name)
        asked = settings.load(config or runs.config_file(path), overrides, stored=config is None)
    canonical(asked.eval.benchmarks, asked)
    stored = asked
    if (path / runs.CONFIG).is_file():
        try:
            stored = runs.read_config(path)
        except UserError:
            if config is None:
                raise  # given anew, all settings are known
    asked = hub.as_begun(asked, stored, {text.partition("=")[0].strip() for text in overrides})
    chain = runs.as_made(stored, path, *TRAINING)
    wanted = Chain(asked, path, kept=runs.kept(asked, stored, chain.prepare))
    check_model_folder(wanted)
    same = stored == asked and chain.versions == wanted.versions and chain.update(1) == wanted.update(1)
    missing = [(setting, gone(asked, setting)) for setting, held in OUTSIDE.items() if held[0] in wanted.kept]
    notes = [f"{setting} {where} is not there: what was made of it stands" for setting, where in missing if where]
    return Choice(wanted if same else chain, wanted, tuple(filter(None, [note, *notes])))


def check_model_folder(chain: Chain) -> None:
    """See that a model that is named by a path is there, or was when the run's steps were made.

    Raises:
        UserError: it is not.
    """
    path = chain.config.model.path
    if path.startswith(("/", ".", "~")) and not Path(path).exists() and "model.path" not in chain.kept:
        raise UserError(f"model.path: {path}", "no such folder.", "Check the path, and write ~ out.")


def to_train(name: str | None, config: Path | None, overrides: Sequence[str], *, new: bool) -> Choice:
    """``choose``, for what is to be trained or planned: what cannot be is refused before a folder is made.

    Raises:
        UserError: objective, surrogate and what is set of them do not fit each other.
    """
    choice = choose(name, config, overrides, new=new)
    table.check(choice.wanted.config)
    if choice.wanted.config != choice.chain.config or not (choice.run / runs.CONFIG).is_file():
        table.check_read(choice.wanted.config)
    return choice


def begun(choice: Choice) -> tuple[Chain, list[str]]:
    """The run with the commits of what it reads from the hub, resolved where it is new; what to say."""
    chain, notes = choice.wanted, list(choice.notes)
    named = [one for one in hub.named_on_hub(chain.config) if one.setting not in chain.kept]
    unknown = [one for one in named if one.revision is None]
    if not named or all(step.path.is_dir() for step in chain.all()):
        return chain, notes
    if not unknown:
        return chain, notes + list(hub.moved(chain.config))
    if chain.prepare.path.is_dir():  # questions and rollouts are there, of what the hub had then
        names = ", ".join(f"{one.setting} {one.name}" for one in unknown)
        return chain, [*notes, f"begun before revisions were kept: {names} may have changed on the hub"]
    config = hub.resolved(chain.config)
    notes += [
        f"{one.setting} {one.name} is at revision {one.revision or 'unknown'}" for one in hub.named_on_hub(config)
    ]
    return Chain(config, chain.run, kept=chain.kept), notes


# -- steps ---------------------------------------------------------------------------------------


def parse_steps(text: str | None, chain: Chain, lowest: int = 1) -> list[int]:
    """``3`` or ``3..5`` -> the steps.

    Raises:
        UserError: it is neither, or lies outside the run.
    """
    if text is None:
        return []
    first, _, last = text.partition("..")
    if not all(number.isdecimal() and len(number) < 1000 for number in (first, last or first)):
        raise UserError(f"--steps {settings.shortened(text)}", "is neither a step nor a range.", "Write 3 or 3..5.")
    steps = range(int(first), int(last or first) + 1)
    if not steps or steps[0] < lowest or steps[-1] > chain.config.run.steps:
        raise UserError(
            f"--steps {settings.shortened(text)}",
            f"the run has steps {lowest}..{chain.config.run.steps}.",
            "Extend it with --set run.steps=N.",
        )
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
            f"--stage {stage}",
            f"run {chain.run.name} has no {before} on disk to work from.",
            f"Make it first: vppo train --run {chain.run.name} --stage {before}",
        )
    return steps


# -- checkpoints and models ------------------------------------------------------------------------


def which_policy(
    run: str | None, checkpoint: str, model: str | None, config: Path | None, overrides: Sequence[str], *, sampled: bool
) -> tuple[Choice, int, str, str]:
    """The run, the step of its policy, and what to call that, briefly and in full.

    Args:
        checkpoint: last, best, or a step; 0 is the starting model.
        model: evaluate this one on its own instead.
        sampled: of what is journalled, rather than of the weights on disk.

    Raises:
        UserError: there is none; a model that is no folder, or whose validation questions nobody names.
    """
    if model is not None:
        choice = _model_alone(model, config, overrides)
        revision = choice.wanted.config.model.revision
        label = f"{model}@{revision[:12]}" if revision else model
        return choice, 0, label, label
    choice = choose(_run_of(run, config, overrides), config if run else None, overrides, new=False)
    refuse_another_model(choice)
    if sampled:  # what was sampled by the code of then is graded by today's
        as_sampled = runs.as_made(choice.chain.config, choice.run, *TRAINING, "sampling")
        choice = replace(choice, chain=as_sampled)
    find = _sampled_step if sampled else which_checkpoint
    step = find(choice.made, checkpoint)
    policy = policy_name(step)
    if not step and checkpoint == "last":
        note = "the run has no checkpoint yet: this is the model that it starts from"
        choice = replace(choice, notes=(*choice.notes, note))
    return choice, step, f"{policy} of {choice.run.name}", f"{policy} of {choice.run}"


def _run_of(run: str | None, config: Path | None, overrides: Sequence[str]) -> str | None:
    """The run that was named, or the one that ``vppo train`` makes of a config and settings; how to evaluate, and on
    what machine, makes it no other.

    Raises:
        UserError: there is no such run.
    """
    if run is not None or config is None:
        return run
    training = [text for text in overrides if not text.startswith("eval.")]

    def made_of(given: Sequence[str]) -> Path:
        return runs.run_of(settings.load(config, given))[0]

    for path in map(made_of, (overrides, training)):
        if (path / runs.CONFIG).is_file() or not training:
            return path.name
    given = " ".join(f"--set {text}" for text in training)
    alone = made_of(())
    there = f" {alone.name} is that of the file alone." if (alone / runs.CONFIG).is_file() else ""
    raise UserError(
        f"--config {config} {given}",
        "no run was made with these settings.",
        f"Name one: --run NAME (see vppo runs).{there}",
    )


def refuse_another_model(choice: Choice) -> None:
    """A run's checkpoint is evaluated as the run loads it: other settings would go unheeded."""
    own, asked = (chain.config.model.keyed("model") for chain in (choice.chain, choice.wanted))
    for name, value in asked.items():
        if value != own[name]:
            raise UserError(
                f"{name} {value}",
                f"run {choice.run.name} has {own[name]}, and its checkpoints too.",
                "Evaluate another model, or this one otherwise, with --model PATH.",
            )


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
    raise unnamed(chain, f"--checkpoint {checkpoint}", checkpoint, [0, *saved(chain)])


def _sampled_step(chain: Chain, checkpoint: str) -> int:
    """The step whose journals are meant; its weights need not be there any more."""
    steps = sorted(
        int(folder.parent.name) for folder in find(chain.run, f"eval/*/{JOURNALS}") if folder.parent.name.isdigit()
    )
    named = {"last": steps[-1:], "best": best(chain, steps)[:1]}
    found = named.get(checkpoint, [step for step in steps if str(step) == checkpoint])
    if not found:
        can = [name for name, steps_of in named.items() if steps_of]
        why = "sampled nothing of it."
        if checkpoint == "best":
            why = "sampled nothing of a checkpoint that was measured on the validation questions, so none is the best."
        raise UserError(
            f"--checkpoint {checkpoint}",
            f"run {chain.run.name} has {why}",
            f"Sampled: {' '.join(map(str, steps)) or 'nothing yet'}{'; also: ' + ', '.join(can) if can else ''}.",
        )
    return found[0]


def _model_alone(model: str, config: Path | None, overrides: Sequence[str]) -> Choice:
    """A model on its own: a run of nothing but its evaluations."""
    path = Path(model)
    if path.is_file() or not model.strip():
        raise UserError(f"--model {model}", "is not a model folder.", "Name a folder, or a hub id.")
    given = config is not None or any(text.startswith("data.") for text in overrides)
    unused = [] if given else ["data.glyphs.train=1", "data.glyphs.validation=1"]
    quoted = "'" + model.replace("'", "''") + "'"
    asked = settings.load(config, [*unused, *overrides, f"model.path={quoted}"])
    names = canonical(asked.eval.benchmarks, asked)
    if not given and "validation" in names:
        raise UserError(
            "validation",
            "a model on its own has no validation questions.",
            "Say whose they are, with --config FILE, or ask for another benchmark.",
        )
    if config is None and (own := [name for name in names if name in asked.eval.sources]):
        raise UserError(
            f"eval.sources.{own[0]}",
            "is asked as in training (instruction, sampling, pixels), and a model on its own was in none.",
            "Say how, with --config FILE.",
        )
    # As it is on the hub now: other answers than an earlier commit's, which keep their folders.
    asked = hub.resolved(asked)
    where = path.resolve() if path.exists() else path
    chain = Chain(asked, runs.models_folder(str(where)))
    check_model_folder(chain)
    if runs.config_text(chain.run) != runs.marked(asked):
        with file_lock(chain.run / "lock", f"run {chain.run.name}", "", wait=True, over=chain.run):
            runs.write_config(chain.run, asked)
    return Choice(chain, chain)
