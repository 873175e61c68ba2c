"""Token perception of a data set: one Parquet row for each response, and a page to look at them.

A folder of four files:

    perception.parquet   a row for each response; columns as in pipelines.disk.records.Perceived
    look.html            the first of them with their images, as many as fit PAGE_BYTES
    rejected.jsonl       rows that were left out: row, id, reason, detail
    about.json           model, settings and counts

    duckdb -c "SELECT outcome, count(*), avg(dependency) FROM 'DIR/perception.parquet' GROUP BY outcome"
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.config.schema import Config
from pipelines.disk.records import Perceived, Sample, schema
from pipelines.disk.step import disk_errors, sync_file
from pipelines.embedded import glyphs
from pipelines.errors import UserError
from pipelines.grading.reward import RewardFunction, make_reward
from pipelines.model.policy import Policy
from pipelines.perceive.one import Perception, as_response, remembering, see
from pipelines.prepare.rows import RESPONSE, Rejected
from pipelines.prepare.samples import DATA_SEED, Filter
from pipelines.prepare.sources import Source, read_source
from pipelines.watch import Silent, Watch

ROWS, PAGE, REJECTED, ABOUT = "perception.parquet", "look.html", "rejected.jsonl", "about.json"

PAGE_BYTES = 12 * 2**20
"""Of images in the page, which so stays well below 20 MB."""


def perceive_dataset(config: Config, policy: Policy, masks: int, out: Path, watch: Watch) -> dict[str, Any]:
    """Write the perception of every row of ``data.source`` into the new folder ``out``.

    Responses are those of the column ``response`` if the source has one (or ``data.columns`` names
    one), else the model writes one for each question. They are graded where the row has an answer.

    Args:
        config: ``data``: which rows; ``rollout``: how responses are sampled; ``score``: the estimator.
        masks: perturbed images to average over.

    Returns:
        Counts and means: responses, rejected, shown (in the page), truncated, graded, correct,
        dependency, dependency_correct and dependency_wrong (None where there are none).

    Raises:
        UserError: the folder is there already; the source cannot be read, or has no usable row.
    """
    policy = remembering(policy, config.score.batch_prompts)
    source = open_examples(config, policy)
    entries: list[dict[str, Any]] = []
    tally = Tally()
    settings = config.reward
    grader = make_reward(settings.function, settings.grader, settings.deadline, settings.workers)
    with new_folder(out) as partial, closing(grader):
        with (
            (partial / REJECTED).open("w", encoding="utf-8") as listing,
            pq.ParquetWriter(partial / ROWS, schema(Perceived), compression="zstd") as file,
        ):
            filtered = Filter(config, listing, _Notes(watch))
            for samples in _batches(filtered.usable(source, "rows"), config.score.batch_prompts):
                watch.progress("responses", tally.responses, source.total)
                given = [sample.details().get(RESPONSE) for sample in samples]
                rows = see(config, policy, samples, given, masks, tally.responses)
                _grade(rows, samples, grader)
                table = pa.Table.from_pylist([asdict(row) for row in rows], schema(Perceived))
                file.write_table(table)
                tally.add(rows)
                entries += [row.entry() for row in rows if tally.fits(row)]
        watch.progress("responses", tally.responses, tally.responses)
        counts = tally.counts() | {"rejected": filtered.reasons.total(), "shown": len(entries)}
        _write_page(partial / PAGE, source.name, entries)
        about = {"masks": masks, **counts, "settings": config.model_dump(mode="json")}
        (partial / ABOUT).write_text(json.dumps(about, indent=1), encoding="utf-8")
    return counts


def _write_page(path: Path, name: str, entries: list[dict[str, Any]]) -> None:
    from pipelines.page import write_page

    write_page(path, f"Token perception: {name}", {"viewer": entries})


class Tally:
    """What was seen so far."""

    def __init__(self) -> None:
        self.responses = self.truncated = self._bytes = 0
        self._dependency: dict[str | None, list[float]] = {}

    def add(self, rows: Sequence[Perception]) -> None:
        self.responses += len(rows)
        self.truncated += sum(row.truncated for row in rows)
        for row in rows:
            self._dependency.setdefault(row.outcome, []).append(row.dependency)

    def fits(self, row: Perception) -> bool:
        """Whether the page has room for this one too."""
        self._bytes += sum(map(len, (*row.images, *row.perturbed_images)))
        return self._bytes <= PAGE_BYTES

    def counts(self) -> dict[str, Any]:
        found = self._dependency
        right = found.get("correct", [])
        wrong = [d for name, ds in found.items() if name not in (None, "correct") for d in ds]
        return {
            "responses": self.responses,
            "truncated": self.truncated,
            "graded": len(right) + len(wrong),
            "correct": len(right),
            "dependency": _mean([d for ds in found.values() for d in ds]),
            "dependency_correct": _mean(right),
            "dependency_wrong": _mean(wrong),
        }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


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
