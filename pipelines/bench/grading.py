r"""How long grading a whole evaluation takes: 15,271 questions x 8 answers, by both graders.

The questions have the eight benchmarks' sizes and kinds of gold (choices, whole numbers, values such as
``2\sqrt{221}``). The responses are made up, seeded: a think text of some hundred words, then mostly a box:
right or wrong, in the ways models write (units, LaTeX, option texts, equations), sometimes none, sometimes
unclosed, and now and then one built to hang a grader.

``--distinct`` is the worst case: every gold is a value that must be parsed, and no text occurs twice, so
nothing is remembered and no rule decides before the grader.

``--changed`` lists the answers whose published verdict the guard changes: each is graded by the package
as it is published, unguarded but contained, and by ours. ``--against`` times ordinary answers against
another checkout, in turn.

    python -m pipelines.bench.grading --out grading.json
    python -m pipelines.bench.grading --distinct --answers 8000
    python -m pipelines.bench.grading --changed --answers 20000 --file answers.tsv
    python -m pipelines.bench.grading --against ../before --turns 9 --answers 20000
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pipelines.disk.step import write_atomic
from pipelines.grading.answer import extract_answer
from pipelines.grading.graders import GRADERS, GraderPool, Item
from pipelines.grading.processes import Walls

SAMPLES = 8
HOSTILE_EVERY = 5_000
"""One answer in so many is built to hang or to exhaust a grader."""

# Questions by kind of gold. MMK12 mixes choices and values in unknown parts: half each here.
BENCHMARKS: dict[str, dict[str, int]] = {
    "mathverse": {"letter": 2180},
    "dynamath": {"letter": 1738, "integer": 1928},
    "mmk12": {"letter": 1000, "value": 1000},
    "geo3k": {"integer": 280, "value": 321},
    "mathvision": {"letter": 1530, "integer": 1377},
    "wemath": {"letter": 1740},
    "logicvista": {"letter": 444, "letters": 3},
    "mmmu_pro": {"letter": 1730},
}
QUESTIONS = sum(sum(kinds.values()) for kinds in BENCHMARKS.values())
ANSWERS = QUESTIONS * SAMPLES

_WORDS = (
    "we see that the triangle in image has angle of degrees so side length is equal to by theorem "
    "therefore looking at figure point lies on circle and chord which means area must be let us "
    "check first then since sum all angles parallel given need find value x from graph"
)


@dataclass
class Timing:
    """One grader's figures."""

    grader: str
    answers: int
    seconds: float
    answers_per_s: float
    outcomes: dict[str, int]


# --- what questions and answers look like ---------------------------------------------------------


def _value(rng: random.Random) -> str:
    """A gold of geometry and algebra: roots, fractions, decimals, angles, multiples of pi."""
    a, b, c = rng.randint(2, 99), rng.randint(2, 400), rng.randint(2, 30)
    forms: list[str] = [
        rf"{a}\sqrt{{{b}}}",
        rf"\sqrt{{{b}}}",
        rf"\frac{{{a}}}{{{c}}}",
        f"{a}.{c}",
        f"{a}/{c}",
        rf"{a}\pi",
        rf"\frac{{{a}\sqrt{{{b}}}}}{{{c}}}",
        rf"\frac{{\sqrt{{{b}}}}}{{{c}}}",
        rf"{a}+{c}\sqrt{{{b}}}",
        rf"{a}^\circ",
        f"-{a}.{c}",
        f"({a},{c})",
        f"{a}x+{c}",
    ]
    return rng.choice(forms)


def _rewritten(gold: str, rng: random.Random) -> str:
    """The same value in another notation or with what models put around it."""
    n = rng.randint(2, 9)
    ways: list[Callable[[], str]] = [
        lambda: gold.replace(r"\frac", r"\dfrac"),
        lambda: rf"{gold}\text{{ cm}}",
        lambda: f"x = {gold}",
        lambda: f"${gold}$",
        lambda: f"{gold} cm",
        lambda: rf"{gold}^\circ",
        lambda: rf"\frac{{{n}({gold})}}{{{n}}}",
        lambda: f"{gold}.",
        lambda: f"{gold}.0",
        lambda: rf"\text{{{gold}}}",
        lambda: rf"{gold} \approx {n}.{n}1",
    ]
    return rng.choice(ways)()


