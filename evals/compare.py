"""Two evaluations side by side, question by question."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import floor, log10
from pathlib import Path
from typing import Any

import numpy as np

from evals.numbers.statistics import Array, Interval, average, interval, resampled
from evals.report.build import REPORT, read
from evals.rewards import REWARDS, comparable, rewards_of, with_rewards
from pipelines.chain import EVALUATIONS, TRAINING, Chain
from pipelines.config.schema import profile_name
from pipelines.disk.files import find
from pipelines.disk.records import RESULTS
from pipelines.disk.step import checked, is_there, unreadable
from pipelines.errors import UserError
from pipelines.runs import CONFIG, as_made, like, made_with, read_config, runs_folder
from pipelines.words import counted


@dataclass(frozen=True)
class MeanChange:
    """A mean over questions in two evaluations."""

    before: float
    after: float
    change: Interval

    @property
    def places(self) -> int:
        """In how many decimals to print it: three, or as many as show the interval in two digits."""
        width = self.change.high - self.change.low
        return min(max(3, 1 - floor(log10(width))), 9) if width > 0 else 3

    def as_row(self) -> dict[str, Any]:
        """``difference``, ``difference_interval`` and their ``places``, for a table."""
        ends = [self.change.low, self.change.high]
        return {"difference": self.change.mean, "difference_interval": ends, "places": self.places}


@dataclass(frozen=True)
class Change:
    """One benchmark's accuracy in two evaluations, over the questions that both have."""

    benchmark: str
    questions: int
    before: float
    after: float
    change: Interval
    rewards: dict[str, MeanChange] = field(default_factory=dict, kw_only=True)
    """Of a reward of one's own, each list by its name, where both have it of the same function."""


@dataclass(frozen=True)
class Comparison:
    """The changes by benchmark, their unweighted mean (None for one benchmark), and what to mind."""

    changes: list[Change]
    average: Interval | None
    notes: list[str]

    def regressions(self, below: float) -> list[str]:
        """What changed by less than ``below`` (a fraction) for certain: the whole interval is."""
        named = [(change.benchmark, change.change) for change in self.changes]
        if self.average:
            named.append(("average", self.average))
        return [name for name, interval in named if interval.high < below]


def load(name: str, *, rewards: bool = False) -> tuple[str, list[dict[str, Any]]]:
    """(model, results) of a report.json or results.json, of the folder of one, or of a run.

    Of a run, the report of its latest step.

    Args:
        rewards: also read those of a reward of one's own by question (``with_rewards``), which are beside the file.

    Raises:
        UserError: there is no evaluation by that name, or it is damaged.
    """
    file = _find(name)
    try:
        found = json.loads(checked(file).read_bytes() if file.name == RESULTS else file.read_bytes())
        if "results" in found:
            found = read(file)
        results = found.get("results", [found])
        for result in results:
            _check(result)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise unreadable(
            file,
            error,
            f"is not a report of vppo eval ({type(error).__name__}: {error}).",
            f"Give a {REPORT} or {RESULTS} that vppo eval wrote.",
        ) from error
    if rewards:
        results = [with_rewards(result, file) for result in results]
    return str(found.get("model", name)), results


def run_of(name: str) -> tuple[Path, int] | None:
    """The run, and the step of its policy, whose report ``load(name)`` takes; None where it is no run's."""
    file = _find(name).absolute()
    step, run = file.parent.name, file.parent.parent.parent
    theirs = file.name == REPORT and file.parent.parent.name == EVALUATIONS and step.isdecimal()
    return (run, int(step)) if theirs and (run / CONFIG).is_file() else None


def remark(name: str) -> str:
    """What to say of the evaluation that ``load(name)`` takes where it is a run's, but not of the run as it is now."""
    found = run_of(name)
    if found is None:
        return ""
    run, step = found
    edited = ""
    try:
        chain = as_made(read_config(run), run, *TRAINING)
        current, edited = is_current(chain, step, load(name)[1]), edited_since(chain)
    except UserError:  # what the run needs is not here, so that nothing can be told
        current = None
    told = {True: edited, False: f"{run.name}: step {step} was evaluated with {OTHERWISE}", None: unknown(run.name)}
    return told[current]


def edited_since(chain: Chain) -> str:
    """What to say of a run whose parts, data or model are others now than when its steps were made; "" if none."""
    edited = ", ".join(chain.edited())
    again = f"vppo plan --run {chain.run.name} says what would be made again"
    return f"{chain.run.name}: edited since its steps were made: {edited}; {again}" if edited else ""


