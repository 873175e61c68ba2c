"""What an objective sees of an update batch, and what it makes of it.

Axes as in pipelines/vppo.py: B responses (the G of a prompt side by side), T response tokens, padded. An
objective is a function (Batch, UpdateConfig) -> Terms without side effects: every rank calls it, on the whole
update batch, once per optimizer step.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from pipelines import vppo
from pipelines.config.resolve import telling
from pipelines.config.schema import KEY
from pipelines.errors import UserError


@dataclass(frozen=True)
class Batch:
    """One whole update batch, all responses of all its prompts. What the step does not hold is None.

    Attributes:
        mask_BT: response tokens, bool; every other [B, T] is 0 or False elsewhere.
        ids_BT: token ids, int64.
        logp_BT: log pi of each token under the policy that sampled it, nats at the rollout temperature.
        entropy_BT: of the policy that scored, nats.
        reward_B: with the overlong penalty, where there is one.
        adv_B: group-relative advantages of it (vppo.group_advantages).
        correct_B: graded as correct, bool.
        truncated_B: cut off at the length limit, bool.
        group_B: the number of the prompt in the batch, int64.
        group_size: G.
        max_tokens: longest response there can be, ``rollout.max_new_tokens``.
        updates: optimizer steps that were made before.
        keep_fraction: ``score.keep_fraction``, k.
        standardized: whether advantages are divided by the group's standard deviation.
        has_image_B: whether the question has an image, bool.
        depends_B: whether the response can depend on an image (score/scoring.py); shaping leaves the
            others as they are, and out of its statistics.
        mini_batch_B, micro_batch_B: the mini-batch and the micro-batch each response falls into, by
            ``published.mini_batch_responses`` and ``micro_batch_responses``; only
            ``shaping_statistics: micro_batch`` looks at them.
        perception_BT: S by ``score.estimator`` (table.PERCEPTION, as the next two).
        keep_BT: the share ``keep_fraction`` of highest S (vppo.keep_top_fraction), bool.
        dependency_B: mean S of each response.
        clean_logp_BT, perturbed_logp_BT: log p and log q of each token, under the policy that scored
            (table.VIEWS, as the next four); the first is ``logp_BT`` but for surplus of earlier steps.
        perturbed_entropy_BT: of q, nats.
        kl_BT: KL(p || q) over the vocabulary, nats.
        jsd_BT: Jensen-Shannon divergence of p and q, nats.
        argmax_drop_BT: p - q of the token that p likes best.
        image_similarity_BT: cosine of the last hidden state that predicts the token with the mean of those of
            the prompt's image tokens; 0 without an image (table.HIDDEN, as the next).
        layer_similarity_BT: the mean of the same over all layers.
        perceives_BT, reasons_BT: the token's true role is perception, or reasoning (table.ROLES).
    """

    mask_BT: Tensor
    ids_BT: Tensor
    logp_BT: Tensor
    entropy_BT: Tensor
    reward_B: Tensor
    adv_B: Tensor
    correct_B: Tensor
    truncated_B: Tensor
    group_B: Tensor
    group_size: int
    max_tokens: int
    updates: int
    keep_fraction: float
    standardized: bool
    has_image_B: Tensor
    depends_B: Tensor
    mini_batch_B: Tensor
    micro_batch_B: Tensor
    perception_BT: Tensor | None = None
    keep_BT: Tensor | None = None
    dependency_B: Tensor | None = None
    clean_logp_BT: Tensor | None = None
    perturbed_logp_BT: Tensor | None = None
    perturbed_entropy_BT: Tensor | None = None
    kl_BT: Tensor | None = None
    jsd_BT: Tensor | None = None
    argmax_drop_BT: Tensor | None = None
    image_similarity_BT: Tensor | None = None
    layer_similarity_BT: Tensor | None = None
    perceives_BT: Tensor | None = None
    reasons_BT: Tensor | None = None

    def advantages(self, reward_B: Tensor) -> Tensor:
        """Group-relative advantages of other rewards, taken as ``adv_B`` is -> [B], float32."""
        return vppo.group_advantages(reward_B, self.group_size, standardize=self.standardized).float()


@dataclass(frozen=True)
class Reading:
    """What a micro-batch's own forward passes gave, with gradient; [B, T] as the micro-batch is cut.

    ``rows_B`` are its responses' places in the Batch, ``T`` is its longest response. The perturbed view's are
    None unless the objective asks for the pass (table.PERTURBED); ``kl_BT`` is the exact KL(p || q).
    """

    rows_B: Tensor
    mask_BT: Tensor
    logp_BT: Tensor
    entropy_BT: Tensor
    perturbed_logp_BT: Tensor | None = None
    perturbed_entropy_BT: Tensor | None = None
    kl_BT: Tensor | None = None


LossAverage = Literal["token", "sequence", "max_length"]


@dataclass(frozen=True)
class Terms:
    """What the loss is made of.

    Attributes:
        advantage: signed, [B] or [B, T]; what the surrogate multiplies the ratio with.
        weight_BT: multiplies a token's loss, so at least 0: bool (a filter) or numbers; 0: no gradient.
        clip_low, clip_high: widths of PPO's clipping, at least 0.
        average: over what the loss is averaged.
        extra: further terms, made of a micro-batch's Reading: name -> loss_BT, averaged over all response
            tokens of the update batch and added to the loss as it is; each is a metric of its name, which is
            none of ``METRICS``.
    """

    advantage: Tensor
    weight_BT: Tensor
    clip_low: float
    clip_high: float
    average: LossAverage
    extra: Callable[[Reading], Mapping[str, Tensor]] | None = None

    @property
    def token_weight_BT(self) -> Tensor:
        """What each token's policy gradient is multiplied by on-policy: weight times advantage."""
        adv_BT = self.advantage if self.advantage.dim() == 2 else self.advantage.unsqueeze(-1)
        return torch.where(self.weight_BT.bool(), adv_BT * self.weight_BT, 0.0)


