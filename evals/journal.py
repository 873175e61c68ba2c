"""The journal of an evaluation: one line a sampled response, only ever appended to.

A batch of responses is one write, forced to the disk before the next batch is sampled. What a crash
cut short is dropped when the journal is read; a line whose question changed meanwhile is not used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from evals.profiles import Asking
from pipelines.disk import append_text, disk_errors, make_folder, write_atomic
from pipelines.records import Sample


@dataclass(frozen=True)
class Entry:
    """One sampled response; ``prompt`` is the ``prompt_digest`` of what was asked."""

    question: str
    sample: int
    response: str
    truncated: bool
    tokens: int
    prompt: str


def prompt_digest(sample: Sample, asking: Asking) -> str:
    """A hash of what the model is shown: text, instruction, images, their pixel limits."""
    text = [sample.problem, asking.instruction, asking.min_pixels, asking.max_pixels]
    digest = hashlib.sha256(json.dumps(text).encode())
    for image in sample.images:
        digest.update(hashlib.sha256(image).digest())
    return digest.hexdigest()[:16]


def read_journal(path: Path) -> dict[str, list[Entry]]:
    """Question -> its entries, samples 0, 1, 2 ... without a gap; all that is whole."""
    found: dict[str, list[Entry]] = {}
    if path.is_file():
        for line in path.read_bytes().split(b"\n")[:-1]:
            entry = _entry(line)
            if entry and entry.sample == len(found.get(entry.question, ())):
                found.setdefault(entry.question, []).append(entry)
    return found


def mend_journal(
    path: Path, found: dict[str, list[Entry]], questions: Iterable[Sample], asking: Asking
) -> dict[str, list[Entry]]:
    """The entries that serve, before more are appended; the file is made to hold just these.

    Args:
        found: what ``read_journal`` gave.
        questions: those that were asked, as they are now; another prompt's entries are dropped.
    """
    for sample in questions:
        digest = prompt_digest(sample, asking)
        if any(entry.prompt != digest for entry in found.get(sample.id, ())):
            del found[sample.id]
    lines = [_line(entry) for entries in found.values() for entry in entries]
    if path.is_file() and path.stat().st_size != sum(map(len, lines)):  # ASCII: bytes
        write_atomic(path, "".join(lines))
    return found


def append(path: Path, entries: Sequence[Entry]) -> None:
    """Add entries and force them to the disk."""
    with disk_errors(path):
        make_folder(path.parent)
    append_text(path, "".join(map(_line, entries)))


def count(journal: Mapping[str, Sequence[Entry]], questions: Sequence[str], samples: int) -> int:
    """How many of the wanted responses there are."""
    return sum(min(len(journal.get(name, ())), samples) for name in questions)


def _line(entry: Entry) -> str:
    return json.dumps(asdict(entry)) + "\n"


def _entry(line: bytes) -> Entry | None:
    try:
        return Entry(**json.loads(line))
    except (ValueError, TypeError, RecursionError):
        return None
