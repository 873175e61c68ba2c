"""Which estimator sees what a token looks at? A table for docs/perception.md.

The embedded data knows the true role of every response token. For each estimator: the area under the
ROC curve at telling perception tokens from the rest, and how much of its top 40 % is also in exact
KL's. Run it with ``python -m pipelines.bench.perception``; ``--help`` shows the options.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from sklearn.metrics import roc_auc_score

from pipelines import vppo
from pipelines.config import settings
from pipelines.config.schema import Config
from pipelines.disk.records import Rollout, Sample
from pipelines.embedded.glyphs import GlyphsOptions, make_samples
from pipelines.model.load import load_policy
from pipelines.model.policy import Policy
from pipelines.model.ragged import batches, pad_lists, split_like
from pipelines.model.sampling import Sampling
from pipelines.prepare.samples import DATA_SEED
from pipelines.rollout.engine import group_row
from pipelines.rollout.hf import HuggingFaceEngine
from pipelines.score.perturb import PERTURBATIONS
from pipelines.score.scoring import ESTIMATOR_NAMES, group_statistics, make_estimator, token_roles

SAMPLES, BATCH = 8, 32


@dataclass(frozen=True)
class Line:
    """How one estimator does: AUC, overlap of its top fraction with exact KL's, truth it keeps."""

    name: str
    auc: float
    overlap: float
    recall: float


def generate(policy: Policy, questions: Sequence[Sample], seed: int) -> list[Rollout]:
    """Responses to the questions, ungraded: rewards play no part here."""
    engine = HuggingFaceEngine(policy)
    sampling = Sampling(1.0, 1.0, 0, policy.config.rollout.max_new_tokens, SAMPLES, seed)
    groups = []
    for start, part in zip(range(0, len(questions), BATCH), batches(questions, BATCH), strict=True):
        names: list[tuple[int | str, ...]] = [("perception", q.id) for q in part]
        made = zip(part, engine.generate(part, names, sampling), strict=True)
        groups += [group_row(q, start + place, responses) for place, (q, responses) in enumerate(made)]
    return groups


def scores(config: Config, policy: Policy, groups: Sequence[Rollout], questions: Sequence[Sample]) -> torch.Tensor:
    """Perception of every response token by the configured estimator, [B, T] zero-padded."""
    estimator = make_estimator(config, 0, policy)
    rows: list[list[float]] = []
    for part, owners in zip(batches(groups, BATCH), batches(questions, BATCH), strict=True):
        statistics = group_statistics(config, 0, part, owners, policy, jsd=True)
        values_N = estimator(statistics, part, owners)
        split = split_like(values_N, [group.response_ids for group in part])
        rows += [response for group in split for response in group]
    return pad_lists(rows)[0]


def measure(
    name: str,
    score_BT: torch.Tensor,
    exact_BT: torch.Tensor,
    truth_BT: torch.Tensor,
    mask_BT: torch.Tensor,
    fraction: float,
) -> Line:
    """Compare one estimator with the truth and with exact KL."""
    keep_BT = vppo.keep_top_fraction(score_BT, mask_BT, fraction)
    exact_keep_BT = vppo.keep_top_fraction(exact_BT, mask_BT, fraction)
    overlap_B = (keep_BT & exact_keep_BT).sum(1) / keep_BT.sum(1)
    recall = keep_BT[truth_BT].float().mean().item()
    auc = roc_auc_score(truth_BT[mask_BT].numpy(), score_BT[mask_BT].numpy())
    return Line(name, float(auc), overlap_B.mean().item(), recall)


def table(model: str, count: int, seed: int) -> str:
    """Both tables, as Markdown."""
    base = settings.load(None, [f"model.path={model}", f"seed={seed}"])
    policy = load_policy(base)
    options = GlyphsOptions(levels=base.data.glyphs.levels, guessable=base.data.glyphs.guessable)
    questions = make_samples("test", count, DATA_SEED, options)
    groups = generate(policy, questions, seed)
    roles = [
        [float(role == "perception") for role in token_roles(policy, question, ids)]
        for group, question in zip(groups, questions, strict=True)
        for ids in group.response_ids
    ]
    truth_BT, mask_BT = pad_lists(roles)
    truth_BT = truth_BT.bool()
    fraction = base.score.keep_fraction

    def line(name: str, **changes: str) -> Line:
        config = settings.load(
            overrides=[f"score.{key}={value}" for key, value in changes.items()], base=base.model_dump(mode="json")
        )
        score_BT = scores(config, policy, groups, questions)
        return measure(name, score_BT, exact_BT, truth_BT, mask_BT, fraction)

    exact_BT = scores(base, policy, groups, questions)
    tokens, perceptive = int(mask_BT.sum()), int(truth_BT.sum())
    estimators = [line(name, estimator=name) for name in ESTIMATOR_NAMES]
    perturbations = [line(name, perturbation=name) for name in (*PERTURBATIONS, "raw_black")]
    perturbations.append(line("patch_black, one mask per response", mask_per="response"))
    return TEMPLATE.format(
        model=model,
        count=count,
        samples=SAMPLES,
        tokens=f"{tokens:,}",
        fraction=f"{fraction:.0%}",
        share=f"{perceptive / tokens:.1%}",
        command=f"python -m pipelines.bench.perception --model {model} --questions {count} --seed {seed}",
        estimators=_markdown(estimators),
        perturbations=_markdown(perturbations),
    )


def _markdown(lines: Sequence[Line]) -> str:
    return "\n".join(f"| {x.name} | {x.auc:.3f} | {x.overlap:.3f} | {x.recall:.3f} |" for x in lines)


TEMPLATE = """# Token perception: which estimator sees what

The embedded data knows what every word of a response is for, so an estimator of token perception can
be held against the truth. Model `{model}`, {count} held-out questions x {samples} samples,
{tokens} response tokens, of which {share} read the image.

Made by `{command}`.

- AUC: the chance that a perception token scores above another one (all responses pooled).
- Overlap: share of the top {fraction} of a response's tokens that exact KL picks too.
- Recall: share of the tokens that truly read the image which the filter keeps.

## Estimators, on the same perturbed images

| estimator | AUC | overlap with exact KL | recall |
|---|---|---|---|
{estimators}

`kl` is exact over the vocabulary (paper eq. 3), `k3` the estimate that the authors ran, from the sampled
token, `random` draws its scores, and `oracle` is the truth itself: the ceiling of these measures, but no
upper bound of accuracy after training, as where errors are not perceptual its filter drops what is wrong.

## Perturbations, with exact KL

| perturbation | AUC | overlap with patch_black | recall |
|---|---|---|---|
{perturbations}

`raw_black` blackens 14-pixel squares of the raw image, as the authors' code does. The embedded images are
not resized and the tiny model's patches are 14 pixels, so here it is the same mask; elsewhere it is not.
"""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="tiny", help="model folder (default: the shipped one)")
    parser.add_argument("--questions", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write here instead of standard output")
    arguments = parser.parse_args()
    text = table(arguments.model, arguments.questions, arguments.seed)
    if arguments.out:
        arguments.out.write_text(text)
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    main()
