"""ToR by hand."""

from __future__ import annotations

import torch
from random_batch import random_batch

from pipelines.config.schema import UpdateConfig
from pipelines.objectives.tor import tor


def test_it_by_hand():
    # Five tokens, ceil(0.3 * 5) = 2 of each kind. Highest H: 0.9 and 0.8. Highest |log p - log q|: 0.7, where
    # the image argues against the token, and 0.6, which is one of the first kind.
    batch = random_batch(
        groups=1,
        size=2,
        longest=3,
        mask_BT=torch.tensor([[True, True, True], [True, True, False]]),
        entropy_BT=torch.tensor([[0.1, 0.9, 0.2], [0.8, 0.3, 0.0]]),
        clean_logp_BT=torch.tensor([[-1.0, -1.0, -1.0], [-1.0, -1.7, 0.0]]),
        perturbed_logp_BT=torch.tensor([[-1.5, -1.6, -1.0], [-1.1, -1.0, 0.0]]),
        adv_B=torch.tensor([2.0, -1.0]),
    )
    terms = tor(batch, UpdateConfig(objective="tor"))
    torch.testing.assert_close(terms.weight_BT, torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.5, 0.0]]))
    torch.testing.assert_close(terms.token_weight_BT, torch.tensor([[0.0, 2.0, 0.0], [-1.0, -0.5, 0.0]]))
