"""What passes between stages: one row type per artifact, and its Parquet schema.

The G responses of one prompt stay together in one row, so that later passes read the prompt, and
its image, once. Lists nest as response -> token. The schema is the contract: a file that does not
fit it is refused with the column's name.
"""

from __future__ import annotations

import contextlib
import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.disk.step import checked, unreadable
from pipelines.errors import UserError

ROWS_PER_GROUP = 16
"""Rows of a Parquet row group: later stages read samples in shuffled order, a group at a time."""

BYTES_PER_GROUP = 8 * 2**20
"""A row group is closed at this many bytes of images, however few its rows."""

ROLLOUTS, SURPLUS, SCORES = "rollouts.parquet", "surplus.parquet", "scores.parquet"
"""Files of rollout steps, and of score steps."""

STATISTICS = "statistics.parquet"
"""Of score steps that hold more than S (``score.store``)."""

WATCH = "watch"
"""The folder of a score step that holds no S: S all the same, to be looked at (``score.watch``)."""

ADVANTAGES = "advantages.parquet"
"""Of an update step; those of earlier versions have none."""

RESULTS = "results.json"
"""Of an evaluation."""

MODEL, TRAINER = "model", "trainer"
"""The folders of a checkpoint."""

NAMED = "reward/"
"""What columns, and metrics, of a reward's named lists begin with."""

TEXT, INT, REAL, FLAG = pa.string(), pa.int32(), pa.float32(), pa.bool_()


def _column(type_: pa.DataType, **kwargs: Any) -> Any:
    return field(metadata={"arrow": type_}, **kwargs)


@dataclass(frozen=True)
class Sample:
    """One question with its images and its verifiable answer (``prepare/*.parquet``).

    One object stands for it in the whole run and is given to parts of one's own, so nothing of it can be changed.

    ``problem`` holds one ``<image>`` where each image goes; if it holds none, the images come first.
    ``kind`` is ``value``, ``choice`` or ``fact`` and tells how to compare. ``metadata`` is a JSON
    object: the embedded data keeps there what each word of a solution is for, benchmarks the texts of
    options, and golds where several count.
    """

    id: str = _column(TEXT)
    problem: str = _column(TEXT)
    images: Sequence[bytes] = _column(pa.list_(pa.binary()))
    answer: str = _column(TEXT)
    kind: str = _column(TEXT, default="value")
    metadata: str = _column(TEXT, default="{}")

    def __post_init__(self) -> None:
        object.__setattr__(self, "images", tuple(self.images))

    def __repr__(self) -> str:
        """The fields, but of each image the number of its bytes."""
        values = {f.name: repr(getattr(self, f.name)) for f in fields(self) if f.name != "images"}
        images = ", ".join(f"<{len(image)} bytes>" for image in self.images)
        told = [f"{f.name}={values.get(f.name, f'[{images}]')}" for f in fields(self)]
        return f"{type(self).__name__}({', '.join(told)})"

    def details(self) -> dict[str, Any]:
        """What ``metadata`` holds.

        Raises:
            UserError: it is no JSON object.
        """
        with contextlib.suppress(TypeError, ValueError, RecursionError):
            if isinstance(found := json.loads(self.metadata), dict):
                return found
        problem = f"{str(self.metadata)[:60]!r} is no JSON object."
        raise UserError(f"sample {self.id}, metadata", problem, "Write {} where there is nothing to say.")


@dataclass
class Rollout:
    """The G responses to one prompt (``rollout-*/rollouts.parquet``).

    ``position`` is the prompt's place in the run's endless shuffled order and seeds its sampling;
    ``step`` is the training step that sampled it (earlier than its use for surplus groups).
    Lists have G entries; token lists end with the end-of-sequence token unless ``truncated``.
    ``logp`` is log pi of each sampled token at the rollout temperature, before top-k and top-p.
    ``outcome`` is one of correct, wrong, no_answer, timed_out, truncated. ``prompt_tokens`` counts the
    prompt's tokens, those of its images included. ``named`` has what a reward of one's own returns besides
    ``reward``, G values a name: a column ``reward/NAME`` each (``NAMED``), null where a row lacks it.
    """

    sample_id: str = _column(TEXT)
    position: int = _column(pa.int64())
    response_ids: list[list[int]] = _column(pa.list_(pa.list_(INT)))
    response: list[str] = _column(pa.list_(TEXT))
    logp: list[list[float]] = _column(pa.list_(pa.list_(REAL)))
    truncated: list[bool] = _column(pa.list_(FLAG))
    answer: list[str] = _column(pa.list_(TEXT))
    outcome: list[str] = _column(pa.list_(TEXT))
    reward: list[float] = _column(pa.list_(REAL))
    step: int = _column(pa.int64(), default=0)
    prompt_tokens: int = _column(INT, default=0)
    named: dict[str, list[float]] = field(default_factory=dict)


