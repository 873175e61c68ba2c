"""The stages of a run: their one signature, and where the code of each is.

    stage(ask, live, out) -> metrics

A stage reads the folders that ``ask`` names and writes its artifacts into ``out``; the numbers that it
returns are shown, and no step reads them. What is alive and costly (policy, trainer, engine, graders)
comes from ``live``. A config swaps one by an import path, ``stages.score: my_package.my_module:score``.

Stages are found by name when they are needed: nothing here imports one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from pipelines.config.contracts import check_metrics, check_results
from pipelines.config.resolve import find_part, raised
from pipelines.config.schema import Config
from pipelines.disk import artifacts
from pipelines.ranks.ranks import ranks
from pipelines.watch import Watch

STAGES = {
    "prepare": "pipelines.prepare.stage:prepare",
    "rollout": "pipelines.rollout.stage:rollout",
    "score": "pipelines.score.stage:score",
    "update": "pipelines.update.stage:update",
    "checkpoint": "pipelines.checkpoint.stage:checkpoint",
    "eval": "evals.stage:evaluate",
}
"""Stage -> its code. Beside it stand VERSION, the settings that its key holds (READS), and those that
may be an import path (PARTS); what keys evaluations is in evals/cells.py."""

Metrics = dict[str, Any]


@dataclass(frozen=True)
class Ask:
    """What a stage is asked for.

    ``stage`` is a name of ``STAGES``; ``name`` the step's, which for an evaluation is its benchmark;
    ``step`` the training step, from 1 (0: prepare, or an evaluation of the starting model). Of ``config``
    the stage's own settings are as they are asked for now, all others the run's: what its key does not
    hold must not decide. ``inputs`` are folders on disk by the name of the stage that made them;
    ``previous`` is the rollout of the step before, where there is one.
    """

    stage: str
    name: str
    step: int
    config: Config
    inputs: Mapping[str, Path]
    watch: Watch


class Live(Protocol):
    """What is costly and stays alive, made when first asked for (pipelines/live.py); a version counts
    updates."""

    chain: Any
    """The run's steps: a ``Chain``."""
    config: Config
    """The run's settings."""

    def policy(self, version: int) -> Any:
        """The ``Policy`` after so many updates: live, or restored from disk."""

    def reader(self, version: int) -> Any:
        """The same for passes of one's own: the engine sleeps, weights are where the trainer has them."""

    def engine(self, version: int, asking: Any = None) -> Any:
        """The rollout ``Engine`` with that policy."""

    def training(self, step: int, config: Config) -> AbstractContextManager[Any]:
        """The ``Trainer``, with the policy after ``step - 1`` updates; what it does makes the next."""

    def trainer(self) -> Any:
        """The live policy's ``Trainer``."""

    @property
    def samples(self) -> Any:
        """The training questions: a ``SampleTable``."""

    @property
    def reward(self) -> Any:
        """Responses -> marks: a ``RewardFunction``."""

    @property
    def graders(self) -> Any:
        """The processes that grade evaluations: a ``GraderPool``."""


Stage = Callable[[Ask, Live, Path], Metrics]


def find(stage: str, config: Config) -> Stage:
    """The code of a stage: the one that the config names, or the package's own.

    Raises:
        UserError: there is no such function.
    """
    own: str | None = getattr(config.stages, stage)
    module, _, name = STAGES[stage].partition(":")
    found: Stage = find_part(f"stages.{stage}", own, {}) if own else getattr(import_module(module), name)
    return found


def make(ask: Ask, live: Live, out: Path) -> Metrics:
    """Let the stage do what it is asked for, and look at what it wrote; of a user's own at its metrics too.

    Raises:
        UserError: an artifact is missing, or is not what its schema says; metrics are no numbers; a part ended the
            process.
    """
    stage = find(ask.stage, ask.config)
    try:
        metrics = stage(ask, live, out)
    except SystemExit as error:  # of some part: by itself it would end the command as if all were done
        raise raised(f"{ask.name} {ask.step}", error) from error
    if ranks().main:
        artifacts.check(ask.stage, out, ask.inputs)
    if own := getattr(ask.config.stages, ask.stage):
        check = check_results if ask.stage == "eval" else check_metrics
        metrics = check(f"stages.{ask.stage}: {own}", metrics)
    return metrics


def of_evaluations(name: str) -> Any:
    """What the module of evaluations calls so: evaluations are made from runs, and lie above them."""
    return getattr(import_module(STAGES["eval"].partition(":")[0]), name)
