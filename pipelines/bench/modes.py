"""How much each difference between ``mode: exact`` and ``mode: published`` does by itself.

Two update batches of the tiny model are sampled once, as ``exact`` samples them. Then their responses
are scored and their gradient is taken with one setting changed at a time, and with all. Run it with
``python -m pipelines.bench.modes``; with ``--out docs/method.md`` the table there is written anew.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pipelines.bench.pages import put
from pipelines.config import settings
from pipelines.config.schema import Config
from pipelines.disk.records import (
    ROLLOUTS,
    SCORES,
    SURPLUS,
    Rollout,
    Sample,
    SampleTable,
    Scored,
    read_rows,
    write_samples,
)
from pipelines.embedded.glyphs import GlyphsOptions, make_samples
from pipelines.grading.reward import make_reward
from pipelines.model.control_tokens import IMAGE
from pipelines.model.load import load_policy
from pipelines.objectives.batch import Batch
from pipelines.prepare.samples import DATA_SEED
from pipelines.rollout.groups import rollout
from pipelines.rollout.hf import HuggingFaceEngine
from pipelines.score.scoring import score
from pipelines.update.torch_engine import TorchTrainer
from pipelines.watch import Silent

Tensors = dict[str, torch.Tensor]

BASE = (
    "mode=exact",
    "update.entropy_penalty=0.06",
    "update.entropy_estimator=sampled",
    "update.learning_rate=1e-6",
    "update.max_grad_norm=1e9",
    "score.looks=0",
    "run.device=cpu",
)
"""tiny.yaml with the constants that the differences are about as the authors have them; unclipped."""

PIXELS = 10_000
"""The embedded images keep their size. Enlarged to this, both resizes have something to do."""

WITHOUT = 4
"""Of the other batch's questions every so many has no image."""

QUESTIONS = 8
"""Made for each that an update batch holds: dynamic sampling drops some."""


@dataclass(frozen=True)
class Difference:
    """One row: the settings that are changed together, why that matters, and on which batch."""

    names: tuple[str, ...]
    why: str
    other: bool = False
    """Whether it is measured on the batch with resized images, line breaks and text-only questions."""
    beside: tuple[str, ...] = ()
    """Settings that both sides of the comparison have besides."""


DIFFERENCES = (
    Difference(
        ("score.estimator",),
        "k3 looks at the sampled token only, and saturates at +2.61 nats but only at -11, so tokens the "
        "image argues against rank first",
    ),
    Difference(("score.mask_per",), "a mask per response adds noise to comparisons between responses"),
    Difference(
        ("score.perturbation",), "squares of an image that is then resized match no patch of the encoder", other=True
    ),
    Difference(
        ("published.resize_first",),
        "two resizes in place of one, by PIL and by the processor: another grid for half of the sizes",
        other=True,
    ),
    Difference(
        ("published.strip_question",), "line breaks beside an image stay, white space at the ends goes", other=True
    ),
    Difference(
        ("update.shaping_statistics", "published.mini_batch_responses", "published.micro_batch_responses"),
        "minimum and maximum of a device's responses, mean of a micro-batch's: weights depend on how work is divided",
    ),
    Difference(
        ("published.filter_text_only",),
        "S is 0 without an image: the first 40 % of such a response are trained, its answer never is",
        other=True,
    ),
    Difference(
        ("published.decay_all",),
        "biases and norms are pulled to 0 as well (difference of AdamW's step at a learning rate of 2e-4; "
        "at 1e-6 none, see below)",
        beside=("update.learning_rate=2e-4",),
    ),
    Difference(
        ("published.choice_rule",), "mathruler alone refuses `A. 5` for A (the embedded questions have no choices)"
    ),
    Difference(
        ("published.drop_surplus",),
        "informative groups beyond a step's are paid for and thrown away; kept ones are trained off-policy by a step",
    ),
)


@dataclass(frozen=True)
class Sampled:
    """One update batch: its settings, its groups, and all questions they are drawn from."""

    config: Config
    groups: list[Rollout]
    samples: SampleTable
    surplus: int


@dataclass(frozen=True)
class Found:
    """What one set of settings makes of a batch."""

    scores: list[Scored]
    gradient: Tensors
    step: Tensors
    """How AdamW's first step changes each weight."""


