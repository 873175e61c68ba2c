"""The steps of a run under one config: their order, keys and places. Computed, not looked up.

Each step's key holds the keys of what it reads, so the chain knows, before anything runs, what a
changed setting makes stale: from the first changed update on, later rollouts too, since they were
sampled by a policy that would no longer exist. Torch-free.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipelines.config.schema import Config
from pipelines.config.settings import shipped_config
from pipelines.disk.fingerprint import fingerprint, named_files
from pipelines.disk.part_sources import PartSources
from pipelines.disk.step import Step
from pipelines.errors import UserError
from pipelines.prepare.rows import reader_version
from pipelines.prepare.sources import check_places
from pipelines.ranks.ranks import ranks
from pipelines.stages import of_evaluations

VERSIONS = {
    "model": 1, "prepare": 1, "rollout": 3, "score": 3, "update": 3, "checkpoint": 1,
    "sampling": 3, "grading": 1, "way": 2,
}  # fmt: skip
"""Raise a stage's number when its code gives other results: its steps become stale."""

TRAINING, ANSWERS = ("rollout", "score", "update"), ("sampling", "grading")
"""Stages by what they make: a policy, and what is said of it."""

ALWAYS_RIGHT = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "idefics3", "smolvlm", "internvl")
"""Model types whose results never depended on how a model is computed (``VERSIONS["way"]``)."""

RESULTS = 100
"""Results have the version ``RESULTS * sampling + grading``."""

JOURNALS = "journals"
EVALUATIONS = "eval"
"""The folder of a run's evaluations."""


class Chain:
    """Every step of one run.

    Args:
        config: decides the keys.
        run: the run's folder.
        versions: those of the code that makes, or made, the stages.
    """

    def __init__(
        self, config: Config, run: Path, versions: Mapping[str, int] | None = None
    ) -> None:
        self.config, self.run = config, run
        self.versions = dict(versions or VERSIONS)
        check_places(config)
        self.prepare = Step("prepare", None, run, self.versions["prepare"], _sources(config))
        self.model = Step("model", None, run, self.versions["model"], _model(config))
        self.sources = PartSources(run)
        self._rollouts: list[Step] = []
        self._scores: list[Step] = []
        self._updates: list[Step] = []

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
        return Step("checkpoint", step, parent, self.versions["checkpoint"], {}, inputs)

    @property
    def benchmarks(self) -> tuple[str, ...]:
        """The benchmarks that the config names, aliases resolved."""
        names: tuple[str, ...] = of_evaluations("canonical")(self.config.eval.benchmarks)
        return names

    def cell(self, step: int, benchmark: str, config: Config | None = None) -> Any:
        """An evaluation of the policy after ``step`` updates (evals/cells.py).

        Args:
            config: how to evaluate, where that is not as the run itself does; policy and own
                questions are the run's in either case.
        """
        return of_evaluations("cell")(self, step, benchmark, config or self.config)

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
        """Every step of the run, in the order in which they are made."""
        yield from self.opening(self.config.run.steps)
        yield from self.evaluations()

    def _grow(self, step: int) -> None:
        config, source = self.config, self.sources.of
        shapes = shape_of(config)
        while len(self._updates) < step:
            index = len(self._updates) + 1
            parent = self.run / "steps" / f"{index:04d}"
            policy = self.policy_key(index - 1)
            inputs = {"prepare": self.prepare.key, "policy": policy}
            if self._rollouts:
                inputs["previous rollout"] = self._rollouts[-1].key
            rollout = Step(
                "rollout", index, parent, self.versions["rollout"],
                config.rollout.keyed("rollout") | config.reward.keyed("reward") | {"seed": config.seed}
                | source(config.rollout.engine, config.reward.function, config.reward.grader),
                inputs, shapes | config.rollout.shape("rollout"),
            )  # fmt: skip
            score = Step(
                "score", index, parent, self.versions["score"],
                config.score.keyed("score") | {"seed": config.seed}
                | source(config.score.estimator, config.score.perturbation),
                {"rollout": rollout.key}, shapes | config.score.shape("score"),
            )  # fmt: skip
            update = Step(
                "update", index, parent, self.versions["update"],
                config.update.keyed("update") | source(config.update.engine, config.update.objective),
                {"rollout": rollout.key, "score": score.key, "policy": policy},
                shapes | config.update.shape("update"),
            )  # fmt: skip
            self._rollouts.append(rollout)
            self._scores.append(score)
            self._updates.append(update)


def is_evaluation(step: Step) -> bool:
    """Whether a step holds the results of a benchmark."""
    return step.index is not None and step.parent.parent.name == EVALUATIONS


def _sources(config: Config) -> dict[str, Any]:
    """The data and model settings; what is local by its content, wherever it lies.

    So a changed file makes the run stale, and a moved one does not.
    """
    settings = config.data.keyed("data") | _model(config)
    for name in ("data.source", "data.validation_source"):
        where = settings[name]
        if where not in (None, "glyphs"):
            path = Path(where).expanduser()
            settings[name] = content_or_name(str(path)) if path.exists() else where
            if path.is_file() and (named := named_files(path, path.parent)):
                settings[f"files named by {name}"] = f"content {named}"
    if config.data.source != "glyphs":
        settings |= reader_version()
    return settings


def shape_of(config: Config) -> dict[str, Any]:
    """What reaches the shape of kernels in every stage."""
    return config.run.shape("run") | config.model.shape("model") | {"ranks": ranks().world}


def _model(config: Config) -> dict[str, Any]:
    settings, path = config.model.keyed("model"), config.model.path
    if path != "tiny" and not Path(path).exists() and path.startswith(("/", ".", "~")):
        raise UserError(f"model.path: {path}", "no such folder.", "")
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
    return f"content {fingerprint(path)}" if path.is_file() or path.is_dir() else where
