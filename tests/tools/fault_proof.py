"""Let system calls fail, or kill the run there; told or handled, it must end as if nothing had happened.

    python tests/tools/fault_proof.py --faults 500 [--seed 0] [--jobs 2] [--only write:ENOSPC]

A library (fault_shim.c) that the run is started with lets the n-th open, write, fsync, rename or read
under the run's folder fail with an error of the system, write or read only half, or kill the process.
The n-th of how many is known from an undisturbed run; in half of the cases where that happens in life
(a full disk, say) all later calls of the kind fail as well. Then:

- The exit code is 2, with a message that names the file and the system's reason, and no traceback; or
  it is 0, as the failure was handled; or the process was killed.
- The same command, undisturbed, goes on, and ends bit for bit like the run that was left alone, with
  the same files, none half-written among them.

Exit code 0: proven; 1: not.
"""

from __future__ import annotations

import argparse
import errno
import os
import random
import re
import shutil
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from command_line import Command, contents, fault_shim, given, start

NAME = "small"

SETTINGS = (
    "data.glyphs.train=16",
    "data.glyphs.validation=2",
    "data.glyphs.test=4",
    "rollout.prompts_per_step=2",
    "rollout.samples_per_prompt=4",
    "rollout.max_new_tokens=16",
    "rollout.dynamic_sampling=false",
    "update.batch_prompts=2",
    "update.micro_batch_prompts=2",
    "checkpoint.every=2",
    "checkpoint.validation_samples=1",
    "checkpoint.keep_last=1",
    "checkpoint.keep_best=0",
    "eval.samples=1",
    "eval.batch_prompts=2",
    "eval.max_new_tokens=16",
    "eval.baseline=false",
    "reward.workers=1",
    "run.threads=1",
    "run.steps=3",
)
"""A run of two seconds that has every stage, a replay, and a checkpoint that is pruned."""

KINDS = ("open", "write", "fsync", "rename", "read")
"""The order of fault_shim.c."""

KILL, SHORT = -1, -2
ERRORS = {
    "open": ("ENOSPC", "EIO", "EMFILE", "EACCES", "ESTALE", "EINTR", "kill"),
    "write": ("ENOSPC", "EIO", "EDQUOT", "EINTR", "short", "kill"),
    "fsync": ("ENOSPC", "EIO", "EINTR", "kill"),
    "rename": ("ENOSPC", "EIO", "EACCES", "EINTR", "kill"),
    "read": ("EIO", "ESTALE", "EINTR", "short", "kill"),
}
LASTING = {"ENOSPC", "EIO", "EDQUOT", "EMFILE", "EACCES", "ESTALE"}
PAIRS = [(kind, error) for kind in KINDS for error in ERRORS[kind]]

STATE = struct.Struct(f"{len(KINDS)}qq4096s")


@dataclass(frozen=True)
class Fault:
    """The ``number``-th call (from 1) of a kind fails; ``lasting``: all later ones as well."""

    kind: str
    error: str
    number: int
    lasting: bool

    @property
    def code(self) -> int:
        return {"kill": KILL, "short": SHORT}.get(self.error) or getattr(errno, self.error)

    def __str__(self) -> str:
        return f"{self.kind} {self.number}{' and later' * self.lasting}: {self.error}"


@dataclass
class Seen:
    """What the library has seen: calls of each kind, how many failed, and the first file hit."""

    calls: dict[str, int]
    hits: int
    path: str


@dataclass
class Outcome:
    """What became of a fault; ``faults`` is empty if all is well."""

    fault: Fault
    seen: Seen
    code: int
    said: str
    faults: list[str]