def _choice(letter: str, rng: random.Random) -> str:
    n = rng.randint(1, 60)
    forms = [letter] * 12 + [
        f"{letter}. {n}",
        f"({letter})",
        rf"\text{{{letter}}}",
        f"{letter}: {n} cm",
        f"Option {letter}",
        f"{letter}. Apple {n}",
        rf"{letter}. $\frac{{1}}{{{n}}}$",
        f"**{letter}**",
        f"{letter}.",
    ]
    return rng.choice(forms)


def _hostile(rng: random.Random) -> str:
    n = rng.randint(10, 10**6)
    forms: list[Callable[[], str]] = [
        lambda: f"9**9**9+{n}",
        lambda: f"{99_999_999 + n}!",
        lambda: rf"9^{{9^{{9^{{{n}}}}}}}",
        lambda: f"10**10**10-{n}",
        lambda: f"2**{10**11 + n}",
        lambda: "{" * (10**6 + n) + "}" * (10**6 + n),
        lambda: r"\frac{1}{" * 10_000 + str(n) + "}" * 10_000,
        lambda: "(" * 3_000 + str(n) + ")" * 3_000,
        lambda: r"\sqrt{" * 1_000 + str(n) + "}" * 1_000,
        lambda: f"{n}\0\ud800{n}",
    ]
    return rng.choice(forms)()


def _gold(kind: str, rng: random.Random) -> str:
    if kind == "letter":
        return rng.choice("ABCDE")
    if kind == "letters":
        return ", ".join(sorted(rng.sample("ABCD", 2)))
    return str(rng.randint(-20, 400)) if kind == "integer" else _value(rng)


def _answer(gold: str, kind: str, rng: random.Random) -> str:
    """A boxed content: right half of the time, the same wrong ones again and again."""
    chance = rng.random()
    if kind.startswith("letter"):
        if chance < 0.06:  # a value where a letter was asked for
            return _value(rng) if chance < 0.04 else str(rng.randint(1, 400))
        return _choice(gold if chance < 0.55 else rng.choice("ABCDE"), rng)
    if chance < 0.40:
        return gold
    if chance < 0.55:
        return _rewritten(gold, rng)
    wrong = _gold(kind, rng) if chance < 0.85 else _value(rng)
    return wrong if chance < 0.92 else _rewritten(wrong, rng)


def _distinct(gold: str, number: int, rng: random.Random) -> str:
    """A value that occurs nowhere else; half of them equal the gold."""
    n = number + 2
    if rng.random() < 0.5:
        return rf"\frac{{{n}({gold})}}{{{n}}}" if rng.random() < 0.5 else f"{gold}+{n}-{n}"
    return f"{_value(rng)}+{n}"


