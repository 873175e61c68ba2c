"""Which run a command is about, and with which settings."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evals.benchmarks.table import canonical
from pipelines import runs
from pipelines.chain import ANSWERS, TRAINING, Chain
from pipelines.config import settings
from pipelines.config.hub import as_begun
from pipelines.errors import UserError


@dataclass(frozen=True)
class Choice:
    """A run as it stands (``chain``) and as it is asked for now (``wanted``); the same if new.

    What trained it stands as the code of then made it; its evaluations are today's.
    """

    chain: Chain
    wanted: Chain
    note: str = ""

    @property
    def run(self) -> Path:
        return self.wanted.run

    @property
    def made(self) -> Chain:
        """The run as it stands, its evaluations too as the code of then made them."""
        return runs.as_made(self.chain.config, self.run, *TRAINING, *ANSWERS)


def choose(name: str | None, config: Path | None, overrides: Sequence[str], *, new: bool) -> Choice:
    """Find the run, or name a new one after its settings.

    Args:
        name: the run's name; none: with ``new`` the run of these settings, else the latest run.
        config: a config file; none: the run's own, or the embedded default for a new run.
        overrides: ``key=value`` settings on top.
        new: whether the command may start a run.
    """
    note = ""
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
        path, note = runs.run_of(asked)
    else:
        path = runs.find_run(name)
        asked = settings.load(config or runs.config_file(path), overrides)
    canonical(asked.eval.benchmarks)
    stored = asked
    if (path / runs.CONFIG).is_file():
        try:
            stored = runs.read_config(path)
        except UserError:
            if config is None:
                raise  # given anew, all settings are known
    asked = as_begun(asked, stored, {text.partition("=")[0].strip() for text in overrides})
    wanted = Chain(asked, path)
    chain = runs.as_made(stored, path, *TRAINING)
    same = stored == asked and chain.versions == wanted.versions
    return Choice(wanted if same else chain, wanted, note)
