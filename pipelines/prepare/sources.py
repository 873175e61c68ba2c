"""Where questions come from: a hub data set, or files on this machine, row by row.

A source is opened (columns checked, rows counted where the format knows) and then streamed: a few
rows are in memory at a time (one row group of Parquet), with images encoded as in the source.
Hidden files and folders (``.ipynb_checkpoints``, ``.cache``, ``__MACOSX``) are never data.
"""

from __future__ import annotations

import contextlib
import csv
import difflib
import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.config.hub import check_commit
from pipelines.config.schema import Config, DataConfig
from pipelines.contents import file_hash
from pipelines.disk.records import Sample
from pipelines.errors import UserError
from pipelines.prepare.extra import ExtraColumns, listed
from pipelines.prepare.floats import rows_of
from pipelines.prepare.places import at_home, check_place, exists
from pipelines.prepare.rows import RESPONSE, Rejected, RowParser, match_columns, worth_a_look
from pipelines.words import counted

if TYPE_CHECKING:
    import datasets

RawRows = Iterator[Mapping[str, Any]]

BATCH = 32
"""Rows decoded from Arrow at a time: with images of a megabyte, 32 MB."""

PEEK = 64
"""Lines of a JSON lines file whose keys are taken for its columns."""

LARGEST_JSON = 2 * 2**30
"""Larger files (bytes) holding one JSON value are not read: it is in memory as a whole."""

LONGEST_LINE = 2**30
"""Longer lines of JSON Lines (bytes) are refused: a row is in memory as a whole."""

LONGEST_FIELD = 2**27
"""Of a CSV file, in characters: an image of 64 MiB in base64, and some."""

MOST_FILES = 1_000_000
"""Names in a folder that are looked at for a first Parquet file."""

_SPLIT_NAMES = ("train", "validation", "valid", "val", "dev", "test")
_SHARD = re.compile(r"(.+)-(\d+)-of-(\d+)")
_WRAPPERS = ("data", "rows", "examples", "questions")
"""Keys under which a JSON object may hold the list of rows."""


@dataclass(frozen=True)
class Part:
    """One table of a source, not read yet.

    ``read(columns)`` streams its rows with (at least) those columns. ``total`` is the number of
    rows, or None where only reading tells. ``scan()``, where rows may differ in their columns, reads
    all of them for their names: ``columns`` has those of the first. ``twice`` has names that stand there more
    than once, and where (``check_once``).
    """

    place: str
    columns: Sequence[str]
    total: int | None
    roots: tuple[Path, ...]
    read: Callable[[Sequence[str]], RawRows]
    scan: Callable[[], Sequence[str]] | None = None
    twice: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """An opened source. ``rows`` can be read once; ``total`` is None where it is not known.

    ``remarks()``, when they were read: what is worth a line each.
    """

    name: str
    total: int | None
    rows: Iterator[Sample | Rejected]
    remarks: Callable[[], list[str]] = list


