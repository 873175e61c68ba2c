"""Stages computed again on a recorded run's tables, so that two machines have the same inputs.

Sampled tokens part ways after some steps, as the last bits of a sum depend on the processor. On the same
tokens all that follows agrees to rounding, and whatever computes differently shows at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain as joined
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.chain import Chain
from pipelines.config import settings
from pipelines.config.schema import Config
from pipelines.disk.records import ROLLOUTS, SCORES, Rollout, SampleTable, Scored, read_rows
from pipelines.disk.step import Step, commit
from pipelines.run import held, perform
from pipelines.watch import Silent

RUN = "replay"

Numbers = dict[str, float]

OTHER_SETTINGS: dict[str, tuple[str, ...]] = {
    # Several optimizer steps on the same responses, large ones: ratios leave 1 and clipping bites.
    # Micro-batches of 3 groups cut batches of 8 unevenly.
    "off-policy": (
        "update.epochs=2",
        "update.batch_prompts=8",
        "update.micro_batch_prompts=3",
        "update.learning_rate=1e-3",
        "update.warmup_steps=3",
        "update.max_grad_norm=0.1",
        "update.kl_coefficient=0.1",
        "update.loss_average=sequence",
        "update.dual_clip=1.5",
        "update.weight_decay=3",
        "update.adam_betas=[0.8,0.9]",
    ),
    "all terms": (
        "score.estimator=jsd",
        "score.perturbation=gaussian_noise",
        "update.objective=vppo-tas",
        "update.entropy_estimator=exact",
        "update.entropy_penalty=0.1",
        "update.tis_cap=1.0001",
        "update.overlong_cache=40",
        "update.mask_truncated=true",
        "update.beta_min=0.5",
    ),
    "published": (
        "mode=published",
        "published.mini_batch_responses=null",
        "published.micro_batch_responses=24",
        "update.micro_batch_prompts=3",
        "update.entropy_penalty=0.06",
        # The questions and responses are recorded ones.
        "published.resize_first=false",
        "published.strip_question=false",
        "published.drop_surplus=false",
        "published.choice_rule=true",
    ),
    "dapo": (
        "score.estimator=log_ratio",
        "score.perturbation=gaussian_blur",
        "update.objective=dapo",
        "model.shared_prefix=false",
    ),
    "grpo": (
        "score.estimator=argmax_drop",
        "score.perturbation=grey",
        "update.objective=grpo",
        "update.gradient_checkpointing=true",
    ),
    "vppo-tgf": (
        "score.estimator=entropy",
        "score.keep_fraction=0.2",
        "update.objective=vppo-tgf",
        "score.batch_tokens=600",
        "update.micro_batch_tokens=600",
    ),
    "soft": ("update.objective=vppo-soft", "update.surrogate=sapo", "score.store=all", "update.batch_prompts=8"),
    "random": ("score.estimator=random", "update.freeze_vision=true"),
    "oracle": ("score.estimator=oracle", "update.lora_rank=4"),
}
"""What the run itself does not use, each tried on the first step's responses."""

COOLER = (
    "rollout.temperature=0.6",
    "rollout.top_p=0.9",
    "rollout.top_k=12",
    "rollout.prompts_per_step=8",
    "update.batch_prompts=8",
)
"""Sampling that is not plain: what the engine applies, the trainer has to know of."""


