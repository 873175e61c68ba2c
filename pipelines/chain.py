"""The steps of a run under one config: their order, keys and places. Computed, not looked up.

Each step's key holds the keys of what it reads, so the chain knows, before anything runs, what a
changed setting makes stale: from the first changed update on, later rollouts too, since they were
sampled by a policy that would no longer exist. Torch-free.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from pipelines.config import Config
from pipelines.errors import UserError
from pipelines.settings import shipped_config
from pipelines.step import Step

VERSIONS = {
    "prepare": 1, "rollout": 1, "score": 1, "update": 1, "checkpoint": 1, "eval": 1,
}  # fmt: skip
"""Raise a stage's number when its code gives other results: its steps become stale."""

WHOLE_FILE = 64 * 2**20
"""Files up to this size (bytes) are fingerprinted by their whole content."""


class Chain:
    """Every step of one run.

    Args:
        config: decides the keys.
        run: the run's folder.
    """

    def __init__(self, config: Config, run: Path) -> None:
        self.config, self.run = config, run
        self.prepare = Step("prepare", None, run, VERSIONS["prepare"], _sources(config))
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
        return self.prepare.key if step == 0 else self.update(step).key

    def checkpoint(self, step: int) -> Step:
        """The weights and optimizer state after ``step`` updates."""
        parent = self.run / "checkpoints" / f"{step:04d}"
        inputs = {"policy": self.policy_key(step)}
        return Step("checkpoint", step, parent, VERSIONS["checkpoint"], {}, inputs)

    def eval(self, step: int, benchmark: str) -> Step:
        """An evaluation of the policy after ``step`` updates."""
        settings = self.config.eval.keyed("eval")
        if benchmark == "validation":
            samples = self.config.checkpoint.validation_samples or self.config.eval.samples
            settings |= {"eval.samples": samples, "eval.limit": None}
        settings |= self.config.reward.keyed("reward") | {"seed": self.config.seed}
        inputs = {"policy": self.policy_key(step), "prepare": self.prepare.key}
        parent = self.run / "eval" / f"{step:04d}"
        return Step(benchmark, step, parent, VERSIONS["eval"], settings, inputs)

    def has_checkpoint(self, step: int) -> bool:
        """Whether a checkpoint is due after this update."""
        return step % self.config.checkpoint.every == 0 or step == self.config.run.steps

    def validates(self) -> bool:
        """Whether checkpoints are followed by an evaluation on the validation questions."""
        data = self.config.data
        held_out = data.validation_count or data.validation_source or data.source == "glyphs"
        return self.config.checkpoint.validation_samples > 0 and bool(held_out)

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
        for benchmark in self.config.eval.benchmarks:
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
        config = self.config
        while len(self._updates) < step:
            index = len(self._updates) + 1
            parent = self.run / "steps" / f"{index:04d}"
            policy = self.policy_key(index - 1)
            inputs = {"prepare": self.prepare.key, "policy": policy}
            if self._rollouts:
                inputs["previous rollout"] = self._rollouts[-1].key
            rollout = Step(
                "rollout", index, parent, VERSIONS["rollout"],
                config.rollout.keyed("rollout") | config.reward.keyed("reward") | {"seed": config.seed},
                inputs,
            )  # fmt: skip
            score = Step(
                "score", index, parent, VERSIONS["score"],
                config.score.keyed("score") | {"seed": config.seed}, {"rollout": rollout.key},
            )  # fmt: skip
            update = Step(
                "update", index, parent, VERSIONS["update"], config.update.keyed("update"),
                {"rollout": rollout.key, "score": score.key, "policy": policy},
            )  # fmt: skip
            self._rollouts.append(rollout)
            self._scores.append(score)
            self._updates.append(update)


def _sources(config: Config) -> dict[str, Any]:
    """The data and model settings; what is local by its content, wherever it lies.

    So a changed file makes the run stale, and a moved one does not.
    """
    settings = config.data.keyed("data") | config.model.keyed("model")
    model = shipped_config("tiny_model") if config.model.path == "tiny" else Path(config.model.path)
    if not model.exists() and config.model.path.startswith(("/", ".", "~")):
        raise UserError(f"model.path: {config.model.path}", "no such folder.", "")
    local = {"model.path": model}
    for name in ("data.source", "data.validation_source"):
        if settings[name] not in (None, "glyphs"):
            local[name] = Path(settings[name])
    for name, path in local.items():
        if path.exists():
            settings[name] = f"content {fingerprint(path)}"
    return settings


@cache
def fingerprint(path: Path) -> str:
    """A hash of a file's or folder's content; of large files, of their size and both ends."""
    digest = hashlib.sha256()
    files = [path]
    if path.is_dir():  # a README may change
        files = sorted(p for p in path.rglob("*") if p.is_file() and p.suffix != ".md")
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.relative_to(path) if path.is_dir() else ''}\x00{size}\x00".encode())
        with file.open("rb") as content:
            if size <= WHOLE_FILE:
                digest.update(content.read())
            else:
                digest.update(content.read(2**20))
                content.seek(-(2**20), 2)
                digest.update(content.read())
    return digest.hexdigest()[:16]