@dataclass
class Statistics:
    """More of the G responses to one prompt (``score-*/statistics.parquet``), for objectives that need it.

    Lists nest as response -> token. The first six are of the views that were scored, p with the image and q
    with the perturbed one: log-probs of each token and entropy of q (nats), KL(p || q) and Jensen-Shannon
    divergence over the vocabulary (nats), p - q of the token that p likes best. The last two are cosines of
    the hidden state that predicts the token with the mean of those of the image's tokens: of the last layer,
    and the mean over layers. What ``score.store`` does not name is an empty list for each response.
    """

    sample_id: str = _column(TEXT)
    position: int = _column(pa.int64())
    logp: list[list[float]] = _column(pa.list_(pa.list_(REAL)))
    logp_perturbed: list[list[float]] = _column(pa.list_(pa.list_(REAL)))
    entropy_perturbed: list[list[float]] = _column(pa.list_(pa.list_(REAL)))
    kl: list[list[float]] = _column(pa.list_(pa.list_(REAL)))
    jsd: list[list[float]] = _column(pa.list_(pa.list_(REAL)))
    argmax_drop: list[list[float]] = _column(pa.list_(pa.list_(REAL)))
    image_similarity: list[list[float]] = _column(pa.list_(pa.list_(REAL)))
    layer_similarity: list[list[float]] = _column(pa.list_(pa.list_(REAL)))


@dataclass
class Scored:
    """Token perception of the G responses to one prompt (``score-*/scores.parquet``).

    ``old_logp`` is log pi of each token, in nats at the rollout temperature, under the policy that
    sampled it: the trainer's own for this step's groups, as recorded then for surplus of earlier
    steps, whose ratio to the new policy is so a true importance ratio. ``entropy`` is the trainer's.
    ``perception`` is S of paper eq. 3 by the configured estimator; ``keep`` is the TGF mask;
    ``dependency`` is the mean of S over the response (eq. 5's input). These three are empty, for each
    response and in all, where ``score.store`` names no S.

    ``statistics`` and ``step``, that of the scoring, are no columns: ``read_scores`` fills them in.
    """

    sample_id: str = _column(TEXT)
    position: int = _column(pa.int64())
    old_logp: list[list[float]] = _column(pa.list_(pa.list_(REAL)))
    entropy: list[list[float]] = _column(pa.list_(pa.list_(REAL)))
    perception: list[list[float]] = _column(pa.list_(pa.list_(REAL)))
    keep: list[list[bool]] = _column(pa.list_(pa.list_(FLAG)))
    dependency: list[float] = _column(pa.list_(REAL))
    statistics: Statistics | None = None
    step: int = 0


