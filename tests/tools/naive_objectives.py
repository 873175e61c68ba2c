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