def read_source(
    data: DataConfig,
    *,
    split: Literal["train", "validation"],
    examples: bool = False,
    setting: str = "",
    inherited: bool = False,
) -> Source:
    """Open ``data.source`` (split train) or ``data.validation_source`` (split validation).

    A source is a file (.parquet, .jsonl, .ndjson, .json with one object a line, .csv), a folder of
    Parquet shards, an image folder with ``metadata.jsonl`` or ``metadata.csv``, a folder written by
    ``datasets``' ``save_to_disk``, or else a hub id. In a folder that holds several splits, only
    ``data.split`` (or ``data.validation_split``) is read. ``data.limit`` applies to each source.

    With ``examples`` the rows are to be looked at, not to train on: an answer is not needed, and a
    column ``response`` (or what ``data.columns`` names) goes into the metadata. ``setting`` is what names the
    source, and has its columns, where that is not ``data``: ``eval.sources.mytest``; they are those of
    ``data.columns`` all the same where ``inherited``.

    Rows without an id are called ``row-N`` (``validation-row-N``), N counting from 0.

    Raises:
        UserError: there is no such source, it is broken, or a column is missing. Errors that only
            show while reading are raised from ``rows``.
    """
    name, wanted = place_of(data, split)
    held_apart, path = split == "validation", at_home(name)
    named = setting or _setting(held_apart)
    told: list[str] = []
    if exists(path):
        check_place(f"{named} {name}", path)
        parts = _local(path, wanted, told)
    else:
        parts = [_hub(name, wanted, data, held_apart, named)]
    if not any(part.columns for part in parts):
        raise UserError(name, "the data set has no rows.", "Check the file.")
    columns = [_matched(data, part, examples, setting or "data", inherited) for part in parts]
    prefix = "validation-row-" if held_apart else "row-"
    extra = ExtraColumns(data.extra, {RESPONSE} if examples else ())
    for part, (names, _) in zip(parts, columns, strict=True):
        check_once(part.twice, _reads(names, extra))
    parsers: list[RowParser] = []
    rows = _parsed(parts, columns, prefix, "kind" in data.columns, examples, extra, _image_folders(data), parsers)
    totals = [part.total for part in parts]
    total = None if None in totals else sum(n for n in totals if n is not None)
    if total is not None and data.limit:
        total = min(total, data.limit)

    def remarks() -> list[str]:
        unnamed = 0 if examples else sum(parser.unnamed for parser in parsers)
        more = f"{setting or 'data'}.columns may name one ({{id: THEIR_NAME}})"
        without = f"without an id: {counted(unnamed, 'row')}, called {prefix}N by the place; {more}"
        return [*told, *extra.told(), *[without] * bool(unnamed)]

    return Source(name, total, itertools.islice(rows, data.limit), remarks)


def place_of(data: DataConfig, split: Literal["train", "validation"]) -> tuple[str, str]:
    """Where the questions of a split are, and what their source calls it."""
    if split == "validation":
        return data.validation_source or "", data.validation_split
    return data.source, data.split


def check_sources(data: DataConfig, *, examples: bool = False) -> None:
    """What reading will refuse, told before: sources that are not there, and columns they lack.

    A hub data set is not asked for.

    Raises:
        UserError: as :func:`read_source`.
    """
    splits: tuple[Literal["train", "validation"], ...] = ("train", "validation")
    for split in splits[: 2 if data.validation_source and not examples else 1]:
        name, _ = place_of(data, split)
        if name == "glyphs" and split == "train":
            return
        if exists(at_home(name)):
            read_source(data, split=split, examples=examples)
        else:
            check_hub_id(name, _setting(split == "validation"))


def _setting(validation: bool) -> str:
    return "data.validation_source" if validation else "data.source"


def _image_folders(data: DataConfig) -> list[Path]:
    """Those that ``data.image_folders`` names.

    Raises:
        UserError: one is not there, or is no folder.
    """
    found = []
    for name in data.image_folders:
        path = at_home(name)
        if not exists(path) or not path.is_dir():
            raise UserError(f"data.image_folders {name[:200]}", "no such folder.", "Name those that images lie in.")
        found.append(path)
    return found


def check_places(config: Config) -> None:
    """The same for all that the settings name, before anything of it is hashed.

    Raises:
        UserError: as :func:`check_place`; or a name that no path and no hub id can have.
    """
    named = [("data.source", config.data.source), ("model.path", config.model.path)]
    if config.data.validation_source:
        named.append(("data.validation_source", config.data.validation_source))
    named += ((f"eval.sources.{name}", one.source) for name, one in config.eval.sources.items())
    for setting, where in [*named, *(("data.image_folders", folder) for folder in config.data.image_folders)]:
        path = at_home(where)
        try:
            there = path.exists()
        except OSError as error:  # too long
            raise UserError(f"{setting} {where[:100]}...", f"is no path ({error.strerror}).", "Check it.") from error
        if there:
            check_place(f"{setting} {where}", path)


