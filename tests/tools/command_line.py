"""Runs the ``vppo`` command in processes of its own, as a person would."""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TextIO

ONE_THREAD = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

SERVER = "VPPO_TEST_SERVER"
"""The environment variable that names the socket of a server which several processes share."""

SCRIPT = Path(sys.executable).with_name("vppo")

SMALL = (
    "data.glyphs.train=64",
    "data.glyphs.validation=8",
    "data.glyphs.test=16",
    "rollout.prompts_per_step=4",
    "update.batch_prompts=4",
    "update.micro_batch_prompts=2",
    "checkpoint.every=2",
    "checkpoint.validation_samples=2",
    "eval.samples=2",
    "run.steps=3",
)
"""Settings of a run that is as small as can be and still has every stage."""


TINY = (
    "data.glyphs.train=8",
    "data.glyphs.validation=2",
    "data.glyphs.test=2",
    "rollout.prompts_per_step=2",
    "rollout.samples_per_prompt=4",
    "rollout.max_new_tokens=24",
    "rollout.dynamic_sampling=false",
    "update.batch_prompts=2",
    "run.threads=1",
)
"""Settings of one that is smaller still: two groups a step, whatever their answers."""


def given(*settings: str) -> list[str]:
    """``--set`` before each."""
    return [part for setting in settings for part in ("--set", setting)]


@dataclass
class Command:
    """A started ``vppo`` command."""

    pid: int
    out_path: Path
    err_path: Path
    _code: int | None = field(default=None, repr=False)

    @property
    def out(self) -> str:
        return self.out_path.read_text()

    @property
    def err(self) -> str:
        return self.err_path.read_text()

    @property
    def json(self) -> Any:
        """Standard output as the one JSON object that it should be."""
        return json.loads(self.out)

    @property
    def code(self) -> int:
        """The exit code, once it has ended; minus the signal's number if a signal ended it."""
        if self._code is None:
            self._code = _ask(wait=self.pid, block=True)
        return self._code

    def running(self) -> bool:
        if self._code is None:
            self._code = _ask(wait=self.pid, block=False)
        return self._code is None

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL to it and to every process it started."""
        os.killpg(self.pid, signal.SIGKILL)

    def succeeded(self) -> Command:
        """Wait; fail with what it printed unless it exits with 0."""
        assert self.code == 0, f"exit code {self.code}\n{self.out}\n{self.err}"
        return self


def start(
    *arguments: str | Path,
    runs: Path,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    largest_file: int = 0,
    plain_user: bool = False,
    fault: Mapping[str, Any] | None = None,
    forked_ranks: bool = False,
) -> Command:
    """Start ``vppo`` and return at once.

    Args:
        runs: the folder of runs (VPPO_RUNS).
        cwd: where it is started; by default beside the runs.
        env: further environment variables.
        largest_file: no file may grow beyond this many bytes (0: no such limit).
        plain_user: give up root's right to ignore file permissions.
        fault: a system call that fails (tests/tools/fault_proof.py).
        forked_ranks: the ranks that it starts import nothing again either.
    """
    outputs = Path(tempfile.mkdtemp(prefix="command-", dir=_scratch()))
    outputs.chmod(0o777)
    out, err = outputs / "out", outputs / "err"
    pid = _ask(
        start=[str(a) for a in arguments],
        out=str(out),
        err=str(err),
        cwd=str(cwd or runs.parent),
        env={**ONE_THREAD, "VPPO_RUNS": str(runs), **(env or {})},
        largest_file=largest_file,
        plain_user=plain_user,
        fault=fault,
        forked_ranks=forked_ranks,
    )
    return Command(pid, out, err)


def vppo(*arguments: str | Path, runs: Path, **options: Any) -> Command:
    """Run ``vppo`` to its end; see ``start``."""
    command = start(*arguments, runs=runs, **options)
    assert command.code is not None
    return command


def fresh(*arguments: str | Path, runs: Path) -> subprocess.CompletedProcess[str]:
    """Run ``vppo`` in an interpreter of its own, nothing imported beforehand."""
    return subprocess.run(
        [str(SCRIPT), *map(str, arguments)],
        env={**os.environ, **ONE_THREAD, "VPPO_RUNS": str(runs)},
        cwd=runs.parent,
        capture_output=True,
        text=True,
        check=False,
    )


def contents(run: Path) -> dict[str, str]:
    """Path -> SHA-256 of everything in a run that a repeated run has to reproduce bit for bit.

    Weights, optimizer, every table, metrics and evaluation results; not manifests (they hold times).
    Step folders are named by their key, so paths compare settings and inputs as well.
    """
    kinds = ("*.safetensors", "*.parquet", "metrics.jsonl", "results.json", "journals/*.jsonl")
    files = [file for kind in kinds for file in run.rglob(kind) if ".partial" not in str(file)]
    return {str(f.relative_to(run)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def stamps(run: Path, pattern: str) -> dict[str, tuple[int, int]]:
    """Path -> (inode, time of change) of matching files: equal only if nobody wrote them again."""
    return {
        str(f.relative_to(run)): (f.stat().st_ino, f.stat().st_mtime_ns)
        for f in run.glob(pattern)
        if ".partial" not in str(f)
    }


def copy_of(run: Path, folder: Path) -> Path:
    """A copy of a run in a new folder of runs, times included."""
    return Path(shutil.copytree(run, folder / "runs" / run.name))


def back_to(run: Path, label: str) -> None:
    """Let a finished run be as it was when this step ("update 3") was to be made."""
    from pipelines import runs
    from pipelines.chain import Chain, is_evaluation

    steps = list(Chain(runs.read_config(run), run).all())
    for step in steps[[step.label for step in steps].index(label) :]:
        shutil.rmtree(step.parent if is_evaluation(step) else step.path, ignore_errors=True)


@cache
def _scratch() -> Path:
    folder = tempfile.TemporaryDirectory(prefix="vppo-tests-")
    Path(folder.name).chmod(0o777)
    atexit.register(folder.cleanup)
    return Path(folder.name)


@cache
def fault_shim() -> Path | None:
    """The library by which system calls can be made to fail; None where no C compiler builds it."""
    source, library = Path(__file__).with_name("fault_shim.c"), _scratch() / "fault_shim.so"
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not (compiler and sys.platform == "linux"):
        return None
    build = [compiler, "-O1", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"]
    done = subprocess.run(build, capture_output=True, check=False)
    return library if done.returncode == 0 else None


def serve() -> str:
    """Start a server (preloaded.py) that ends with this process; the path of its socket."""
    path, listener = str(_scratch() / "server"), socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    shim = {"LD_PRELOAD": str(fault_shim())} if fault_shim() else {}  # asleep until it is armed
    server = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("preloaded.py")), str(listener.fileno())],
        stdin=subprocess.PIPE,
        pass_fds=[listener.fileno()],
        env={**os.environ, **ONE_THREAD, **shim, "XDG_CACHE_HOME": str(_scratch() / "cache")},
    )
    listener.close()
    atexit.register(server.wait)
    atexit.register(server.kill)  # it may still import; without this process it ends by itself
    return path


@cache
def _server() -> TextIO:
    """What this process asks: a server that it shares with others (``SERVER``), or its own."""
    client = socket.socket(socket.AF_UNIX)
    client.connect(os.environ.get(SERVER) or serve())
    return client.makefile("rw")


_asking = threading.Lock()


def _ask(**request: Any) -> Any:
    with _asking:
        server = _server()
        print(json.dumps(request), file=server, flush=True)
        return json.loads(server.readline())
