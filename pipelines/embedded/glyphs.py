"""The embedded data set: grids of handwritten digits, and questions whose answer is a number.

A sample is a grid of real handwritten digits (the scans scikit-learn ships), a question about some
of its cells, and a worked solution. Cells have spreadsheet names: ``b3`` is column b, row 3.
A cell is 28 x 28 pixels: one image token of Qwen2.5-VL (patches of 14 pixels, merged 2 x 2).

A solution reads cells, then reasons, then boxes the answer:

    <think> a1 shows 7, b2 shows 3. 7 is larger than 3, 7 - 3 = 4 </think> \\boxed{4}

The generator knows what each word of it is for, so every token of a response has a true role:

    perception  a value read from the image ("shows 7"), needed or not;
    reasoning   a word that depends on the image only through values read before it: a restated
                value, a result, "larger", the number in the box;
    template    everything else: what the question alone decides, and what is outside the grammar.
"""

from __future__ import annotations

import functools
import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from PIL import Image

from pipelines.disk.records import Sample
from pipelines.seeds import generator

PERCEPTION, REASONING, TEMPLATE = "perception", "reasoning", "template"

CELL = 28
"""Side of a cell in pixels: one merged image token of Qwen2.5-VL."""

SPLITS = {"train": (0, 1200), "validation": (1200, 1400), "test": (1400, 1797)}
"""Which of the shuffled scans each split may use; the shuffle is the same for every seed."""

Grid = tuple[tuple[int, ...], ...]
Piece = tuple[str, str]
"""A stretch of solution text, one token long for the tiny tokenizer, and its role."""


@dataclass(frozen=True)
class GlyphsOptions:
    """What kind of questions to draw."""

    levels: tuple[int, ...] = (1, 2, 3)
    """Levels to draw from, uniformly; repeat one to draw it more often."""
    guessable: float = 0.0
    """Fraction (0..1) of questions whose text gives away some of the values they need."""
    distractors: float = 0.2
    """Fraction (0..1) of solutions that also read a cell the question does not need."""


@dataclass(frozen=True)
class Slips:
    """How often a sloppy transcript errs; it goes on consistently from the error it made."""

    read: float = 0.0
    """Probability that a value is read as another digit."""
    result: float = 0.0
    """Probability that a result is off by one, or a comparison is turned around."""


@dataclass(frozen=True)
class Puzzle:
    """What a question asks, without its image."""

    task: str
    grid: Grid
    cells: tuple[str, ...]
    """The cells the answer needs, in reading order."""
    given: tuple[str, ...] = ()
    """Those of ``cells`` whose value the question gives away."""
    extra: str = ""
    """A cell that the solution reads without need, or empty."""
    digit: int = 0
    """The digit to count (task ``count``)."""

    def value(self, cell: str) -> int:
        """The true digit in a cell."""
        return self.grid[int(cell[1]) - 1]["abc".index(cell[0])]


class Writer:
    """Writes a solution piece by piece, with the role of each, making slips on request."""

    def __init__(self, slips: Slips, random: np.random.Generator) -> None:
        self.slips, self.random = slips, random
        self.pieces: list[Piece] = [("<think>", TEMPLATE)]

    def words(self, text: str, role: str = TEMPLATE) -> None:
        """Append words, each with its leading space."""
        self.pieces += [(" " + word, role) for word in text.split()]

    def mark(self, text: str) -> None:
        """Append punctuation."""
        self.pieces.append((text, TEMPLATE))

    def number(self, value: int, role: str = REASONING, space: str = " ") -> None:
        """Append a number, one piece a digit."""
        digits = list(str(value))
        digits[0] = space + digits[0]
        self.pieces += [(digit, role) for digit in digits]

    def clause(self) -> None:
        """Put a comma before a clause of the reasoning that is not its first."""
        if self.pieces[-1][0] != ".":
            self.mark(",")

    def read(self, cell: str, true: int) -> int:
        """Write "a1 shows 7"; returns the value as read."""
        wrong = self.random.random() < self.slips.read
        value = (true + int(self.random.integers(1, 10))) % 10 if wrong else true
        self.words(f"{cell} shows")
        self.number(value, PERCEPTION)
        return value

    def copy(self, cell: str, value: int) -> int:
        """Write "a1 given 7": a value from the question, which the image has no say in."""
        self.words(f"{cell} given")
        self.number(value, TEMPLATE)
        return value

    def result(self, true: int) -> int:
        """A result, right or off by one."""
        if self.random.random() >= self.slips.result:
            return true
        return true + 1 if true == 0 or self.random.random() < 0.5 else true - 1

    def equation(self, left: int, sign: str, right: int) -> int:
        """Write "7 + 3 = 10"; returns the result."""
        self.clause()
        value = self.result(left + right if sign == "+" else abs(left - right))
        self.number(left)
        self.words(sign)
        self.number(right)
        self.words("=")
        self.number(value)
        return value

    def total(self, values: Sequence[int]) -> int:
        """Write "7 + 3 = 10, 10 + 5 = 15"; returns the sum."""
        sum_ = values[0]
        for value in values[1:]:
            sum_ = self.equation(sum_, "+", value)
        return sum_

    def compare(self, left: int, right: int) -> tuple[int, int]:
        """Write "7 is larger than 3"; returns (larger, smaller) as stated."""
        self.clause()
        larger = left > right
        if self.random.random() < self.slips.result:
            larger = not larger
        relation = "equal" if left == right else "larger" if larger else "smaller"
        self.number(left)
        self.words("is")
        self.words(relation, REASONING)
        self.words("to" if relation == "equal" else "than")
        self.number(right)
        return (left, right) if larger else (right, left)

    def finding(self, name: str, true: int) -> int:
        """Write "the largest is 7"; returns the value as stated."""
        self.clause()
        value = self.result(true)
        self.words(f"the {name} is")
        self.number(value)
        return value

    def box(self, value: int) -> None:
        """Close the thought and box the answer."""
        self.words("</think> \\boxed{")
        self.number(value, space="")
        self.mark("}")


