"""What stays alive between stages: the policy, its trainer, the rollout engine, the grader.

Each is made on first use. Run alone, a stage finds the policy it needs on disk: the nearest
checkpoint, and from there the stored rollouts and scores replayed through the trainer, which is
deterministic, so the weights are bit for bit what they were. Generation is never paid twice.
"""

from __future__ import annotations

import contextlib
import gc
import tempfile
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from pipelines import checkpoints
from pipelines.chain import SETTINGS, Chain, is_evaluation
from pipelines.checkpoint import saving
from pipelines.config.schema import Config
from pipelines.disk.files import partial_of, remove
from pipelines.disk.records import MODEL, TRAINER, SampleTable
from pipelines.disk.step import Step, is_there
from pipelines.errors import UserError
from pipelines.grading.graders import GraderPool
from pipelines.grading.reward import RewardFunction, reward_of
from pipelines.model import determinism
from pipelines.model.load import load_policy
from pipelines.model.placement import OnMain
from pipelines.model.policy import Policy
from pipelines.model.prompts import Asking
from pipelines.objectives.table import stored
from pipelines.ranks.ranks import ranks
from pipelines.rollout.engine import Engine, LiveEngine
from pipelines.rollout.engines import find_engine
from pipelines.stages import Ask, find
from pipelines.update.engines import Trainer, check_trainer, find_trainer
from pipelines.watch import Watch


def _here(run: Config, asked: Config) -> Config:
    """The run's settings, but for device, reward, graders and engine, which are as asked for now."""
    engine = (f"rollout.{name}" for name in ("engine", *asked.rollout.unkeyed))
    return run.with_those_of(asked, ("run", "reward", "published.choice_rule", *engine))


def _of_updates(config: Config) -> tuple[Any, ...]:
    """What a trainer is made from; of ``published`` other fields are the run's in any case."""
    return config.update, config.published


