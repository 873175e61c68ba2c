"""A run on disk, for Python: its artifacts as Arrow tables."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines import checkpoints, runs
from pipelines.chain import ANSWERS, TRAINING
from pipelines.config.imports import one_command
from pipelines.config.schema import Config
from pipelines.disk.records import MODEL, SampleTable, reward_column
from pipelines.embedded.glyphs import is_embedded, token_roles
from pipelines.errors import UserError
from pipelines.page import write_page
from vppo_cli.report import collect
from vppo_cli.report.source import VALIDATION, RunSource, Vocabulary, flat, lengths, vocabulary
from vppo_cli.screen.results import evaluation_rows, policy_name

STEP = "training_step"
"""The column that says which training step a row is of."""


class Run:
    """A run: its settings, and its artifacts as Arrow tables (``.to_pandas()`` where pandas is installed).

    What is read is compared with the hashes that were committed; docs/artifacts.md explains the columns. Log-probs,
    entropies and, but for estimators of shares, perceptions are in nats.

    Attributes:
        path: its folder.
        config: the settings it was last asked for.
    """

    def __init__(self, source: RunSource) -> None:
        self._source = source
        self.path: Path = source.chain.run
        self.config: Config = source.chain.config

    @classmethod
    @one_command()
    def open(cls, run: str | Path | None = None) -> Run:
        """By its name, or the path of its folder; None: the latest.

        Raises:
            UserError: there is none; its settings are damaged.
        """
        if not isinstance(run, str | os.PathLike | None):
            raise UserError(
                f"run {run!r}", f"is of type {type(run).__name__}.", "A run's name, or the path of its folder."
            )
        path = Path(run) if run is not None else None
        if path is None or not (path / runs.CONFIG).is_file():
            if isinstance(run, Path) or (path and len(path.parts) > 1):
                raise UserError(str(run), f"is not the folder of a run (it has no {runs.CONFIG}).", "Check the path.")
            path = runs.find_run(run)
        chain = runs.as_made(runs.read_config(path), path, *TRAINING, *ANSWERS)
        return cls(RunSource(path.name, chain))

    def __repr__(self) -> str:
        return f"<vppo run {self.path}, {self.state}, {len(self.steps)} of {self.config.run.steps} steps>"

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def state(self) -> str:
        """new, running, finished, idle, stopped or failed."""
        return runs.read_state(self.path).state

    @property
    def steps(self) -> list[int]:
        """The training steps whose responses and scores are on disk."""
        return self._source.scored

    def metrics(self) -> pa.Table:
        """A row for each finished training step, as in metrics.jsonl: ``step``, ``rollout/accuracy`` ..."""
        return _table(self._source.rows)

    def evaluations(self) -> pa.Table:
        """A row for each benchmark and evaluated policy; those on the validation questions, in training too, are the
        benchmark ``validation``, and last.

        Columns: ``benchmark``, ``step`` (0: the starting model), ``policy``, ``accuracy`` and the ends ``low``,
        ``high`` of its 95 % interval, as fractions; ``questions``, ``samples``. With a reward of one's own the means
        ``reward`` and ``reward/NAME`` (null where they were not measured), each with ``.../low`` and ``.../high``.
        """
        rows = [
            _evaluated(found["benchmark"], row["step"], row["policy"], row | {k: found[k] for k in COUNTS})
            for found in evaluation_rows(self._source.chain)
            for row in found["results"]
            if found["benchmark"] != VALIDATION
        ]
        for step, metrics in self._source.validations():
            rows.append(_evaluated(VALIDATION, step, policy_name(step), metrics))
        return _table(rows)

    def rollouts(self, steps: int | Sequence[int] | None = None) -> pa.Table:
        """rollouts.parquet, a row for each prompt; lists nest as [response][token], a reward's named lists included.

        Args:
            steps: training steps; None: all that are on disk. ``training_step`` says which.

        Raises:
            UserError: a step is not on disk, or damaged.
        """
        return self._joined(steps, 0)

    def scores(self, steps: int | Sequence[int] | None = None) -> pa.Table:
        """scores.parquet, likewise, row by row the same prompts; perceptions are empty where a step holds none."""
        return self._joined(steps, 1)

    def tokens(self, steps: int | Sequence[int] | None = None) -> pa.Table:
        """The token view: a row for each token of each response.

        Columns: ``training_step``, ``position`` and ``sample_id`` of the prompt, ``response`` (which of the
        prompt's, from 0), ``token`` (which of the response's), ``token_id``, ``text`` (null if the tokenizer is not on
        this machine), ``logp`` (by the engine that sampled), ``old_logp`` and ``entropy`` (by the trainer),
        ``perception`` and ``keep`` (null where the step holds none), ``role`` (embedded data: perception, reasoning
        or template; else null), and of its response ``reward`` and ``outcome``.

        Args and errors as of ``rollouts``.
        """
        names = self._vocabulary
        return pa.concat_tables([self._tokens_of(step, names) for step in self._asked(steps)])

    def questions(self) -> SampleTable:
        """The training questions, a sequence of ``Sample``: ``id``, ``problem``, ``images`` (bytes), ``answer``.

        Raises:
            UserError: they are not prepared, or damaged.
        """
        return self._samples

    def checkpoint(self, which: str | int = "last") -> Path:
        """The folder of a checkpoint's model, in Hugging Face format.

        Args:
            which: ``last``, ``best`` or a training step.

        Raises:
            UserError: it is not on disk, or damaged.
        """
        chain = self._source.chain
        step = checkpoints.pick(chain, str(which))
        if step is None:
            raise checkpoints.unnamed(chain, f"checkpoint {which}", str(which), checkpoints.saved(chain))
        made = chain.checkpoint(step)
        made.verify()
        return made.path / MODEL

    def to_html(self, path: str | Path) -> Path:
        """Write the page of ``vppo report``: one file, which needs no network.

        Raises:
            UserError: it cannot be written, or an artifact is damaged.
        """
        write_page(Path(path), self.name, collect([self._source]))
        return Path(path)

    @cached_property
    def _vocabulary(self) -> Vocabulary | None:
        return vocabulary(self._source.chain)

    @cached_property
    def _samples(self) -> SampleTable:
        return SampleTable(self._source.chain.prepare.path / "train.parquet")

    def _asked(self, steps: int | Sequence[int] | None) -> list[int]:
        wanted = self.steps if steps is None else [steps] if isinstance(steps, int) else list(steps)
        missing = [step for step in wanted if step not in self.steps]
        if missing or not wanted:
            there = f"On disk: {self.steps}." if self.steps else "None is on disk: vppo train makes them."
            raise UserError(f"step {missing[0] if missing else 1}", f"is not scored in run {self.name}.", there)
        return wanted

    def _joined(self, steps: int | Sequence[int] | None, which: int) -> pa.Table:
        tables = []
        for step in self._asked(steps):
            table = self._source.tables(step)[which]
            tables.append(table.add_column(0, STEP, pa.repeat(pa.scalar(step), len(table))))
        return pa.concat_tables(tables, promote_options="default")  # rewards may have named lists in some steps only

    def _tokens_of(self, step: int, names: Vocabulary | None) -> pa.Table:
        rollouts, scores = self._source.tables(step)
        group_B = np.repeat(np.arange(len(rollouts)), [len(group) for group in rollouts["response"].to_pylist()])
        length_B = lengths(scores)
        response_N = np.repeat(np.arange(len(group_B)), length_B)
        start_B = np.cumsum(length_B) - length_B
        first_B = np.searchsorted(group_B, group_B)
        group_N = group_B[response_N]
        id_N = flat(rollouts, "response_ids")
        texts = None if names is None else [names.text(token) for token in id_N.tolist()]
        nothing = pa.nulls(len(id_N))

        def of_prompt(column: str) -> Any:
            return rollouts[column].take(pa.array(group_N))

        def of_response(column: str) -> Any:
            return rollouts[column].combine_chunks().flatten().take(pa.array(response_N))

        def of_token(table: pa.Table, column: str, type_: pa.DataType) -> Any:
            values = flat(table, column)
            return pa.array(values, type_) if len(values) == len(id_N) else nothing.cast(type_)

        return pa.table(
            {
                STEP: pa.repeat(pa.scalar(step), len(id_N)),
                "position": of_prompt("position"),
                "sample_id": of_prompt("sample_id"),
                "response": pa.array((np.arange(len(group_B)) - first_B)[response_N]),
                "token": pa.array(np.arange(len(id_N)) - start_B[response_N]),
                "token_id": pa.array(id_N),
                "text": nothing.cast(pa.string()) if texts is None else pa.array(texts, pa.string()),
                "logp": of_token(rollouts, "logp", pa.float32()),
                "old_logp": of_token(scores, "old_logp", pa.float32()),
                "entropy": of_token(scores, "entropy", pa.float32()),
                "perception": of_token(scores, "perception", pa.float32()),
                "keep": of_token(scores, "keep", pa.bool_()),
                "role": pa.array(self._roles(rollouts, group_B, start_B, length_B, texts), pa.string()),
                "reward": of_response("reward"),
                "outcome": of_response("outcome"),
            }
        )

    def _roles(self, rollouts: pa.Table, group_B: Any, start_B: Any, length_B: Any, texts: Any) -> list[str | None]:
        found: list[str | None] = []
        ids = rollouts["sample_id"].to_pylist()
        known = [texts is not None and is_embedded(self._samples.by_id(name)) for name in ids]
        for group, start, length in zip(group_B, start_B, length_B, strict=True):
            found += token_roles(texts[start : start + length]) if known[group] else [None] * int(length)
        return found


COUNTS = ("questions", "samples")


def _evaluated(benchmark: str, step: int, policy: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """A row of ``Run.evaluations``."""
    row = {"benchmark": benchmark, "step": step, "policy": policy, "accuracy": found["accuracy"]}
    row |= dict(zip(("low", "high"), found["interval"], strict=True)) | {name: found[name] for name in COUNTS}
    for name, mean in found.get("rewards", {}).items():
        column, (low, high) = reward_column(name), mean["interval"]
        row |= {column: mean["value"], f"{column}/low": low, f"{column}/high": high}
    return row


def _table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Rows that need not have the same keys."""
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: [row.get(name) for row in rows] for name in names})