class _Recording(TorchTrainer):
    """The trainer, which keeps the gradient of its last optimizer step and how that moved the weights."""

    gradient: Tensors
    moved: Tensors

    def _step(self) -> float:
        self.gradient = {n: p.grad.clone() for n, p in self.named if p.grad is not None}
        before = {n: p.detach().clone() for n, p in self.named}
        norm = super()._step()
        self.moved = {n: p.detach() - before[n] for n, p in self.named}
        return norm


class _Dealing(_Recording):
    """The same, with responses dealt to devices so that each has about as many tokens."""

    def _batch(self, *given: Any) -> Batch:
        batch = super()._batch(*given)
        device_B, within_B = dealt(batch.mask_BT.sum(1), int(batch.mini_batch_B.max()) + 1)
        micro = self.config.published.micro_batch_responses or len(within_B)
        return replace(batch, mini_batch_B=device_B, micro_batch_B=within_B // micro)


def dealt(length_B: torch.Tensor, devices: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The longest first, back and forth over the devices -> (device_B, place_B).

    A device keeps its responses in their order, which the places tell. The authors' code balances tokens
    by another method (largest differences), to the same end.
    """
    device_B = torch.empty_like(length_B)
    for turn, part in enumerate(length_B.argsort(descending=True, stable=True).split(devices)):
        hand = torch.arange(len(part))
        device_B[part] = hand if turn % 2 == 0 else devices - 1 - hand
    place_B = torch.empty_like(length_B)
    for device in range(devices):
        mine = device_B == device
        place_B[mine] = torch.arange(int(mine.sum()))
    return device_B, place_B


def sample(other: bool, prompts: int, folder: Path) -> Sampled:
    """Sample and grade one update batch.

    Args:
        other: with resized images, line breaks behind images, and questions without one.
    """
    more = [f"data.min_pixels={PIXELS}"] if other else []
    config = settings.load(
        None, [*BASE, f"rollout.prompts_per_step={prompts}", f"update.batch_prompts={prompts}", *more]
    )
    folder.mkdir()
    options = GlyphsOptions(levels=config.data.glyphs.levels, guessable=float(other))
    made = make_samples("train", QUESTIONS * prompts, DATA_SEED, options)
    if other:
        made = [_changed(one, text_only=i % WITHOUT == 0) for i, one in enumerate(made)]
    write_samples(folder / "train.parquet", made)
    samples = SampleTable(folder / "train.parquet")
    rewards = config.reward
    with make_reward(rewards.function, rewards.grader, rewards.deadline) as reward:
        engine = HuggingFaceEngine(load_policy(config))
        rollout(config, 1, samples, None, engine, reward, folder, Silent())
    surplus = len(read_rows(folder / SURPLUS, Rollout))
    return Sampled(config, read_rows(folder / ROLLOUTS, Rollout), samples, surplus)


def _changed(sample: Sample, *, text_only: bool) -> Sample:
    question = sample.problem.removeprefix(IMAGE)
    if text_only:
        return replace(sample, problem=question, images=[])
    return replace(sample, problem=f"{IMAGE}\n{question}")


def measure(batch: Sampled, *overrides: str, trainer: type[_Recording] = _Recording, masks: int = 0) -> Found:
    """Score the batch and take its gradient with other settings.

    Args:
        masks: added to the seed of the perturbed images.
    """
    config = settings.load(None, overrides, base=batch.config.model_dump(mode="json"))
    policy, groups = load_policy(config), batch.groups
    if not config.published.choice_rule:
        groups = _regraded(config, batch)
    drawn = config.model_copy(update={"seed": config.seed + masks})
    with tempfile.TemporaryDirectory() as out:
        score(drawn, 1, groups, batch.samples, policy, Path(out), Silent())
        scores = read_rows(Path(out) / SCORES, Scored)
    made = trainer(policy, config)
    made.update(groups, scores, batch.samples)
    return Found(scores, made.gradient, made.moved)


def _regraded(config: Config, batch: Sampled) -> list[Rollout]:
    rewards, graded = config.reward, []
    with make_reward(
        rewards.function, rewards.grader, rewards.deadline, choice_rule=config.published.choice_rule
    ) as reward:
        for group in batch.groups:
            owners = [batch.samples.by_id(group.sample_id)] * len(group.response)
            marks = reward(group.response, owners, group.truncated)
            graded.append(replace(group, reward=[mark.reward for mark in marks]))
    return graded


def apart(one: Tensors, other: Tensors) -> float:
    """Norm of the difference over the norm of the first, all weights together."""
    gap = sum(float((other[name] - value).double().square().sum()) for name, value in one.items())
    size = sum(float(value.double().square().sum()) for value in one.values())
    return float((gap / size) ** 0.5)


def overlap(one: Sequence[Scored], other: Sequence[Scored]) -> float:
    """Share of the tokens that the first keeps which the other keeps too."""
    pairs = [
        pair
        for a, b in zip(one, other, strict=True)
        for keep, also in zip(a.keep, b.keep, strict=True)
        for pair in zip(keep, also, strict=True)
    ]
    return sum(a and b for a, b in pairs) / sum(a for a, _ in pairs)


def zeros(scores: Sequence[Scored]) -> tuple[float, float]:
    """Shares of S that are exactly 0: of all tokens, and of those kept, which their place then chose."""
    pairs = [
        pair
        for row in scores
        for values, keep in zip(row.perception, row.keep, strict=True)
        for pair in zip(values, keep, strict=True)
    ]
    kept = [value for value, keep in pairs if keep]
    return sum(v == 0 for v, _ in pairs) / len(pairs), sum(v == 0 for v in kept) / len(kept)


def kahan(gradient: Tensors, weights: Tensors, rate: float, steps: int) -> tuple[Tensors, Tensors]:
    """Moves of the weights by equal gradients: (in float32, in bfloat16 with Kahan's compensation).

    The authors' optimizer keeps weights, both moments and the compensation in bfloat16.
    """
    exact: Tensors = {}
    rounded: Tensors = {}
    for name, gradient_W in gradient.items():
        for kind, found in ((torch.float32, exact), (torch.bfloat16, rounded)):
            weight = start = weights[name].to(torch.bfloat16).to(kind)
            step_W, first, second, lost = gradient_W.to(kind), *(torch.zeros_like(weight),) * 3
            for step in range(1, steps + 1):
                first = first * 0.9 + step_W * 0.1
                second = second * 0.999 + step_W * step_W * 0.001
                size = (second.sqrt() / (1 - 0.999**step) ** 0.5) + 1e-8
                lost = lost - first / size * (rate / (1 - 0.9**step))
                after = weight + lost
                lost, weight = lost - (after - weight), after
            found[name] = weight.float() - start.float()
    return exact, rounded


def _set(names: Sequence[str], mode: str) -> list[str]:
    values = settings.MODES[mode]
    return [f"{name}={json.dumps(values[name])}" for name in names]


def table(prompts: int) -> str:
    """The table, and what is said below it, as Markdown."""
    with tempfile.TemporaryDirectory() as folder:
        batches = [sample(other, prompts, Path(folder) / str(other)) for other in (False, True)]
        bases = [measure(batch) for batch in batches]
        lines = ["| setting | exact | published | gradient | kept | why it matters |", "|---|---|---|---|---|---|"]
        found: dict[str, Found] = {}
        for one in DIFFERENCES:
            names = ", ".join(f"`{name}`" for name in one.names)
            ours, theirs = (_cell(one.names, mode) for mode in ("exact", "published"))
            numbers = "-", "-"
            if "published.drop_surplus" not in one.names:
                batch, base = batches[one.other], bases[one.other]
                changed = measure(batch, *_set(one.names, "published"), *one.beside)
                found[one.names[0]] = changed
                if one.beside:
                    base = measure(batch, *one.beside)
                numbers = _numbers(base, changed, bool(one.beside))
            lines.append(f"| {names} | {ours} | {theirs} | {' | '.join(numbers)} | {one.why} |")
        every = [name for one in DIFFERENCES for name in one.names]
        for i, where in enumerate(("the embedded questions", "the other batch")):
            numbers = _numbers(bases[i], measure(batches[i], *_set(every, "published")))
            lines.append(f"| all of them, on {where} | | | {' | '.join(numbers)} | |")
        numbers = _numbers(bases[0], measure(batches[0], masks=1))
        lines.append(f"| (none: other random masks) | | | {' | '.join(numbers)} | what chance does |")
        shaped = _set(DIFFERENCES[5].names, "published")
        spread = measure(batches[0], *shaped, trainer=_Dealing)
        rate = batches[0].config.update.learning_rate
        weights = dict(load_policy(batches[0].config).model.named_parameters())
        with torch.no_grad():
            moved = {n: apart(*kahan(bases[0].gradient, weights, rate, n)) for n in (1, 20)}
    zero, placed = zeros(found["score.estimator"].scores)
    sampled, surplus = len(batches[0].groups), batches[0].surplus
    return TEMPLATE.format(
        table="\n".join(lines),
        prompts=prompts,
        responses=sum(len(group.response) for group in batches[0].groups),
        tokens=f"{sum(len(ids) for group in batches[0].groups for ids in group.response_ids):,}",
        pixels=f"{PIXELS:,}",
        without=WITHOUT,
        zero=f"{zero:.0%}",
        placed=f"{placed:.0%}",
        zero_kl=f"{zeros(bases[0].scores)[0]:.0%}",
        thrown=f"{surplus} of {surplus + sampled}",
        dealt=f"{apart(found['update.shaping_statistics'].gradient, spread.gradient):.3f}",
        one=f"{moved[1]:.2f}",
        later=f"{moved[20]:.2f}",
        command=f"python -m pipelines.bench.modes --prompts {prompts}",
    )


def _cell(names: Sequence[str], mode: str) -> str:
    values = [settings.MODES[mode][name] for name in names]
    return ", ".join(f"`{v if isinstance(v, str) else json.dumps(v)}`" for v in values)


def _numbers(base: Found, changed: Found, steps: bool = False) -> tuple[str, str]:
    gap = apart(base.step, changed.step) if steps else apart(base.gradient, changed.gradient)
    return f"{gap:.1e}" if 0 < gap < 0.0005 else f"{gap:.3f}", (f"{overlap(base.scores, changed.scores):.0%}")


TEMPLATE = """\
{table}

Gradient: ‖g - g₀‖ / ‖g₀‖ of one update batch, with g₀ that of `exact` and one difference switched on
alone. Kept: share of the tokens that `exact` keeps which are kept then too. Made by
`{command}` (`make modes`) on the tiny model: {prompts} prompts, {responses}
responses, {tokens} tokens. The embedded images keep their size, and their questions have an image and no
line breaks, so what is about those is measured on another batch: images enlarged to {pixels} pixels, a
line break behind each, every {without}th question without one.

`drop_surplus` chooses other groups, not another gradient of these: here it throws away {thrown}
informative groups. `choice_rule` changes nothing here: see docs/grading.md for where it does.

Of the k3 scores {zero} are exactly 0 here (of the exact KLs {zero_kl}), so its filter is partly positional:
of the tokens that it keeps {placed} have a score of 0, and are kept for their place alone.

What cannot be the same as in the authors' code:

- **Their optimizer** keeps weights, moments and Kahan's compensation in bfloat16, ours weights and
  moments in float32. Given equal gradients, by steps of 1e-6 from equal weights, where the weights
  then are is apart by {one} of what they moved after one step and by {later} after 20 (norm over norm):
  a small step waits in the compensation until the weight's own rounding lets it in.
- **Weight decay** at the paper's constants is a factor of 1 - 1e-8 a step, which rounds to 1 in bfloat16
  and in float32: it changes no weight, in their code or in ours, in either mode.
- **Their balancing** deals a step's responses to devices by their lengths, so responses to one prompt
  are shaped, and updated, apart. Here a device's mini-batch is `mini_batch_responses` neighbours of an
  update batch, whatever the number of ranks. Dealt by length instead, the gradient of `micro_batch`
  shaping changes by {dealt}.
- **Ties** in S keep the earlier token here; `torch.sort` on their GPU leaves open which.
- **Images** are what a person sees in both modes (EXIF, transparency); theirs are as PIL opens them."""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--prompts", type=int, default=32, help="prompts of an update batch")
    parser.add_argument("--out", type=Path, help="a page with the table, to be written anew")
    arguments = parser.parse_args()
    text = table(arguments.prompts)
    if arguments.out is None:
        sys.stdout.write(text + "\n")
    else:
        put(arguments.out, "modes", text)


if __name__ == "__main__":
    main()
