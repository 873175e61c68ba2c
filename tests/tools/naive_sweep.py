"""The project's update against the naive one (naive.py): gradients tensor by tensor, and the kept tokens.

    python tests/tools/naive_sweep.py [--seeds 3]        (make nightly asserts the same)

For each seed other questions (two of six without an image), responses of the tiny model and draws; for each
case a whole update batch is scored, and its gradient taken by both. The naive one is in float64; ours in
float32, as it trains, and once more with the same scores in float64, which tells rounding from error.
Prints a table, and what float32 costs the naive one itself; exit code 0: all agree.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import random
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import applied
import naive
import numpy as np
import torch

from pipelines.config import settings
from pipelines.config.schema import Config
from pipelines.disk.records import Rollout, Sample, SampleTable, Scored, read_scores, write_rows
from pipelines.embedded.glyphs import GlyphsOptions, make_samples
from pipelines.grading.reward import Graded
from pipelines.model.load import load_policy
from pipelines.model.policy import Policy
from pipelines.model.prompts import model_location
from pipelines.model.sampling import Sampling
from pipelines.rollout.engine import group_row
from pipelines.rollout.hf import HuggingFaceEngine
from pipelines.score.scoring import perturbed_views, score
from pipelines.update.torch_engine import TorchTrainer
from pipelines.watch import Silent

MOST = 1e-5
"""Norm of the difference of two gradients over the norm, at most: of each tensor, and of all."""
ROUNDED = 2e-5
"""The same of a single tensor in float32: what reaches the keys' biases cancels but for rounding."""
TIED = 1e-6
"""Scores that lie as near may stand either way round."""

PROMPTS, GROUP, STEP, SEEDS = 6, 4, 1, 3

FEW = (
    "rollout.samples_per_prompt=4",
    "rollout.max_new_tokens=24",
    "rollout.temperature=1",
    "rollout.top_p=1",
    "score.batch_prompts=6",
    "score.looks=0",
    "update.batch_prompts=6",
    "update.micro_batch_prompts=4",
    "update.max_grad_norm=1e9",
    "update.entropy_penalty=0.06",
    "update.entropy_estimator=sampled",
    "run.threads=1",
)


@dataclass(frozen=True)
class Case:
    """One way to make an update: the project's settings, and the same for the naive one."""

    settings: tuple[str, ...]
    method: naive.Method
    off: float = 0.0
    """By how much the old log-probs differ (standard deviation, nats); 0: not at all."""

    def __str__(self) -> str:
        shown = [s for s in self.settings if not s.startswith("update.micro_batch_prompts")]
        off = [f"ratios e^N(0, {self.off})"] if self.off else []
        return ", ".join(["exact"] * (not shown or "published" not in shown[0]) + shown + off)


def exact(devices: int, *given: str, off: float = 0.0, **method: Any) -> Case:
    """The batch cut in as many passes as devices would: it must not matter."""
    passes = f"update.micro_batch_prompts={PROMPTS // devices}"
    return Case((*given, passes), dataclasses.replace(naive.EXACT, **method), off)