class Session:
    """Live engines over the artifacts of one chain.

    Args:
        chain: the run on disk that the policy's history is taken from.
        watch: told what happens.
        asked: the settings that are asked for now: where and by what is sampled, graded and rewarded.
            Model, data and the policy's history are the run's in any case.
    """

    def __init__(self, chain: Chain, watch: Watch, asked: Config) -> None:
        self.chain, self.watch, self.config = chain, watch, _here(chain.config, asked)
        self._policy: Policy | None = None
        self._made_trainer: Trainer | None = None
        self._trainer_at: Path | None = None
        self._version = -1
        self._live: LiveEngine | None = None
        self._live_version: int | None = None
        self._told: set[str] = set()
        if self.config.run.threads:
            torch.set_num_threads(self.config.run.threads)
        determinism.warning()

    # -- parts, made on first use ----------------------------------------------------------------

    @cached_property
    def reward(self) -> RewardFunction:
        return reward_of(self.config)

    @cached_property
    def graders(self) -> GraderPool:
        """The processes that grade evaluations."""
        settings = self.config.reward
        return GraderPool(settings.workers, settings.deadline)

    @cached_property
    def samples(self) -> SampleTable:
        """The training questions."""
        return SampleTable(self._made(self.chain.prepare) / "train.parquet")

    def engine(self, version: int, asking: Asking | None = None) -> Engine:
        """The rollout engine with the policy after ``version`` updates.

        Args:
            asking: how an evaluation shows its questions; None: as training does.
        """
        policy = self.policy(version)
        if self.config.rollout.engine != "vllm":  # which has a copy of its own
            policy = policy.spread()
        return self._engine(policy if asking is None else policy.asked(asking))

    def _engine(self, policy: Policy) -> Engine:
        if self._live is None:
            engine = find_engine(self.config.rollout.engine)(policy)
            if not isinstance(engine, LiveEngine):
                return engine
            self._live, self._live_version = engine, None
        if self._live_version != self._version:
            if self._made_trainer:  # whose state leaves no room for weights on their way beside a KV cache
                self._live.sleep()
            self._live.sync(policy)
            self._live_version = self._version
        return self._live.view(policy)

    def reader(self, version: int) -> Policy:
        """The policy for passes over what was sampled: the engine gives back its memory, and the weights
        are divided as the trainer divides them, since whole they may not fit."""
        policy = self.policy(version)
        self._rest()
        if isinstance(policy.placement, OnMain):
            self.trainer()
        return policy

    @contextlib.contextmanager
    def training(self, step: int, config: Config) -> Iterator[Trainer]:
        """The trainer, with the policy after ``step - 1`` updates; what it does makes the next policy.

        Args:
            config: its update settings and its update stage; others than the run's make a policy that is
                used for nothing.

        Raises:
            UserError: the update gave what is no number, or other weights would be trained.
        """
        self.policy(step - 1)
        self._rest()
        if _of_updates(config) != _of_updates(self.config):
            self._adopt(config)
        trainer, policy = self.trainer(), self._policy
        assert policy is not None
        self._version = -1  # if interrupted inside, the weights are neither version
        try:
            with determinism.strict(policy.device):
                yield trainer
        except FloatingPointError as error:
            update = self.config.update
            raise UserError(
                f"update {step}",
                str(error),
                f"Lower update.learning_rate ({update.learning_rate:g}) or update.weight_decay "
                f"({update.weight_decay:g}), or look at the rewards; what was committed is kept.",
            ) from error
        same = _of_updates(config) == _of_updates(self.config)
        self._version = step if same and config.stages.update == self.config.stages.update else -1

    def _rest(self) -> None:
        """Leave the GPU's memory to what comes."""
        if self._live:
            self._live.sleep()

    def policy(self, version: int) -> Policy:
        """The policy after ``version`` updates: live, or restored from disk."""
        if self._version != version:
            self._restore(version)
        assert self._policy is not None
        return self._policy

    def _restore(self, version: int) -> None:
        start = ranks().on_main(lambda: checkpoints.newest(self.chain, version))
        resuming = not start <= self._version < version
        if resuming:
            self._load(start)
        replayed = list(range(self._version + 1, version + 1))
        for step in replayed:
            self.watch.progress("replaying update", step, version)
            update = self.chain.update(step)
            ask = self.ask(update, self.config)
            with tempfile.TemporaryDirectory() as out:  # what it writes is on disk already
                metrics = find("update", self.config)(ask, self, Path(out))
            first = update.manifest()
            if first and (told := _differs(step, first["metrics"], metrics)):
                self.watch.note(told)
        if replayed and resuming:
            origin = f"checkpoint {start}" if start else "the starting model"
            self.watch.note(
                f"resuming from {origin}; updates {replayed[0]} to {version} replayed from saved "
                "rollouts (no generation)"
            )

    def _load(self, step: int) -> None:
        saved = self.chain.checkpoint(step) if step else None
        if saved:
            ranks().on_main(saved.verify)
        self._take(saved.path if saved else None, self.config)
        self._version = step

    def _take(self, folder: Path | None, config: Config) -> None:
        """Go on from what a checkpoint wrote into a folder, or from the starting model, with these update
        settings."""
        adapted = folder and self.config.update.lora_rank
        weights = folder / MODEL if folder and not adapted else None
        if self._policy:
            self._policy.encoder.close()
            # Weights, gradients and optimizer go before others come: both may not fit.
            self._policy = self._made_trainer = None
            self._version = -1
            gc.collect()
        self._policy = load_policy(self.config, weights) if weights else self._starting()
        self._tell()
        self._trainer_at = folder / TRAINER if folder else None
        if adapted or config != self.config:
            self.trainer(config)  # which has the adapters

    def _tell(self) -> None:
        """Say what a user should know of the model, once."""
        assert self._policy is not None
        for note in self._policy.notes:
            if note not in self._told:
                self.watch.note(note)
                self._told.add(note)

    def trainer(self, config: Config | None = None) -> Trainer:
        """The policy's trainer; made when first needed, as evaluations do without an optimizer."""
        if self._made_trainer is None:
            self._made_trainer = self._new_trainer(config or self.config)
            self._tell()
            if self._trainer_at:
                self._made_trainer.load(self._trainer_at)
        return self._made_trainer

    def _new_trainer(self, config: Config) -> Trainer:
        check_trainer(config)
        return find_trainer(config.update.engine)(self._policy, config, lambda: self._starting().spread())

    def _starting(self) -> Policy:
        """The starting model, loaded.

        Raises:
            UserError: it cannot be loaded, or is not the one that the run was begun with.
        """
        ranks().on_main(self.chain.check_model)
        return load_policy(self.config)

    def ask(self, step: Step, config: Config) -> Ask:
        """What the stage of a step is asked for.

        Args:
            config: the stage's own settings; the run's, or others for a stage run alone.

        Raises:
            UserError: what it reads is not on disk.
        """
        index, chain = step.index or 0, self.chain
        if is_evaluation(step):
            return Ask("eval", step.name, index, config, {}, self.watch)
        inputs = {"prepare": chain.prepare} if index else {}
        if step.name == "rollout" and index > 1:
            inputs["previous"] = chain.rollout(index - 1)
        if step.name in ("score", "update"):
            inputs["rollout"] = chain.rollout(index)
        if step.name == "update":
            inputs["score"] = chain.scored_for(index, config)
        if step.name == "score" and index > 1 and is_there(chain.score(1).path):
            inputs |= {"first rollout": chain.rollout(1), "first score": chain.score(1)}
        folders = {name: self._made(made) for name, made in inputs.items()}
        kept = config.score.model_copy(update={"store": stored(config)})  # by the objective asked for now
        config = config.model_copy(update={"score": kept})
        config = self.config.with_those_of(config, (*SETTINGS[step.name], "stages"))
        return Ask(step.name, step.name, index, config, folders, self.watch)

    def _made(self, step: Step) -> Path:
        if step.manifest() is None:
            raise UserError(
                step.label,
                f"is not on disk ({step.path.name}).",
                f"Make it first: vppo train --run {self.chain.run.name} --stage {step.name}",
            )
        return step.path

    def _adopt(self, config: Config) -> None:
        """Go on from the trainer's state with other update settings.

        Raises:
            UserError: other weights would be trained.
        """
        for name in ("engine", "lora_rank", "freeze_vision"):
            ours, theirs = getattr(self.config.update, name), getattr(config.update, name)
            if ours != theirs:
                raise UserError(
                    f"update.{name}: {theirs}",
                    f"this run's updates were made with {ours}.",
                    "Start another run with it: vppo train --run NAME.",
                )
        everyone = ranks()
        # In the run's folder, which all nodes see; what a kill leaves there, the next command removes.
        folder = everyone.agree(partial_of(self.chain.run / TRAINER))
        everyone.on_main(folder.mkdir)
        try:
            assert self._policy is not None
            saving.save(self._version, self._policy, self.trainer(), folder)
            everyone.barrier()
            self._take(folder, config)
            everyone.barrier()
        finally:
            if everyone.main:
                remove(folder)

    def close(self) -> None:
        """End the grading processes, the engine, and what encodes prompts."""
        if self._policy:
            self._policy.encoder.close()
        if self._live:
            self._live.close()
        for name in ("reward", "graders"):
            if name in self.__dict__:
                getattr(self, name).close()


SAME_UPDATE = 1e-3
"""Change of a metric, as a share of its size (or of 0.01), up to which a replayed update is the same but
for rounding."""


def _differs(step: int, before: dict[str, Any], after: dict[str, Any]) -> str:
    """What to say of a replayed update whose metrics are not its first run's; "" if they are."""
    changes = {
        name: abs(after.get(name, 0.0) - value) / max(abs(value), 0.01)
        for name, value in before.items()
        if after.get(name) != value and type(value) in (int, float)
    }
    if not changes:
        return ""
    name = max(changes, key=lambda name: changes[name])
    if changes[name] <= SAME_UPDATE:
        return (
            f"update {step}, replayed, differs in its last bits from its first run "
            "(another machine, thread count or package version)"
        )
    return (
        f"WARNING update {step}, replayed, is not what it was: {name} is {after.get(name):.6g}, was "
        f"{before[name]:.6g} (another device or compute type, or a part of yours that changed)"
    )
