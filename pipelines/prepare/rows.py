"""One row of somebody's data set -> a Sample, or the reason why it is left out.

Data sets are not trusted: an image path may only lead, links followed, to a file inside the data set's own
folder or one that ``data.image_folders`` names, and what is found there must be an image
(pipelines/model/images.py).
"""

from __future__ import annotations

import base64
import binascii
import difflib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from pipelines.disk.records import Sample
from pipelines.errors import UserError
from pipelines.model.control_tokens import IMAGE
from pipelines.model.images import MAX_IMAGE_BYTES, Unusable, about, png
from pipelines.prepare.extra import METADATA, ExtraColumns, listed
from pipelines.prepare.places import check_place

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

READER = 3
"""Raised when the same row becomes another sample, or another picture: part of the keys of what is made
from rows that come from outside. Version 2 is that without extra columns."""

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

    @property
    def told(self) -> str:
        """The row and why it is left out, as an example of several."""
        why = f"{self.reason}: {self.detail}" if self.detail else self.reason
        return f"Row {self.row}, for one: {why[:400]}"


def reader_version(extra: str | Sequence[str] = "none") -> dict[str, int]:
    """For the keys of what is read from outside; the first version was in none.

    Args:
        extra: ``data.extra``.
    """
    version = min(READER, 2) if extra == "none" else READER
    return {"reader version": version} if version > 1 else {}


def reads(asked: Mapping[str, str], extra: str | Sequence[str]) -> Callable[[str], bool]:
    """Whether a column of theirs may be read as one of ours, or is kept.

    Args:
        asked: ``data.columns``.
        extra: ``data.extra``.
    """
    ours = {name for one, names in COLUMNS.items() for name in ((asked[one],) if one in asked else names)}
    keeps = ExtraColumns(extra).keeps
    return lambda name: name in ours or keeps(name)


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
    asked: Mapping[str, str],
    found: Sequence[str],
    place: str,
    *,
    extra: Sequence[str] = (),
    examples: bool = False,
    ragged: bool = False,
    setting: str = "data.columns",
    inherited: bool = False,
) -> dict[str, tuple[str, ...]]:
    """Our column -> theirs, for the columns a source has: the names that may hold it, best first.

    Where the source has no column that may hold images by its name, its questions are of text alone:
    ``images`` is ``()``, or, where ``asked`` says so (``{images: ''}``), is left out.

    Args:
        asked: ``data.columns``.
        found: the source's column names.
        place: the source, for the message.
        extra: further columns that are asked for (``data.extra``).
        examples: rows to look at, not to train on: they need an image and no answer, and may have a
            response.
        ragged: a row may have other columns than those found, under another of our names.
        setting: where ``asked`` stands, for the message.
        inherited: it stands in ``data.columns``, and ``setting`` is where others may be named.

    Raises:
        UserError: ``asked`` names no column of ours, or columns are not there: all of them at once.
    """
    columns = COLUMNS | ({RESPONSE: (RESPONSE,)} if examples else {})
    _check_ours(asked, columns, "data.columns" if inherited else setting)
    optional = OPTIONAL | ({"answer", RESPONSE} if examples else set())
    matched, missing = {}, {}
    for ours, names in columns.items():
        if ours == "images" and asked.get(ours) == "" and not examples:
            continue
        candidates = (asked[ours],) if ours in asked else names
        theirs = tuple(name for name in candidates if name in found)
        text_alone = ours == "images" and ours not in asked and not examples and not any(map(_may_be_images, found))
        late = ragged and (ours in optional or text_alone) and ours not in (*asked, RESPONSE)
        if theirs or late or text_alone:
            matched[ours] = tuple(candidates) if ragged else theirs
        elif ours in asked or ours not in optional:
            missing[ours] = candidates[0]
    lacking = [name for name in extra if name not in found]
    if missing or lacking:
        by = ", by data.columns" if inherited else ""
        raise _missing_columns(missing, lacking, asked, extra, found, place, examples=examples, setting=setting, by=by)
    return matched


