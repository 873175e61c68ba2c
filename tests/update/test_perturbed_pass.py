"""The update's own pass over the perturbed view: its numbers, and its gradient against all logits."""

from __future__ import annotations

import dataclasses

import naive
import pytest
import torch
from naive_sweep import FEW, MOST, ROUNDED, Bench, gaps, questions, responses, scored, twin_of

from pipelines.config import settings
from pipelines.disk.records import SampleTable
from pipelines.objectives.batch import Terms
from pipelines.objectives.dapo import dapo
from pipelines.objectives.table import PERTURBED
from pipelines.update.torch_engine import TorchTrainer

GAMMA, ETA = 0.7, 0.2
"""Large, so that the objective's own terms are much of the gradient."""


@pytest.fixture(scope="module")
def bench(policy, write_prepared, tmp_path_factory, tiny_config):
    asked = questions()
    folder = write_prepared(tmp_path_factory.mktemp("views"), asked)
    return Bench(policy, asked, SampleTable(folder / "train.parquet"), twin_of(tiny_config))


def read(batch, update) -> Terms:
    """An objective of one's own, that keeps what is read."""
    kept.clear()
    return dataclasses.replace(dapo(batch, update), extra=lambda reading: kept.append(reading) or {})


read.passes = frozenset({PERTURBED})
kept: list = []


def config_of(*given):
    return settings.load(None, [*FEW, "update.entropy_penalty=0", "update.entropy_estimator=none", *given])


@pytest.mark.parametrize("given", [(), ("score.mask_per=response", "score.perturbation=raw_black")], ids=str)
def test_what_is_read_is_what_was_scored(bench, given):
    config = config_of("score.store=all", *given)
    policy = bench.copy(config)
    scores = scored(config, bench.groups, bench.table, policy)
    trainer = TorchTrainer(policy, config)
    trainer.objective, trainer.passes = read, read.passes
    trainer.update(bench.groups, scores, bench.table)
    assert len(kept) == 2  # micro-batches
    found = {name: [] for name in ("logp_perturbed", "entropy_perturbed", "kl")}
    for reading in kept:
        for name, x_BT in zip(
            found, (reading.perturbed_logp_BT, reading.perturbed_entropy_BT, reading.kl_BT), strict=True
        ):
            found[name] += [row[mask] for row, mask in zip(x_BT.detach(), reading.mask_BT, strict=True)]
    for name, rows in found.items():
        there = [x for s in scores for row in getattr(s.statistics, name) for x in row]
        torch.testing.assert_close(torch.cat(rows), torch.tensor(there), atol=1e-5, rtol=0, msg=name)
    blind = torch.cat(found["kl"][16:])  # of the last two groups, which have no image
    assert blind.max() == 0
    assert torch.cat(found["kl"][:16]).max() > 0.1


def naive_loss(model, batch, method, kind, logq):
    """DAPO's loss, - gamma KL + eta (H + H'), from all logits of both views.

    ``logq``: log q of the scores, a constant of the loss.
    """
    total = naive.loss(model, batch, [[True] * len(r.tokens) for r in batch], [1.0] * len(batch), method)
    share = 1 / sum(len(r.tokens) for r in batch)
    p_BTV = naive.log_softmax(model, batch, method, perturbed=False)
    q_BTV = naive.log_softmax(model, batch, method, perturbed=True) if kind == "exact" else None
    for b, r in enumerate(batch):
        for t, token in enumerate(r.tokens):
            p_V = p_BTV[b, t]
            if kind == "exact":
                q_V = p_V if r.pixels is None else q_BTV[b, t]
                kl = (p_V.exp() * (p_V - q_V)).sum()
                entropy = -(p_V.exp() * p_V).sum() - (q_V.exp() * q_V).sum()
            else:
                d = (logq[b][t] - p_V[token]).clamp(-20, 20)
                kl = (d.exp() - d - 1).clamp(0, 10) if r.pixels is not None else torch.zeros(())
                entropy = -p_V[token] - logq[b][t]
            total = total + share * (ETA * entropy - GAMMA * kl)
    return total


@pytest.mark.parametrize(
    "given",
    [
        (),
        pytest.param(  # of every objective, make objectives-proof has it too
            ("model.shared_prefix=false", "update.micro_batch_prompts=6"), marks=pytest.mark.nightly
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["code", "exact"])
def test_the_gradient_of_papo_is_the_naive_one(bench, kind, given):
    config = config_of(
        "update.objective=papo",
        f"update.variant={kind}",
        f"update.constants={{gamma: {GAMMA}, eta: {ETA}}}",
        "rollout.temperature=0.8",
        *given,
    )
    policy = bench.copy(config)
    scores = scored(config, bench.groups, bench.table, policy)
    method = dataclasses.replace(
        naive.EXACT, entropy="none", temperature=0.8, never=tuple(policy.suppressed_ids.tolist())
    )
    batch = responses(config, policy, bench.samples, bench.groups)
    logq = [row for s in scores for row in s.statistics.logp_perturbed] if kind == "code" else None
    weights = dict(bench.twin.named_parameters())
    loss = naive_loss(bench.twin, batch, method, kind, logq)
    theirs = dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))
    one, whole = gaps(bench.updated(config, policy, scores), theirs)
    assert whole <= MOST
    assert max(one.values()) <= ROUNDED, max(one, key=one.__getitem__)
    plain = naive.gradient(bench.twin, batch, [[True] * len(r.tokens) for r in batch], [1.0] * len(batch), method)
    assert gaps(theirs, plain)[1] > 0.1  # its own terms count


def test_an_update_says_what_its_own_terms_were(bench):
    config = config_of("update.objective=papo", "update.variant=exact")
    policy = bench.copy(config)
    metrics = TorchTrainer(policy, config).update(
        bench.groups, scored(config, bench.groups, bench.table, policy), bench.table
    )
    assert metrics["perception_loss"] < 0 < metrics["double_entropy_loss"]


def test_a_second_view_fills_micro_batches_twice_as_fast(bench):
    counts = []
    for given in (("update.objective=dapo",), ("update.objective=papo", "update.variant=exact")):
        fed = [bench.policy.fed_tokens(g.prompt_tokens, g.response_ids) for g in bench.groups]
        config = config_of(*given, "update.micro_batch_prompts=6", f"update.micro_batch_tokens={2 * max(fed)}")
        trainer = TorchTrainer(bench.copy(config), config)
        scores = scored(config, bench.groups, bench.table, trainer.policy)
        passes = []
        trainer._backward = lambda loss, *, last, passes=passes: passes.append(last)
        trainer.update(bench.groups, scores, bench.table)
        counts.append(len(passes))
    assert counts[1] == 6 > counts[0]
