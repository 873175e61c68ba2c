"""What holds for every objective: padding, awkward responses, the order of groups, and a real update."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from random_batch import random_batch
from unpublished import UNPUBLISHED

from pipelines.config.schema import UpdateConfig
from pipelines.disk.records import read_scores
from pipelines.objectives.batch import Batch
from pipelines.objectives.table import OBJECTIVES, find_objective, stored
from pipelines.score.scoring import score
from pipelines.update.torch_engine import TorchTrainer
from pipelines.watch import Silent

CASES = [(name, variant) for name, row in OBJECTIVES.items() for variant in row.variants or (None,)]


def terms(name, variant, batch):
    return find_objective(name)(
        batch, UpdateConfig(objective=name, variant=variant, constants=UNPUBLISHED.get(name, {}))
    )


def weights(name, variant, batch):
    return terms(name, variant, batch).token_weight_BT


def mapped(batch: Batch, function) -> Batch:
    """The batch with each of its tensors replaced."""
    fields = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    return dataclasses.replace(batch, **{n: function(x) for n, x in fields.items() if isinstance(x, torch.Tensor)})


@pytest.mark.parametrize(("name", "variant"), CASES, ids=str)
def test_padding_is_not_read(name, variant):
    batch = random_batch(1)
    found = weights(name, variant, batch)
    assert found.isfinite().all()
    assert not found[~batch.mask_BT].any()

    def scribbled(x):
        return x.masked_fill(~batch.mask_BT, torch.nan) if x.dim() == 2 and x.is_floating_point() else x

    assert torch.equal(weights(name, variant, mapped(batch, scribbled)), found)
    wider = mapped(batch, lambda x: torch.nn.functional.pad(x, (0, 3)) if x.dim() == 2 else x)
    torch.testing.assert_close(weights(name, variant, wider), torch.nn.functional.pad(found, (0, 3)))


@pytest.mark.parametrize(("name", "variant"), CASES, ids=str)
def test_weights_are_numbers_where_nothing_differs_and_where_nothing_is(name, variant):
    for length in (1, 4):
        mask_BT = torch.zeros(8, 4, dtype=torch.bool)
        mask_BT[1:, :length] = True  # the first has no tokens at all
        flat = {f"{n}_BT": 0.5 * mask_BT for n in ("perception", "entropy", "perturbed_entropy", "kl", "jsd")}
        batch = random_batch(groups=2, longest=4, mask_BT=mask_BT, **flat)
        found = terms(name, variant, batch)
        assert found.token_weight_BT.isfinite().all()
        assert (found.weight_BT >= 0).all()


@pytest.mark.parametrize(("name", "variant"), CASES, ids=str)
def test_the_order_of_the_groups_does_not_matter(name, variant):
    batch = random_batch(2)
    jitter = torch.rand(batch.mask_BT.shape, generator=torch.Generator().manual_seed(0)) * 1e-3
    untied = mapped(
        batch, lambda x: x + torch.where(batch.mask_BT, jitter, 0.0) if x.dim() == 2 and x.is_floating_point() else x
    )
    order = torch.arange(20).reshape(5, 4)[torch.tensor([3, 0, 4, 2, 1])].flatten()
    torch.testing.assert_close(
        weights(name, variant, mapped(untied, lambda x: x[order])), weights(name, variant, untied)[order]
    )


@pytest.fixture(scope="module")
def scored_for(table, policy, rollouts, tmp_path_factory):
    """``scored_for(config)``: scores that hold what the objective needs."""

    def scores(config):
        out = tmp_path_factory.getbasetemp() / f"scored-{stored(config)}"
        if not out.exists():
            out.mkdir()
            score(config, 1, rollouts, table, policy, out, Silent())
        return read_scores(out, 1)

    return scores


@pytest.mark.parametrize(("name", "variant"), CASES, ids=str)
def test_it_trains(name, variant, fresh_policy, table, rollouts, scored_for, configure):
    settings = [f"update.constants={UNPUBLISHED.get(name, {})}", *([f"update.variant={variant}"] if variant else [])]
    views = OBJECTIVES[name].perturbation
    config = configure(f"update.objective={name}", *settings, *([f"score.perturbation={views}"] if views else []))
    trainer = TorchTrainer(fresh_policy(config), config)
    metrics = trainer.update(rollouts, scored_for(config), table)
    assert metrics["grad_norm"] > 0
    assert metrics["ratio_mean"] == pytest.approx(1, abs=1e-3)
    assert 0 < metrics["trained_share"] <= 1
    assert all(p.isfinite().all() for _, p in trainer.named)
