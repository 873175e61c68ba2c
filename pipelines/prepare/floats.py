"""Numbers of tables in float16 or float32, as they were written: 0.1, and not 0.10000000149011612.

A table holds the float nearest to what somebody wrote. The shortest decimal that leads to the same float is what
they wrote, if it had no more digits than the type can hold; it is what a grader compares, and a reward reads.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.contents import remembered
from pipelines.disk.fingerprint import folder_files

KEY = "short floats"
"""Of the keys of data that have such numbers: earlier versions read them as float64 has them."""

Read = Callable[[Any], Any]


def reader_of(type_: pa.DataType) -> Read | None:
    """What turns a value of a column of this type, as Arrow gives it to Python, into that with short floats;
    None where the type holds none."""
    if isinstance(type_, pa.BaseExtensionType):
        return reader_of(type_.storage_type)
    if pa.types.is_float16(type_) or pa.types.is_float32(type_):
        wide = np.float16 if pa.types.is_float16(type_) else np.float32
        return lambda value: None if value is None else float(str(wide(value)))
    if pa.types.is_dictionary(type_) or pa.types.is_run_end_encoded(type_):
        return reader_of(type_.value_type)
    if pa.types.is_struct(type_):
        return _of_struct({field.name: reader_of(field.type) for field in type_})
    if pa.types.is_map(type_):
        return _of_map(reader_of(type_.key_type), reader_of(type_.item_type))
    inside = reader_of(type_.value_type) if hasattr(type_, "value_type") else None  # the kinds of lists
    return None if inside is None else lambda values: None if values is None else [inside(value) for value in values]


def _of_struct(fields: dict[str, Read | None]) -> Read | None:
    found = {name: read for name, read in fields.items() if read}
    if not found:
        return None
    return lambda value: None if value is None else value | {name: read(value[name]) for name, read in found.items()}


def _of_map(key: Read | None, item: Read | None) -> Read | None:
    if not (key or item):
        return None
    first, second = key or (lambda value: value), item or (lambda value: value)
    return lambda pairs: None if pairs is None else [(first(name), second(value)) for name, value in pairs]


def rows_of(batch: pa.RecordBatch | pa.Table) -> list[dict[str, Any]]:
    """A table's rows, its floats as they were written."""
    readers = {field.name: read for field in batch.schema if (read := reader_of(field.type))}
    rows: list[dict[str, Any]] = batch.to_pylist()
    for row in rows if readers else ():
        row |= {name: read(row[name]) for name, read in readers.items()}
    return rows


def read_as_written(*paths: Path, read: Callable[[str], bool]) -> dict[str, str]:
    """For the keys of what is read from these files and folders: nothing where no table of them has such columns.

    Args:
        read: whether a column of this name is read.
    """
    return {KEY: "as written"} if any(read(name) for path in paths for name in _short_floats(path)) else {}


def _short_floats(path: Path) -> list[str]:
    """The columns of tables that have such numbers, in whatever they hold."""
    files = folder_files(path) if path.is_dir() else [path] if path.is_file() else []
    tables = [file for file in files if file.suffix.lower() in (".parquet", ".arrow")]

    def make() -> str:
        return json.dumps(sorted({field.name for file in tables for field in _schema(file) if reader_of(field.type)}))

    try:
        return list(json.loads(remembered("columns with short floats of", path, tables, make))) if tables else []
    except OSError:  # gone meanwhile
        return []


def _schema(path: Path) -> pa.Schema:
    """Empty where it cannot be read: whoever reads its rows says so."""
    try:
        if path.suffix.lower() == ".parquet":
            return pq.read_schema(path)
        with pa.memory_map(str(path)) as file:
            return pa.ipc.open_stream(file).schema
    except (pa.ArrowException, OSError):
        return pa.schema([])
