"""What each stage has to write, and whether it did: looked at before a step is committed.

docs/artifacts.md says what the columns mean. More files and columns than these are a stage's own business.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.disk.records import (
    ADVANTAGES,
    RESULTS,
    ROLLOUTS,
    SCORES,
    STATISTICS,
    SURPLUS,
    Advantages,
    Look,
    Rollout,
    Sample,
    SampleTable,
    Scored,
    Statistics,
    check_columns,
    check_finite,
    named_columns,
    schema,
)
from pipelines.errors import UserError

TABLES: dict[str, dict[str, type]] = {
    "prepare": {"train.parquet": Sample, "validation.parquet": Sample, "test.parquet": Sample},
    "rollout": {ROLLOUTS: Rollout, SURPLUS: Rollout},
    "score": {SCORES: Scored, STATISTICS: Statistics, "looks.parquet": Look},
    "update": {ADVANTAGES: Advantages},
}
"""Stage -> its Parquet files and their rows."""

OTHERS = {"rollout": ("next.json",), "checkpoint": ("model/config.json", "trainer"), "eval": (RESULTS,)}
"""Stage -> its other files and folders."""

MAY_BE_MISSING = {"test.parquet", "looks.parquet", STATISTICS, ADVANTAGES}

FIELDS = (
    "benchmark",
    "title",
    "questions",
    "samples",
    "profile",
    "warnings",
    "rows",
    "settings",
    "training",
    "grader",
    "graders",
    "accuracy",
    "interval",
    "outcomes",
    "cluster",
    "clusters",
    "pass_at_k",
    "majority_at_k",
    "breakdowns",
    "scores",
    "response_tokens_mean",
    "right",
)
"""What results.json has to have."""

OF_TOKENS = {Rollout: ("response_ids", "logp"), Scored: ("old_logp", "entropy", "perception", "keep")}
NOT_ALWAYS = {
    Scored: ("perception", "keep", "dependency"),
    Statistics: tuple(name for name in schema(Statistics).names if name not in ("sample_id", "position")),
}
"""Columns that may hold nothing: those of S do so together."""
OF_RESPONSES = {Rollout: ("response", "truncated", "answer", "outcome", "reward"), Scored: ("dependency",)}


def check(stage: str, out: Path, inputs: Mapping[str, Path]) -> None:
    """See that a stage wrote what others read.

    Args:
        inputs: the folders that the stage read.

    Raises:
        UserError: a file or a column is missing, of another type, not finite, or of other prompts and
            tokens than the rollouts; a question's metadata is no JSON object.
    """
    tables = TABLES.get(stage, {})
    for name in (*tables, *OTHERS.get(stage, ())):
        if name not in MAY_BE_MISSING and not (out / name).exists():
            wrote = ", ".join(sorted(path.name for path in out.iterdir())) or "nothing"
            raise UserError(f"stage {stage}", f"wrote no {name} (it wrote {wrote}).", _PAGE)
    for name, row in tables.items():
        if (out / name).exists():
            check_columns(out / name, row)
            if row in OF_TOKENS:
                _check_lengths(out / name, row)
            if row is Sample:
                for sample in SampleTable(out / name).without_images():
                    sample.details()
    if stage == "score":
        _check_prompts(out / SCORES, "old_logp", inputs["rollout"] / ROLLOUTS)
        for column in NOT_ALWAYS[Statistics] if (out / STATISTICS).exists() else ():
            _check_prompts(out / STATISTICS, column, inputs["rollout"] / ROLLOUTS)
    if (out / ADVANTAGES).exists():
        _check_responses(out / ADVANTAGES, inputs["rollout"] / ROLLOUTS)
    if stage == "eval":
        _check_results(out / RESULTS)


_PAGE = "docs/artifacts.md says what each stage writes."


def _check_lengths(path: Path, row: type) -> None:
    """As many values as tokens in every column of tokens, as many as responses in the others."""
    first, *others = OF_TOKENS[row]
    named = named_columns(pq.read_schema(path).names, row)
    table = pq.read_table(path, columns=["sample_id", first, *others, *OF_RESPONSES[row], *named])
    check_finite(str(path), table)
    tokens, responses = _tokens(table[first]), pc.list_value_length(table[first])
    nothing = set(NOT_ALWAYS.get(row, ()))
    if not all(_is_empty(table[column]) for column in nothing):
        nothing = set()
    for column in others:
        if column not in nothing and not _tokens(table[column]).equals(tokens):
            raise UserError(f"{path}, column {column}", f"has other lengths than {first}.", _PAGE)
    for column in OF_RESPONSES[row]:
        if column not in nothing and not pc.list_value_length(table[column]).equals(responses):
            raise UserError(f"{path}, column {column}", f"has other lengths than {first}.", _PAGE)
    for column in named:  # null where a group of an earlier step was rewarded by another function
        if not pc.all(pc.equal(pc.list_value_length(table[column]), responses), min_count=0).as_py():
            raise UserError(f"{path}, column {column}", f"has other lengths than {first}.", _PAGE)


def _check_prompts(scores: Path, column: str, rollouts: Path) -> None:
    """The same prompts in the same order, and a value for every token."""
    theirs = pq.read_table(rollouts, columns=["position", "response_ids"])
    ours = pq.read_table(scores, columns=["position", column])
    if not ours["position"].equals(theirs["position"]):
        raise UserError(f"{scores}, column position", "is not that of rollouts.parquet.", _PAGE)
    if scores.name == STATISTICS and _is_empty(ours[column]):
        return
    if not _tokens(ours[column]).equals(_tokens(theirs["response_ids"])):
        raise UserError(f"{scores}, column {column}", "has not one value for each token of the responses.", _PAGE)


def _is_empty(column: pa.ChunkedArray) -> bool:
    """Whether a column of lists holds no value at all."""
    values = column.combine_chunks()
    while pa.types.is_list(values.type):
        values = values.flatten()
    return len(values) == 0


def _check_responses(advantages: Path, rollouts: Path) -> None:
    """The same prompts in the same order, and two advantages for every response."""
    theirs = pq.read_table(rollouts, columns=["position", "reward"])
    ours = pq.read_table(advantages, columns=["position", "advantage", "shaped_advantage"])
    if not ours["position"].equals(theirs["position"]):
        raise UserError(f"{advantages}, column position", "is not that of rollouts.parquet.", _PAGE)
    responses = pc.list_value_length(theirs["reward"])
    for column in ("advantage", "shaped_advantage"):
        if not pc.list_value_length(ours[column]).equals(responses):
            raise UserError(f"{advantages}, column {column}", "has not one value for each response.", _PAGE)


def _tokens(column: pa.ChunkedArray) -> pa.Array:
    """The number of tokens of every response, and how many responses there are of each prompt."""
    lists = column.combine_chunks()
    counts = pc.list_value_length(pc.list_flatten(lists))
    return pa.concat_arrays([pc.list_value_length(lists), counts])


def _check_results(path: Path) -> None:
    try:
        found: Any = json.loads(path.read_bytes())
        missing = [name for name in FIELDS if name not in found]
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(str(path), f"is no JSON object ({error}).", _PAGE) from error
    if not isinstance(found, dict) or missing:
        raise UserError(str(path), f"lacks {missing[0] if missing else 'its fields'}.", _PAGE)
