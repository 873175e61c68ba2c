"""Every objective a second time, in loops over responses and tokens, from its formula and not from our code.

``naive_NAME(batch, settings)`` -> for each response the list of what its tokens' gradients are multiplied by
on-policy: what ``Terms.token_weight_BT`` holds. ``-`` in an objective's name is ``_`` here.
"""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np
from sklearn.covariance import LedoitWolf
from torch import Tensor

from pipelines.config.schema import UpdateConfig
from pipelines.objectives.batch import Batch, given

Weights = list[list[float]]


def rows(x_BT: Tensor | None, batch: Batch) -> Weights:
    """Of each response the numbers of its own tokens, and nothing of what pads it."""
    lengths = batch.mask_BT.sum(-1).tolist()
    return [row[:length] for row, length in zip(given(x_BT).tolist(), lengths, strict=True)]


def between(values: list[float]) -> list[float]:
    """(x - min) / (max - min), or 0 where all are equal."""
    low, high = min(values, default=0), max(values, default=0)
    return [(x - low) / (high - low) if high > low else 0.0 for x in values]


def naive_vgpo(batch: Batch, settings: UpdateConfig) -> Weights:
    at = {"late": 0.3, "start": 0.5, "share": 0.2, "intra_low": 0.1, "intra_high": 2, "inter_low": 0.9, "inter_high": 2}
    at |= settings.constants
    similarity = rows(batch.image_similarity_BT, batch)
    sees = batch.has_image_B.tolist()
    lowest = min([0.0] + [s for b, row in enumerate(similarity) for s in row if sees[b]])
    scores = []
    for row in similarity:
        rho = [s + 1 if settings.variant == "paper" else s - lowest for s in row]
        start = math.floor(len(row) * at["start"])
        late = sorted(rho[start:], reverse=True)
        least = late[max(1, math.floor(len(late) * at["share"])) - 1]
        for t in range(start, len(rho)):
            if rho[t] >= least:
                rho[t] *= 1 + at["late"] * (t / (len(rho) - 1) if len(rho) > 1 else 0)
        scores.append(between(rho))
    result = []
    for b, w in enumerate(scores):
        group = [sum(scores[o]) for o in range(len(scores)) if batch.group_B[o] == batch.group_B[b]]
        mean = sum(between(group)) / len(group)
        mine = between([*group, sum(w)])[-1]  # one more that equals one of them changes nothing
        inter = min(max(1 + mine - mean, at["inter_low"]), at["inter_high"])
        adv = float(batch.adv_B[b])
        if not sees[b]:
            result.append([adv] * len(w))
            continue
        shift = sum(w) / len(w)
        result.append([adv * inter * min(max(1 + x - shift, at["intra_low"]), at["intra_high"]) for x in w])
    return result


def naive_pepo(batch: Batch, settings: UpdateConfig) -> Weights:
    at = {"gate": 0.05, "temperature": 1.8} | settings.constants
    progress = min(1.0, batch.updates / at["steps"])
    result = []
    both = zip(rows(batch.layer_similarity_BT, batch), rows(batch.entropy_BT, batch), strict=True)
    for b, (similarity, entropy) in enumerate(both):
        mixed = [v + h for v, h in zip(between(similarity), between(entropy), strict=True)]
        mean = sum(mixed) / len(mixed)
        powers = [
            math.exp(v * (1 + at["gate"] * math.tanh(x - mean)) / at["temperature"])
            for v, x in zip(similarity, mixed, strict=True)
        ]
        weights = [len(powers) * p / sum(powers) for p in powers]
        result.append([float(batch.adv_B[b]) * (1 - progress + progress * w) for w in weights])
    return result


def highest(values: list[float], share: float) -> set[int]:
    """The places of the ceil(share n) highest; of equal ones the first."""
    count = math.ceil(round(share * len(values), 6))
    return set(sorted(range(len(values)), key=lambda i: (-values[i], i))[:count])


def difference(one: list[float], other: list[float]) -> list[float]:
    """|x - y| as float32 has it: what is equal there has to be equal here."""
    return [float(abs(np.float32(x) - np.float32(y))) for x, y in zip(one, other, strict=True)]


