"""Token perception of a data set: one Parquet row for each response, and a page to look at them.

A folder of four files:

    perception.parquet   a row for each response; columns as in pipelines.disk.records.Perceived; what it was
                         made with is in the file's metadata, as JSON (pipelines/perceive/provenance.py)
    look.html            how perception is distributed, and the first responses with their images, as many as
                         fit PAGE_BYTES
    rejected.jsonl       rows that were left out: row, id, reason, detail
    about.json           what it was made with, counts and settings

    duckdb -c "SELECT outcome, count(*), avg(dependency) FROM 'DIR/perception.parquet' GROUP BY outcome"
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.config.schema import Config
from pipelines.disk.fingerprint import fingerprint, named_files
from pipelines.disk.records import Perceived, Sample, schema
from pipelines.disk.step import disk_errors, sync_file
from pipelines.embedded import glyphs
from pipelines.errors import UserError
from pipelines.grading.reward import RewardFunction, reward_of
from pipelines.model.policy import Policy
from pipelines.page import embedded_json, packed, write_page
from pipelines.perceive.distributions import Distributions
from pipelines.perceive.one import Perception, as_response, remembering, sections, see
from pipelines.perceive.provenance import METADATA, Made, written
from pipelines.prepare.rows import RESPONSE, Rejected
from pipelines.prepare.samples import DATA_SEED, Filter
from pipelines.prepare.sources import Source, read_source
from pipelines.watch import Silent, Watch

ROWS, PAGE, REJECTED, ABOUT = "perception.parquet", "look.html", "rejected.jsonl", "about.json"

PAGE_BYTES = 12 * 2**20
"""Of what the page shows of single responses: it stays well below 20 MB."""


def perceive_dataset(config: Config, policy: Policy, masks: int, out: Path, watch: Watch, made: Made) -> dict[str, Any]:
    """Write the perception of every row of ``data.source`` into the new folder ``out``.

    Responses are those of the column ``response`` if the source has one (or ``data.columns`` names
    one), else the model writes one for each question. They are graded where the row has an answer.

    Args:
        config: ``data``: which rows; ``rollout``: how responses are sampled; ``score``: the estimator.
        masks: perturbed images to average over.
        made: what is to be said of how this was made.

    Returns:
        Counts and means: rejected, shown (in the page), and those of ``Distributions.counts``.

    Raises:
        UserError: the folder is there already; the source cannot be read, or has no usable row.
    """
    policy = remembering(policy, config.score.batch_prompts)
    source = open_examples(config, policy)
    page, seen = _Page(), Distributions()
    made = made | {"data": _named(config)}
    columns = schema(Perceived).with_metadata({METADATA: json.dumps(made)})
    with new_folder(out) as partial, closing(reward_of(config)) as grader:
        with (
            (partial / REJECTED).open("w", encoding="utf-8") as listing,
            pq.ParquetWriter(partial / ROWS, columns, compression="zstd") as file,
        ):
            filtered = Filter(config, listing, _Notes(watch))
            for samples in _batches(filtered.usable(source, "rows"), config.score.batch_prompts):
                watch.progress("responses", seen.responses, source.total)
                given = [sample.details().get(RESPONSE) for sample in samples]
                rows = see(config, policy, samples, given, masks, seen.responses, made=made)
                _grade(rows, samples, grader)
                file.write_table(pa.Table.from_pylist([_columns(row) for row in rows], columns))
                seen.add(rows, samples)
                page.add(rows)
        watch.progress("responses", seen.responses, seen.responses)
        counts = seen.counts() | {"rejected": filtered.reasons.total(), "shown": len(page.entries)}
        figures = seen.figures(made["unit"], config.score.keep_fraction)
        _write_page(partial / PAGE, source.name, page.entries, made, counts, figures)
        about = {"made_with": made, **counts, "settings": config.model_dump(mode="json")}
        (partial / ABOUT).write_text(json.dumps(about, indent=1), encoding="utf-8")
    return counts


def _named(config: Config) -> str:
    """Which data these are, their content or the hub's commit included."""
    data, path = config.data, Path(config.data.source)
    known = [data.source]
    if path.exists():
        known.append(f"content {fingerprint(path)}")
        if path.is_file() and (images := named_files(path, path.parent)):
            known.append(f"of the files it names {images}")
    elif data.source != "glyphs":
        known += [f"{name} {value}" for name in ("subset", "split", "revision") if (value := getattr(data, name))]
    return ", ".join([*known, *([f"the first {data.limit} rows"] if data.limit else [])])


