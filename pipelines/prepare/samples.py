"""The prepare stage: any source -> Parquet files of usable samples.

What cannot be used (unreadable image, no answer, over-long prompt ...) is left out, counted by
reason and listed in ``rejected.jsonl``. What is odd but used (control tokens in a question, which are
pulled apart, images of a single colour, questions without image, columns that nothing is made of) is
told. Rows are streamed: memory holds one row group and the rows held out for validation.
"""

from __future__ import annotations

import heapq
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TextIO

from pipelines.config.schema import Config, DataConfig
from pipelines.disk.records import Sample, write_samples
from pipelines.embedded import glyphs
from pipelines.errors import UserError
from pipelines.model import chat_template
from pipelines.model.control_tokens import IMAGE, as_text, control_tokens, without_tokens
from pipelines.model.images import ImageTally, image_size
from pipelines.model.prompts import Before, PromptEncoder, load_processor
from pipelines.prepare.rows import Rejected, UniqueNames
from pipelines.prepare.sources import Source, read_source
from pipelines.seeds import generator
from pipelines.watch import Watch
from pipelines.words import counted

DATA_SEED = 0
"""Seeds the embedded data and the choice of held-out rows. It is not the run's seed, so that runs
which differ in their seed are trained and judged on the same questions."""

PROGRESS_EVERY = 32
"""Rows between two reports of progress."""


def prepare(config: Config, out: Path, watch: Watch) -> dict[str, float | int]:
    """Write the run's samples into the folder ``out``.

    ``train.parquet``, ``validation.parquet`` (without rows where none are held out),
    ``test.parquet`` (embedded data only), and ``rejected.jsonl`` with split, row (counted from 0),
    id, reason and detail of what is left out.

    Returns:
        Counts: train, validation, test, rejected; where there are any: ``rejected_<reason>`` for each
        reason met, ``defused`` (questions with control tokens), ``single_colour`` and ``warned``
        (images, and those that Pillow warns of).

    Raises:
        UserError: a source cannot be read, or no usable row is left in one.
    """
    sources = _open_sources(config.data)
    count = 0 if "validation" in sources else config.data.validation_count
    held: list[Sample] = []
    counts = {"train": 0, "validation": 0, "test": 0}
    with open(out / "rejected.jsonl", "w", encoding="utf-8") as listing:
        filtered = Filter(config, listing, watch)
        for split, source in sources.items():
            samples = filtered.usable(source, split)
            if split == "train":
                samples = hold_out(samples, count, held)
            counts[split] = write_samples(out / f"{split}.parquet", samples)
    if "validation" not in sources:
        if not counts["train"]:
            raise UserError(
                f"data.validation_count {count}",
                f"{config.data.source} has {len(held)} usable rows: none is left to train on.",
                "Set it lower, or name a data.validation_source.",
            )
        counts["validation"] = write_samples(out / "validation.parquet", held)
    reasons = {f"rejected_{why.replace(' ', '_')}": n for why, n in sorted(filtered.reasons.items())}
    odd = {
        "defused": filtered.defused,
        "single_colour": filtered.images.single_colour,
        "warned": filtered.images.warned,
    }
    odd = {name: n for name, n in odd.items() if n}
    return {**counts, "rejected": filtered.reasons.total(), **reasons, **odd}


def _open_sources(data: DataConfig) -> dict[str, Source]:
    """Split -> source, all opened before the first row is read: errors should come early."""
    if data.source == "glyphs":
        made = data.glyphs
        options = glyphs.GlyphsOptions(levels=made.levels, guessable=made.guessable)
        sizes = {"train": made.train, "validation": made.validation, "test": made.test}
        return {split: Source("glyphs", size, _drawn(split, size, options)) for split, size in sizes.items()}
    sources = {"train": read_source(data, split="train")}
    if data.validation_source:
        sources["validation"] = read_source(data, split="validation")
    return sources


def _drawn(split: str, size: int, options: glyphs.GlyphsOptions) -> Iterator[Sample]:
    """The embedded data, each sample drawn when it is asked for."""
    for index in range(size):
        yield glyphs.make_sample(split, index, DATA_SEED, options)


