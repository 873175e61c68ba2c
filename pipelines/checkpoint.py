"""Checkpoint stage: weights in Hugging Face format, the optimizer beside them, and which to keep."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from pipelines.chain import Chain
from pipelines.errors import UserError
from pipelines.step import MANIFEST, disk_errors, read_manifest, write_atomic

MODEL, TRAINER = "model", "trainer"


def kept(chain: Chain, step: int) -> Path | None:
    """The folder of the checkpoint after ``step`` updates, if its weights are on disk."""
    checkpoint = chain.checkpoint(step)
    manifest = checkpoint.manifest()
    return checkpoint.path if manifest and not manifest.get("pruned") else None


def newest(chain: Chain, at_most: int) -> int:
    """The last update, no later than ``at_most``, whose checkpoint is on disk; 0 if none is."""
    for step in range(at_most, 0, -1):
        if chain.checkpoint(step).path.is_dir() and kept(chain, step):
            return step
    return 0


def accuracy(chain: Chain, step: int) -> float | None:
    """The validation accuracy of a checkpoint, if it was measured."""
    manifest = chain.eval(step, "validation").manifest()
    return manifest["metrics"]["accuracy"] if manifest else None


def best(chain: Chain, among: list[int]) -> list[int]:
    """Checkpoints from best to worst validation accuracy; of equals the earlier first."""
    measured = [(step, accuracy(chain, step)) for step in among]
    return [s for s, a in sorted(measured, key=lambda m: (-(m[1] or 0.0), m[0])) if a is not None]


def prune(chain: Chain, step: int) -> list[int]:
    """Delete the weights of checkpoints up to ``step`` that are neither recent nor best.

    The manifest stays, marked ``pruned``: the step counts as done. Marked first, so that a crash
    leaves extra files rather than a checkpoint that looks whole and is not.
    """
    settings = chain.config.checkpoint
    made = [s for s in range(1, step + 1) if chain.checkpoint(s).path.is_dir()]
    keep = set(made[-settings.keep_last :]) | set(best(chain, made)[: settings.keep_best])
    removed = []
    for old in made:
        folder = chain.checkpoint(old).path
        if old in keep:
            continue
        manifest = read_manifest(folder)
        if not manifest.get("pruned"):
            write_atomic(folder / MANIFEST, json.dumps(manifest | {"pruned": True}, indent=1))
            removed.append(old)
        for part in (MODEL, TRAINER):
            shutil.rmtree(folder / part, ignore_errors=True)
    return removed


def export(chain: Chain, which: str, target: Path) -> int:
    """Copy a checkpoint's model (Hugging Face format) to ``target``; returns its step.

    Args:
        which: ``last``, ``best`` or a step number.

    Raises:
        UserError: there is no such checkpoint, or ``target`` is a folder that is not empty.
    """
    made = [s for s in range(1, chain.config.run.steps + 1)
            if chain.checkpoint(s).path.is_dir() and kept(chain, s)]  # fmt: skip
    chosen = {"last": made[-1:], "best": best(chain, made)[:1]}.get(which)
    if chosen is None:
        chosen = [int(which)] if which.isdigit() and int(which) in made else []
    if not chosen:
        raise UserError(
            f"checkpoint {which}", f"run {chain.run.name} has no such checkpoint on disk.",
            f"It has: {' '.join(map(str, made)) or 'none yet'}; also: last, best.",
        )  # fmt: skip
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(str(target), "is not an empty folder.", "Name a new folder.")
    chain.checkpoint(chosen[0]).verify()
    with disk_errors(target):
        shutil.copytree(chain.checkpoint(chosen[0]).path / MODEL, target, dirs_exist_ok=True)
    return chosen[0]
