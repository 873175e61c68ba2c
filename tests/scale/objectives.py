"""Run on every rank by test_deepspeed.py: the gradient of every objective under each ZeRO stage, beside ``torch``.

    torchrun --nproc-per-node N objectives.py FOLDER STAGE...

An objective's step is scored once, by all ranks, and both engines read the same scores. Its six groups, two of
them without an image where the objective can do without, are three micro-batches: two ranks have unequal work.
Prints one JSON line an objective and stage, from rank 0.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from deepspeed.utils import safe_get_full_grad
from naive_sweep import FEW, STEP
from objectives_proof import BEFORE, Bench, Case, Gradient, cases, gap, taken
from updates import deepspeed_trainer

from pipelines.config import settings
from pipelines.config.schema import Config
from pipelines.disk.records import Scored, read_scores
from pipelines.model.load import load_policy
from pipelines.ranks import heartbeat
from pipelines.ranks.ranks import ranks
from pipelines.score.scoring import score
from pipelines.update.torch_engine import TorchTrainer
from pipelines.watch import Silent


def taken_by_all(trainer: TorchTrainer) -> Gradient:
    """As ``taken``, put together from all ranks."""
    kept: Gradient = {}
    step = trainer._step

    def keep() -> float:
        kept.update({name: safe_get_full_grad(p).clone() for name, p in trainer.named})
        return step()

    trainer._step = keep  # type: ignore[method-assign]
    return kept


class Step:
    """An objective's step: its responses and scores."""

    def __init__(self, case: Case, bench: Bench, folder: Path) -> None:
        self.case, self.bench = case, bench
        config, everyone = self._config(), ranks()
        if everyone.main:
            folder.mkdir()
        everyone.barrier()
        score(config, STEP, bench.groups, bench.table, bench.copy(config), folder, Silent())
        everyone.barrier()
        self.scores: list[Scored] = read_scores(folder, STEP)

    def gradient(self, *given: str) -> Gradient:
        """By ``torch``, or by DeepSpeed with these settings."""
        config = self._config(*given)
        policy = self.bench.copy(config)
        deepspeed = config.update.engine == "deepspeed"
        trainer = deepspeed_trainer.DeepSpeedTrainer(policy, config) if deepspeed else TorchTrainer(policy, config)
        trainer.updates = BEFORE
        found = taken_by_all(trainer) if deepspeed else taken(trainer)
        trainer.update(self.bench.groups, self.scores, self.bench.table)
        return found

    def _config(self, *given: str) -> Config:
        return settings.load(None, [*FEW, *self.case.settings, "update.micro_batch_prompts=2", *given])


def main(data: Path, stages: list[str]) -> None:
    me = ranks()
    folder = data / f"objectives-{me.world}"
    if me.main:
        folder.mkdir()
    me.barrier()
    policy = load_policy(settings.load(None, list(FEW)))
    benches = {truth: Bench(policy, folder / f"asked-{truth}-{me.rank}", truth=truth) for truth in (False, True)}
    for case in cases():
        step = Step(case, benches[case.needs_truth], folder / str(case))
        expected = step.gradient()
        for stage in stages:
            found = step.gradient("update.engine=deepspeed", f"update.zero_stage={stage}")
            if me.main:
                told = {"case": str(case), "world": me.world, "stage": stage, "gap": gap(found, expected)}
                print(json.dumps(told), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2:])
    heartbeat.end()
