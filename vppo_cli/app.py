"""The command line: commands by name, exit codes, Ctrl-C, warnings. Nothing heavy is imported here."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import signal
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import typer
from typer.core import TyperGroup

from pipelines.errors import Interrupted, LockLost, UserError
from pipelines.ranks import heartbeat
from pipelines.ranks.launch import without
from pipelines.ranks.ranks import is_main, launched

COMMANDS = {
    "train": "vppo_cli.commands.train:train",
    "prepare": "vppo_cli.commands.prepare:prepare",
    "eval": "vppo_cli.commands.evaluate:evaluate",
    "perceive": "vppo_cli.commands.perceive:perceive",
    "compare": "vppo_cli.commands.compare:compare",
    "plan": "vppo_cli.commands.plan:plan",
    "status": "vppo_cli.commands.status:status",
    "runs": "vppo_cli.commands.runs:runs",
    "report": "vppo_cli.commands.report:report",
    "ledger": "vppo_cli.commands.ledger:ledger",
    "export": "vppo_cli.commands.export:export",
    "bench": "vppo_cli.commands.bench:bench",
    "config": "vppo_cli.commands.config:config",
    "doctor": "vppo_cli.commands.doctor:doctor",
}
"""Name -> the function that is the command. Its file is imported when it is asked for."""

ENVIRONMENT = {
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # see pipelines/model/determinism.py
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}
"""What the user has not set, before anything heavy is imported."""


class Commands(TyperGroup):
    """``COMMANDS``, each made when it is looked up."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Their names."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command; None where there is none, once all are made to suggest one that is alike."""
        for name in [cmd_name] if cmd_name in COMMANDS else COMMANDS:
            if name not in self.commands:
                alone = typer.Typer(add_completion=False, rich_markup_mode="rich")
                alone.command(name)(resolve_name(COMMANDS[name]))
                self.add_command(typer.main.get_command(alone))
        return self.commands.get(cmd_name)


app = Commands(
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train a vision-language model with reinforcement learning on verifiable rewards, and know "
    "what it looks at.\n\nStages: prepare -> rollout -> score -> update -> checkpoint -> eval. Each "
    "writes a folder to disk; what is there is not made again, whether a run is resumed, extended or "
    "given another setting. Runs lie in the folder that VPPO_RUNS names, or in runs/.\n\nStart with "
    "[bold]vppo train[/bold]: a tiny model learns to read digits on this machine. vppo --version tells which "
    "vppo this is.",
)


def _interrupt(number: int, _: object) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second Ctrl-C ends at once
    raise Interrupted(signal.Signals(number).name)


@contextlib.contextmanager
def _told_by_path() -> Iterator[None]:
    """What the system refused, anywhere, is told by the file's name, if the error has one."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        from pipelines.disk.files import failed_path, told

        nowhere = Path()
        if failed_path(nowhere, error) != nowhere and (found := told(nowhere, error)):
            raise found from error
        raise


class _Warnings(logging.Handler):
    """Shows what the packages log, on standard error: standard output may be JSON."""

    def emit(self, record: logging.LogRecord) -> None:
        from vppo_cli.screen.display import errors, labelled

        errors.print(labelled("warning", record.getMessage()), style="bold yellow")


def set_environment() -> None:
    """What the user has not set, before anything heavy is imported."""
    # Idle OpenMP threads spin some microseconds, then sleep: sleeping at once costs a third of a step,
    # and spinning on, where others want the processor, a factor of 100.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def _set_up() -> None:
    """What holds for the whole process: environment, streams, warnings, signals."""
    set_environment()
    for stream in (sys.stdout, sys.stderr):  # a terminal or pipe that lacks a character shows "?"
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    logging.getLogger("pipelines").addHandler(_Warnings(logging.WARNING))
    signal.signal(signal.SIGINT, _interrupt)
    if launched():  # whoever launched the ranks ends them by SIGTERM, and has said why
        sys.argv[1:] = without(sys.argv[1:], "--local_rank")  # which deepspeed adds
    else:
        signal.signal(signal.SIGTERM, _interrupt)


def main() -> None:
    """Run the command line.

    Exit codes: 0 done, 1 a fault or a regression (compare), 2 the user's input, 130 interrupted.
    """
    _set_up()
    if sys.argv[1:] == ["--version"]:
        print(f"vppo {version('vppo')}")
        return
    try:
        with _told_by_path():
            app()
    except UserError as error:
        from vppo_cli.screen.display import show_error

        heartbeat.end(str(error))
        if heartbeat.speaks():
            show_error(error)
        sys.exit(2)
    except LockLost as error:
        from vppo_cli.screen.display import show_error

        heartbeat.end(str(error))
        show_error(UserError("lock", str(error)))
        sys.exit(1)
    except Interrupted:
        from vppo_cli.screen.display import show_interrupted

        heartbeat.end("interrupted")
        if is_main():
            show_interrupted()
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    except Exception as error:
        heartbeat.await_end(error)
        heartbeat.end(f"{type(error).__name__}: {error}")
        raise
    finally:
        heartbeat.end()