def _check_ours(asked: Mapping[str, str], columns: Mapping[str, Sequence[str]], setting: str) -> None:
    unknown = [ours for ours in asked if ours not in columns]
    if not unknown:
        return
    fixes = []
    if others := [ours for ours in unknown if ours != METADATA]:
        near = {ours: difflib.get_close_matches(ours, columns, n=1) for ours in others}
        fixes += [f"{ours} may be {names[0]}." for ours, names in near.items() if names]
        fixes.append(f"Write ours first, then theirs: --set {setting}='{{problem: question}}'.")
    if METADATA in unknown:
        theirs = asked[METADATA]
        fixes.append(
            f"Leave metadata out: columns of no meaning here are kept under their own names, for rewards as "
            f"sample.details()[{theirs!r}] (data.extra)."
        )
    several = len(unknown) > 1
    raise UserError(
        f"{setting}, {', '.join(unknown)}",
        f"{'none of them is' if several else 'not'} one of our columns ({', '.join(columns)}).",
        " ".join(fixes),
    )


def _missing_columns(
    missing: Mapping[str, str],
    lacking: Sequence[str],
    asked: Mapping[str, str],
    extra: Sequence[str],
    found: Sequence[str],
    place: str,
    *,
    examples: bool,
    setting: str,
    by: str,
) -> UserError:
    told = [f"no column {theirs!r} (our {ours!r}{by if ours in asked else ''})" for ours, theirs in missing.items()]
    test_set = setting != "data.columns"
    told += [f"no column {name!r} (data.extra{', for test sets too' if test_set else ''})" for name in lacking]
    fixes = []
    if missing:
        guesses = {ours: _guess(ours, theirs, found) for ours, theirs in missing.items()}
        mapping = ", ".join(f"{ours}: {theirs or repr('')}" for ours, theirs in {**asked, **guesses}.items())
        which = "they are" if len(missing) > 1 else "one it is"
        fixes.append(f"Say which {which}: --set {setting}='{{{mapping}}}'.")
    if "images" in missing and not examples:
        fixes.append("Questions without images: {images: ''}.")
    if lacking:
        names = [_near(name, found) or "THEIR_NAME" if name in lacking else name for name in extra]
        named = f"--set data.extra='[{', '.join(names)}]', all (what each has) or none"
        fixes.append(
            f"Give it the column, or name what every set has: {named}." if test_set else f"Name what is there: {named}."
        )
    return UserError(place, f"{', '.join(told)}; columns found: {listed(found, 50) or 'none'}.", " ".join(fixes))


def _guess(ours: str, theirs: str, found: Sequence[str]) -> str:
    """Which of the columns there are may be meant."""
    known = next((name for name in _LIKELY.get(ours, ()) if name in found), "")
    like = next(filter(_may_be_images, found), "") if ours == "images" else ""
    return known or _near(theirs, found) or like or "THEIR_NAME"


def _near(name: str, found: Sequence[str]) -> str:
    return next(iter(difflib.get_close_matches(name, list(map(str, found)), n=1)), "")


