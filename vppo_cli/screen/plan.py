"""``vppo plan``: what would run and what would be kept, as rows and on a terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from pipelines.chain import Chain
from pipelines.config import settings
from pipelines.config.hub import named_on_hub
from pipelines.disk.files import find
from pipelines.disk.sharing import others
from pipelines.disk.step import MANIFEST, Step, read_manifest
from pipelines.disk.step import plan as plan_step
from pipelines.tracking.timing import TIMED
from pipelines.words import counted
from vppo_cli.screen import capacity, display, facts
from vppo_cli.screen.words import numbers, ranges


def show(
    chain: Chain,
    notes: Sequence[str],
    rows: Sequence[dict[str, Any]],
    variants: Sequence[dict[str, Any]],
    needs: dict[str, Any] | None,
) -> None:
    """Print it.

    Args:
        notes: of how the run was found, and what it was made of.
        rows: as of ``plan_rows``.
        variants: as of ``other_variants``.
        needs: as of ``capacity.count``; None: not asked for.
    """
    display.line("run", str(chain.run))
    for note in notes:
        display.line("note", note)
    if named := list(named_on_hub(chain.config)):
        known = ", ".join(f"{one.name} {one.revision[:12]}" for one in named if one.revision)
        display.line("revisions", known or "of the hub's repositories: resolved when the run begins")
    if needs and all(row["reason"] == "not made yet" for row in rows):
        display.line("plan", f"{facts.in_words(chain)}; nothing is on disk yet")
        capacity.show(chain.config, needs)
        return
    display.columns(
        [(row["step"], row["steps"], row["status"], row["reason"]) for row in rows],
        styles=[{"keep": "dim", "stale": "yellow", "run": ""}[row["status"]] for row in rows],
    )
    if any(row["step"] == "rollout" and row["status"] == "stale" for row in rows):
        display.line(
            "note",
            "a changed update makes later rollouts stale too: the policy that sampled them would no longer exist",
        )
    for variant in variants:
        display.console.print()
        display.line(
            "on disk", f"{variant['step']} {variant['steps']} also with {variant['settings']}, not used by this run"
        )
        if variant["stale"]:
            display.line("", f"to go on with it: vppo train --run {chain.run.name} {variant['set']}")
            display.line("", f"stale then: {variant['stale']}")
    display.line("would run", would_run(rows))
    if needs:
        display.console.print()
        capacity.show(chain.config, needs)


def would_run(rows: Sequence[dict[str, Any]]) -> str:
    """``15 stages, of 2 training steps``: how much of a plan is to be made."""
    missing = [row for row in rows if row["status"] != "keep"]
    stages = sum(row["count"] for row in missing)
    if not stages:
        return "nothing: every step is on disk"
    steps = set[int]().union(*(numbers(row["steps"]) for row in missing if row["step"] in TIMED))
    of = f", of {counted(len(steps), 'training step')}" if steps else ""
    return counted(stages, "stage") + of


def plan_rows(chain: Chain) -> list[dict[str, Any]]:
    """The plan, equal lines of one stage joined; in the order in which they would run."""
    found: dict[tuple[str, str, str], list[Step]] = {}
    for step in chain.all():
        status, reason = plan_step(step)
        if other := next(others(step), None):
            reason = f"run {other.parent.name} has it: taken over"
        found.setdefault((step.name, status, reason), []).append(step)
    return [
        {
            "step": name,
            "steps": ranges(s.index for s in steps if s.index is not None),
            "status": status,
            "reason": reason,
            "count": len(steps),
        }
        for (name, status, reason), steps in found.items()
    ]


def other_variants(chain: Chain) -> Iterator[dict[str, Any]]:
    """Steps on disk that were made with other settings, and what going on with those makes stale."""
    groups: dict[tuple[str, str], tuple[dict[str, Any], list[int]]] = {}
    for index in range(1, chain.config.run.steps + 1):
        for step in (chain.rollout(index), chain.score(index), chain.update(index)):
            if not step.path.is_dir():
                continue
            for folder in find(step.parent, f"{step.name}-*"):
                if folder == step.path or folder.suffix or not (folder / MANIFEST).is_file():
                    continue
                manifest = read_manifest(folder)
                if manifest["inputs"] != step.inputs:
                    continue
                changed = {k: v for k, v in manifest["settings"].items() if step.settings.get(k) != v}
                if any(" " in name for name in changed):  # no setting: the source of a part
                    continue
                key = (step.name, json.dumps(changed, sort_keys=True))
                groups.setdefault(key, (changed, []))[1].append(index)
    for (name, _), (changed, indices) in groups.items():
        overrides = [
            f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in changed.items()
        ]
        yield {
            "step": name,
            "steps": ranges(indices),
            "settings": ", ".join(f"{key} {value}" for key, value in changed.items()),
            "set": " ".join(f"--set {text}" for text in overrides),
            "stale": _stale_with(chain, overrides),
        }


def _stale_with(chain: Chain, overrides: list[str]) -> str:
    changed = settings.load(overrides=overrides, base=chain.config.model_dump(mode="json"))
    stale: dict[str, list[int]] = {}
    for step in Chain(changed, chain.run, kept=chain.kept).all():
        if plan_step(step)[0] == "stale":
            stale.setdefault(step.name, []).append(step.index or 0)
    return "; ".join(f"{name} {ranges(indices)}" for name, indices in stale.items())