def made_run(name: str) -> dict[str, dict[str, str]]:
    """The run whose report ``load(name)`` takes -> what made it; none where it is no run's."""
    found = run_of(name)
    return {found[0].name: made_as_far_as_known(found[0])} if found else {}


def made_as_far_as_known(run: Path) -> dict[str, str]:
    """``runs.made_with``; nothing of a run whose settings or manifests cannot be read: to compare needs neither."""
    with suppress(UserError):
        return made_with(as_made(read_config(run), run, *TRAINING))
    return {}


def made_otherwise(made: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, list[str]]]:
    """Of what made these runs (``runs.made_with``), what is not the same in all: name -> version -> runs.

    Args:
        made: by run; one of which nothing is known counts for nothing.
    """
    known = {run: found for run, found in made.items() if found}
    names = dict.fromkeys(name for found in known.values() for name in found)
    ways: dict[str, dict[str, list[str]]] = {}
    for name in names:
        for run, found in known.items():
            ways.setdefault(name, {}).setdefault(found.get(name, "none"), []).append(run)
    return {name: versions for name, versions in ways.items() if len(versions) > 1}


OTHERWISE = "other settings, data or code than the run's present ones"


def unknown(run: str) -> str:
    """What to say where ``is_current`` does not know."""
    return (
        f"{run}: its data or model are not here as it had them: whether it was evaluated with {OTHERWISE} is not known"
    )


def is_current(chain: Chain, step: int, results: Iterable[dict[str, Any]]) -> bool | None:
    """Whether results are of the policy that the run has after ``step`` updates, by its settings of now.

    Returns:
        None where that is not known: the policy is another one, and the run's data are not here as it had them.
    """
    policies = {result["policy"] for result in results if "policy" in result}  # not in the least of files
    if policies <= {chain.policy_key(step)}:
        return True
    return False if not step or is_there(chain.prepare.path) else None


def _check(result: Any) -> None:
    """Refuse what ``compare`` cannot read; raises what ``load`` catches."""
    name, right = result["benchmark"], result["right"]
    if not isinstance(name, str):
        raise TypeError(f"benchmark {name!r} is no name")
    for question, marks in right.items():
        if not question:
            raise ValueError("a question without an id")
        if not isinstance(marks, list) or not marks:
            raise TypeError(f"question {question!r} has no samples")
        for mark in marks:
            if type(mark) is not int or mark not in (0, 1):
                raise ValueError(f"question {question!r} has a mark {mark!r}, neither 0 nor 1")
    if not isinstance(result.get("settings", {}), dict):
        raise TypeError("settings is no object")
    if not isinstance(result.get("policy", ""), str):
        raise TypeError("policy is no key")
    owners = result.get("clusters_of", {})
    if not isinstance(owners, dict) or not all(isinstance(o, str) for o in owners.values()):
        raise TypeError("clusters_of does not map questions to names")
    if not isinstance(result.get(REWARDS, {}), dict):
        raise TypeError(f"{REWARDS} is no object")
    hashes = result["asked"]["hashes"] if "asked" in result else {}
    if not all(isinstance(one, str) for one in hashes.values()):
        raise TypeError("asked does not map questions to hashes")


def _find(name: str) -> Path:
    for place in (Path(name), runs_folder() / name, runs_folder() / "models" / name):
        if place.is_file():
            return place
        if place.is_dir():
            for file in (REPORT, RESULTS):
                if (place / file).is_file():
                    return place / file
            reports = find(place, f"eval/*/{REPORT}")
            if reports:
                return reports[-1]
    is_run = (runs_folder() / name / CONFIG).is_file() or (Path(name) / CONFIG).is_file()
    if is_run:
        fix = f"Evaluate it first: vppo eval --run {Path(name).name}"
        raise UserError(name, "this run has no evaluation yet.", fix)
    what = f"Give a run, its eval/NNNN folder, or a {REPORT}. {like(name)}"
    raise UserError(name, f"no such run in {runs_folder().resolve()}/, folder or file.", what)