def _response(content: str, rng: random.Random) -> str:
    start, length = rng.randrange(len(_PROSE) // 2), rng.randint(600, 3000)
    think, end = _PROSE[start : start + length], rng.random()
    first = r"we get \boxed{1} at first, but " if end < 0.05 else ""
    if end > 0.98:
        return f"<think>{think}</think> The answer is {content}"
    closing = "" if end > 0.97 else "}"
    return f"<think>{first}{think}</think> The answer is \\boxed{{{content}{closing}."


_PROSE = " ".join(random.Random(0).choices(_WORDS.split(), k=4_000))


def responses(
    answers: int, distinct: bool, seed: int, hostile_every: int = HOSTILE_EVERY
) -> Iterator[tuple[str, str, str]]:
    """(response text, gold, kind) of ``answers`` answers, evenly from all questions."""
    golds = [
        ("value" if distinct else kind)
        for kinds in BENCHMARKS.values()
        for kind, count in kinds.items()
        for _ in range(count)
    ]
    rng = random.Random(seed)
    questions = -(-answers // SAMPLES)
    for i in range(answers):
        if i % SAMPLES == 0:
            kind = golds[(i // SAMPLES) * len(golds) // questions]
            gold = f"{_value(rng)}+{i + 1}" if distinct else _gold(kind, rng)
        if i % hostile_every == hostile_every // 2:
            content = _hostile(rng)
        else:
            content = _distinct(gold, i, rng) if distinct else _answer(gold, kind, rng)
        yield _response(content, rng), gold, "choice" if kind.startswith("letter") else "value"


# --- measuring ------------------------------------------------------------------------------------


def measure(answers: int, workers: int, distinct: bool, seed: int = 0, deadline_s: float = 5.0) -> dict[str, object]:
    """Extract and grade; seconds and outcomes per grader."""
    texts = list(responses(answers, distinct, seed))
    began = time.perf_counter()
    items = extracted(texts)
    extraction_s = time.perf_counter() - began
    del texts
    timings = [_timing(grader, items, workers, deadline_s) for grader in GRADERS]
    return {
        "answers": answers,
        "distinct": distinct,
        "workers": workers,
        "seed": seed,
        "deadline_s": deadline_s,
        "no_answer": answers - len(items),
        "extraction_s": round(extraction_s, 2),
        "graders": [asdict(timing) for timing in timings],
        "total_s": round(extraction_s + sum(timing.seconds for timing in timings), 1),
    }


def extracted(texts: Iterable[tuple[str, str, str]]) -> list[Item]:
    """What the grader is asked: (answer, gold, kind) of every response that holds an answer."""
    found = ((extract_answer(text), gold, kind) for text, gold, kind in texts)
    return [(answer, gold, kind) for answer, gold, kind in found if answer is not None]


def _timing(grader: str, items: list[Item], workers: int, deadline_s: float) -> Timing:
    began = time.perf_counter()
    with GraderPool(workers=workers, deadline_s=deadline_s) as pool:
        verdicts = pool.grade(items, grader)
    seconds = time.perf_counter() - began
    counts = Counter({True: "correct", False: "wrong", None: "timed_out"}[v] for v in verdicts)
    return Timing(grader, len(items), round(seconds, 1), round(len(items) / seconds, 1), dict(counts))


# --- against the published packages, and against another checkout ---------------------------------


@dataclass(frozen=True)
class Changed:
    """An answer that is right to the published package and wrong to ours, or the other way round."""

    grader: str
    answer: str
    gold: str
    published: bool | None
    ours: bool | None


def changed_verdicts(
    pairs: Sequence[tuple[str, str]], grader: str, workers: int = 2, deadline_s: float = 5.0
) -> list[Changed]:
    """The (answer, gold) whose published verdict is not ours. The graders alone, without rules of ours."""
    items: list[Item] = [(answer, gold, "value") for answer, gold in dict.fromkeys(pairs)]
    verdicts = []
    for walls in (Walls(guarded=False), Walls()):
        with GraderPool(workers, deadline_s, walls=walls) as pool:
            verdicts.append(pool.grade(items, grader, alone=True))
    return [
        Changed(grader, answer, gold, published, ours)
        for (answer, gold, _), published, ours in zip(items, *verdicts, strict=True)
        if (published is True) != (ours is True)
    ]


def pairs_of(path: Path) -> list[tuple[str, str]]:
    """The columns ``answer`` and ``gold`` of a table with tabs; lines that begin with # are notes."""
    with path.open(encoding="utf-8", newline="") as file:
        lines = (line for line in file if not line.startswith("#"))
        rows = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [(row["answer"], row["gold"]) for row in rows]


def changed_table(sources: dict[str, list[tuple[str, str]]], workers: int) -> str:
    """Markdown: how many verdicts the guard changes, by source and grader, and which."""
    lines = ["| answers | grader | distinct pairs | changed |", "|---|---|---|---|"]
    found: list[Changed] = []
    for name, pairs in sources.items():
        for grader in GRADERS:
            some = changed_verdicts(pairs, grader, workers)
            lines.append(f"| {name} | `{grader}` | {len(set(pairs)):,} | {len(some)} |")
            found += some
    if found:
        lines += ["", "| grader | answer | gold | published | ours |", "|---|---|---|---|---|"]
        lines += [f"| `{c.grader}` | `{c.answer[:80]}` | `{c.gold[:80]}` | {c.published} | {c.ours} |" for c in found]
    return "\n".join(lines)


_ONE_TURN = """
import json, sys, time
import psutil
from pipelines.grading.graders import GraderPool
with open(sys.argv[1]) as file:
    items = [tuple(item) for item in json.load(file)]
def used(pool):
    return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in pool.pids)
with GraderPool(workers=int(sys.argv[3]), deadline_s=60.0) as pool:
    pool.grade([("1/2", "0.6", "value"), ("1/3", "0.6", "value")], sys.argv[2])
    began, before = time.perf_counter(), used(pool)
    pool.grade(items, sys.argv[2])
    print(time.perf_counter() - began, used(pool) - before)
"""


def against(
    other: Path,
    answers: int,
    workers: int,
    turns: int,
    seed: int = 0,
    graders: Sequence[str] = GRADERS,
    mixes: Sequence[bool] = (False, True),
) -> dict[str, object]:
    """Time ordinary answers here and in another checkout, in turn.

    Returns medians of seconds and of the workers' processor seconds, ours and the other's, and the
    ratios of these: on a busy machine that of processor time says more. ``mixes``: False for the
    realistic one, True for distinct answers.
    """
    here = Path(__file__).resolve().parents[2]
    found: dict[str, object] = {"answers": answers, "workers": workers, "turns": turns}
    with tempfile.TemporaryDirectory() as folder:
        for distinct in mixes:
            items = extracted(responses(answers, distinct, seed, hostile_every=answers + 1))
            file = Path(folder, "items.json")
            file.write_text(json.dumps(items))
            for grader in graders:
                ours: list[tuple[float, ...]] = []
                theirs: list[tuple[float, ...]] = []
                for _ in range(turns):
                    for tree, taken in ((here, ours), (other.resolve(), theirs)):
                        taken.append(_one_turn(tree, file, grader, workers))
                columns = {}
                for column, name in enumerate(("seconds", "processor")):
                    mine = statistics.median(turn[column] for turn in ours)
                    its = statistics.median(turn[column] for turn in theirs)
                    columns[name] = [round(mine, 3), round(its, 3), round(mine / its, 3)]
                found[f"{grader}, {'distinct' if distinct else 'realistic'}"] = columns
    return found


def _one_turn(tree: Path, file: Path, grader: str, workers: int) -> tuple[float, ...]:
    command = [sys.executable, "-c", _ONE_TURN, str(file), grader, str(workers)]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    told = subprocess.check_output(command, cwd=tree, env=environment, text=True)
    return tuple(map(float, told.split()))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--answers", type=int, default=ANSWERS, help="how many answers")
    parser.add_argument("--workers", type=int, default=2, help="grading processes")
    parser.add_argument("--seed", type=int, default=0, help="of the made-up answers")
    parser.add_argument("--distinct", action="store_true", help="worst case: no text occurs twice")
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    parser.add_argument("--changed", action="store_true", help="list verdicts the guard changes")
    parser.add_argument("--file", type=Path, help="with --changed: also a table of answer and gold")
    parser.add_argument("--against", type=Path, help="time ordinary answers here and in a checkout")
    parser.add_argument("--turns", type=int, default=9, help="with --against: how often each")
    options = parser.parse_args()
    if options.answers < 1 or options.workers < 1 or options.turns < 1:
        parser.error("--answers, --workers and --turns must be at least 1")
    if options.changed:
        made = {"realistic mix": False, "`--distinct`": True}
        sources = {
            name: [item[:2] for item in extracted(responses(options.answers, how, options.seed))]
            for name, how in made.items()
        }
        if options.file:
            sources = {options.file.name: pairs_of(options.file), **sources}
        print(changed_table(sources, options.workers))
        return
    figures = (
        against(options.against, options.answers, options.workers, options.turns, options.seed)
        if options.against
        else measure(options.answers, options.workers, options.distinct, options.seed)
    )
    text = json.dumps(figures, indent=1)
    print(text)
    if options.out:
        write_atomic(options.out, text + "\n")


if __name__ == "__main__":
    main()
