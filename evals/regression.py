"""Has training changed? ``make regression`` compares a run with the baseline in configs/ci_baseline.

    python -m evals.regression replay     every stage on the baseline's responses, number by number
    python -m evals.regression run        what a finished run of configs/ci.yaml has to fulfil
    python -m evals.regression record     make the baseline from that run

Exit code 0: as before; 1: a number left its band, or a stage failed; 2: there is no baseline.
Bands are in ``BANDS``; docs/evaluation.md tells where they come from.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from math import ceil
from pathlib import Path

import numpy as np
import transformers
from safetensors.numpy import load_file

from evals import replay
from evals.journal import read_journal
from evals.report.build import REPORT
from evals.run import questions
from pipelines import checkpoints, runs
from pipelines.chain import Chain
from pipelines.config import settings
from pipelines.disk.records import ROLLOUTS, SCORES, Rollout, Sample, SampleTable, Scored, read_rows
from pipelines.disk.step import write_atomic
from pipelines.errors import UserError
from pipelines.grading.answer import extract_answer
from pipelines.model.load import load_policy
from pipelines.model.prompts import open_image
from pipelines.model.sampling import Sampling
from pipelines.rollout.hf import HuggingFaceEngine
from pipelines.update.moments import OPTIMIZER

CONFIG, RUN = "ci.yaml", "ci"
SETTINGS = ("run.device=cpu",)
"""A GPU's sums differ more than the bands allow for."""
BASELINE = settings.shipped_config("ci_baseline")
NUMBERS = "numbers.json"
RECORDED_STEPS = 4
RESAMPLED = 32
"""Prompts that are sampled again from a checkpoint."""

Numbers = replay.Numbers


@dataclass(frozen=True)
class Band:
    """How far a number may be from what is expected: so much of it, plus so much."""

    relative: float = 0.0
    absolute: float = 0.0

    def width(self, expected: float) -> float:
        return self.relative * abs(expected) + self.absolute

    def __str__(self) -> str:
        parts = [f"{100 * self.relative:g} %"] if self.relative else []
        return " and ".join(parts + [f"{self.absolute:g}"] * bool(self.absolute)) or "0"


EXACT = Band()


@dataclass
class Judge:
    """Compares numbers with those of the baseline, or with what has to be.

    Args:
        expected: place -> number -> value; None: there is no baseline yet, take what is found.
    """

    expected: dict[str, Numbers] | None
    found: dict[str, Numbers] = field(default_factory=lambda: defaultdict(dict))
    off: list[str] = field(default_factory=list)
    looked_at: int = 0

    def as_before(self, place: str, numbers: Numbers, bands: Callable[[str], Band]) -> None:
        """Numbers that have to be the baseline's; none may be missing or new."""
        self.found[place] |= numbers
        before = numbers if self.expected is None else self.expected.get(place, {})
        for name in dict.fromkeys([*before, *numbers]):
            if name not in numbers:
                self._say(place, name, f"is missing, expected {before[name]:.5g}")
            elif name not in before:
                self._say(place, name, "is not in the baseline (make baseline)")
            else:
                self.must_be(place, name, numbers[name], before[name], bands(name))

    def must_be(self, place: str, name: str, value: float, expected: float, band: Band = EXACT) -> None:
        """A number that has to be what is expected, whatever the baseline says."""
        self.looked_at += 1
        if not abs(value - expected) <= band.width(expected):  # so that NaN is off
            self._say(place, name, f"{value:.5g}, expected {expected:.5g} +- {band}")

    def nothing_left_out(self) -> None:
        """Every place of the baseline was looked at."""
        for place in sorted((self.expected or {}).keys() - self.found.keys()):
            self._say(place, "", "is in the baseline and was not computed")

    def _say(self, place: str, name: str, what: str) -> None:
        self.off.append(f"{place:<22}  {name:<22}  {what}")


# -- bands -----------------------------------------------------------------------------------------

