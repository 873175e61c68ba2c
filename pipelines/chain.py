"""The steps of a run under one config: their order, keys and places. Computed, not looked up.

Each step's key holds the keys of what it reads, so the chain knows, before anything runs, what a
changed setting makes stale: from the first changed update on, later rollouts too, since they were
sampled by a policy that would no longer exist. Torch-free.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines.checkpoint import stage as checkpoint
from pipelines.config.schema import Config
from pipelines.config.settings import shipped_config
from pipelines.disk.files import find
from pipelines.disk.fingerprint import fingerprint, named_by
from pipelines.disk.part_sources import PartSources, parts_of
from pipelines.disk.step import Step, is_there, read_manifest
from pipelines.errors import UserError
from pipelines.objectives.table import KEYED, ROLES, STORES, needs, stored
from pipelines.prepare import stage as prepare
from pipelines.prepare.floats import KEY as SHORT_FLOATS
from pipelines.prepare.floats import read_as_written
from pipelines.prepare.places import at_home, exists
from pipelines.prepare.rows import reader_version, reads
from pipelines.prepare.sources import check_places
from pipelines.ranks.ranks import ranks
from pipelines.rollout import stage as rollout
from pipelines.score import stage as score
from pipelines.stages import of_evaluations
from pipelines.update import stage as update

CODE = {"prepare": prepare, "rollout": rollout, "score": score, "update": update, "checkpoint": checkpoint}
VERSIONS = {name: stage.VERSION for name, stage in CODE.items()} | {
    "model": 1,
    "sampling": 3,
    "grading": 2,
    "rewards": 1,
    "way": 2,
}
"""Raise a stage's number when its code gives other results: its steps become stale. ``rewards`` says whether
evaluations on a run's own questions have those of a function of one's own: 0 is before they had."""

SETTINGS: dict[str, tuple[str, ...]] = {name: stage.READS for name, stage in CODE.items()}
"""The settings that a stage has in its key, and that it may be given anew."""

SHOWN = ("published.resize_first", "published.strip_question")
"""How questions are shown besides what ``data`` says (pipelines/model/prompts.py)."""

OF_ONES_OWN = 0
"""The version of a stage of one's own: its source is in the key."""

TRAINING, ANSWERS = ("rollout", "score", "update"), ("sampling", "grading", "rewards")
"""Stages by what they make: a policy, and what is said of it."""

EMBEDDED = {("score", 5): 3, ("update", 4): 3}
"""Versions that differ from the one before for questions without an image alone, which the embedded data
has none of -> that one, which it keeps."""

BUILT_IN = {("score", 5): 4}
"""The same of an estimator of one's own alone: others keep the one before."""

ALWAYS_RIGHT = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "idefics3", "smolvlm", "internvl")
"""Model types whose results never depended on how a model is computed (``VERSIONS["way"]``)."""

RESULTS = 100
"""Results have the version ``RESULTS * sampling + grading``."""

JOURNALS = "journals"
EVALUATIONS = "eval"
"""The folder of a run's evaluations."""


def versions_of(config: Config) -> dict[str, int]:
    """Of the code that makes these stages now."""
    kept = {} if ":" in config.score.estimator else BUILT_IN
    if config.data.source == "glyphs":
        kept = EMBEDDED
    return {name: kept.get((name, version), version) for name, version in VERSIONS.items()}


