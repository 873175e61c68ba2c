"""The torch trainer on the tiny model: losses by hand, batching, state, objectives, options."""

import copy
import dataclasses
import math

import applied
import pytest
import torch
from random_batch import random_batch

from pipelines.config import settings
from pipelines.errors import UserError
from pipelines.model.divergence import token_logp
from pipelines.objectives.batch import METRICS
from pipelines.objectives.dapo import dapo
from pipelines.objectives.vppo import shaping
from pipelines.ranks.ranks import Ranks
from pipelines.update import deepspeed_engine
from pipelines.update.torch_engine import MOST_SKIPPED, TorchTrainer

ADVANTAGE = 0.5 / (math.sqrt(1 / 3) + 1e-6)
"""Of a right response in a group with rewards 1, 0, 0, 1: mean 1/2, unbiased variance (4 / 4) / 3."""

SIGNS = [1, -1, -1, 1]
WHOLE = "update.micro_batch_prompts=4"


@pytest.fixture
def train(fresh_policy, table, rollouts, scores, configure):
    """``train(setting, ...)``: one call of ``update`` on a copy of the tiny model."""

    def run(*overrides, rollouts=rollouts, scores=scores, policy=None, reference=None):
        config = configure(*overrides)
        trainer = TorchTrainer(policy or fresh_policy(config), config, reference)
        trainer.applied = applied.gradients(trainer)
        metrics = trainer.update(rollouts, scores, table)
        assert all(p.grad is None for _, p in trainer.named)  # their memory is given back
        return trainer, metrics

    return run


def lengths(rollouts):
    """group -> tokens of each response."""
    return [[len(ids) for ids in group.response_ids] for group in rollouts]


def gradients(trainer):
    """As the last update applied them (scaled by clip_grad_norm_)."""
    return trainer.applied


def weights(trainer):
    return {name: p.detach().clone() for name, p in trainer.named}


def same_gradients(one, other, tolerance=1e-5):
    """Equal to ``tolerance`` of each weight's largest entry, or of what all weights have as noise."""
    size = max(gradient.abs().max() for gradient in other.values())
    assert one.keys() == other.keys()
    for name, gradient in one.items():
        gap = (gradient - other[name]).abs().max()
        assert gap <= tolerance * other[name].abs().max() + 1e-2 * tolerance * size, name


def off_policy(scores, log_ratio):
    """The scores as they would be had the old policy's log-probs been lower by this much."""
    return [dataclasses.replace(s, old_logp=[[x - log_ratio for x in r] for r in s.old_logp]) for s in scores]


# --- losses by hand -------------------------------------------------------------------------------


def test_on_policy_the_ratio_is_exactly_one(train):
    # Scoring and training compute the same numbers in the same order, so exp(0) for every token.
    _, metrics = train(WHOLE)
    assert metrics["ratio_mean"] == 1.0
    assert metrics["policy_kl"] == 0.0
    assert metrics["clipped_low"] == metrics["clipped_high"] == metrics["clipped_dual"] == 0.0


def test_token_loss_by_hand(train, rollouts):
    # At ratio 1 a token's loss is -A: the mean over all tokens is -A (right - wrong) / all.
    _, metrics = train("update.objective=dapo")
    signed = sum(n * sign for group in lengths(rollouts) for n, sign in zip(group, SIGNS, strict=True))
    total = sum(map(sum, lengths(rollouts)))
    assert signed != 0
    assert metrics["loss"] == pytest.approx(-ADVANTAGE * signed / total, rel=1e-4)
    # 8 of 16 advantages are +A and 8 are -A; the unbiased variance is 16 A^2 / 15.
    assert metrics["advantage_std"] == pytest.approx(ADVANTAGE * math.sqrt(16 / 15), rel=1e-5)


def test_filtered_sequence_loss_by_hand(train, rollouts):
    # Each response adds -A ceil(0.4 n) / n, and the mean is over 16 responses.
    _, metrics = train("update.objective=vppo-tgf", "update.loss_average=sequence")
    expected = (
        -ADVANTAGE
        / 16
        * sum(
            sign * math.ceil(0.4 * n) / n for group in lengths(rollouts) for n, sign in zip(group, SIGNS, strict=True)
        )
    )
    assert metrics["loss"] == pytest.approx(expected, rel=1e-4, abs=1e-7)


