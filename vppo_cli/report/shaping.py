"""Advantages before and after shaping, from what is on disk: pipelines/vppo.py's formulas in numpy.

The trainer computes them anew in every update and keeps only their statistics; a page that should open
fast must not load torch for a few hundred numbers. A test holds the two implementations equal.
"""

from __future__ import annotations

import numpy as np

from pipelines.config.schema import Config
from vppo_cli.report.source import Array

SHAPED = frozenset({"vppo", "vppo-tas"})
"""Objectives that shape advantages by dependency (pipelines/update/objectives.py)."""

UNSHAPED = frozenset({"vppo-tgf", "dapo", "grpo"})


def group_advantages(reward_PG: Array, eps: float = 1e-6) -> Array:
    """(R - mean) / (std + eps) within each group, unbiased std -> [P, G]."""
    reward_PG = reward_PG.astype(np.float64)
    centered_PG = reward_PG - reward_PG.mean(-1, keepdims=True)
    return np.asarray(centered_PG / (reward_PG.std(-1, ddof=1, keepdims=True) + eps))


def shaping_weights(
    dependency_B: Array,
    beta_min: float,
    micro_B: Array,
    beta_max: float | None = None,
    eps: float = 1e-6,
) -> Array:
    """alpha_B of paper eq. 5.

    Args:
        dependency_B: S-bar of what minimum and maximum are taken over.
        micro_B: the part of that in which mean(z) is taken, for each response.
        beta_max: fixed; None: such that the mean of alpha is 1.
    """
    dependency_B = dependency_B.astype(np.float64)
    low, high = dependency_B.min(), dependency_B.max()
    if high - low < eps:
        return np.ones_like(dependency_B)
    z_B = (dependency_B - low) / (high - low)
    if beta_max is not None:
        return np.asarray(beta_min + (beta_max - beta_min) * z_B)
    _, place_B = np.unique(micro_B, return_inverse=True)
    mean_B = (np.bincount(place_B, z_B) / np.bincount(place_B))[place_B]
    return np.asarray(beta_min + (1.0 - beta_min) * z_B / np.maximum(mean_B, 1e-8))


def batch_weights(config: Config, dependency_B: Array, depends_B: Array) -> Array:
    """alpha_B of one update batch, 1 where no image was to depend on."""
    sizes, alpha_B, place_B = (
        config.published,
        np.ones(len(dependency_B)),
        np.arange(len(dependency_B)),
    )
    device = micro = len(place_B)
    if config.update.shaping_statistics == "micro_batch":
        device = sizes.mini_batch_responses or device
        micro = sizes.micro_batch_responses or micro
    for start in range(0, len(place_B), device):
        some_B = depends_B & (place_B // device == start // device)
        if some_B.any():
            micro_B = (place_B[some_B] - start) // micro
            settings = config.update
            alpha_B[some_B] = shaping_weights(
                dependency_B[some_B], settings.beta_min, micro_B, settings.beta_max
            )
    return alpha_B


def depend(config: Config, kept_PG: Array, length_PG: Array) -> Array:
    """The groups that were filtered by their perception -> [P], bool.

    In the others all tokens were kept, though fewer would be: questions without an image.
    """
    fewer_PG = np.ceil(np.round(config.score.keep_fraction * length_PG, 6)) < length_PG
    return np.asarray(~((kept_PG == length_PG).all(1) & fewer_PG.any(1)))


def overlong_penalty(length_B: Array, max_length: int, cache: int) -> Array:
    """DAPO's length penalty in [-1, 0] (arXiv 2503.14476, eq. 13)."""
    return np.clip((max_length - cache - length_B.astype(np.float64)) / cache, -1.0, 0.0)


def step_advantages(
    config: Config, reward_PG: Array, dependency_PG: Array, length_PG: Array, depends_P: Array
) -> tuple[Array, Array | None]:
    """Advantages of a step's groups, and as the objective shapes them -> [P, G] each.

    Shaping is over each update batch (``update.batch_prompts`` groups in the order of the file), as
    the trainer cuts them, of the groups that depend on an image. None: the objective is one of the
    user's own, so nobody knows.
    """
    settings = config.update
    if settings.overlong_cache:
        limit = config.rollout.max_new_tokens
        reward_PG = reward_PG + overlong_penalty(length_PG, limit, settings.overlong_cache)
    adv_PG = group_advantages(reward_PG)
    if settings.objective in UNSHAPED:
        return adv_PG, adv_PG.copy()
    if settings.objective not in SHAPED:
        return adv_PG, None
    shaped_PG = np.empty_like(adv_PG)
    for start in range(0, len(adv_PG), settings.batch_prompts):
        part = slice(start, start + settings.batch_prompts)
        dependency_B = dependency_PG[part].reshape(-1)
        depends_B = np.repeat(depends_P[part], adv_PG.shape[1])
        alpha_B = batch_weights(config, dependency_B, depends_B)
        shaped_PG[part] = alpha_B.reshape(-1, adv_PG.shape[1]) * adv_PG[part]
    return adv_PG, shaped_PG