BAND = Band(0.0004, 1e-6)
"""Of what is computed on equal responses. Measured over thread counts, instruction sets and two other
ways to run the model (docs/evaluation.md): at most 0.0017 %."""

BANDS = {
    "grad_norm": Band(0.005),  # 0.044 %: of tokens that see nothing, noise decides which are kept
    "policy_kl": Band(0.005, 1e-6),  # 0.029 %
    "reference_kl": Band(0.005),
    "mismatch_mean": Band(absolute=1e-4),  # 6e-6: the engine's are recorded, the trainer's are not
    "mismatch_max": Band(absolute=0.01),  # 0.0011
    "clipped_low": Band(0.02, 3e-4),  # none; one token is 2.5e-4
    "clipped_high": Band(0.02, 3e-4),
    "clipped_dual": Band(0.02, 3e-4),
    "tis_capped": Band(0.02, 3e-4),
}
"""Of numbers that vary more, each with the largest difference measured."""

FARTHEST = {
    "old_logp": Band(absolute=0.01),  # 0.0011
    "entropy": Band(absolute=0.01),  # 0.0009
    "perception": Band(absolute=0.01),  # 0.0006
    "dependency": Band(absolute=0.001),  # 2e-5
    "keep": Band(absolute=0.01),  # 0.0012
}
"""Of single tokens: the largest difference from the recorded scores, in nats; of ``keep``, the share of
tokens that differ."""

FLIPS = Band(absolute=0.05)
"""Of the share of responses that differ where the same weights sample with the same numbers: a last bit
can tip a token, about once in a million."""


def band_of(name: str) -> Band:
    """The band of a metric on equal responses."""
    return BANDS.get(name, BAND)


# -- the baseline's responses, through every stage -------------------------------------------------


def data(judge: Judge, again: replay.Replay) -> None:
    """The questions."""
    table = again.prepared()
    text = "\n".join(f"{s.id} {s.problem} {s.answer} {s.kind}" for s in table.without_images())
    pixels = [np.asarray(open_image(image).convert("RGB")) for image in table[0].images]
    judge.as_before(
        "prepare",
        {
            "questions": len(table),
            "checksum of the texts": zlib.crc32(text.encode()),
            "first image's mean": float(np.mean(pixels)),
            "and deviation": float(np.std(pixels)),
        },
        lambda _: Band(1e-6),
    )


def sampling(judge: Judge, again: replay.Replay) -> None:
    """What the starting model says, and what is made of it."""
    metrics, found, recorded = again.sampled()
    other = replay.differing(found, recorded)
    judge.must_be("rollout 1", "responses that differ", other, 0, FLIPS)
    # One token that tipped can change a group's outcome, and so where the sampling ends.
    judge.as_before("rollout 1", metrics, lambda _: Band(0.02, 2) if other else Band(1e-6))
    _rollout(partial(judge.must_be, "rollout 1"), found, by_id(again.chain))


def training(judge: Judge, again: replay.Replay) -> None:
    """Scores token by token, updates number by number, and the scores by the updated weights."""
    for step, scored, rows, updated in again.trained():
        place = f"score {step}"
        for name, distance in replay.farthest(rows, again.scores(step)).items():
            judge.must_be(place, f"{name}, farthest", distance, 0, FARTHEST[name])
        judge.as_before(place, scored, band_of)
        judge.as_before(f"update {step}", updated, band_of)


def other_settings(judge: Judge, again: replay.Replay) -> None:
    """The same with estimators, objectives and terms that the run does not use."""
    for name, scored, updated in again.otherwise():
        judge.as_before(f"score 1, {name}", scored, band_of)
        judge.as_before(f"update 1, {name}", updated, band_of)
    rows, scored = again.cooler()
    logp = replay.flat(rows, "logp")
    cooler = scored | {"logp": float(logp.mean()), "tokens": len(logp)}
    judge.as_before("score 1, cooler", cooler, lambda n: BANDS[n] if n in BANDS else Band(0.05, 1e-4))


REPLAYED = {"questions": data, "sampling": sampling, "scores and updates": training, "other settings": other_settings}


