"""Every objective trains, and its gradient does not depend on how it is computed: `make objectives-proof`.

    python tests/tools/objectives_proof.py                     # all of them, the embedded default to its end
    python tests/tools/objectives_proof.py vgpo papo --steps 3 # two, three steps

For each objective of the table and each of its variants, with all settings the default's but the objective:

- the embedded default (configs/tiny.yaml) is trained to its end, or for ``--steps`` steps (0: not at all), without
  its benchmarks;
- of one step, scored once, the gradient with ``model.shared_prefix`` off is that with it on, within ``MOST`` of the
  largest entry of the whole gradient. (tests/scale/objectives.py does the same for DeepSpeed.)

Prints a line a case; exit code 0: all hold.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from naive_sweep import FEW, PROMPTS, questions, rollouts, scored, table_of
from unpublished import UNPUBLISHED

from pipelines.chain import Chain
from pipelines.config import settings
from pipelines.config.schema import Config
from pipelines.disk.records import Rollout, SampleTable, Scored
from pipelines.embedded.glyphs import GlyphsOptions, make_samples
from pipelines.model.load import load_policy
from pipelines.model.policy import Policy
from pipelines.objectives.table import OBJECTIVES, ROLES
from pipelines.run import train
from pipelines.update.torch_engine import TorchTrainer
from pipelines.watch import Silent

MOST = 1e-5
"""Difference of two gradients' entries over the largest entry of all, at most."""

BEFORE = 3
"""Optimizer steps that count as made before the one whose gradient is taken."""

Gradient = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Case:
    """An objective in one of its forms."""

    name: str
    variant: str | None

    def __str__(self) -> str:
        return f"{self.name} ({self.variant})" if self.variant else self.name

    @property
    def settings(self) -> list[str]:
        """What differs from the default."""
        row = OBJECTIVES[self.name]
        constants = ", ".join(f"{key}: {value}" for key, value in UNPUBLISHED.get(self.name, {}).items())
        return [
            f"update.objective={self.name}",
            *([f"update.variant={self.variant}"] if self.variant else []),
            *([f"update.constants={{{constants}}}"] if constants else []),
            *([f"score.perturbation={row.perturbation}"] if row.perturbation else []),
        ]

    @property
    def needs_truth(self) -> bool:
        """Whether it can be had for embedded questions alone, as they are."""
        row = OBJECTIVES[self.name]
        return ROLES in row.needs or row.perturbation == "evidence"


def cases(names: Sequence[str] = ()) -> list[Case]:
    """All of the table, or those of these names."""
    rows = {name: row for name, row in OBJECTIVES.items() if not names or name in names}
    return [Case(name, variant) for name, row in rows.items() for variant in row.variants or (None,)]


def taken(trainer: TorchTrainer) -> Gradient:
    """The gradient of the optimizer step to come, before it is clipped."""
    kept: Gradient = {}
    step = trainer._step

    def keep() -> float:
        kept.update({name: p.grad.clone() for name, p in trainer.named if p.grad is not None})
        return step()

    trainer._step = keep  # type: ignore[method-assign]
    return kept


def gap(one: Gradient, other: Gradient) -> float:
    """The largest difference of two entries, over the largest entry."""
    assert one.keys() == other.keys()
    largest = max(value.abs().max().item() for value in other.values())
    assert largest > 1e-4  # else there is nothing to differ
    return max((one[name] - other[name]).abs().max().item() for name in other) / largest


class Bench:
    """One step: questions with one image, two and none, or embedded ones as they are; responses; scores."""

    def __init__(self, policy: Policy, folder: Path, *, truth: bool) -> None:
        self.policy = policy
        samples = make_samples("test", PROMPTS, 0, GlyphsOptions()) if truth else questions()
        folder.mkdir()
        self.table: SampleTable = table_of(samples, folder)
        self.groups: list[Rollout] = rollouts(policy, samples)
        self._scores: dict[str, list[Scored]] = {}

    def copy(self, config: Config) -> Policy:
        """A policy to be trained."""
        return Policy(copy.deepcopy(self.policy.model), self.policy.processor, config)

    def gradient(self, case: Case, *given: str) -> Gradient:
        """Of the objective's update; scored once for all of an objective."""
        config = settings.load(None, [*FEW, *case.settings, *given])
        key = str(case)
        if key not in self._scores:
            self._scores[key] = scored(config, self.groups, self.table, self.copy(config))
        trainer = TorchTrainer(self.copy(config), config)
        trainer.updates = BEFORE
        found = taken(trainer)
        trainer.update(self.groups, self._scores[key], self.table)
        return found


class Benches:
    """Both kinds, made when first needed."""

    def __init__(self, policy: Policy, folder: Path) -> None:
        self.policy, self.folder = policy, folder
        self._made: dict[bool, Bench] = {}

    def of(self, case: Case) -> Bench:
        """The one that the objective can be had for."""
        truth = case.needs_truth
        if truth not in self._made:
            self._made[truth] = Bench(self.policy, self.folder / f"truth-{truth}", truth=truth)
        return self._made[truth]

    def prefix_gap(self, case: Case) -> float:
        """Between the gradients without shared prefixes, in other micro-batches, and with them."""
        bench = self.of(case)
        alone = bench.gradient(case, "model.shared_prefix=false", "update.micro_batch_prompts=2")
        return gap(alone, bench.gradient(case))


def trained(case: Case, folder: Path, *given: str) -> list[dict[str, float]]:
    """The metrics of each step of the embedded default with this objective."""
    run = folder / str(case).replace(" ", "")
    train(Chain(settings.load(None, [*case.settings, "eval.benchmarks=[]", "run.device=cpu", *given]), run), Silent())
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def main(arguments: Sequence[str] | None = None, say: Callable[[str], None] = print) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("names", nargs="*", help="objectives; none: all")
    parser.add_argument("--steps", type=int, help="training steps; none: the default's, 0: none")
    parser.add_argument("--set", action="append", default=[], help="another setting of the training")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    held = True
    with tempfile.TemporaryDirectory() as place:
        benches = Benches(load_policy(settings.load(None, list(FEW))), Path(place))
        for case in cases(given.names):
            begun = time.monotonic()
            found = benches.prefix_gap(case)
            said = f"{case!s:24} shared prefix {found:.1e} of the largest entry"
            good = found <= MOST
            if given.steps != 0:
                length = [] if given.steps is None else [f"run.steps={given.steps}"]
                steps = trained(case, Path(place), *length, *given.set)
                fifth = max(len(steps) // 5, 1)
                first, last = (
                    sum(step["rollout/accuracy"] for step in part) / fifth for part in (steps[:fifth], steps[-fifth:])
                )
                skipped = sum(step.get("update/updates_skipped", 0) for step in steps)
                good = good and not skipped
                said += f"; {len(steps)} steps, accuracy of the first fifth {first:.3f}, of the last {last:.3f}"
            held = held and good
            say(f"{said}{'' if good else '   FAULT'}   {time.monotonic() - begun:.0f} s")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