def naive_pgpo(batch: Batch, settings: UpdateConfig) -> Weights:
    tau, beta = settings.constants.get("tau", 0.4), settings.constants.get("beta", 2.0)
    result = []
    for b, perception in enumerate(rows(batch.perception_BT, batch)):
        importance = between([math.log(1 + s) for s in perception])
        adv, ones = float(batch.adv_B[b]), [1.0] * len(importance)
        if not batch.depends_B[b]:
            weights = ones
        elif settings.variant == "code":
            limit = sorted(importance)[math.floor(round(tau * len(importance), 6))]
            weights = [
                max(i / limit, 0.1) if i < limit else 1 + (beta * (i - limit) / (1 - limit) if i > limit else 0)
                for i in importance
            ]
        else:
            weights = [i / tau if i < tau else 1 + beta * (i - tau) / (1 - tau) for i in importance]
            weights = [w * len(weights) / sum(weights) for w in weights] if sum(weights) else ones
        result.append([w * adv for w in weights])
    return result


def naive_vepo(batch: Batch, settings: UpdateConfig) -> Weights:
    share, alpha = settings.constants.get("share", 0.2), settings.constants.get("alpha", 0.7)
    clean, perturbed = rows(batch.entropy_BT, batch), rows(batch.perturbed_entropy_BT, batch)
    kept = []
    for b, divergence in enumerate(rows(batch.jsd_BT, batch)):
        j, d, h = between(divergence), between(difference(clean[b], perturbed[b])), between(clean[b])
        score = [(1 - (1 - j[t]) ** alpha * (1 - d[t]) ** (1 - alpha)) * h[t] for t in range(len(h))]
        kept.append(highest(score, share) if batch.depends_B[b] else set(range(len(h))))
    counted = [b for b in range(len(kept)) if not (settings.mask_truncated and batch.truncated_B[b])]
    # A sum over the kept ones, divided by all: times all / kept it is their mean.
    factor = sum(len(clean[b]) for b in counted) / sum(len(kept[b]) for b in counted)
    return [
        [float(batch.adv_B[b]) * factor if t in kept[b] else 0.0 for t in range(len(clean[b]))]
        for b in range(len(kept))
    ]


def naive_tor(batch: Batch, settings: UpdateConfig) -> Weights:
    fixed = {"reasoning_share": 0.3, "perception_share": 0.3, "reasoning_weight": 1.0, "perception_weight": 0.5}
    fixed |= settings.constants
    clean, perturbed = rows(batch.clean_logp_BT, batch), rows(batch.perturbed_logp_BT, batch)
    entropy = rows(batch.entropy_BT, batch)
    places = [(b, t) for b, row in enumerate(entropy) for t in range(len(row)) if batch.depends_B[b]]
    shift = [difference(one, other) for one, other in zip(clean, perturbed, strict=True)]
    reasons = {places[i] for i in highest([entropy[b][t] for b, t in places], fixed["reasoning_share"])}
    perceives = {places[i] for i in highest([shift[b][t] for b, t in places], fixed["perception_share"])}
    result = []
    for b, row in enumerate(entropy):
        weights = []
        for t in range(len(row)):
            if not batch.depends_B[b]:
                weights.append(1.0)
            elif (b, t) in reasons:
                weights.append(fixed["reasoning_weight"])
            else:
                weights.append(fixed["perception_weight"] if (b, t) in perceives else 0.0)
        result.append([w * float(batch.adv_B[b]) for w in weights])
    return result


