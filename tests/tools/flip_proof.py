"""Flip single bytes of a finished run: what reads them names the file, or returns what it always did.

    python tests/tools/flip_proof.py --flips 20000 --runs 200 [--seed 0]

One process changes one byte at a time, half of them in files that no manifest lists (manifests,
journals, config.yaml, run.json, metrics.jsonl, report.json, lock), and asks the readers that commands
use. Drawn ones are then followed by a whole command, ``vppo train`` on a run with work left: it ends
with exit code 2 and the file's name, or with what the undamaged run ends with, bit for bit.

Exit code 0: each was named or harmless; 1: not.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from command_line import SMALL, contents, copy_of, given, vppo

from evals import compare
from evals.journal import damage, read_journal
from evals.run import read_results
from pipelines import runs
from pipelines.chain import Chain
from pipelines.checkpoints import best, pick
from pipelines.disk.lock import is_running
from pipelines.disk.records import Advantages, Look, Rollout, SampleTable, Scored, read_rows
from pipelines.disk.step import MANIFEST, checked, plan, read_manifest
from pipelines.errors import UserError
from pipelines.tracking.timing import seconds
from vppo_cli.report.source import RunSource, read_table
from vppo_cli.report.tables import _reports
from vppo_cli.screen.glance import look
from vppo_cli.screen.results import evaluation_rows

ROWS = {"rollouts": Rollout, "surplus": Rollout, "scores": Scored, "looks": Look, "advantages": Advantages}
UNLISTED = ("manifest.json", "journal", "config.yaml", "run.json", "metrics.jsonl", "report.json", "lock")
"""Kinds of files that no manifest lists."""


def kind_of(file: Path) -> str:
    """The row of the table that a file is counted in."""
    return "journal" if file.parent.name == "journals" else file.name


class Run:
    """A run, the readers of each of its files, and what they return while nothing is damaged."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.chain = Chain(runs.read_config(folder), folder)
        self.steps = {step.path: step for step in self.chain.all()}
        files = [
            file
            for file in sorted(folder.rglob("*"))
            if file.is_file() and file.stat().st_size and self._read(file) is not None
        ]
        self.unlisted = [file for file in files if kind_of(file) in UNLISTED]
        self.listed = [file for file in files if kind_of(file) not in UNLISTED]
        self.expected = {file: self.read(file) for file in files}

    def read(self, file: Path) -> tuple[Any, str]:
        """What the file's readers return, and what they warn of (readers that do return a pair)."""
        reader = self._read(file)
        assert reader is not None
        found = reader(file)
        return found if isinstance(found, tuple) else (found, "")

    def _read(self, file: Path) -> Callable[[Path], Any] | None:
        kind, chain = kind_of(file), self.chain
        if kind == "journal":
            return (lambda f: (read_journal(f), damage(f))) if file.suffix == ".jsonl" else None
        if kind == MANIFEST:
            return self._manifest
        if kind == "report.json":
            return lambda f: [compare.load(str(f)), _reports([RunSource("small", chain)])]
        readers: dict[str, Callable[[Path], Any]] = {
            "config.yaml": lambda f: runs.read_config(f.parent),
            "run.json": self._state,
            "metrics.jsonl": self._metrics,
            "lock": lambda f: is_running(f.parent),
            "results.json": lambda f: [read_results(f.parent), evaluation_rows(chain)],
            "answers.parquet": lambda f: checked(f) and f.read_bytes(),
        }
        if kind in readers:
            return readers[kind]
        step = next((self.steps[p] for p in file.parents if p in self.steps), None)
        if step is None:
            return None
        if step.name == "checkpoint":
            return lambda f: step.verify() or f.read_bytes()
        if file.parent == chain.prepare.path and file.suffix == ".parquet":
            return lambda f: list(SampleTable(f))
        if file.stem in ROWS:
            kind_of_row = ROWS[file.stem]
            return lambda f: [read_rows(f, kind_of_row), read_table(step, f.name, kind_of_row).to_pylist()]
        return None

    def _manifest(self, file: Path) -> Any:
        """All that commands take from a manifest."""
        step, chain = self.steps.get(file.parent), self.chain
        if step is None:
            return read_manifest(file.parent)["metrics"]
        found: list[Any] = [step.manifest(), plan(step)]
        if step.name in ("rollout", "score", "update"):
            found += [runs.step_metrics(chain, step.index or 0), seconds(chain, step.index or 0)]
        elif step.name == "checkpoint":
            found += [pick(chain, "last"), best(chain, [2, 3])]
        elif step.name != "prepare":
            found += [evaluation_rows(chain)]
        return found

    def _state(self, file: Path) -> tuple[Any, str]:
        glance = look(file.parent)
        state = {**asdict(glance.state), "sha256": ""}
        return (None if glance.warnings else state), " ".join(glance.warnings)

    def _metrics(self, file: Path) -> Any:
        """Its lines after a run brought it up to date, and what status shows meanwhile."""
        shown = look(file.parent).json()["metrics"]
        runs.write_metrics(self.chain)
        return [shown, file.read_bytes()]


@dataclass
class Proof:
    """What became of the flips, by kind of file."""

    flips: Counter[str] = field(default_factory=Counter)
    named: Counter[str] = field(default_factory=Counter)
    harmless: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def count(self, kind: str, outcome: str, about: str) -> None:
        self.flips[kind] += 1
        if outcome in ("named", "harmless"):
            getattr(self, outcome)[kind] += 1
        else:
            self.faults.append(f"{about}: {outcome}")


