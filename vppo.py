"""vppo from Python: what the commands do, as functions that return values and print nothing.

    import vppo

    p = vppo.perceive("Qwen/Qwen2.5-VL-3B-Instruct", "chart.png", "Which bar is the tallest?")
    p.tokens, p.perception, p.to_html("look.html")

    run = vppo.train({"run.steps": 5})
    run.metrics(), run.tokens(), run.evaluations()      # Arrow tables

What is wrong with the input raises ``vppo.UserError``, with the place, the problem and the fix. Nothing heavy is
imported before it is used. docs/python.md shows how these go together.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.errors import UserError

if TYPE_CHECKING:
    from pipelines.perceive.many import score as score
    from pipelines.perceive.one import Perception as Perception
    from pipelines.perceive.one import perceive as perceive
    from pipelines.watch import Watch
    from vppo_cli.opened import Run as Run

__all__ = ("Perception", "Run", "UserError", "open_run", "perceive", "score", "train")

_PLACES = {
    "Perception": "pipelines.perceive.one",
    "Run": "vppo_cli.opened",
    "perceive": "pipelines.perceive.one",
    "score": "pipelines.perceive.many",
}


def __getattr__(name: str) -> Any:
    """What is used for the first time."""
    from importlib import import_module

    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    _prepare()
    found = globals()[name] = getattr(import_module(_PLACES[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})


def _prepare() -> None:
    """Environment variables that the user has not set, before anything heavy is imported."""
    from vppo_cli.app import set_environment

    set_environment()


def train(
    config: str | Path | Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    *,
    run: str | None = None,
    until: int | None = None,
    watch: Watch | None = None,
    show: bool = False,
) -> Run:
    """Train as ``vppo train`` does: every step that is not on disk, evaluations at the end.

    The run is named after its settings, so the same call goes on with the same run, and does nothing once that is
    finished; a process that was killed loses nothing that was committed. It lies in ``runs/`` or ``VPPO_RUNS``.

    Args:
        config: a YAML file, or the name of one that comes with the package (``"ci.yaml"``); or settings on top of the
            embedded default, dotted or nested: ``{"run.steps": 5}``, ``{"run": {"steps": 5}}``; None: the embedded
            default.
        settings: settings on top of those, likewise.
        run: the run's name; None: after its settings.
        until: stop after this training step; None: the last.
        watch: told of progress (pipelines/watch.py).
        show: print what the command prints.

    Returns:
        The run, opened.

    Raises:
        UserError: a setting, file, model or data set that cannot be used.
    """
    _prepare()
    from pipelines.config.imports import one_command
    from pipelines.config.settings import dotted
    from pipelines.ranks.ranks import ranks
    from pipelines.run import train as make_all
    from pipelines.watch import Silent
    from vppo_cli.choose import begun, to_train
    from vppo_cli.opened import Run
    from vppo_cli.screen.live import watching
    from vppo_cli.screen.results import write_reports

    if not isinstance(config, str | os.PathLike | Mapping | None):
        raise UserError(
            f"config {config!r}", f"is of type {type(config).__name__}.", "A YAML file, or a dict of settings."
        )
    if not isinstance(settings, Mapping | None):
        raise UserError(f"settings {settings!r}", f"is of type {type(settings).__name__}.", "A dict: {'run.steps': 5}.")
    if not isinstance(run, str | None):
        raise UserError(f"run {run!r}", f"is of type {type(run).__name__}.", "The run's name.")
    given = [*(dotted(config) if isinstance(config, Mapping) else ()), *dotted(settings)]
    path = None if config is None or isinstance(config, Mapping) else Path(config)
    everyone = ranks()
    with one_command():
        chain, notes = everyone.on_main(lambda: begun(to_train(run, path, given, new=True)))
        if show:
            with watching(chain, as_json=False) as shown:
                shown.begin()
                for note in notes:
                    shown.note(note)
                made = make_all(chain, shown, until=until)
        else:
            silent = watch or Silent()
            for note in notes:
                silent.note(note)
            made = make_all(chain, silent, until=until)
        if everyone.main:
            write_reports(chain, again=bool(made))
        return Run.open(chain.run)


def open_run(run: str | Path | None = None) -> Run:
    """A run on disk; nothing in it is changed.

    Args:
        run: its name in ``runs/`` or ``VPPO_RUNS``, or the path of its folder; None: the latest.

    Raises:
        UserError: there is no such run, or its settings are damaged.
    """
    from vppo_cli.opened import Run

    return Run.open(run)
