"""VPPO's update a second time, as plainly as it can be written: what the project's own is measured against.

Written from the equations (arXiv 2510.09285, eq. 3 to 6, appendix B) and from what the authors' code
is known to do, not from ``pipelines``, of which it uses nothing: one padded row for each response, the
model's own forward, dense logits [B, T, V], loops over responses and tokens. It works in the model's
own floating type: in float64 it is the twin that tells rounding from error.

Axis letters: B responses, T response tokens (padded), L whole rows, V vocabulary.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import Tensor


@dataclass
class Response:
    """One response of the update batch, and all that the update is told of it."""

    prompt: list[int]
    """Its prompt's tokens, one for each image token."""
    tokens: list[int]
    """Up to and including the one that ends it."""
    group: Any
    """Equal for the responses to one prompt."""
    reward: float
    pixels: Tensor | None = None
    """Patches of the image as the processor makes them, or None without an image."""
    grid: Tensor | None = None
    """[images, 3] frames, rows and columns of patches."""
    perturbed: Tensor | None = None
    """``pixels`` of the perturbed image."""
    old_logp: list[float] | None = None
    """log pi of each token by the policy that sampled it; None: by the one that is trained."""
    truncated: bool = False
    """Whether it ended at the limit of tokens."""


@dataclass(frozen=True)
class Method:
    """What the two modes differ in, and the constants they share."""

    estimator: str = "kl"
    """``kl``: eq. 3 over the whole vocabulary; ``k3``: appendix B's, of the sampled token."""
    text_only: str = "kept"
    """``kept``: all tokens, unshaped, no part in the statistics; ``scored``: as any other, with S = 0."""
    device_batch: int | None = None
    """Responses over which min and max of eq. 5 go; None: all."""
    micro_batch: int | None = None
    """Responses of a device batch over which the mean goes; None: all."""
    keep_fraction: float = 0.4
    beta_min: float = 0.9
    beta_max: float | None = None
    """None: what makes the mean of alpha 1."""
    clip_low: float = 0.2
    clip_high: float = 0.28
    clip_dual: float = 3.0
    entropy: str = "sampled"
    """``sampled``: -log pi of the sampled token; ``exact``: of the distribution; ``none``."""
    entropy_coefficient: float = 0.06
    average: str = "token"
    """``token``: over all response tokens of the batch; ``sequence``: of each response, then over them."""
    truncated: str = "counted"
    """``counted``: as any other response; ``left out``: its tokens are, of the loss and what divides it."""
    temperature: float = 1.0
    never: Sequence[int] = ()
    """Tokens that the policy never says: it is the distribution over the others (authors' code: none)."""


EXACT = Method()


def published(device_batch: int, micro_batch: int, **other: Any) -> Method:
    """What the authors ran, on devices with so many responses a mini-batch and a micro-batch."""
    return Method("k3", "scored", device_batch, micro_batch, **other)


@contextlib.contextmanager
def wide() -> Iterator[None]:
    """What code computes in float32 by name, whatever the model's type, is computed in float64."""
    narrow = torch.get_default_dtype()
    with (
        mock.patch.multiple(torch, float32=torch.float64, float=torch.float64),
        mock.patch.object(Tensor, "float", Tensor.double),
    ):
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(narrow)


# --- the policy -------------------------------------------------------------------------------------


def log_softmax(model: Any, batch: Sequence[Response], method: Method, perturbed: bool) -> Tensor:
    """log pi(. | s_t, I) of every response token, or with the perturbed image: [B, T, V].

    Rows are padded on the right; so is what is returned, with zeros.
    """
    rows = [r.prompt + r.tokens for r in batch]
    width, length = max(map(len, rows)), max(len(r.tokens) for r in batch)
    ids_BL = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    inputs = {
        "input_ids": ids_BL,
        "attention_mask": torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r in rows]),
        "mm_token_type_ids": (ids_BL == model.config.image_token_id).int(),
    }
    seen = [r for r in batch if r.pixels is not None]
    if seen:
        pixels = [r.perturbed if perturbed else r.pixels for r in seen]
        inputs["pixel_values"] = torch.cat([p.to(model.dtype) for p in pixels])
        inputs["image_grid_thw"] = torch.cat([r.grid for r in seen])
    with wide() if model.dtype == torch.float64 else contextlib.nullcontext():
        logits_BLV = model(**inputs, use_cache=False).logits / method.temperature
    never = torch.tensor(method.never, dtype=torch.long)
    logits_BLV = logits_BLV.index_fill(2, never, -1e30)
    logp_BTV = logits_BLV.new_zeros(len(rows), length, logits_BLV.shape[2])
    for b, r in enumerate(batch):
        start = len(r.prompt) - 1  # the last token of the prompt says the first of the response
        logits_TV = logits_BLV[b, start : start + len(r.tokens)]
        logp_BTV[b, : len(r.tokens)] = logits_TV - logits_TV.logsumexp(-1, keepdim=True)
    return logp_BTV