def naive_pivot_vaa(batch: Batch, settings: UpdateConfig) -> Weights:
    fixed = {"weight": 0.5, "window": 32, "discount": 0.8} | settings.constants
    clean, perturbed = rows(batch.clean_logp_BT, batch), rows(batch.perturbed_logp_BT, batch)
    entropy = rows(batch.entropy_BT, batch)
    of_images = [h for b, row in enumerate(entropy) if batch.depends_B[b] for h in row]
    mean_entropy = sum(of_images) / len(of_images)
    result = []
    for b, row in enumerate(entropy):
        adv, n = float(batch.adv_B[b]), len(row)
        if not batch.depends_B[b]:
            result.append([adv] * n)
            continue
        c = [1 - math.exp(q - p) for p, q in zip(clean[b], perturbed[b], strict=True)]
        gated = []
        for t in range(n):
            later = range(t + 1, min(n, t + 1 + int(fixed["window"])))
            discounts = [fixed["discount"] ** (k - t - 1) for k in later]
            future = sum(w * c[k] for w, k in zip(discounts, later, strict=True)) / sum(discounts) if later else 0.0
            gated.append((1 - math.exp(-row[t] / mean_entropy)) * future)
        # numpy's own line through the points; through one point or two it leaves nothing
        place = [t / max(n - 1, 1) for t in range(n)]
        line = np.polynomial.Polynomial.fit(place, gated, 1, domain=[0, 1])(np.array(place)) if n > 2 else gated
        final = []
        for t in range(n):
            moved = adv + fixed["beta"] * abs(adv) * (c[t] + fixed["weight"] * (gated[t] - line[t]))
            final.append(max(moved, 0.0) if adv > 0 else min(moved, 0.0))
        result.append(final)
    return result


def naive_tpae(batch: Batch, settings: UpdateConfig) -> Weights:
    tau = settings.constants.get("tau", 3.03)
    perception, entropy = rows(batch.perception_BT, batch), rows(batch.entropy_BT, batch)
    known = defaultdict(list)
    for b, ids in enumerate(batch.ids_BT.tolist()):
        for t in range(len(entropy[b])):
            if batch.correct_B[b] and batch.depends_B[b]:
                known[int(batch.group_B[b]), ids[t]].append([perception[b][t], entropy[b][t]])
    fitted = {}
    for word, points in known.items():
        if len(points) >= 3:
            fit = LedoitWolf().fit(np.array(points))
            if np.linalg.matrix_rank(fit.covariance_, tol=1e-9 * np.trace(fit.covariance_), hermitian=True) == 2:
                fitted[word] = (fit.location_, np.linalg.inv(fit.covariance_))
    result = []
    for b, ids in enumerate(batch.ids_BT.tolist()):
        weights = []
        for t in range(len(entropy[b])):
            word, penalty = (int(batch.group_B[b]), ids[t]), 0.0
            if word in fitted and batch.depends_B[b]:
                mean, inverse = fitted[word]
                off = np.array([perception[b][t], entropy[b][t]]) - mean
                penalty = 1 / (1 + math.exp(-min(0.0, tau - math.sqrt(off @ inverse @ off)))) - 0.5
            weights.append(float(batch.adv_B[b]) + penalty)
        result.append(weights)
    return result


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
    known = {"strength": 0.1, "perception_share": 0.3, "reasoning_share": 0.3} | settings.constants
    seen, entropy = rows(batch.perception_BT, batch), rows(batch.entropy_BT, batch)
    means = [sum(row) / len(row) for row in seen]
    counted = sorted(m for m, depends in zip(means, batch.depends_B.tolist(), strict=True) if depends)
    centre = counted[(len(counted) - 1) // 2]
    spread = sorted(abs(m - centre) for m in counted)[(len(counted) - 1) // 2]
    places = [(b, t) for b, row in enumerate(seen) for t in range(len(row)) if batch.depends_B[b]]
    perceives = {places[i] for i in highest([seen[b][t] for b, t in places], known["perception_share"])}
    reasons = {places[i] for i in highest([entropy[b][t] for b, t in places], known["reasoning_share"])}
    result = []
    for b, row in enumerate(seen):
        alpha = 1 + known["strength"] * math.tanh((means[b] - centre) / (spread + 1e-8))
        weights = []
        for t in range(len(row)):
            if (b, t) in perceives:
                weights.append(alpha)
            else:
                weights.append(1.0 if (b, t) in reasons or not batch.depends_B[b] else 0.0)
        result.append([w * float(batch.adv_B[b]) for w in weights])
    return result