def test_shaped_loss_by_hand(train, rollouts, scores):
    # alpha = 0.9 + 0.1 z / mean(z), with z the dependency between its least and its most.
    _, metrics = train("update.objective=vppo-tas")
    dependency = [d for row in scores for d in row.dependency]
    z = [(d - min(dependency)) / (max(dependency) - min(dependency)) for d in dependency]
    alpha = [0.9 + 0.1 * x / (sum(z) / len(z)) for x in z]
    tokens = [n for group in lengths(rollouts) for n in group]
    signed = sum(a * n * s for a, n, s in zip(alpha, tokens, SIGNS * 4, strict=True))
    assert metrics["loss"] == pytest.approx(-ADVANTAGE * signed / sum(tokens), rel=1e-3, abs=1e-6)
    assert metrics["alpha_min"] == pytest.approx(0.9)
    assert metrics["alpha_max"] == pytest.approx(max(alpha), rel=1e-4)


def test_an_update_makes_right_responses_likelier(train, policy, rollouts, samples):
    trainer, _ = train("update.objective=dapo", "update.learning_rate=1e-4")

    def preference(of):
        """Mean log-prob of right tokens minus that of wrong ones."""
        total = 0.0
        for sample, group in zip(samples, rollouts, strict=False):
            rows = of.rows(of.encoder.encode(sample), group.response_ids)
            tokens = torch.tensor([token for ids in group.response_ids for token in ids])
            with torch.no_grad():
                logp_N, _ = token_logp(of.hidden_states(rows), of.head_weight, tokens)
            parts = logp_N.split([len(ids) for ids in group.response_ids])
            total += sum(s * part.sum().item() for s, part in zip(SIGNS, parts, strict=True))
        return total

    assert preference(trainer.policy) > preference(policy)


# --- independence of the batching -----------------------------------------------------------------


@pytest.mark.parametrize("average", ["token", "sequence"])
def test_gradients_do_not_depend_on_the_micro_batch(train, average):
    settings = (
        f"update.loss_average={average}",
        "update.max_grad_norm=1e9",
        "update.entropy_penalty=0.06",
        "update.entropy_estimator=exact",
    )
    whole, expected = train(*settings, WHOLE)
    for size in (1, 3):  # 3 leaves a last micro-batch of 1
        cut, metrics = train(*settings, f"update.micro_batch_prompts={size}")
        same_gradients(gradients(cut), gradients(whole))
        assert metrics == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_gradients_do_not_depend_on_packing(train):
    packed, _ = train("update.max_grad_norm=1e9", WHOLE)
    plain, _ = train("update.max_grad_norm=1e9", "model.shared_prefix=false")
    same_gradients(gradients(plain), gradients(packed), 1e-4)


PUBLISHED = (
    "mode=published",
    "published.mini_batch_responses=12",
    "published.micro_batch_responses=6",
    "update.max_grad_norm=1e9",
    "update.entropy_penalty=0.06",
)
"""Of 16 responses: mini-batches of 12 and 4, micro-batches of 6, 6 and 4."""


def test_published_shaping_depends_on_its_own_sizes_and_not_on_the_passes(train):
    whole, expected = train(*PUBLISHED, WHOLE)
    for size in (1, 3):
        cut, metrics = train(*PUBLISHED, f"update.micro_batch_prompts={size}")
        same_gradients(gradients(cut), gradients(whole))
        assert metrics == pytest.approx(expected, rel=1e-4, abs=1e-6)
    for name in ("mini_batch_responses=16", "micro_batch_responses=3"):
        other, _ = train(*PUBLISHED, WHOLE, f"published.{name}")
        with pytest.raises(AssertionError):
            same_gradients(gradients(other), gradients(whole), 1e-3)


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("mode", ["exact", "published"])
def test_ranks_have_the_gradient_of_one(train, world, mode, monkeypatch):
    """Each rank's passes, as DeepSpeed's engine deals them, one after the other."""
    settings = PUBLISHED if mode == "published" else (PUBLISHED[3],)
    one, _ = train(*settings)

    def of_all(trainer, tokens):
        parts = []
        for rank in range(world):
            monkeypatch.setattr(deepspeed_engine, "ranks", lambda rank=rank: Ranks(rank, world))
            parts += deepspeed_engine.DeepSpeedTrainer._micro_batches(trainer, tokens)
        return parts

    monkeypatch.setattr(TorchTrainer, "_micro_batches", of_all)
    several, _ = train(*settings, "update.micro_batch_prompts=1")
    same_gradients(gradients(several), gradients(one))


