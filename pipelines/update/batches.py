"""An update batch as padded tensors: what the loss needs, and what an objective sees."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from pipelines import vppo
from pipelines.config.schema import Config, UpdateConfig
from pipelines.disk.records import Rollout, SampleTable, Scored
from pipelines.errors import UserError
from pipelines.model.policy import Policy
from pipelines.model.ragged import pad_lists
from pipelines.objectives.batch import Batch, Terms
from pipelines.objectives.table import HIDDEN, OBJECTIVES, PERCEPTION, ROLES, SURROGATE_AVERAGES, VIEWS, needs
from pipelines.score.scoring import depends, token_roles

Groups = Sequence[tuple[Rollout, Scored]]


@dataclass
class Tokens:
    """What the loss needs of every response, padded; see records.Scored for the meanings."""

    old_logp_BT: Tensor
    rollout_logp_BT: Tensor
    mask_BT: Tensor
    loss_mask_BT: Tensor


def make_tokens(config: Config, groups: Groups, device: torch.device) -> Tokens:
    """The tokens of a whole update batch."""
    old_BT, mask_BT = pad_lists([x for _, scored in groups for x in scored.old_logp])
    rollout_BT, _ = pad_lists([x for rollout, _ in groups for x in rollout.logp])
    loss_mask_BT = mask_BT
    if config.update.mask_truncated:
        truncated_B = torch.tensor([x for rollout, _ in groups for x in rollout.truncated])
        loss_mask_BT = vppo.without_truncated(mask_BT, truncated_B)
    return _map(Tokens(old_BT, rollout_BT, mask_BT, loss_mask_BT), lambda x: x.to(device))


def make_batch(config: Config, groups: Groups, samples: SampleTable, policy: Policy, updates: int) -> Batch:
    """What an objective sees of a whole update batch, on the policy's device, the same on every rank.

    Args:
        updates: optimizer steps that were made before.

    Raises:
        UserError: the scores hold less than the objective needs, nobody knows the tokens' roles, or groups are not
            of one size.
    """
    held = _held(groups)
    _check_needs(config, held)
    size = _size(groups)
    per_group = torch.tensor([len(rollout.response_ids) for rollout, _ in groups])
    group_B = torch.arange(len(groups)).repeat_interleave(per_group)
    old_BT, mask_BT = pad_lists([x for _, scored in groups for x in scored.old_logp])
    reward_B = torch.tensor([x for rollout, _ in groups for x in rollout.reward])
    if config.update.overlong_cache:
        reward_B = reward_B + vppo.soft_overlong_penalty(
            mask_BT.sum(-1), config.rollout.max_new_tokens, config.update.overlong_cache
        )
    standardized = config.update.surrogate != "dr_grpo"
    place_B, sizes = torch.arange(len(group_B)), config.published
    mini_B = place_B // (sizes.mini_batch_responses or len(place_B))
    within_B = place_B - mini_B * (sizes.mini_batch_responses or 0)
    owners = [samples.by_id(rollout.sample_id) for rollout, _ in groups]
    depends_P = torch.tensor([depends(config, sample) for sample in owners])
    batch = Batch(
        mask_BT=mask_BT,
        ids_BT=pad_lists([x for rollout, _ in groups for x in rollout.response_ids])[0].long(),
        logp_BT=old_BT,
        entropy_BT=pad_lists([x for _, scored in groups for x in scored.entropy])[0],
        reward_B=reward_B,
        adv_B=vppo.group_advantages(reward_B, size, standardize=standardized).float(),
        correct_B=torch.tensor([x == "correct" for rollout, _ in groups for x in rollout.outcome]),
        truncated_B=torch.tensor([x for rollout, _ in groups for x in rollout.truncated]),
        group_B=group_B,
        group_size=size,
        max_tokens=config.rollout.max_new_tokens,
        updates=updates,
        keep_fraction=config.score.keep_fraction,
        standardized=standardized,
        has_image_B=torch.tensor([bool(sample.images) for sample in owners])[group_B],
        depends_B=depends_P[group_B],
        mini_batch_B=mini_B,
        micro_batch_B=within_B // (sizes.micro_batch_responses or len(place_B)),
        **held,
        **_roles(config, groups, samples, policy),
    )
    return _map(batch, lambda x: x.to(policy.device))


def make_terms(objective: Callable[[Batch, UpdateConfig], Terms], batch: Batch, settings: UpdateConfig) -> Terms:
    """What the objective makes of the batch, with the surrogate's own average where it has one."""
    terms = objective(batch, settings)
    return replace(terms, average=SURROGATE_AVERAGES.get(settings.surrogate, terms.average))