Columns = dict[str, tuple[str, ...]]


def _matched(data: DataConfig, part: Part, examples: bool, setting: str, inherited: bool) -> tuple[Columns, bool]:
    """Our columns -> a part's, and whether these are questions of text alone, as it seems.

    Where rows differ, all of them are asked if need be.
    """
    extra = () if isinstance(data.extra, str) else data.extra

    def match(found: Sequence[str]) -> tuple[Columns, bool]:
        ragged = part.scan is not None
        matched = match_columns(
            data.columns,
            found,
            part.place,
            extra=extra,
            examples=examples,
            ragged=ragged,
            setting=f"{setting}.columns",
            inherited=inherited,
        )
        return matched, "images" in matched and not set(matched["images"]) & set(found)

    if part.scan is None:
        return match(part.columns)
    try:
        matched, text_alone = match(part.columns)
    except UserError:
        text_alone = True
    return match(part.scan()) if text_alone else (matched, False)


def _reads(names: Columns, extra: ExtraColumns) -> Callable[[str], bool]:
    """Whether a column is one of ours, or is kept."""
    known = {name for theirs in names.values() for name in theirs}
    return lambda name: name in known or extra.keeps(name)


def _parsed(
    parts: Sequence[Part],
    columns: Sequence[tuple[Columns, bool]],
    prefix: str,
    strict_kind: bool,
    examples: bool,
    extra: ExtraColumns,
    folders: Sequence[Path],
    parsers: list[RowParser],
) -> Iterator[Sample | Rejected]:
    """The rows in order; adds to ``parsers`` those that parse them."""
    row = 0
    for part, (names, alone) in zip(parts, columns, strict=True):
        parser = RowParser(names, part.roots, prefix, strict_kind, examples, extra, alone, folders)
        parsers.append(parser)
        known = dict.fromkeys(name for theirs in names.values() for name in theirs)
        others = [name for name in part.columns if name not in known]
        extra.see(others)
        looked_at = others if alone else worth_a_look(part.columns)
        wanted = known | dict.fromkeys([*looked_at, *filter(extra.wants, others)])
        read = _reads(names, extra)
        for raw in part.read([name for name in wanted if name not in part.twice or read(name)]):
            if twice := twice_in(raw):
                check_once(twice, read)
            if part.scan:
                extra.see([name for name in raw if name not in known])
            yield parser.parse(row, raw)
            row += 1


def _local(path: Path, split: str, told: list[str]) -> list[Part]:
    """The tables of a file or folder; adds to ``told`` what is odd about it."""
    if path.is_file():
        opener = FILES.get(path.suffix.lower())
        if opener is None:
            raise UserError(
                str(path),
                f"files of type {path.suffix or '(none)'} are not read.",
                f"Give one of {' '.join(FILES)}, or a folder.",
            )
        return [opener(path, path.parent)]
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return [saved(path, split)]
    for name in ("metadata.jsonl", "metadata.csv"):
        if (path / name).is_file():
            return [FILES[(path / name).suffix](path / name, path)]
    shards = _shards(path, split)
    if shards:
        told += _odd(shards, path)
        return [parquet(shard, path) for shard in shards]
    if (path / split).is_dir():
        return _local(path / split, split, told)
    raise UserError(
        str(path),
        "this folder holds no data set.",
        "Expected Parquet files, metadata.jsonl or metadata.csv beside the images, or what "
        "datasets' save_to_disk writes.",
    )


def is_hidden(path: Path) -> bool:
    """Whether a path, relative to the data's folder, leads through what people do not see."""
    return any(part.startswith((".", "__MACOSX")) for part in path.parts)


def _parquet_files(folder: Path) -> list[Path]:
    """The Parquet files below a folder, hidden ones apart."""
    files, seen = [], 0
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not is_hidden(Path(name))]
        seen += len(names)
        here = [Path(place, n) for n in names if n.endswith(".parquet") and not is_hidden(Path(n))]
        files += [path for path in here if path.is_file()]
        if seen > MOST_FILES and not files:
            break
    return sorted(files)


