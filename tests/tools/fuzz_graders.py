"""Generated answers against both graders: nothing is executed, nothing stalls, nothing is left behind.

    python tests/tools/fuzz_graders.py --answers 100000

Each batch of attacks holds pairs of a known verdict in between. Among the attacks are exploits that work
on the published package (``attacks.py``): they would leave a canary file, reach a port that this listens
on, or fork. Exit code 1 if anything was found; the same seed makes the same answers.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from attacks import docstring, exploit, generated, payloads

from pipelines.grading.graders import GRADERS, GraderPool, Item
from pipelines.grading.processes import Walls

CONTROLS: tuple[tuple[Item, bool], ...] = (
    (("1/2", "0.5", "value"), True),
    ((r"\frac{3}{4}", "0.75", "value"), True),
    ((r"2\sqrt{3}", r"\sqrt{12}", "value"), True),
    (("x+1", "1+x", "value"), True),
    (("1/3", "0.5", "value"), False),
    ((r"2\pi", "6.5", "value"), False),
)
EVERY = 25
"""One control in so many answers."""
PART = 5_000


def campaign(
    answers: int,
    seed: int,
    deadline_s: float,
    workers: int,
    graders: Sequence[str] = GRADERS,
    walls: Walls | None = None,
) -> dict[str, Any]:
    """Grade ``answers`` attacks, half of them as golds; what broke (empty if all held), and counts.

    What appears in the current folder was written by an attack.
    """
    folder = Path.cwd()
    listed = set(folder.iterdir())
    letters, broken, began = docstring(), [], time.monotonic()
    us = psutil.Process()
    children = {child.pid for child in us.children(recursive=True)}
    told: dict[str, Any] = {"answers": answers, "seed": seed, "refused": {}, "no_verdict": {}}
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        codes = payloads("canary", server.getsockname()[1]).values()
        attacks = generated(answers, seed, [exploit(code, letters) for code in codes])
        with GraderPool(workers, deadline_s, walls=walls) as pool:
            for start in range(0, answers, PART):
                items, controls = _mixed(attacks, min(PART, answers - start), seed + start)
                for grader in graders:
                    before = pool.refused
                    verdicts = pool.grade(items, grader, alone=True)
                    broken += [
                        f"{grader}: {items[place]} is {verdicts[place]}"
                        for place, right in controls.items()
                        if verdicts[place] is not right
                    ]
                    _add(told["refused"], grader, pool.refused - before)
                    _add(told["no_verdict"], grader, verdicts.count(None))
                workers_now = set(pool.pids)
                left = {child.pid for child in us.children(recursive=True)} - children - workers_now
                broken += [f"a process was left: {pid}" for pid in left]
        broken += [f"written: {path}" for path in folder.iterdir() if path not in listed]
        try:
            server.accept()
            broken.append("a connection was made")
        except BlockingIOError:
            pass
    left = {child.pid for child in us.children(recursive=True)} - children
    broken += [f"a process was left at the end: {pid}" for pid in left]
    return {**told, "seconds": round(time.monotonic() - began, 1), "broken": broken}


def _mixed(attacks: Any, count: int, seed: int) -> tuple[list[Item], dict[int, bool]]:
    """``count`` attacks with controls in between: (items, place of each control -> its verdict)."""
    rng = random.Random(seed)
    items: list[Item] = []
    controls: dict[int, bool] = {}
    for number in range(count):
        attack = next(attacks)
        items.append((attack, "0.7", "value") if rng.random() < 0.5 else ("0.7", attack, "value"))
        if number % EVERY == 0:
            item, right = rng.choice(CONTROLS)
            n = rng.randint(2, 10**6)  # so that it is graded, not remembered
            controls[len(items)] = right
            items.append((f"{item[0]}+{n}", f"{item[1]}+{n}", "value"))
    return items, controls


def _add(counts: dict[str, int], name: str, more: int) -> None:
    counts[name] = counts.get(name, 0) + more


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--answers", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--deadline", type=float, default=1.0, help="seconds for each answer")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        told = campaign(options.answers, options.seed, options.deadline, options.workers)
    print(json.dumps(told, indent=1))
    sys.exit(1 if told["broken"] else 0)


if __name__ == "__main__":
    main()
