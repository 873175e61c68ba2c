"""Kill a run with ``kill -9`` at random instants; resumed, it must end as if nothing had happened.

    python tests/tools/kill_proof.py --kills 20 [--seed 0] [--folder DIR] [-- --set key=value ...]

One run is left alone. A second one, of the same settings, is killed again and again, its grading
processes with it, each time at a random instant of the work that is left, and started again by the
same command. At the end weights, optimizer, every table, metrics and evaluations are compared bit
for bit. A rollout that was committed must never be generated again: its folder's inode and its
manifest's time have to stay what they were when it was first seen.

Exit code 0: proven; 1: not.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from command_line import ONE_THREAD, contents, given

NAME = "proof"

SETTINGS = (
    "data.glyphs.train=256",
    "data.glyphs.validation=16",
    "data.glyphs.test=48",
    "rollout.prompts_per_step=16",
    "rollout.batch_prompts=16",
    "update.batch_prompts=8",
    "update.micro_batch_prompts=4",
    "checkpoint.every=3",
    "checkpoint.validation_samples=2",
    "eval.samples=4",
    "eval.batch_prompts=4",
    "run.steps=6",
)
"""A run of about half a minute: two optimizer steps an update, a journal of many parts, and updates
after the last checkpoint, so that resuming has to replay."""


@dataclass
class Proof:
    """What was seen over all kills."""

    kills: list[tuple[float, str]] = field(default_factory=list)
    """Seconds after the start of its attempt, and what the run was doing."""
    rollouts: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Committed rollout -> (inode, time it was finished), as first seen."""
    faults: list[str] = field(default_factory=list)

    def look(self, run: Path) -> None:
        """Note committed rollouts; complain about one that was made again."""
        for manifest in sorted(run.glob("steps/*/rollout-*/manifest.json")):
            if ".partial" in manifest.parent.name:
                continue
            name = str(manifest.parent.relative_to(run))
            found = (manifest.parent.stat().st_ino, json.loads(manifest.read_text())["finished"])
            first = self.rollouts.setdefault(name, found)
            if found != first:
                self.faults.append(f"{name} was generated again: {first} -> {found}")
        gone = [name for name in self.rollouts if not (run / name).is_dir()]
        self.faults += [f"{name} is gone" for name in gone]


def command(settings: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "vppo_cli", "train", "--run", NAME, *given(*SETTINGS), *settings]


def start(settings: Sequence[str], folder: Path, runs: Path) -> subprocess.Popen[str]:
    """Start the run, or go on with it, in a process group of its own."""
    return subprocess.Popen(
        command(settings),
        cwd=folder,
        env={**os.environ, **ONE_THREAD, "VPPO_RUNS": str(runs)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> None:
    """Wait for the end of the run.

    Raises:
        SystemExit: it failed.
    """
    out, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"the run failed with exit code {process.returncode}:\n{out}")


def kill(process: subprocess.Popen[str]) -> None:
    """SIGKILL to the process and all it started; returns when all are gone."""
    children = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive, f"still alive: {alive}"


def doing(run: Path) -> str:
    """What the run last said it was doing."""
    try:
        state = json.loads((run / "run.json").read_text())
    except FileNotFoundError:
        return "starting"
    return f"{state['stage']} {state['step'] or ''}".strip()


def prove(kills: int, seed: int, settings: Sequence[str], folder: Path) -> Proof:
    """Make both runs and compare them; ``proof.faults`` is empty if all is well.

    The instants are spread over the whole run: each lies a random time (up to that of three average
    steps) after a random number of committed steps, one in each equal share of them. One in ten falls
    on the imports instead.
    """
    proof, rng = Proof(), random.Random(seed)
    calm, disturbed = folder / "calm", folder / "disturbed"
    say("run", "undisturbed ...")
    began = time.monotonic()
    process = start(settings, folder, calm)
    while not at_work(process, calm / NAME):
        time.sleep(0.01)
    loading = time.monotonic() - began
    finish(process)
    steps = count_steps(calm / NAME)
    average = (time.monotonic() - began - loading) / steps
    say("", f"{loading:.1f} s until the first step, then {steps} steps of {average:.1f} s")
    run = disturbed / NAME
    for number in range(kills):
        target = (number + rng.random()) * (steps - 1) / kills
        began = time.monotonic()
        process = start(settings, folder, disturbed)
        if rng.random() < 0.1:
            time.sleep(rng.uniform(0.0, loading))
        else:
            while not at_work(process, run) or count_steps(run) < int(target):
                time.sleep(0.01)
            time.sleep(rng.uniform(0.0, 3 * average))
        if process.poll() is not None:
            finish(process)
            say("", "it was done before it could be killed; its last evaluation is undone")
            undo_evaluations(run)
            continue
        what = doing(run)
        kill(process)
        proof.look(run)
        proof.kills.append((time.monotonic() - began, what))
        say(
            f"kill {len(proof.kills)}",
            f"after {proof.kills[-1][0]:5.1f} s  {what:<14} "
            f"{count_steps(run)} steps committed, {len(proof.rollouts)} of them rollouts",
        )
    process = start(settings, folder, disturbed)
    finish(process)
    proof.look(run)
    compare(proof, calm / NAME, run)
    return proof


def at_work(process: subprocess.Popen[str], run: Path) -> bool:
    """Whether this attempt is past the imports (or over)."""
    try:
        state = json.loads((run / "run.json").read_text())
    except FileNotFoundError:
        return process.poll() is not None
    return state["pid"] == process.pid or process.poll() is not None


def count_steps(run: Path) -> int:
    """How many steps are committed."""
    return sum(".partial" not in path.parent.name for path in run.rglob("manifest.json"))


def undo_evaluations(run: Path) -> None:
    """Delete the evaluations, so that there is work left to be killed in."""
    for folder in (*run.glob("eval/*/glyphs-*"), *run.glob("eval/*/journals")):
        shutil.rmtree(folder)


def compare(proof: Proof, calm: Path, disturbed: Path) -> None:
    """Compare all that decides or reports the result, bit for bit."""
    expected, found = contents(calm), contents(disturbed)
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            where = "missing" if name not in found else "extra" if name not in expected else "differs"
            proof.faults.append(f"{name}: {where}")
    left = [str(p.relative_to(disturbed)) for p in disturbed.rglob("*.partial")]
    proof.faults += [f"{name} was left behind" for name in left]
    kinds: dict[str, list[str]] = {}
    for name in expected:
        kinds.setdefault(Path(name).name, []).append(name)
    print()
    for kind, names in sorted(kinds.items()):
        same = sum(expected[name] == found.get(name) for name in names)
        say("", f"{kind:<26} {same} of {len(names)} bit-identical")


def say(label: str, text: str) -> None:
    print(f"{label:<9}{text}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where both runs are kept (default: nowhere)")
    parser.add_argument("settings", nargs="*", help="after --: further options of vppo train")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kill-proof-") as temporary:
        folder = asked.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            parser.error(f"{folder} is not empty")
        proof = prove(asked.kills, asked.seed, asked.settings, folder)
    rollouts = len(proof.rollouts)
    print()
    for fault in proof.faults:
        say("FAULT", fault)
    if not proof.faults:
        say(
            "proven",
            f"{len(proof.kills)} kills; {rollouts} rollouts, each generated once; "
            "the result is bit for bit that of the undisturbed run",
        )
    return 1 if proof.faults else 0


if __name__ == "__main__":
    sys.exit(main())
