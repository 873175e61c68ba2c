"""What stays alive between stages: the policy, its trainer, the rollout engine, the grader.

Each is made on first use. Run alone, a stage finds the policy it needs on disk: the nearest
checkpoint, and from there the stored rollouts and scores replayed through the trainer, which is
deterministic, so the weights are bit for bit what they were. Generation is never paid twice.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from pipelines import checkpoint
from pipelines.chain import Chain
from pipelines.config.resolve import find_part
from pipelines.config.schema import Config
from pipelines.disk.files import partial_of, remove
from pipelines.disk.records import Rollout, SampleTable, Scored, read_rows
from pipelines.disk.step import Step
from pipelines.errors import UserError
from pipelines.grading.graders import GraderPool, check_grader
from pipelines.grading.reward import RewardFunction, make_reward
from pipelines.model import determinism
from pipelines.model.finite import first_not_finite
from pipelines.model.load import load_policy
from pipelines.model.placement import OnMain
from pipelines.model.policy import Policy
from pipelines.model.prompts import PixelLimits, model_location, only_local
from pipelines.prepare.stage import prepare
from pipelines.ranks.ranks import ranks
from pipelines.rollout.engine import Engine, LiveEngine
from pipelines.rollout.engines import ENGINES
from pipelines.rollout.stage import ROLLOUTS, rollout
from pipelines.score.mismatch import check_mismatch
from pipelines.score.perturb import PERTURBATIONS
from pipelines.score.stage import ESTIMATOR_NAMES, SCORES, score
from pipelines.stages import of_evaluations
from pipelines.tracking.trackers import check_trackers
from pipelines.update.engines import TRAINERS, Trainer
from pipelines.update.objectives import OBJECTIVES
from pipelines.watch import Watch


def check_parts(config: Config) -> None:
    """Find every part that the settings name: a misspelt one is told before any work is done.

    Raises:
        UserError: there is no such part.
    """
    find_part("rollout.engine", config.rollout.engine, ENGINES)
    find_part("score.estimator", config.score.estimator, dict.fromkeys(ESTIMATOR_NAMES))
    views = (*PERTURBATIONS, "raw_black")
    find_part("score.perturbation", config.score.perturbation, dict.fromkeys(views))
    find_part("update.engine", config.update.engine, TRAINERS)
    find_part("update.objective", config.update.objective, OBJECTIVES)
    make_reward(config.reward.function, config.reward.grader)
    for grader in config.eval.graders:
        check_grader(grader, "eval.graders")
    check_trackers(config)


def check_sampler(config: Config) -> None:
    """See that vLLM, where it samples in this process, takes the model and these settings.

    Raises:
        UserError: it does not.
    """
    if config.rollout.engine == "vllm" and not config.rollout.server:
        from pipelines.rollout.vllm import engine as vllm_engine  # brings vLLM

        vllm_engine.check(config)


def check_saves(config: Config) -> None:
    """See that the starting model's generation settings can be written again, with every checkpoint.

    Raises:
        UserError: transformers refuses to; said before any work is done.
    """
    from transformers import GenerationConfig

    where = model_location(config.model)
    try:
        found = GenerationConfig.from_pretrained(
            where, revision=config.model.revision or "main", local_files_only=only_local(where)
        )
    except (OSError, ValueError):  # it has none, or what is wrong is told when it is loaded
        return
    try:
        found.validate(strict=True)
    except ValueError as error:
        wrong = [line for line in str(error).splitlines() if line.startswith("- ")]
        raise UserError(
            f"model.path {where}, generation_config.json",
            f"transformers refuses to save it with a checkpoint: {(wrong or [str(error)])[0].lstrip('- ')}",
            "Correct that file in a copy of the model: set do_sample to true, or take out what it names.",
        ) from error  # fmt: skip


def check_trainer(config: Config) -> None:
    """See that updates can be made here: by the engine on all ranks there are, and its packages.

    Raises:
        UserError: the engine is one of a single process; a package is not installed.
    """
    if config.update.engine == "torch" and ranks().world > 1:
        raise UserError(
            "update.engine: torch", f"updates in one process, and there are {ranks().world}.",
            "Add --set update.engine=deepspeed.",
        )  # fmt: skip
    rank = config.update.lora_rank
    for package, wanted, place in (
        ("deepspeed", config.update.engine == "deepspeed", "update.engine: deepspeed"),
        ("peft", bool(rank), f"update.lora_rank: {rank}"),
    ):
        if wanted and find_spec(package) is None:
            extra = "gpu" if package == "deepspeed" else "lora"
            raise UserError(place, f"{package} is not installed.", f"pip install 'vppo[{extra}]'")


def _here(run: Config, asked: Config) -> Config:
    """The run's settings, but for device, reward, graders and engine, which are as asked for now."""
    engine = {name: getattr(asked.rollout, name) for name in ("engine", *asked.rollout.unkeyed)}
    return run.model_copy(
        update={
            "run": asked.run, "reward": asked.reward,
            "rollout": run.rollout.model_copy(update=engine),
        }
    )  # fmt: skip


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
        settings = self.config.reward
        return make_reward(settings.function, settings.grader, settings.deadline, settings.workers)

    @cached_property
    def graders(self) -> GraderPool:
        """The processes that grade evaluations."""
        settings = self.config.reward
        return GraderPool(settings.workers, settings.deadline)

    @cached_property
    def samples(self) -> SampleTable:
        """The training questions."""
        return SampleTable(self._made(self.chain.prepare) / "train.parquet")

    def engine(self, version: int) -> Engine:
        """The rollout engine with the policy after ``version`` updates."""
        return self._engine(self._sampler(version))

    def _sampler(self, version: int) -> Policy:
        """The policy to sample with: whole on the device, unless vLLM has a copy of its own."""
        policy = self.policy(version)
        return policy if self.config.rollout.engine == "vllm" else policy.spread()

    def engine_for(
        self, version: int, asking: PixelLimits | None = None, instruction: str = ""
    ) -> Engine:
        """The same for an evaluation, which may show images and instruct in its own way.

        Args:
            asking: pixel limits of its images; None: as training asks.
        """
        policy = self._sampler(version)
        return self._engine(policy if asking is None else policy.asked(asking, instruction))

    def _engine(self, policy: Policy) -> Engine:
        factory = find_part("rollout.engine", self.config.rollout.engine, ENGINES)
        if self._live is None:
            engine = factory(policy)
            if not isinstance(engine, LiveEngine):
                return engine
            self._live, self._live_version = engine, None
        if self._live_version != self._version:
            if (
                self._made_trainer
            ):  # whose state leaves no room for weights on their way beside a KV cache
                self._live.sleep()
            self._live.sync(policy)
            self._live_version = self._version
        return self._live.view(policy)

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
        start = ranks().on_main(lambda: checkpoint.newest(self.chain, version))
        resuming = not start <= self._version < version
        if resuming:
            self._load(start)
        replayed = list(range(self._version + 1, version + 1))
        for step in replayed:
            self.watch.progress("replaying update", step, version)
            rollouts, scores = self.chain.rollout(step), self.chain.score(step)
            metrics = self._apply(step, self._made(rollouts), self._made(scores))
            first = self.chain.update(step).manifest()
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
        """Go on from what ``_save`` wrote into a folder, or from the starting model, with these update
        settings."""
        adapted = folder and self.config.update.lora_rank
        weights = folder / checkpoint.MODEL if folder and not adapted else None
        if self._policy:
            self._policy.encoder.close()
            # Weights, gradients and optimizer go before others come: both may not fit.
            self._policy = self._made_trainer = None
            self._version = -1
            gc.collect()
        self._policy = load_policy(self.config, weights)
        self._tell()
        self._trainer_at = folder / checkpoint.TRAINER if folder else None
        if adapted or config != self.config:
            self._trainer(config)  # which has the adapters

    def _tell(self) -> None:
        """Say what a user should know of the model, once."""
        assert self._policy is not None
        for note in self._policy.notes:
            if note not in self._told:
                self.watch.note(note)
                self._told.add(note)

    def _trainer(self, config: Config | None = None) -> Trainer:
        """The policy's trainer; made when first needed, as evaluations do without an optimizer."""
        if self._made_trainer is None:
            self._made_trainer = self._new_trainer(config or self.config)
            self._tell()
            if self._trainer_at:
                self._made_trainer.load(self._trainer_at)
        return self._made_trainer

    def _new_trainer(self, config: Config) -> Trainer:
        check_trainer(config)
        factory = find_part("update.engine", config.update.engine, TRAINERS)
        return factory(self._policy, config, lambda: load_policy(self.config).spread())

    def _apply(self, step: int, rollouts: Path, scores: Path) -> dict[str, Any]:
        trainer = self._trainer()
        assert self._policy is not None
        self._version = -1  # if interrupted inside, the weights are neither version
        groups, scored = read_rows(rollouts / ROLLOUTS, Rollout), read_rows(scores / SCORES, Scored)
        try:
            with determinism.strict(self._policy.device):
                metrics = trainer.update(groups, scored, self.samples)
        except FloatingPointError as error:
            update = self.config.update
            raise UserError(
                f"update {step}", str(error),
                f"Lower update.learning_rate ({update.learning_rate:g}) or update.weight_decay "
                f"({update.weight_decay:g}), or look at the rewards; what was committed is kept.",
            ) from error  # fmt: skip
        self._version = step
        return metrics

    def _made(self, step: Step) -> Path:
        if step.manifest() is None:
            raise UserError(
                step.label, f"is not on disk ({step.path.name}).",
                f"Make it first: vppo train --run {self.chain.run.name} --stage {step.name}",
            )  # fmt: skip
        return step.path

    # -- stages ----------------------------------------------------------------------------------

    def make(self, step: Step, config: Config, out: Path) -> dict[str, Any]:
        """Make one step in the folder ``out``; returns its metrics.

        Args:
            config: the stage's own settings; the run's, or others for a stage run alone. Inputs and
                policy are the run's in either case, and so is every setting that is not the stage's: what
                its key does not hold must not decide.
        """
        if step.name in STAGES:
            own = {name: getattr(config, name) for name in READS[step.name]}
            config = self.config.model_copy(update=own)
            return STAGES[step.name](self, config, step.index or 0, out)
        return self.evaluate(step.name, config, step.index or 0, out)

    def prepare(self, config: Config, _: int, out: Path) -> dict[str, Any]:
        """Write the questions."""
        return ranks().on_main(lambda: prepare(config, out, self.watch))

    def rollout(self, config: Config, step: int, out: Path) -> dict[str, Any]:
        """Sample and grade responses with the policy after ``step - 1`` updates."""
        previous = self.chain.rollout(step - 1) if step > 1 else None
        manifest = previous.manifest() if previous else None
        return rollout(
            config, step, self.samples, self._made(previous) if previous else None,
            manifest["metrics"] if manifest else {}, self.engine(step - 1), self.reward, out, self.watch,
            self.policy(step - 1).encoder.expect,
        )  # fmt: skip

    def score(self, config: Config, step: int, out: Path) -> dict[str, Any]:
        """Measure the token perception of a step's rollouts."""
        rollouts = read_rows(self._made(self.chain.rollout(step)) / ROLLOUTS, Rollout)
        policy = self.policy(step - 1)
        self._rest()
        if isinstance(policy.placement, OnMain):
            self._trainer()  # which divides the weights: whole, they may not fit
        metrics = score(config, step, rollouts, self.samples, policy, out, self.watch)
        first = self.chain.score(1).manifest() if step > 1 else None
        check_mismatch(config, step, metrics, first["metrics"]["mismatch_mean"] if first else None)
        return metrics

    def update(self, config: Config, step: int, _: Path) -> dict[str, Any]:
        """Update the policy on a step's rollouts and scores; the weights stay live."""
        self.policy(step - 1)
        self._rest()
        if config.update != self.config.update:
            self._adopt(config)
        metrics = self._apply(
            step, self._made(self.chain.rollout(step)), self._made(self.chain.score(step))
        )
        if config.update != self.config.update:
            self._version = -1  # an experiment: not a policy of this run
        return metrics

    def _adopt(self, config: Config) -> None:
        """Go on from the trainer's state with other update settings.

        Raises:
            UserError: other weights would be trained.
        """
        for name in ("engine", "lora_rank", "freeze_vision"):
            ours, theirs = getattr(self.config.update, name), getattr(config.update, name)
            if ours != theirs:
                raise UserError(
                    f"update.{name}: {theirs}", f"this run's updates were made with {ours}.",
                    "Start another run with it: vppo train --run NAME.",
                )  # fmt: skip
        everyone = ranks()
        # In the run's folder, which all nodes see; what a kill leaves there, the next command removes.
        folder = everyone.agree(partial_of(self.chain.run / checkpoint.TRAINER))
        everyone.on_main(folder.mkdir)
        try:
            self._save(self._version, folder)
            everyone.barrier()
            self._take(folder, config)
            everyone.barrier()
        finally:
            if everyone.main:
                remove(folder)

    def checkpoint(self, _: Config, step: int, out: Path) -> dict[str, Any]:
        """Save the policy after ``step`` updates, ready for plain transformers, and the trainer."""
        self.policy(step)
        self._save(step, out)
        return {}

    def _save(self, step: int, out: Path) -> None:
        """Write the weights, which then leave the host's memory, and the trainer's state."""
        trainer = self._trainer()
        assert self._policy is not None
        _save_model(step, self._policy, out / checkpoint.MODEL)
        if ranks().main:
            (out / checkpoint.TRAINER).mkdir()
        ranks().barrier()  # which waits for a slow disk; DeepSpeed's collectives would not for long
        trainer.save(out / checkpoint.TRAINER)

    def evaluate(self, benchmark: str, config: Config, step: int, out: Path) -> dict[str, Any]:
        """Evaluate the policy after ``step`` updates on one benchmark."""
        metrics: dict[str, Any] = of_evaluations("make")(self, benchmark, config, step, out)
        return metrics

    def close(self) -> None:
        """End the grading processes, the engine, and what encodes prompts."""
        if self._policy:
            self._policy.encoder.close()
        if self._live:
            self._live.close()
        for name in ("reward", "graders"):
            if name in self.__dict__:
                getattr(self, name).close()