def test_published_shaping_is_that_of_each_device(train, rollouts, scores):
    # By the formula, for the loss on-policy: -sum(alpha A n) / sum(n).
    flat = [
        (d, s, n)
        for row, group in zip(scores, rollouts, strict=True)
        for d, s, n in zip(row.dependency, SIGNS, map(len, group.response_ids), strict=True)
    ]
    signed = 0.0
    for device in (flat[:12], flat[12:]):
        low, high = min(d for d, *_ in device), max(d for d, *_ in device)
        for start in range(0, len(device), 6):
            micro = device[start : start + 6]
            z = [(d - low) / (high - low) for d, *_ in micro]
            mean = sum(z) / len(z)
            signed += sum((0.9 + 0.1 * z_i / mean) * ADVANTAGE * s * n for z_i, (_, s, n) in zip(z, micro, strict=True))
    _, metrics = train(*PUBLISHED, "update.objective=vppo-tas", "update.entropy_penalty=0")
    assert metrics["loss"] == pytest.approx(-signed / sum(n for *_, n in flat), rel=1e-4)


def test_advantages_are_kept_as_the_objective_used_them(train, rollouts, scores, table):
    # Two update batches, of 3 groups and 1; the statistics of shaping are those of each.
    trainer, _ = train("update.objective=vppo-tas", "update.batch_prompts=3", "update.epochs=2")
    kept = trainer.advantages_used
    assert [(row.sample_id, row.position) for row in kept] == [(group.sample_id, group.position) for group in rollouts]
    assert [row.advantage for row in kept] == [pytest.approx([ADVANTAGE * s for s in SIGNS])] * 4
    for part in (slice(0, 3), slice(3, 4)):
        dependency = [d for row in scores[part] for d in row.dependency]
        z = [(d - min(dependency)) / (max(dependency) - min(dependency)) for d in dependency]
        shaped = [
            (0.9 + 0.1 * x * len(z) / sum(z)) * ADVANTAGE * s for x, s in zip(z, SIGNS * len(kept[part]), strict=True)
        ]
        found = [a for row in kept[part] for a in row.shaped_advantage]
        assert found == pytest.approx(shaped, rel=1e-4)
    trainer.objective = lambda *given: dataclasses.replace(dapo(*given), advantage=2 * given[0].adv_B)
    trainer.update(rollouts[1:3], scores[1:3], table)
    assert [row.position for row in trainer.advantages_used] == [g.position for g in rollouts[1:3]]
    assert all(row.shaped_advantage == [2 * a for a in row.advantage] for row in trainer.advantages_used)


@pytest.mark.parametrize("statistics", ["batch", "micro_batch"])
def test_a_question_without_an_image_keeps_its_advantages_and_is_in_no_statistic(statistics):
    config = settings.load(
        None, [f"update.shaping_statistics={statistics}", "published.micro_batch_responses=2"]
    ).update
    dependency, seen = torch.tensor([0.0, 0.0, 3.0, 1.0]), torch.tensor([False, False, True, True])
    zeros = torch.zeros(4, dtype=torch.long)
    batch = random_batch(groups=1, dependency_B=dependency, mini_batch_B=zeros, micro_batch_B=zeros, depends_B=seen)
    assert shaping(batch, config).tolist() == pytest.approx([1, 1, 1.1, 0.9])
    alone = dataclasses.replace(batch, depends_B=torch.zeros(4, dtype=torch.bool))
    assert shaping(alone, config).tolist() == [1, 1, 1, 1]


