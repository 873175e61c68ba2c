"""Where lm-eval finds the tasks: the package's own folder, or one with tasks of one's own written beside them."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from evals.benchmarks.base import Benchmark
from evals.benchmarks.table import BENCHMARKS, OWN, canonical, find
from evals.profiles import evaluation
from pipelines.config import settings
from pipelines.config.schema import Config, SourceConfig
from pipelines.disk.files import make_folder, write_atomic
from pipelines.errors import UserError
from pipelines.prepare.places import at_home, exists

TASKS = Path(__file__).with_name("tasks")
"""The tasks of the built-in benchmarks, in a checkout and in an installed wheel."""

USAGE = "python -m evals.lm_eval tasks"


def main(arguments: Sequence[str]) -> None:
    """Print the folder for ``--include_path``; with DIR, make it first.

    Raises:
        UserError: the config cannot be read, names no task of one's own, or DIR holds something else.
    """
    parser = argparse.ArgumentParser(USAGE, description=main.__doc__)
    parser.add_argument("folder", metavar="DIR", nargs="?", help="write the tasks here, those of FILE among them")
    parser.add_argument("--config", metavar="FILE", help="whose eval.sources, and eval.benchmarks by import path")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of it")
    given = parser.parse_args(arguments)
    if given.folder is None:
        if given.config or given.set:
            raise UserError(
                USAGE, "where are these tasks to be written?", f"Such as {USAGE} my_tasks --config my.yaml."
            )
        print(TASKS)
        return
    config = settings.load(Path(given.config) if given.config else None, given.set)
    write(Path(given.folder), config)
    print(Path(given.folder).resolve())


def write(folder: Path, config: Config) -> list[str]:
    """Write a task for each test set and each imported benchmark of a config, and the package's beside them.

    Returns:
        The names of the tasks of one's own.

    Raises:
        UserError: there are none, or a file there is none of ours.
    """
    own = {f"vppo_{name}": task for name, task in _own(config)}
    if not own:
        raise UserError(
            USAGE,
            "the settings name no test set and no benchmark of yours.",
            "Name some in eval.sources, or by import path in eval.benchmarks.",
        )
    make_folder(folder)
    for file in sorted(TASKS.glob("*.yaml")):
        shutil.copyfile(file, folder / file.name)
    for name, task in own.items():
        write_atomic(folder / f"{name}.yaml", yaml.safe_dump({"include": "_common.yaml", "task": name, **task}))
    return list(own)


def _own(config: Config) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name -> what its task has besides what all share; asked as ``vppo eval`` asks it."""
    names = canonical((*config.eval.sources, *config.eval.benchmarks), config)
    for name in names:
        if name in BENCHMARKS or name in OWN:
            continue
        (found, part), how = find(name, config), evaluation(config, name)
        if how.asking.system_prompt:
            raise UserError(
                f"data.system_prompt: {how.asking.system_prompt[:80]!r}",
                f"a task of lm-eval has no system's turn, and {name} is asked with one.",
                "Leave it out (--set data.system_prompt=''), and give it to lm-eval as --system_instruction.",
            )
        given: dict[str, Any] = {"data": {"instruction": how.asking.instruction}}
        folders = {"image_folders": [_absolute(folder) for folder in config.data.image_folders]}
        if isinstance(found, Benchmark):
            where = config.eval.data_dir
            given["eval"] = {"benchmarks": [part]} | ({"data_dir": _absolute(where)} if where else {})
            given["data"] |= folders if where and config.data.image_folders else {}
        else:
            given["eval"] = {"sources": {name: _standalone(found, config)}}
            given["data"] |= config.data.model_dump(mode="json", include={"extra"}) | folders
        yield (
            name,
            {
                "task_alias": found.title if isinstance(found, Benchmark) else name,
                "dataset_kwargs": {"benchmark": name, "grader": how.graders[0], "settings": given},
                "generation_kwargs": {
                    "do_sample": True,
                    "temperature": how.asking.temperature,
                    "top_p": how.asking.top_p,
                    "top_k": how.asking.top_k,
                    "max_gen_toks": how.asking.max_new_tokens,
                    "until": [],
                },
            },
        )


def _standalone(one: SourceConfig, config: Config) -> dict[str, Any]:
    """A test set that means the same from any folder, and in any config."""
    columns = config.data.columns if one.columns is None else one.columns
    return one.model_dump() | {"source": _absolute(one.source), "columns": columns}


def _absolute(where: str) -> str:
    path = at_home(where)
    return str(path.resolve()) if exists(path) else where
