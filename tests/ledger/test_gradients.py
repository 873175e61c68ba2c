"""Gradients of the ledger: the trainer's own, and their variance by a plain loop."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch

from pipelines.config.schema import Config
from pipelines.disk.records import Rollout, SampleTable, Scored
from pipelines.ledger.gradients import LedgerTrainer, Part, Sums
from pipelines.ledger.objectives import with_objective
from pipelines.model.policy import Policy
from pipelines.objectives.table import find_objective
from pipelines.update.batches import make_batch, make_terms
from pipelines.update.torch_engine import TorchTrainer


class Recording(TorchTrainer):
    """The trainer, which keeps the gradient of its optimizer step."""

    def _step(self) -> float:
        self.gradient = torch.cat([p.grad.flatten() for _, p in self.named if p.grad is not None])
        return super()._step()


@pytest.fixture(scope="module")
def taken(
    tiny_config: Config, policy: Policy, rollouts: list[Rollout], scores: list[Scored], table: SampleTable
) -> tuple[dict[str, Sums], list[torch.Tensor]]:
    """Sums of three objectives over the four groups, and DAPO's gradient of each group by itself."""
    trainer = LedgerTrainer(Policy(copy.deepcopy(policy.model), policy.processor, tiny_config), tiny_config)
    groups, parts = list(zip(rollouts, scores, strict=True)), {}
    for name in ("vppo", "dapo", "grpo"):
        config = with_objective(tiny_config, name).config
        batch = make_batch(config, groups, table, trainer.policy, 0)
        parts[name] = Part(config, batch, make_terms(find_objective(name), batch, config.update))
    found: dict[str, Sums] = {}
    before = [p.detach().clone() for _, p in trainer.named]
    assert sum(1 for _ in trainer.sums(groups, table, parts, found)) == len(groups)
    assert all(torch.equal(p, was) and p.grad is None for (_, p), was in zip(trainer.named, before, strict=True))
    one: dict[str, Sums] = {}
    so_far = [one["dapo"].gradient.clone() for _ in trainer.sums(groups, table, {"dapo": parts["dapo"]}, one) if one]
    so_far.append(one["dapo"].gradient)
    alone = [so_far[0], *(after - before for before, after in pairwise(so_far))]
    return found, alone


def test_the_gradient_is_the_one_that_training_takes(
    taken: tuple[dict[str, Sums], list[torch.Tensor]],
    configure: Callable[..., Config],
    fresh_policy: Callable[..., Policy],
    rollouts: list[Rollout],
    scores: list[Scored],
    table: SampleTable,
) -> None:
    for name in ("dapo", "vppo"):
        config = configure(f"update.objective={name}", "update.max_grad_norm=1e9")
        trainer = Recording(fresh_policy(config), config)
        norm = trainer.update(rollouts, scores, table)["grad_norm"]
        sums = taken[0][name]
        assert sums.gradient is not None
        torch.testing.assert_close(sums.gradient / sums.groups, trainer.gradient, atol=1e-6 * norm, rtol=1e-3)
        assert sums.norm == pytest.approx(norm, rel=1e-4)


def test_a_gradient_points_where_it_points(taken: tuple[dict[str, Sums], list[torch.Tensor]]) -> None:
    found = taken[0]
    assert all(sums.cosine(sums) == pytest.approx(1.0, abs=1e-6) for sums in found.values())
    assert found["vppo"].cosine(found["dapo"]) == found["dapo"].cosine(found["vppo"])
    assert 0 < found["vppo"].cosine(found["dapo"]) < 0.9999


def test_the_variance_is_the_mean_squared_distance_from_the_mean(
    taken: tuple[dict[str, Sums], list[torch.Tensor]],
) -> None:
    found, alone = taken
    mean = sum(g.double() for g in alone) / len(alone)
    by_loop = sum(float((g.double() - mean).square().sum()) for g in alone) / len(alone)
    assert found["dapo"].variance == pytest.approx(by_loop, rel=1e-4)
    assert found["dapo"].groups == len(alone) == 4


def test_a_tokens_gradient_is_that_of_its_log_prob(
    tiny_config: Config, policy: Policy, rollouts: list[Rollout], scores: list[Scored], table: SampleTable
) -> None:
    trainer = LedgerTrainer(Policy(copy.deepcopy(policy.model), policy.processor, tiny_config), tiny_config)
    groups = list(zip(rollouts, scores, strict=True))
    logp_N, _ = trainer._forward(trainer.policy, groups[:1], table)
    first = len(rollouts[0].response_ids[0])  # tokens of the response before
    expected = trainer.gradient(logp_N[first + 2], keep=False)
    [found] = trainer.token_gradients(groups[0], table, 1, [2])
    torch.testing.assert_close(found, expected, atol=1e-4 * float(expected.norm()), rtol=1e-2)
