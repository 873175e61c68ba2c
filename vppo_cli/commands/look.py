"""``vppo plan``, ``export`` and ``config``: looking without running."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from textwrap import fill, indent
from typing import Any

from rich.markup import escape

from pipelines import checkpoints, runs
from pipelines.chain import ANSWERS, TRAINING, Chain
from pipelines.config import settings
from pipelines.config.hub import named_on_hub
from pipelines.config.schema import Config
from pipelines.disk.part_sources import check_part_sources
from pipelines.disk.step import MANIFEST, Step, read_manifest
from pipelines.disk.step import plan as plan_step
from pipelines.errors import UserError
from pipelines.opening import check_inputs
from vppo_cli.choose import choose
from vppo_cli.screen import capacity, display, facts
from vppo_cli.screen.words import ranges

# -- plan ----------------------------------------------------------------------------------------


def plan(
    run: str | None, config: Path | None, overrides: Sequence[str], *, gpu: str | None = None,
    gpus: int | None = None, response: int | None = None, as_json: bool,
) -> None:  # fmt: skip
    """Print run, keep or stale for every step, with the reason, and what it takes; touch nothing."""
    new = run is None and (
        config is not None or not any(runs.runs_folder().glob(f"*/{runs.CONFIG}"))
    )
    choice = choose(run, config, overrides, new=new)
    check_part_sources(choice.wanted.config)
    check_inputs(choice.wanted)
    rows = plan_rows(choice.wanted)
    variants = list(other_variants(choice.wanted))
    asked = choice.wanted.config
    needs = None
    if capacity.wanted(asked, gpu, gpus, response):
        needs = capacity.count(asked, gpu, gpus, response)
    if as_json:
        found = {"run": choice.run.name, "plan": rows, "also_on_disk": variants}
        display.print_json(found | ({"capacity": needs} if needs else {}))
        return
    display.line("run", str(choice.run))
    for note in [choice.note] if choice.note else []:
        display.line("note", note)
    if named := list(named_on_hub(choice.wanted.config)):
        known = ", ".join(f"{one.name} {one.revision[:12]}" for one in named if one.revision)
        display.line(
            "revisions", known or "of the hub's repositories: resolved when the run begins"
        )
    if needs and all(row["reason"] == "not made yet" for row in rows):
        display.line("plan", f"{facts.in_words(choice.wanted)}; nothing is on disk yet")
        capacity.show(asked, needs)
        return
    display.columns(
        [(row["step"], row["steps"], row["status"], row["reason"]) for row in rows],
        styles=[{"keep": "dim", "stale": "yellow", "run": ""}[row["status"]] for row in rows],
    )
    if any(row["step"] == "rollout" and row["status"] == "stale" for row in rows):
        display.line("note", "a changed update makes later rollouts stale too: the policy that "
                     "sampled them would no longer exist")  # fmt: skip
    for variant in variants:
        display.console.print()
        display.line("on disk", f"{variant['step']} {variant['steps']} also with {variant['settings']}, "
                     "not used by this run")  # fmt: skip
        if variant["stale"]:
            display.line(
                "", f"to go on with it: vppo train --run {choice.run.name} {variant['set']}"
            )
            display.line("", f"stale then: {variant['stale']}")
    todo = sum(row["count"] for row in rows if row["status"] != "keep")
    display.line("would run", f"{todo} steps" if todo else "nothing: every step is on disk")
    if needs:
        display.console.print()
        capacity.show(asked, needs)


def plan_rows(chain: Chain) -> list[dict[str, Any]]:
    """The plan, equal lines of one stage joined; in the order in which they would run."""
    found: dict[tuple[str, str, str], list[Step]] = {}
    for step in chain.all():
        status, reason = plan_step(step)
        found.setdefault((step.name, status, reason), []).append(step)
    return [
        {
            "step": name, "steps": ranges(s.index for s in steps if s.index is not None),
            "status": status, "reason": reason, "count": len(steps),
        }
        for (name, status, reason), steps in found.items()
    ]  # fmt: skip


def other_variants(chain: Chain) -> Iterator[dict[str, Any]]:
    """Steps on disk that were made with other settings, and what going on with those makes stale."""
    groups: dict[tuple[str, str], tuple[dict[str, Any], list[int]]] = {}
    for index in range(1, chain.config.run.steps + 1):
        for step in (chain.rollout(index), chain.score(index), chain.update(index)):
            if not step.path.is_dir():
                continue
            for folder in sorted(step.parent.glob(f"{step.name}-*")):
                if folder == step.path or folder.suffix or not (folder / MANIFEST).is_file():
                    continue
                manifest = read_manifest(folder)
                if manifest["inputs"] != step.inputs:
                    continue
                changed = {
                    k: v for k, v in manifest["settings"].items() if step.settings.get(k) != v
                }
                if any(" " in name for name in changed):  # no setting: the source of a part
                    continue
                key = (step.name, json.dumps(changed, sort_keys=True))
                groups.setdefault(key, (changed, []))[1].append(index)
    for (name, _), (changed, indices) in groups.items():
        overrides = [
            f"{key}={value if isinstance(value, str) else json.dumps(value)}"
            for key, value in changed.items()
        ]
        yield {
            "step": name, "steps": ranges(indices),
            "settings": ", ".join(f"{key} {value}" for key, value in changed.items()),
            "set": " ".join(f"--set {text}" for text in overrides),
            "stale": _stale_with(chain, overrides),
        }  # fmt: skip


def _stale_with(chain: Chain, overrides: list[str]) -> str:
    changed = settings.load(overrides=overrides, base=chain.config.model_dump(mode="json"))
    stale: dict[str, list[int]] = {}
    for step in Chain(changed, chain.run).all():
        if plan_step(step)[0] == "stale":
            stale.setdefault(step.name, []).append(step.index or 0)
    return "; ".join(f"{name} {ranges(indices)}" for name, indices in stale.items())


# -- export ---------------------------------------------------------------------------------------


def export(run: str | None, which: str, out: Path, *, as_json: bool) -> None:
    """Copy a checkpoint's model to a new folder."""
    path = runs.find_run(run)
    step = checkpoints.export(
        runs.as_made(runs.read_config(path), path, *TRAINING, *ANSWERS), which, out
    )
    if as_json:
        display.print_json({"run": path.name, "step": step, "out": str(out)})
        return
    display.line("wrote", f"{out}  (checkpoint {step} of {path.name})")
    display.line("next", f'AutoModelForImageTextToText.from_pretrained("{out}")')


# -- config --------------------------------------------------------------------------------------


def show_config(
    section: str | None, config: Path | None, overrides: Sequence[str], run: str | None
) -> None:
    """Every setting with its value and its meaning."""
    file = config or (runs.config_file(runs.find_run(run)) if run else None)
    values = settings.load(file, overrides)
    names = [
        (name, about) for name, about in settings.setting_names()
        if section in (None, name) or name.startswith(f"{section}.")
    ]  # fmt: skip
    if not names:
        known = list(type(values).model_fields)
        near = get_close_matches(section or "", known, n=1)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise UserError(f"config {section}", "no such section.", f"{hint}Known: {' '.join(known)}.")
    for name, about in names:
        display.console.print(f"[bold]{name}[/bold]  {escape(_value(values, name))}")
        text = indent(fill(about.replace("``", ""), 90), "    ")
        display.console.print(escape(text), style="dim")


def _value(config: Config, name: str) -> str:
    value: Any = config
    for part in name.split("."):
        value = getattr(value, part)
    return json.dumps(value)