def hold_out(samples: Iterable[Sample], count: int, held: list[Sample]) -> Iterator[Sample]:
    """Pass on all samples but ``count`` of them, which ``held`` has once the others are through.

    Each id has a random number of its own and the smallest are held out: the choice is spread over
    the source, and nearly stays the same when rows are added to it. Held samples are in the
    source's order; one that is displaced by a later one is passed on at that moment.
    """
    best: list[tuple[float, int, Sample]] = []
    for order, sample in enumerate(samples):
        draw = float(generator(DATA_SEED, "held-out", sample.id).random())
        entry = (-draw, order, sample)  # the heap's smallest is the largest draw
        if len(best) < count:
            heapq.heappush(best, entry)
        else:
            yield heapq.heappushpop(best, entry)[2]
    held.extend(sample for _, _, sample in sorted(best, key=lambda entry: entry[1]))


_PLACE = re.compile(r"<(?:image|img|video|picture)[ _]?\d*>|<\|(?:image|img|video|vision)\w*\|>|\[IMG\]", re.IGNORECASE)
"""What somebody may write for an image to go there, in the ways of several models."""


def image_places(text: str, tokens: Collection[str]) -> list[str]:
    """What in an instruction looks as if an image went there: each once, in its order.

    Args:
        tokens: the model's control tokens.
    """
    own = [token for token in tokens if token in text and re.search("image|img|video|vision", token, re.IGNORECASE)]
    found = dict.fromkeys([*_PLACE.findall(text), *own])
    return sorted(found, key=lambda place: (text.index(place), place))


class Filter:
    """Lets usable samples through; lists and counts the others.

    A repeated id gets a number ("7", "7-2", "7-3"): many data sets number pictures, not questions,
    and later stages tell prompts apart by id, so ids are unique over all splits.
    """

    def __init__(self, config: Config, listing: TextIO, watch: Watch) -> None:
        self.lengths = PromptLengths(config)
        self.longest = config.data.max_prompt_tokens
        ours = not config.published.filter_text_only
        self.text_alone = ", all tokens are trained, and nothing is shaped by it" if ours else ""
        self.listing, self.watch = listing, watch
        self.reasons: Counter[str] = Counter()
        self.defused = 0
        self.images = ImageTally()
        self._tokens = control_tokens(self.lengths.processor)
        self._unique = UniqueNames()
        for setting in ("instruction", "system_prompt"):
            if places := image_places(getattr(config.data, setting), self._tokens):
                watch.note(
                    f"WARNING data.{setting} holds {', '.join(places)}, where no image goes: they go where the "
                    f"question has {IMAGE}, or, if it has none, before all text"
                )

    def usable(self, source: Source, split: str) -> Iterator[Sample]:
        """The usable samples of a source, in its order.

        Raises:
            UserError: there is none; the message has the commonest reasons and an example.
        """
        reasons: Counter[str] = Counter()
        example: Rejected | None = None
        images, made_here = ImageTally(), source.name == "glyphs"
        rows = defused = golds = pictured = 0
        renamed: list[str] = []
        for rows, item in enumerate(source.rows, 1):
            if rows % PROGRESS_EVERY == 0:
                self.watch.progress(f"prepare {split}", rows, source.total)
            found = self._check(rows - 1, item) if isinstance(item, Sample) else item
            if isinstance(item, Sample) and isinstance(found, Sample) and not made_here:
                images.add(found.images)
                defused += found.problem != item.problem
                golds += without_tokens(found.answer, self._tokens) != found.answer
                pictured += bool(found.images)
            if isinstance(found, Rejected):
                reasons[found.reason] += 1
                example = example or found
                self.listing.write(json.dumps({"split": split, **asdict(found)}) + "\n")
            else:
                unique = self._unique(found.id)
                renamed += [f"row {rows - 1}, {found.id!r} -> {unique!r}"] if unique != found.id else []
                yield replace(found, id=unique)
        self.watch.progress(f"prepare {split}", rows, rows)
        self.reasons += reasons
        if reasons.total() == rows:
            raise _nothing_left(source.name, rows, reasons, example)
        if example:
            self.watch.note(
                f"{split}: {reasons.total()} of {counted(rows, 'row')} left out ({_listed(reasons)}). "
                f"{example.told}; rejected.jsonl lists them"
            )
        usable = rows - reasons.total()
        told = source.remarks()
        if renamed:
            more = ", ..." if len(renamed) > 1 else ""
            told.append(f"{counted(len(renamed), 'repeated id')} got a number after them ({renamed[0]}{more})")
        if defused:
            told.append(
                f"control tokens of the model in {defused} question{'s' * (defused > 1)}, written "
                "apart: <|name|> as < |name| >"
            )
        if golds:
            told.append(f"control tokens of the model in {golds} answer{'s' * (golds > 1)}: compared as text")
        if not made_here and pictured < usable:
            without, have = usable - pictured, "has" if usable - pictured == 1 else "have"
            how_many = f"{without} of {counted(usable, 'question')} {have} no" if pictured else "no question has an"
            told.append(f"{how_many} image: token perception is 0 there{self.text_alone}")
        for line in [*told, *images.told()]:
            self.watch.note(f"{split}: {line}")
        self.defused += defused
        self.images += images

    def _check(self, row: int, sample: Sample) -> Sample | Rejected:
        sample = replace(sample, problem=as_text(sample.problem, self._tokens))
        try:
            tokens = self.lengths.count(sample)
        except ValueError as error:  # the processor's own checks, such as the aspect ratio
            return Rejected(row, sample.id, "unusable prompt", str(error))
        if tokens > self.longest:
            detail = f"{tokens} tokens; data.max_prompt_tokens is {self.longest}"
            return Rejected(row, sample.id, "prompt too long", detail)
        return sample


