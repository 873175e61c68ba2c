"""Scoring on the tiny model: exact KL against the dense computation, masks, estimators, batching."""

import dataclasses
import math

import pytest
import torch

from pipelines.disk.records import STATISTICS, Sample, SampleTable, Scored, Statistics, read_rows, write_rows
from pipelines.errors import UserError
from pipelines.model.policy import Policy
from pipelines.score import scoring
from pipelines.score.scoring import (
    both_views,
    group_statistics,
    perturbed_prompt,
    perturbed_rows,
    score,
    token_roles,
    view_statistics,
)
from pipelines.watch import Silent

ESTIMATORS = ["kl", "k3", "jsd", "log_ratio", "top1_drop", "argmax_drop", "entropy", "random", "oracle"]
PERTURBATIONS = ["patch_black", "gaussian_noise", "gaussian_blur", "grey", "raw_black", "evidence"]


def flat(nested):
    """group -> response -> token lists as one tensor."""
    return torch.tensor([x for group in nested for response in group for x in response])


def perception(scored):
    return flat([row.perception for row in scored])


def dense_log_probs(policy, prompt, response):
    """log p [T, V] over the whole vocabulary, from the model as transformers runs it."""
    ids_L = torch.cat([prompt["input_ids"], torch.tensor(response)])
    types_L = torch.cat([prompt["mm_token_type_ids"], torch.zeros(len(response)).int()])
    with torch.no_grad():
        logits_LV = policy.model(
            input_ids=ids_L[None],
            mm_token_type_ids=types_L[None],
            pixel_values=prompt["pixel_values"],
            image_grid_thw=prompt["image_grid_thw"],
        ).logits[0]
    logits_TV = logits_LV[-len(response) - 1 : -1].double()
    logits_TV[:, policy.suppressed_ids] = -1e30
    return logits_TV.log_softmax(-1)


# --- exact KL -------------------------------------------------------------------------------------


def test_perception_is_the_exact_kl_of_the_two_views(policy, samples, rollouts, scores, tiny_config):
    expected = []
    for sample, group in zip(samples, rollouts, strict=False):
        clean = policy.encoder.encode(sample)
        view = perturbed_prompt(tiny_config, sample, clean, policy, 1, group.position)
        for response in group.response_ids:
            p, q = (dense_log_probs(policy, prompt, response) for prompt in (clean, view))
            expected.append((p.exp() * (p - q)).sum(-1))
    expected = torch.cat(expected)
    assert expected.max() > 0.5  # some tokens do depend on the image
    torch.testing.assert_close(perception(scores).double(), expected, atol=2e-5, rtol=1e-4)


def test_old_log_probs_and_entropy_are_the_clean_views(policy, samples, rollouts, scores):
    logp, entropy = [], []
    for sample, group in zip(samples, rollouts, strict=False):
        for response in group.response_ids:
            p = dense_log_probs(policy, policy.encoder.encode(sample), response)
            logp.append(p.gather(1, torch.tensor(response)[:, None])[:, 0])
            entropy.append(-(p.exp() * p).sum(-1))
    old, found = flat([s.old_logp for s in scores]), flat([s.entropy for s in scores])
    torch.testing.assert_close(old.double(), torch.cat(logp), atol=2e-5, rtol=0)
    torch.testing.assert_close(found.double(), torch.cat(entropy), atol=2e-5, rtol=0)


def test_rows_follow_the_rollouts(rollouts, scores):
    for group, row in zip(rollouts, scores, strict=True):
        lengths = [len(response) for response in group.response_ids]
        assert (row.sample_id, row.position) == (group.sample_id, group.position)
        for lists in (row.old_logp, row.entropy, row.perception, row.keep):
            assert [len(values) for values in lists] == lengths
        for values, mean in zip(row.perception, row.dependency, strict=True):
            assert mean == pytest.approx(sum(values) / len(values), abs=1e-6)


# --- the tokens to keep ---------------------------------------------------------------------------