class Proof:
    """An undisturbed run to compare with, and faults to be injected into others.

    Args:
        folder: where runs are made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        clean = Fault("open", "EIO", 0, False)
        seen, command = self._run(folder / "calm", clean)
        command.succeeded()
        self.calls = seen.calls
        self.expected = contents(self.run_in("calm"))
        self.files = names(self.run_in("calm"))

    def run_in(self, name: str) -> Path:
        return self.folder / name / "runs" / NAME

    def _run(self, place: Path, fault: Fault) -> tuple[Seen, Command]:
        place.mkdir(exist_ok=True)
        state = place / "state"
        state.write_bytes(bytes(STATE.size))
        armed: dict[str, Any] = {
            "folder": str(self.run_in(place.name)),
            "state": str(state),
            "kind": KINDS.index(fault.kind),
            "number": fault.number,
            "error": fault.code,
            "sticky": fault.lasting,
        }
        command = train(place, armed)
        assert command.code is not None
        *counts, hits, path = STATE.unpack(state.read_bytes())
        where = path.rstrip(b"\0").decode()
        return Seen(dict(zip(KINDS, counts, strict=True)), hits, where), command

    def draw(self, rng: random.Random, number: int) -> list[Fault]:
        """Faults in turn over all pairs of call and error, each at a drawn call."""
        return [
            Fault(kind, error, rng.randint(1, self.calls[kind]), error in LASTING and rng.random() < 0.5)
            for kind, error in (PAIRS[i % len(PAIRS)] for i in range(number))
        ]

    def inject(self, fault: Fault, name: str) -> Outcome:
        """Let one fault happen, go on, and compare."""
        outcome = self.attempt(fault, name)
        outcome.faults += self.finish(name)
        return outcome

    def attempt(self, fault: Fault, name: str) -> Outcome:
        """Begin a run, or go on with it, and let one fault happen."""
        seen, command = self._run(self.folder / name, fault)
        outcome = Outcome(fault, seen, command.code, command.err.strip(), [])
        complain = outcome.faults.append
        if "Traceback" in command.err:
            complain("a traceback")
        if fault.error == "kill":
            if seen.hits and command.code != -9:
                complain(f"exit code {command.code} of a killed process")
        elif command.code == 2:
            if os.strerror(fault.code) not in command.err:
                complain("the system's reason is not told")
            if not fault.lasting and not any(p in command.err for p in paths_of(seen.path)):
                complain("the path that failed is not told")
            if str(self.run_in(name)) not in command.err:
                complain("no path is told")
            if "Delete" in command.err:
                complain("advises to delete what is not damaged")
        elif command.code:
            complain(f"exit code {command.code}")
        return outcome

    def finish(self, name: str) -> list[str]:
        """Go on undisturbed, and compare: all that is not as it should be."""
        again = train(self.folder / name, None)
        run = self.run_in(name)
        found, files = contents(run), names(run)
        shutil.rmtree(self.folder / name)
        wrong = {
            f"the same command ends with {again.code}": again.err.splitlines() if again.code else [],
            "not bit-identical": [n for n in self.expected if found.get(n) != self.expected[n]],
            "left behind": sorted(files - self.files),
            "missing": sorted(self.files - files),
        }
        return [f"{what}: {', '.join(which)}" for what, which in wrong.items() if which]


def train(place: Path, fault: dict[str, Any] | None) -> Command:
    command = start("train", "--run", NAME, *given(*SETTINGS), runs=place / "runs", fault=fault)
    while command.running():  # the server that starts them must not wait for one alone
        time.sleep(0.02)
    assert command.code is not None
    return command


def paths_of(hit: str) -> list[str]:
    """A file as it is called once it is whole, and the step that it is of."""
    parts = Path(hit).parts
    whole = [re.sub(r"\.[^.]*\.partial$", "", part) for part in parts]
    steps = [i for i, part in enumerate(whole) if re.fullmatch(r"\w+-[0-9a-f]{8}", part)]
    return [str(Path(*whole)), *(str(Path(*whole[: i + 1])) for i in steps)]


def names(run: Path) -> set[str]:
    """Every file and folder of a run."""
    return {str(path.relative_to(run)) for path in run.rglob("*")}


def table(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """One line a pair of call and error: what became of its faults."""
    columns = ("injected", "handled", "told", "killed", "recovered")
    yield f"{'':<18}" + "".join(f"{name:>11}" for name in columns)
    total: Counter[str] = Counter()
    for kind, error in PAIRS:
        these = [o for o in outcomes if (o.fault.kind, o.fault.error) == (kind, error)]
        if not these:
            continue
        counts = Counter(
            injected=sum(bool(o.seen.hits) for o in these),
            handled=sum(o.code == 0 for o in these),
            told=sum(o.code == 2 for o in these),
            killed=sum(o.code == -9 for o in these),
            recovered=sum(not o.faults for o in these),
        )
        total += counts
        yield f"{kind:<9}{error:<9}" + "".join(f"{counts[name]:>11}" for name in columns)
    yield f"{'all':<18}" + "".join(f"{total[name]:>11}" for name in columns)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--only", help="one pair of call and error: write:ENOSPC")
    asked = parser.parse_args()
    if not fault_shim():
        print("skipped: this needs Linux and a C compiler (cc, gcc or clang)")
        return 0
    began = time.monotonic()
    memory = Path("/dev/shm")  # where forcing to the disk takes no time
    where = memory if memory.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="fault-proof-", dir=where) as folder:
        proof = Proof(Path(folder))
        print("calls of an undisturbed run: " + ", ".join(f"{n} {kind}" for kind, n in proof.calls.items()))
        faults = proof.draw(random.Random(asked.seed), asked.faults)
        if asked.only:
            faults = [f for f in faults if f"{f.kind}:{f.error}" == asked.only]
        outcomes = []
        with ThreadPoolExecutor(asked.jobs) as pool:
            for outcome in pool.map(proof.inject, faults, map(str, range(len(faults)))):
                outcomes.append(outcome)
                for fault in outcome.faults:
                    print(
                        f"FAULT     {outcome.fault}, at {Path(outcome.seen.path).name}: {fault}\n"
                        f"          {outcome.said[-2000:]}",
                        flush=True,
                    )
                if len(outcomes) % 50 == 0:
                    print(f"{len(outcomes)} done", flush=True)
    print("\n".join(("", *table(outcomes), "")))
    unhit = [o for o in outcomes if not o.seen.hits]
    wrong = [o for o in outcomes if o.faults]
    print(
        f"{len(outcomes)} faults, {len(unhit)} at calls that did not come, {len(wrong)} wrong, "
        f"{time.monotonic() - began:.0f} s"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