def _listed(reasons: Counter[str]) -> str:
    return ", ".join(f"{n} {reason}" for reason, n in reasons.most_common(3))


def _nothing_left(name: str, rows: int, reasons: Counter[str], example: Rejected | None) -> UserError:
    if example is None:
        return UserError(name, "the data set has no rows.", "Check data.source and data.split.")
    return UserError(name, f"no usable row: all {rows} are rejected ({_listed(reasons)}).", example.told)


class PromptLengths:
    """Counts the tokens of a prompt as the model sees it, image tokens included.

    Qwen's processors tell how many tokens an image of a given size becomes, so its pixels need not
    be touched. Other processors may surround images with further tokens; whether adding up is exact
    is therefore tried on the first prompt, and where it is not, every prompt is encoded.
    """

    def __init__(self, config: Config) -> None:
        self.processor = load_processor(config)
        data, before = config.data, Before.of(config)
        self.encoder = PromptEncoder(self.processor, data.instruction, before=before, system=data.system_prompt)
        self.by_size = hasattr(self.processor, "_get_num_multimodal_tokens")
        self._tried = False

    def count(self, sample: Sample) -> int:
        """The prompt's length in tokens.

        Raises:
            ValueError: the processor refuses the prompt.
        """
        if not self.by_size:
            return self._encoded(sample)
        counted = self._from_sizes(sample)
        if not self._tried and sample.images:
            self._tried = True
            exact = self._encoded(sample)
            self.by_size = counted == exact
            return exact
        return counted

    def _encoded(self, sample: Sample) -> int:
        images = self.encoder.images(sample)
        return int(self.encoder.encode_images(sample, images)["input_ids"].shape[-1])

    def _from_sizes(self, sample: Sample) -> int:
        chat = self.encoder.messages(sample)
        text = chat_template.render(self.processor, chat)
        ids = self.processor.tokenizer(text, verbose=False)["input_ids"]
        places = ids.count(self.processor.image_token_id)
        if places != len(sample.images):
            raise ValueError(
                f"{places} places for {len(sample.images)} images: the question holds the model's "
                f"own image token {self.processor.image_token}"
            )
        sizes = [self.encoder.before.size(*image_size(data)) for data in sample.images]
        images = self.processor._get_num_multimodal_tokens(image_sizes=sizes)["num_image_tokens"]
        return len(ids) - places + sum(images)
