"""Where a benchmark's rows are: on the hub, or in a folder of local copies.

In a folder DIR, each of these serves, the first that is there:

- ``DIR/NAME``, ``DIR/ORG/REPO``, ``DIR/REPO``: a hub data set as downloaded (Parquet, JSON or JSON
  Lines files of each split), or what ``save_to_disk`` leaves;
- ``DIR/NAME.parquet``, ``.jsonl``, ``.json``: one file with all rows;
- ``DIR/datasets--ORG--REPO``: the hub's cache;
- ``DIR/papo/ORG_REPO.json`` or what ``DIR/dataset_info.json`` names: the authors' evaluation files,
  chat messages with images relative to DIR. DIR may as well be the folder ``data`` is in.

Only files of the split asked for are opened.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.benchmarks.base import Benchmark, Where
from evals.benchmarks.table import EIGHT
from pipelines.config.hub import check_commit, commit_of
from pipelines.config.settings import plain_yaml
from pipelines.disk.fingerprint import fingerprint, named_files
from pipelines.errors import UserError
from pipelines.prepare.floats import read_as_written, rows_of
from pipelines.prepare.sources import (
    BATCH,
    Part,
    RawRows,
    arrow,
    hub_caches,
    is_hidden,
    json_file,
    json_lines,
    parquet,
    saved,
)

if TYPE_CHECKING:
    import datasets


LONGEST_CARD = 2**18
"""Characters of a data set's README.md that are looked at."""

_CARD_HEAD = re.compile(r"---[ \t]*\r?\n(.*?)\n---", re.DOTALL)

Opened = Iterator[tuple[Where, Part]]


@dataclass(frozen=True)
class Files:
    """Local files (or folders of ``save_to_disk``) with a benchmark's rows, in order."""

    root: Path
    files: tuple[tuple[Where, Path], ...]

    @property
    def rows_alone(self) -> bool:
        """Whether they are files of rows: of what ``save_to_disk`` left, nobody looks which images it names."""
        return all(path.is_file() for _, path in self.files)

    def content(self, folders: Sequence[Path] = ()) -> str:
        """What they hold, as hashes, and what the files hold that JSON names (its images).

        Args:
            folders: those besides ``root`` that images may lie in; without such images they change nothing.
        """
        found = [fingerprint(path) for _, path in self.files]
        for _, path in self.files:
            if path.is_file():
                found.append(named_files(path, self.root))
                if folders and self.rows_alone:
                    found.append(named_files(path, *folders))
        return " ".join(dict.fromkeys(filter(None, found)))

    def read(self, columns: Collection[str]) -> dict[str, str]:
        """What is said of how they are read, besides (``read_as_written``)."""
        return read_as_written(*(path for _, path in self.files), read=lambda name: name in columns)


# --- local copies ---------------------------------------------------------------------------------


def find_files(benchmark: Benchmark, data_dir: str) -> Files:
    """A benchmark's files in a folder of local copies.

    Raises:
        UserError: there are none; says where they were looked for.
    """
    folder, name = Path(data_dir).expanduser(), benchmark.name
    if not folder.is_dir():
        raise UserError(f"--data-dir {data_dir}", "no such folder.", "")
    tried = list(_places(folder, benchmark))
    for place in tried:
        if place.is_file():
            return Files(_image_root(place), ((Where(), place),))
        if place.is_dir() and (found := _in_folder(place, benchmark)):
            return Files(place, found)
    splits = f"split {' '.join(benchmark.splits)}"
    if subsets := [subset for subset in benchmark.subsets if subset]:
        splits += f", subset {' '.join(subsets)}"
    raise UserError(
        f"benchmark {name}",
        f"no local copy ({splits}) in --data-dir {data_dir}; looked for "
        f"{', '.join(str(place.relative_to(folder)) for place in tried)}.",
        f"Put {benchmark.hub} there: hf download {benchmark.hub} --repo-type dataset "
        f"--local-dir {folder / benchmark.hub}",
    )