def test_gradient_checkpointing_gives_the_same(train):
    plain, _ = train("update.max_grad_norm=1e9")
    saved, metrics = train("update.max_grad_norm=1e9", "update.gradient_checkpointing=true")
    assert saved.policy.model.is_gradient_checkpointing
    assert not saved.policy.model.training  # ready to sample again
    same_gradients(gradients(saved), gradients(plain), 1e-6)
    assert metrics["ratio_mean"] == pytest.approx(1.0, abs=1e-5)


# --- update batches, epochs, learning rate --------------------------------------------------------


def test_one_optimizer_step_per_update_batch_and_epoch(train, rollouts):
    trainer, _ = train("update.batch_prompts=3", "update.epochs=2")
    assert trainer.updates == 2 * 2  # 3 groups, then 1; twice
    whole, _ = train()
    assert whole.updates == 1


def test_the_second_epoch_is_off_policy(train):
    # The mean of a ratio of 1 and of one that the first step moved away from 1.
    _, metrics = train("update.epochs=2", "update.learning_rate=1e-3")
    assert metrics["policy_kl"] > 1e-5


def test_warm_up_is_linear(train, table, rollouts, scores):
    trainer, metrics = train("update.warmup_steps=4", "update.learning_rate=1e-4")
    rates = [metrics["learning_rate"]]
    rates += [trainer.update(rollouts, scores, table)["learning_rate"] for _ in range(4)]
    assert rates == pytest.approx([0.25e-4, 0.5e-4, 0.75e-4, 1e-4, 1e-4])


def test_gradients_are_scaled_to_the_largest_norm(train):
    _, expected = train("update.max_grad_norm=1e9")
    cut, metrics = train("update.max_grad_norm=0.01")
    assert metrics["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-5)  # before scaling
    norm = torch.stack([g.norm() for g in gradients(cut).values()]).norm()
    assert norm.item() == pytest.approx(0.01, rel=1e-3)


def test_only_matrices_decay(train):
    trainer, _ = train("update.weight_decay=0.5")
    decayed, plain = trainer.optimizer.param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.5, 0.0)
    assert all(p.dim() > 1 for p in decayed["params"])
    assert all(p.dim() == 1 for p in plain["params"])
    assert len(decayed["params"]) + len(plain["params"]) == len(trainer.named)
    trainer, _ = train("update.weight_decay=0.5", "published.decay_all=true")
    (every,) = trainer.optimizer.param_groups
    assert (every["weight_decay"], len(every["params"])) == (0.5, len(trainer.named))


# --- gradients that are not finite ----------------------------------------------------------------


class Broken:
    """Makes the gradient of one weight NaN while ``on``."""

    def __init__(self, trainer):
        self.on = True
        self.name, weight = trainer.named[-1]
        weight.register_hook(lambda gradient: gradient * (float("nan") if self.on else 1.0))


@pytest.mark.parametrize("mode", ["exact", "published"])
def test_a_step_whose_gradients_are_not_finite_is_left_out_and_counted(
    fresh_policy, configure, table, rollouts, scores, mode
):
    config = configure(f"mode={mode}")
    trainer, whole = (TorchTrainer(fresh_policy(config), config) for _ in range(2))
    before, broken = weights(trainer), Broken(trainer)
    assert trainer.update(rollouts, scores, table) == {"updates_skipped": 1}
    assert all(torch.equal(value, before[name]) for name, value in weights(trainer).items())
    assert (trainer.updates, trainer.optimizer.state) == (0, {})
    broken.on = False
    expected = whole.update(rollouts, scores, table)
    assert "updates_skipped" not in expected
    assert trainer.update(rollouts, scores, table) == expected  # as if it had never been
    assert all(torch.equal(value, weights(whole)[n]) for n, value in weights(trainer).items())


def test_many_such_steps_in_a_row_end_the_run(fresh_policy, configure, table, rollouts, scores):
    config = configure()
    trainer = TorchTrainer(fresh_policy(config), config)
    broken = Broken(trainer)
    for on in (True,) * (MOST_SKIPPED - 1) + (False,) + (True,) * (MOST_SKIPPED - 1):
        broken.on = on
        trainer.update(rollouts, scores, table)
    with pytest.raises(FloatingPointError, match=f"{MOST_SKIPPED} .* in a row .*{broken.name}: nan"):
        trainer.update(rollouts, scores, table)


