"""Test sets of one's own (``eval.sources``): read as training data is, kept as a benchmark's questions are."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pipelines.config.hub import commit_of
from pipelines.config.schema import Config, DataConfig, SourceConfig
from pipelines.disk.fingerprint import fingerprint, named_by
from pipelines.disk.records import Sample, write_samples
from pipelines.errors import UserError
from pipelines.model.control_tokens import as_text
from pipelines.model.images import ImageTally
from pipelines.prepare.floats import KEY as SHORT_FLOATS
from pipelines.prepare.floats import read_as_written
from pipelines.prepare.places import at_home, exists
from pipelines.prepare.rows import Rejected, UniqueNames, reader_version, reads
from pipelines.prepare.sources import Source, check_hub_id, read_source
from pipelines.watch import Watch

REJECTED = "rejected.jsonl"
"""Beside the questions: row, id, reason and detail of each row that is left out."""

PLACE = "place"
"""Metric of gathered questions: the path that they were read from; by it they are known when it is gone."""

CONTENT = {"source", "files named by it", SHORT_FLOATS}
"""Settings that say what is in the file or folder."""

PROGRESS_EVERY = 32


def settings(name: str, config: Config) -> dict[str, Any]:
    """What decides the questions: content and columns; of a hub data set its name, and the revision that is set."""
    asked, path = config.eval.sources[name], at_home(config.eval.sources[name].source)
    found: dict[str, Any] = {"benchmark": name, "columns": _columns(asked, config), "split": asked.split}
    found["prompts"] = "by content"  # by id and question, as once, pictures of another set could be shown
    if named := named_by(path, [at_home(folder) for folder in config.data.image_folders]):
        found["files named by it"] = f"content {named}"
    if exists(path):
        found["source"] = f"content {fingerprint(path)}"
        found |= read_as_written(path, read=reads(found["columns"], config.data.extra))
    else:
        found["source"] = " ".join(filter(None, ("hub", asked.source, asked.subset)))
        if asked.revision:
            found["revision"] = asked.revision
    extra = config.data.extra
    return found | reader_version(extra) | ({} if isinstance(extra, str) else {"extra": list(extra)})


def hub_of(name: str, config: Config) -> str:
    """The hub data set that a test set is; "" where it is a local file or folder."""
    source = config.eval.sources[name].source
    return "" if exists(at_home(source)) else source


def place(name: str, config: Config) -> str:
    """The path by which a test set is named, made absolute; that of a hub data set leads nowhere."""
    return str(at_home(config.eval.sources[name].source).absolute())


def commit(name: str, config: Config) -> str:
    """The commit of a test set on the hub.

    Raises:
        UserError: it is no hub data set, or neither the hub nor its cache on this machine tells.
    """
    source = config.eval.sources[name].source
    check_hub_id(source, _setting(name))
    return commit_of("dataset", source, f"{_setting(name)} {source}")


def check(name: str, config: Config) -> None:
    """What reading will refuse, told before; a hub data set is not asked for.

    Raises:
        UserError: there is no such source, it is broken, or a column is missing.
    """
    if hub_of(name, config):
        check_hub_id(config.eval.sources[name].source, _setting(name))
    else:
        _open(name, config, None)


def write(path: Path, name: str, config: Config, revision: str | None, watch: Watch) -> dict[str, Any]:
    """Write a test set's questions, and ``REJECTED`` beside them; returns the step's metrics.

    Raises:
        UserError: it cannot be read, or no row is usable.
    """
    reader = _Reader(name, _open(name, config, revision), watch)
    kept = write_samples(path, reader.samples())
    watch.progress(f"questions {name}", reader.rows, reader.rows)
    if not kept:
        raise UserError(
            f"{_setting(name)} {config.eval.sources[name].source}",
            f"no usable row: all {reader.rows} are rejected." if reader.rows else "has no rows.",
            reader.example or "Check the file.",
        )
    (path.parent / REJECTED).write_text("".join(json.dumps(asdict(one)) + "\n" for one in reader.rejected))
    for line in reader.source.remarks():
        watch.note(f"{name}: {line}")
    warnings = [f"{name}: {line}" for line in reader.told()]
    for warning in warnings:
        watch.note(f"WARNING {warning}")
    found = {"rows": reader.rows, "kept": kept, "unreadable": len(reader.rejected), "warnings": warnings}
    return found if hub_of(name, config) else found | {PLACE: place(name, config)}


def _setting(name: str) -> str:
    return f"eval.sources.{name}"


def _columns(asked: SourceConfig, config: Config) -> dict[str, str]:
    return config.data.columns if asked.columns is None else asked.columns


def _open(name: str, config: Config, revision: str | None) -> Source:
    asked = config.eval.sources[name]
    data = DataConfig(
        source=asked.source,
        subset=asked.subset,
        split=asked.split,
        revision=revision or asked.revision,
        columns=_columns(asked, config),
        extra=config.data.extra,
        image_folders=config.data.image_folders,
    )
    return read_source(data, split="train", setting=_setting(name), inherited=asked.columns is None)


class _Reader:
    """Turns a source's rows into questions, and counts what becomes of them."""

    def __init__(self, name: str, source: Source, watch: Watch) -> None:
        self.name, self.source, self.watch = name, source, watch
        self.rows = self.tokens = self.renamed = 0
        self.rejected: list[Rejected] = []
        self.images = ImageTally()

    def samples(self) -> Iterator[Sample]:
        """The usable ones, in order, each under an id of its own."""
        unique = UniqueNames()
        for row in self.source.rows:
            self.rows += 1
            if self.rows % PROGRESS_EVERY == 0:
                self.watch.progress(f"questions {self.name}", self.rows, self.source.total)
            if isinstance(row, Rejected):
                self.rejected.append(row)
                continue
            problem, name = as_text(row.problem), unique(row.id)
            self.tokens += problem != row.problem
            self.renamed += name != row.id
            self.images.add(row.images)
            yield replace(row, id=name, problem=problem)

    @property
    def example(self) -> str:
        """The first row that is left out, and why; "" where none is."""
        return self.rejected[0].told if self.rejected else ""

    def told(self) -> list[str]:
        """What is odd about the set, a line each."""
        found = []
        if n := len(self.rejected):
            reasons = Counter(one.reason for one in self.rejected)
            listed = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
            example = f"{self.example}; {REJECTED}, beside the questions, has all"
            found.append(f"{n} of {self.rows} rows left out ({listed}). {example}")
        if n := self.renamed:
            found.append(f"{n} repeated id{'s' * (n > 1)} got a number after them")
        if n := self.tokens:
            found.append(
                f"special tokens of chat models in {n} question{'s' * (n > 1)}, written apart: <|name|> as < |name| >"
            )
        return found + self.images.told()