def given(tensor: Tensor | None) -> Tensor:
    """What an objective declared that it needs."""
    assert tensor is not None, "the objective's row in pipelines/objectives/table.py lacks a need"
    return tensor


@contextlib.contextmanager
def unchanged(place: str, given: Batch | Reading) -> Iterator[None]:
    """See that nobody changes the tensors of what an objective of one's own is given: all of them are read again.

    Raises:
        UserError: one was changed in place.
    """
    tensors = {name: value for name, value in vars(given).items() if isinstance(value, Tensor)}
    before = {name: tensor._version for name, tensor in tensors.items()}
    yield
    for name, tensor in tensors.items():
        if tensor._version != before[name]:
            what = f"{type(given).__name__.lower()}.{name}"
            fix = f"Make another tensor of it: 2 * {what}, not {what}.mul_(2)."
            raise UserError(place, f"changed {what} in place, which is read again.", fix)


def looked_at(place: str, terms: object, batch: Batch) -> Terms:
    """What an objective of one's own returned, once it is what it should be; its ``extra`` is looked at when asked.

    Raises:
        UserError: it is not; likewise whatever ``extra`` raises.
    """
    if problem := _problem_of(terms, batch):
        raise UserError(place, problem, FIX)
    assert isinstance(terms, Terms)
    terms = replace(terms, clip_low=_width(terms.clip_low), clip_high=_width(terms.clip_high))
    if terms.extra is None:
        return terms
    told = telling(place, terms.extra)

    def extra(reading: Reading) -> Mapping[str, Tensor]:
        with unchanged(place, reading):
            found: Mapping[str, Tensor] = told(reading)
        if problem := _problem_of_extra(found, reading):
            raise UserError(place, problem, FIX)
        return found

    return replace(terms, extra=extra)


FIX = "docs/objectives.md says what an objective returns."

METRICS = (
    *("loss", "entropy_penalty", "reference_kl", "ratio_mean", "clipped_low", "clipped_high", "clipped_dual"),
    *("policy_kl", "tis_weight_mean", "tis_capped", "trained_share", "updates_skipped", "grad_norm"),
    *("learning_rate", "advantage_std", "alpha_min", "alpha_max"),
)
"""What an update measures itself: no further term of a loss may be called so."""