def drawn(
    run: Run, count: int, rng: random.Random, only: Callable[[Path], bool] = lambda _: True
) -> Iterator[tuple[Path, int, int]]:
    """(file, place, mask) of flips; every second in a file without an outer hash.

    Kinds of files are drawn equally often, so that small ones are not left to chance.
    """
    for number in range(count):
        files = run.unlisted if number % 2 else run.listed
        files = [file for file in files if only(file)]
        kind = rng.choice(sorted({kind_of(file) for file in files}))
        file = rng.choice([file for file in files if kind_of(file) == kind])
        mask = 1 << rng.randrange(8) if rng.random() < 0.5 else rng.randrange(1, 256)
        yield file, rng.randrange(file.stat().st_size), mask


def flipped(whole: bytes, place: int, mask: int) -> bytes:
    return whole[:place] + bytes([whole[place] ^ mask]) + whole[place + 1 :]


def readers_proof(run: Run, flips: int, rng: random.Random) -> Proof:
    """Flip, read, put back."""
    proof = Proof()
    for file, place, mask in drawn(run, flips, rng):
        whole = file.read_bytes()
        changed = flipped(whole, place, mask)
        file.write_bytes(changed)
        try:
            outcome = outcome_of(run, file)
        except Exception as error:  # any that is no UserError is a traceback
            outcome = f"{type(error).__name__}: {error}"
        finally:
            file.write_bytes(whole)
        about = f"{file.relative_to(run.folder)}, byte {place}, {whole[place]} -> {changed[place]}"
        proof.count(kind_of(file), outcome, about)
    return proof


def outcome_of(run: Run, file: Path) -> str:
    expected, _ = run.expected[file]
    try:
        found, warned = run.read(file)
    except UserError as error:
        text = str(error)
        return "named" if str(file) in text and error.fix else f"not named: {text}"
    if found == expected:
        return "harmless"
    if isinstance(warned, str) and str(file) in warned:
        return "named"
    if kind_of(file) == "journal" and all(expected[name][: len(entries)] == entries for name, entries in found.items()):
        return "harmless"  # the end was cut off, as a crash does it: it is sampled again
    return "another value"


def runs_proof(clean: Path, run: Run, count: int, rng: random.Random, folder: Path) -> Proof:
    """Flip, let ``vppo train`` make what is missing, compare."""
    proof, expected = Proof(), contents(clean)
    begun = copy_of(clean, folder / "begun")
    undo(begun)

    def there(file: Path) -> bool:
        return kind_of(file) != "lock" and (begun / file.relative_to(run.folder)).is_file()

    for number, (file, place, mask) in enumerate(drawn(run, count, rng, there)):
        name = str(file.relative_to(run.folder))
        copy = copy_of(begun, folder / str(number))
        (copy / name).write_bytes(flipped((copy / name).read_bytes(), place, mask))
        command = vppo("train", "--run", copy.name, runs=copy.parent)
        about = f"run {number}, {name}, byte {place}, mask {mask}"
        proof.count(kind_of(file), ending(command, copy, name, expected), about)
        shutil.rmtree(copy.parent.parent)
    return proof


def undo(run: Path) -> None:
    """Leave work that reads all there is: the last update is replayed from the checkpoint before."""
    for pattern in ("checkpoints/0003/*", "eval/0003/validation-*", "eval/0003/glyphs-*"):
        for folder in run.glob(pattern):
            shutil.rmtree(folder)


def ending(command: Any, run: Path, name: str, expected: dict[str, str]) -> str:
    if command.code == 2 and str(run / name) in command.err:
        return "named"
    if command.code != 0:
        return f"exit code {command.code}: {command.err.strip()[-300:]}"
    found = contents(run)
    differs = [n for n in expected if n != name and found.get(n) != expected[n]]
    return "harmless" if not differs else f"other content in {differs}"


def table(proof: Proof) -> Iterator[str]:
    yield f"{'file':<28}{'flips':>8}{'named':>8}{'harmless':>10}{'missed':>8}"
    for kind in sorted(proof.flips, key=lambda kind: (kind not in UNLISTED, kind)):
        good = proof.named[kind], proof.harmless[kind]
        missed = proof.flips[kind] - sum(good)
        yield f"{kind:<28}{proof.flips[kind]:>8}{good[0]:>8}{good[1]:>10}{missed:>8}"
    yield f"{'all':<28}{proof.flips.total():>8}{proof.named.total():>8}" + (
        f"{proof.harmless.total():>10}{len(proof.faults):>8}"
    )


def left_locked(run: Path) -> None:
    """Leave the run's lock as a process that was killed leaves it."""
    script = (
        "import os, signal; from pathlib import Path; from pipelines.disk.lock import run_lock\n"
        f"with run_lock(Path({str(run)!r})): os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == -signal.SIGKILL


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--flips", type=int, default=20_000)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    rng = random.Random(asked.seed)
    with tempfile.TemporaryDirectory(prefix="flip-proof-") as temporary:
        folder = Path(temporary)
        os.environ["VPPO_RUNS"] = str(folder / "runs")
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        vppo("train", "--run", "small", *given(*SMALL), runs=folder / "runs").succeeded()
        clean = folder / "runs" / "small"
        faults = []
        copy = copy_of(clean, folder / "flipped")
        os.environ["VPPO_RUNS"] = str(copy.parent)
        left_locked(copy)
        run = Run(copy)
        for title, proof in (
            ("readers", readers_proof(run, asked.flips, rng)),
            ("whole runs", runs_proof(clean, run, asked.runs, rng, folder / "damaged")),
        ):
            print(f"\n{title}", *table(proof), sep="\n", flush=True)
            faults += proof.faults
    for fault in faults:
        print("FAULT", fault)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
