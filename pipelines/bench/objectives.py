"""What each objective is and costs: the table of docs/objectives.md, made from the objectives' own rows.

python -m pipelines.bench.objectives --out docs/objectives.md
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from pipelines.bench.measure import alternate, ratio
from pipelines.bench.modes import Sampled, sample
from pipelines.bench.pages import put
from pipelines.config import settings
from pipelines.disk.records import read_scores
from pipelines.model.load import load_policy
from pipelines.objectives.table import (
    OBJECTIVES,
    PERTURBED,
    SURROGATE_CONSTANTS,
    Objective,
    find_objective,
    needs,
    reads_twice,
)
from pipelines.objectives.table import passes as objective_passes
from pipelines.score.scoring import score
from pipelines.update.torch_engine import TorchTrainer
from pipelines.watch import Silent

HEAD = (
    "| `update.objective` | weight of a token's gradient | constants | needs | passes | cost | source | known from |",
    "|---|---|---|---|---|---|---|---|",
)
TRIED = 1.0
"""What a constant without a published value is set to, to measure the time it takes."""


def required(row: Objective) -> list[str]:
    """What a row cannot do without: its perturbation, and constants that have no published value."""
    views = [f"score.perturbation={row.perturbation}"] if row.perturbation else []
    names = [name for name, value in row.constants.items() if value is None]
    return views + ([f"update.constants={{{', '.join(f'{name}: {TRIED}' for name in names)}}}"] if names else [])


def passes(name: str) -> str:
    """Forward passes of a step over each response: without gradient, and with."""
    config = settings.load(None, [f"update.objective={name}", *required(OBJECTIVES[name])])
    without = 2 if reads_twice(config) else 1
    own = objective_passes(find_objective(name), config.update)
    return f"{without} + {2 if PERTURBED in own else 1}"


def described(name: str) -> list[str]:
    """The cells of an objective's row that its declaration decides."""
    row = OBJECTIVES[name]
    values = [f"{key} {'must be set' if value is None else f'{value:g}'}" for key, value in row.constants.items()]
    forms = [f"`variant`: {', '.join(row.variants)}"] if row.variants else []
    surrogates = [] if len(row.surrogates) > 1 else [f"surrogate {row.surrogates[0]} only"]
    views = [f"perturbation {row.perturbation} only"] if row.perturbation else []
    return [
        f"`{name}`",
        row.formula,
        ", ".join([*values, *forms, *surrogates, *views]) or "-",
        ", ".join(sorted(needs(settings.load(None, [f"update.objective={name}"])))) or "-",
        passes(name),
        row.source,
        row.known,
    ]


def costs(prompts: int, repeats: int) -> dict[str, float]:
    """Seconds of scoring and update by each objective over DAPO's, in turn on one sampled batch."""
    with tempfile.TemporaryDirectory() as folder:
        batch = sample(False, prompts, Path(folder) / "batch")
        ways = {name: _way(batch, name, Path(folder)) for name in OBJECTIVES}
        seconds = alternate(ways, repeats)
    return {name: ratio(times, seconds["dapo"]) for name, times in seconds.items()}


def _way(batch: Sampled, name: str, folder: Path) -> Callable[[], object]:
    given = [f"update.objective={name}", *required(OBJECTIVES[name])]
    config = settings.load(None, given, base=batch.config.model_dump(mode="json"))
    policy = load_policy(config)
    trainer = TorchTrainer(policy, config)
    out = folder / name
    out.mkdir()

    def step() -> None:
        score(config, 1, batch.groups, batch.samples, policy, out, Silent())
        trainer.update(batch.groups, read_scores(out, 1), batch.samples)

    return step


def table(prompts: int, repeats: int) -> str:
    """The table as Markdown."""
    found = costs(prompts, repeats)
    lines = [*HEAD]
    for name in OBJECTIVES:
        *cells, source, known = described(name)
        lines.append("| " + " | ".join([*cells, f"{found[name]:.2f}", source, known]) + " |")
    constants = ", ".join(f"{k} {v:g}" for values in SURROGATE_CONSTANTS.values() for k, v in values.items())
    return "\n".join(
        [
            *lines,
            "",
            "Passes: forward passes of a step over each response, without gradient + with. Cost: seconds of scoring",
            f"and update over DAPO's, the median of {repeats} turns in one run on the tiny model ({prompts} prompts x",
            f"{batch_size()} responses), by",
            f"`python -m pipelines.bench.objectives --prompts {prompts} --repeats {repeats}`",
            "(`make objectives`).",
            "",
            f"Constants of surrogates: {constants}.",
            "",
            "What goes with an objective in its publication, and is not set with it:",
            "",
            *(f"- `{name}`: {row.published_with}." for name, row in OBJECTIVES.items() if row.published_with),
        ]
    )


def batch_size() -> int:
    """Responses to a prompt of the embedded default."""
    return settings.load(None).rollout.samples_per_prompt


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--prompts", type=int, default=16, help="prompts of an update batch")
    parser.add_argument("--repeats", type=int, default=5, help="turns after one that warms up")
    parser.add_argument("--out", type=Path, help="a page with the table, to be written anew")
    arguments = parser.parse_args()
    text = table(arguments.prompts, arguments.repeats)
    if arguments.out is None:
        sys.stdout.write(text + "\n")
    else:
        put(arguments.out, "objectives", text)


if __name__ == "__main__":
    main()
