"""Where questions come from: a hub data set, or files on this machine, row by row.

A source is opened (columns checked, rows counted where the format knows) and then streamed: a few
rows are in memory at a time (one row group of Parquet), with images encoded as in the source.
"""

from __future__ import annotations

import csv
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.config import DataConfig
from pipelines.errors import UserError
from pipelines.hub import check_commit
from pipelines.records import Sample
from pipelines.source_rows import Rejected, RowParser, match_columns

if TYPE_CHECKING:
    import datasets

RawRows = Iterator[Mapping[str, Any]]

BATCH = 32
"""Rows decoded from Arrow at a time: with images of a megabyte, 32 MB."""

PEEK = 64
"""Lines of a JSON lines file whose keys are taken for its columns."""

_SPLIT_NAMES = ("train", "validation", "valid", "val", "dev", "test")
_SHARD = re.compile(r"(.+)-\d+-of-\d+")


@dataclass(frozen=True)
class Part:
    """One table of a source, not read yet.

    ``read(columns)`` streams its rows with (at least) those columns. ``total`` is the number of
    rows, or None where only reading tells.
    """

    place: str
    columns: Sequence[str]
    total: int | None
    roots: tuple[Path, ...]
    read: Callable[[Sequence[str]], RawRows]


@dataclass(frozen=True)
class Source:
    """An opened source. ``rows`` can be read once; ``total`` is None where it is not known."""

    name: str
    total: int | None
    rows: Iterator[Sample | Rejected]


def read_source(
    data: DataConfig, *, split: Literal["train", "validation"], examples: bool = False
) -> Source:
    """Open ``data.source`` (split train) or ``data.validation_source`` (split validation).

    A source is a file (.parquet, .jsonl, .ndjson, .json with one object a line, .csv), a folder of
    Parquet shards, an image folder with ``metadata.jsonl`` or ``metadata.csv``, a folder written by
    ``datasets``' ``save_to_disk``, or else a hub id. In a folder that holds several splits, only
    ``data.split`` (or ``data.validation_split``) is read. ``data.limit`` applies to each source.

    With ``examples`` the rows are to be looked at, not to train on: an answer is not needed, and a
    column ``response`` (or what ``data.columns`` names) goes into the metadata.

    Rows without an id are called ``row-N`` (``validation-row-N``), N counting from 0.

    Raises:
        UserError: there is no such source, it is broken, or a column is missing. Errors that only
            show while reading are raised from ``rows``.
    """
    held_apart = split == "validation"
    name = (data.validation_source if held_apart else data.source) or ""
    wanted = data.validation_split if held_apart else data.split
    path = Path(name).expanduser()
    parts = _local(path, wanted) if path.exists() else [_hub(name, wanted, data, held_apart)]
    if not any(part.columns for part in parts):
        raise UserError(name, "the data set has no rows.", "Check the file.")
    columns = [
        match_columns(data.columns, part.columns, part.place, examples=examples) for part in parts
    ]
    prefix = "validation-row-" if held_apart else "row-"
    rows = _parsed(parts, columns, prefix, "kind" in data.columns, examples)
    totals = [part.total for part in parts]
    total = None if None in totals else sum(n for n in totals if n is not None)
    if total is not None and data.limit:
        total = min(total, data.limit)
    return Source(name, total, itertools.islice(rows, data.limit))


def _parsed(
    parts: Sequence[Part],
    columns: Sequence[dict[str, str]],
    prefix: str,
    strict_kind: bool,
    examples: bool,
) -> Iterator[Sample | Rejected]:
    row = 0
    for part, names in zip(parts, columns, strict=True):
        parser = RowParser(names, part.roots, prefix, strict_kind, examples)
        for raw in part.read(list(dict.fromkeys(names.values()))):
            yield parser.parse(row, raw)
            row += 1


def _local(path: Path, split: str) -> list[Part]:
    if path.is_file():
        opener = FILES.get(path.suffix.lower())
        if opener is None:
            raise UserError(
                str(path), f"files of type {path.suffix or '(none)'} are not read.",
                f"Give one of {' '.join(FILES)}, or a folder.",
            )  # fmt: skip
        return [opener(path, path.parent)]
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return [_saved(path, split)]
    for name in ("metadata.jsonl", "metadata.csv"):
        if (path / name).is_file():
            return [FILES[(path / name).suffix](path / name, path)]
    shards = _shards(path, split)
    if shards:
        return [parquet(shard, path) for shard in shards]
    if (path / split).is_dir():
        return _local(path / split, split)
    raise UserError(
        str(path), "this folder holds no data set.",
        "Expected Parquet files, metadata.jsonl or metadata.csv beside the images, or what "
        "datasets' save_to_disk writes.",
    )  # fmt: skip


def _shards(folder: Path, split: str) -> list[Path]:
    """The folder's Parquet files of this split: a test split must never slip into training."""
    files = sorted(folder.rglob("*.parquet"))
    splits = {path: _split_of(path.relative_to(folder)) for path in files}
    found = sorted({name for name in splits.values() if name})
    if not found:
        return files
    if split not in found:
        raise _no_split(folder, split, found)
    return [path for path, name in splits.items() if name == split]


def _split_of(shard: Path) -> str | None:
    """The split a Parquet file belongs to by its name or its folder's, None where neither says."""
    if numbered := _SHARD.fullmatch(shard.stem):
        return numbered[1]
    return next((part for part in (shard.stem, *shard.parts) if part in _SPLIT_NAMES), None)


def _no_split(place: Path, split: str, found: Sequence[str]) -> UserError:
    return UserError(
        str(place), f"no split {split!r}; splits found: {', '.join(found)}.",
        "Choose one with --set data.split=NAME (or data.validation_split).",
    )  # fmt: skip


