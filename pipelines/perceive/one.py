"""Token perception for any vision-language model, on one's own example; no training needed.

    from pipelines.perceive.one import perceive

    p = perceive("Qwen/Qwen2.5-VL-7B-Instruct", "chart.png", "What is the largest bar?")
    p.tokens, p.perception
    p.to_html("look.html")

It is the scoring stage (pipelines/score/scoring.py) on a single response: what is measured in training is
what is measured here.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from json import dumps
from pathlib import Path
from typing import Any

import torch

from pipelines.config import settings as config_files
from pipelines.config.schema import Config
from pipelines.disk.records import Perceived, Sample
from pipelines.errors import UserError
from pipelines.model.control_tokens import as_text, control_tokens
from pipelines.model.load import load_policy
from pipelines.model.policy import Policy
from pipelines.model.sampling import Sampling
from pipelines.objectives.table import needs_two_views
from pipelines.page import viewer, write_page
from pipelines.page.images import png_urls
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
    """A response with its token perception (columns: Perceived), and the pictures of both views.

    ``images`` are PNG as the model's processor resized them; ``perturbed_images`` the same with the
    first mask, none where the estimator looks at one view only.
    """

    images: list[bytes] = field(default_factory=list)
    perturbed_images: list[bytes] = field(default_factory=list)

    def most(self, count: int) -> list[int]:
        """Indices of the tokens that depend most on the image, the most dependent first."""
        order = sorted(range(len(self.tokens)), key=lambda i: (-self.perception[i], i))
        return order[:count]

    def to_html(self, path: str | Path, title: str = "Token perception") -> Path:
        """Write the page that shows it: one file, which needs no network."""
        write_page(Path(path), title, {"viewer": [self.entry()]})
        return Path(path)

    def entry(self) -> dict[str, Any]:
        """What the viewer of pipelines/page/ shows; plain JSON values."""
        views = [self.perturbed_images] if self.perturbed_images else []
        return viewer.prompt_entry([self], self.images, views, png_urls)


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
    settings: Sequence[str] = (),
) -> Perception:
    """How much each token of a response depends on the image.

    The prompt is asked as it is: no instruction is added (``settings=["data.instruction=..."]`` adds
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
        settings: any other, as ``section.key=value`` (``vppo config`` lists them).

    Raises:
        UserError: no image, or one that cannot be read; an empty prompt; a response that is empty, or
            holds one of the model's special tokens; no such model, estimator or perturbation.
    """
    sample = example(image, prompt)
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
    given = [f"{name}={dumps(value)}" for name, value in asked.items()]
    config = config_files.load(None, [*defaults, *given, *settings], base=base)
    check(config, masks)
    policy = model if isinstance(model, Policy) else load_policy(config)
    return see(config, remembering(policy, 1), [sample], [response], masks)[0]


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
) -> list[Perception]:
    """The perception of one response to each of a few questions, in one batch.

    Args:
        responses: one each; None: the model writes it.
        masks: perturbed images to average over.
        first: the number of the first question; seeds what is drawn.
    """
    tokens = control_tokens(policy.processor)
    samples = [replace(one, problem=as_text(one.problem, tokens)) for one in samples]
    for sample in samples:
        encoded(policy, sample)  # which tells of a question that the processor refuses
    found = _responses(config, policy, samples, responses, first)
    groups = [
        group_row(sample, first + index, [one]) for index, (sample, one) in enumerate(zip(samples, found, strict=True))
    ]
    views = both_views(config, 0, groups, samples, policy)
    statistics = view_statistics(config, views, policy)
    perception_N = make_estimator(config, 0, policy)(statistics, groups, samples)
    for mask in range(1, masks):
        with torch.no_grad():
            other_ND = perturbed_states(config, mask, groups, samples, policy, views.hidden_ND)
        again = view_statistics(config, replace(views, perturbed_ND=other_ND), policy)
        perception_N = perception_N + make_estimator(config, mask, policy)(again, groups, samples)
    hidden = (views.hidden_ND, views.perturbed_ND)
    everyone = range(first, first + len(groups))
    shown = partial(scored_views, config, 0, policy)
    looks = look_rows(policy, groups, samples, statistics, *hidden, config.rollout.temperature, everyone, shown)
    rows = scored_rows(config, 0, groups, samples, statistics, perception_N / masks)
    return [
        Perception(
            **vars(viewer.perceived(sample, group, row, look, given=given is not None)),
            images=look.images,
            perturbed_images=look.perturbed_images[0] if look.perturbed_images else [],
        )
        for sample, group, row, look, given in zip(samples, groups, rows, looks, responses, strict=True)
        if look
    ]


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