@dataclass
class Look:
    """What scoring one prompt's G responses looked like (``score-*/looks.parquet``), to be shown.

    One row for each of the step's first ``score.looks`` groups; the Rollout and Scored rows of the
    same ``position`` have the rest. ``images`` are PNG: the prompt's images as the model's processor
    resized them (an image that it cuts into tiles is two: the tiles, and the overview).
    ``perturbed_images`` are the same under each perturbed view: one view, or G of them with
    ``score.mask_per=response``, or none where the estimator needs none.

    The others have G entries, each with one for every token of the response. ``tokens`` are texts,
    joined the response's. ``logp`` and ``logp_perturbed`` are log-probs of the sampled token under
    both views, nats, by the policy that scores. ``top`` are the texts of the likeliest tokens with
    the image, likeliest first, ``top_p`` and ``top_q`` their probabilities with the image and with
    the perturbed one; ``top_perturbed`` and so on the same for those likeliest with the perturbed
    one. Without a perturbed view what it would give is empty for each response.
    """

    sample_id: str = _column(TEXT)
    position: int = _column(pa.int64())
    images: Sequence[bytes] = _column(pa.list_(pa.binary()))
    perturbed_images: list[list[bytes]] = _column(pa.list_(pa.list_(pa.binary())))
    tokens: list[list[str]] = _column(pa.list_(pa.list_(TEXT)))
    logp: list[list[float]] = _column(pa.list_(pa.list_(REAL)))
    logp_perturbed: list[list[float]] = _column(pa.list_(pa.list_(REAL)))
    top: list[list[list[str]]] = _column(pa.list_(pa.list_(pa.list_(TEXT))))
    top_perturbed: list[list[list[str]]] = _column(pa.list_(pa.list_(pa.list_(TEXT))))
    top_p: list[list[list[float]]] = _column(pa.list_(pa.list_(pa.list_(REAL))))
    top_q: list[list[list[float]]] = _column(pa.list_(pa.list_(pa.list_(REAL))))
    top_perturbed_p: list[list[list[float]]] = _column(pa.list_(pa.list_(pa.list_(REAL))))
    top_perturbed_q: list[list[list[float]]] = _column(pa.list_(pa.list_(pa.list_(REAL))))


@dataclass
class Advantages:
    """What an update used of the G responses to one prompt (``update-*/advantages.parquet``), to be shown.

    Both as the trainer's tensors held them, finite or not; with several ``update.epochs`` those of the
    first pass. ``advantage`` is relative to the group, after the overlong penalty; ``shaped_advantage``
    is what the objective made of it, whichever it is (``Terms.adv_B``).
    """

    sample_id: str = _column(TEXT)
    position: int = _column(pa.int64())
    advantage: list[float] = _column(pa.list_(REAL))
    shaped_advantage: list[float] = _column(pa.list_(REAL))


@dataclass
class Perceived:
    """One response and how much each of its tokens depends on the image (``vppo perceive``).

    ``gold``, and what grading made of it (``answer``, ``outcome``, ``reward``: as in Rollout), are null
    where the question came without an answer. ``given`` tells a response that was handed in from one
    that the model wrote. ``truncated``: it ended at the limit of tokens.

    Lists have one entry for each token, the one that ends the response included. ``tokens`` are texts,
    joined the response. ``perception`` is S by the estimator, in nats for ``kl``, averaged over masks;
    ``keep`` marks the highest of it, and ``dependency`` is its mean. ``logp`` and ``logp_perturbed``
    are log-probs of the token with the image and with it perturbed by the first mask, ``entropy`` is the
    former's, all in nats. ``top`` and so on are the likeliest tokens, as in Look, by the first mask too.
    ``perception_by_mask`` has S by each mask alone, whose mean ``perception`` is. What only a perturbed
    view gives is empty where the estimator needs none. ``named`` is shown and no column: a value of
    each of the reward's named lists.
    """

    id: str = _column(TEXT)
    problem: str = _column(TEXT)
    gold: str | None = _column(TEXT)
    response: str = _column(TEXT)
    given: bool = _column(FLAG)
    truncated: bool = _column(FLAG)
    answer: str | None = _column(TEXT)
    outcome: str | None = _column(TEXT)
    reward: float | None = _column(REAL)
    dependency: float = _column(REAL)
    token_ids: list[int] = _column(pa.list_(INT))
    tokens: list[str] = _column(pa.list_(TEXT))
    perception: list[float] = _column(pa.list_(REAL))
    keep: list[bool] = _column(pa.list_(FLAG))
    logp: list[float] = _column(pa.list_(REAL))
    logp_perturbed: list[float] = _column(pa.list_(REAL))
    entropy: list[float] = _column(pa.list_(REAL))
    top: list[list[str]] = _column(pa.list_(pa.list_(TEXT)))
    top_p: list[list[float]] = _column(pa.list_(pa.list_(REAL)))
    top_q: list[list[float]] = _column(pa.list_(pa.list_(REAL)))
    top_perturbed: list[list[str]] = _column(pa.list_(pa.list_(TEXT)))
    top_perturbed_p: list[list[float]] = _column(pa.list_(pa.list_(REAL)))
    top_perturbed_q: list[list[float]] = _column(pa.list_(pa.list_(REAL)))
    perception_by_mask: list[list[float]] = _column(pa.list_(pa.list_(REAL)), default_factory=list)
    named: dict[str, float] = field(default_factory=dict)