# --- state ----------------------------------------------------------------------------------------


def test_a_restored_trainer_goes_on_bit_for_bit(train, fresh_policy, configure, table, rollouts, scores, tmp_path):
    settings = ("update.learning_rate=1e-3", "update.warmup_steps=5")
    trainer, _ = train(*settings)
    trainer.save(tmp_path)
    saved = copy.deepcopy(trainer.policy.model.state_dict())
    trainer.update(rollouts, scores, table)
    expected = trainer.update(rollouts, scores, table)

    policy = fresh_policy(configure(*settings))
    policy.model.load_state_dict(saved)
    restored = TorchTrainer(policy, configure(*settings))
    restored.load(tmp_path)
    assert restored.updates == 1
    restored.update(rollouts, scores, table)
    assert restored.update(rollouts, scores, table) == expected
    for name, value in weights(trainer).items():
        assert torch.equal(value, weights(restored)[name]), name


def test_without_the_state_the_next_update_is_another(train, fresh_policy, configure, table, rollouts, scores):
    # So the test above can fail: AdamW's moments matter.
    trainer, _ = train("update.learning_rate=1e-3")
    policy = fresh_policy(configure("update.learning_rate=1e-3"))
    policy.model.load_state_dict(trainer.policy.model.state_dict())
    forgetful = TorchTrainer(policy, configure("update.learning_rate=1e-3"))
    forgetful.update(rollouts, scores, table)
    trainer.update(rollouts, scores, table)
    assert any(not torch.equal(v, weights(forgetful)[n]) for n, v in weights(trainer).items())


def test_the_same_update_twice_gives_the_same_bits(train):
    one, other = train()[0], train()[0]
    for name, value in weights(one).items():
        assert torch.equal(value, weights(other)[name]), name


def test_a_trainer_that_never_updated_can_be_saved(fresh_policy, tiny_config, tmp_path):
    TorchTrainer(fresh_policy(tiny_config), tiny_config).save(tmp_path)
    restored = TorchTrainer(fresh_policy(tiny_config), tiny_config)
    restored.load(tmp_path)
    assert restored.updates == 0


# --- objectives -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objective", "filters", "shapes"),
    [
        ("vppo", True, True),
        ("vppo-tas", False, True),
        ("vppo-tgf", True, False),
        ("dapo", False, False),
        ("grpo", False, False),
    ],
)
def test_what_each_objective_trains(train, rollouts, objective, filters, shapes):
    trainer, metrics = train(f"update.objective={objective}")
    tokens = [n for group in lengths(rollouts) for n in group]
    kept = sum(math.ceil(round(0.4 * n, 6)) for n in tokens)
    assert metrics["trained_share"] == pytest.approx(kept / sum(tokens) if filters else 1.0)
    assert metrics["alpha_min"] == pytest.approx(0.9 if shapes else 1.0)
    assert (metrics["alpha_max"] > 1.001) == shapes
    assert all(p.isfinite().all() for p in weights(trainer).values())


def test_objectives_differ_in_their_updates(train):
    found = [
        gradients(train(f"update.objective={name}", "update.max_grad_norm=1e9")[0])
        for name in ("vppo", "vppo-tas", "vppo-tgf", "dapo", "grpo")
    ]
    for i, one in enumerate(found):
        for other in found[:i]:
            assert any(not torch.allclose(one[n], other[n], rtol=1e-3) for n in one)


def share_of(rollouts, sign):
    """The share of tokens in responses with this sign of advantage."""
    flat = [(n, s) for group in lengths(rollouts) for n, s in zip(group, SIGNS, strict=True)]
    return sum(n for n, s in flat if s == sign) / sum(n for n, _ in flat)


def test_clipping_is_symmetric_in_grpo_only(train, rollouts, scores):
    # At a ratio of 1.25 DAPO's upper bound 1.28 is not reached, GRPO's 1.2 is, where A > 0.
    moved = off_policy(scores, math.log(1.25))
    assert train("update.objective=dapo", scores=moved)[1]["clipped_high"] == 0
    _, grpo = train("update.objective=grpo", scores=moved)
    assert grpo["clipped_high"] == pytest.approx(share_of(rollouts, 1))
    assert grpo["ratio_mean"] == pytest.approx(1.25, rel=1e-4)


