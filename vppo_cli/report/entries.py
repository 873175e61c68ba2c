"""The token viewer's entries of a run: what its artifacts say of a few prompts of every step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pyarrow as pa

from pipelines.disk.records import Advantages, Look, Rollout, Row, SampleTable, Scored, rows_of
from pipelines.page import embedded_json, packed
from pipelines.page.images import PageImages
from pipelines.page.viewer import Entry, perceived, prompt_entry
from pipelines.words import counted
from vppo_cli.report.source import LOOKS, RunSource, Vocabulary, read_table, spread_order

GROUPS = 4
"""Prompts of a step that are shown where no looks.parquet chooses them."""

MOST_JSON = 80_000_000
"""Characters of all entries before they are compressed: what a browser holds without effort."""


@dataclass
class Viewer:
    """Entries within a budget of bytes, and what had to be left out for it."""

    entries: list[Entry] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    left_out: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def viewer(source: RunSource, vocabulary: Vocabulary | None, budget: int, steps: Sequence[int] | None = None) -> Viewer:
    """The entries of the steps asked for, as many as fit, spread evenly over training.

    Args:
        budget: bytes of the page that they may take.
        steps: those to show; None: all whose S is known.
    """
    wanted = [t for t in source.perceived if steps is None or t in steps]
    maker = EntryMaker(source, vocabulary)
    made: dict[int, list[Entry]] = {}
    left, raw_left, cut = budget, MOST_JSON, False
    for place in spread_order(len(wanted)):
        step = wanted[place]
        entries: list[Entry] = []
        for entry in maker.entries(step):
            size, raw = _sizes(entry)
            if (size > left or raw > raw_left) and not made and not entries:
                entry = _without_alternatives(entry)  # better in part than an empty viewer
                (size, raw), cut = _sizes(entry), True
            if size > left or raw > raw_left:
                cut = True
                break
            left, raw_left = left - size, raw_left - raw
            entries.append(entry)
        if entries:
            made[step] = entries
        if cut:
            break
    found = Viewer(
        entries=[entry for step in sorted(made) for entry in made[step]],
        steps=sorted(made),
        left_out=[t for t in wanted if t not in made],
    )
    found.notes = _notes(source, found, maker, cut=cut)
    return found


def _sizes(entry: Entry) -> tuple[int, int]:
    """Characters that an entry takes in the page, and of its JSON."""
    text = embedded_json(entry)
    return len(packed(text)), len(text)


def _without_alternatives(entry: Entry) -> Entry:
    plain = [{**r, "top": None, "top_perturbed": None} for r in entry["responses"]]
    return {**entry, "responses": plain}


def _notes(source: RunSource, found: Viewer, maker: EntryMaker, *, cut: bool) -> list[str]:
    from vppo_cli.screen.words import ranges

    notes = []
    if cut and found.steps:
        shown = f"Shown: steps {ranges(found.steps)}" if len(found.steps) > 1 else "Shown: one step"
        ask = found.left_out[0] if found.left_out else found.steps[0]
        notes.append(
            f"{shown}, as many as fit this page. Any other: vppo report {source.name} "
            f"--steps {ask} --out step-{ask}.html"
        )
    if len(source.perceived) < len(source.scored):
        measured = f"at no other step than {ranges(source.perceived)}" if source.perceived else "at no step"
        notes.append(
            f"{source.chain.config.update.objective} needs no perception: it was measured {measured} (score.watch)."
        )
    if maker.without_looks:
        notes.append(
            "This run kept no second views (looks.parquet): perturbed images and the likeliest other "
            "tokens are not known, and images are as the data set has them."
        )
    if maker.without_advantages:
        notes.append(
            "Advantages are not shown where the update is not made, or kept none (advantages.parquet): "
            "nobody knows what it used."
        )
    if maker.vocabulary is None and maker.without_looks:
        notes.append("The run's tokenizer is not on this machine: tokens are shown by number.")
    if maker.images.shrunk:
        notes.append(
            f"{counted(maker.images.shrunk, 'image was', 'images were')} made smaller for this page; the Parquet "
            "files have them whole."
        )
    if maker.images.unreadable:
        notes.append(f"{counted(maker.images.unreadable, 'image')} could not be read.")
    return notes


class EntryMaker:
    """Builds entries of one run."""

    def __init__(self, source: RunSource, vocabulary: Vocabulary | None) -> None:
        self.source, self.vocabulary = source, vocabulary
        self.images = PageImages()
        self.without_looks = self.without_advantages = False

    @cached_property
    def samples(self) -> SampleTable:
        return SampleTable(self.source.chain.prepare.path / "train.parquet")

    def entries(self, step: int) -> Iterator[Entry]:
        """The step's entries, in the order of its groups."""
        rollouts, scores = self.source.tables(step)
        used = self.source.advantages(step, rollouts)
        self.without_advantages |= used is None
        looks = self._looks(step)
        positions = rollouts["position"].to_pylist()
        shown = looks["position"].to_pylist() if looks else positions[:GROUPS]
        for place, position in enumerate(shown):
            row = positions.index(position)
            group, scored = _row(rollouts, row, Rollout), _row(scores, row, Scored)
            look = _row(looks, place, Look) if looks else self._plain(group, scored)
            advantages = _row(used, row, Advantages) if used else None
            yield self._entry(step, group, scored, look, advantages)

    def _looks(self, step: int) -> pa.Table | None:
        score, file = self.source.chain.score(step), self.source.score_file(step, LOOKS)
        looks = None
        if file in (score.manifest() or {"files": ()})["files"]:
            looks = read_table(score, file, Look)
        self.without_looks |= not looks
        return looks or None

    def _plain(self, group: Rollout, scored: Scored) -> Look:
        """What is known without looks.parquet."""
        tokens = [[self._text(token) for token in ids] for ids in group.response_ids]
        images = self.samples.by_id(group.sample_id).images
        unknown: list[Any] = [[] for _ in tokens]
        return Look(group.sample_id, group.position, images, [], tokens, scored.old_logp, *[unknown] * 7)

    def _entry(self, step: int, group: Rollout, scored: Scored, look: Look, used: Advantages | None) -> Entry:
        sample = self.samples.by_id(group.sample_id)
        return prompt_entry(
            [perceived(sample, group, scored, look, i) for i in range(len(group.response_ids))],
            look.images,
            look.perturbed_images,
            self.images.urls,
            step=step,
            position=group.position,
            advantages=list(zip(used.advantage, used.shaped_advantage, strict=True)) if used else None,
        )

    def _text(self, token: int) -> str:
        return self.vocabulary.text(token) if self.vocabulary else f" {token}"


def _row(table: pa.Table, index: int, row_type: type[Row]) -> Row:
    return rows_of(table.slice(index, 1), row_type)[0]