@dataclass(frozen=True)
class Task:
    """One kind of question."""

    level: int
    choose: Callable[[np.random.Generator, int, int], tuple[str, ...]]
    """(random, rows, columns) -> the cells to ask about, in reading order."""
    question: Callable[[Puzzle], str]
    reason: Callable[[Writer, list[int], Puzzle], int]
    """(writer, values read, puzzle) -> answer; writes the reasoning."""
    shapes: tuple[tuple[int, int], ...] = ((2, 2), (2, 3), (3, 2), (3, 3))
    """(rows, columns) of the grids it is asked about; fewer cells keep long solutions short."""


def _all_cells(rows: int, columns: int) -> list[str]:
    return [f"{'abc'[column]}{row + 1}" for row in range(rows) for column in range(columns)]


def _some(count: int) -> Callable[[np.random.Generator, int, int], tuple[str, ...]]:
    """A chooser of ``count`` different cells."""

    def choose(random: np.random.Generator, rows: int, columns: int) -> tuple[str, ...]:
        return tuple(map(str, random.permutation(_all_cells(rows, columns))[:count]))

    return choose


def _line(random: np.random.Generator, rows: int, columns: int) -> tuple[str, ...]:
    """A whole row or column."""
    pick = int(random.integers(rows + columns))
    name = str(pick + 1) if pick < rows else "abc"[pick - rows]
    return tuple(cell for cell in _all_cells(rows, columns) if name in cell)


def _two_rows(random: np.random.Generator, rows: int, columns: int) -> tuple[str, ...]:
    """Two whole rows, the upper one first."""
    first, second = sorted(int(row) for row in random.permutation(rows)[:2])
    cells = _all_cells(rows, columns)
    upper, lower = (cells[row * columns : (row + 1) * columns] for row in (first, second))
    return (*upper, *lower)


def _every(random: np.random.Generator, rows: int, columns: int) -> tuple[str, ...]:
    return tuple(_all_cells(rows, columns))


def _line_name(puzzle: Puzzle) -> str:
    first, second = puzzle.cells[:2]
    return f"row {first[1]}" if first[1] == second[1] else f"column {first[0]}"


def _reason_two_rows(writer: Writer, values: list[int], puzzle: Puzzle) -> int:
    half = len(values) // 2
    return writer.compare(writer.total(values[:half]), writer.total(values[half:]))[0]


def _reason_spread(writer: Writer, values: list[int], puzzle: Puzzle) -> int:
    largest = writer.finding("largest", max(values))
    return writer.equation(largest, "-", writer.finding("smallest", min(values)))


TASKS = {
    "add": Task(
        1, _some(2), lambda p: f"What is {p.cells[0]} + {p.cells[1]}?", lambda w, v, p: w.equation(v[0], "+", v[1])
    ),
    "larger": Task(
        1,
        _some(2),
        lambda p: f"What is the larger of {p.cells[0]} and {p.cells[1]}?",
        lambda w, v, p: w.compare(v[0], v[1])[0],
    ),
    "apart": Task(
        1,
        _some(2),
        lambda p: f"How far apart are {p.cells[0]} and {p.cells[1]}?",
        lambda w, v, p: w.equation(*_signed(w.compare(v[0], v[1]))),
    ),
    "sum_line": Task(2, _line, lambda p: f"What is the sum of {_line_name(p)}?", lambda w, v, p: w.total(v)),
    "largest_in_line": Task(
        2,
        _line,
        lambda p: f"What is the largest digit in {_line_name(p)}?",
        lambda w, v, p: w.finding("largest", max(v)),
    ),
    "count": Task(
        2,
        _every,
        lambda p: f"How many cells show {p.digit}?",
        lambda w, v, p: w.finding("count", v.count(p.digit)),
        shapes=((2, 2), (2, 3), (3, 2)),
    ),
    "larger_row": Task(
        3,
        _two_rows,
        lambda p: f"What is the larger sum, row {p.cells[0][1]} or row {p.cells[-1][1]}?",
        _reason_two_rows,
        shapes=((2, 2), (3, 2)),
    ),
    "spread": Task(
        3, _line, lambda p: f"What is the largest minus the smallest digit in {_line_name(p)}?", _reason_spread
    ),
    "add_larger": Task(
        3,
        _some(3),
        lambda p: f"Add {p.cells[0]} to the larger of {p.cells[1]} and {p.cells[2]}.",
        lambda w, v, p: w.equation(v[0], "+", w.compare(v[1], v[2])[0]),
    ),
}
"""Every kind of question; adding one is one entry (and its words, if new, in ``GRAMMAR``)."""