def _shards(folder: Path, split: str) -> list[Path]:
    """The folder's Parquet files of this split: a test split must never slip into training."""
    files = _parquet_files(folder)
    splits = {path: _split_of(path.relative_to(folder)) for path in files}
    found = sorted({name for name in splits.values() if name})
    if not found:
        return files
    if split not in found:
        raise _no_split(folder, split, found)
    return [path for path, name in splits.items() if name == split]


def _odd(shards: Sequence[Path], folder: Path) -> Iterator[str]:
    """What may be wrong with a folder's shards: copies of one another, and numbers that are not there."""
    sizes = Counter(path.stat().st_size for path in shards)
    first: dict[str, Path] = {}
    for path in shards:
        if sizes[path.stat().st_size] > 1:
            original = first.setdefault(file_hash(path), path).relative_to(folder)
            if path.relative_to(folder) != original:
                yield f"{path.relative_to(folder)} is a copy of {original}: its questions count twice"
    numbers = [match for match in (_SHARD.fullmatch(path.stem) for path in shards) if match]
    for name, of in sorted({(match[1], match[3]) for match in numbers}):
        here = {int(match[2]) for match in numbers if (match[1], match[3]) == (name, of)}
        if len(here) < int(of):
            yield f"{len(here)} of the {int(of)} shards of {name} are there"


def _split_of(shard: Path) -> str | None:
    """The split a Parquet file belongs to by its name or its folder's, None where neither says."""
    if numbered := _SHARD.fullmatch(shard.stem):
        return numbered[1]
    return next((part for part in (shard.stem, *shard.parts) if part in _SPLIT_NAMES), None)


def _no_split(place: Path, split: str, found: Sequence[str]) -> UserError:
    return UserError(
        str(place),
        f"no split {split!r}; splits found: {', '.join(found)}.",
        "Choose one with --set data.split=NAME (or data.validation_split, eval.sources.NAME.split).",
    )


def check_once(twice: Mapping[str, str], read: Callable[[str], bool]) -> None:
    """See that no column that is read stands there more than once: of two, one would be lost.

    Args:
        twice: names that do, and where.
        read: whether a column of this name is read.

    Raises:
        UserError: one does.
    """
    bad = [name for name in twice if read(name)]
    if bad:
        same = [repr(name) for name in bad if twice[name] == twice[bad[0]]]
        problem = f"{listed(same)} stands there more than once: which one counts is not known."
        raise UserError(twice[bad[0]], problem, "Give each a name of its own, or take out those that are too many.")


def twice_in(row: Any) -> dict[str, str]:
    """The keys that an object of JSON repeats, and where."""
    return dict.fromkeys(row.twice, row.place) if isinstance(row, _Repeating) else {}


def _repeated(names: Sequence[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]


class _Repeating(dict[str, Any]):
    """A JSON object that repeats keys: ``twice`` are those, ``place`` where it stands. The last of each counts."""

    def __init__(self, content: Mapping[str, Any], twice: Sequence[str], place: str) -> None:
        super().__init__(content)
        self.twice, self.place = twice, place


def _loads(text: str, place: str) -> Any:
    """A JSON value, its objects with what they repeat.

    Raises:
        ValueError, RecursionError: it is none.
    """

    def of_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        return found if len(found) == len(pairs) else _Repeating(found, _repeated([name for name, _ in pairs]), place)

    return json.loads(text, object_pairs_hook=of_pairs)


def parquet(path: Path, root: Path) -> Part:
    with broken(path, "Parquet"), pq.ParquetFile(path) as file:
        columns, total = file.schema_arrow.names, file.metadata.num_rows
    twice = dict.fromkeys(_repeated(columns), f"{path}, columns")
    columns = list(dict.fromkeys(columns))

    def read(wanted: Sequence[str]) -> RawRows:
        with broken(path, "Parquet"), pq.ParquetFile(path) as file:
            # Group by group: read in one go, pyarrow keeps every group it has passed in memory.
            for group in range(file.num_row_groups):
                for batch in file.iter_batches(BATCH, row_groups=[group], columns=list(wanted)):
                    yield from rows_of(batch)

    return Part(str(path), columns, total, (root,), read, twice=twice)


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
                str(self.path), f"not a readable {self.format_name} file ({detail}).", "Copy or download it again."
            ) from error