def parquet(path: Path, root: Path) -> Part:
    with broken(path, "Parquet"), pq.ParquetFile(path) as file:
        columns, total = file.schema_arrow.names, file.metadata.num_rows

    def read(wanted: Sequence[str]) -> RawRows:
        with broken(path, "Parquet"), pq.ParquetFile(path) as file:
            # Group by group: read in one go, pyarrow keeps every group it has passed in memory.
            for group in range(file.num_row_groups):
                for batch in file.iter_batches(BATCH, row_groups=[group], columns=list(wanted)):
                    yield from batch.to_pylist()

    return Part(str(path), columns, total, (root,), read)


class broken:
    """Turns what pyarrow raises on a damaged file into a UserError that names the file."""

    def __init__(self, path: Path, format_name: str) -> None:
        self.path, self.format_name = path, format_name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, (pa.ArrowException, OSError, UnicodeDecodeError)):
            detail = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
            raise UserError(
                str(self.path), f"not a readable {self.format_name} file ({detail}).",
                "Copy or download it again.",
            ) from error  # fmt: skip


def json_lines(path: Path, root: Path) -> Part:
    columns: dict[str, None] = {}
    for row in itertools.islice(_read_json_lines(path), PEEK):
        columns |= dict.fromkeys(row)
    return Part(str(path), list(columns), None, (root,), lambda wanted: _read_json_lines(path))


def _read_json_lines(path: Path) -> RawRows:
    with broken(path, "JSON Lines"), open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig"))
            except (ValueError, RecursionError) as error:
                detail = getattr(error, "msg", None) or "not UTF-8, or nested too deeply"
                raise UserError(
                    f"{path}, line {number}", f"not JSON: {detail}.",
                    "Each line holds one object: {\"problem\": ..., \"images\": [...], ...}.",
                ) from error  # fmt: skip
            if not isinstance(row, dict):
                raise UserError(
                    f"{path}, line {number}", f"expected an object, found a {type(row).__name__}.",
                    "Write one object a line (JSON Lines), not one list of all.",
                )  # fmt: skip
            yield row


def _csv(path: Path, root: Path) -> Part:
    def read(wanted: Sequence[str]) -> RawRows:
        return itertools.islice(_read_csv(path), 1, None)

    header = next(_read_csv(path), {})
    return Part(str(path), list(header), None, (root,), read)


def _read_csv(path: Path) -> RawRows:
    """The header as a row of its own (name -> name), then the rows."""
    with broken(path, "CSV"), open(path, encoding="utf-8-sig", newline="") as file:
        lines = csv.reader(file, strict=True)
        try:
            header = next(lines, [])
            yield dict(zip(header, header, strict=True))
            for line in lines:
                if not line:
                    continue
                if len(line) != len(header):
                    raise UserError(
                        f"{path}, line {lines.line_num}",
                        f"{len(line)} fields where the header has {len(header)}.",
                        "Quote fields that hold commas or line breaks.",
                    )
                yield dict(zip(header, line, strict=True))
        except (csv.Error, UnicodeDecodeError) as error:
            raise UserError(f"{path}, line {lines.line_num + 1}", f"not CSV: {error}.") from error


def _saved(path: Path, split: str) -> Part:
    """A folder written by ``save_to_disk``, of one data set or of several splits."""
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        detail = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(str(path), f"not a readable saved data set ({detail}).", "") from error
    if isinstance(loaded, datasets.DatasetDict):
        if split not in loaded:
            raise _no_split(path, split, [str(name) for name in loaded])
        loaded = loaded[split]
    return arrow(loaded, str(path), (path,))


def arrow(table: datasets.Dataset, place: str, roots: tuple[Path, ...]) -> Part:
    """A ``datasets`` table, read as Arrow so that its images are not decoded."""

    def read(wanted: Sequence[str]) -> RawRows:
        plain = table.select_columns(list(wanted)).with_format("arrow")
        with broken(Path(place), "Arrow"):
            for batch in plain.iter(BATCH):
                yield from batch.to_pylist()

    return Part(place, table.column_names, table.num_rows, roots, read)


def _hub(name: str, split: str, data: DataConfig, validation: bool) -> Part:
    key = "data.validation_source" if validation else "data.source"
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or Path(name).suffix in FILES or name == "..":
        raise UserError(f"{key} {name}", "no such file or folder.", "Check the path.")
    import datasets

    # The subset belongs to data.source; a second data set has none.
    subset, revision = data.subset, data.revision
    if validation:
        subset, revision = None, data.validation_revision
    tried = f"split {split}" + (f", subset {subset}" if subset else "")
    tried += f", revision {revision}" if revision else ""
    try:
        table = datasets.load_dataset(name, subset, split=split, revision=revision)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        detail = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserError(
            f"{key} {name}",
            f"no such file or folder here, and as a hub data set ({tried}) it cannot be loaded: "
            f"{detail}.",
            f"Without a connection, point to a local copy: --set {key}=PATH (a Parquet or JSONL "
            "file, or a folder).",
        ) from error
    check_commit(table, revision, f"{key} {name}")
    return arrow(table, f"{key} {name}", hub_caches())


def hub_caches() -> tuple[Path, Path]:
    """Where images of hub data sets are that are separate files: in one of two caches."""
    import datasets
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(datasets.config.HF_DATASETS_CACHE), Path(HF_HUB_CACHE)


FILES: dict[str, Callable[[Path, Path], Part]] = {
    ".parquet": parquet,
    ".jsonl": json_lines,
    ".ndjson": json_lines,
    ".json": json_lines,
    ".csv": _csv,
}
"""File type -> how a file of it, with images relative to a folder, is opened."""
