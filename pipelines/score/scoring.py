"""Scoring stage: two views of the image -> token perception (paper eq. 3), and the tokens to keep.

One pass gives the trainer's own log-probs and entropy as well, so the update needs no other.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import torch

from pipelines import vppo
from pipelines.config.resolve import find_part
from pipelines.config.schema import Config
from pipelines.disk.records import (
    SCORES,
    STATISTICS,
    Look,
    Rollout,
    Sample,
    SampleTable,
    Scored,
    Statistics,
    copied,
    write_rows,
)
from pipelines.errors import UserError
from pipelines.model.divergence import ESTIMATORS, SIMILARITIES, TokenStatistics, token_statistics
from pipelines.model.packing import fill
from pipelines.model.policy import Encoded, Policy, Row
from pipelines.model.ragged import pad_lists, split_like
from pipelines.objectives.table import HIDDEN, KEYED, PERCEPTION, STORES, VIEWS, needs_two_views, reads_twice, stored
from pipelines.ranks.ranks import ranks
from pipelines.score.looks import LOOKS, look_rows
from pipelines.score.perturb import Box, blacken_boxes, blacken_raw, perturb
from pipelines.seeds import generator
from pipelines.watch import Watch
from pipelines.words import counted


def score(
    config: Config,
    step: int,
    rollouts: Sequence[Rollout],
    samples: SampleTable,
    policy: Policy,
    out: Path,
    watch: Watch,
    holds: frozenset[str] | None = None,
) -> dict[str, Any]:
    """Score every response token of a step's rollouts and write one row per group.

    Of what holds S the first ``score.looks`` groups are written once more, to be looked at
    (pipelines/score/looks.py).

    Args:
        holds: what is kept besides log-probs and entropies (objectives/table.py); by default what
            ``score.store`` names.
    """
    holds = STORES[stored(config)] if holds is None else holds
    estimator = make_estimator(config, step, policy) if PERCEPTION in holds else None
    everyone = ranks()
    looked_at = {group.position for group in rollouts[: config.score.looks]} if estimator else set()

    def work(groups: list[Rollout]) -> list[tuple[Scored, Look | None]]:
        owners = [samples.by_id(group.sample_id) for group in groups]
        done: dict[int, tuple[Scored, Look | None]] = {}
        passes = _passes(config, groups, policy)
        for chosen, following in zip_longest(passes, passes[1:], fillvalue=()):
            policy.encoder.expect([owners[i] for i in (*chosen, *following)])
            watch.progress("groups", len(done), len(groups))
            part, asked = [groups[i] for i in chosen], [owners[i] for i in chosen]
            statistics, looks = policy.placement.forward(_measure, config, step, part, asked, policy, looked_at, holds)
            perception_N = estimator(statistics, part, asked) if estimator else None
            rows = scored_rows(config, step, part, asked, statistics, perception_N, holds)
            done |= dict(zip(chosen, zip(rows, looks, strict=True), strict=True))
        return [done[i] for i in range(len(groups))]

    asked = [samples.by_id(group.sample_id) for group in rollouts]
    policy.look_always(asked, always=policy.placement.divided)
    # The longest first, so that every rank has about the same work.
    order = sorted(range(len(rollouts)), key=lambda i: -sum(map(len, rollouts[i].response_ids)))
    done = dict(zip(order, everyone.share([rollouts[i] for i in order], work), strict=True))
    scored = [done[i][0] for i in range(len(rollouts))]
    if everyone.main:
        write_rows(out / SCORES, Scored, scored)
        if more := [row.statistics for row in scored if row.statistics]:
            write_rows(out / STATISTICS, Statistics, more)
        if estimator:
            write_rows(out / LOOKS, Look, [look for i in range(len(rollouts)) if (look := done[i][1])])
    return _metrics(step, rollouts, scored)


def _passes(config: Config, groups: Sequence[Rollout], policy: Policy) -> list[list[int]]:
    """The groups of each forward pass; on every rank equally many, since all may be needed for one."""
    most, budget = config.score.batch_prompts, config.score.batch_tokens
    lengths = [policy.fed_tokens(group.prompt_tokens, group.response_ids) for group in groups]
    passes = fill(lengths, most, budget)
    return fill(lengths, most, budget, ranks().largest(len(passes)))


ESTIMATOR_NAMES = (*ESTIMATORS, "random", "oracle")

Estimator = Callable[[TokenStatistics, Sequence[Rollout], Sequence[Sample]], torch.Tensor]


def make_estimator(config: Config, step: int, policy: Policy) -> Estimator:
    """The configured estimator: (statistics, groups, samples) -> perception_N."""

    def from_statistics(name: str) -> Estimator:
        return lambda statistics, groups, samples: ESTIMATORS[name](statistics)

    def random(statistics: TokenStatistics, groups: Sequence[Rollout], _: object) -> torch.Tensor:
        draws = [
            torch.from_numpy(generator(config.seed, "random-k", step, g.position, i).random(len(ids)))
            for g in groups
            for i, ids in enumerate(g.response_ids)
        ]
        return torch.cat(draws).float()

    def oracle(_: object, groups: Sequence[Rollout], owners: Sequence[Sample]) -> torch.Tensor:
        roles = [
            role
            for group, sample in zip(groups, owners, strict=True)
            for ids in group.response_ids
            for role in token_roles(policy, sample, ids)
        ]
        return torch.tensor([float(role == "perception") for role in roles])

    known = {name: from_statistics(name) for name in ESTIMATORS}
    name = config.score.estimator
    part = find_part("score.estimator", name, known | {"random": random, "oracle": oracle})
    return part if name in ESTIMATOR_NAMES else _checked(name, part)


def _checked(name: str, estimator: Estimator) -> Estimator:
    """One's own estimator, whose result is looked at.

    It is asked of questions with images alone: S of any other is 0. What it is given is its own, to change as it
    likes: the originals are written afterwards.

    Raises:
        UserError: it does not return one finite number for each response token.
    """

    def checked(statistics: TokenStatistics, groups: Sequence[Rollout], samples: Sequence[Sample]) -> torch.Tensor:
        chosen = [(copied(group), sample) for group, sample in zip(groups, samples, strict=True) if sample.images]
        seen = [bool(sample.images) for group, sample in zip(groups, samples, strict=True) for _ in _tokens(group)]
        seen_N = torch.tensor(seen, device=statistics.logp.device)
        perception_N = torch.zeros_like(statistics.logp)
        if chosen:
            given: dict[str, Any] = {n: None if x_N is None else x_N[seen_N] for n, x_N in vars(statistics).items()}
            found = estimator(replace(statistics, **given), *map(list, zip(*chosen, strict=True)))
            perception_N[seen_N] = _number_each(name, found, sum(seen)).to(perception_N.device)
        return perception_N

    return checked


def _tokens(group: Rollout) -> Iterator[int]:
    return chain.from_iterable(group.response_ids)


def _number_each(name: str, found: Any, count: int) -> torch.Tensor:
    """What an estimator of one's own returned, in float32, [N].

    Raises:
        UserError: it is not one finite number for each of ``count`` response tokens.
    """
    if not isinstance(found, torch.Tensor) or list(found.shape) != [count]:
        bad = str(list(found.shape)) if isinstance(found, torch.Tensor) else type(found).__name__
    elif found.is_complex():
        bad = "complex numbers"
    else:
        perception_N = found.detach().float()
        finite_N = torch.isfinite(perception_N)
        if bool(finite_N.all()):
            return perception_N
        place = int(finite_N.logical_not().nonzero()[0])
        bad = f"numbers that are not finite in float32 (token {place} has {found[place].item():g})"
    raise UserError(
        f"score.estimator: {name}",
        f"returned {bad} for {counted(count, 'response token')}.",
        "Return a tensor of one finite number for each, in the order of statistics.logp.",
    )


ORACLE = "score.estimator: oracle"


def token_roles(policy: Policy, sample: Sample, response_ids: Sequence[int], asked_by: str = ORACLE) -> list[str]:
    """What each token of a response to an embedded question is for: its true role.

    Args:
        asked_by: the setting that needs to know, for the error.

    Raises:
        UserError: the sample is not embedded data, so nobody knows.
    """
    from pipelines.embedded.glyphs import is_embedded
    from pipelines.embedded.glyphs import token_roles as roles_of

    if not is_embedded(sample):
        raise UserError(
            asked_by,
            f"sample {sample.id} has no known token roles.",
            "Only the embedded data (data.source=glyphs) has them.",
        )
    return roles_of([policy.tokenizer.decode([token]) for token in response_ids])


def evidence(sample: Sample) -> list[Box]:
    """Where in the image of an embedded question the cells are that its answer needs.

    Raises:
        UserError: the sample is not embedded data, so nobody knows.
    """
    from pipelines.embedded.glyphs import evidence as boxes_of
    from pipelines.embedded.glyphs import is_embedded

    if not is_embedded(sample):
        raise UserError(
            "score.perturbation: evidence",
            f"sample {sample.id} has no known evidence regions.",
            "Only the embedded data (data.source=glyphs) has them.",
        )
    return boxes_of(sample)


def depends(config: Config, sample: Sample) -> bool:
    """Whether responses to this question are filtered and shaped by what their perception is.

    Not where it compares with images and there is none, but with ``published.filter_text_only``.
    """
    compares = needs_two_views(config) or config.score.estimator in SIMILARITIES
    return config.published.filter_text_only or not compares or bool(sample.images)


@dataclass(frozen=True)
class Views:
    """Hidden states that predict the response tokens, [N, D], and how similar they are to the image's, [N]
    (``Policy.with_similarities``); what was not asked for is None."""

    token_N: torch.Tensor
    hidden_ND: torch.Tensor
    perturbed_ND: torch.Tensor | None
    image_N: torch.Tensor | None = None
    layers_N: torch.Tensor | None = None


@torch.no_grad()
def both_views(
    config: Config,
    step: int,
    groups: Sequence[Rollout],
    samples: Sequence[Sample],
    policy: Policy,
    *,
    perturbed: bool | None = None,
    similar: bool | None = None,
) -> Views:
    """Read every response twice: with its images, and with them perturbed.

    Args:
        perturbed: whether to look at the perturbed image too; by default if the estimator needs it.
        similar: whether to compare with the image's hidden states; likewise.
    """
    if perturbed is None:
        perturbed = needs_two_views(config)
    if similar is None:
        similar = config.score.estimator in SIMILARITIES
    prompts = [policy.encoder.encode(sample) for sample in samples]
    clean = [
        row for prompt, group in zip(prompts, groups, strict=True) for row in policy.rows(prompt, group.response_ids)
    ]
    token_N = torch.tensor(
        [token for group in groups for ids in group.response_ids for token in ids], device=policy.device
    )
    similarities: tuple[torch.Tensor, ...] = ()
    if similar:
        hidden_ND, *found = policy.with_similarities(clean)
        similarities = tuple(found)
    else:
        hidden_ND = policy.hidden_states(clean)
    if not perturbed:
        return Views(token_N, hidden_ND, None, *similarities)
    perturbed_ND = perturbed_states(config, step, groups, samples, policy, hidden_ND)
    return Views(token_N, hidden_ND, perturbed_ND, *similarities)


def perturbed_states(
    config: Config,
    step: int,
    groups: Sequence[Rollout],
    samples: Sequence[Sample],
    policy: Policy,
    hidden_ND: torch.Tensor,
) -> torch.Tensor:
    """The hidden states of the perturbed view alone, [N, D], with gradient where there is one; ``step`` seeds it.

    Where a question has no image it is ``hidden_ND``, the clean view: one reading, and not two that may be
    rounded differently.
    """
    prompts = [policy.encoder.encode(sample) for sample in samples]
    rows = perturbed_rows(config, step, groups, samples, prompts, policy)
    perturbed_ND = policy.hidden_states(rows)
    blind = [
        not sample.images
        for sample, group in zip(samples, groups, strict=True)
        for ids in group.response_ids
        for _ in ids
    ]
    if any(blind):
        blind_N = torch.tensor(blind, device=policy.device)
        perturbed_ND[blind_N] = hidden_ND[blind_N]
    return perturbed_ND


def view_statistics(config: Config, views: Views, policy: Policy, jsd: bool | None = None) -> TokenStatistics:
    """Log-probs, entropy and divergences of every response token, flat [N].

    Args:
        jsd: whether to compute it too; by default if the estimator needs it.
    """
    statistics = token_statistics(
        views.hidden_ND,
        policy.head_weight,
        views.token_N,
        perturbed_ND=views.perturbed_ND,
        temperature=config.rollout.temperature,
        suppressed_ids=policy.suppressed_ids,
        jsd=config.score.estimator == "jsd" if jsd is None else jsd,
    )
    return replace(statistics, image_similarity=views.image_N, layer_similarity=views.layers_N)


def group_statistics(
    config: Config,
    step: int,
    groups: Sequence[Rollout],
    samples: Sequence[Sample],
    policy: Policy,
    *,
    perturbed: bool | None = None,
    jsd: bool | None = None,
) -> TokenStatistics:
    """The statistics of both views; arguments as of ``both_views`` and ``view_statistics``."""
    views = both_views(config, step, groups, samples, policy, perturbed=perturbed)
    return view_statistics(config, views, policy, jsd)


def _measure(
    config: Config,
    step: int,
    groups: Sequence[Rollout],
    samples: Sequence[Sample],
    policy: Policy,
    looked_at: Container[int],
    holds: frozenset[str],
) -> tuple[TokenStatistics, list[Look | None]]:
    """The statistics, and the rows of the groups at the positions to be looked at."""
    similar = True if HIDDEN in holds else None if PERCEPTION in holds else False
    views = both_views(config, step, groups, samples, policy, perturbed=reads_twice(config, holds), similar=similar)
    statistics = view_statistics(config, views, policy, jsd=True if VIEWS in holds else None)
    hidden = (views.hidden_ND, views.perturbed_ND)
    shown = partial(scored_views, config, step, policy)
    looks = look_rows(policy, groups, samples, statistics, *hidden, config.rollout.temperature, looked_at, shown)
    return statistics, looks


def perturbed_rows(
    config: Config,
    step: int,
    groups: Sequence[Rollout],
    samples: Sequence[Sample],
    prompts: Sequence[Encoded],
    policy: Policy,
) -> list[Row]:
    """The groups again, with perturbed images: one view per prompt, or one per response."""
    rows = []
    for group, sample, prompt in zip(groups, samples, prompts, strict=True):
        policy.with_positions(prompt)
        views = perturbed_views(config, step, group, sample, prompt, policy)
        if config.score.mask_per == "prompt":
            rows += policy.rows(views[0], group.response_ids)
        else:
            rows += [Row(v, [ids]) for v, ids in zip(views, group.response_ids, strict=True)]
    return rows


def perturbed_views(
    config: Config, step: int, group: Rollout, sample: Sample, prompt: Encoded, policy: Policy
) -> list[Encoded]:
    """The prompts that a group is scored with: one, or one for each response."""
    names: list[tuple[int, ...]] = [(step, group.position)]
    if config.score.mask_per == "response":
        names = [(step, group.position, index) for index in range(len(group.response_ids))]
    return [perturbed_prompt(config, sample, prompt, policy, *name) for name in names]


def scored_views(config: Config, step: int, policy: Policy, group: Rollout, sample: Sample) -> list[Encoded]:
    """The perturbed prompts that a group is scored with; none where the estimator needs none."""
    if not needs_two_views(config):
        return []
    prompt = policy.encoder.encode(sample)
    return perturbed_views(config, step, group, sample, prompt, policy)


def perturbed_prompt(config: Config, sample: Sample, prompt: Encoded, policy: Policy, *name: int) -> Encoded:
    """An encoded prompt with its images perturbed; ``name`` (step, position ...) seeds the mask."""
    rng = generator(config.seed, "perturb", *name)
    settings = config.score
    if not sample.images:
        return prompt
    if settings.perturbation == "raw_black":
        shown = policy.encoder.images(sample)
        images = [blacken_raw(image, rng, settings.probability) for image in shown]
        return policy.encoder.encode_images(sample, images)
    if settings.perturbation == "evidence":
        boxes = evidence(sample)
        images = [blacken_boxes(image, boxes) for image in policy.encoder.images(sample)]
        return policy.encoder.encode_images(sample, images)
    processor, grid_thw = policy.processor.image_processor, prompt.get("image_grid_thw")
    _check_layout(prompt, policy)
    vision = policy.model.config.vision_config
    sides = vision.patch_size  # InternVL names both
    pixels = perturb(
        prompt["pixel_values"],
        settings.perturbation,
        rng,
        image_mean=processor.image_mean,
        image_std=processor.image_std,
        patch_size=sides if isinstance(sides, int) else sides[0],
        temporal_patch_size=getattr(vision, "temporal_patch_size", 2),
        grid_thw=grid_thw,
        merge_size=getattr(vision, "spatial_merge_size", 2),
        pixel_mask=prompt.get("pixel_attention_mask"),
        probability=settings.probability,
    )
    return prompt | {"pixel_values": pixels}


def _check_layout(prompt: Encoded, policy: Policy) -> None:
    """See that the family's pixels are laid out in one of the ways that can be perturbed.

    Raises:
        UserError: they are not, or the sides of its patches are not told.
    """
    pixels, mean = (prompt.get("pixel_values"), getattr(policy.processor.image_processor, "image_mean", None))
    sides = getattr(getattr(policy.model.config, "vision_config", None), "patch_size", None)
    square = isinstance(sides, int) or (isinstance(sides, list | tuple) and len({*sides}) == 1)
    listed = "image_grid_thw" in prompt
    if pixels is None:
        known = False
    elif listed:
        known = pixels.dim() == 2
    else:
        known = pixels.dim() >= 4 and pixels.shape[-3] == len(mean or ())
    if not (known and mean and square):
        raise UserError(
            "score.perturbation",
            f"the pixels of a {policy.model.config.model_type} model are laid out in a way that is not known here.",
            "Take score.perturbation=raw_black, which needs none.",
        )


def scored_rows(
    config: Config,
    step: int,
    groups: Sequence[Rollout],
    samples: Sequence[Sample],
    statistics: TokenStatistics,
    perception_N: torch.Tensor | None,
    holds: frozenset[str] = STORES[KEYED],
) -> list[Scored]:
    """One row per group, of the numbers of all their tokens in order.

    What is said about a question without an image cannot depend on one: all its tokens are kept.

    Raises:
        UserError: the perception of a token is not finite.
    """
    _check_finite(config, groups, perception_N)
    responses = [group.response_ids for group in groups]
    perception = None if perception_N is None else split_like(perception_N, responses)
    more = _statistics(groups, statistics, holds)
    logp, entropy = (split_like(statistics.logp, responses), split_like(statistics.entropy, responses))
    rows = []
    for index, (group, sample) in enumerate(zip(groups, samples, strict=True)):
        perceived: list[list[float]] = [[] for _ in group.response_ids]
        keep: list[list[bool]] = [[] for _ in group.response_ids]
        dependency: list[float] = []
        if perception:
            perceived = perception[index]
            perception_GT, mask_GT = pad_lists(perceived)
            fraction = config.score.keep_fraction if depends(config, sample) else 1.0
            keep_GT = vppo.keep_top_fraction(perception_GT, mask_GT, fraction)
            keep = [k[: len(p)] for k, p in zip(keep_GT.tolist(), perceived, strict=True)]
            dependency = vppo.trajectory_dependency(perception_GT, mask_GT).tolist()
        row = Scored(
            sample_id=group.sample_id,
            position=group.position,
            old_logp=logp[index] if group.step == step else group.logp,
            entropy=entropy[index],
            perception=perceived,
            keep=keep,
            dependency=dependency,
            statistics=more[index] if more else None,
        )
        rows.append(row)
    return rows


def _check_finite(config: Config, groups: Sequence[Rollout], perception_N: torch.Tensor | None) -> None:
    if perception_N is None or bool(torch.isfinite(perception_N).all()):
        return
    prompts = [group.sample_id for group in groups for _ in _tokens(group)]
    place = int(torch.isfinite(perception_N).logical_not().nonzero()[0])
    raise UserError(
        f"score.estimator: {config.score.estimator}",
        f"is {perception_N[place].item():g} for a token of question {prompts[place]}.",
        f"The policy's numbers overflow: look at what score.perturbation ({config.score.perturbation}) makes of the "
        "pixels, and at update.learning_rate.",
    )


OF_VIEWS = ("logp", "logp_perturbed", "entropy_perturbed", "kl", "jsd", "argmax_drop")


def _statistics(groups: Sequence[Rollout], statistics: TokenStatistics, holds: frozenset[str]) -> list[Statistics]:
    """One row per group of what is held besides S; none where nothing is."""
    names = (*(OF_VIEWS if VIEWS in holds else ()), *(SIMILARITIES if HIDDEN in holds else ()))
    if not names:
        return []
    responses = [group.response_ids for group in groups]
    kept = {name: split_like(getattr(statistics, name), responses) for name in names}
    nothing: list[list[list[float]]] = [[[] for _ in group.response_ids] for group in groups]
    return [
        Statistics(
            sample_id=group.sample_id,
            position=group.position,
            **{name: kept.get(name, nothing)[index] for name in (*OF_VIEWS, *SIMILARITIES)},
        )
        for index, group in enumerate(groups)
    ]


def _metrics(step: int, rollouts: Sequence[Rollout], scored: Sequence[Scored]) -> dict[str, Any]:
    entropy_BT, mask_BT = pad_lists([e for row in scored for e in row.entropy])
    old_BT, _ = pad_lists([x for row in scored for x in row.old_logp])
    rollout_BT, _ = pad_lists([x for group in rollouts for x in group.logp])
    # How far the rollout engine's log-probs are from the trainer's, for what this policy sampled.
    fresh_B = torch.tensor([g.step == step for g in rollouts for _ in g.response_ids])
    fresh_BT = mask_BT & fresh_B[:, None]
    gap_N = (old_BT - rollout_BT)[fresh_BT].abs()
    kl_N = vppo.k3(rollout_BT, old_BT)[fresh_BT]
    return perception_metrics(scored) | {
        "entropy": entropy_BT[mask_BT].mean().item(),
        "surplus_share": 1 - fresh_B.float().mean().item(),
        "mismatch_mean": gap_N.mean().item() if len(gap_N) else 0.0,
        "mismatch_max": gap_N.max().item() if len(gap_N) else 0.0,
        "mismatch_kl": kl_N.mean().item() if len(gap_N) else 0.0,
    }


def perception_metrics(scored: Sequence[Scored]) -> dict[str, Any]:
    """What is said of S; nothing where there is none."""
    if not any(row.dependency for row in scored):
        return {}
    perception_BT, mask_BT = pad_lists([p for row in scored for p in row.perception])
    keep_BT, _ = pad_lists([k for row in scored for k in row.keep])
    dependency_B = torch.tensor([d for row in scored for d in row.dependency])
    kept_mass = (perception_BT * keep_BT).sum() / perception_BT.sum().clamp(min=1e-12)
    return {
        "perception_mean": perception_BT[mask_BT].mean().item(),
        "perception_in_kept": kept_mass.item(),
        "dependency_mean": dependency_B.mean().item(),
        "dependency_std": dependency_B.std().item(),
        "kept_share": keep_BT[mask_BT].mean().item(),
    }