def _may_be_images(name: str) -> bool:
    return may_hold("images", name)


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
        folders: more of them (``data.image_folders``), where what is not there is looked for in turn; None:
            nobody can name any.
    """

    def __init__(self, roots: Sequence[Path], folders: Sequence[Path] | None = None) -> None:
        self.nameable = folders is not None
        more = [folder.resolve() for folder in folders or ()]
        self.roots = [root.resolve() for root in roots] + more
        self._starts = self.roots[: 1 if roots else 0] + more

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
                name = _path_named(item)
                where = f"image {index}" + f", {name}" * bool(name and name not in why.detail)
                raise Unusable(why.reason, f"{where}: {why.detail}") from why
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
        path, inside = self._find(text)
        if path is not None and inside and os.path.isfile(path):
            return _read_file(path)
        data = _from_base64(text) if len(text) >= SHORTEST_BASE64 else None
        if data is not None:
            return data
        if path is not None and not inside:
            raise Unusable("image outside the data folder", text[:200] + self._permission(path.parent))
        tried = "" if path is None or os.path.isabs(text) else f"; looked for in {', '.join(map(str, self._starts))}"
        more = "; data.image_folders names further folders" if tried and self.nameable else ""
        raise Unusable("image not found", text[:200] + tried + more)

    def _permission(self, folder: Path) -> str:
        """How images of a folder are allowed; "" where they cannot be."""
        try:
            check_place("", folder)
        except UserError:
            return ""
        return f"; adding {folder} to data.image_folders allows it" if self.nameable else ""

    def _find(self, text: str) -> tuple[Path | None, bool]:
        """The file a path in the data means, links followed, and whether it lies where it may.

        The first there is; else what it would be. None where it cannot be a path.
        """
        found: list[tuple[Path, bool]] = []
        for start in self._starts if len(text) <= LONGEST_PATH and "\0" not in text else ():
            try:
                path = (start / text).resolve()
            except (OSError, RuntimeError, UnicodeEncodeError):  # such as links in a circle
                continue
            found.append((path, any(path.is_relative_to(root) for root in self.roots)))
            if found[-1][1] and os.path.isfile(path):
                return found[-1]
        return next((one for one in found if os.path.isfile(one[0])), found[0]) if found else (None, True)


class RowParser:
    """Turns raw rows (column -> plain value) into samples.

    Args:
        columns: our column -> theirs, as ``match_columns`` gives.
        roots, folders: as of ``ImageReader``.
        prefix: what ids made from row numbers begin with.
        strict_kind: a ``kind`` that is neither value nor choice rejects the row (the user named
            that column); otherwise such a column means something else, and the answer decides.
        examples: rows to look at, not to train on: without an answer they have an empty one, and a
            response goes into the metadata, ``{"response": ...}``.
        extra: what of further columns goes there.
        text_alone: the source seems to have no images: one in any column rejects its row.
    """

    def __init__(
        self,
        columns: Mapping[str, Sequence[str]],
        roots: Sequence[Path],
        prefix: str,
        strict_kind: bool,
        examples: bool = False,
        extra: ExtraColumns | None = None,
        text_alone: bool = False,
        folders: Sequence[Path] = (),
    ) -> None:
        self.columns = {ours: (n,) if isinstance(n, str) else tuple(n) for ours, n in columns.items()}
        self.prefix, self.strict_kind, self.examples = prefix, strict_kind, examples
        self.images, self.text_alone = ImageReader(roots, folders), text_alone
        self.extra = extra or ExtraColumns("none")
        self.unnamed = 0
        """Rows so far without an id."""
        self._theirs = {name for names in self.columns.values() for name in names}

    def parse(self, row: int, raw: Mapping[str, Any]) -> Sample | Rejected:
        """The row's sample, or why there is none."""
        values = {ours: _first(raw, theirs) for ours, theirs in self.columns.items()}
        name = f"{self.prefix}{row}"
        try:
            own = _text(values.get("id"), "id")
            name, self.unnamed = own or name, self.unnamed + (not own)
            answer = unboxed(_text(values.get("answer"), "answer"))
            if not answer and not self.examples:
                raise Unusable("no answer", self._elsewhere("answer", raw))
            problem = _text(values["problem"], "problem")
            images = self.images.read(values.get("images"))
            for ours, there in (("images", images), ("problem", problem.strip())):
                if ours in self.columns and not there and (elsewhere := self._elsewhere(ours, raw)):
                    raise Unusable(f"{ours} in another column", elsewhere)
            check_question(problem, len(images))
            if not problem.strip() and not any(name in raw for name in self.columns["problem"]):
                raise Unusable("no question", f"the row's columns: {listed(list(raw))}")
            kind = self._kind(values.get("kind"), answer)
            metadata = self.extra.of(raw, self._theirs)
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
            if name in self._theirs or not isinstance(name, str):
                continue
            if ours == "images":
                there = _looks_like_image(value) if may_hold(ours, name) else self.text_alone and _is_picture(value)
            else:
                there = may_hold(ours, name) and isinstance(value, str) and bool(value)
            if there:
                mine = "/".join(self.columns[ours] or COLUMNS[ours])
                fix = "data.columns may name it"
                if ours == "images" and self.text_alone:
                    fix += ", or say that there are none ({images: ''})"
                return f"no {mine} here, but {name[:40]!r}: {fix}"
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


def _is_picture(value: Any) -> bool:
    """Whether a value of a column of any name is an image, or names a file of one."""
    if isinstance(value, (list, tuple)):
        return any(map(_is_picture, value))
    if isinstance(value, str):
        return bool(_IMAGE_FILE.fullmatch(value)) and not (set(" \n") & set(value))
    return isinstance(value, (bytes, bytearray, Image.Image, Mapping)) and _looks_like_image(value)


def _path_named(value: Any) -> str:
    """The path that an image is named by, its end if it is long; "" where it is given otherwise."""
    text = value.get("path") if isinstance(value, Mapping) else value
    if not isinstance(text, str) or text.startswith("data:") or len(text) > LONGEST_PATH:
        return ""
    if len(text) >= SHORTEST_BASE64 and _from_base64(text) is not None:
        return ""
    return text if len(text) <= 200 else f"...{text[-200:]}"


def _read_file(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > MAX_IMAGE_BYTES:
            raise Unusable("image too large", f"{size} bytes")
        return path.read_bytes()
    except OSError as error:
        raise Unusable("unreadable image", f"{path}: {error.strerror}") from error


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
