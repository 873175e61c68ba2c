"""Every objective a second time, in loops over responses and tokens, from its formula and not from our code.

``naive_NAME(batch, settings)`` -> for each response the list of what its tokens' gradients are multiplied by
on-policy: what ``Terms.token_weight_BT`` holds. ``-`` in an objective's name is ``_`` here.
"""

from __future__ import annotations

import math

from torch import Tensor

from pipelines.config.schema import UpdateConfig
from pipelines.objectives.batch import Batch, given

Weights = list[list[float]]


def rows(x_BT: Tensor | None, batch: Batch) -> Weights:
    """Of each response the numbers of its own tokens, and nothing of what pads it."""
    lengths = batch.mask_BT.sum(-1).tolist()
    return [row[:length] for row, length in zip(given(x_BT).tolist(), lengths, strict=True)]


def highest(values: list[float], share: float) -> set[int]:
    """The places of the ceil(share n) highest; of equal ones the first."""
    count = math.ceil(round(share * len(values), 6))
    return set(sorted(range(len(values)), key=lambda i: (-values[i], i))[:count])


def middle(values: list[float]) -> float:
    """The median."""
    ordered, half = sorted(values), len(values) // 2
    return ordered[half] if len(values) % 2 else (ordered[half - 1] + ordered[half]) / 2


def standing(batch: Batch, rewards: list[float]) -> list[float]:
    """(R - mean) / (std + 1e-6) of each response in its group, by the unbiased deviation."""
    result = []
    for b, reward in enumerate(rewards):
        group = [r for r, g in zip(rewards, batch.group_B.tolist(), strict=True) if g == batch.group_B[b]]
        mean = sum(group) / len(group)
        variance = sum((r - mean) ** 2 for r in group) / (len(group) - 1)
        result.append((reward - mean) / (math.sqrt(variance) + 1e-6))
    return result


def alphas(batch: Batch, settings: UpdateConfig) -> list[float]:
    """Eq. 5 of arXiv 2510.09285 over the whole batch."""
    means = [sum(row) / len(row) for row in rows(batch.perception_BT, batch)]
    counted = [s for s, depends in zip(means, batch.depends_B.tolist(), strict=True) if depends]
    z = [(s - min(counted)) / (max(counted) - min(counted)) for s in means]
    mean_z = sum((s - min(counted)) / (max(counted) - min(counted)) for s in counted) / len(counted)
    most = settings.beta_min + (1 - settings.beta_min) / mean_z
    return [
        settings.beta_min + (most - settings.beta_min) * x if depends else 1.0
        for x, depends in zip(z, batch.depends_B.tolist(), strict=True)
    ]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def naive_vppo_soft(batch: Batch, settings: UpdateConfig) -> Weights:
    result, alpha = [], alphas(batch, settings)
    for b, perception in enumerate(rows(batch.perception_BT, batch)):
        n = len(perception)
        mean = sum(perception) / n
        deviation = math.sqrt(sum((s - mean) ** 2 for s in perception) / n)
        z = [(s - mean) / deviation if max(perception) > min(perception) else 0.0 for s in perception]
        c = 0.0
        for _ in range(40):  # Newton's steps, of at most 1
            off = sum(sigmoid(x - c) for x in z) / n - batch.keep_fraction
            slope = -sum(sigmoid(x - c) * (1 - sigmoid(x - c)) for x in z) / n
            c -= max(-1.0, min(1.0, off / slope))
        weights = [sigmoid(x - c) if batch.depends_B[b] else 1.0 for x in z]
        result.append([alpha[b] * float(batch.adv_B[b]) * w for w in weights])
    return result


def naive_vppo_reward(batch: Batch, settings: UpdateConfig) -> Weights:
    shaped = [a * r for a, r in zip(alphas(batch, settings), batch.reward_B.tolist(), strict=True)]
    return [
        [adv * k for k in row] for adv, row in zip(standing(batch, shaped), rows(batch.keep_BT, batch), strict=True)
    ]


def naive_vppo_grpo(batch: Batch, settings: UpdateConfig) -> Weights:
    alpha, adv = alphas(batch, settings), batch.adv_B.tolist()
    return [[a * x * k for k in row] for a, x, row in zip(alpha, adv, rows(batch.keep_BT, batch), strict=True)]


def naive_entropy_k(batch: Batch, settings: UpdateConfig) -> Weights:
    entropy = rows(batch.entropy_BT, batch)
    everyone = sorted((h for row in entropy for h in row), reverse=True)
    share = settings.constants.get("fraction", 0.2)
    lowest = everyone[math.ceil(round(share * len(everyone), 6)) - 1]
    return [[float(batch.adv_B[b]) if h >= lowest else 0.0 for h in row] for b, row in enumerate(entropy)]


def naive_oracle_k(batch: Batch, settings: UpdateConfig) -> Weights:
    return [
        [float(batch.adv_B[b]) if reads else 0.0 for reads in row]
        for b, row in enumerate(rows(batch.perceives_BT, batch))
    ]


def naive_oracle_k_reasoning(batch: Batch, settings: UpdateConfig) -> Weights:
    both = zip(rows(batch.perceives_BT, batch), rows(batch.reasons_BT, batch), strict=True)
    return [
        [float(batch.adv_B[b]) if reads or reasons else 0.0 for reads, reasons in zip(*two, strict=True)]
        for b, two in enumerate(both)
    ]


def naive_cgpo(batch: Batch, settings: UpdateConfig) -> Weights:
    known = {"strength": 0.1, "fraction": 0.3, "elsewhere": 0.0} | settings.constants
    seen, entropy = rows(batch.perception_BT, batch), rows(batch.entropy_BT, batch)
    means = [sum(row) / len(row) for row in seen]
    counted = [m for m, depends in zip(means, batch.depends_B.tolist(), strict=True) if depends]
    centre = middle(counted)
    spread = middle([abs(m - centre) for m in counted])
    result = []
    for b, row in enumerate(seen):
        adv = float(batch.adv_B[b])
        if not batch.depends_B[b]:
            result.append([adv] * len(row))
            continue
        alpha = 1 + known["strength"] * (math.tanh((means[b] - centre) / spread) if spread else 0.0)
        chosen = highest(row, known["fraction"]) | highest(entropy[b], known["fraction"])
        result.append([alpha * adv * (1.0 if t in chosen else known["elsewhere"]) for t in range(len(row))])
    return result