@pytest.mark.parametrize("fraction", [0.4, 0.05, 1.0])
def test_the_filter_keeps_the_highest(configure, score_rows, rollouts, fraction):
    for row in score_rows(configure(f"score.keep_fraction={fraction}"), rollouts):
        for values, keep in zip(row.perception, row.keep, strict=True):
            assert sum(keep) == math.ceil(round(fraction * len(values), 6))
            kept = [v for v, k in zip(values, keep, strict=True) if k]
            dropped = [v for v, k in zip(values, keep, strict=True) if not k]
            assert not dropped or min(kept) >= max(dropped)


# --- views ----------------------------------------------------------------------------------------


def pixels(config, policy, samples, rollouts, step=1):
    """The perturbed pixels each response is scored with, group by group."""
    groups = rollouts[:2]
    prompts = [policy.encoder.encode(sample) for sample in samples[:2]]
    rows = perturbed_rows(config, step, groups, samples[:2], prompts, policy)
    return [row.prompt["pixel_values"] for row in rows for _ in row.responses]


def test_one_mask_per_prompt_is_shared_by_its_responses(policy, samples, rollouts, tiny_config):
    views = pixels(tiny_config, policy, samples, rollouts)
    assert len(views) == 8
    assert all(torch.equal(views[0], view) for view in views[:4])
    assert all(torch.equal(views[4], view) for view in views[4:])
    assert views[0].shape != views[4].shape or not torch.equal(views[0], views[4])


def test_one_mask_per_response(policy, samples, rollouts, configure):
    views = pixels(configure("score.mask_per=response"), policy, samples, rollouts)
    # Two grids of 24 patches or more: equal masks by chance have a probability of 2^-24.
    different = {view.numpy().tobytes() for view in views}
    assert len(different) == 8


@pytest.mark.parametrize("mask_per", ["prompt", "response"])
def test_the_mask_is_seeded_by_run_step_and_prompt(policy, samples, rollouts, configure, mask_per):
    def view(seed=0, step=1):
        config = configure(f"score.mask_per={mask_per}", f"seed={seed}")
        return pixels(config, policy, samples, rollouts, step)[0]

    assert torch.equal(view(), view())
    assert not torch.equal(view(), view(seed=1))
    assert not torch.equal(view(), view(step=2))


def test_a_patch_is_black_or_untouched(policy, samples, tiny_config):
    # A row of pixel_values is one patch of the encoder; black is (0 - 0.5) / 0.5 = -1.
    clean = policy.encoder.encode(samples[0])
    view = perturbed_prompt(tiny_config, samples[0], clean, policy, 1, 0)["pixel_values"]
    black = (view == -1).all(-1)
    assert torch.equal(view[~black], clean["pixel_values"][~black])
    assert 0.2 < black.float().mean() < 0.8
    assert not (clean["pixel_values"] == -1).all(-1).any()


def test_the_cached_prompt_is_not_perturbed(policy, samples, rollouts, score_rows, tiny_config):
    before = policy.encoder.encode(samples[0])["pixel_values"].clone()
    score_rows(tiny_config, rollouts)
    assert torch.equal(policy.encoder.encode(samples[0])["pixel_values"], before)


# --- every estimator and perturbation -------------------------------------------------------------


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("mask_per", ["prompt", "response"])
def test_every_estimator_runs(configure, score_rows, rollouts, estimator, mask_per):
    config = configure(f"score.estimator={estimator}", f"score.mask_per={mask_per}")
    values = perception(score_rows(config, rollouts))
    assert values.isfinite().all()
    assert values.std() > 0
    if estimator in ("kl", "k3", "jsd", "entropy", "random"):
        assert values.min() >= 0
    if estimator == "jsd":
        assert values.max() <= math.log(2) + 1e-6


def test_estimators_differ(configure, score_rows, rollouts):
    found = [perception(score_rows(configure(f"score.estimator={name}"), rollouts)) for name in ESTIMATORS]
    for i, one in enumerate(found):
        assert not any(torch.allclose(one, other) for other in found[:i])


