"""One row of somebody's data set -> a Sample, or the reason why it is left out.

Data sets are not trusted: an image path may only lead to a file inside the data set's own folder, and
what is found there must be an image (pipelines/model/images.py).
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from pipelines.disk.records import Sample
from pipelines.errors import UserError
from pipelines.model.control_tokens import IMAGE
from pipelines.model.images import MAX_IMAGE_BYTES, Unusable, about, png

COLUMNS: dict[str, tuple[str, ...]] = {
    "problem": ("problem",),
    "images": ("images", "image", "file_name", "file_names"),
    "answer": ("answer",),
    "id": ("id",),
    "kind": ("kind",),
}
"""Our column -> the names looked for, best first: ViRL39K's schema, then the names that Hugging
Face data sets and image folders use."""

OPTIONAL = frozenset({"id", "kind"})

RESPONSE = "response"
"""A column of rows that are only looked at (vppo perceive): what some model answered."""

READER = 2
"""Raised when the same row becomes another sample, or another picture: part of the keys of what is made
from rows that come from outside."""

_LIKELY = {
    "problem": ("question", "prompt", "query", "instruction", "text"),
    "images": ("decoded_image", "picture", "img", "image_path", "file"),
    "answer": ("ground_truth", "solution", "label", "gold", "target"),
}
"""What others call our columns: only ever suggested, never assumed."""

_IMAGE_LIKE = re.compile(r"image|img|pic|photo|figure|diagram|screenshot|^file|path$", re.IGNORECASE)
"""Names of columns that may hold images."""

_IMAGE_FILE = re.compile(r"(?s)data:image/.*|.*\.(png|jpe?g|webp|gif|bmp|tiff?|p[gpn]m)", re.IGNORECASE)

SHORTEST_BASE64 = 64
"""Shorter texts are taken for paths only; no image fits into fewer characters."""

LONGEST_PATH = 1024
"""Longer texts are not looked up as paths."""

_CHOICE = re.compile(r"[A-Z](?:\s*(?:,|;|and|&)\s*[A-Z])*")


@dataclass(frozen=True)
class Rejected:
    """A row that is left out.

    ``row`` counts from 0 over the whole source. ``reason`` is one of a few phrases, for counting;
    ``detail`` says what exactly was found.
    """

    row: int
    id: str
    reason: str
    detail: str = ""


def reader_version() -> dict[str, int]:
    """For the keys of what is read from outside; the first version was in none."""
    return {"reader version": READER} if READER > 1 else {}


class UniqueNames:
    """Numbers repeated names: "7", "7-2", "7-3"."""

    def __init__(self) -> None:
        self._seen: Counter[str] = Counter()

    def __call__(self, name: str) -> str:
        unique = name
        while unique in self._seen:
            self._seen[name] += 1
            unique = f"{name}-{self._seen[name]}"
        self._seen[unique] = 1
        return unique


def match_columns(
    asked: Mapping[str, str], found: Sequence[str], place: str, *, examples: bool = False, ragged: bool = False
) -> dict[str, tuple[str, ...]]:
    """Our column -> theirs, for the columns a source has: the names that may hold it, best first.

    Args:
        asked: ``data.columns``.
        found: the source's column names.
        place: the source, for the message.
        examples: rows to look at, not to train on: they need no answer, and may have a response.
        ragged: a row may have other columns than those found, under another of our names.

    Raises:
        UserError: ``asked`` names no column of ours, or required columns are not there.
    """
    columns = COLUMNS | ({RESPONSE: (RESPONSE,)} if examples else {})
    optional = OPTIONAL | ({"answer", RESPONSE} if examples else set())
    for ours in asked:
        if ours not in columns:
            raise UserError(
                f"data.columns, {ours}",
                f"not one of our columns ({', '.join(columns)}).",
                "Write ours first, then theirs: --set data.columns='{problem: question}'.",
            )
    matched, missing = {}, {}
    for ours, names in columns.items():
        candidates = (asked[ours],) if ours in asked else names
        theirs = tuple(name for name in candidates if name in found)
        if theirs or (ragged and ours in optional and ours not in (*asked, RESPONSE)):
            matched[ours] = tuple(candidates) if ragged else theirs
        elif ours in asked or ours not in optional:
            missing[ours] = candidates[0]
    if missing:
        raise _missing_columns(missing, asked, found, place)
    return matched


def _missing_columns(
    missing: Mapping[str, str], asked: Mapping[str, str], found: Sequence[str], place: str
) -> UserError:
    guesses = {ours: next((name for name in _LIKELY.get(ours, ()) if name in found), "THEIR_NAME") for ours in missing}
    mapping = ", ".join(f"{ours}: {theirs}" for ours, theirs in {**asked, **guesses}.items())
    lacking = ", ".join(f"no column {theirs!r} (our {ours!r})" for ours, theirs in missing.items())
    return UserError(
        place,
        f"{lacking}; columns found: {listed(found) or 'none'}.",
        f"Say which {'they are' if len(missing) > 1 else 'one it is'}: --set data.columns='{{{mapping}}}'.",
    )


def listed(names: Sequence[str], most: int = 20) -> str:
    """Column names for a message, which a data set may have made long or many."""
    told = [name if len(name) <= 40 else name[:37] + "..." for name in map(str, names[:most])]
    return ", ".join([*told, f"{len(names) - most} more"] if len(names) > most else told)


def may_hold(ours: str, name: str) -> bool:
    """Whether a column of theirs that was not named may be what ours lacks, by its name."""
    if ours == "images" and _IMAGE_LIKE.search(name):
        return True
    return name in _LIKELY.get(ours, ()) or name in COLUMNS[ours]


def worth_a_look(found: Sequence[str]) -> list[str]:
    """Columns to read besides those that were matched, so as to notice what a row has elsewhere."""
    return [name for name in found if any(may_hold(ours, name) for ours in _LIKELY)]


class ImageReader:
    """Reads the images of a row, in any of the forms data sets use, as encoded bytes.

    Args:
        roots: folders that image files may lie in; relative paths start from the first.
    """

    def __init__(self, roots: Sequence[Path]) -> None:
        self.roots = [root.resolve() for root in roots]

    def read(self, value: Any) -> list[bytes]:
        """The images of a cell that holds one, several or none, each checked by decoding it.

        Raises:
            Unusable: one cannot be found or read, or is not an image.
        """
        if value is None or value == "":
            return []
        values = value if isinstance(value, (list, tuple)) else [value]
        images = []
        for index, item in enumerate(values, 1):
            try:
                data = self._image_bytes(item)
                about(data)  # which decodes it
            except Unusable as why:
                raise Unusable(why.reason, f"image {index}: {why.detail}") from why
            images.append(data)
        return images

    def _image_bytes(self, value: Any) -> bytes:
        """The encoded image behind any of the forms data sets use."""
        if isinstance(value, Mapping):  # Hugging Face's Image: {bytes, path}
            value = value.get("bytes") or value.get("path")
        if isinstance(value, (bytes, bytearray)):
            return bytes(value)
        if isinstance(value, Image.Image):
            return png(value)
        if isinstance(value, str) and value:
            return self._image_from_text(value)
        found = "empty" if value is None or value == "" else f"a {type(value).__name__}"
        raise Unusable("unreadable image", f"{found}; expected encoded bytes or a path")

    def _image_from_text(self, text: str) -> bytes:
        """An image given as a path, a ``data:`` address or plain base64."""
        if text.startswith("data:"):
            data = _from_base64(text.partition(",")[2])
            if data is None:
                raise Unusable("unreadable image", "a data: address that is not base64")
            return data
        if "://" in text:
            raise Unusable("image not found", f"{text[:80]} is an address; download the images")
        path = self._resolve(text)
        inside = path is not None and any(path.is_relative_to(root) for root in self.roots)
        if path is not None and inside and os.path.isfile(path):
            return _read_file(path)
        data = _from_base64(text) if len(text) >= SHORTEST_BASE64 else None
        if data is not None:
            return data
        if path is not None and not inside:
            raise Unusable("image outside the data folder", text[:200])
        raise Unusable("image not found", text[:200])

    def _resolve(self, text: str) -> Path | None:
        """The file a path in the data means, links followed; None where it cannot be a path."""
        if not self.roots or len(text) > LONGEST_PATH or "\0" in text:
            return None
        try:
            return (self.roots[0] / text).resolve()
        except (OSError, RuntimeError, UnicodeEncodeError):  # such as links in a circle
            return None


class RowParser:
    """Turns raw rows (column -> plain value) into samples.

    Args:
        columns: our column -> theirs, as ``match_columns`` gives.
        roots: folders that image files may lie in; relative paths start from the first.
        prefix: what ids made from row numbers begin with.
        strict_kind: a ``kind`` that is neither value nor choice rejects the row (the user named
            that column); otherwise such a column means something else, and the answer decides.
        examples: rows to look at, not to train on: without an answer they have an empty one, and a
            response goes into the metadata, ``{"response": ...}``.
    """

    def __init__(
        self,
        columns: Mapping[str, Sequence[str]],
        roots: Sequence[Path],
        prefix: str,
        strict_kind: bool,
        examples: bool = False,
    ) -> None:
        self.columns = {ours: (n,) if isinstance(n, str) else tuple(n) for ours, n in columns.items()}
        self.prefix, self.strict_kind, self.examples = prefix, strict_kind, examples
        self.images = ImageReader(roots)
        self._theirs = {name for names in self.columns.values() for name in names}

    def parse(self, row: int, raw: Mapping[str, Any]) -> Sample | Rejected:
        """The row's sample, or why there is none."""
        values = {ours: _first(raw, theirs) for ours, theirs in self.columns.items()}
        name = f"{self.prefix}{row}"
        try:
            name = _text(values.get("id"), "id") or name
            answer = unboxed(_text(values.get("answer"), "answer"))
            if not answer and not self.examples:
                raise Unusable("no answer", self._elsewhere("answer", raw))
            problem = _text(values["problem"], "problem")
            images = self.images.read(values["images"])
            for ours, there in (("images", images), ("problem", problem.strip())):
                if not there and (elsewhere := self._elsewhere(ours, raw)):
                    raise Unusable(f"{ours} in another column", elsewhere)
            check_question(problem, len(images))
            if not problem.strip() and not any(name in raw for name in self.columns["problem"]):
                raise Unusable("no question", f"the row's columns: {listed(list(raw))}")
            kind = self._kind(values.get("kind"), answer)
            metadata = {}
            if RESPONSE in values:
                metadata[RESPONSE] = _text(values[RESPONSE], RESPONSE)
                if not metadata[RESPONSE]:
                    raise Unusable("no response")
        except Unusable as why:
            return Rejected(row, name, why.reason, why.detail)
        return Sample(name, problem, images, answer, kind, json.dumps(metadata))

    def _elsewhere(self, ours: str, raw: Mapping[str, Any]) -> str:
        """Which other column of this row has what ours lacks, told; "" if none has."""
        for name, value in raw.items():
            if name in self._theirs or not isinstance(name, str) or not may_hold(ours, name):
                continue
            if _looks_like_image(value) if ours == "images" else isinstance(value, str) and value:
                mine = "/".join(self.columns[ours])
                return f"no {mine} here, but {name[:40]!r}: data.columns may name it"
        return ""

    def _kind(self, value: Any, answer: str) -> str:
        if value in ("value", "choice"):
            return str(value)
        if self.strict_kind and value is not None:
            raise Unusable("unknown kind", f"{value!r}: it must be value or choice")
        return kind_of(answer)


