"""Token perception for any vision-language model, on one's own example; no training needed.

    import vppo

    p = vppo.perceive("Qwen/Qwen2.5-VL-7B-Instruct", "chart.png", "What is the largest bar?")
    p.tokens, p.perception
    p.to_html("look.html")

It is the scoring stage (pipelines/score/scoring.py) on a single response: what is measured in training is
what is measured here.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from pipelines.config import hub
from pipelines.config import settings as config_files
from pipelines.config.imports import one_command
from pipelines.config.schema import Config
from pipelines.disk.records import Look, Perceived, Rollout, Sample, Scored
from pipelines.errors import UserError
from pipelines.model.control_tokens import as_text, control_tokens
from pipelines.model.load import load_policy
from pipelines.model.policy import Policy
from pipelines.model.sampling import Sampling
from pipelines.objectives.table import needs_two_views
from pipelines.page import viewer, write_page
from pipelines.page.images import PageImages, png_urls
from pipelines.perceive import provenance
from pipelines.perceive.example import ImageLike, example
from pipelines.rollout.engine import Name, Response, encoded, group_row
from pipelines.rollout.hf import HuggingFaceEngine
from pipelines.score.looks import look_rows
from pipelines.score.scoring import (
    both_views,
    make_estimator,
    perturbed_states,
    scored_rows,
    scored_views,
    view_statistics,
)

DEFAULTS = ("rollout.top_p=1", "rollout.batch_prompts=16")
"""Settings of a model on its own that differ from those of training."""

SAME_EVERY_TIME = ("grey", "gaussian_blur", "evidence")
"""Perturbations without a random draw."""


@dataclass
class Perception(Perceived):
    """A response with its token perception (columns: Perceived), and the pictures of every view.

    ``images`` are PNG as the model's processor resized them; ``perturbed_images`` the same under each mask,
    [masks][images], none where the estimator looks at one view only. ``by_mask`` is the same response as
    each mask alone has it: ``by_mask[1].logp_perturbed`` are the log-probs with the second. ``made_with``
    is all that decided the numbers (pipelines/perceive/provenance.py).
    """

    images: Sequence[bytes] = field(default_factory=list)
    perturbed_images: list[list[bytes]] = field(default_factory=list)
    by_mask: list[Perceived] = field(default_factory=list)
    made_with: provenance.Made = field(default_factory=dict)

    def most(self, count: int) -> list[int]:
        """Indices of the tokens that depend most on the image, the most dependent first."""
        order = sorted(range(len(self.tokens)), key=lambda i: (-self.perception[i], i))
        return order[:count]

    def to_html(self, path: str | Path, title: str = "Token perception") -> Path:
        """Write the page that shows it: one file, which needs no network.

        Raises:
            UserError: it cannot be written.
        """
        responses = "given" if self.given else provenance.written(self.made_with)
        write_page(Path(path), title, sections([self.entry()], self.made_with, responses))
        return Path(path)

    def entry(self) -> dict[str, Any]:
        """What the viewer of pipelines/page/ shows; plain JSON values."""
        entry = viewer.prompt_entry([self], self.images, self.perturbed_images[:1], png_urls)
        if len(self.by_mask) > 1:
            entry["perturbed"] = [PageImages().urls(view) for view in self.perturbed_images]  # large ones smaller
            entry["responses"][0]["masks"] = [viewer.mask_entry(row) for row in self.by_mask]
        return entry


def sections(entries: list[dict[str, Any]], made: provenance.Made, responses: str) -> dict[str, Any]:
    """What a page shows of these entries, and what they were made with.

    Args:
        responses: where they came from.
    """
    return {
        "line": provenance.line(made),
        "estimator": made["estimator"],
        "unit": made["unit"],
        "viewer": entries,
        "provenance": {"facts": provenance.facts(made, responses)},
    }


@one_command()
def perceive(
    model: str | Path | Policy,
    image: ImageLike | Sequence[ImageLike],
    prompt: str,
    response: str | None = None,
    *,
    estimator: str = "kl",
    perturbation: str = "patch_black",
    probability: float = 0.5,
    masks: int = 1,
    seed: int = 0,
    max_new_tokens: int = 512,
    temperature: float = 1.0,
    settings: Sequence[str] | Mapping[str, Any] = (),
) -> Perception:
    """How much each token of a response depends on the image.

    The prompt is asked as it is: no instruction is added (``settings={"data.instruction": "..."}`` adds
    one). A response that is given is taken to be whole: the model's end token follows it.

    Args:
        model: ``tiny``, a hub id, a folder in Hugging Face format, or a policy that is loaded already
            (asked with its own instruction and image sizes).
        image: a path, encoded bytes or a PIL image, or a list of them.
        prompt: the question; ``<image>`` where each image goes, or none: the images come first.
        response: what to look at; None: the model writes one, sampled with ``seed``.
        estimator: ``kl`` (exact, in nats: paper eq. 3), ``k3``, ``jsd``, ``log_ratio``, ``top1_drop``,
            ``argmax_drop``, ``entropy`` or ``random``.
        perturbation: ``patch_black``, ``gaussian_noise``, ``gaussian_blur``, ``grey`` or ``raw_black``.
        probability: of each patch to be blackened.
        masks: perturbed images to average over. The perception under one mask is a random number: a
            token whose patch stays visible by chance looks independent. More masks, less noise.
        max_new_tokens: the longest response that the model may write.
        temperature: of the sampling, and of the distributions that are compared.
        settings: any other: ``{"section.key": value}``, or ``["section.key=value"]`` (``vppo config`` lists them).

    Raises:
        UserError: no image, or one that cannot be read; an empty prompt; a response that is empty, or
            holds one of the model's special tokens; no such model, estimator or perturbation.
    """
    sample = example(image, prompt)
    config, policy, made = opened(
        model,
        estimator=estimator,
        perturbation=perturbation,
        probability=probability,
        masks=masks,
        seed=seed,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        settings=settings,
    )
    return see(config, remembering(policy, 1), [sample], [response], masks, made=made)[0]


def opened(
    model: str | Path | Policy,
    *,
    estimator: str = "kl",
    perturbation: str = "patch_black",
    probability: float = 0.5,
    masks: int = 1,
    seed: int = 0,
    max_new_tokens: int = 512,
    temperature: float = 1.0,
    settings: Sequence[str] | Mapping[str, Any] = (),
) -> tuple[Config, Policy, provenance.Made]:
    """The settings of ``perceive``'s arguments, the model, loaded, and what is to be said of how it is asked."""
    base = model.config.model_dump(mode="json") if isinstance(model, Policy) else {}
    asked: dict[str, Any] = {
        "score.estimator": estimator,
        "score.perturbation": perturbation,
        "score.probability": probability,
        "rollout.temperature": temperature,
        "rollout.max_new_tokens": max_new_tokens,
        "seed": seed,
    }
    defaults: Sequence[str] = ()
    if not isinstance(model, Policy):
        asked["model.path"], defaults = str(model), DEFAULTS
    more = config_files.dotted(settings) if isinstance(settings, Mapping) else settings
    config = config_files.load(None, [*defaults, *config_files.dotted(asked), *more], base=base)
    check(config, masks)
    if isinstance(model, Policy):
        policy, name, weights = model, model.config.model.path, None
    else:
        config = hub.resolved(config)
        policy, name, weights = load_policy(config), str(model), provenance.weights_of(config)
    return config, policy, provenance.made_with(config, policy, masks, name, weights)