# -- a run, by itself and beside the baseline's -----------------------------------------------------


def consistent(judge: Judge, chain: Chain) -> None:
    """What holds in every step on every machine."""
    rows = runs.write_metrics(chain)
    judge.must_be("run", "steps", len(rows), chain.config.run.steps)
    table = by_id(chain)
    asked: list[int] = []
    for row in rows:
        step = row["step"]
        rollouts = read_rows(chain.rollout(step).path / ROLLOUTS, Rollout)
        scores = read_rows(chain.score(step).path / SCORES, Scored)
        _rollout(partial(judge.must_be, f"rollout {step}"), rollouts, table)
        asked += [group.position for group in rollouts]
        _score(partial(judge.must_be, f"score {step}"), chain, rollouts, scores)
        _update(partial(judge.must_be, f"update {step}"), chain, row)
    judge.must_be("run", "prompts used twice", len(asked) - len(set(asked)), 0)
    found = sum(row["rollout/groups_informative"] for row in rows)
    left = found - len(asked) - rows[-1]["rollout/groups_surplus"]
    judge.must_be("run", "groups that got lost", left, 0)


def by_id(chain: Chain) -> dict[str, Sample]:
    """The training questions."""
    table = SampleTable(chain.prepare.path / "train.parquet")
    return {sample.id: sample for sample in table.without_images()}


Demand = Callable[..., None]


def _rollout(demand: Demand, rollouts: list[Rollout], table: dict[str, Sample]) -> None:
    right = [[o == "correct" for o in group.outcome] for group in rollouts]
    says_so = [
        [(extract_answer(text) or "").strip() == table[group.sample_id].answer for text in group.response]
        for group in rollouts
    ]
    demand("groups of one outcome", sum(len(set(marks)) == 1 for marks in right), 0)
    demand("answers judged wrongly", np.mean(np.not_equal(right, says_so)), 0, Band(absolute=0.02))
    demand("rewards not of outcome", np.mean(np.not_equal(right, [g.reward for g in rollouts])), 0)


def _score(demand: Demand, chain: Chain, rollouts: list[Rollout], scores: list[Scored]) -> None:
    kept, lengths, upside_down, means = [], [], 0, []
    for group in scores:
        for perception, keep in zip(group.perception, group.keep, strict=True):
            order = np.argsort(perception)
            kept.append(sum(keep))
            lengths.append(len(keep))
            dropped = [perception[i] for i in order if not keep[i]]
            chosen = [perception[i] for i in order if keep[i]]
            upside_down += bool(dropped) and dropped[-1] > chosen[0]
            means.append(np.mean(perception))
    fraction = Fraction(str(chain.config.score.keep_fraction))
    demand("kept tokens", sum(kept), sum(ceil(fraction * length) for length in lengths))
    demand("responses filtered wrongly", upside_down, 0)
    gap = np.abs(np.array(means) - replay.flat(scores, "dependency")).max()
    demand("dependency, from its mean", gap, 0, Band(absolute=1e-4))
    demand("tokens without their look", np.mean(replay.flat(scores, "perception") < -1e-3), 0)
    engine = np.abs(replay.flat(rollouts, "logp") - replay.flat(scores, "old_logp")).max()
    demand("engine's log-probs, gap", engine, 0, Band(absolute=1e-3))


def _update(demand: Demand, chain: Chain, row: Numbers) -> None:
    demand("learning_rate", row["update/learning_rate"], chain.config.update.learning_rate)
    demand("trained_share", row["update/trained_share"], row["score/kept_share"], Band(1e-5))
    # The policy has moved since surplus groups were sampled; by one update, so not far.
    old = bool(row["score/surplus_share"])
    demand("ratio_mean", row["update/ratio_mean"], 1, Band(absolute=0.01 if old else 1e-5))
    demand("policy_kl", row["update/policy_kl"], 0, Band(absolute=1e-3 if old else 1e-6))
    demand("loss is finite", np.isfinite(row["update/loss"]), 1)
    demand("advantage_std", row["update/advantage_std"], _advantage_std(chain), Band(0.01))


