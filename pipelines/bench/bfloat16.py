"""How far results move with what is beside them in a pass, in float32 and in bfloat16.

The kernel of a product is chosen by its shape, and each adds in an order of its own. In float32 that
moves last bits; in bfloat16, which keeps 8 bits of every layer's input, it moves log-probs, and with them
now and then a sampled token, or which tokens are kept.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from pipelines.config import settings
from pipelines.config.schema import Config
from pipelines.disk.records import Rollout, Sample, SampleTable, Scored, write_samples
from pipelines.embedded.glyphs import GlyphsOptions, make_samples
from pipelines.grading.reward import Graded
from pipelines.model.load import load_policy
from pipelines.model.policy import Policy
from pipelines.model.sampling import Sampling
from pipelines.rollout.engine import Response, group_row
from pipelines.rollout.hf import HuggingFaceEngine
from pipelines.score.scoring import group_statistics, scored_rows
from pipelines.update.torch_engine import TorchTrainer

PROMPTS, MICRO_BATCH = 32, 4
"""Questions that are sampled and scored together, and trained on together."""
MAX_NEW_TOKENS = 64


def compare(shape: str, repeats: int, out: Path, say: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """The tiny model on its own questions, in float32, then in bfloat16; ``repeats`` has no say."""
    types: dict[str, Any] = {}
    for dtype in ("float32", "bfloat16"):
        say(f"bfloat16: {dtype}")
        config = settings.load(
            None,
            [
                f"model.dtype={dtype}",
                f"update.batch_prompts={PROMPTS}",
                f"update.micro_batch_prompts={MICRO_BATCH}",
                f"rollout.max_new_tokens={MAX_NEW_TOKENS}",
            ],
        )
        policy = load_policy(config)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "questions.parquet"
            write_samples(file, make_samples("train", PROMPTS, 0, GlyphsOptions()))
            samples = SampleTable(file)
            groups, sampled = sampling(config, samples, policy)
            scores, scored = scoring(config, groups, list(samples), policy)
            ratios = first_update(config, groups, scores, samples, policy)
        types[dtype] = {"sampling": sampled, "scoring": scored, "ratios": ratios}
        yield {"prompts": PROMPTS, "micro_batch": MICRO_BATCH, "types": types}


def sampling(config: Config, samples: Sequence[Sample], policy: Policy) -> tuple[list[Rollout], dict[str, Any]]:
    """Sample responses to all questions together, and to each alone.

    Returns:
        Those of the batch; how many there are, how many differ, and the first token that does
        (counted from 1: least and median of the responses that differ, None where none does).
    """
    asked, engine = config.rollout, HuggingFaceEngine(policy)
    how = Sampling(
        asked.temperature, asked.top_p, asked.top_k, asked.max_new_tokens, asked.samples_per_prompt, config.seed
    )
    together = engine.generate(samples, [(1, i) for i in range(len(samples))], how)
    alone = [engine.generate([sample], [(1, i)], how)[0] for i, sample in enumerate(samples)]
    pairs = [
        (a.ids, b.ids) for group, other in zip(together, alone, strict=True) for a, b in zip(group, other, strict=True)
    ]
    firsts = [_first_difference(a, b) for a, b in pairs if a != b]
    groups = [_rollout(i, samples[i], group) for i, group in enumerate(together)]
    return groups, {
        "responses": len(pairs),
        "tokens": sum(len(ids) for ids, _ in pairs),
        "differ": len(firsts),
        "first_least": min(firsts, default=None),
        "first_median": median(firsts) if firsts else None,
    }


def scoring(
    config: Config, groups: Sequence[Rollout], owners: Sequence[Sample], policy: Policy
) -> tuple[list[Scored], dict[str, float]]:
    """Score all groups in one pass, and each alone.

    Returns:
        The scores of the one pass; differences of log-probs and of the exact KL to the perturbed view
        (mean and largest, nats), the mean KL, and the share of the kept tokens that are others.
    """
    whole = group_statistics(config, 1, groups, owners, policy, perturbed=True)
    parts = [
        group_statistics(config, 1, [group], [owner], policy, perturbed=True)
        for group, owner in zip(groups, owners, strict=True)
    ]
    logp_N, kl_N = (torch.cat([getattr(p, name) for p in parts]) for name in ("logp", "kl"))
    assert whole.kl is not None
    together = scored_rows(config, 1, groups, owners, whole, whole.kl)
    alone = scored_rows(config, 1, groups, owners, replace(whole, logp=logp_N, kl=kl_N), kl_N)
    kept = [
        (a, b)
        for row, other in zip(together, alone, strict=True)
        for keep, others in zip(row.keep, other.keep, strict=True)
        for a, b in zip(keep, others, strict=True)
    ]
    return together, {
        **_gap("logp", whole.logp, logp_N),
        **_gap("kl", whole.kl, kl_N),
        "kl": whole.kl.mean().item(),
        "kept_others_share": sum(b and not a for a, b in kept) / sum(a for a, _ in kept),
    }


def first_update(
    config: Config, groups: Sequence[Rollout], scores: Sequence[Scored], samples: SampleTable, policy: Policy
) -> dict[str, dict[str, float]]:
    """Ratios of the first update, which trains what the policy itself has sampled and scored.

    Returns:
        Mean ratio and largest |ratio - 1|, by how the old log-probs were scored: in the passes of
        ``scores``, and in those of the update.
    """
    trainer = _Ratios(policy, config)
    trainer.update(groups, scores, samples)
    old = {score.position: score.old_logp for score in scores}
    passes = {
        f"{len(groups)} a pass": [
            x for part in trainer.trained for g in part for response in old[g.position] for x in response
        ],
        "the update's passes": torch.cat(trainer.same).tolist(),
    }
    logp_N = torch.cat(trainer.logp).cpu().double()
    found = {}
    for name, old_logp in passes.items():
        ratio_N = (logp_N - torch.tensor(old_logp).double()).exp()
        found[name] = {"mean": ratio_N.mean().item(), "furthest": (ratio_N - 1).abs().max().item()}
    return found


class _Ratios(TorchTrainer):
    """Remembers the log-probs that it trains, and scores the same groups in the same pass.

    Attributes:
        trained: the groups of each micro-batch.
        logp, same: log-probs of their tokens, as trained and as scored [N].
    """

    def __init__(self, policy: Policy, config: Config) -> None:
        super().__init__(policy, config)
        self.trained: list[list[Rollout]] = []
        self.logp: list[Tensor] = []
        self.same: list[Tensor] = []

    def _trained(self, groups: Sequence[tuple[Rollout, Scored]], samples: SampleTable) -> tuple[Tensor, ...]:
        logp_N, entropy_N = super()._trained(groups, samples)
        rollouts = [rollout for rollout, _ in groups]
        owners = [samples.by_id(rollout.sample_id) for rollout in rollouts]
        scored = group_statistics(self.config, 1, rollouts, owners, self.policy, perturbed=False)
        self.trained.append(rollouts)
        self.logp.append(logp_N.detach())
        self.same.append(scored.logp)
        return logp_N, entropy_N


def _rollout(number: int, sample: Sample, responses: Sequence[Response]) -> Rollout:
    """A group in which every other response is right, so that it trains."""
    marks = [Graded("", "wrong", float(i % 2)) for i in range(len(responses))]
    return group_row(sample, number, responses, marks, step=1)


def _first_difference(a: Sequence[int], b: Sequence[int]) -> int:
    """Number of the first token in which two responses differ, from 1."""
    same = [x == y for x, y in zip(a, b, strict=False)]
    return (same.index(False) if False in same else len(same)) + 1


def _gap(name: str, a_N: Tensor, b_N: Tensor) -> dict[str, float]:
    gap_N = (a_N - b_N).abs()
    return {f"{name}_mean": gap_N.mean().item(), f"{name}_max": gap_N.max().item()}