class Chain:
    """Every step of one run.

    Args:
        config: decides the keys.
        run: the run's folder.
        versions: those of the code that makes, or made, the stages.
        trained: manifests of training steps, oldest first, whose parts of one's own and data of then count, where
            nothing of today is among them.
        answered: the same of evaluations.
        kept: settings of prepared data that stand for sources which are not there any more (``runs.kept``).
    """

    def __init__(
        self,
        config: Config,
        run: Path,
        versions: Mapping[str, int] | None = None,
        trained: Sequence[Mapping[str, Any]] = (),
        answered: Sequence[Mapping[str, Any]] = (),
        kept: Mapping[str, Any] | None = None,
    ) -> None:
        self.config, self.run, self.kept = config, run, dict(kept or {})
        self.versions = dict(versions or versions_of(config))
        check_places(config)
        self._answered = answered
        self._trained = PartSources(run, trained)
        self.sources = PartSources(run, answered, self._trained)
        self._data = _sources(config) | self.kept | self.own("prepare", config)
        data = _as_prepared(self._data, trained)
        self.prepare = self._step("prepare", None, run, data, {})
        before = {name: value for name, value in data.items() if not name.startswith(SHORT_FLOATS)}
        if before != data and not is_there(self.prepare.path):  # begun before such numbers were in the key?
            then = self._step("prepare", None, run, before, {})
            self.prepare = then if is_there(then.path) else self.prepare
        model = {name: value for name, value in data.items() if name.startswith("model.")}
        self.model = Step("model", None, run, self.versions["model"], model)
        self._held: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}
        """Training stage -> what keys of its steps hold, and what shapes them."""
        self._rollouts: list[Step] = []
        self._scores: list[Step] = []
        self._updates: list[Step] = []

    def check_model(self) -> None:
        """See that ``model.path`` leads to the model that the run's steps were made from.

        Raises:
            UserError: it was changed since, or is not found from here: another model would pass for it.
        """
        begun, now = self.model.settings["model.path"], _model(self.config)["model.path"]
        if begun != now:
            raise UserError(
                f"model.path: {self.config.model.path}",
                "is not the model that the run was begun with: its files were changed, or it is not found from here.",
                "Put it back, or start another run with it. Checkpoints that hold whole weights do not need it.",
            )

    def edited(self) -> list[str]:
        """Parts of one's own (import paths), data and model (settings) that are not what they were when the run's steps
        were made, as ``runs.as_made`` sees them. What is not found from here is not among them."""
        known = (self._trained, self.sources)
        parts = [part for part in parts_of(self.config) if any(sources.edited(part) for sources in known)]
        made = self.prepare.settings

        def is_content(value: Any) -> bool:
            return isinstance(value, str) and value.startswith(CONTENT)

        changed = [
            name
            for name, value in self._data.items()
            if is_content(value) and is_content(made.get(name)) and value != made[name]
        ]
        return [*parts, *changed]

    def rollout(self, step: int) -> Step:
        self._grow(step)
        return self._rollouts[step - 1]

    def score(self, step: int) -> Step:
        self._grow(step)
        return self._scores[step - 1]

    def update(self, step: int) -> Step:
        self._grow(step)
        return self._updates[step - 1]

    def policy_key(self, step: int) -> str:
        """What decides the weights after ``step`` updates."""
        return self.model.key if step == 0 else self.update(step).key

    def checkpoint(self, step: int) -> Step:
        """The weights and optimizer state after ``step`` updates."""
        parent = self.run / "checkpoints" / f"{step:04d}"
        inputs = {"policy": self.policy_key(step)}
        return self._step("checkpoint", step, parent, {}, inputs)

    @property
    def benchmarks(self) -> tuple[str, ...]:
        """The benchmarks that the config names, aliases and import paths resolved."""
        names: tuple[str, ...] = of_evaluations("canonical")(self.config.eval.benchmarks, self.config)
        return names

    def cell(self, step: int, benchmark: str, config: Config | None = None) -> Any:
        """An evaluation of the policy after ``step`` updates (evals/cells.py).

        Args:
            config: how to evaluate, where that is not as the run itself does; policy and own
                questions are the run's in either case.
        """
        return of_evaluations("cell")(self, step, benchmark, config or self.config)

    def asked(self, benchmark: str, questions: Step) -> tuple[str, dict[str, Any]]:
        """The key of a benchmark's questions and the source of the part that makes them: those that were answered
        last, where nothing of today's was.

        Args:
            questions: as they are today.
        """
        sources = {name: value for name, value in questions.settings.items() if name.startswith("source of ")}
        made = [one for one in self._answered if one.get("step") == benchmark and isinstance(one.get("inputs"), dict)]
        keys = [str(one["inputs"].get("questions")) for one in made]
        if not made or questions.key in keys:
            return questions.key, sources
        return keys[-1], {name: made[-1]["settings"].get(name, value) for name, value in sources.items()}

    def eval(self, step: int, benchmark: str) -> Step:
        """The results of an evaluation as the run itself does it."""
        results: Step = self.cell(step, benchmark).results
        return results

    def has_checkpoint(self, step: int) -> bool:
        """Whether a checkpoint is due after this update."""
        return step % self.config.checkpoint.every == 0 or step == self.config.run.steps

    def validates(self) -> bool:
        """Whether checkpoints are followed by an evaluation on the validation questions."""
        return self.config.checkpoint.validation_samples > 0 and self.config.data.has_validation

    def training(self, step: int) -> Iterator[Step]:
        """The steps of one training step, in order."""
        yield self.rollout(step)
        yield self.score(step)
        yield self.update(step)
        if self.has_checkpoint(step):
            yield self.checkpoint(step)
            if self.validates():
                yield self.eval(step, "validation")

    def evaluations(self) -> Iterator[Step]:
        """The final evaluations: of the starting policy, and of the last one."""
        for benchmark in self.benchmarks:
            if self.config.eval.baseline:
                yield self.eval(0, benchmark)
            yield self.eval(self.config.run.steps, benchmark)

    def opening(self, until: int) -> Iterator[Step]:
        """Preparation and the training steps up to ``until``, in the order in which they are made."""
        yield self.prepare
        for step in range(1, until + 1):
            yield from self.training(step)

    def all(self) -> Iterator[Step]:
        """Every step of the run, in the order in which they are made; what the end asks for again, once."""
        steps = (*self.opening(self.config.run.steps), *self.evaluations())
        yield from {step.path: step for step in steps}.values()

    def until(self, step: int | None) -> list[Step]:
        """Every step up to a training step; None: all of the run, its final evaluations included."""
        whole = step is None or step >= self.config.run.steps
        return list(self.all() if whole else self.opening(step or 0))

    def of_stage(self, stage: str, index: int, wanted: Chain) -> list[Step]:
        """The steps of one stage, with the settings of ``wanted``, made from what this run has."""
        if stage == "prepare":
            return [wanted.prepare]
        if stage == "eval":
            return [self.cell(index, name, wanted.config).results for name in wanted.benchmarks]
        new, old = getattr(wanted, stage)(index), getattr(self, stage)(index)
        inputs = old.inputs
        if stage == "update":
            inputs = inputs | {"score": self.scored_for(index, wanted.config).key}
        return [replace(new, inputs=inputs)]

    def scored_for(self, step: int, config: Config) -> Step:
        """The scores of a step that an update with these settings reads: the run's own, or, where those hold
        too little for its objective, some with the same settings that hold more and are on disk."""
        own, wanted = self.score(step), needs(config) - {ROLES}
        if wanted <= STORES[stored(self.config)]:
            return own
        names = [name for name, holds in STORES.items() if wanted <= holds]
        more = [replace(own, settings=_with_store(own.settings, name)) for name in names]
        return next((found for found in more if is_there(found.path)), own)

    def _grow(self, step: int) -> None:
        while len(self._updates) < step:
            index = len(self._updates) + 1
            parent = self.run / "steps" / f"{index:04d}"
            policy = self.policy_key(index - 1)
            inputs = {"prepare": self.prepare.key, "policy": policy}
            if self._rollouts:
                inputs["previous rollout"] = self._rollouts[-1].key
            rollout = self._training("rollout", index, parent, inputs)
            score = self._training("score", index, parent, {"rollout": rollout.key})
            inputs = {"rollout": rollout.key, "score": score.key, "policy": policy}
            update = self._training("update", index, parent, inputs)
            self._rollouts.append(rollout)
            self._scores.append(score)
            self._updates.append(update)

    def _training(self, name: str, index: int, parent: Path, inputs: dict[str, str]) -> Step:
        if name not in self._held:
            settings = self.config.holds(*CODE[name].READS)
            settings |= self._trained.of(*(self.config.value(part) for part in CODE[name].PARTS))
            if name == "score":
                settings = _with_store(settings, stored(self.config))
            if name == "rollout":
                settings = self._as_tried(settings)
            self._held[name] = settings, shape_of(self.config) | getattr(self.config, name).shape(name)
        return self._step(name, index, parent, self._held[name][0], inputs, self._held[name][1])

    def _as_tried(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Settings of rollouts with the ``rollout.max_tries`` that the run's first one has: what fills a batch does not
        depend on how many more rounds it might have taken, so that a run may go on with more."""
        name, found = "rollout.max_tries", []
        for folder in find(self.run, "steps/0001/rollout-*"):
            with suppress(UserError):  # told where it is read for what it holds
                then = read_manifest(folder).get("settings", {})
                if name in then and all(then.get(key) == value for key, value in settings.items() if key != name):
                    found.append(then[name])
        return settings if not found or settings[name] in found else settings | {name: found[-1]}

    def _step(
        self,
        name: str,
        index: int | None,
        parent: Path,
        settings: dict[str, Any],
        inputs: dict[str, str],
        shape: dict[str, Any] | None = None,
    ) -> Step:
        own = self.own(name, self.config)
        version = OF_ONES_OWN if own else self.versions[name]
        return Step(name, index, parent, version, settings | own, inputs, shape or {})

    def own(self, stage: str, config: Config) -> dict[str, Any]:
        """What a key holds of a stage of one's own; nothing of the package's, which has a version."""
        part = getattr(config.stages, stage)
        sources = self.sources if stage == "eval" else self._trained
        return {f"stages.{stage}": part} | sources.of(part) if part else {}


def _with_store(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A score step's settings with the set that it holds."""
    rest = {key: value for key, value in settings.items() if key != "score.store"}
    return rest if name == KEYED else rest | {"score.store": name}


def is_evaluation(step: Step) -> bool:
    """Whether a step holds the results of a benchmark."""
    return step.index is not None and step.parent.parent.name == EVALUATIONS


def _sources(config: Config) -> dict[str, Any]:
    """The data and model settings; what is local by its content, wherever it lies.

    So a changed file makes the run stale, and a moved one does not.
    """
    settings = config.holds("data", *SHOWN) | _model(config)
    for name in ("data.source", "data.validation_source"):
        where = settings[name]
        if where not in (None, "glyphs"):
            path = at_home(where)
            if path.exists():
                settings[name] = content_or_name(str(path))
                how = read_as_written(path, read=reads(config.data.columns, config.data.extra))
                settings |= {f"{short} of {name}": said for short, said in how.items()}
            if named := named_by(path, [at_home(folder) for folder in config.data.image_folders]):
                settings[f"files named by {name}"] = f"{CONTENT}{named}"
    settings.pop("data.image_folders", None)  # what is in them counts, wherever they lie
    if config.data.source != "glyphs":
        settings |= reader_version(config.data.extra)
    if isinstance(config.data.extra, str):  # none is the reader's version 2; the embedded data have no more
        settings.pop("data.extra", None)
    return settings


CONTENT = "content "
"""Begins, in a key, what stands for a file or folder of this machine."""

OUTSIDE = {
    "data.source": ("data.source", "files named by data.source", f"{SHORT_FLOATS} of data.source"),
    "data.validation_source": (
        "data.validation_source",
        "files named by data.validation_source",
        f"{SHORT_FLOATS} of data.validation_source",
    ),
    "data.image_folders": ("files named by data.source", "files named by data.validation_source"),
    "model.path": ("model.path", "model.computed"),
}
"""Settings that stand for what lies outside a run, and may be changed or gone -> what prepared data hold of it."""


def gone(config: Config, setting: str) -> str:
    """What a setting of ``OUTSIDE`` names that is not there, or is not on this machine; "" if nothing."""
    value = config.value(setting)
    named = [value] if isinstance(value, str) else value or ()
    missing = [name for name in named if name not in ("glyphs", "tiny") and not exists(at_home(name))]
    return str(missing[0]) if missing else ""


def _as_prepared(settings: dict[str, Any], made: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the newest prepared data of these settings were made of, whatever became of their sources since."""

    now = json.loads(json.dumps(settings))
    there = str(now["model.path"]).startswith("content ")
    outside = {*OUTSIDE, *(() if there else OUTSIDE["model.path"])}

    def inside(found: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in found.items() if name not in outside and " " not in name}

    prepared = [one["settings"] for one in made if one.get("step") == "prepare"]
    alike = [found for found in prepared if inside(found) == inside(now)]
    return settings if now in prepared or not alike else dict(alike[-1])


def shape_of(config: Config) -> dict[str, Any]:
    """What reaches the shape of kernels in every stage."""
    return config.run.shape("run") | config.model.shape("model") | {"ranks": ranks().world}


def _model(config: Config) -> dict[str, Any]:
    settings, path = config.model.keyed("model"), config.model.path
    where = str(shipped_config("tiny_model")) if path == "tiny" else path
    return settings | _computed(Path(where)) | {"model.path": content_or_name(where)}


def _computed(folder: Path) -> dict[str, Any]:
    """What sets results of a local model apart from those of earlier versions, which took families for
    Qwen's that are none: some were off by nats. Nothing for the families that were right."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind = config["model_type"]
    except (OSError, ValueError, KeyError, TypeError):  # a hub id, or no model: others say so
        return {}
    return {} if kind in ALWAYS_RIGHT else {"model.computed": VERSIONS["way"]}


def content_or_name(where: str) -> str:
    """A local file or folder by its content; anything else, a hub id, by its name."""
    path = Path(where)
    return f"{CONTENT}{fingerprint(path)}" if path.is_file() or path.is_dir() else where