def _advantage_std(chain: Chain) -> float:
    """Of groups of G that are scaled to variance 1: (G - 1) squares of mean 1 among G."""
    groups, size = chain.config.update.batch_prompts, chain.config.rollout.samples_per_prompt
    return float(np.sqrt(groups * (size - 1) / (groups * size - 1)))


def weights(judge: Judge, chain: Chain) -> None:
    """How far the optimizer has carried the weights, in as many steps as there were updates."""
    start = load_file(settings.shipped_config("tiny_model") / "model.safetensors")
    for step in checkpoints.saved(chain):
        folder = chain.checkpoint(step).path
        optimizer = load_file(folder / checkpoints.TRAINER / OPTIMIZER)
        taken = [float(v) for name, v in optimizer.items() if name.startswith("step/")]
        judge.must_be(f"checkpoint {step}", "fewest optimizer steps", min(taken), step)
        judge.must_be(f"checkpoint {step}", "most optimizer steps", max(taken), step)
        model = load_file(folder / checkpoints.MODEL / "model.safetensors")
        moved = sum(float(((model[n] - start[n]).astype(float) ** 2).sum()) for n in start) ** 0.5
        judge.as_before(f"checkpoint {step}", {"distance moved": moved}, lambda _: Band(0.05))


def sampled_again(judge: Judge, chain: Chain) -> None:
    """Responses are those of the weights they are said to come from: saved ones say the same."""
    config, last = chain.config, chain.config.run.steps
    cell = chain.cell(last, "glyphs")
    how, asking, table = cell.how, cell.how.asking, questions(cell)
    policy = load_policy(config, chain.checkpoint(last).path / checkpoints.MODEL)
    rows = table[:RESAMPLED]
    said = HuggingFaceEngine(policy).generate(
        rows,
        [(how.benchmark, row.id) for row in rows],
        Sampling(asking.temperature, asking.top_p, asking.top_k, asking.max_new_tokens, how.samples, how.seed),
    )
    policy.encoder.close()
    journal = read_journal(cell.journal)
    other = [
        entry.response != response.text
        for row, responses in zip(rows, said, strict=True)
        for entry, response in zip(journal[row.id], responses, strict=True)
    ]
    judge.must_be(f"evaluation {last}", "answers of other weights", float(np.mean(other)), 0, FLIPS)

    before = chain.config.checkpoint.every
    rollouts = read_rows(chain.rollout(before + 1).path / ROLLOUTS, Rollout)
    fresh = [group for group in rollouts if group.step == before + 1]
    train = SampleTable(chain.prepare.path / "train.parquet")
    policy = load_policy(config, chain.checkpoint(before).path / checkpoints.MODEL)
    how_trained = config.rollout
    again = HuggingFaceEngine(policy).generate(
        [train.by_id(group.sample_id) for group in fresh],
        [(before + 1, group.position) for group in fresh],
        Sampling(
            how_trained.temperature,
            how_trained.top_p,
            how_trained.top_k,
            how_trained.max_new_tokens,
            how_trained.samples_per_prompt,
            config.seed,
        ),
    )
    policy.encoder.close()
    other = [
        ids != response.ids
        for group, responses in zip(fresh, again, strict=True)
        for ids, response in zip(group.response_ids, responses, strict=True)
    ]
    judge.must_be(f"rollout {before + 1}", "responses of other weights", float(np.mean(other)), 0, FLIPS)


RUN_BANDS = {
    "accuracy": Band(absolute=0.04),  # 0.008
    "entropy": Band(0.05),  # 0.5 %
    "perception": Band(0.06),  # 1.1 %
    "grad_norm": Band(0.5),  # 9.4 %
    "response tokens": Band(0.03),  # 0.6 %
}
"""Of a run's averages, each with the largest difference between runs whose tokens part ways early."""