OF_STATISTICS = {
    "logp": "clean_logp_BT",
    "logp_perturbed": "perturbed_logp_BT",
    "entropy_perturbed": "perturbed_entropy_BT",
    "kl": "kl_BT",
    "jsd": "jsd_BT",
    "argmax_drop": "argmax_drop_BT",
    "image_similarity": "image_similarity_BT",
    "layer_similarity": "layer_similarity_BT",
}
"""Column of statistics.parquet -> what a Batch calls it."""


def _held(groups: Groups) -> dict[str, Tensor]:
    """What the scores hold besides log-probs and entropies."""
    found: dict[str, Tensor] = {}
    if all(scored.dependency for _, scored in groups):
        found["perception_BT"] = pad_lists([x for _, scored in groups for x in scored.perception])[0]
        found["keep_BT"] = pad_lists([x for _, scored in groups for x in scored.keep])[0].bool()
        found["dependency_B"] = torch.tensor([d for _, scored in groups for d in scored.dependency])
    more = [scored.statistics for _, scored in groups if scored.statistics]
    for column, name in OF_STATISTICS.items() if len(more) == len(groups) else ():
        lists = [x for row in more for x in getattr(row, column)]
        if any(lists):
            found[name] = pad_lists(lists)[0]
    return found


NEEDED = {PERCEPTION: "perception_BT", VIEWS: "perturbed_logp_BT", HIDDEN: "image_similarity_BT"}


def _size(groups: Groups) -> int:
    """How many responses every group has: of others' groups, such as those of a rollout stage of one's own, too."""
    sizes = sorted({len(rollout.response_ids) for rollout, _ in groups})
    if len(sizes) > 1 or sizes[0] < 2:
        step = max(rollout.step for rollout, _ in groups)
        raise UserError(
            f"rollout, step {step}",
            f"its groups have {' and '.join(map(str, sizes))} responses: all need as many, 2 or more.",
            f"Sample it again: vppo train --stage rollout --steps {step} --force",
        )
    return sizes[0]


def _check_needs(config: Config, held: Mapping[str, Tensor]) -> None:
    row, wanted = OBJECTIVES.get(config.update.objective), needs(config)
    if row and (missing := [need for need, name in NEEDED.items() if need in wanted and name not in held]):
        raise UserError(
            f"update.objective: {config.update.objective}",
            f"needs {' and '.join(missing)}, which the scores of this step do not hold.",
            "Score the step with more first: vppo train --run NAME --stage score --set score.store=all",
        )


def _roles(config: Config, groups: Groups, samples: SampleTable, policy: Policy) -> dict[str, Tensor]:
    row = OBJECTIVES.get(config.update.objective)
    if row is None or ROLES not in row.needs:
        return {}
    asked_by = f"update.objective: {config.update.objective}"
    roles = [
        token_roles(policy, samples.by_id(rollout.sample_id), ids, asked_by)
        for rollout, _ in groups
        for ids in rollout.response_ids
    ]

    def of(role: str) -> Tensor:
        return pad_lists([[name == role for name in response] for response in roles])[0].bool()

    return {"perceives_BT": of("perception"), "reasons_BT": of("reasoning")}


def _map(tensors: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """A dataclass of tensors with each replaced; other fields stay."""
    values = {f.name: getattr(tensors, f.name) for f in fields(tensors)}
    return replace(tensors, **{name: function(x) for name, x in values.items() if isinstance(x, Tensor)})


def cut_tokens(tokens: Tokens, rows_B: Tensor) -> Tokens:
    """The micro-batch's rows, cut to its longest response."""
    part: Tokens = _map(tokens, lambda x: x[rows_B])
    longest = int(part.mask_BT.sum(-1).max())
    cut: Tokens = _map(part, lambda x: x[:, :longest] if x.dim() == 2 else x)
    return cut


def cut_terms(terms: Terms, rows_B: Tensor, longest: int) -> Terms:
    """The terms of a micro-batch whose longest response is ``longest``."""
    return replace(
        terms,
        advantage=terms.advantage[rows_B][..., :longest] if terms.advantage.dim() == 2 else terms.advantage[rows_B],
        weight_BT=terms.weight_BT[rows_B, :longest],
    )