def sampled(logp_BTV: Tensor, batch: Sequence[Response]) -> list[list[Tensor]]:
    """log pi of the tokens that were sampled."""
    return [[logp_BTV[b, t, token] for t, token in enumerate(r.tokens)] for b, r in enumerate(batch)]


# --- perception, and what follows from it -------------------------------------------------------------


def perception(model: Any, batch: Sequence[Response], method: Method) -> list[list[float]]:
    """S of every response token. Without an image the perturbed view is the view, and S is 0."""
    with torch.no_grad():
        p_BTV = log_softmax(model, batch, method, perturbed=False)
        q_BTV = log_softmax(model, batch, method, perturbed=True)
    scores = []
    for b, r in enumerate(batch):
        row = []
        for t, token in enumerate(r.tokens):
            p_V, q_V = p_BTV[b, t], q_BTV[b, t]
            if r.pixels is None:
                score = torch.zeros(())
            elif method.estimator == "kl":
                score = (p_V.exp() * (p_V - q_V)).sum()
            else:
                d = (q_V[token] - p_V[token]).clamp(-20, 20)
                score = (d.exp() - d - 1).clamp(0, 10)
            row.append(score.item())
        scores.append(row)
    return scores


def kept(scores: Sequence[Sequence[float]], batch: Sequence[Response], method: Method) -> list[list[bool]]:
    """TGF: the ceil(k length) tokens of highest S of each response, the earlier of equal ones."""
    masks = []
    for row, r in zip(scores, batch, strict=True):
        if r.pixels is None and method.text_only == "kept":
            masks.append([True] * len(row))
            continue
        places = sorted(range(len(row)), key=lambda t: (-row[t], t))
        best = set(places[: math.ceil(method.keep_fraction * len(row))])
        masks.append([t in best for t in range(len(row))])
    return masks


def shaping(scores: Sequence[Sequence[float]], batch: Sequence[Response], method: Method) -> list[float]:
    """TAS: alpha of each response, eq. 5 (1 where all responses depend alike on the image)."""
    dependency = [sum(row) / len(row) for row in scores]
    alpha = [1.0] * len(batch)
    counted = [b for b, r in enumerate(batch) if r.pixels is not None or method.text_only == "scored"]
    for device in chunks(counted, method.device_batch):
        low = min(dependency[b] for b in device)
        high = max(dependency[b] for b in device)
        if high - low <= 1e-6:
            continue
        for micro in chunks(device, method.micro_batch):
            z = {b: (dependency[b] - low) / (high - low) for b in micro}
            mean = sum(z.values()) / len(z)
            tiny = 0 if method.micro_batch is None else 1e-8  # theirs: z may be 0 for all of them
            top = method.beta_max or method.beta_min + (1 - method.beta_min) / (mean + tiny)
            for b in micro:
                alpha[b] = method.beta_min + (top - method.beta_min) * z[b]
    return alpha


def chunks(items: Sequence[int], size: int | None) -> list[Sequence[int]]:
    """In order, ``size`` at a time; None: all at once."""
    if size is None:
        return [items] if items else []
    return [items[start : start + size] for start in range(0, len(items), size)]


def advantages(batch: Sequence[Response]) -> list[float]:
    """Of each response against its group: unbiased standard deviation, plus 1e-6."""
    values = []
    for r in batch:
        rewards = [other.reward for other in batch if other.group == r.group]
        mean = sum(rewards) / len(rewards)
        variance = sum((reward - mean) ** 2 for reward in rewards) / (len(rewards) - 1)
        values.append((r.reward - mean) / (math.sqrt(variance) + 1e-6))
    return values


# --- the loss ---------------------------------------------------------------------------------------


def loss(
    model: Any, batch: Sequence[Response], keep: Sequence[Sequence[bool]], alpha: Sequence[float], method: Method
) -> Tensor:
    """The negated eq. 6 with clipped ratios, plus the entropy penalty: a scalar with its graph."""
    logp_BTV = log_softmax(model, batch, method, perturbed=False)
    logp_BT = sampled(logp_BTV, batch)
    advantage = advantages(batch)
    counted = [b for b, r in enumerate(batch) if not (r.truncated and method.truncated == "left out")]
    share = 1 / sum(len(batch[b].tokens) for b in counted)  # of a token
    total = torch.zeros((), dtype=logp_BTV.dtype)
    for b in counted:
        r, a = batch[b], alpha[b] * advantage[b]
        weight = share if method.average == "token" else 1 / (len(r.tokens) * len(counted))
        for t in range(len(r.tokens)):
            logp = logp_BT[b][t]
            if keep[b][t]:
                old = logp.detach() if r.old_logp is None else r.old_logp[t]
                total = total - weight * surrogate(torch.exp(logp - old), a, method)
            if method.entropy == "sampled":
                total = total - share * method.entropy_coefficient * logp
            elif method.entropy == "exact":
                p_V = logp_BTV[b, t]
                total = total - share * method.entropy_coefficient * (p_V.exp() * p_V).sum()
    return total


