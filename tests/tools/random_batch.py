"""Update batches of random numbers, with all that can be awkward in them."""

from __future__ import annotations

from typing import Any

import torch

from pipelines import vppo
from pipelines.objectives.batch import Batch


def random_batch(seed: int = 0, groups: int = 5, size: int = 4, longest: int = 9, **given: Any) -> Batch:
    """Padding, a response of one token, ties in every number, a group of constant rewards, one without an image.

    Divergences are those of no real pair of distributions, but have their ranges; what is 0 or False on padding
    is so here.

    Args:
        given: fields of Batch to have another value.
    """
    draw = torch.Generator().manual_seed(seed)
    count = groups * size

    def uniform(low: float, high: float) -> torch.Tensor:
        """Rounded, so that some are equal."""
        x_BT = torch.rand(count, longest, generator=draw) * (high - low) + low
        return torch.where(mask_BT, (x_BT * 20).round() / 20, 0.0)

    length_B = torch.randint(1, longest + 1, (count,), generator=draw)
    length_B[0], length_B[1] = 1, longest
    mask_BT = torch.arange(longest) < length_B[:, None]
    group_B = torch.arange(groups).repeat_interleave(size)
    correct_B = torch.rand(count, generator=draw) < 0.5
    correct_B[group_B == 1], correct_B[0], correct_B[1] = True, True, False
    reward_B = correct_B.float()
    perception_BT = uniform(0.0, 2.0)
    place_B = torch.arange(count)
    fields: dict[str, Any] = {
        "mask_BT": mask_BT,
        "ids_BT": torch.where(mask_BT, torch.randint(5, 12, (count, longest), generator=draw), 0),
        "logp_BT": uniform(-3.0, 0.0),
        "entropy_BT": uniform(0.0, 2.0),
        "reward_B": reward_B,
        "adv_B": vppo.group_advantages(reward_B, size),
        "correct_B": correct_B,
        "truncated_B": length_B == longest,
        "group_B": group_B,
        "group_size": size,
        "max_tokens": longest,
        "updates": 3,
        "keep_fraction": 0.4,
        "standardized": True,
        "has_image_B": group_B != 2,
        "depends_B": group_B != 2,
        "mini_batch_B": place_B // 8,
        "micro_batch_B": place_B // 4,
        "perception_BT": perception_BT,
        "keep_BT": vppo.keep_top_fraction(perception_BT, mask_BT, 0.4),
        "dependency_B": vppo.trajectory_dependency(perception_BT, mask_BT),
        "clean_logp_BT": uniform(-3.0, 0.0),
        "perturbed_logp_BT": uniform(-4.0, 0.0),
        "perturbed_entropy_BT": uniform(0.0, 2.0),
        "kl_BT": uniform(0.0, 2.0),
        "jsd_BT": uniform(0.0, 0.69),
        "argmax_drop_BT": uniform(-1.0, 1.0),
        "image_similarity_BT": uniform(-1.0, 1.0),
        "layer_similarity_BT": uniform(-1.0, 1.0),
        "perceives_BT": mask_BT & (torch.rand(count, longest, generator=draw) < 0.3),
    }
    fields["reasons_BT"] = mask_BT & ~fields["perceives_BT"] & (torch.rand(count, longest, generator=draw) < 0.5)
    return Batch(**(fields | given))