def compare(before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]]) -> Comparison:
    """Pair the results by benchmark and question.

    Raises:
        UserError: they share no question, or have other questions under one name.
    """
    old = {result["benchmark"]: result for result in before}
    new = {result["benchmark"]: result for result in after}
    notes = [
        f"{name} is in {'A' if name in old else 'B'} only and is left out" for name in sorted(old.keys() ^ new.keys())
    ]
    changes, draws = [], []
    for name in (name for name in old if name in new):
        same_questions(name, {"A": old[name], "B": new[name]})
        notes += _differences(name, old[name], new[name])
        shared = [q for q in old[name]["right"] if q in new[name]["right"]]
        if not shared:
            notes.append(f"{name}: no question is in both; left out")
            continue
        owners = new[name].get("clusters_of", {})
        clusters = [owners.get(q, q) for q in shared]
        found, drawn = _paired(marks_of(old[name], shared), marks_of(new[name], shared), clusters, name)
        notes += unvaried(name, drawn)
        lists, told = comparable(name, {"A": old[name], "B": new[name]})
        notes += told
        rewards = {}
        for reward in lists:
            first, second = (rewards_of(rows[name], reward, shared) for rows in (old, new))
            rewards[reward], paid = _paired(first, second, clusters, name)
            notes += unvaried(f"{name}, {reward}", paid)
        changes.append(Change(name, len(shared), found.before, found.after, found.change, rewards=rewards))
        draws.append((found.change.mean, drawn))
    if not changes:
        raise UserError(
            "vppo compare",
            "the two evaluations share no question.",
            f"A has {' '.join(old) or 'nothing'}; B has {' '.join(new) or 'nothing'}.",
        )
    mean = average([d for _, d in draws], [m for m, _ in draws]) if len(draws) > 1 else None
    return Comparison(changes, mean, notes)


def _paired(
    first: Sequence[float], second: Sequence[float], clusters: Sequence[str], stream: str
) -> tuple[MeanChange, Array]:
    """The change of a mean over questions, and its difference's resamples."""
    drawn = resampled(np.subtract(second, first).tolist(), clusters, stream=stream)
    before, after = float(np.mean(first)), float(np.mean(second))
    return MeanChange(before, after, interval(after - before, drawn)), drawn


def unvaried(name: str, drawn: Array) -> list[str]:
    """Where no resample of a difference differs from another, what its interval does not say."""
    if np.ptp(drawn):
        return []
    return [
        f"{name}: the difference is the same at every question; that the interval has no width says nothing of others"
    ]


def same_questions(name: str, asked: Mapping[str, dict[str, Any]]) -> None:
    """See that a question is the same in all results that have it.

    All but public benchmarks tell what was asked, and those not in results of earlier versions.

    Args:
        asked: whose result -> the result.

    Raises:
        UserError: there are other questions under the same ids.
    """
    known = {who: result["asked"] for who, result in asked.items() if "asked" in result}
    hashes: dict[str, set[str]] = {}
    folders: dict[str, list[str]] = {}
    for who, one in known.items():
        folders.setdefault(str(one.get("folder")), []).append(who)
        for question, digest in one["hashes"].items():
            hashes.setdefault(question, set()).add(digest)
    others = [question for question, found in hashes.items() if len(found) > 1]
    if others:
        listed = ", ".join(f"{folder} ({', '.join(who)})" for folder, who in folders.items())
        raise UserError(
            name,
            f"is not the same questions in all: under {counted(len(others), 'id')} there are others "
            f"({others[0]}, for one). Their folders: {listed}.",
            "Ask all of them the same questions (vppo eval), or give one of the test sets another name.",
        )


def marks_of(result: dict[str, Any], questions: Sequence[str]) -> list[float]:
    """Of each question the fraction of its samples that are right."""
    return [sum(result["right"][q]) / len(result["right"][q]) for q in questions]


def _differences(name: str, old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What else than the model differs between the two."""
    notes = []
    alone = len(old["right"].keys() ^ new["right"].keys())
    if alone:
        are = "is" if alone == 1 else "are"
        notes.append(f"{name}: {counted(alone, 'question')} {are} in one of the two only and {are} left out")
    first, second = how_asked(old), how_asked(new)
    for what in [*ASKED, *sorted((first.keys() | second.keys()) - {*ASKED})]:
        if first.get(what) != second.get(what):
            notes.append(f"{name}: {what} {first.get(what)} -> {second.get(what)}")
    return notes


ASKED = ("profile", "samples", "grader")


def how_asked(result: dict[str, Any]) -> dict[str, Any]:
    """What a result depends on beside model and questions: ``ASKED``, and the settings but for ``limit``."""
    given = {key: value for key, value in result.get("settings", {}).items() if key != "limit"}
    return given | {key: result.get(key) for key in ASKED} | {"profile": profile_name(str(result.get("profile")))}
