"""docs/settings.md and docs/commands.md, from the code: ``python tests/tools/reference_pages.py`` (make docs)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import reduce
from inspect import getdoc
from json import dumps
from pathlib import Path
from typing import Any

import typer

from pipelines.config.schema import Config
from pipelines.config.settings import load, setting_names
from vppo_cli.app import app

DOCS = Path(__file__).parents[2] / "docs"

SETTINGS = """# Settings

Made by `make docs`, from the code. Every setting, its default, what it means, and whose number it is: "Paper" is arXiv
2510.09285, "authors' code" and "authors' evaluation" their repositories; where nothing is said it is ours
(`pipelines/config/constants.csv`).

A config file says what is to differ; `base: FILE` starts from another one, as `configs/tiny_dapo.yaml` does;
`--set section.key=value` goes before both. Without `--config` a run starts from
[configs/tiny.yaml](../configs/tiny.yaml), not from these defaults. `vppo config --config FILE` prints what a file
comes to.

`data.columns`, `update.constants`, `eval.sources` and a test set's own `columns` are mappings by free names. With a
name behind a dot, one entry is set and the others stay, `--set data.columns.answer=gold`; without it, the whole is
replaced: `--set 'data.columns={answer: gold}'`, and likewise where a file is over its `base:`.
"""

COMMANDS = """# Commands

Made by `make docs`, from the code; `vppo COMMAND --help` says the same. Exit codes: 0 done, 1 a fault or a regression
(`vppo compare`), 2 your input, with what to do, 130 interrupted. Runs are in `runs/`, or where `VPPO_RUNS` says.
"""


def cell(text: str) -> str:
    """Text for a table of Markdown: code stays code, and nothing else is a tag or a column."""
    parts = re.split(r"(`[^`]+`)", " ".join(text.replace("``", "`").split()))
    plain = [part if part.startswith("`") else part.replace("<", "&lt;").replace("*", r"\*") for part in parts]
    return "".join(plain).replace("|", r"\|")


def section(title: str, about: Iterable[str], head: str, rows: Iterable[str]) -> str:
    """A heading, its paragraphs, and a table."""
    columns = head.count("|") - 1
    return "\n".join([f"## {title}\n", *(f"{text}\n" for text in about), head, "|---" * columns + "|", *rows]) + "\n"


def settings_page() -> str:
    """A table for each section of the config."""
    defaults, rows = load(base={}), dict[str, list[str]]()
    for name, about in setting_names():
        value = dumps(reduce(getattr, name.split("."), defaults), ensure_ascii=False)
        rows.setdefault(name.rpartition(".")[0], []).append(f"| `{name}` | `{value}` | {cell(about)} |")
    parts = [SETTINGS]
    for name, lines in rows.items():
        kind = type(reduce(getattr, name.split("."), defaults)) if name else Config
        title = f"`{name}`" if name else "The run"
        parts.append(section(title, [cell(getdoc(kind) or "")], "| setting | default | meaning |", lines))
    return "\n".join(parts)


def options(command: Any) -> Iterator[str]:
    """The rows of a command's table."""
    for one in command.params:
        about, default = getattr(one, "help", None) or "", one.default
        if one.param_type_name == "option":
            name = (one.get_help_record(typer.Context(command)) or ("", ""))[0]
            name = re.sub(r" <(?:int|float)[^>]*>", " N", name).replace(" <str>", " TEXT")
        else:
            name = one.metavar or (one.name or "").upper()
        if default is not None and not isinstance(default, bool) and "default" not in about:
            about = f"{about.removesuffix('.')} (default: {default})."
        yield f"| `{name}` | {cell(about)} |"


def described(text: str) -> Iterator[str]:
    """A command's help as paragraphs, its examples as a block of code."""
    about, _, examples = text.partition("[bold]Examples[/bold]")
    yield from map(cell, about.strip().split("\n\n"))
    if examples:
        yield "\n".join(["```", *filter(None, map(str.strip, examples.replace(r"\[", "[").splitlines())), "```"])


def commands_page() -> str:
    """A section for each command."""
    parts, context = [COMMANDS], typer.Context(app)
    for name in app.list_commands(context):
        command = app.get_command(context, name)
        rows = options(command)
        parts.append(section(f"`vppo {name}`", described(command.help or ""), "| option | meaning |", rows))
    return "\n".join(parts)


PAGES = {"settings.md": settings_page, "commands.md": commands_page}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), encoding="utf-8")
