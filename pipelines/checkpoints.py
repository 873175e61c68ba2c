"""The checkpoints of a run: the newest, the best, which to keep, and one as a model to take away."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from pipelines.chain import Chain
from pipelines.disk.files import check_owned, disk_errors, find, write_atomic
from pipelines.disk.records import MODEL, NAMED, RESULTS, TRAINER
from pipelines.disk.step import MANIFEST, PRUNED, Step, checked, is_there, read_manifest, unreadable
from pipelines.errors import UserError
from pipelines.grading.reward import ACCURACY, REWARD, REWARDS, check_key


def kept(chain: Chain, step: int) -> Path | None:
    """The folder of the checkpoint after ``step`` updates, if its weights are on disk."""
    checkpoint = chain.checkpoint(step)
    manifest = checkpoint.manifest()
    return checkpoint.path if manifest and not manifest.get(PRUNED) else None


def newest(chain: Chain, at_most: int) -> int:
    """The last update, no later than ``at_most``, whose checkpoint is on disk; 0 if none is."""
    for step in range(at_most, 0, -1):
        if is_there(chain.checkpoint(step).path) and kept(chain, step):
            return step
    return 0


def saved(chain: Chain) -> list[int]:
    """The steps whose checkpoint's weights are on disk."""
    steps = range(1, chain.config.run.steps + 1)
    return [step for step in steps if is_there(chain.checkpoint(step).path) and kept(chain, step)]


def pick(chain: Chain, which: str) -> int | None:
    """The step that ``last``, ``best`` or a number names, among those on disk; else None."""
    steps = saved(chain)
    named = {"last": steps[-1:], "best": best(chain, steps)[:1]}
    found = named.get(which, [step for step in steps if str(step) == which])
    return found[0] if found else None


def unnamed(chain: Chain, place: str, which: str, there: list[int]) -> UserError:
    """The error of a checkpoint that is not on disk: why, and what can be named.

    Args:
        there: the steps that can be named; 0 is the starting model.
    """
    can = [*(["last"] if there else []), *(["best"] if best(chain, saved(chain)) else [])]
    why = "no such checkpoint on disk."
    if which == "best":
        why = "no checkpoint on disk that was measured on the validation questions, so none is the best."
    has = " ".join(map(str, there)) or "none yet"
    return UserError(
        place, f"run {chain.run.name} has {why}", f"It has: {has}{'; also: ' + ', '.join(can) if can else ''}."
    )


def quality(chain: Chain, step: int) -> float | None:
    """What chooses the best checkpoint: the mean of ``checkpoint.best_key`` on the validation questions; None
    where it was not measured.

    Raises:
        UserError: the reward returns no such list; the results are damaged.
    """
    made, key = chain.eval(step, "validation"), chain.config.checkpoint.best_key
    if made.manifest() is None:
        return None
    path = made.path / RESULTS
    try:
        found = json.loads(checked(path).read_bytes())
        rewards = found.get("rewards", {})
        means = {name: float(mean["value"]) for name, mean in rewards.items()}
        means[ACCURACY] = float(found["accuracy"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise unreadable(
            path,
            error,
            f"has no {key} ({error}).",
            f"Delete the folder {made.path}; it is made again when it is needed.",
        ) from error
    reward = chain.config.reward.function
    if reward in REWARDS:
        means[REWARD] = means[ACCURACY]
    elif key not in means and not chain.versions["rewards"]:
        return None  # an earlier version measured no rewards
    if key not in means:
        raise UserError(f"checkpoint.best_key: {key}", f"{path} has none.", f"It has: {', '.join(sorted(means))}.")
    return means[key]


def check_best(chain: Chain) -> None:
    """See that the run's reward returns what chooses the best checkpoint, where something on disk tells.

    Raises:
        UserError: it does not.
    """
    config = chain.config
    if config.checkpoint.best_key in (ACCURACY, REWARD):
        return
    if not config.stages.rollout and (first := chain.rollout(1).manifest()):
        named = [name.removeprefix(NAMED) for name in first["metrics"] if name.startswith(NAMED)]
        check_key("checkpoint.best_key", config.checkpoint.best_key, named, config.reward.function)
    best(chain, saved(chain))


def best(chain: Chain, among: list[int]) -> list[int]:
    """Checkpoints from best to worst by ``quality``; of equals the earlier first."""
    measured = [(step, quality(chain, step)) for step in among]
    return [s for s, a in sorted(measured, key=lambda m: (-(m[1] or 0.0), m[0])) if a is not None]


def prune_after(chain: Chain, step: Step) -> None:
    """Prune where a checkpoint, or the quality of one, is new."""
    if step.name in ("checkpoint", "validation"):
        prune(chain, step.index or 0)


def prune(chain: Chain, step: int) -> list[int]:
    """Delete the weights of checkpoints up to ``step`` that are neither recent nor best.

    The manifest stays, marked ``pruned``: the step counts as done. Marked first, so that a crash
    leaves extra files rather than a checkpoint that looks whole and is not.
    """
    settings = chain.config.checkpoint
    made = [s for s in range(1, step + 1) if is_there(chain.checkpoint(s).path)]
    keep = set(made[-settings.keep_last :]) | set(best(chain, made)[: settings.keep_best])
    if settings.keep_best:  # any of those to be measured again may turn out the best
        keep |= {old for old in made if _measured_otherwise(chain, old)}
    removed = []
    for old in made:
        folder = chain.checkpoint(old).path
        if old in keep:
            continue
        manifest = read_manifest(folder)
        if not manifest.get(PRUNED):
            write_atomic(folder / MANIFEST, json.dumps(manifest | {PRUNED: True}, indent=1))
            removed.append(old)
        check_owned(folder)
        for part in (MODEL, TRAINER):
            shutil.rmtree(folder / part, ignore_errors=True)
    return removed


def _measured_otherwise(chain: Chain, step: int) -> bool:
    """Whether all that is known of a checkpoint's quality is of other settings or of an earlier version."""
    made = chain.eval(step, "validation")
    return made.manifest() is None and bool(find(made.path.parent, f"{made.path.name.partition('-')[0]}-*"))


def export(chain: Chain, which: str, target: Path) -> int:
    """Copy a checkpoint's model (Hugging Face format) to ``target``; returns its step.

    Args:
        which: ``last``, ``best`` or a step number.

    Raises:
        UserError: there is no such checkpoint, or ``target`` is a folder that is not empty.
    """
    step = pick(chain, which)
    if step is None:
        raise unnamed(chain, f"checkpoint {which}", which, saved(chain))
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(str(target), "is not an empty folder.", "Name a new folder.")
    made = chain.checkpoint(step)
    made.verify()
    with disk_errors(target):
        shutil.copytree(made.path / MODEL, target, dirs_exist_ok=True)
    return step