@pytest.mark.parametrize("perturbation", PERTURBATIONS)
def test_every_perturbation_hides_something(configure, score_rows, rollouts, perturbation, policy, samples):
    config = configure(f"score.perturbation={perturbation}")
    values = perception(score_rows(config, rollouts))
    roles = [
        role
        for sample, group in zip(samples, rollouts, strict=False)
        for response in group.response_ids
        for role in token_roles(policy, sample, response)
    ]
    seen = torch.tensor([role == "perception" for role in roles])
    assert values[seen].mean() > 3 * values[~seen].mean()


def test_unknown_names_are_answered_with_the_nearest(configure, score_rows, rollouts):
    with pytest.raises(UserError, match=r"score.estimator: klx.*Did you mean kl\?"):
        score_rows(configure("score.estimator=klx"), rollouts)
    with pytest.raises(UserError, match=r"Did you mean gaussian_blur\?"):
        score_rows(configure("score.perturbation=gausian_blur"), rollouts)


def position_in_response(statistics, groups, samples):
    """An estimator of one's own: later tokens score higher."""
    return torch.tensor([float(i) for group in groups for ids in group.response_ids for i in range(len(ids))])


def test_an_estimator_by_import_path(configure, score_rows, rollouts):
    config = configure(f"score.estimator={__name__}:position_in_response")
    row = score_rows(config, rollouts)[0]
    assert row.perception[0] == list(range(len(row.perception[0])))


def in_place(statistics, groups, samples):
    """One that works on what it was given, and returns a part of it."""
    for group in groups:
        group.position, group.step = -1, -1
        for ids, logp in zip(group.response_ids, group.logp, strict=True):
            ids.clear()
            logp[:] = [-99.0] * len(logp)
    groups.clear()
    samples.clear()
    statistics.entropy.zero_()
    return statistics.logp.mul_(-1)


def test_an_estimator_that_works_in_place_changes_nothing_but_perception(configure, score_rows, rollouts, scores):
    rows = score_rows(configure(f"score.estimator={__name__}:in_place"), rollouts)
    for name in ("old_logp", "entropy"):
        assert [getattr(row, name) for row in rows] == [getattr(row, name) for row in scores]
    assert perception(rows).tolist() == (-flat([row.old_logp for row in scores])).tolist()


def changes_the_question(statistics, groups, samples):
    samples[0].answer = "4"


def test_an_estimator_cannot_change_a_question(configure, score_rows, rollouts):
    with pytest.raises(UserError, match=r"changes_the_question: raised FrozenInstanceError") as caught:
        score_rows(configure(f"score.estimator={__name__}:changes_the_question"), rollouts)
    assert "test_score.py, line" in str(caught.value)


def too_large(statistics, groups, samples):
    return statistics.kl.double() + 1e300


def infinite(statistics, groups, samples):
    return statistics.kl / 0


def complex_numbers(statistics, groups, samples):
    return statistics.kl.to(torch.complex64)


@pytest.mark.parametrize(
    ("name", "told"),
    [("too_large", "float32 .token 0 has 1e.300"), ("infinite", "not finite"), ("complex_numbers", "complex")],
)
def test_numbers_that_perception_cannot_be_are_refused(configure, score_rows, rollouts, name, told):
    with pytest.raises(UserError, match=f"score.estimator: {__name__}:{name}.*returned .*{told}"):
        score_rows(configure(f"score.estimator={__name__}:{name}"), rollouts)


def test_a_policy_whose_numbers_overflow_is_told(configure, rollouts, samples):
    count = sum(map(len, rollouts[0].response_ids))
    statistics = scoring.TokenStatistics(torch.zeros(count), torch.zeros(count))
    config = configure(f"score.perturbation={__name__}:some")
    with pytest.raises(UserError, match=rf"estimator: kl.*is nan for a token of question {samples[0].id}.*:some"):
        scoring.scored_rows(config, 1, rollouts[:1], samples[:1], statistics, torch.full([count], math.nan))