Row = TypeVar("Row", Sample, Rollout, Scored, Statistics, Look, Advantages, Perceived)


def copied(row: Row) -> Row:
    """The row with lists of its own: whoever is given it may change them."""
    return replace(row, **{f.name: _copied(getattr(row, f.name)) for f in fields(row)})


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _copied(part) for name, part in value.items()}
    if not isinstance(value, list):
        return value
    return [_copied(part) for part in value] if value and isinstance(value[0], list) else value[:]


def schema(row_type: type) -> pa.Schema:
    """The Arrow schema of a row type."""
    return pa.schema([(f.name, f.metadata["arrow"]) for f in fields(row_type) if "arrow" in f.metadata])


def write_rows(path: Path, row_type: type[Row], rows: Iterable[Row]) -> None:
    """Write rows as one Parquet file (zstd). The caller makes the write atomic.

    Raises:
        UserError: a number that training reads is not finite.
    """
    table = _table(list(rows), row_type)
    if row_type in (Rollout, Scored, Statistics):
        check_finite(path.name, table)
    repeated = [_leaf(field) for field in table.schema if "float" not in str(field.type)]
    pq.write_table(table, path, compression="zstd", write_page_checksum=True, use_dictionary=repeated)


def _table(rows: Sequence[Row], row_type: type[Row]) -> pa.Table:
    columns = [pa.array([getattr(row, column.name) for row in rows], type=column.type) for column in schema(row_type)]
    table = pa.Table.from_arrays(columns, schema=schema(row_type))
    named: list[dict[str, list[float]]] = [row.named if isinstance(row, Rollout) else {} for row in rows]
    for name in sorted({name for lists in named for name in lists}):
        table = table.append_column(NAMED + name, pa.array([lists.get(name) for lists in named], pa.list_(REAL)))
    return table


def reward_column(name: str) -> str:
    """What the column of a reward's list is called: ``reward`` itself, or ``reward/NAME``."""
    return name if name == "reward" else NAMED + name


def named_columns(names: Iterable[str], row_type: type) -> list[str]:
    """Those of a file's columns that hold a reward's named lists."""
    return [name for name in names if row_type is Rollout and name.startswith(NAMED)]


def check_finite(name: str, table: pa.Table) -> None:
    for column in (c.name for c in table.schema if "float" in str(c.type)):
        if np.isfinite(_numbers(table[column])).all():
            continue
        for row in range(len(table)):
            values = _numbers(table[column].slice(row, 1))
            if not np.isfinite(values).all():
                bad = values[~np.isfinite(values)][0]
                raise UserError(
                    f"{name}, column {column}",
                    f"holds {bad} for prompt {table['sample_id'][row]}.",
                    "The policy's numbers overflow, or a part of yours (score.estimator, rollout.engine) "
                    "gives such numbers: look at update.learning_rate, update.weight_decay, "
                    "rollout.temperature.",
                )


def _numbers(column: pa.ChunkedArray) -> Any:
    array = column.combine_chunks()
    while pa.types.is_list(array.type):
        array = array.flatten()
    return array.to_numpy(zero_copy_only=False)


def _leaf(field: pa.Field) -> str:
    """The path of a column's values in a Parquet file; a dictionary of real numbers only adds bytes."""
    return field.name + str(field.type).count("list<") * ".list.element"


def write_samples(path: Path, samples: Iterable[Sample]) -> int:
    """Write samples as one Parquet file (zstd), in small row groups; returns their number."""
    total, size = 0, 0
    group: list[Sample] = []
    with pq.ParquetWriter(path, schema(Sample), compression="zstd", write_page_checksum=True) as writer:
        for sample in samples:
            group.append(sample)
            size += sum(map(len, sample.images))
            if len(group) == ROWS_PER_GROUP or size >= BYTES_PER_GROUP:
                writer.write_table(_table(group, Sample))
                total, group, size = total + len(group), [], 0
        if group:
            writer.write_table(_table(group, Sample))
    return total + len(group)


