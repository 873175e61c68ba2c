"""Two groups of runs side by side: each a method, trained with several seeds and asked the same questions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial, reduce
from pathlib import Path
from typing import Any

import numpy as np

from evals.compare import (
    OTHERWISE,
    Change,
    Comparison,
    MeanChange,
    edited_since,
    how_asked,
    is_current,
    load,
    made_as_far_as_known,
    made_otherwise,
    marks_of,
    run_of,
    same_questions,
    unknown,
    unvaried,
)
from evals.numbers.statistics import Array, average, interval, over_seeds, resampled
from evals.report.build import REPORT
from evals.rewards import comparable, rewards_of
from pipelines import runs
from pipelines.chain import TRAINING
from pipelines.config.schema import Config
from pipelines.errors import UserError
from pipelines.words import counted, who_has

FEW = 5
"""Fewer seeds than these say little of how much seeds differ."""

SECTIONS = ("data", "model", "rollout", "reward", "score", "update", "published", "stages")
"""Of a config, what decides the weights that a run ends with, beside its seed and number of steps."""


@dataclass(frozen=True)
class Member:
    """One run of a group, or a report by itself, of which neither seed nor settings are known."""

    name: str
    results: dict[str, dict[str, Any]]
    """By benchmark, those of the last step."""
    config: Config | None = None
    data: str = ""
    """The prepared data that it was trained on."""
    note: str = ""
    """What is not known of it."""
    made_with: dict[str, str] = field(default_factory=dict)
    """``runs.made_with``."""

    @property
    def seed(self) -> int | None:
        return self.config.seed if self.config else None


@dataclass(frozen=True)
class RunGroup:
    """The runs of one method; ``left_out`` says of each other run of that name why it is not among them."""

    pattern: str
    members: list[Member]
    left_out: list[str]


@dataclass(frozen=True)
class GroupChange(Change):
    """One benchmark's mean accuracy over the runs of two groups, over the questions that all of them have."""

    before_runs: dict[str, float]
    after_runs: dict[str, float]


@dataclass(frozen=True)
class GroupComparison(Comparison):
    """The changes by benchmark between two groups."""

    over: str
    """What the intervals are over: ``questions``, or ``seeds and questions``."""
    paired: bool
    """Whether seeds were drawn in pairs."""
    settings: dict[str, list[str]]
    """What else than the seed differs between the groups: [in A, in B]."""
    made_with: dict[str, dict[str, list[str]]]
    """Versions and commits that are not the same in all runs: name -> version -> runs."""


def open_group(pattern: str) -> RunGroup:
    """The runs that fit a shell pattern, by seed; or one run, folder or file by its name.

    Raises:
        UserError: there is none; two are one run twice.
    """
    if not runs.is_pattern(pattern):
        run = runs.runs_folder() / pattern
        if (run / runs.CONFIG).is_file():
            return group_of(pattern, [run])
        return RunGroup(pattern, [Member(pattern, _by_benchmark(load(pattern, rewards=True)[1]))], [])
    return group_of(pattern, runs.matching(pattern))


def group_of(name: str, paths: Iterable[Path]) -> RunGroup:
    """These runs as one group, by seed; ``members`` may be empty.

    Raises:
        UserError: two are one run twice; a file is damaged.
    """
    found = [_member(path) for path in paths]
    members = sorted((one for one in found if isinstance(one, Member)), key=lambda one: (one.seed or 0, one.name))
    _no_run_twice(members)
    return RunGroup(name, members, [one for one in found if isinstance(one, str)])


def _member(path: Path) -> Member | str:
    """A run with the evaluation of its last step; or, in words, why there is none that counts."""
    config = runs.read_config(path)
    report = path / "eval" / f"{config.run.steps:04d}" / REPORT
    if not report.is_file():
        return _unfinished(path)
    chain, results = runs.as_made(config, path, *TRAINING), load(str(report), rewards=True)[1]
    current = is_current(chain, config.run.steps, results)
    if current is False:
        again = f"vppo train --run {path.name}"
        return f"{path.name} is left out: its evaluation is of {OTHERWISE} ({again})"
    note = edited_since(chain) if current else unknown(path.name)
    made = made_as_far_as_known(path)
    return Member(path.name, _by_benchmark(results), config, chain.prepare.path.name, note, made)


def _unfinished(path: Path) -> str:
    steps, state = runs.read_config(path).run.steps, runs.read_state(path).state
    fix = f"vppo eval --run {path.name}" if state == "finished" else f"vppo train --run {path.name}"
    return f"{path.name} is left out: {state}, without an evaluation of its last step, {steps} ({fix})"