def _first(raw: Mapping[str, Any], names: Sequence[str]) -> Any:
    """A row's value under the first of these names that has one."""
    values = [raw.get(name) for name in names]
    return next((value for value in values if not _is_empty(value)), values[0] if values else None)


def _is_empty(value: Any) -> bool:
    return value is None or value != value or (isinstance(value, (str, list, tuple)) and not value)


def _looks_like_image(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(map(_looks_like_image, value))
    if isinstance(value, Mapping):
        return bool(value.get("bytes") or value.get("path"))
    if isinstance(value, str):
        return bool(_IMAGE_FILE.fullmatch(value)) or len(value) > LONGEST_PATH
    return isinstance(value, (bytes, bytearray, Image.Image))


def _read_file(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > MAX_IMAGE_BYTES:
            raise Unusable("image too large", f"{size} bytes")
        return path.read_bytes()
    except OSError as error:
        raise Unusable("unreadable image", f"{path.name}: {error.strerror}") from error


def _from_base64(text: str) -> bytes | None:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        return None


def _text(value: Any, column: str) -> str:
    """A cell as text. Numbers are written out; a missing value is empty."""
    if value is None or value != value:  # NaN is how tables say missing
        return ""
    if not isinstance(value, (str, int, float)):
        raise Unusable(f"{column} is not text", f"it is a {type(value).__name__}")
    text = str(value)
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON may hold half a surrogate pair; Parquet may not
        raise Unusable(f"{column} is not text", "it is not valid Unicode") from error
    return text if column in ("problem", RESPONSE) else text.strip()


def check_question(problem: str, images: int) -> None:
    """Whether there is a question, with one place for each image, or none.

    Raises:
        Unusable: there is not.
    """
    places = problem.count(IMAGE)
    if places and places != images:
        raise Unusable("image count", f"{places} {IMAGE} in the problem, {images} images")
    if not images and not problem.strip():
        raise Unusable("no question", "neither text nor image")


def unboxed(answer: str) -> str:
    r"""What is in the box, where the whole answer is one ``\boxed{...}``, as in some data sets."""
    if not (answer.startswith(r"\boxed{") and answer.endswith("}")):
        return answer
    inner, depth = answer[len(r"\boxed{") : -1], 0
    for character in inner:
        depth += (character == "{") - (character == "}")
        if depth < 0:
            return answer
    return inner.strip()


def kind_of(answer: str) -> str:
    """``choice`` for one capital letter, or several with ``,``, ``;``, ``&`` or ``and`` between.

    Letters without a separator ("AC") are a value: geometry names lines like that.
    """
    return "choice" if _CHOICE.fullmatch(answer) else "value"