def json_lines(path: Path, root: Path) -> Part:
    def columns(rows: RawRows) -> list[str]:
        found: dict[str, None] = {}
        for row in rows:
            found.update(dict.fromkeys(row))
        return list(found)

    first = list(itertools.islice(_read_json_lines(path), PEEK))
    return Part(
        str(path),
        columns(iter(first)),
        None,
        (root,),
        lambda wanted: _read_json_lines(path),
        lambda: columns(_read_json_lines(path)),
        _twice_of(first),
    )


def _twice_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What rows repeat, and where the first does."""
    return {name: place for row in reversed(rows) for name, place in twice_in(row).items()}


def _read_json_lines(path: Path) -> RawRows:
    with broken(path, "JSON Lines"), open(path, "rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE + 1), b""), 1):
            if not line.strip():
                continue
            if len(line) > LONGEST_LINE:
                raise UserError(f"{path}, line {number}", f"is longer than {LONGEST_LINE} bytes.")
            try:
                row = _loads(line.decode("utf-8-sig"), f"{path}, line {number}")
            except (ValueError, RecursionError) as error:
                detail = getattr(error, "msg", None) or "not UTF-8, or nested too deeply"
                raise UserError(
                    f"{path}, line {number}",
                    f"not JSON: {detail}.",
                    'Each line holds one object: {"problem": ..., "images": [...], ...}.',
                ) from error
            if not isinstance(row, dict):
                raise UserError(
                    f"{path}, line {number}",
                    f"expected an object, found a {type(row).__name__}.",
                    "Write one object a line (JSON Lines), not one list of all.",
                )
            yield row


def json_file(path: Path, root: Path) -> Part:
    """One JSON value that holds all rows, or JSON Lines under this name.

    The value is a list of objects, an object of objects (whose keys are the ids of rows without one),
    or an object with such a list or object as ``data`` (``rows``, ``examples``, ``questions``).
    """
    content = None if _is_json_lines(path) else _json(path)
    if content is None:
        return json_lines(path, root)
    columns = dict.fromkeys(name for row in content for name in row)
    names, twice = list(columns), _twice_of(content)
    return Part(str(path), names, len(content), (root,), lambda wanted: iter(content), lambda: names, twice)


def _is_json_lines(path: Path) -> bool:
    """Whether a file's first line is a row of its own."""
    with broken(path, "JSON"), path.open("rb") as file:
        line = next((line for line in iter(lambda: file.readline(LONGEST_LINE), b"") if line.strip()), b"")
    try:
        first = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return False
    return isinstance(first, dict) and _rows_in(first) is None


def _json(path: Path) -> list[Mapping[str, Any]] | None:
    """The rows of one JSON value; None where lines are to be read, which say what is wrong with which."""
    if path.stat().st_size > LARGEST_JSON:
        raise UserError(str(path), "one JSON value is too large to be read.", "Write one object a line.")
    try:
        with broken(path, "JSON"):
            text = path.read_text(encoding="utf-8-sig")
        content = _loads(text, str(path))
    except (ValueError, RecursionError) as error:
        if not _starts_a_list(path):
            return None
        raise UserError(str(path), f"not JSON: {error}.", "Copy or download it again.") from error
    rows = content if isinstance(content, list) else _rows_in(content)
    if rows is None and isinstance(content, dict):
        rows = [content]  # one row, over several lines
    if rows is None or not all(isinstance(row, dict) for row in rows):
        raise UserError(str(path), "expected a list of objects, or an object of them by id.", "")
    return rows


