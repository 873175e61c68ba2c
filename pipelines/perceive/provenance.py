"""What a measurement was made with: in the page, the JSON, the Parquet file and the terminal alike."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from pipelines.config.imports import part_hash
from pipelines.config.schema import Config
from pipelines.disk.fingerprint import fingerprint
from pipelines.disk.provenance import provenance
from pipelines.model.policy import Policy
from pipelines.model.prompts import model_location
from pipelines.objectives.table import needs_two_views
from pipelines.page.viewer import unit
from pipelines.score.perturb import perturbation_settings

Made = dict[str, Any]

METADATA = b"vppo"
"""The key of it in the metadata of a Parquet file, as JSON."""


def made_with(config: Config, policy: Policy, masks: int, name: str, weights: str | None) -> Made:
    """All that decides the numbers, as JSON values.

    Args:
        masks: perturbed images that were averaged over.
        name: what the model is called.
        weights: what tells its weights from others (``weights_of``, or a checkpoint's key); None: not known.
    """
    score, rollout, two = config.score, config.rollout, needs_two_views(config)
    own = {part: found for part in (score.estimator, score.perturbation) if ":" in part and (found := part_hash(part))}
    return {
        "model": name,
        "weights": weights,
        "dtype": policy.dtype,
        "device": policy.device.type,
        "estimator": score.estimator,
        "unit": unit(score.estimator),
        "perturbation": score.perturbation if two else None,
        "perturbation_settings": perturbation_settings(score.perturbation, score.probability) if two else None,
        "masks": masks if two else 0,
        "mask_per": score.mask_per if two else None,
        "seed": config.seed,
        "keep_fraction": score.keep_fraction,
        "temperature": rollout.temperature,
        "top_p": rollout.top_p,
        "top_k": rollout.top_k,
        "max_new_tokens": rollout.max_new_tokens,
        "instruction": policy.encoder.instruction,
        "system_prompt": policy.encoder.system,
        "min_pixels": policy.config.data.min_pixels,
        "max_pixels": policy.config.data.max_pixels,
        "sources": own,
        "versions": provenance(),
    }


def weights_of(config: Config) -> str:
    """What tells the weights of ``model.path`` from others: a hash of the folder's content, or the hub's commit."""
    where = Path(model_location(config.model))
    return f"content {fingerprint(where)}" if where.is_dir() else f"revision {config.model.revision or 'unknown'}"


def compared(made: Made) -> str:
    """What was compared with what, in a few words."""
    if not made["masks"]:
        return f"{made['estimator']}, without a perturbed image"
    which = "the image and a perturbed one"
    if made["masks"] > 1:
        which = f"the image and {made['masks']} perturbed ones, the mean"
    return f"{made['estimator']} between {which} ({perturbation(made)}, seed {made['seed']})"


def perturbation(made: Made) -> str:
    """``patch_black 0.5``: the perturbation with its settings."""
    values = [f"{name} {value:g}" for name, value in made["perturbation_settings"].items()]
    return " ".join([made["perturbation"], ", ".join(values).removeprefix("probability ")]).strip()


def versions(made: Made, names: Collection[str] | None = None) -> str:
    """Packages and their versions, and the commit; of these names only, where they are given."""
    return ", ".join(f"{name} {version}" for name, version in made["versions"].items() if not names or name in names)


def facts(made: Made, responses: str) -> list[list[str]]:
    """What a page's last section lists: [name, value].

    Args:
        responses: where they came from.
    """
    pixels = [f"{name} {made[key]:,}" for name, key in (("from", "min_pixels"), ("to", "max_pixels")) if made[key]]
    masks = f"{made['masks']}, the mean of them" if made["masks"] > 1 else str(made["masks"])
    rows = [
        ("Model", made["model"]),
        ("Weights", made["weights"] or "of a policy that was loaded already: not known"),
        ("Computed", f"{made['dtype']} on {made['device']}"),
        ("Estimator", f"{made['estimator']}{', in ' if made['unit'] else ''}{made['unit']}"),
        ("Perturbation", perturbation(made) if made["masks"] else "none"),
        ("Masks", masks if made["masks"] else None),
        ("A mask per", made["mask_per"] if made["mask_per"] == "response" else None),
        ("Seed", str(made["seed"])),
        ("Temperature", f"{made['temperature']:g}"),
        ("Kept", f"{made['keep_fraction']:g} of a response's tokens"),
        ("Responses", responses),
        ("Instruction", made["instruction"] or None),
        ("System prompt", made["system_prompt"] or None),
        ("Pixels of an image", " ".join(pixels) or None),
        *((f"Source of {part}", found) for part, found in made["sources"].items()),
        ("Data", made.get("data")),
        ("Versions", versions(made)),
    ]
    return [[name, value] for name, value in rows if value is not None]


def written(made: Made) -> str:
    """How the model was sampled from."""
    limits = [f"top-p {made['top_p']:g}"] if made["top_p"] < 1 else []
    limits += [f"top-k {made['top_k']}"] if made["top_k"] > 0 else []
    return ", ".join(["written by the model", *limits, f"at most {made['max_new_tokens']} tokens"])


def line(made: Made) -> str:
    """What stands under a page's heading."""
    return f"{made['model']}  \u00b7  {compared(made)}"
