"""The journal of an evaluation: one line a sampled response, only ever appended to.

A batch of responses is one write, forced to the disk before the next batch is sampled. What a crash
cut short is dropped when the journal is read; a line whose question changed meanwhile is not used. Each
line carries a hash of itself, and one that changed since it was written is sampled again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from evals.profiles import PromptSettings
from pipelines.contents import SEAL, intact, sealed
from pipelines.disk.files import append_text, disk_errors, make_folder, write_atomic
from pipelines.disk.records import Sample
from pipelines.disk.step import is_there, unreadable
from pipelines.grading.reward import golds

DIGITS = 8


@dataclass(frozen=True)
class Entry:
    """One sampled response; ``prompt`` is the ``prompt_digest`` of what was asked.

    ``sha256`` is set in the file alone: the first ``DIGITS`` hex digits of the hash of the line's rest.
    """

    question: str
    sample: int
    response: str
    truncated: bool
    tokens: int
    prompt: str
    sha256: str = field(default="", compare=False)


def prompt_digest(sample: Sample, asking: PromptSettings) -> str:
    """A hash of what the model is shown: text, instruction, system's turn, images, their pixel limits."""
    text = [sample.problem, asking.instruction, asking.min_pixels, asking.max_pixels]
    text += [asking.system_prompt] if asking.system_prompt else []
    digest = hashlib.sha256(json.dumps(text).encode())
    for image in sample.images:
        digest.update(hashlib.sha256(image).digest())
    return digest.hexdigest()[:16]


def question_digest(sample: Sample) -> str:
    """A hash of a question by itself, however it is shown: text, what counts as right, images."""
    digest = hashlib.sha256(json.dumps([sample.problem, golds(sample)]).encode())
    for image in sample.images:
        digest.update(hashlib.sha256(image).digest())
    return digest.hexdigest()[:16]


def read_journal(path: Path) -> dict[str, list[Entry]]:
    """Question -> its entries, samples 0, 1, 2 ... without a gap; all that is whole.

    Raises:
        UserError: the file cannot be read.
    """
    return _read(path)[0]


def damage(path: Path) -> str:
    """Where a journal was damaged, in words; "" if nowhere (what a crash cut short is no damage)."""
    lines = _read(path)[1]
    if not lines:
        return ""
    which = ", ".join(map(str, lines[:5])) + (" ..." if len(lines) > 5 else "")
    return f"{path}, line {which}: changed since it was written"


def _read(path: Path) -> tuple[dict[str, list[Entry]], list[int]]:
    """The entries, and the numbers of the lines that are damaged."""
    found: dict[str, list[Entry]] = {}
    damaged: list[int] = []
    try:
        content = path.read_bytes() if is_there(path) else b""
    except OSError as error:
        raise unreadable(path, error, "is gone.", "Give the same command again.") from error
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        entry = _entry(line)
        if entry is None:
            damaged.append(number)
        elif entry.sample == len(found.get(entry.question, ())):
            found.setdefault(entry.question, []).append(entry)
    return found, damaged


def mend_journal(
    path: Path, found: dict[str, list[Entry]], questions: Iterable[Sample], asking: PromptSettings
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
    return json.dumps(sealed(asdict(entry), DIGITS)) + "\n"


def _entry(line: bytes) -> Entry | None:
    """The line's entry; None if it is not what was written. One of an earlier version has no hash."""
    try:
        found = json.loads(line)
        entry = Entry(**found)
    except (ValueError, TypeError, RecursionError):
        return None
    kinds = {"sample": int, "tokens": int, "truncated": bool}
    typed = all(type(getattr(entry, f.name)) is kinds.get(f.name, str) for f in fields(Entry))
    return entry if typed and (SEAL not in found or intact(found, DIGITS)) else None