def _signed(pair: tuple[int, int]) -> tuple[int, str, int]:
    return pair[0], "-", pair[1]


# ---------------------------------------------------------------------------------- samples


def make_samples(split: str, count: int, seed: int, options: GlyphsOptions) -> list[Sample]:
    """The first ``count`` samples of a split; sample i depends on (seed, split, i, options) alone.

    ``metadata`` is a JSON object: level, task, grid, cells, given, extra, digit, scans (row by row,
    indices into ``load_digits``), solution (text), roles (a list of [piece of the solution, role]).
    """
    return [make_sample(split, index, seed, options) for index in range(count)]


def make_sample(split: str, index: int, seed: int, options: GlyphsOptions) -> Sample:
    """Sample ``index`` of a split; see :func:`make_samples`."""
    random = generator(seed, "glyphs", split, index)
    level = int(random.choice(options.levels))
    task = str(random.choice([name for name, task in TASKS.items() if task.level == level]))
    rows, columns = TASKS[task].shapes[random.integers(len(TASKS[task].shapes))]
    scans = random.choice(_scan_order()[slice(*SPLITS[split])], size=(rows, columns))
    digits = _scans()[1]
    puzzle = _draw_puzzle(task, tuple(tuple(int(digits[s]) for s in row) for row in scans), options, random)
    png = _draw(scans, random)
    pieces, answer = write(puzzle, Slips(), random)
    details = {
        **asdict(puzzle),
        "level": level,
        "scans": scans.tolist(),
        "solution": "".join(text for text, _ in pieces),
        "roles": pieces,
    }
    return Sample(
        id=f"{split}-{index:06d}",
        problem=f"<image>{_question(puzzle)}",
        images=[png],
        answer=str(answer),
        metadata=json.dumps(details),
    )


def _draw_puzzle(task: str, grid: Grid, options: GlyphsOptions, random: np.random.Generator) -> Puzzle:
    rows, columns = len(grid), len(grid[0])
    cells = TASKS[task].choose(random, rows, columns)
    present = [digit for row in grid for digit in row]
    digit = int(random.choice(present)) if random.random() < 0.75 else int(random.integers(10))
    given: tuple[str, ...] = ()
    if random.random() < options.guessable:
        how_many = int(random.integers(1, len(cells)))
        told = set(random.permutation(cells)[:how_many])
        given = tuple(cell for cell in cells if cell in told)
    spare = [cell for cell in _all_cells(rows, columns) if cell not in cells]
    extra = str(random.choice(spare)) if spare and random.random() < options.distractors else ""
    return Puzzle(task, grid, cells, given, extra, digit)


def _question(puzzle: Puzzle) -> str:
    hints = "".join(f"{cell} is {puzzle.value(cell)}. " for cell in puzzle.given)
    return hints + TASKS[puzzle.task].question(puzzle)


def write(puzzle: Puzzle, slips: Slips, random: np.random.Generator) -> tuple[list[Piece], int]:
    """A solution of the puzzle and the answer it arrives at (the right one, without slips)."""
    writer = Writer(slips, random)
    reads = list(puzzle.cells)
    if puzzle.extra:
        reads.insert(int(random.integers(len(reads) + 1)), puzzle.extra)
    values: dict[str, int] = {}
    for cell in reads:
        if values:
            writer.mark(",")
        step = writer.copy if cell in puzzle.given else writer.read
        values[cell] = step(cell, puzzle.value(cell))
    writer.mark(".")
    needed = [values[cell] for cell in puzzle.cells]
    answer = TASKS[puzzle.task].reason(writer, needed, puzzle)
    writer.box(answer)
    return writer.pieces, answer


def is_embedded(sample: Sample) -> bool:
    """Whether a sample was made here; another data set may have a column ``solution``, too."""
    return {"task", "grid", "cells", "scans", "solution", "roles"} <= sample.details().keys()