class Replay:
    """A run in ``folder`` whose first steps have the responses of a recorded run.

    Args:
        config: the recorded run's settings.
        recorded: the folder with its tables, as ``record`` wrote them.
    """

    def __init__(self, config: Config, recorded: Path, folder: Path) -> None:
        # Numbers tell more than the guard, which ends a run at the first step after a wrong update.
        self.config = settings.load(None, ["rollout.mismatch_limit=1e9"], base=config.model_dump())
        self.recorded, self.run = recorded, folder / RUN
        self.steps = len(list(recorded.glob("*-rollouts.parquet")))
        self.chain = Chain(self.config, self.run)

    def prepared(self) -> SampleTable:
        """The training questions, made now."""
        self._make(self.chain, [self.chain.prepare])
        return SampleTable(self.chain.prepare.path / "train.parquet")

    def sampled(self) -> tuple[Numbers, list[Rollout], list[Rollout]]:
        """The first rollout: its metrics, what is sampled now, and what was recorded."""
        step = self.chain.rollout(1)
        (metrics,) = self._make(self.chain, [step])
        return metrics, read_rows(step.path / ROLLOUTS, Rollout), self.rollouts(1)

    def rollouts(self, step: int) -> list[Rollout]:
        return read_rows(self.recorded / f"{step:04d}-{ROLLOUTS}", Rollout)

    def scores(self, step: int) -> list[Scored]:
        return read_rows(self.recorded / f"{step:04d}-{SCORES}", Scored)

    def trained(self) -> Iterator[tuple[int, Numbers, list[Scored], Numbers]]:
        """Score and update on the recorded responses: (step, metrics, its scores, metrics)."""
        steps = range(1, self.steps + 1)
        for step in steps:
            self._give(self.chain.rollout(step), step)
        stages = [s for i in steps for s in (self.chain.score(i), self.chain.update(i))]
        made = self._make(self.chain, stages)
        for step, scored, updated in zip(steps, made[::2], made[1::2], strict=True):
            yield step, scored, read_rows(self.chain.score(step).path / SCORES, Scored), updated

    def otherwise(self) -> Iterator[tuple[str, Numbers, Numbers]]:
        """The same of the first step with ``OTHER_SETTINGS``: (their name, score, update)."""
        for name, overrides in OTHER_SETTINGS.items():
            other = self._with(overrides)
            scored, updated = self._make(other, [other.score(1), other.update(1)])
            yield name, scored, updated

    def cooler(self) -> tuple[list[Rollout], Numbers]:
        """What is sampled by ``COOLER``, and the metrics of scoring it."""
        other = self._with(COOLER)
        _, scored = self._make(other, [other.rollout(1), other.score(1)])
        return read_rows(other.rollout(1).path / ROLLOUTS, Rollout), scored

    def _with(self, overrides: Sequence[str]) -> Chain:
        return Chain(settings.load(None, overrides, base=self.config.model_dump()), self.run)

    def _give(self, step: Step, index: int) -> None:
        """Commit the recorded responses in place of the run's own."""
        with commit(step) as (out, _):
            source = self.recorded / f"{index:04d}-{ROLLOUTS}"
            (out / ROLLOUTS).write_bytes(source.read_bytes())

    def _make(self, chain: Chain, steps: Sequence[Step]) -> list[Numbers]:
        missing = [step for step in steps if step.manifest() is None]
        with held(self.run, Silent()):
            perform(chain, chain.config, missing, Silent())
        return [(step.manifest() or {})["metrics"] for step in steps]


def record(chain: Chain, steps: int, out: Path) -> None:
    """Keep the tables of a run's first steps."""
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("*.parquet"):
        old.unlink()
    for step in range(1, steps + 1):
        for made, name in ((chain.rollout(step), ROLLOUTS), (chain.score(step), SCORES)):
            (out / f"{step:04d}-{name}").write_bytes((made.path / name).read_bytes())


def farthest(found: Sequence[Scored], recorded: Sequence[Scored]) -> Numbers:
    """How far scores are from recorded ones: the largest difference of any token, by column.

    ``keep``: the share of tokens kept in one of the two only.
    """
    numbers = {
        name: float(np.abs(flat(found, name) - flat(recorded, name)).max())
        for name in ("old_logp", "entropy", "perception", "dependency")
    }
    return numbers | {"keep": float((flat(found, "keep") != flat(recorded, "keep")).mean())}


def flat(rows: Sequence[Any], column: str) -> np.ndarray[Any, Any]:
    """All numbers of a column, in order."""
    values: list[Any] = [value for row in rows for value in getattr(row, column)]
    return np.array(list(joined(*values)) if isinstance(values[0], list) else values, dtype=float)


def differing(found: Sequence[Rollout], recorded: Sequence[Rollout]) -> float:
    """The share of recorded responses that were not sampled again, token for token."""
    ids = {(row.sample_id, i): r for row in found for i, r in enumerate(row.response_ids)}
    again = [ids.get((row.sample_id, i)) == r for row in recorded for i, r in enumerate(row.response_ids)]
    return 1 - float(np.mean(again))
