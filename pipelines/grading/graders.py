"""Is this answer right? The project's graders behind one call that never stalls.

``mathruler`` is the authors' grader; ``math-verify`` knows sets, units and notation better. Both let
sympy evaluate what a model wrote, so both run guarded (``guard.py``) in contained, killable
processes (``walls.py``) with a deadline per answer and a memory limit
(``processes.py``, ``worker.py``). Nothing here imports sympy.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
import re
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from typing import Self

from pipelines.config.imports import part_hash
from pipelines.config.resolve import find_part
from pipelines.errors import UserError
from pipelines.grading.answer import choice_verdict
from pipelines.grading.processes import Containment, GraderProcess, Walls, grade_pairs
from pipelines.grading.values import fact_verdict, says_otherwise, sides

GRADERS = ("mathruler", "math-verify")
"""Every grader's name; ``worker.py`` knows how to load each."""

Item = tuple[str, str, str]
"""(answer, gold, kind): the extracted answer, the right one, and ``value``, ``choice`` or ``fact``."""

_REMEMBERED = 100_000
_LONGEST_REMEMBERED = 2_000  # characters of answer and gold together
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,8}")


def check_grader(name: str, setting: str = "reward.grader") -> str:
    """``name``, if a grader has it or it is an import path that leads to one.

    ``package.module:function`` names a function (answer: str, gold: str) -> bool. It is imported
    here as well, so that a run learns of a mistake before it samples; it runs in the workers only.
    ``setting`` is where it was named, for the message.

    Raises:
        UserError: no grader has it (the fix names the nearest one), the import path leads nowhere,
            or what it leads to cannot be called with an answer and a gold.
    """
    if name in GRADERS:
        return name
    if ":" not in name:
        near = difflib.get_close_matches(name.lower(), GRADERS, n=1, cutoff=0.4)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise UserError(
            f"{setting}: {name}",
            "no such grader.",
            f"{hint}Known: {' '.join(GRADERS)}; or an import path package.module:function.",
        )
    function = find_part(setting, name, dict.fromkeys(GRADERS))
    try:
        inspect.signature(function).bind("answer", "gold")
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{setting}: {name}",
            f"cannot be called with two texts ({error}).",
            "A grader is a function (answer: str, gold: str) -> bool.",
        ) from error
    return name


def own_verdict(answer: str, gold: str, kind: str, grader: str) -> bool | None:
    """The project's own rules, which go before a grader: of choices, of short facts, and of values that
    an answer takes back. None: the grader decides. Of values, a grader by import path always does.
    """
    if kind == "fact":
        return fact_verdict(answer, gold)
    verdict = choice_verdict(answer, gold) if kind == "choice" else None
    if verdict is None and grader in GRADERS and says_otherwise(answer, gold):
        return False
    return verdict


def quick_verdict(answer: str, gold: str, grader: str) -> bool | None:
    """The grader's own verdict where it can be known without running it; None elsewhere.

    Two plain integers of at most nine digits: both graders compare them as exact numbers.
    The same text: mathruler compares normalised texts first, so equal texts are equal to it.
    math-verify is asked, as text that it cannot parse is not equal even to itself. Graders by
    import path are always asked.
    """
    if grader not in GRADERS:
        return None
    answer, gold = answer.strip(), gold.strip()
    if _INTEGER.fullmatch(answer) and _INTEGER.fullmatch(gold):
        return answer == gold
    return True if answer == gold and grader == "mathruler" else None