def _places(folder: Path, benchmark: Benchmark) -> Iterator[Path]:
    name = benchmark.name
    org, _, repo = benchmark.hub.partition("/")
    yield folder / name
    yield folder / org / repo
    yield folder / repo
    for suffix in OPENERS:
        yield folder / f"{name}{suffix}"
    cache = folder / f"datasets--{org}--{repo}"
    head = cache / "refs" / "main"
    revision = head.read_text().strip() if head.is_file() else "main"
    yield cache / "snapshots" / Path(revision).name
    for base in (folder, folder / "data") if name in EIGHT else ():
        yield from _listed(base, benchmark)
        for stem in filter(None, (f"{org}_{repo}", benchmark.authors_file)):
            yield base / "papo" / f"{stem}.json"


def _listed(base: Path, benchmark: Benchmark) -> Iterator[Path]:
    """Files that LLaMA-Factory's ``dataset_info.json`` lists under the benchmark's name."""
    try:
        listing = json.loads((base / "dataset_info.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return
    wanted = {_plain(text) for text in (benchmark.name, benchmark.title, benchmark.hub.partition("/")[2])}
    for key, entry in listing.items() if isinstance(listing, dict) else ():
        file = entry.get("file_name") if isinstance(entry, dict) else None
        called = any(_plain(key).endswith(text) for text in wanted)
        if called and isinstance(file, str) and _stays_inside(file):
            yield base / file


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def _stays_inside(path: str) -> bool:
    return bool(path) and not Path(path).is_absolute() and ".." not in Path(path).parts


def _image_root(file: Path) -> Path:
    """Where relative paths of images start: beside the file, or beside the authors' ``papo``."""
    return file.parent.parent if file.parent.name == "papo" else file.parent


def _in_folder(place: Path, benchmark: Benchmark) -> tuple[tuple[Where, Path], ...]:
    """The files of every subset and split; nothing where the folder has none of them."""
    if (place / "state.json").is_file():  # save_to_disk, all rows in one table
        return ((Where(), place),)
    wheres = [Where(subset, split) for subset in benchmark.subsets for split in benchmark.splits]
    several = len(benchmark.subsets) > 1
    found = {where: _of_split(place, where.subset, where.split or "", several) for where in wheres}
    missing = [where for where, files in found.items() if not files]
    if missing and len(missing) < len(wheres):
        names = ", ".join("/".join(filter(None, (w.subset, w.split))) for w in missing)
        raise UserError(str(place), f"the copy is not complete: no file of {names}.", "Copy it again.")
    return tuple((where, file) for where, files in found.items() for file in files)


def _of_split(place: Path, subset: str | None, split: str, several: bool) -> list[Path]:
    if listed := _by_card(place, subset, split):
        return listed
    if subset and (place / subset).is_dir():
        place = place / subset
    elif subset and several:  # another subset's files must not pass for this one's
        return []
    if (place / "state.json").is_file():
        return [place]
    if (place / "dataset_dict.json").is_file():
        return [place / split] if (place / split / "state.json").is_file() else []
    for suffix in OPENERS:  # Parquet anywhere before JSON, which names its images at best
        for base in (place, place / "data", place / split):
            files = [f for f in sorted(base.glob(f"*{suffix}")) if not is_hidden(Path(f.name))]
            own = [f for f in files if base == place / split or _is_shard(f.stem, split)]
            if own:
                return own
    return []


def _is_shard(stem: str, split: str) -> bool:
    """``test``, ``test-00000-of-00001`` or ``test-00000-of-00001-3532b8d3f1b4047a``."""
    return bool(re.fullmatch(rf"{re.escape(split)}(-\d+-of-\d+(-\w+)?)?", stem))


def _by_card(place: Path, subset: str | None, split: str) -> list[Path]:
    """The files of a split as the data set's card (README.md) lists them; DynaMath's need it.

    A file that two patterns match counts once.

    Raises:
        UserError: a pattern of the card is none.
    """
    try:
        with (place / "README.md").open(encoding="utf-8") as file:
            text = file.read(LONGEST_CARD)
        head = _CARD_HEAD.match(text)
        card = plain_yaml(head[1]) if head else None
    except (OSError, ValueError):
        return []
    configs = card.get("configs") if isinstance(card, dict) else None
    patterns: list[Any] = []
    for config in configs if isinstance(configs, list) else []:
        if isinstance(config, dict) and config.get("config_name") == (subset or "default"):
            entries = config.get("data_files")
            for entry in entries if isinstance(entries, list) else [entries]:
                if isinstance(entry, dict) and entry.get("split") == split:
                    path = entry.get("path")
                    patterns += path if isinstance(path, list) else [path]
    files: list[Path] = []
    for pattern in patterns:
        if isinstance(pattern, str) and _stays_inside(pattern):
            try:
                files += sorted(
                    f for f in place.glob(pattern) if f.suffix in OPENERS and not is_hidden(f.relative_to(place))
                )
            except (ValueError, IndexError, NotImplementedError, RecursionError) as error:
                raise UserError(
                    str(place / "README.md"),
                    f"{pattern[:200]!r}, the path of split {split}, is not a pattern of files.",
                    "Correct the card, or remove it: files called SPLIT-*.parquet are found without.",
                ) from error
    return list(dict.fromkeys(files))


def open_files(found: Files) -> Opened:
    """The tables behind local files, opened one after the other."""
    for where, path in found.files:
        root = found.root if path.is_file() else path
        yield where, OPENERS[path.suffix](path, root) if path.is_file() else saved(path, where.split or "")


OPENERS: dict[str, Callable[[Path, Path], Part]] = {".parquet": parquet, ".jsonl": json_lines, ".json": json_file}
"""File type -> how it is opened, best first where a folder holds a split twice."""


# --- the hub --------------------------------------------------------------------------------------


def open_hub(benchmark: Benchmark, revision: str | None = None) -> Opened:
    """The tables of a benchmark on the hub, streamed: only the files of its split are read.

    Args:
        revision: the commit to read; none: what the hub has now.

    With HF_HUB_OFFLINE set, what ``datasets`` has in its cache is used.

    Raises:
        UserError: the hub cannot be reached or has no such data set; within seconds.
    """
    import datasets

    offline = datasets.config.HF_HUB_OFFLINE
    for subset in benchmark.subsets:
        for split in benchmark.splits:
            where = Where(subset, split)
            try:
                table = datasets.load_dataset(
                    benchmark.hub, subset, split=split, streaming=not offline, revision=revision
                )
                part = arrow(table, benchmark.hub, hub_caches()) if offline else _streamed(table, benchmark, where)
            except Exception as error:  # whatever the library's HTTP client, or its parser, raises
                raise unreachable(benchmark, where, error) from error
            if offline:
                check_commit(table, revision, f"benchmark {benchmark.name}")
            yield where, part


def commit_of_benchmark(benchmark: Benchmark) -> str:
    """The commit of a benchmark's data set. Asked first: ``datasets`` itself would try an unreachable
    hub for half a minute.

    Raises:
        UserError: neither the hub nor its cache on this machine tells.
    """
    try:
        return commit_of("dataset", benchmark.hub, benchmark.hub)
    except UserError as error:
        where = Where(benchmark.subsets[0], benchmark.splits[0])
        raise unreachable(benchmark, where, RuntimeError(error.problem.partition(": ")[2])) from error


def _streamed(table: datasets.IterableDataset, benchmark: Benchmark, where: Where) -> Part:
    columns = table.column_names or list(next(iter(table.take(1)), {}))

    def read(wanted: Sequence[str]) -> RawRows:
        try:
            for batch in table.select_columns(list(wanted)).with_format("arrow").iter(BATCH):
                yield from rows_of(batch)
        except Exception as error:  # the connection was lost, for one
            raise unreachable(benchmark, where, error) from error

    return Part(benchmark.hub, columns, None, (), read)


def unreachable(benchmark: Benchmark, where: Where, error: Exception) -> UserError:
    """What was asked of the hub, what came of it, and how to do without."""
    name = benchmark.name
    asked = f"subset {where.subset}, split {where.split}" if where.subset else f"split {where.split}"
    detail = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    return UserError(
        f"benchmark {name}",
        f"hub data set {benchmark.hub} ({asked}) cannot be loaded: {detail}.",
        f"Give local copies with --data-dir DIR, which may hold DIR/{benchmark.hub} (as downloaded, "
        f"or from save_to_disk), DIR/{name}.parquet, .jsonl or .json, or the authors' "
        f"DIR/papo/{benchmark.hub.replace('/', '_')}.json.",
    )