def _problem_of(terms: object, batch: Batch) -> str:
    """What is wrong with what an objective of one's own returned; "" if nothing is."""
    if not isinstance(terms, Terms):
        return f"returned {type(terms).__name__}, not pipelines.objectives.batch.Terms."
    wanted = tuple(batch.mask_BT.shape)
    for name, tensor, shapes in (
        ("advantage", terms.advantage, (wanted, wanted[:1])),
        ("weight_BT", terms.weight_BT, (wanted,)),
    ):
        if problem := _misshapen(tensor, shapes, batch.mask_BT):
            return f"returned {name} {problem}"
        seen = tensor[batch.mask_BT] if tensor.dim() == 2 else tensor
        if not bool(torch.isfinite(seen.float()).all()):
            return f"returned {name} that is not finite."
    if bool((terms.weight_BT[batch.mask_BT].float() < 0).any()):
        return "returned weights below 0: the sign is the advantage's."
    for name, width in (("clip_low", terms.clip_low), ("clip_high", terms.clip_high)):
        if not 0 <= _width(width) < math.inf:
            return f"returned {name} {width!r}, which is no number of 0 or more."
    if terms.average not in (known := get_args(LossAverage)):
        return f"returned average {terms.average!r}, which is none of {', '.join(known)}."
    if terms.extra is not None and not callable(terms.extra):
        return f"returned extra as {type(terms.extra).__name__}, not a function of a Reading."
    return ""


def _width(given: Any) -> float:
    """A real scalar, whoever's it is, as a float; of what is none, nan."""
    with contextlib.suppress(TypeError, ValueError, OverflowError, RuntimeError):
        return math.nan if isinstance(given, str | bytes | bytearray) else float(given)
    return math.nan


def _problem_of_extra(found: object, reading: Reading) -> str:
    """What is wrong with the further terms of its loss; "" if nothing is. Where the reading is not finite
    itself, a term need not be: the update leaves such a step out."""
    if not isinstance(found, Mapping):
        return f"extra returned {type(found).__name__}, not a dict of tensors [B, T]."
    for name, loss_BT in found.items():
        if not isinstance(name, str) or not re.fullmatch(KEY, name):
            return f"extra calls a term {name!r}, which is no name: letters, digits, dot, dash and underscore."
        if name in METRICS:
            return f"extra calls a term {name!r}, which every update measures: call it otherwise."
        if problem := _misshapen(loss_BT, (tuple(reading.mask_BT.shape),), reading.mask_BT):
            return f"extra returned {name} {problem}"
    mask_BT = reading.mask_BT
    read = (reading.logp_BT, reading.entropy_BT, reading.perturbed_logp_BT, reading.perturbed_entropy_BT, reading.kl_BT)
    if not _finite(found.values(), mask_BT) and _finite([x_BT for x_BT in read if x_BT is not None], mask_BT):
        name = next(name for name, loss_BT in found.items() if not _finite((loss_BT,), mask_BT))
        return f"extra returned {name} that is not finite."
    return ""


def _misshapen(tensor: object, shapes: Collection[tuple[int, ...]], like: Tensor) -> str:
    """How a tensor is not of one of these shapes, real, and where the batch is; "" if it is."""
    shape = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
    if not isinstance(tensor, Tensor) or shape not in shapes:
        listed = " or ".join(str(list(shape)) for shape in shapes)
        return f"as {list(shape) if isinstance(shape, tuple) else shape}, not {listed}."
    if tensor.device != like.device:
        return f"on {tensor.device}, not on {like.device}."
    return "of complex numbers." if tensor.is_complex() else ""


def _finite(tensors: Collection[Tensor], mask_BT: Tensor) -> bool:
    """Whether they are, on response tokens: asked of all at once, as the answer may have to come from a GPU."""
    each = [torch.isfinite(x_BT.detach()[mask_BT]).all() for x_BT in tensors]
    return not each or bool(torch.stack(each).all())