class Closing(ABC):
    """Something with processes to end: usable in ``with``, which closes it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """End the processes."""


class GraderPool(Closing):
    """Grading processes that start when first needed and stay warm; a context manager.

    Args:
        workers: how many processes.
        deadline_s: seconds of processor time that each answer gets; then its verdict is None and the
            process is replaced.
        memory_mb: address space of each process, in MiB. Both graders loaded take about 70.
        walls: what stands between answers and this machine; for tests and comparisons only.
    """

    def __init__(
        self, workers: int = 2, deadline_s: float = 5.0, memory_mb: int = 1024, walls: Walls | None = None
    ) -> None:
        for name, value in (("workers", workers), ("deadline_s", deadline_s)):
            if not value > 0:
                raise UserError(name, f"{value} is not above 0.", "Grading needs at least some.")
        self._processes = [GraderProcess(deadline_s, memory_mb, walls) for _ in range(workers)]
        self._memory: OrderedDict[tuple[str, str, str], bool | None] = OrderedDict()
        self._sources: dict[str, str | None] = {}
        self._refused: set[tuple[str, str, str]] = set()
        self.refused = 0
        """Answers so far, repeated ones included, that were wrong as they are no formula, though
        sympy would have evaluated them."""
        self._lock = threading.Lock()

    def close(self) -> None:
        """End the processes. Grading again starts new ones."""
        for process in self._processes:
            process.kill()

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers that run now."""
        return [process.pid for process in self._processes if process.pid is not None]

    def try_walls(self) -> Containment:
        """Let a new worker try what it should be unable to do: what holds it on this machine.

        Raises:
            UserError: it cannot be loaded.
        """
        with self._lock:
            return self._processes[0].try_walls()

    def grade(self, items: Sequence[Item], grader: str, *, alone: bool = False) -> list[bool | None]:
        """One verdict per item, in order: True, False, or None.

        Args:
            alone: by the grader only, without the project's rules (``own_verdict``, and of an equation
                whose sides are numbers, that each be the gold). With mathruler: as published.

        None means that the grader came to no verdict within its limits: it ran out of time, memory
        or stack, would have computed a number of more than 10**8 bits, raised an exception, or
        crashed twice. Verdicts, None included, are remembered: an answer that a
        model repeats every step costs its deadline once. Safe to call from several threads.

        Raises:
            UserError: unknown grader, or it cannot be loaded.
        """
        check_grader(grader)
        with self._lock:
            self._begin_anew_if_edited(grader)
            ours = [None if alone else own_verdict(*item, grader) for item in items]
            verdicts = self._asked([item[:2] for item in items], ours, grader)
            if alone or grader not in GRADERS:
                return verdicts
            parts = [
                (i, side)
                for i, (answer, gold, kind) in enumerate(items)
                if kind == "value" and verdicts[i]
                for side in sides(answer, gold)
            ]
            pairs = [(side, items[i][1]) for i, side in parts]
            found = self._asked(pairs, [None] * len(pairs), grader)
            for (i, _), verdict in zip(parts, found, strict=True):
                verdicts[i] = verdicts[i] and verdict
            return verdicts

    def _begin_anew_if_edited(self, grader: str) -> None:
        """Of a grader that was imported anew since it graded here, the processes and what is remembered are of then."""
        with contextlib.suppress(OSError):
            source = part_hash(grader) if ":" in grader else None
            if self._sources.setdefault(grader, source) != source:
                self.close()
                self._memory.clear()
                self._sources[grader] = source

    def _asked(self, pairs: Sequence[tuple[str, str]], known: Sequence[bool | None], grader: str) -> list[bool | None]:
        """The verdicts that are known; of the others what is remembered, or what the grader says."""
        verdicts = list(known)
        places: dict[tuple[str, str], list[int]] = {}
        for i, (answer, gold) in enumerate(pairs):
            if verdicts[i] is None:
                verdicts[i] = quick_verdict(answer, gold, grader)
            if verdicts[i] is None and (grader, answer, gold) in self._memory:
                self._memory.move_to_end((grader, answer, gold))
                verdicts[i] = self._memory[grader, answer, gold]
            elif verdicts[i] is None:
                places.setdefault((answer, gold), []).append(i)
        new = list(places)
        for pair, verdict in zip(new, grade_pairs(self._processes, grader, new), strict=True):
            self._remember(grader, pair, verdict)
            for i in places[pair]:
                verdicts[i] = verdict
        for process in self._processes:
            self._refused |= {(grader, *pair) for pair in process.refused}
            process.refused.clear()
        if self._refused:
            self.refused += sum((grader, *pair) in self._refused for pair in pairs)
        return verdicts

    def _remember(self, grader: str, pair: tuple[str, str], verdict: bool | None) -> None:
        if len(pair[0]) + len(pair[1]) > _LONGEST_REMEMBERED:
            return
        self._memory[(grader, *pair)] = verdict
        if len(self._memory) > _REMEMBERED:
            self._memory.popitem(last=False)
