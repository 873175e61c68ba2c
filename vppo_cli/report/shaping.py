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
    dependency_B: Array, beta_min: float, micro_B: Array | None = None, eps: float = 1e-6
) -> Array:
    """alpha_B of paper eq. 5.

    Args:
        dependency_B: S-bar of one whole update batch.
        micro_B: the micro-batch of each response, within which mean(z) is taken (reference code);
            None: over the whole batch.
    """
    dependency_B = dependency_B.astype(np.float64)
    low, high = dependency_B.min(), dependency_B.max()
    if high - low < eps:
        return np.ones_like(dependency_B)
    z_B = (dependency_B - low) / (high - low)
    if micro_B is None:
        micro_B = np.zeros(len(z_B), dtype=int)
    _, place_B = np.unique(micro_B, return_inverse=True)
    mean_B = (np.bincount(place_B, z_B) / np.bincount(place_B))[place_B]
    return np.asarray(beta_min + (1.0 - beta_min) * z_B / np.maximum(mean_B, 1e-8))


def overlong_penalty(length_B: Array, max_length: int, cache: int) -> Array:
    """DAPO's length penalty in [-1, 0] (arXiv 2503.14476, eq. 13)."""
    return np.clip((max_length - cache - length_B.astype(np.float64)) / cache, -1.0, 0.0)


def step_advantages(
    config: Config, reward_PG: Array, dependency_PG: Array, length_PG: Array
) -> tuple[Array, Array | None]:
    """Advantages of a step's groups, and as the objective shapes them -> [P, G] each.

    Shaping is over each update batch (``update.batch_prompts`` groups in the order of the file), as
    the trainer cuts them. None: the objective is one of the user's own, so nobody knows.
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
        micro_B = None
        if settings.shaping_statistics == "micro_batch":
            group_B = np.arange(len(dependency_B)) // adv_PG.shape[1]
            micro_B = group_B // settings.micro_batch_prompts
        alpha_B = shaping_weights(dependency_B, settings.beta_min, micro_B)
        shaped_PG[part] = alpha_B.reshape(-1, adv_PG.shape[1]) * adv_PG[part]
    return adv_PG, shaped_PG