def _by_benchmark(results: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {result["benchmark"]: result for result in results}


def _no_run_twice(members: Sequence[Member]) -> None:
    """The same seed and settings give the same run: it would count as two seeds."""
    known: dict[str, str] = {}
    for one in members:
        key = json.dumps([one.seed, one.data, _decides(one)], sort_keys=True)
        if key in known:
            raise UserError(
                f"{known[key]}, {one.name}",
                f"are one run twice: the same seed, {one.seed}, and the same settings.",
                "Repeats of a method differ in their seed: --set seed=1; or write a pattern that fits one of the two.",
            )
        known[key] = one.name


def compare_groups(before: RunGroup, after: RunGroup) -> GroupComparison:
    """The mean over the runs of each group, by benchmark, over the questions that all runs have; and the difference.

    Questions are drawn again as in ``compare``, the same for every run. Seeds are drawn again too, where both
    groups have several: in pairs where both have the same over the same data, so that what two runs share by the
    order of prompts and by their draws cancels; else group by group.

    Raises:
        UserError: a group has no evaluated run; a run is in both; profile, grader or what a
            question asks are not the same in all runs; no question is common to all.
    """
    _apart(before, after)
    everyone = [*before.members, *after.members]
    seeds = min(len(before.members), len(after.members)) > 1
    paired = seeds and _paired(before.members, after.members)
    notes = [*before.left_out, *after.left_out, *(one.note for one in everyone if one.note)]
    changes: list[Change] = []
    draws: list[Array] = []
    for name in dict.fromkeys(name for one in everyone for name in one.results):
        lacking = [one.name for one in everyone if name not in one.results]
        if lacking:
            notes.append(f"{name}: not asked of {', '.join(lacking)}; left out")
            continue
        asked = {one.name: one.results[name] for one in everyone}
        shared, found = _common(name, asked)
        notes += found
        if shared:
            lists, found = comparable(name, asked)
            notes += found
            owners: dict[str, str] = before.members[0].results[name].get("clusters_of", {})
            how = Drawn(name, shared, [owners.get(q, q) for q in shared], seeds, paired)
            change, difference_R = _change(how, before.members, after.members, lists)
            changes.append(change)
            draws.append(difference_R)
            notes += unvaried(name, difference_R)
    if not changes:
        raise UserError(
            "vppo compare", "no question was asked of all runs.", "; ".join(notes) or "Evaluate them alike."
        )
    mean = average(draws, [change.change.mean for change in changes]) if len(draws) > 1 else None
    notes += [note for group in (before, after) for note in _inside(group)]
    notes += _few(before, after)
    over = "seeds and questions" if seeds else "questions"
    made_with = made_otherwise({one.name: one.made_with for one in everyone})
    return GroupComparison(changes, mean, notes, over, paired, _between(before, after), made_with)


def _apart(before: RunGroup, after: RunGroup) -> None:
    """Refuse groups that are empty or share a run."""
    twice = sorted({one.name for one in before.members} & {one.name for one in after.members})
    if twice:
        raise UserError(
            "vppo compare", f"{', '.join(twice)}: in both groups.", "Write patterns that fit different runs."
        )
    for group in (before, after):
        if not group.members:
            missing = "none of its runs has an evaluation of its last step as it is now."
            raise UserError(group.pattern, missing, "; ".join(group.left_out))


@dataclass(frozen=True)
class Drawn:
    """What is drawn again of a benchmark."""

    benchmark: str
    questions: list[str]
    """Those that all runs have, and"""
    clusters: list[str]
    """the cluster of each."""
    seeds: bool
    """Whether seeds are drawn too,"""
    paired: bool
    """and in pairs."""


def _change(
    how: Drawn, before: Sequence[Member], after: Sequence[Member], lists: Sequence[str]
) -> tuple[GroupChange, Array]:
    """One benchmark's change, those of the ``lists`` of its rewards with it, and its difference's resamples."""

    def values(group: Sequence[Member], of: Callable[[dict[str, Any]], list[float]]) -> Array:
        return np.array([of(one.results[how.benchmark]) for one in group])

    first_SQ, second_SQ = (values(group, partial(marks_of, questions=how.questions)) for group in (before, after))
    found, difference_R = _difference(how, first_SQ, second_SQ)
    rewards = {}
    for name in lists:
        paid = partial(rewards_of, name=name, questions=how.questions)
        rewards[name], _ = _difference(how, values(before, paid), values(after, paid))
    return GroupChange(
        how.benchmark,
        len(how.questions),
        found.before,
        found.after,
        found.change,
        {one.name: float(mean) for one, mean in zip(before, first_SQ.mean(1), strict=True)},
        {one.name: float(mean) for one, mean in zip(after, second_SQ.mean(1), strict=True)},
        rewards=rewards,
    ), difference_R


def _difference(how: Drawn, first_SQ: Array, second_SQ: Array) -> tuple[MeanChange, Array]:
    """The change of the mean over seeds and questions of a value [S, Q] a group, and its difference's resamples."""
    first_S, second_S = first_SQ.mean(1), second_SQ.mean(1)
    first_SR, second_SR = (
        resampled(values_SQ, how.clusters, stream=how.benchmark) for values_SQ in (first_SQ, second_SQ)
    )
    if how.paired:
        difference_R = over_seeds(second_SR - first_SR, second_S - first_S, len(first_S) - 1, "pairs")
    elif how.seeds:
        freedom = len(first_S) + len(second_S) - 2
        difference_R = over_seeds(second_SR, second_S, freedom, "B") - over_seeds(first_SR, first_S, freedom, "A")
    else:
        difference_R = second_SR.mean(0) - first_SR.mean(0)
    old, new = float(first_S.mean()), float(second_S.mean())
    return MeanChange(old, new, interval(new - old, difference_R)), difference_R


def _paired(before: Sequence[Member], after: Sequence[Member]) -> bool:
    """Whether both groups have the same seeds, each once, over the same data."""
    first, second = ([(one.seed, one.data) for one in members] for members in (before, after))
    return first == second and len({*first}) == len(first) and None not in dict(first)


def _common(name: str, asked: dict[str, dict[str, Any]]) -> tuple[list[str], list[str]]:
    """The questions that all runs have, and what else differs in how a benchmark was asked.

    Raises:
        UserError: profile or grader differ, or what was asked under the same ids.
    """
    same_questions(name, asked)
    told = {run: how_asked(result) | {"seed": None} for run, result in asked.items()}  # seeds are meant to differ
    for what in ("profile", "grader"):
        ways = _ways({run: found.pop(what) for run, found in told.items()})
        if len(ways) > 1:
            raise UserError(
                name,
                f"the runs differ in their {what}: {who_has(ways)}.",
                "Their accuracies are no repeats of each other. Evaluate them alike (vppo eval), or leave runs out.",
            )
    notes = []
    questions = [result["right"].keys() for result in asked.values()]
    shared = [q for q in questions[0] if all(q in others for others in questions)]
    left = len(set[str]().union(*questions)) - len(shared)
    if left:
        are = "is" if left == 1 else "are"
        notes.append(f"{name}: {counted(left, 'question')} {are} not in all runs and {are} left out")
    for what in sorted({key for found in told.values() for key in found}):
        ways = _ways({run: found.get(what) for run, found in told.items()})
        if len(ways) > 1:
            notes.append(f"{name}: {what} {who_has(ways)}")
    return shared, notes


def _decides(one: Member) -> dict[str, Any]:
    """The settings that decide a run's weights, its seed left out."""
    if one.config is None:
        return {}
    return {**one.config.holds(*SECTIONS), "run.steps": one.config.run.steps}


def _value(one: Member, name: str) -> Any:
    assert one.config is not None
    try:
        return reduce(getattr, name.split("."), one.config)
    except AttributeError:  # a key's own name for something
        return _decides(one).get(name)


def _differing(members: Sequence[Member]) -> dict[str, dict[str, Any]]:
    """Settings that decide weights and are not the same in all: name -> run -> value."""
    known = [one for one in members if one.config]
    held = [_decides(one) for one in known]
    names = dict.fromkeys(name for found in held for name in found)
    missing = object()
    return {
        name: {one.name: _value(one, name) for one in known}
        for name in names
        if any(found.get(name, missing) != held[0].get(name, missing) for found in held)
    }


def _inside(group: RunGroup) -> list[str]:
    """What differs inside a group beside the seed."""
    found = [f"{name} {who_has(_ways(values))}" for name, values in _differing(group.members).items()]
    return [f"{group.pattern}: its runs differ in {'; '.join(found)}"] if found else []


def runs_differ(before: str, after: str) -> dict[str, list[str]]:
    """In what settings two runs differ that decide weights, and the seed: [in A, in B]; nothing where one is no run."""
    members = [Member(name, {}, runs.read_config(found[0])) for name in (before, after) if (found := run_of(name))]
    if len(members) < 2:
        return {}
    seeds = [str(one.seed) for one in members]
    return ({"seed": seeds} if seeds[0] != seeds[1] else {}) | {
        name: [_as_text(value) for value in values.values()] for name, values in _differing(members).items()
    }


def _between(before: RunGroup, after: RunGroup) -> dict[str, list[str]]:
    """What all runs of one group have and all of the other have otherwise."""
    inside = {name for group in (before, after) for name in _differing(group.members)}
    found = {}
    for name, values in _differing([*before.members, *after.members]).items():
        if name not in inside:
            found[name] = list(_ways(values))
    return found


def _ways(values: dict[str, Any]) -> dict[str, list[str]]:
    """Each value and the runs that have it."""
    ways: dict[str, list[str]] = {}
    for run, value in values.items():
        ways.setdefault(_as_text(value), []).append(run)
    return ways


def _as_text(value: Any) -> str:
    """A setting as it is shown."""
    return "none" if value is None else value if isinstance(value, str) else json.dumps(value, default=str)


def _few(before: RunGroup, after: RunGroup) -> list[str]:
    """An honest word where there are too few seeds."""
    sizes = [(group.pattern, len(group.members)) for group in (before, after)]
    single = [name for name, size in sizes if size == 1]
    if single:
        has = "has one run" if len(single) == 1 else "have one run each"
        return [
            f"{' and '.join(single)} {has}: the intervals are over questions only, and say nothing of "
            "what other seeds would give"
        ]
    fewest = min(size for _, size in sizes)
    if fewest < FEW:
        return [f"{fewest} seeds say little of how much seeds differ: the intervals are wide for it, and rough"]
    return []