def surrogate(ratio: Tensor, advantage: float, method: Method) -> Tensor:
    """What a token adds to the objective: clipped from above, and for a < 0 from below (dual clip)."""
    clipped = ratio.clamp(1 - method.clip_low, 1 + method.clip_high)
    value = torch.minimum(ratio * advantage, clipped * advantage)
    return value.clamp(min=method.clip_dual * advantage) if advantage < 0 else value


def gradient(
    model: Any, batch: Sequence[Response], keep: Sequence[Sequence[bool]], alpha: Sequence[float], method: Method
) -> dict[str, Tensor]:
    """Of ``loss``, by the weight's name."""
    weights = dict(model.named_parameters())
    parts = torch.autograd.grad(loss(model, batch, keep, alpha, method), list(weights.values()), allow_unused=True)
    return {
        name: torch.zeros_like(weight) if part is None else part
        for (name, weight), part in zip(weights.items(), parts, strict=True)
    }


# --- the optimizer's step ---------------------------------------------------------------------------


def norm(tensors: Mapping[str, Tensor]) -> float:
    """Of all of them together."""
    return math.sqrt(sum((t.double() ** 2).sum().item() for t in tensors.values()))


def clipped(gradients: Mapping[str, Tensor], most: float) -> dict[str, Tensor]:
    """Scaled so that their norm is at most ``most``."""
    by = min(1.0, most / norm(gradients))
    return {name: g * by for name, g in gradients.items()}


def adamw(
    weights: Mapping[str, Tensor],
    steps: Sequence[Mapping[str, Tensor]],
    rate: float,
    decay: Mapping[str, float],
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> dict[str, Tensor]:
    """The weights after some steps of AdamW (arXiv 1711.05101) with these gradients, in float64."""
    result = {}
    for name, weight in weights.items():
        w = weight.double()
        m, v = torch.zeros_like(w), torch.zeros_like(w)
        for number, gradients in enumerate(steps, start=1):
            g = gradients[name].double()
            m = betas[0] * m + (1 - betas[0]) * g
            v = betas[1] * v + (1 - betas[1]) * g * g
            mean, square = m / (1 - betas[0] ** number), v / (1 - betas[1] ** number)
            w = w - rate * decay[name] * w - rate * mean / (square.sqrt() + eps)
        result[name] = w
    return result


# --- images -----------------------------------------------------------------------------------------


def fitted(image: Image.Image, least: int, most: int) -> Image.Image:
    """The authors' first resize, of an RGB image: into the limits (pixels), by PIL's bicubic filter."""
    for out, limit in ((lambda n: n > most, most), (lambda n: n < least, least)):
        if out(image.width * image.height):
            by = math.sqrt(limit / (image.width * image.height))
            image = image.resize((int(image.width * by), int(image.height * by)))
    return image


def rounded(image: Image.Image, least: int, most: int) -> Image.Image:
    """Qwen's processor's resize: sides to multiples of 28 near to them, then into the limits (pixels)."""
    size = [round(side / 28) * 28 for side in image.size]
    if size[0] * size[1] > most:
        by = math.sqrt(image.width * image.height / most)
        size = [max(28, math.floor(side / by / 28) * 28) for side in image.size]
    elif size[0] * size[1] < least:
        by = math.sqrt(least / (image.width * image.height))
        size = [math.ceil(side * by / 28) * 28 for side in image.size]
    return image.resize((size[0], size[1]))


def blackened(image_HWC: np.ndarray, black: np.ndarray, side: int = 14) -> np.ndarray:
    """Squares from the top left corner, cut at the right and lower edge, black where ``black`` says."""
    result = image_HWC.copy()
    for y in range(image_HWC.shape[0]):
        for x in range(image_HWC.shape[1]):
            if black[y // side, x // side]:
                result[y, x] = 0
    return result


def patches(image_HWC: np.ndarray, mean: float = 0.5, std: float = 0.5) -> np.ndarray:
    """[N, 3 * 2 * 14 * 14]: what Qwen's processor makes of an image whose sides are multiples of 28.

    Patches of 14 pixels, the four of a merged square one after the other; in each: colour, two equal
    frames, row, column.
    """
    height, width, _ = image_HWC.shape
    image = (image_HWC.astype(np.float64) / 255 - mean) / std
    rows = []
    for big_y in range(0, height, 28):
        for big_x in range(0, width, 28):
            for y in (big_y, big_y + 14):
                for x in (big_x, big_x + 14):
                    square = image[y : y + 14, x : x + 14].transpose(2, 0, 1)
                    rows.append(np.stack([square, square], axis=1).reshape(-1))
    return np.array(rows)
