"""Every config that docs/published.md names under configs/paper/ trains: `make paper-configs`.

    python tests/tools/paper_configs.py               # all of them, two steps each of the embedded default
    python tests/tools/paper_configs.py table2_tas    # one

The settings in which a row differs from its base are put over configs/tiny.yaml, in `mode: published`.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import time
from pathlib import Path

from pipelines.chain import Chain
from pipelines.config import settings
from pipelines.run import train
from pipelines.watch import Silent

PAGE = Path(__file__).parents[2] / "docs" / "published.md"

SHORT = (
    "run.steps=2",
    "run.device=cpu",
    "run.threads=1",
    "data.glyphs.train=256",
    "data.glyphs.validation=8",
    "data.glyphs.test=8",
    "checkpoint.validation_samples=0",
    "eval.benchmarks=[]",
)
"""Steps of the default's size, and little beside them."""


def rows() -> dict[str, tuple[str, ...]]:
    """Config -> the settings in which it differs from its base, as the page has them."""
    found = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 5 and (name := re.fullmatch(r"`(\S+\.yaml)`", cells[3])):
            found[name[1]] = tuple(re.findall(r"`(\S+=\S+)`", cells[4]))
    return found


def train_two_steps(name: str, folder: Path, *more: str) -> list[dict[str, float]]:
    """The metrics of both steps; ``more`` settings go over the row's."""
    asked = ["mode=published", *rows()[name], *SHORT, *more]
    run = folder / Path(name).stem
    train(Chain(settings.load(None, asked), run), Silent())
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def main() -> None:
    """Command line."""
    asked = [f"{settings.PAPER}/{name.removesuffix('.yaml')}.yaml" for name in sys.argv[1:]]
    with tempfile.TemporaryDirectory() as folder:
        for name in asked or [name for name in rows() if name.startswith(f"{settings.PAPER}/")]:
            begun = time.monotonic()
            steps = train_two_steps(name, Path(folder))
            assert len(steps) == 2, f"{name}: {len(steps)} steps"
            norms = ", ".join(f"{step['update/grad_norm']:.3g}" for step in steps)
            print(f"{name:36} gradient norms {norms}   {time.monotonic() - begun:.0f} s", flush=True)


if __name__ == "__main__":
    main()