def _columns(row: Perceived) -> dict[str, Any]:
    return {name: getattr(row, name) for name in schema(Perceived).names}


def _write_page(
    path: Path, name: str, entries: list[dict[str, Any]], made: Made, counts: dict[str, Any], figures: dict[str, Any]
) -> None:
    drawn = counts["responses"] - counts["given"]
    origins = [f"{counts['given']} given"] * bool(counts["given"]) + [f"{drawn} {written(made)}"] * bool(drawn)
    shown = sections(entries, made, "; ".join(origins)) | {"figures": figures}
    if len(entries) < counts["responses"]:
        all_rows = f"{ROWS} has all {counts['responses']}"
        shown["viewer_notes"] = [f"Shown: the first {len(entries)} responses, as many as fit this page; {all_rows}."]
    write_page(path, f"Token perception: {name}", shown)


class _Page:
    """The entries of the page, as many as fit."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []
        self._left = PAGE_BYTES

    def add(self, rows: Sequence[Perception]) -> None:
        for row in rows if self._left > 0 else ():
            entry = row.entry()
            text = embedded_json(entry)
            self._left -= max(len(packed(text)), len(text) // 6)  # so much a browser unpacks without effort
            if self._left >= 0 or not self.entries:
                self.entries.append(entry)


def _grade(rows: Sequence[Perception], samples: Sequence[Sample], grader: RewardFunction) -> None:
    """Fill in answer, outcome and reward of the rows whose question has an answer."""
    known = [(row, sample) for row, sample in zip(rows, samples, strict=True) if row.gold]
    marks = grader([row.response for row, _ in known], [s for _, s in known], [row.truncated for row, _ in known])
    for (row, _), mark in zip(known, marks, strict=True):
        row.answer, row.outcome, row.reward, row.named = mark.answer, mark.outcome, mark.reward, mark.named


class _Notes(Silent):
    """Passes on what is worth a line; how far reading is interests nobody, who waits for responses."""

    def __init__(self, watch: Watch) -> None:
        self.note = watch.note  # type: ignore[method-assign]


def _batches(samples: Iterator[Sample], size: int) -> Iterator[list[Sample]]:
    batch: list[Sample] = []
    for sample in samples:
        batch.append(sample)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def open_examples(config: Config, policy: Policy) -> Source:
    """The rows of ``data.source``; those with nothing to perceive are rejected.

    Raises:
        UserError: it cannot be read.
    """
    data = config.data
    if data.source == "glyphs":
        options = glyphs.GlyphsOptions(levels=data.glyphs.levels, guessable=data.glyphs.guessable)
        count = min(data.limit or data.glyphs.test, data.glyphs.test)
        drawn = (glyphs.make_sample("test", i, DATA_SEED, options) for i in range(count))
        return Source("glyphs", count, drawn)
    source = read_source(data, split="train", examples=True)
    rows = (_checked(row, item, policy) for row, item in enumerate(source.rows))
    return replace(source, rows=rows)


def _checked(row: int, item: Sample | Rejected, policy: Policy) -> Sample | Rejected:
    if isinstance(item, Rejected):
        return item
    if not item.images:
        return Rejected(row, item.id, "no image", "there is nothing to perceive")
    text = item.details().get(RESPONSE)
    if text is not None:
        try:
            as_response(policy, text)
        except UserError as error:
            return Rejected(row, item.id, "unusable response", error.problem)
    return item


def check_new(out: Path) -> None:
    """See that nothing would be overwritten.

    Raises:
        UserError: there is something already.
    """
    if out.is_dir() and not any(out.iterdir()):
        return
    if out.exists() or out.is_symlink():
        raise UserError(f"--out {out}", "is there already.", "Name a new folder.")


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to write into, which becomes ``out`` in one instant when the block ends.

    Raises:
        UserError: ``out`` is there already; the disk is full, or does not allow it.
    """
    check_new(out)
    partial = out.with_name(f"{out.name}.{os.getpid()}.partial")
    with disk_errors(out):
        partial.mkdir(parents=True)
        try:
            yield partial
            for file in partial.iterdir():
                sync_file(file)
            check_new(out)
            partial.replace(out)  # over an empty folder as well
            sync_file(out.parent)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
