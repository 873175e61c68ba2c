"""What a reward of one's own gave in an evaluation, question by question, for its differences."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from evals.grade import ANSWERS
from pipelines.disk.files import find
from pipelines.disk.records import RESULTS, parquet_errors, reward_column
from pipelines.disk.step import checked, read_manifest
from pipelines.words import who_has

REWARDS = "rewards"
"""Key of results: the mean of each list by its name."""

BY_QUESTION = "rewards_by_question"
"""Key that ``with_rewards`` adds: ``of``, which function, and ``values``, list -> question -> mean of its samples."""


def with_rewards(result: dict[str, Any], file: Path) -> dict[str, Any]:
    """A result with its rewards by question, from the table of answers that lies by it; as it is where there is none.

    Args:
        result: what ``file`` holds of one benchmark.
        file: a results.json, beside which the answers are; or a report.json, beside the folders that it was made of.

    Raises:
        UserError: the answers are damaged.
    """
    folder = _folder(result, file) if REWARDS in result else None
    if folder is None or not (folder / ANSWERS).is_file():
        return result
    names = list(result[REWARDS])
    with parquet_errors(folder / ANSWERS):
        columns = ["question", *map(reward_column, names)]
        table = pq.read_table(checked(folder / ANSWERS), columns=columns, page_checksum_verification=True)
    questions = table["question"].to_pylist()
    values: dict[str, dict[str, float]] = {}
    for name in names:
        samples: dict[str, list[float]] = {}
        for question, value in zip(questions, table[reward_column(name)].to_pylist(), strict=True):
            samples.setdefault(question, []).append(value)
        values[name] = {question: float(np.mean(given)) for question, given in samples.items()}
    return result | {BY_QUESTION: {"of": _function(read_manifest(folder)["settings"]), "values": values}}


def _folder(result: dict[str, Any], file: Path) -> Path | None:
    """Where the answers are that a result was counted from."""
    if file.name == RESULTS:
        return file.parent
    for results in find(file.parent, f"{result['benchmark']}-*/{RESULTS}"):
        there = json.loads(checked(results).read_bytes())
        if all(there.get(key) == result.get(key) for key in ("policy", "right", REWARDS)):
            return results.parent
    return None


def _function(settings: dict[str, Any]) -> str:
    """Whose rewards they are: the function, its source, and how the answers that it got were graded."""
    name = settings.get("reward.function", "")
    source = settings.get(f"source of {name}", "")[:8]
    return f"{name} {source}{'' if settings.get('published.choice_rule', True) else ', without choice_rule'}"


def comparable(benchmark: str, asked: Mapping[str, dict[str, Any]]) -> tuple[list[str], list[str]]:
    """The lists whose differences mean something, and why others' do not: only those of one function do.

    Args:
        asked: whose result -> the result, as ``with_rewards`` gives it.
    """
    if not all(REWARDS in result for result in asked.values()):
        return [], []
    apart = [who for who, result in asked.items() if BY_QUESTION not in result]
    if apart:
        where = f"question by question they are in {ANSWERS}, which is not beside the results of {', '.join(apart)}"
        return [], [f"{benchmark}: rewards are not compared: {where}"]
    functions: dict[str, list[str]] = {}
    for who, result in asked.items():
        functions.setdefault(result[BY_QUESTION]["of"], []).append(who)
    if len(functions) > 1:
        what = "rewards are not compared: they are of other functions, or sources of one"
        return [], [f"{benchmark}: {what}: {who_has(functions)}"]
    first, *others = (result[BY_QUESTION]["values"] for result in asked.values())
    return [name for name in first if all(name in other for other in others)], []


def rewards_of(result: dict[str, Any], name: str, questions: Sequence[str]) -> list[float]:
    """Of each question the mean of a list over its samples."""
    values = result[BY_QUESTION]["values"][name]
    return [values[question] for question in questions]
