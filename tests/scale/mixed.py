"""Run on every rank by test_deepspeed.py: questions with and without images at once, beside ``torch``.

    torchrun --nproc-per-node N mixed.py FOLDER STAGE...

FOLDER is as for updates.py; all but one question of its step lose their images, so that some ranks see
none. One JSON line a case.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from updates import SETTINGS, Case, gap

from pipelines.config import settings
from pipelines.disk.records import (
    ROLLOUTS,
    SCORES,
    Rollout,
    Sample,
    SampleTable,
    Scored,
    read_rows,
    read_scores,
    write_rows,
)
from pipelines.model.load import load_policy
from pipelines.ranks import heartbeat
from pipelines.ranks.ranks import ranks
from pipelines.score.scoring import score
from pipelines.update.deepspeed_engine import DeepSpeedTrainer
from pipelines.update.torch_engine import TorchTrainer
from pipelines.watch import Silent

ONE_A_PASS = ("update.micro_batch_prompts=1", "score.batch_prompts=1", "score.looks=0")
CASES: dict[str, tuple[str, ...]] = {
    "whole": (),
    "frozen vision": ("update.freeze_vision=true",),
    "LoRA": ("update.lora_rank=4", "update.lora_alpha=8"),
}


def without_images(data: Path) -> Path:
    """A copy of the folder in which all but the first question of the step are words alone."""
    folder = data / f"mixed-{ranks().world}"
    if ranks().main:
        folder.mkdir()
        for name in (ROLLOUTS, SCORES):
            (folder / name).write_bytes((data / name).read_bytes())
        blind = {rollout.sample_id for rollout in read_rows(data / ROLLOUTS, Rollout)[1:]}
        rows = [
            replace(row, images=[], problem=row.problem.replace("<image>", "")) if row.id in blind else row
            for row in SampleTable(data / "train.parquet")
        ]
        write_rows(folder / "train.parquet", Sample, rows)
    ranks().barrier()
    return folder


def scored(case: Case, kind: type[TorchTrainer], *overrides: str) -> list[Scored]:
    """The step's scores, by a policy that this trainer has placed."""
    engine = "deepspeed" if kind is DeepSpeedTrainer else "torch"
    config = settings.load(None, [*SETTINGS, *ONE_A_PASS, "score.store=all", f"update.engine={engine}", *overrides])
    policy = load_policy(config)
    kind(policy, config)
    out = [tempfile.mkdtemp(dir=case.data)]
    torch.distributed.broadcast_object_list(out)
    score(config, 1, case.rollouts, case.samples, policy, Path(out[0]), Silent())
    ranks().barrier()
    return read_scores(Path(out[0]), 1)


def far(one: list[Scored], other: list[Scored]) -> float:
    """The largest difference of any log-prob, perception, or similarity with an image."""
    return max(
        abs(a - b)
        for mine, theirs in zip(one, other, strict=True)
        for source in (lambda row: row, lambda row: row.statistics)
        for name in ("old_logp", "perception", "image_similarity", "layer_similarity")
        if hasattr(source(mine), name)
        for x, y in zip(getattr(source(mine), name), getattr(source(theirs), name), strict=True)
        for a, b in zip(x, y, strict=True)
    )


def main(data: Path, stages: list[str]) -> None:
    case = Case(without_images(data))
    for name, more in CASES.items():
        expected, _ = case.run(TorchTrainer, *ONE_A_PASS, *more)
        for stage in stages:
            zero = f"update.zero_stage={stage}"
            found, _ = case.run(DeepSpeedTrainer, *ONE_A_PASS, zero, *more)
            if ranks().main:
                print(json.dumps({"case": name, "stage": stage, "gap": gap(found, expected)}), flush=True)
    expected_scores = scored(case, TorchTrainer)
    for stage in stages:
        found_scores = scored(case, DeepSpeedTrainer, f"update.zero_stage={stage}")
        if ranks().main:
            told = {"case": "scores", "stage": stage, "gap": far(found_scores, expected_scores)}
            print(json.dumps(told), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2:])
    heartbeat.end()