def test_the_oracle_knows_what_was_read(policy, samples):
    text = "<think> a1 shows 7, b2 shows 3. 7 + 3 = 10 </think> \\boxed{10}"
    ids = policy.tokenizer(text)["input_ids"]
    roles = token_roles(policy, samples[0], ids)
    read = [policy.tokenizer.decode([i]) for i, r in zip(ids, roles, strict=True) if r == "perception"]
    assert read == [" 7", " 3"]


def test_the_oracle_needs_the_embedded_data(configure, score_rows, rollouts, samples, tmp_path):
    rows = [dataclasses.replace(sample, metadata="{}") for sample in samples]
    write_rows(tmp_path / "train.parquet", Sample, rows)
    with pytest.raises(UserError, match="has no known token roles") as caught:
        score_rows(configure("score.estimator=oracle"), rollouts, samples=SampleTable(tmp_path / "train.parquet"))
    assert "data.source=glyphs" in caught.value.fix


# --- questions without an image -------------------------------------------------------------------


@pytest.fixture
def half_blind(samples, tmp_path):
    """The questions, the first two without their image."""
    rows = [
        dataclasses.replace(s, images=[], problem=s.problem.replace("<image>", "")) if i < 2 else s
        for i, s in enumerate(samples)
    ]
    write_rows(tmp_path / "train.parquet", Sample, rows)
    return SampleTable(tmp_path / "train.parquet")


@pytest.mark.parametrize("estimator", ["kl", "entropy"])
def test_all_tokens_are_kept_where_no_image_is_to_depend_on(configure, score_rows, rollouts, half_blind, estimator):
    rows = score_rows(configure(f"score.estimator={estimator}"), rollouts, samples=half_blind)
    shares = [flat([row.keep]).float().mean().item() for row in rows]
    assert all(0.4 <= share < 0.5 for share in shares[2:])
    if estimator == "kl":
        assert shares[:2] == [1.0, 1.0]
        assert flat([row.perception for row in rows[:2]]).abs().max() == 0
    else:  # which says of any token how uncertain it is
        assert all(share < 0.5 for share in shares[:2])


def one_each(statistics, groups, samples):
    assert all(sample.images for sample in samples)
    assert [group.sample_id for group in groups] == [sample.id for sample in samples]
    assert len(statistics.kl) == sum(len(ids) for group in groups for ids in group.response_ids)
    return torch.ones_like(statistics.logp)


@pytest.mark.parametrize("blind", [2, 4])
def test_an_estimator_of_ones_own_is_asked_about_images_alone(
    configure, score_rows, rollouts, samples, tmp_path, blind
):
    questions = [dataclasses.replace(s, images=[] if i < blind else s.images) for i, s in enumerate(samples)]
    questions = [s if s.images else dataclasses.replace(s, problem=s.problem.replace("<image>", "")) for s in questions]
    write_rows(tmp_path / "train.parquet", Sample, questions)
    table = SampleTable(tmp_path / "train.parquet")
    rows = score_rows(configure(f"score.estimator={__name__}:one_each"), rollouts, samples=table)
    assert [set(flat([row.perception]).tolist()) for row in rows] == [{0.0}] * blind + [{1.0}] * (len(rows) - blind)
    assert all(all(map(all, row.keep)) for row in rows[:blind])


def test_as_published_the_first_tokens_of_such_a_response_are_kept(configure, score_rows, rollouts, half_blind):
    rows = score_rows(configure("published.filter_text_only=true"), rollouts, samples=half_blind)
    for keep in (response for row in rows[:2] for response in row.keep):
        kept = math.ceil(round(0.4 * len(keep), 6))
        assert keep == [True] * kept + [False] * (len(keep) - kept)


# --- batching -------------------------------------------------------------------------------------


