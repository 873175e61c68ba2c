"""Every objective against a second one, in plain loops (tests/tools/naive_objectives.py)."""

from __future__ import annotations

import naive_objectives
import pytest
import torch
from random_batch import random_batch
from unpublished import UNPUBLISHED

from pipelines.config.schema import UpdateConfig
from pipelines.objectives.table import OBJECTIVES, find_objective

NAIVE = {
    name.removeprefix("naive_").replace("_", "-"): function
    for name, function in vars(naive_objectives).items()
    if name.startswith("naive_")
}

CASES = [
    *((name, variant, {}) for name in NAIVE for variant in OBJECTIVES[name].variants or (None,)),
    ("vgpo", "code", {"late": 2.0, "start": 0.2, "share": 0.6, "intra_high": 1.2, "inter_low": 0.5}),
    ("pepo", None, {"steps": 3, "gate": 2.0, "temperature": 0.2}),
    ("pepo", None, {"steps": 1}),
    ("pgpo", "paper", {"tau": 0.7, "beta": 0.5}),
    ("pgpo", "code", {"tau": 0.07}),
    ("vepo", None, {"share": 0.55, "alpha": 0.0}),
    ("tor", None, {"reasoning_share": 0.1, "perception_share": 1.0, "reasoning_weight": 0.25}),
    ("pivot-vaa", None, {"beta": 3.0, "window": 2.0, "discount": 0.5, "weight": -1.0}),
    ("pivot-vaa", None, {"discount": 0.0}),
    ("tpae", None, {"tau": 1.0}),
    ("entropy-k", None, {"fraction": 0.55}),
    ("cgpo", None, {"strength": 1.0, "perception_share": 0.07, "reasoning_share": 0.55}),
]


@pytest.mark.parametrize(("name", "variant", "constants"), CASES, ids=str)
def test_it_is_the_naive_one(name, variant, constants):
    for seed in range(4):
        for truncated in (False, True):
            settings = UpdateConfig(
                objective=name,
                variant=variant,
                constants=UNPUBLISHED.get(name, {}) | constants,
                mask_truncated=truncated,
            )
            batch = random_batch(seed)
            found = find_objective(name)(batch, settings).token_weight_BT
            expected = torch.zeros_like(found)
            for row, weights in zip(expected, NAIVE[name](batch, settings), strict=True):
                row[: len(weights)] = torch.tensor(weights)
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
            assert bool(found.any())