def check(config: Config, masks: int) -> None:
    """See that there are such parts, and that several masks differ, before a model is loaded.

    Raises:
        UserError: they do not.
    """
    from pipelines.checks import check_parts

    check_parts(config)
    score = config.score
    if masks < 1:
        raise UserError(f"masks: {masks}", "at least one is needed.")
    if masks > 1 and not needs_two_views(config):
        raise UserError(
            f"masks: {masks}",
            f"the estimator {score.estimator} looks at no perturbed image.",
            "Leave it at 1, or take the estimator kl.",
        )
    if masks > 1 and score.perturbation in SAME_EVERY_TIME:
        raise UserError(
            f"masks: {masks}",
            f"{score.perturbation} draws nothing at random: all would be the same.",
            "Leave it at 1, or take the perturbation patch_black.",
        )


def remembering(policy: Policy, prompts: int) -> Policy:
    """The same, with so many encoded prompts kept and none from before.

    They are told apart by id and text: the next example may have the same ones and another image.
    """
    other = copy.copy(policy)
    other.encoder = policy.encoder.anew(prompts)
    return other


def see(
    config: Config,
    policy: Policy,
    samples: Sequence[Sample],
    responses: Sequence[str | None],
    masks: int = 1,
    first: int = 0,
    *,
    made: provenance.Made,
) -> list[Perception]:
    """The perception of one response to each of a few questions, in one batch.

    Args:
        responses: one each; None: the model writes it.
        masks: perturbed images to average over.
        first: the number of the first question; seeds what is drawn.
        made: what is to be said of how this was made.
    """
    tokens = control_tokens(policy.processor)
    samples = [replace(one, problem=as_text(one.problem, tokens)) for one in samples]
    for sample in samples:
        encoded(policy, sample)  # which tells of a question that the processor refuses
    found = _responses(config, policy, samples, responses, first)
    groups = [
        group_row(sample, first + index, [one]) for index, (sample, one) in enumerate(zip(samples, found, strict=True))
    ]
    everyone = range(first, first + len(groups))
    views = both_views(config, 0, groups, samples, policy)
    first_mask = view_statistics(config, views, policy)
    by_mask, sums = [], []
    for mask in range(masks):
        if mask:
            with torch.no_grad():
                other_ND = perturbed_states(config, mask, groups, samples, policy, views.hidden_ND)
            views = replace(views, perturbed_ND=other_ND)
        statistics = view_statistics(config, views, policy) if mask else first_mask
        perception_N = make_estimator(config, mask, policy)(statistics, groups, samples)
        shown = partial(scored_views, config, mask, policy)
        hidden = (views.hidden_ND, views.perturbed_ND)
        looks = look_rows(policy, groups, samples, statistics, *hidden, config.rollout.temperature, everyone, shown)
        by_mask.append((scored_rows(config, 0, groups, samples, statistics, perception_N), looks))
        sums.append(perception_N)
    mean = scored_rows(config, 0, groups, samples, first_mask, sum(sums[1:], sums[0]) / masks)
    return [_gathered(index, samples, groups, mean, by_mask, responses, made) for index in range(len(groups))]