@pytest.mark.parametrize("override", ["score.batch_prompts=1", "model.shared_prefix=false"])
@pytest.mark.parametrize("mask_per", ["prompt", "response"])
def test_the_artifact_does_not_depend_on_the_batching(
    configure, score_rows, rollouts, fresh_policy, override, mask_per
):
    config = configure(f"score.mask_per={mask_per}")
    other_config = configure(f"score.mask_per={mask_per}", override)
    one = score_rows(config, rollouts)
    other = score_rows(other_config, rollouts, policy=fresh_policy(other_config))
    torch.testing.assert_close(perception(one), perception(other), atol=2e-5, rtol=1e-3)
    for name in ("old_logp", "entropy"):
        a, b = (flat([getattr(row, name) for row in rows]) for rows in (one, other))
        torch.testing.assert_close(a, b, atol=2e-5, rtol=0)
    assert flat([r.keep for r in one]).eq(flat([r.keep for r in other])).float().mean() > 0.99


def test_scoring_again_gives_the_same_bits(score_rows, rollouts, scores, tiny_config):
    assert score_rows(tiny_config, rollouts) == scores


def test_metrics(policy, rollouts, scores, table, tiny_config, tmp_path):
    metrics = score(tiny_config, 1, rollouts, table, policy, tmp_path, Silent())
    values, keep = perception(scores), flat([row.keep for row in scores])
    assert metrics["perception_mean"] == pytest.approx(values.mean().item(), rel=1e-5)
    assert metrics["kept_share"] == pytest.approx(keep.float().mean().item(), rel=1e-5)
    share = values[keep].sum() / values.sum()
    assert metrics["perception_in_kept"] == pytest.approx(share.item(), rel=1e-5)
    assert metrics["mismatch_max"] < 1e-4  # the engine's log-probs are the trainer's


def test_a_question_without_an_image_has_no_perception(policy, rollouts, score_rows, tiny_config, tmp_path):
    text = Sample("text", "What is 3 + 4?", [], "7")
    write_rows(tmp_path / "train.parquet", Sample, [text])
    group = dataclasses.replace(rollouts[0], sample_id="text")
    [row] = score_rows(tiny_config, [group], samples=SampleTable(tmp_path / "train.parquet"))
    assert max(max(values) for values in row.perception) < 1e-6


def test_surplus_of_an_earlier_step_keeps_the_log_probs_it_was_sampled_with(
    policy, rollouts, table, tiny_config, tmp_path
):
    # As if the second group had been sampled by an earlier policy: its ratio is to that one, and
    # the engine mismatch is measured on the first group alone.
    old = dataclasses.replace(rollouts[1], step=0, logp=[[x - 1.0 for x in row] for row in rollouts[1].logp])
    groups = [dataclasses.replace(rollouts[0], step=1), old]
    metrics = score(tiny_config, 1, groups, table, policy, tmp_path, Silent())
    scored = read_rows(tmp_path / "scores.parquet", Scored)
    assert flat([scored[1].old_logp]).tolist() == flat([old.logp]).tolist()
    torch.testing.assert_close(flat([scored[0].old_logp]), flat([rollouts[0].logp]), atol=1e-4, rtol=0)
    assert metrics["mismatch_max"] < 1e-4
    assert metrics["surplus_share"] == pytest.approx(0.5)  # G of 2 G responses


def test_streamed_perception_is_the_dense_one(policy, tiny_config, rollouts, samples):
    # KL over the whole vocabulary, summed in float64 from the same float32 logits: to 1e-6 nats.
    views = both_views(tiny_config, 1, rollouts, samples[: len(rollouts)], policy)
    found = view_statistics(tiny_config, views, policy)

    def dense(hidden_ND):
        logits_NV = (hidden_ND @ policy.head_weight.T).double()
        logits_NV[:, policy.suppressed_ids] = -torch.inf
        return logits_NV.log_softmax(-1)

    p, q = dense(views.hidden_ND), dense(views.perturbed_ND)
    kl_N = (p.exp() * (p - q)).nan_to_num(0.0).sum(-1)
    assert kl_N.max() > 1
    torch.testing.assert_close(found.kl.double(), kl_N, atol=1e-6, rtol=1e-6)


