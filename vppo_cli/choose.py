"""Which run a command is about, and with which settings."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evals.benchmarks import canonical
from pipelines import runs, settings
from pipelines.chain import Chain
from pipelines.errors import UserError


@dataclass(frozen=True)
class Choice:
    """A run as it stands (``chain``) and as it is asked for now (``wanted``); the same if new."""

    chain: Chain
    wanted: Chain

    @property
    def run(self) -> Path:
        return self.wanted.run


def choose(name: str | None, config: Path | None, overrides: Sequence[str], *, new: bool) -> Choice:
    """Find the run, or name a new one after its settings.

    Args:
        name: the run's name; none: with ``new`` the run of these settings, else the latest run.
        config: a config file; none: the run's own, or the embedded default for a new run.
        overrides: ``key=value`` settings on top.
        new: whether the command may start a run.
    """
    named = name is not None and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}", name)
    if name is not None and not (named and (runs.runs_folder() / name / runs.CONFIG).is_file()):
        if not new:
            runs.find_run(name)  # says which runs there are
        if not named:
            raise UserError(
                f"--run {settings.shortened(name)}",
                "is not a name (at most 200 letters, digits, dot, dash, underscore).",
                "Runs lie in runs/ (VPPO_RUNS).",
            )  # fmt: skip
        asked = settings.load(config, overrides)
        path = runs.runs_folder() / name
    elif name is None and (new or config is not None):
        asked = settings.load(config, overrides)
        path = runs.runs_folder() / settings.run_name(asked)
    else:
        path = runs.find_run(name)
        asked = settings.load(config or path / runs.CONFIG, overrides)
    canonical(asked.eval.benchmarks)
    wanted = Chain(asked, path)
    stored = runs.read_config(path) if (path / runs.CONFIG).is_file() else asked
    return Choice(Chain(stored, path) if stored != asked else wanted, wanted)
