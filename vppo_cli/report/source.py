"""What a page reads of a run: finished training steps, their tables, and the text of tokens."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import runs
from pipelines.chain import ANSWERS, TRAINING, Chain
from pipelines.disk.records import (
    ADVANTAGES,
    ROLLOUTS,
    SCORES,
    WATCH,
    Advantages,
    Rollout,
    Scored,
    named_columns,
    parquet_errors,
    schema,
)
from pipelines.disk.step import Step, checked
from pipelines.errors import UserError
from pipelines.objectives.table import PERCEPTION, STORES, stored
from vppo_cli.screen.results import recent_rows

LOOKS = "looks.parquet"

VALIDATION = "validation"
"""The benchmark of a run's validation questions."""

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class RunSource:
    """One run on disk."""

    name: str
    chain: Chain

    @classmethod
    def open(cls, name: str | None) -> RunSource:
        """A run by its name; none: the latest.

        Raises:
            UserError: there is no such run.
        """
        path = runs.find_run(name)
        return cls(path.name, runs.as_made(runs.read_config(path), path, *TRAINING, *ANSWERS))

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """What metrics.jsonl has, a row a training step."""
        return recent_rows(self.chain)

    @cached_property
    def scored(self) -> list[int]:
        """Steps whose responses and scores are on disk under the run's settings."""
        steps = range(1, self.chain.config.run.steps + 1)
        return [t for t in steps if self.chain.rollout(t).path.is_dir() and self.chain.score(t).path.is_dir()]

    @cached_property
    def perceived(self) -> list[int]:
        """Those of them whose S is known: all, or where the objective needs none, the watched ones."""
        if PERCEPTION in STORES[stored(self.chain.config)]:
            return self.scored
        return [t for t in self.scored if f"{WATCH}/{SCORES}" in self._files(t)]

    def validations(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """(step, metrics) of each policy that was measured on the validation questions; 0: the starting model."""
        for step in range(self.chain.config.run.steps + 1):
            made = self.chain.eval(step, VALIDATION)
            if self.chain.has_checkpoint(step) and made.path.is_dir():
                yield step, (made.manifest() or {})["metrics"]

    def _files(self, step: int) -> Any:
        return (self.chain.score(step).manifest() or {"files": ()})["files"]

    def score_file(self, step: int, name: str) -> str:
        """Where a score step has a file of what S is: in itself, or in its watch."""
        watched = f"{WATCH}/{name}"
        return watched if watched in self._files(step) else name

    def trained_tokens(self, step: int) -> int:
        """Response tokens of the groups that a step trains on, from the score file's own counts."""
        path = self.chain.score(step).path / SCORES
        with parquet_errors(path):
            metadata = pq.read_metadata(checked(path))
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        columns = [group.column(i) for group in groups for i in range(group.num_columns)]
        return sum(c.num_values for c in columns if c.path_in_schema.startswith("old_logp."))

    def tables(self, step: int) -> tuple[pa.Table, pa.Table]:
        """A step's responses and their scores, S among them, row by row the same groups.

        Raises:
            UserError: a file is not what the stage wrote.
        """
        rollouts = read_table(self.chain.rollout(step), ROLLOUTS, Rollout)
        scores = read_table(self.chain.score(step), self.score_file(step, SCORES), Scored)
        _same_groups(self.chain.score(step), scores, rollouts)
        return rollouts, scores

    def advantages(self, step: int, rollouts: pa.Table) -> pa.Table | None:
        """What the step's update used, row by row the same groups; None: it did not say, or is not made.

        Raises:
            UserError: the file is not what the stage wrote.
        """
        update = self.chain.update(step)
        if ADVANTAGES not in (update.manifest() or {"files": ()})["files"]:
            return None
        table = read_table(update, ADVANTAGES, Advantages)
        _same_groups(update, table, rollouts)
        return table


def _same_groups(step: Step, table: pa.Table, rollouts: pa.Table) -> None:
    if table["position"] != rollouts["position"]:
        raise UserError(
            str(step.path),
            "is of other groups than were sampled.",
            "Delete the folder; it is made again when it is needed.",
        )


def read_table(step: Step, name: str, row_type: type) -> pa.Table:
    """A Parquet file of a step, checked for its content and its columns.

    Raises:
        UserError: it is damaged, or has other columns.
    """
    step.manifest()
    path = step.path / name
    with parquet_errors(path):
        table = pq.read_table(checked(path), page_checksum_verification=True)
        named = [table.schema.field(name) for name in named_columns(table.column_names, row_type)]
        columns = pa.schema([*schema(row_type), *named])
        return table.select(columns.names).cast(columns).combine_chunks()


def responses(table: pa.Table, column: str) -> pa.ListArray:
    """A column [group][response] of lists as one list array, a row a response."""
    array = table[column].combine_chunks()
    return array.flatten()


def flat(table: pa.Table, column: str) -> Array:
    """The numbers of a column, group and response joined."""
    array = table[column].combine_chunks()
    while pa.types.is_list(array.type):
        array = array.flatten()
    return np.asarray(array.to_numpy(zero_copy_only=False))


def lengths(table: pa.Table, column: str = "old_logp") -> Array:
    """Tokens of each response."""
    return np.asarray(responses(table, column).value_lengths().to_numpy(zero_copy_only=False))


def spread(items: Sequence[int], most: int) -> list[int]:
    """At most ``most`` of them, evenly, the first and the last included."""
    if len(items) <= most:
        return list(items)
    places = np.linspace(0, len(items) - 1, most).round().astype(int)
    return [items[i] for i in dict.fromkeys(places.tolist())]


def spread_order(count: int) -> list[int]:
    """0 .. count-1 so that every beginning of the list is spread evenly: last, first, middle, quarters."""
    order: list[int] = []
    size = 1
    while len(set(order)) < count:
        places = np.linspace(0, count - 1, size + 1).round().astype(int)
        order += [int(i) for i in places[::-1]]
        size *= 2
    return list(dict.fromkeys(order))


class Vocabulary:
    """The text of token numbers, by the run's own tokenizer; without torch or transformers."""

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(path))
        self._texts: dict[int, str] = {}

    def text(self, token: int) -> str:
        if token not in self._texts:
            self._texts[token] = self._tokenizer.decode([token], skip_special_tokens=False)
        return self._texts[token]


def vocabulary(chain: Chain) -> Vocabulary | None:
    """The run's tokenizer from its newest checkpoint, its model folder or the hub's cache, if there."""
    from pipelines import checkpoints
    from pipelines.config.settings import shipped_config

    model = chain.config.model.path
    folders = [shipped_config("tiny_model") if model == "tiny" else Path(model)]
    files = [folder / "tokenizer.json" for folder in folders]
    for step in checkpoints.saved(chain)[-1:]:
        own = chain.checkpoint(step).path / checkpoints.MODEL / "tokenizer.json"
        files[:0] = [checked(own)] if own.is_file() else []
    if not Path(model).is_dir() and model != "tiny":
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        with contextlib.suppress(HFValidationError):  # a folder that is gone
            found = try_to_load_from_cache(model, "tokenizer.json", revision=chain.config.model.revision)
            files += [Path(found)] if isinstance(found, str) else []
    return next((Vocabulary(file) for file in files if file.is_file()), None)