def test_bfloat16_perception_is_within_bounds(policy, fresh_policy, configure, rollouts, samples):
    # Stated: the mean difference below 0.02 nats, and nearly the same tokens kept.
    half = fresh_policy(configure("model.dtype=bfloat16"))
    exact, rounded = (group_statistics(p.config, 1, rollouts, samples[: len(rollouts)], p).kl for p in (policy, half))
    assert 0 < (exact - rounded).abs().mean() < 0.02
    count = len(exact) * 2 // 5
    tops = [set(kl_N.topk(count).indices.tolist()) for kl_N in (exact, rounded)]
    assert len(tops[0] & tops[1]) > 0.9 * count


# --- what is held besides ---------------------------------------------------------------------------


@pytest.fixture
def passes(monkeypatch):
    """Counts of forward passes, and of perturbed images made."""
    found = {"passes": 0, "similar": 0, "perturbed": 0}

    def counted(owner, name, what):
        original = getattr(owner, name)

        def called(*arguments, **other):
            found[what] += 1
            return original(*arguments, **other)

        monkeypatch.setattr(owner, name, called)

    counted(Policy, "hidden_states", "passes")
    counted(Policy, "with_similarities", "similar")
    counted(scoring, "perturbed_prompt", "perturbed")
    return found


def held(policy, config, rollouts, table, folder):
    folder.mkdir(exist_ok=True)
    score(config, 1, rollouts, table, policy, folder, Silent())
    more = read_rows(folder / STATISTICS, Statistics) if (folder / STATISTICS).exists() else []
    return read_rows(folder / "scores.parquet", Scored), more


def test_hidden_states_need_no_perturbed_view(policy, configure, rollouts, table, tmp_path, passes):
    plain, _ = held(policy, configure("score.store=policy"), rollouts, table, tmp_path / "policy")
    assert passes == {"passes": 1, "similar": 0, "perturbed": 0}
    rows, more = held(policy, configure("score.store=hidden"), rollouts, table, tmp_path / "hidden")
    assert passes == {"passes": 1, "similar": 1, "perturbed": 0}
    assert [row.old_logp for row in rows] == [row.old_logp for row in plain]
    assert [row.entropy for row in rows] == [row.entropy for row in plain]
    assert not any(row.dependency for row in rows)
    cosines = flat([row.image_similarity for row in more])
    assert len(cosines) == sum(len(ids) for group in rollouts for ids in group.response_ids)
    assert 0 < cosines.abs().max() <= 1
    assert not any(any(row.kl) for row in more)


def test_all_that_is_held_changes_nothing_else(policy, configure, rollouts, table, tmp_path, passes):
    rows, _ = held(
        policy, configure("score.store=perception", "score.looks=0"), rollouts, table, tmp_path / "perception"
    )
    assert passes == {"passes": 2, "similar": 0, "perturbed": 4}
    again, more = held(policy, configure("score.store=all", "score.looks=0"), rollouts, table, tmp_path / "all")
    assert passes == {"passes": 3, "similar": 1, "perturbed": 8}
    assert [row.perception for row in again] == [row.perception for row in rows] == [row.kl for row in more]
    assert [row.old_logp for row in again] == [row.old_logp for row in rows] == [row.logp for row in more]
    assert [row.keep for row in again] == [row.keep for row in rows]


@pytest.mark.parametrize("name", ["image_similarity", "layer_similarity"])
def test_similarities_as_estimators(policy, configure, rollouts, table, samples, tmp_path, passes, name):
    blind = dataclasses.replace(samples[0], id="blind", images=[], problem="What is 3 + 4?")
    write_rows(tmp_path / "asked.parquet", Sample, [*samples[1:4], blind])
    asked = SampleTable(tmp_path / "asked.parquet")
    groups = [*rollouts[1:], dataclasses.replace(rollouts[0], sample_id="blind", position=0)]
    rows, more = held(policy, configure(f"score.estimator={name}", "score.store=all"), groups, asked, tmp_path)
    assert [row.perception for row in rows] == [getattr(row, name) for row in more]
    assert flat([rows[3].perception]).abs().max() == 0
    assert all(all(keep) for keep in rows[3].keep)  # nothing to compare with: every token
    assert not all(all(keep) for keep in rows[0].keep)
