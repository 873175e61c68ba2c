"""For keys: the sources of the parts that a config names by import path. Nothing is run; torch-free."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.config.imports import check_same, part_hash
from pipelines.config.resolve import check_name
from pipelines.config.schema import Config
from pipelines.config.source import names_in, require_part, source_hash
from pipelines.disk.files import find
from pipelines.disk.step import MANIFEST, Step


class PartSources:
    """For keys: the source of each part as it was when it was first asked for, or imported (``part_hash``).

    Once a process has imported a part, an edit of its file is not what it runs.

    Args:
        made: manifests of the steps that are looked at as they were made: of a part of which nothing of today is
            among them, the source in ``rather`` counts, or else the newest.
    """

    def __init__(self, run: Path, made: Sequence[Mapping[str, Any]] = (), rather: PartSources | None = None) -> None:
        self._run, self._made, self._rather = run, made, rather
        self._known: dict[str, str] = {}

    def of(self, *parts: str) -> dict[str, str]:
        """``{"source of rewards:score": hash}`` for each import path among these parts."""
        for part in parts:
            if ":" in part and part not in self._known:
                self._known[part] = self._hash(part)
        return {f"source of {part}": self._known[part] for part in parts if self._known.get(part)}

    def edited(self, part: str) -> bool:
        """Whether the source of a part is another one now, where it is found from here."""
        known = self.of(part).get(f"source of {part}")
        with contextlib.suppress(OSError):
            found = source_hash(part)
            return bool(known and found) and found != known
        return False

    def _hash(self, part: str) -> str:
        try:
            found = part_hash(part)
        except OSError as error:
            return f"not readable ({error.strerror})"
        name = f"source of {part}"
        made = [one["settings"][name] for one in self._made if isinstance(one["settings"].get(name), str)]
        if made and found not in made:
            liked = self._rather.of(part).get(name) if self._rather else None
            return str(liked if liked in made else made[-1])
        # Looking at a run, from another folder for one, does not need the part's source.
        return self._recorded(name) if found is None else found

    def _recorded(self, name: str) -> str:
        """What the newest step of the run that has this was keyed by."""
        for path in reversed(find(self._run, f"**/{MANIFEST}")):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                found = json.loads(path.read_text(encoding="utf-8"))["settings"].get(name)
                if isinstance(found, str):
                    return found
        return "missing"


def check_part_sources(config: Config) -> None:
    """See that every part that is named is there, of those by import path as far as the source tells; nothing is run.

    Raises:
        UserError: one is not; names the nearest.
    """
    for setting in SETTINGS:
        for part in _named(config, setting):
            require_part(setting, part)
    for setting, tables in TABLES.items():
        if names := [name for name in _listed(config, setting) if ":" not in name]:
            known = dict.fromkeys(one for table in tables for one in names_in(table))
            for name in names:
                check_name(setting, name, known)


def check_imported(config: Config, steps: Iterable[Step]) -> None:
    """See that the parts that were imported are those that the keys of these steps name.

    Raises:
        UserError: one was changed in between.
    """
    named = [(setting, part) for setting in SETTINGS for part in _named(config, setting)]
    for step in steps:
        for setting, part in named:
            if found := step.settings.get(f"source of {part}"):
                check_same(f"{setting}: {part}", part, str(found))


SETTINGS = (
    "rollout.engine",
    "reward.function",
    "reward.grader",
    "score.estimator",
    "score.perturbation",
    "update.engine",
    "update.objective",
    "eval.graders",
    "eval.benchmarks",
    "run.trackers",
    "stages.prepare",
    "stages.rollout",
    "stages.score",
    "stages.update",
    "stages.checkpoint",
    "stages.eval",
)
"""Where an import path may stand. Trackers change no result, and are in no key."""


_GRADERS = ("pipelines.grading.graders:GRADERS",)

TABLES: dict[str, tuple[str, ...]] = {
    "rollout.engine": ("pipelines.rollout.engines:ENGINES",),
    "reward.function": ("pipelines.grading.reward:REWARDS",),
    "reward.grader": _GRADERS,
    "score.estimator": ("pipelines.model.divergence:ESTIMATORS", "pipelines.score.scoring:ESTIMATOR_NAMES"),
    "score.perturbation": ("pipelines.score.perturb:PERTURBATIONS", "pipelines.score.perturb:RAW"),
    "update.engine": ("pipelines.update.engines:TRAINERS",),
    "eval.graders": _GRADERS,
    "run.trackers": ("pipelines.tracking.trackers:TRACKERS",),
    **{setting: () for setting in SETTINGS if setting.startswith("stages.")},
}
"""Where the built-in names are listed, read and not imported, as some bring torch. Objectives and benchmarks are
looked at wherever a run is chosen."""


def parts_of(config: Config) -> list[str]:
    """Every import path that the settings name, once."""
    return list(dict.fromkeys(part for setting in SETTINGS for part in _named(config, setting)))


def _named(config: Config, setting: str) -> list[str]:
    """The import paths that a setting names."""
    return [part for part in _listed(config, setting) if ":" in part]


def _listed(config: Config, setting: str) -> list[str]:
    value = config.value(setting)
    return [value] if isinstance(value, str) else list(value or ())