def _gathered(
    index: int,
    samples: Sequence[Sample],
    groups: Sequence[Rollout],
    mean: Sequence[Scored],
    by_mask: Sequence[tuple[Sequence[Scored], Sequence[Look | None]]],
    responses: Sequence[str | None],
    made: provenance.Made,
) -> Perception:
    """One question's, of the rows of all."""
    sample, group, given = samples[index], groups[index], responses[index] is not None
    looks = [look for _, rows in by_mask if (look := rows[index])]
    each = [
        viewer.perceived(sample, group, rows[index], look, given=given)
        for (rows, _), look in zip(by_mask, looks, strict=True)
    ]
    row = viewer.perceived(sample, group, mean[index], looks[0], given=given)
    two = bool(looks[0].perturbed_images)
    row.perception_by_mask = [one.perception for one in each] if two else []
    return Perception(
        **vars(row),
        images=looks[0].images,
        perturbed_images=[look.perturbed_images[0] for look in looks] if two else [],
        by_mask=each if two else [],
        made_with=made,
    )


def _responses(
    config: Config, policy: Policy, samples: Sequence[Sample], given: Sequence[str | None], first: int
) -> list[Response]:
    """Those that were given, as tokens, and sampled ones for the others."""
    asked = [index for index, text in enumerate(given) if text is None]
    sampled: list[list[Response]] = []
    if asked:
        rollout = config.rollout
        sampling = Sampling(rollout.temperature, rollout.top_p, rollout.top_k, rollout.max_new_tokens, 1, config.seed)
        names: list[Name] = [("perceive", first + index) for index in asked]
        engine = HuggingFaceEngine(policy)
        sampled = engine.generate([samples[index] for index in asked], names, sampling)
    drawn = chain.from_iterable(sampled)
    return [next(drawn) if text is None else as_response(policy, text) for text in given]


def as_response(policy: Policy, text: str) -> Response:
    """A text as the model would have written it, with the token that ends a response.

    Raises:
        UserError: it has no token, or one that the model never samples.
    """
    ids = list(policy.tokenizer(text, add_special_tokens=False)["input_ids"])
    if not ids:
        raise UserError("response", "is empty: it has no token.", "Leave it out to sample one.")
    control = control_tokens(policy.processor)
    added = policy.tokenizer.added_tokens_decoder.items()
    never = {index for index, token in added if token.content in control}
    never |= set(policy.suppressed_ids.tolist()) | set(policy.eos_ids)
    for token in ids:
        if token in never:
            raise UserError(
                "response",
                f"holds the model's special token {policy.tokenizer.decode([token])!r}.",
                "Give the text of the response alone.",
            )
    ids.append(policy.eos_ids[0])
    return Response(ids, [], policy.tokenizer.decode(ids, skip_special_tokens=True), False)