def read_rows(path: Path, row_type: type[Row]) -> list[Row]:
    """Read rows back, in file order.

    Raises:
        UserError: the file is missing, is not Parquet, or lacks a column or has another type.
    """
    with parquet_errors(path):
        file: pq.ParquetFile = check_columns(path, row_type)
        names = [*schema(row_type).names, *named_columns(file.schema_arrow.names, row_type)]
        return rows_of(file.read(columns=names), row_type)


def read_scores(folder: Path, step: int) -> list[Scored]:
    """The rows of a score step, each with its statistics where the step holds some.

    Raises:
        UserError: as ``read_rows``.
    """
    rows = read_rows(folder / SCORES, Scored)
    more = read_rows(folder / STATISTICS, Statistics) if (folder / STATISTICS).exists() else [None] * len(rows)
    return [replace(row, statistics=found, step=step) for row, found in zip(rows, more, strict=True)]


class SampleTable(Sequence[Sample]):
    """The samples of a Parquet file by position, read when asked for.

    Images make a training set larger than memory, so only the latest row groups are held.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with parquet_errors(path):
            self._file = check_columns(path, Sample)
            counts = [self._file.metadata.row_group(i).num_rows for i in range(self._file.num_row_groups)]
            self.ids: list[str] = self._file.read(columns=["id"])["id"].to_pylist()
        self._starts = list(accumulate(counts, initial=0))
        self._place = {sample_id: index for index, sample_id in enumerate(self.ids)}
        self._group = lru_cache(maxsize=128)(self._read_group)

    def __repr__(self) -> str:
        return f"<{len(self)} samples of {self.path}>"

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]  # IndexError past the end, which also ends an iteration
        group = bisect_right(self._starts, index) - 1
        return self._group(group)[index - self._starts[group]]

    def by_id(self, sample_id: str) -> Sample:
        """The sample with this id.

        Raises:
            UserError: there is none.
        """
        if sample_id not in self._place:
            raise UserError(str(self.path), f"has no sample {sample_id}.", "Prepare the data again.")
        return self[self._place[sample_id]]

    def without_images(self) -> list[Sample]:
        """Every sample, its images left out: what grading needs."""
        names = [name for name in schema(Sample).names if name != "images"]
        with parquet_errors(self.path):
            return [Sample(images=[], **row) for row in self._file.read(names).to_pylist()]

    def _read_group(self, group: int) -> list[Sample]:
        with parquet_errors(self.path):
            return rows_of(self._file.read_row_group(group, schema(Sample).names), Sample)


def check_columns(path: Path, row_type: type) -> pq.ParquetFile:
    """A Parquet file, opened, with the columns of these rows.

    Raises:
        UserError: a column is missing or of another type.
    """
    file = pq.ParquetFile(checked(path), page_checksum_verification=True)
    found = file.schema_arrow
    named = [pa.field(name, pa.list_(REAL)) for name in named_columns(found.names, row_type)]
    for column in (*schema(row_type), *named):
        kind = found.field(column.name).type if column.name in found.names else "none"
        if kind != column.type:
            raise UserError(
                f"{path}, column {column.name}",
                f"expected {column.type}, found {kind}.",
                f"It should be a file of {row_type.__name__} rows.",
            )
    return file


def rows_of(table: pa.Table, row_type: type[Row]) -> list[Row]:
    """A table's rows; columns of named lists are gathered."""
    names, rows = named_columns(table.column_names, row_type), table.to_pylist()
    for row in rows if names else ():
        found = {name.removeprefix(NAMED): row.pop(name) for name in names}
        row["named"] = {name: values for name, values in found.items() if values is not None}
    return [row_type(**row) for row in rows]


@contextlib.contextmanager
def parquet_errors(path: Path) -> Iterator[None]:
    """Turn what reading a Parquet file raises into an error that names it."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(str(path), "no such file.", "Run the stage that writes it again.") from error
    except (pa.ArrowException, OSError, KeyError, UnicodeDecodeError) as error:
        detail = (str(error).splitlines() or [type(error).__name__])[0]
        raise unreadable(
            path,
            error,
            f"not a readable Parquet file ({detail}).",
            "Delete its folder; it is made again when it is needed.",
        ) from error