def course(judge: Judge, chain: Chain) -> None:
    """The run beside the baseline's, on average over its steps: tokens differ after a while."""
    rows = runs.write_metrics(chain)
    names = {
        "accuracy": "rollout/accuracy",
        "entropy": "score/entropy",
        "perception": "score/perception_mean",
        "grad_norm": "update/grad_norm",
        "response tokens": "rollout/response_tokens_mean",
    }
    means = {name: float(np.mean([row[key] for row in rows])) for name, key in names.items()}
    judge.as_before("run, mean of steps", means, RUN_BANDS.__getitem__)
    start = chain.eval(0, "glyphs").manifest()
    assert start is not None
    accuracy = {"accuracy": start["metrics"]["accuracy"]}
    judge.as_before("evaluation 0", accuracy, lambda _: Band(absolute=0.005))


WHOLE_RUN = {"every step": consistent, "weights": weights, "sampled again": sampled_again, "course": course}


# -- command line ------------------------------------------------------------------------------------


def check(judge: Judge, parts: dict[str, Callable[[], None]]) -> Iterator[str]:
    """Go through the parts until one is off; yields what there is to say."""
    for name, part in (parts | {"nothing left out": judge.nothing_left_out}).items():
        before = judge.looked_at
        try:
            part()
        except UserError as error:  # a stage's own guard
            judge.off.append(str(error))
        if judge.off:
            yield f"regression  {name}"
            yield from (f"            {line}" for line in judge.off)
            return
        if judge.looked_at > before:
            yield f"fine        {name}: {judge.looked_at - before} numbers"


def read_numbers(folder: Path) -> dict[str, dict[str, Numbers]]:
    """The baseline's numbers: ``replay`` or ``run`` -> place -> number -> value.

    Raises:
        UserError: there are none.
    """
    file = folder / NUMBERS
    try:
        found = json.loads(file.read_text())
        return {
            what: {
                place: {name: float(value) for name, value in numbers.items()} for place, numbers in found[what].items()
            }
            for what in ("replay", "run")
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(str(file), f"is no baseline ({error}).", "Make it: make baseline") from error


def parts_of(what: str, judge: Judge, out: Path) -> dict[str, Callable[[], None]]:
    """The parts of ``replay``, or of ``run``, by name."""
    config = settings.load(Path(CONFIG), SETTINGS)
    if what == "run":
        chain = Chain(config, out / RUN)
        return {name: partial(part, judge, chain) for name, part in WHOLE_RUN.items()}
    shutil.rmtree(out / replay.RUN, ignore_errors=True)
    again = replay.Replay(config, BASELINE, out)
    return {name: partial(part, judge, again) for name, part in REPLAYED.items()}


def record(out: Path) -> Iterator[str]:
    """Make the baseline from a finished run; yields what there is to say."""
    chain = Chain(settings.load(Path(CONFIG), SETTINGS), out / RUN)
    replay.record(chain, RECORDED_STEPS, BASELINE)
    found = {}
    for what in ("replay", "run"):
        judge = Judge(None)
        yield from check(judge, parts_of(what, judge, out))
        if judge.off:
            return
        found[what] = judge.found
    write_atomic(BASELINE / NUMBERS, json.dumps(found, indent=1) + "\n")
    report = chain.run / "eval" / f"{chain.config.run.steps:04d}" / REPORT
    shutil.copy(report, BASELINE.with_suffix(".json"))
    yield f"recorded    {BASELINE}"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("what", choices=("replay", "run", "record"))
    parser.add_argument("--out", type=Path, default=Path("build/regression"))
    asked = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    said = record(asked.out)
    if asked.what != "record":
        try:
            judge = Judge(read_numbers(BASELINE)[asked.what])
        except UserError as error:
            sys.stderr.write(f"error       {error}\n")
            sys.exit(2)
        said = check(judge, parts_of(asked.what, judge, asked.out))
    off = False
    for line in said:
        off |= line.startswith("regression")
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
    sys.exit(1 if off else 0)


if __name__ == "__main__":
    main()
