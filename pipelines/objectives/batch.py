"""What an objective sees of an update batch, and what it makes of it.

Axes as in pipelines/vppo.py: B responses (the G of a prompt side by side), T response tokens, padded. An
objective is a function (Batch, UpdateConfig) -> Terms without side effects: every rank calls it, on the whole
update batch, once per optimizer step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pipelines import vppo


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
        weight_BT: multiplies a token's loss, so at least 0: bool (a filter) or float; 0: no gradient.
        clip_low, clip_high: widths of PPO's clipping.
        average: over what the loss is averaged.
        extra: further terms, made of a micro-batch's Reading: name -> loss_BT, averaged over all response
            tokens of the update batch and added to the loss as it is; each is a metric of its name.
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


def problem_of(terms: object, batch: Batch) -> str:
    """What is wrong with what an objective of one's own returned; "" if nothing is."""
    if not isinstance(terms, Terms):
        return f"returned {type(terms).__name__}, not pipelines.objectives.batch.Terms."
    wanted = tuple(batch.mask_BT.shape)
    for name, tensor, shapes in (
        ("advantage", terms.advantage, (wanted, wanted[:1])),
        ("weight_BT", terms.weight_BT, (wanted,)),
    ):
        shape = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
        if shape not in shapes:
            listed = " or ".join(str(list(shape)) for shape in shapes)
            return f"returned {name} as {list(shape) if isinstance(shape, tuple) else shape}, not {listed}."
        seen = tensor[batch.mask_BT] if tensor.dim() == 2 else tensor
        if not bool(torch.isfinite(seen.float()).all()):
            return f"returned {name} that is not finite."
    if bool((terms.weight_BT[batch.mask_BT].float() < 0).any()):
        return "returned weights below 0: the sign is the advantage's."
    return ""