def _starts_a_list(path: Path) -> bool:
    with broken(path, "JSON"), path.open("rb") as file:
        return file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")


def _rows_in(content: Any) -> list[Any] | None:
    """The rows of an object that holds them all; None where it is a row itself."""
    if not isinstance(content, dict) or not content:
        return None
    for name in _WRAPPERS:
        held, rows = content.get(name), None
        if isinstance(held, list) and held and all(isinstance(row, dict) for row in held):
            rows = held
        elif isinstance(held, dict):
            rows = _rows_in(held)
        if rows:
            check_once(twice_in(content), name.__eq__)
            return rows
    if all(isinstance(row, dict) for row in content.values()):
        check_once(twice_in(content), lambda _: True)
        return [_with_id(name, row) for name, row in content.items()]
    return None


def _with_id(name: str, row: dict[str, Any]) -> dict[str, Any]:
    found = {"id": name} | row
    return _Repeating(found, row.twice, row.place) if isinstance(row, _Repeating) else found


def _csv(path: Path, root: Path) -> Part:
    def read(wanted: Sequence[str]) -> RawRows:
        return itertools.islice(_read_csv(path), 1, None)

    header = next(_read_csv(path), {})
    return Part(str(path), list(header), None, (root,), read, twice=twice_in(header))


def _read_csv(path: Path) -> RawRows:
    """The header as a row of its own (name -> name), then the rows."""
    with broken(path, "CSV"), open(path, encoding="utf-8-sig", newline="") as file:
        csv.field_size_limit(LONGEST_FIELD)  # of the whole process; Python's own is 128 kB
        lines = csv.reader(file, strict=True)
        try:
            header = next(lines, [])
            twice = _repeated(header)
            nameless = [name for name in twice if not name.strip()]  # as spreadsheets leave them
            named = {name: name for name in header if name not in nameless}
            yield _Repeating(named, [name for name in twice if name in named], f"{path}, line 1")
            for line in lines:
                if not line:
                    continue
                if len(line) != len(header):
                    raise UserError(
                        f"{path}, line {lines.line_num}",
                        f"{len(line)} fields where the header has {len(header)}.",
                        "Quote fields that hold commas or line breaks.",
                    )
                row = dict(zip(header, line, strict=True))
                for name in nameless:
                    del row[name]
                yield row
        except (csv.Error, UnicodeDecodeError) as error:
            raise UserError(f"{path}, line {lines.line_num + 1}", f"not CSV: {error}.") from error


def saved(path: Path, split: str) -> Part:
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
                yield from rows_of(batch)

    return Part(place, table.column_names, table.num_rows, roots, read)


def check_hub_id(name: str, key: str) -> None:
    """See that what the setting ``key`` names can be a hub data set.

    Raises:
        UserError: it cannot.
    """
    if not re.fullmatch(r"[\w.-]{1,96}(/[\w.-]{1,96})?", name) or Path(name).suffix in FILES or name == "..":
        beside: list[str] = []
        with contextlib.suppress(OSError, ValueError):
            beside = os.listdir(at_home(name).parent)
        near = difflib.get_close_matches(Path(name).name, beside, n=1)
        fix = f"Did you mean {Path(name).parent / near[0]}?" if near else "Check the path."
        raise UserError(f"{key} {name[:200]}", "no such file or folder.", fix)


def _hub(name: str, split: str, data: DataConfig, validation: bool, key: str) -> Part:
    check_hub_id(name, key)
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
            f"no such file or folder here, and as a hub data set ({tried}) it cannot be loaded: {detail}.",
            f"Without a connection, point to a local copy: --set {key}=PATH (a Parquet or JSONL file, or a folder).",
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
    ".json": json_file,
    ".csv": _csv,
}
"""File type -> how a file of it, with images relative to a folder, is opened."""