def _save_model(step: int, policy: Policy, folder: Path) -> None:
    weights = _on_host(policy)
    ranks().on_main(lambda: _check_saved(step, weights))
    if ranks().main:
        policy.model.save_pretrained(folder, state_dict=weights)
        policy.processor.save_pretrained(folder)


def _on_host(policy: Policy) -> dict[str, torch.Tensor]:
    """Rank 0's copy of all weights; tied ones have one between them, as on a CPU, and are saved once."""
    named = policy.model.named_parameters(remove_duplicate=False)
    firsts: dict[int, str] = {}
    first = {name: firsts.setdefault(id(parameter), name) for name, parameter in named}
    weights: dict[str, torch.Tensor] = {}
    for name, value in policy.placement.weights(policy.model):
        if ranks().main:
            weights[name] = weights.get(first.get(name, name), value.detach()).cpu()
    return weights


def _check_saved(step: int, weights: dict[str, torch.Tensor]) -> None:
    """Refuse to save what is no number: good checkpoints would be deleted for it."""
    if found := first_not_finite(weights.items()):
        raise UserError(
            f"checkpoint {step}", f"the weights are not finite ({found[0]}: {found[1]}).",
            "Lower update.learning_rate or update.weight_decay; earlier checkpoints are kept.",
        )  # fmt: skip


SAME_UPDATE = 1e-3
"""Change of a metric, as a share of its size (or of 0.01), up to which a replayed update is the same but
for rounding."""


def _differs(step: int, before: dict[str, Any], after: dict[str, Any]) -> str:
    """What to say of a replayed update whose metrics are not its first run's; "" if they are."""
    changes = {
        name: abs(after.get(name, 0.0) - value) / max(abs(value), 0.01)
        for name, value in before.items() if after.get(name) != value
    }  # fmt: skip
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


STAGES: dict[str, Callable[[Session, Config, int, Path], dict[str, Any]]] = {
    "prepare": Session.prepare,
    "rollout": Session.rollout,
    "score": Session.score,
    "update": Session.update,
    "checkpoint": Session.checkpoint,
}
"""Stage by name; any other step is an evaluation on the benchmark of its name."""

READS: dict[str, tuple[str, ...]] = {
    "prepare": ("data", "model"),
    "rollout": ("rollout", "reward", "seed"),
    "score": ("score", "seed"),
    "update": ("update",),
    "checkpoint": (),
}
"""The settings that a stage has in its key (pipelines/chain.py), and that it may be given anew."""