def test_clipping_below_and_dual_clipping(train, rollouts, scores):
    # Both where A < 0: a ratio of 0.75 lies below 0.8, one of 4 above the dual clip of 3.
    _, low = train("update.objective=dapo", scores=off_policy(scores, math.log(0.75)))
    assert low["clipped_low"] == pytest.approx(share_of(rollouts, -1))
    assert low["clipped_high"] == low["clipped_dual"] == 0
    _, dual = train("update.objective=dapo", scores=off_policy(scores, math.log(4)))
    assert dual["clipped_dual"] == pytest.approx(share_of(rollouts, -1))
    assert dual["clipped_high"] == pytest.approx(share_of(rollouts, 1))


def test_everything_clipped_leaves_the_gradient_zero(train, rollouts, scores):
    # At a ratio of 4: a loss of -1.28 A where A > 0 and of 3 |A| where A < 0, both constant.
    _, metrics = train("update.objective=dapo", "update.weight_decay=0", scores=off_policy(scores, math.log(4)))
    assert metrics["grad_norm"] == 0
    expected = ADVANTAGE * (3 * share_of(rollouts, -1) - 1.28 * share_of(rollouts, 1))
    assert metrics["loss"] == pytest.approx(expected, rel=1e-4)


def test_a_group_without_contrast_is_harmless(train, rollouts):
    same = [dataclasses.replace(group, reward=[1.0] * 4) for group in rollouts]
    _, metrics = train(rollouts=same)
    assert metrics["loss"] == metrics["grad_norm"] == 0
    assert metrics["alpha_min"] == metrics["alpha_max"] == 1


# --- optional terms -------------------------------------------------------------------------------


def mean_over_tokens(rows):
    values = [x for group in rows for response in group for x in response]
    return sum(values) / len(values)


def test_entropy_penalties(train, scores):
    coefficient = "update.entropy_penalty=0.06"
    dapo = ("update.objective=dapo", coefficient, "update.max_grad_norm=1e9")
    none, metrics = train(*dapo, "update.entropy_estimator=none")
    assert metrics["entropy_penalty"] == 0
    for estimator, expected in (
        ("sampled", -mean_over_tokens(s.old_logp for s in scores)),
        ("exact", mean_over_tokens(s.entropy for s in scores)),
    ):
        trainer, metrics = train(*dapo, f"update.entropy_estimator={estimator}")
        assert metrics["entropy_penalty"] == pytest.approx(expected, rel=1e-3)
        gap = max((gradients(trainer)[n] - g).abs().max() for n, g in gradients(none).items())
        assert gap > 1e-4


def test_no_coefficient_no_reference_model(train):
    def unwanted():
        raise AssertionError("the reference model was loaded")

    _, metrics = train("update.kl_coefficient=0", reference=unwanted)
    assert "reference_kl" not in metrics


def test_the_kl_term_pulls_back_to_the_reference(train, fresh_policy, configure, policy, table, rollouts, scores):
    moved, _ = train("update.learning_rate=1e-3", "update.objective=dapo")
    flat = [dataclasses.replace(group, reward=[0.0] * 4) for group in rollouts]  # no advantages
    trainer, first = train(
        "update.kl_coefficient=1",
        "update.learning_rate=1e-4",
        rollouts=flat,
        policy=moved.policy,
        reference=lambda: fresh_policy(configure()),
    )
    distances = [first["reference_kl"]]
    distances += [trainer.update(flat, scores, table)["reference_kl"] for _ in range(4)]
    assert distances[0] > 1e-3
    assert distances[-1] < 0.8 * distances[0]
    start = dict(policy.model.named_parameters())
    for name, parameter in trainer.reference.model.named_parameters():
        assert torch.equal(parameter, start[name])  # it is not trained itself
        assert not parameter.requires_grad


def test_at_the_start_the_reference_is_the_policy(train, fresh_policy, configure):
    _, metrics = train("update.kl_coefficient=1", WHOLE, reference=lambda: fresh_policy(configure()))
    assert metrics["reference_kl"] == 0


