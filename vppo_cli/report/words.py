"""Which words look: perception gathered by word over a whole run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipelines.page.viewer import short
from vppo_cli.report.source import Array, Vocabulary

FEWEST = 10
"""A word that occurs less often tells nothing about its kind."""

MOST = 40
LONGEST = 40


class WordCount:
    """Occurrences and summed perception of every word.

    A word is a run of letters, whatever tokens it is made of; a digit, a sign or anything else is a
    word of its own, token by token. A word's perception is the sum over its tokens: by the chain rule
    that is how much the image changes the probability of the word.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._begins: dict[int, bool] = {}
        self._letters: dict[int, bool] = {}
        self._sums: dict[tuple[int, ...], float] = defaultdict(float)
        self._counts: dict[tuple[int, ...], int] = defaultdict(int)
        self.total = 0.0

    def add(self, id_N: Array, perception_N: Array, length_B: Array) -> None:
        """Count the tokens of some responses, joined; ``length_B`` says where each ends."""
        if not len(id_N):
            return
        unique, place_N = np.unique(id_N, return_inverse=True)
        texts = [self._vocabulary.text(int(token)) for token in unique]
        letters_N = np.array([text.strip().isalpha() for text in texts])[place_N]
        spaced_N = np.array([text[:1].isspace() or text[-1:].isspace() for text in texts])[place_N]
        joins_N = letters_N & ~spaced_N
        joins_N[1:] &= letters_N[:-1]
        joins_N[0] = False
        joins_N[np.cumsum(length_B)[:-1]] = False
        start_W = np.flatnonzero(~joins_N)
        sum_W = np.add.reduceat(perception_N, start_W)
        size_W = np.diff(np.append(start_W, len(id_N)))
        single_W = size_W == 1
        place_W = place_N[start_W[single_W]]
        sums = np.bincount(place_W, sum_W[single_W], len(unique))
        counts = np.bincount(place_W, minlength=len(unique))
        for token, value, count in zip(unique.tolist(), sums, counts, strict=True):
            if count:
                self._sums[(token,)] += float(value)
                self._counts[(token,)] += int(count)
        for start, size, value in zip(
            start_W[~single_W].tolist(), size_W[~single_W].tolist(), sum_W[~single_W].tolist(), strict=True
        ):
            key = tuple(id_N[start : start + size].tolist())
            self._sums[key] += value
            self._counts[key] += 1
        self.total += float(perception_N.sum())

    def words(self) -> list[tuple[str, float, int]]:
        """(word, summed perception, occurrences), the one with most perception first."""
        found: dict[str, list[float]] = {}
        for ids, value in self._sums.items():
            word = "".join(map(self._vocabulary.text, ids)).strip()
            entry = found.setdefault(word or "(white space)", [0.0, 0])
            entry[0] += value
            entry[1] += self._counts[ids]
        rows = [(word, value, int(count)) for word, (value, count) in found.items()]
        return sorted(rows, key=lambda row: (-row[1], row[0]))


def words(names: Sequence[str], counted: Sequence[WordCount | None]) -> dict[str, Any]:
    """One table a run: the words that carry most perception, and how they compare by occurrence."""
    tables = []
    for name, count in zip(names, counted, strict=True):
        if count is None or not count.total:
            continue
        rows = [
            [word[:LONGEST], short(value / times, 4), times, short(value / count.total, 4)]
            for word, value, times in count.words()
            if times >= FEWEST
        ]
        tables.append({"run": name, "rows": rows[:MOST], "more": max(0, len(rows) - MOST)})
    note = f"Words that occur {FEWEST} times or more. A word's perception is the sum over its tokens."
    if tables:
        return {"tables": tables, "note": note}
    return {
        "tables": [],
        "empty": "The run's tokenizer is not on this machine, or no step is scored, "
        "so tokens cannot be joined to words.",
    }