def puzzle_of(sample: Sample) -> Puzzle:
    """The puzzle behind a sample, from its metadata."""
    details = sample.details()
    return Puzzle(
        task=details["task"],
        grid=tuple(map(tuple, details["grid"])),
        cells=tuple(details["cells"]),
        given=tuple(details["given"]),
        extra=details["extra"],
        digit=details["digit"],
    )


def evidence(sample: Sample) -> list[tuple[float, float, float, float]]:
    """The cells that a sample's answer needs, whether the question gives their values away or not.

    Each is left, top, right and bottom, as shares of the image.
    """
    puzzle = puzzle_of(sample)
    rows, columns = len(puzzle.grid), len(puzzle.grid[0])
    places = [("abc".index(cell[0]), int(cell[1]) - 1) for cell in puzzle.cells]
    return [(x / columns, y / rows, (x + 1) / columns, (y + 1) / rows) for x, y in places]


def solution(sample: Sample) -> str:
    """The right solution of a sample, as text (without the end-of-sequence token)."""
    return str(sample.details()["solution"])


def transcript(sample: Sample, slips: Slips, random: np.random.Generator) -> str:
    """A solution with slips, as text: what a careless solver would have written."""
    return "".join(text for text, _ in write(puzzle_of(sample), slips, random)[0])


# ---------------------------------------------------------------------------------- images


@functools.cache
def _scans() -> tuple[np.ndarray, np.ndarray]:
    """All scans as bytes [1797, 8, 8] (0 = paper) and their digits [1797]."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return (digits.images * (255 / 16)).astype(np.uint8), digits.target


@functools.cache
def _scan_order() -> np.ndarray:
    """The shuffle behind ``SPLITS``; were it to depend on a run's seed, test scans would leak."""
    return generator(0, "glyphs-scans").permutation(len(_scans()[0]))


def _draw(scans: np.ndarray, random: np.random.Generator) -> bytes:
    """The grid as PNG; each digit has its own size, place, ink and paper."""
    rows, columns = scans.shape
    canvas = np.zeros((rows * CELL, columns * CELL), dtype=np.uint8)
    for row, column in np.ndindex(rows, columns):
        top, left = row * CELL, column * CELL
        cell = _draw_cell(_scans()[0][scans[row, column]], random)
        canvas[top : top + CELL, left : left + CELL] = cell
    buffer = io.BytesIO()
    Image.fromarray(canvas).convert("RGB").save(buffer, format="PNG")
    return buffer.getvalue()


def _draw_cell(scan: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """One scan [8, 8] scaled to 18..26 pixels and placed at random in a cell [28, 28]."""
    width, height = (int(side) for side in random.integers(18, 27, size=2))
    left, top = int(random.integers(CELL - width + 1)), int(random.integers(CELL - height + 1))
    paper, ink = random.uniform(0, 60), random.uniform(150, 255)
    strokes = Image.fromarray(scan).resize((width, height), Image.Resampling.BICUBIC)
    cell = np.zeros((CELL, CELL))
    cell[top : top + height, left : left + width] = np.asarray(strokes) / 255
    return np.rint(paper + (ink - paper) * cell).astype(np.uint8)


# ---------------------------------------------------------------------------------- true roles

GRAMMAR: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"\b[abc][123] shows (\d)(?!\d)"), PERCEPTION),
    (re.compile(r"\b(\d+) [+-] (\d+) = (\d+)"), REASONING),
    (re.compile(r"\b(\d+) is (larger|smaller) than (\d+)"), REASONING),
    (re.compile(r"\b(\d+) is (equal) to (\d+)"), REASONING),
    (re.compile(r"\bthe (?:largest|smallest|count) is (\d+)"), REASONING),
    (re.compile(r"\\boxed\{(\d+)\}"), REASONING),
)
"""The clauses of a response; the groups of a match have the role, the rest of it is template."""


def token_roles(pieces: list[str]) -> list[str]:
    """The true role of every token of a response, also of a sampled one that is wrong or broken.

    Roles are found on the text, by clause, so they do not depend on how a tokenizer cuts it; a
    token that overlaps several has the first of perception, reasoning, template. What is in no
    clause of the grammar is template.

    Args:
        pieces: the decoded text of each token, in order; special tokens may be given as they are.
    """
    text = "".join(pieces)
    role_of_character = [TEMPLATE] * len(text)
    for pattern, role in GRAMMAR:
        for match in pattern.finditer(text):
            for group in range(1, pattern.groups + 1):
                start, end = match.span(group)
                role_of_character[start:end] = [role] * (end - start)
    roles, start = [], 0
    for piece in pieces:
        found = set(role_of_character[start : start + len(piece)])
        roles.append(next((r for r in (PERCEPTION, REASONING) if r in found), TEMPLATE))
        start += len(piece)
    return roles
