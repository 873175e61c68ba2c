"""PEPO: advantages that come to lean on similarity with the image, gated by entropy, as training goes on."""

from __future__ import annotations

from dataclasses import replace

import torch

from pipelines import vppo
from pipelines.config.schema import UpdateConfig
from pipelines.objectives.batch import Batch, Terms, given
from pipelines.objectives.dapo import dapo
from pipelines.objectives.table import constants
from pipelines.objectives.tokens import minmax


def pepo(batch: Batch, settings: UpdateConfig) -> Terms:
    """PEPO (arXiv 2603.22847): A_t = ((1 - l) + l w_t) A_i, l = the optimizer steps made before / ``steps``.

    With V the cosine of hidden states with the mean of the image tokens', averaged over layers, H the entropy:
    x = minmax_i(V) + minmax_i(H), g = 1 + ``gate`` tanh(x - mean x), w = T softmax_i(V g / ``temperature``).
    Without an image V is 0, and w 1.

    Known from the authors' code (xzxxntxdy/PEPO), which differs in four points: it takes the hidden states that
    read the token, of the policy that is trained, and lets gradient through w, where ours are those that predict
    it, of the policy that scored, without gradient; its V is the mean of the cosines with each image token; its
    layers include the embeddings; without an image it compares with the prompt's text. ``steps`` is there the
    length of the run; it has no default here, as a run can be extended.
    """
    given_by = constants("pepo", settings)
    mask_BT = batch.mask_BT
    similarity_BT = given(batch.layer_similarity_BT).float()
    mixed_BT = minmax(similarity_BT, mask_BT) + minmax(batch.entropy_BT, mask_BT)
    mean_B1 = vppo.masked_mean(mixed_BT, mask_BT)[:, None]
    gate_BT = 1.0 + given_by["gate"] * torch.tanh(mixed_BT - mean_B1)
    score_BT = similarity_BT * gate_BT / given_by["temperature"]
    share_BT = score_BT.masked_fill(~mask_BT, -torch.inf).softmax(-1)
    weight_BT = torch.where(mask_BT, share_BT * mask_BT.sum(-1, keepdim=True), 0.0)
    progress = min(1.0, batch.updates / given_by["steps"])
    factor_BT = (1.0 - progress) + progress * weight_BT
    return replace(dapo(batch, settings), advantage=batch.adv_B[:, None] * factor_BT)
