"""Columns that no question is made of: what of them a sample keeps, for rewards to read.

``data.extra`` says which. A value is kept as the JSON that it is, under its column's name, in the
sample's metadata (``Sample.details()``); a column ``metadata`` that holds JSON objects gives their keys,
and columns go before keys of the same name.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pipelines.grading.reward import GOLDS
from pipelines.model.images import Unusable

METADATA = "metadata"
LONGEST_EXTRA = 2**16
"""Longer values (characters of JSON) are left out: all metadata of a set are in memory when it is graded."""


class ExtraColumns:
    """Keeps what ``data.extra`` names of the further columns of a source's rows, and tells what it did.

    Args:
        wanted: ``data.extra``: ``all``, ``none``, or names.
        taken: names that mean something else to whoever reads the metadata.
    """

    def __init__(self, wanted: str | Sequence[str], taken: Collection[str] = ()) -> None:
        self.wanted = wanted
        self.taken = {*taken} | ({GOLDS} if isinstance(wanted, str) or GOLDS not in wanted else set())
        self._seen: dict[str, None] = {}
        self._kept: dict[str, None] = {}
        self._refused: Counter[tuple[str, str]] = Counter()

    def wants(self, name: str) -> bool:
        """Whether a further column of this name is to be kept."""
        return self.wanted == "all" or (not isinstance(self.wanted, str) and name in self.wanted)

    def keeps(self, name: str) -> bool:
        """Whether it is, and under its name, which means nothing else."""
        return self.wants(name) and name not in self.taken

    def see(self, names: Collection[str]) -> None:
        """There are such columns."""
        self._seen.update(dict.fromkeys(names))

    def of(self, raw: Mapping[str, Any], used: Collection[str]) -> dict[str, Any]:
        """What of a row is kept.

        Args:
            used: the columns that the sample itself is made of.

        Raises:
            Unusable: ``golds``, which decide grading, are asked for and are no list of texts.
        """
        own = {name: value for name, value in raw.items() if name not in used and self.wants(name)}
        inside = _object(own[METADATA]) if METADATA in own else None
        if inside is not None:
            del own[METADATA]
            self._kept[METADATA] = None
        found = {}
        for name, value in ((inside or {}) | own).items():
            problem = f"{name} means something else" if name in self.taken else _problem(value)
            if problem:
                self._refused[name, problem] += 1
                continue
            found[name] = None if value != value else value
            if name in own and value is not None:
                self._kept[name] = None
        if found.get(GOLDS) is not None and not _texts(found[GOLDS]):
            raise Unusable("golds are no list of texts", repr(found[GOLDS])[:200])
        return found

    def told(self) -> list[str]:
        """A line each: the columns that were kept, those that were not, and why."""
        lines = []
        if self._kept:
            lines.append(f"columns kept for rewards, in Sample.details(): {listed(list(self._kept))}")
        if GOLDS in self._kept:
            lines.append("golds decide grading: each of their texts counts as right")
        refused: dict[str, str] = {}
        for (name, problem), rows in self._refused.items():
            if name == GOLDS and name in self.taken:
                refused[name] = "it would decide grading: data.extra=[golds] lets each of its texts count as right"
            else:
                refused[name] = f"{problem}, in {rows} row{'s' * (rows > 1)}"
        lines += [f"{name} is left out: {why}" for name, why in list(refused.items())[:20]]
        if unused := [name for name in self._seen if name not in self._kept and name not in refused]:
            lines.append(f"columns not used: {listed(unused)}")
        return lines


def listed(names: Sequence[str], most: int = 20) -> str:
    """Column names for a message, which a data set may have made long or many."""
    told = [name if len(name) <= 40 else name[:37] + "..." for name in map(str, names[:most])]
    return ", ".join([*told, f"{len(names) - most} more"] if len(names) > most else told)


def _object(value: Any) -> dict[str, Any] | None:
    """A JSON object, as such or as text; None if it is none."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    return dict(value) if isinstance(value, Mapping) else None


def _problem(value: Any) -> str:
    """Why a value cannot be kept as JSON; "" if it can. NaN is how tables say missing."""
    if value != value:
        return ""
    if isinstance(value, str) and value.startswith("data:image/"):
        return "an image"
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
        text.encode()
    except (TypeError, ValueError, RecursionError):  # bytes, dates, infinite numbers, half a surrogate pair
        return f"no JSON ({_kind(value)})"
    return "" if len(text) <= LONGEST_EXTRA else f"longer than {LONGEST_EXTRA} characters"


def _kind(value: Any) -> str:
    """The type of a value that is no JSON, or of the first in it that is bytes, as of an image's."""
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return next((type(part).__name__ for part in parts if isinstance(part, bytes)), type(value).__name__)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)
