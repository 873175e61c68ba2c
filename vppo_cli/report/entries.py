"""The token viewer's entries of a run: what its artifacts say of a few prompts of every step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pyarrow as pa

from pipelines.disk.records import Look, SampleTable, schema
from pipelines.page import embedded_json, packed
from pipelines.page.images import PageImages
from vppo_cli.report.curves import short
from vppo_cli.report.looks import Looks
from vppo_cli.report.source import LOOKS, RunSource, Vocabulary, read_table, spread_order

GROUPS = 4
"""Prompts of a step that are shown where no looks.parquet chooses them."""

MOST_JSON = 80_000_000
"""Characters of all entries before they are compressed: what a browser holds without effort."""

Entry = dict[str, Any]


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
        notes.append(
            f"{source.chain.config.update.objective} needs no perception: it was measured at steps "
            f"{ranges(source.perceived) or 'none'} only (score.watch)."
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
            f"{maker.images.shrunk} images were made smaller for this page; the Parquet files have them whole."
        )
    if maker.images.unreadable:
        notes.append(f"{maker.images.unreadable} images could not be read.")
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
        chosen = [positions.index(p) for p in looks.positions] if looks else range(len(positions))
        for row in list(chosen)[: None if looks else GROUPS]:
            group, scored = (_row(table, row) for table in (rollouts, scores))
            look = looks.row(group["position"]) if looks else None
            advantages = _row(used, row) if used is not None else None
            yield self._entry(step, group, scored, look, advantages)

    def _looks(self, step: int) -> Looks | None:
        score, file = self.source.chain.score(step), self.source.score_file(step, LOOKS)
        looks = None
        if file in (score.manifest() or {"files": ()})["files"]:
            looks = Looks(read_table(score, file, schema(Look)))
        if looks is None or not looks.positions:
            self.without_looks = True
            return None
        return looks

    def _entry(self, step: int, group: Entry, scored: Entry, look: Entry | None, used: Entry | None) -> Entry:
        sample = self.samples.by_id(group["sample_id"])
        views = look["perturbed_images"] if look else []
        advantages = {
            name: _rounded(used[name], 5) if used else [None] * len(group["response_ids"])
            for name in ("advantage", "shaped_advantage")
        }
        return {
            "step": step,
            "position": group["position"],
            "sample_id": group["sample_id"],
            "problem": sample.problem,
            "gold": sample.answer,
            "images": self.images.urls(look["images"] if look else sample.images),
            "perturbed": [self.images.urls(view) for view in views],
            "responses": [
                self._response(i, group, scored, look) | {name: values[i] for name, values in advantages.items()}
                for i in range(len(group["response_ids"]))
            ],
        }

    def _response(self, i: int, group: Entry, scored: Entry, look: Entry | None) -> Entry:
        ids = group["response_ids"][i]
        perturbed = look["logp_perturbed"] if look else []
        return {
            "tokens": look["tokens"][i] if look else [self._text(token) for token in ids],
            "perception": [short(v, 6) for v in scored["perception"][i]],
            "keep": scored["keep"][i],
            "logp": _rounded(look["logp"][i] if look else scored["old_logp"][i]),
            "logp_perturbed": _rounded(perturbed[i]) if perturbed and perturbed[i] else None,
            "entropy": _rounded(scored["entropy"][i]),
            "top": _alternatives(look, i, "top", "top_p", "top_q"),
            "top_perturbed": _alternatives(look, i, "top_perturbed", "top_perturbed_p", "top_perturbed_q"),
            "dependency": short(scored["dependency"][i], 6),
            "reward": short(group["reward"][i]),
            "outcome": group["outcome"][i],
            "answer": group["answer"][i],
            "truncated": group["truncated"][i],
        }

    def _text(self, token: int) -> str:
        return self.vocabulary.text(token) if self.vocabulary else f" {token}"


def _row(table: pa.Table, index: int) -> Entry:
    return dict(table.slice(index, 1).to_pylist()[0])


def _rounded(values: Sequence[float | None], digits: int = 4) -> list[float | None]:
    return [short(v, digits) if v is not None and math.isfinite(v) else None for v in values]


def _alternatives(look: Entry | None, i: int, *names: str) -> list[Any] | None:
    """[[[text, p, q], ...] of each token] of response i; q is None where there is no second view.

    Args:
        names: the columns of texts, p and q.
    """
    if look is None:
        return None
    texts, clean, perturbed = (look[name][i] if look[name] else [] for name in names)
    if not texts:
        return None
    return [
        [
            [text, short(p, 3), short(perturbed[t][k], 3) if perturbed else None]
            for k, (text, p) in enumerate(zip(texts[t], clean[t], strict=True))
        ]
        for t in range(len(texts))
    ]