def published(devices: int, *given: str, off: float = 0.0, **method: Any) -> Case:
    """Two micro-batches on each device."""
    mini = PROMPTS * GROUP // devices
    sizes = ("mode=published", f"published.mini_batch_responses={mini}", f"published.micro_batch_responses={mini // 2}")
    return Case((*sizes, *given), naive.published(mini, mini // 2, **method), off)


CASES = (exact(1), exact(2), exact(3, off=0.7), published(1), published(2), published(3, off=0.7))
"""What ``make test`` looks at."""

MORE = (
    *(case(devices, off=off) for case in (exact, published) for devices in (1, 2, 3) for off in (0.0, 0.7)),
    *(
        case(2, *given, off=0.4, **method)
        for case in (exact, published)
        for given, method in (
            (("update.loss_average=sequence",), {"average": "sequence"}),
            (("update.entropy_estimator=exact",), {"entropy": "exact"}),
            (("update.entropy_penalty=0", "update.entropy_estimator=none"), {"entropy": "none"}),
            (("score.keep_fraction=0.2", "update.beta_min=0.8"), {"keep_fraction": 0.2, "beta_min": 0.8}),
            (("update.beta_max=1.1",), {"beta_max": 1.1}),
            (
                ("update.clip_low=0.1", "update.clip_high=0.4", "update.dual_clip=1.5"),
                {"clip_low": 0.1, "clip_high": 0.4, "clip_dual": 1.5},
            ),
            (("update.mask_truncated=true",), {"truncated": "left out"}),
            (("rollout.temperature=0.7",), {"temperature": 0.7}),
        )
    ),
)
"""What the sweep looks at."""


# --- what both are given ----------------------------------------------------------------------------


def questions(seed: int = 0) -> list[Sample]:
    """Three about an image, one about two, then two of text alone."""
    found = make_samples("test", PROMPTS, seed, GlyphsOptions())
    found[3] = dataclasses.replace(
        found[3], problem=f"<image>{found[3].problem}", images=found[2].images + found[3].images
    )
    blind = [dataclasses.replace(s, problem=s.problem.replace("<image>", ""), images=[]) for s in found[4:]]
    return found[:4] + blind


def table_of(samples: Sequence[Sample], folder: Path) -> SampleTable:
    write_rows(folder / "train.parquet", Sample, samples)
    return SampleTable(folder / "train.parquet")


def rollouts(policy: Policy, samples: Sequence[Sample], seed: int = 0) -> list[Rollout]:
    """Groups of responses; one, two or three of each pass for right."""
    sampling = Sampling(1.0, 1.0, 0, 24, GROUP, seed)
    names = [(STEP, position) for position in range(len(samples))]
    groups = []
    for sample, name, said in zip(
        samples, names, HuggingFaceEngine(policy).generate(samples, names, sampling), strict=True
    ):
        right = [index < 1 + name[1] % 3 for index in range(GROUP)]
        random.Random(f"{seed} {name}").shuffle(right)
        marks = [Graded("", "correct" if r else "wrong", float(r)) for r in right]
        groups.append(group_row(sample, name[1], said, marks, STEP))
    return groups


def scored(config: Config, groups: Sequence[Rollout], table: SampleTable, policy: Policy) -> list[Scored]:
    """What the scoring stage writes."""
    with tempfile.TemporaryDirectory() as folder:
        score(config, STEP, groups, table, policy, Path(folder), Silent())
        return read_scores(Path(folder), STEP)


def elsewhere(scores: Sequence[Scored], off: float) -> list[list[float]]:
    """Log-probs as if another policy had sampled the responses, so that ratios are not 1."""
    draws = random.Random("ratios")
    return [[float(np.float32(x + draws.gauss(0, off))) for x in r] for s in scores for r in s.old_logp]


def with_old(scores: Sequence[Scored], old: list[list[float]]) -> list[Scored]:
    """The scores with other log-probs of the policy that sampled."""
    return [dataclasses.replace(s, old_logp=old[i * GROUP : (i + 1) * GROUP]) for i, s in enumerate(scores)]


def responses(
    config: Config, policy: Policy, samples: Sequence[Sample], groups: Sequence[Rollout]
) -> list[naive.Response]:
    """The same for the naive update: ids and pixels as the project made and perturbed them."""
    batch = []
    for sample, group in zip(samples, groups, strict=True):
        prompt = policy.encoder.encode(sample)
        views = perturbed_views(config, STEP, group, sample, prompt, policy)
        for index, ids in enumerate(group.response_ids):
            view = views[index % len(views)]
            batch.append(
                naive.Response(
                    prompt["input_ids"].tolist(),
                    list(ids),
                    group.position,
                    group.reward[index],
                    prompt.get("pixel_values"),
                    prompt.get("image_grid_thw"),
                    view.get("pixel_values"),
                    truncated=group.truncated[index],
                )
            )
    return batch


def twin_of(config: Config, dtype: torch.dtype = torch.float64) -> Any:
    """The model as the library has it, its attention written out."""
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(
        model_location(config.model), dtype=dtype, attn_implementation="eager"
    ).eval()


# --- the comparison ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What came of one case."""

    tensor: str
    """The one with the largest gap in float32."""
    worst: float
    """That gap."""
    whole: float
    """The gap of all tensors together, in float32."""
    wide: float
    """The largest gap of a tensor in float64."""
    tied: int
    """Response tokens kept by one and not by the other, with scores within ``TIED`` of the last kept."""
    apart: int
    """Those whose scores are not."""
    tokens: int

    @property
    def agrees(self) -> bool:
        within = self.worst <= ROUNDED and self.whole <= MOST and self.wide <= MOST
        return within and not self.apart


def gaps(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> tuple[dict[str, float], float]:
    """Norm of the difference over the norm: of each tensor by name, and of all."""
    assert ours.keys() == theirs.keys()
    difference = {name: ours[name].double() - theirs[name].double() for name in theirs}
    one = {n: (difference[n].norm() / theirs[n].double().norm()).item() for n in theirs}
    return one, naive.norm(difference) / naive.norm(theirs)


class Bench:
    """One draw of questions and responses, the twin, and what the naive update made of them."""

    def __init__(self, policy: Policy, samples: Sequence[Sample], table: SampleTable, twin: Any, seed: int = 0) -> None:
        self.policy, self.samples, self.table, self.twin = policy, samples, table, twin
        self.groups = rollouts(policy, samples, seed)
        self._perceived: dict[Any, list[list[float]]] = {}
        self._old: dict[float, list[list[float]]] = {}
        self._gradients: dict[Any, dict[str, torch.Tensor]] = {}

    def copy(self, config: Config) -> Policy:
        """A policy to be trained."""
        return Policy(copy.deepcopy(self.policy.model), self.policy.processor, config)

    def perceived(self, batch: Sequence[naive.Response], method: naive.Method) -> list[list[float]]:
        """``naive.perception``, once for each temperature and estimator, whose masks are its own."""
        key = method.estimator, method.temperature
        if key not in self._perceived:
            self._perceived[key] = naive.perception(self.twin, batch, method)
        return self._perceived[key]

    def old(self, batch: Sequence[naive.Response], method: naive.Method) -> list[list[float]]:
        """The twin's own log-probs of the responses' tokens."""
        if method.temperature not in self._old:
            with torch.no_grad():
                logp_BTV = naive.log_softmax(self.twin, batch, method, perturbed=False)
            found = [[x.item() for x in row] for row in naive.sampled(logp_BTV, batch)]
            self._old[method.temperature] = found
        return self._old[method.temperature]

    def gradient(
        self, batch: Sequence[naive.Response], keep: list[list[bool]], case: Case, method: naive.Method
    ) -> dict[str, torch.Tensor]:
        """``naive.gradient``, once for a case, however the project computes it."""
        key = method, case.off, str(keep)
        if key not in self._gradients:
            alpha = naive.shaping(self.perceived(batch, method), batch, method)
            self._gradients[key] = naive.gradient(self.twin, batch, keep, alpha, method)
        return self._gradients[key]

    def run(self, case: Case, config: Config) -> Outcome:
        """Score and update with the project, and compare."""
        policy = self.copy(config)
        method = dataclasses.replace(case.method, never=tuple(policy.suppressed_ids.tolist()))
        batch = responses(config, policy, self.samples, self.groups)
        scores = scored(config, self.groups, self.table, policy)
        if case.off:
            scores = with_old(scores, elsewhere(scores, case.off))
            old = [logp for s in scores for logp in s.old_logp]
            batch = [dataclasses.replace(r, old_logp=x) for r, x in zip(batch, old, strict=True)]
        keep = [row for s in scores for row in s.keep]
        tied, apart = kept_otherwise(self.perceived(batch, method), keep, batch, method)
        theirs = self.gradient(batch, keep, case, method)
        one, whole = gaps(self.updated(config, policy, scores), theirs)
        tensor = max(one, key=one.__getitem__)

        policy = self.copy(config)
        policy.model.double()
        if not case.off:  # at ratios of 1 to the last bit, here too
            scores = with_old(scores, self.old(batch, method))
        with naive.wide():
            other, _ = gaps(self.updated(config, policy, scores), theirs)
        return Outcome(tensor, one[tensor], whole, max(other.values()), tied, apart, sum(map(len, keep)))

    def updated(self, config: Config, policy: Policy, scores: Sequence[Scored]) -> dict[str, torch.Tensor]:
        """The gradients of the project's update."""
        trainer = TorchTrainer(policy, config)
        gradients = applied.gradients(trainer)
        trainer.update(self.groups, scores, self.table)
        return gradients


def kept_otherwise(
    scores: Sequence[Sequence[float]],
    keep: Sequence[Sequence[bool]],
    batch: Sequence[naive.Response],
    method: naive.Method,
) -> tuple[int, int]:
    """Tokens that are kept by one update and not by the other: (tied, not tied)."""
    tied = apart = 0
    for row, ours, theirs in zip(scores, keep, naive.kept(scores, batch, method), strict=True):
        last = min(s for s, kept in zip(row, theirs, strict=True) if kept)
        near = [abs(s - last) <= TIED for s, a, b in zip(row, ours, theirs, strict=True) if a != b]
        tied, apart = tied + sum(near), apart + len(near) - sum(near)
        apart += abs(sum(ours) - sum(theirs))
    return tied, apart


# --- the sweep --------------------------------------------------------------------------------------


def sweep(policy: Policy, seed: int, say: Callable[[str], None]) -> list[bool]:
    """Every case with one draw; whether they agree."""
    samples, agreed = questions(seed), []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(policy, samples, table_of(samples, Path(folder)), twin_of(policy.config), seed)
        for case in MORE:
            for shared in ("true", "false"):
                given = [*FEW, *case.settings, f"model.shared_prefix={shared}", f"seed={seed}"]
                config = settings.load(None, given)
                found = bench.run(case, config)
                agreed.append(found.agrees)
                say(
                    f"| {seed} | {case} | {'on' if shared == 'true' else 'off'} | {found.worst:.1e} "
                    f"({found.tensor.removeprefix('model.')}) | {found.whole:.1e} | {found.wide:.1e} | "
                    f"{found.tied}, {found.apart} of {found.tokens} |{'' if found.agrees else ' DISAGREES'}"
                )
    return agreed


def rounding(policy: Policy) -> tuple[float, float]:
    """What float32 costs the naive update: its worst tensor's gap to its twin, and that of all."""
    samples = questions()
    batch = responses(policy.config, policy, samples, rollouts(policy, samples))
    found = {}
    for dtype in (torch.float64, torch.float32):
        model = twin_of(policy.config, dtype)
        scores = naive.perception(model, batch, naive.EXACT)
        keep = naive.kept(scores, batch, naive.EXACT)
        alpha = naive.shaping(scores, batch, naive.EXACT)
        found[dtype] = naive.gradient(model, batch, keep, alpha, naive.EXACT)
    one, whole = gaps(found[torch.float32], found[torch.float64])
    return max(one.values()), whole


def main(arguments: Sequence[str] | None = None, say: Callable[[str], None] = print) -> int:
    parser = argparse.ArgumentParser(description="The update against a naive one.")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    seeds = parser.parse_args(arguments).seeds
    torch.set_num_threads(1)
    policy = load_policy(settings.load(None, list(FEW)))
    say("| seed | case | shared prefix | worst tensor | all | worst, float64 | kept otherwise: tied, not |")
    say("|---|---|---|---|---|---|---|")
    agreed = [one for seed in range(seeds) for one in sweep(policy, seed, say)]
    worst, whole = rounding(policy)
    say(
        f"\n{sum(agreed)} of {len(agreed)} agree. The naive update in float32 is {worst:.1e} from its "
        f"twin (worst tensor), {whole:.1e} in all."
    )
    return 0 if all(agreed) else 1


if __name__ == "__main__":
    sys.exit(main())