def test_truncated_responses_can_be_left_out(train, rollouts):
    # The second response of every group passes for truncated: the sums go over the others.
    cut = [dataclasses.replace(g, truncated=[False, True, False, False]) for g in rollouts]
    _, metrics = train("update.objective=dapo", "update.mask_truncated=true", rollouts=cut)
    left = [(n, s) for g in lengths(rollouts) for i, (n, s) in enumerate(zip(g, SIGNS, strict=True)) if i != 1]
    expected = -ADVANTAGE * sum(n * s for n, s in left) / sum(n for n, _ in left)
    assert metrics["loss"] == pytest.approx(expected, rel=1e-4)
    assert metrics["ratio_mean"] == pytest.approx(1.0, abs=1e-5)
    _, kept = train("update.objective=dapo", rollouts=cut)
    assert kept["loss"] != pytest.approx(expected, rel=1e-2)


def test_all_responses_truncated_and_left_out(train, rollouts):
    cut = [dataclasses.replace(g, truncated=[True] * 4) for g in rollouts]
    _, metrics = train("update.mask_truncated=true", rollouts=cut)
    assert metrics["loss"] == metrics["grad_norm"] == 0


def test_long_responses_can_be_punished(train, rollouts):
    # With a limit of 48 and a cache of 40, a response of n > 8 tokens loses (n - 8) / 40.
    _, metrics = train("update.objective=dapo", "update.overlong_cache=40")
    signed, total = 0.0, 0
    for group in lengths(rollouts):
        reward = torch.tensor([right - max(0, n - 8) / 40 for n, right in zip(group, (1, 0, 0, 1), strict=True)])
        advantage = (reward - reward.mean()) / (reward.std() + 1e-6)
        signed += sum(a * n for a, n in zip(advantage.tolist(), group, strict=True))
        total += sum(group)
    assert metrics["loss"] == pytest.approx(-signed / total, rel=1e-3)


@pytest.mark.parametrize(("trainer_over_rollout", "weight"), [(4.0, 2.0), (1.5, 1.5), (0.5, 0.5)])
def test_importance_weights_are_truncated(train, rollouts, scores, trainer_over_rollout, weight):
    # The engine reports log-probs lower by log(4): the weight 4 is cut to the cap of 2.
    gap = math.log(trainer_over_rollout)
    mismatched = [
        dataclasses.replace(g, logp=[[x - gap for x in r] for r in s.old_logp])
        for g, s in zip(rollouts, scores, strict=True)
    ]
    _, expected = train("update.objective=dapo", rollouts=mismatched)
    _, metrics = train("update.objective=dapo", "update.tis_cap=2", rollouts=mismatched)
    assert metrics["loss"] == pytest.approx(weight * expected["loss"], rel=1e-4)


def test_bfloat16_trains_float32_weights(train):
    trainer, metrics = train("model.dtype=bfloat16")
    assert all(parameter.dtype == torch.float32 for _, parameter in trainer.named)
    assert metrics["ratio_mean"] == pytest.approx(1.0, abs=0.1)  # scored in float32
    assert math.isfinite(metrics["grad_norm"])


def test_no_further_term_of_a_loss_can_be_called_as_a_metric(train, fresh_policy, tiny_config):
    reference = fresh_policy(tiny_config)
    _, metrics = train("update.kl_coefficient=0.1", "update.tis_cap=2", WHOLE, reference=lambda: reference)
    assert {*metrics, "updates_skipped"} == {*METRICS}  # the last is there where it is not 0


def test_groups_of_several_sizes_are_refused(train, rollouts, scores):
    def without(row, *names):
        return dataclasses.replace(row, **{name: getattr(row, name)[:-1] for name in names})

    fewer = without(rollouts[1], "response_ids", "response", "logp", "truncated", "answer", "outcome", "reward")
    scored = without(scores[1], "old_logp", "entropy", "perception", "keep", "dependency")
    with pytest.raises(UserError, match=r"its groups have 3 and 4 responses"):
        train(rollouts=[rollouts[0], fewer], scores=[scores[0], scored])
