"""Locks: heartbeats across machines, take-overs, owners that wake, file systems without file locks."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command_line import Command, back_to, contents, copy_of, stamps, start, vppo

from evals import journal
from pipelines import runs
from pipelines.checkpoints import prune
from pipelines.config.schema import Config
from pipelines.contents import sealed
from pipelines.disk import lock
from pipelines.disk.files import append_text, write_atomic
from pipelines.disk.lock import SEAL_DIGITS, is_running, run_lock
from pipelines.disk.step import Step, commit
from pipelines.errors import LockLost, UserError

HOLD = """
import fcntl, socket, sys
from pathlib import Path
host, locks, run = sys.argv[1:]
if host:
    socket.gethostname = lambda: host
if locks == "none":
    def flock(*_):
        raise OSError(38, "Function not implemented")
    fcntl.flock = flock
from pipelines.disk.lock import run_lock
with run_lock(Path(run)):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def hold(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """``hold(host, locks)``: a process, on a machine of that name, that holds the run ``tmp_path``."""
    started = []

    def begin(host: str = "", locks: str = "flock") -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, host, locks, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def no_flock(*_: object) -> None:
    """As on Lustre, or NFS without its lock service."""
    raise OSError(errno.ENOLCK, "No locks available")


@pytest.fixture
def no_file_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", no_flock)


def silent(run: Path, seconds: float) -> None:
    """Let the lock's owner have given its last sign so long ago."""
    moment = time.time() - seconds
    os.utime(run / "lock", (moment, moment))


# -- another machine -------------------------------------------------------------------------------


@pytest.mark.parametrize("locks", ["flock", "none"])
def test_a_crash_on_another_machine_is_taken_over_with_a_note(tmp_path, hold, locks):
    owner, notes = hold("elsewhere", locks), []
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    silent(tmp_path, lock.DEAD_S + 5)
    assert is_running(tmp_path) is None
    with run_lock(tmp_path, notes.append):
        assert is_running(tmp_path) == os.getpid()
    assert notes[-1].startswith(f"run {tmp_path.name} was held by process {owner.pid} on elsewhere")
    assert notes[-1].endswith("taken over")


def test_who_waits_for_a_sign_of_a_dead_owner_goes_on_by_itself(tmp_path, hold, monkeypatch):
    owner, notes = hold("elsewhere"), []
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    silent(tmp_path, 11)
    monkeypatch.setattr(lock, "DEAD_S", 12.0)
    assert is_running(tmp_path) == owner.pid  # it may live
    with run_lock(tmp_path, notes.append):
        pass
    assert "gave no sign for 11 s" in notes[0]
    assert notes[1].endswith("taken over")


@pytest.mark.parametrize("locks", ["flock", "none"])
def test_a_live_owner_on_another_machine_is_refused_at_its_next_sign(tmp_path, hold, locks, monkeypatch):
    owner = hold("elsewhere", locks)
    beats = threading.Timer(0.5, os.utime, (tmp_path / "lock",))  # sooner than its own
    beats.start()
    with pytest.raises(UserError, match=f"process {owner.pid} since .* on elsewhere"):
        run_lock(tmp_path).__enter__()
    assert is_running(tmp_path) == owner.pid
    assert json.loads((tmp_path / "lock").read_text())["pid"] == owner.pid


def test_the_age_of_a_sign_is_not_measured_by_this_machines_clock(tmp_path, hold, monkeypatch):
    owner = hold("elsewhere")
    now = time.time
    for off in (-86400.0, 86400.0):
        monkeypatch.setattr(time, "time", lambda off=off: now() + off)
        beats = threading.Timer(0.5, os.utime, (tmp_path / "lock",))
        beats.start()
        with pytest.raises(UserError, match=f"process {owner.pid}"):
            run_lock(tmp_path).__enter__()


def test_a_heartbeat_goes_on_while_the_work_is_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_S", 0.05)
    with run_lock(tmp_path):
        silent(tmp_path, 1000)
        deadline = time.monotonic() + 30
        while time.time() - (tmp_path / "lock").stat().st_mtime > 500:
            assert time.monotonic() < deadline
            sum(range(100_000))


def test_the_lock_of_an_older_version_is_dead_after_a_longer_silence(tmp_path):
    owner = {"pid": 77, "host": "elsewhere", "since": "2026-01-01 00:00:00"}
    (tmp_path / "lock").write_text(json.dumps(owner))
    silent(tmp_path, 3600)
    (tmp_path / runs.STATE).write_text("{}")  # the run's own sign is new
    with pytest.raises(UserError, match="process 77 on elsewhere"):
        run_lock(tmp_path).__enter__()
    os.utime(tmp_path / runs.STATE, (0, 0))
    with run_lock(tmp_path, (notes := []).append):
        assert "process 77 on elsewhere" in notes[0]


# -- no file locks ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_file_locks")
def test_without_file_locks_a_live_owner_is_refused_and_a_dead_one_superseded(tmp_path, hold):
    owner = hold("", "none")
    assert is_running(tmp_path) == owner.pid
    with pytest.raises(UserError, match=f"in use by process {owner.pid}"):
        run_lock(tmp_path).__enter__()
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    assert is_running(tmp_path) is None
    with run_lock(tmp_path):
        assert is_running(tmp_path) == os.getpid()
        with pytest.raises(UserError, match=f"in use by process {os.getpid()}"):
            run_lock(tmp_path).__enter__()
    assert is_running(tmp_path) is None


@pytest.mark.usefixtures("no_file_locks")
def test_a_process_id_that_is_anothers_by_now_holds_nothing(tmp_path, hold):
    owner = hold("", "none")
    written = json.loads((tmp_path / "lock").read_text())
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    (tmp_path / "lock").write_text(json.dumps(written | {"pid": os.getppid()}))
    with run_lock(tmp_path):
        pass


# -- at the same time ------------------------------------------------------------------------------


@pytest.mark.parametrize("locks", ["flock", "none"])
@pytest.mark.parametrize("ended", ["killed", "elsewhere", "claiming"])
def test_of_many_that_take_a_dead_owners_lock_one_gets_it(tmp_path, hold, ended, locks, monkeypatch):
    owner = hold("elsewhere" if ended == "elsewhere" else "", locks)
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    written = (tmp_path / "lock").read_bytes()
    if locks == "none":
        monkeypatch.setattr(fcntl, "flock", no_flock)
    old = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # threads that interrupt each other anywhere
    try:
        for number in range(20):
            run = tmp_path / str(number)
            run.mkdir()
            (run / "lock").write_bytes(written)
            silent(run, 1000)
            if ended == "claiming":
                (run / "lock").rename(run / "lock.claim")
            assert taken_by_many(run) == ["UserError"] * 7 + ["took"]
            assert [path.name for path in run.iterdir()] == ["lock"]
    finally:
        sys.setswitchinterval(old)


def taken_by_many(run: Path) -> list[str]:
    """What becomes of eight that take a lock at once; who gets it holds it until all have tried."""
    got, gate, done = [], threading.Barrier(8), threading.Barrier(8)

    def take() -> None:
        gate.wait(60)
        try:
            with run_lock(run):
                got.append("took")
                done.wait(60)
        except Exception as error:  # whatever it is, the others must not wait for it
            got.append(type(error).__name__)
            done.wait(60)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(got)


# -- an owner that wakes ---------------------------------------------------------------------------


def superseded(run: Path) -> None:
    """Another owner stands in the lock."""
    other = json.loads((run / "lock").read_text()) | {"token": "0" * 32, "host": "other"}
    (run / "new").write_text(json.dumps(sealed(other, SEAL_DIGITS)))
    (run / "new").replace(run / "lock")


def committing(run: Path) -> None:
    with commit(Step("score", 1, run / "steps")) as (out, _):
        (out / "a").write_text("a")


def appending(run: Path) -> None:
    journal.append(run / "journal", [journal.Entry("q", 0, "r", False, 1, "p")])


def pruning(run: Path) -> None:
    from pipelines.chain import Chain

    config = Config.model_validate({"run": {"steps": 3}, "checkpoint": {"every": 1, "keep_best": 0}})
    prune(Chain(config, run), 3)


@pytest.mark.parametrize(
    "write",
    [
        committing,
        appending,
        pruning,
        lambda run: write_atomic(run / "a", "b"),
        lambda run: append_text(run / "a", "b"),
        lambda run: runs.write_config(run, Config()),
        lambda run: runs.record_state(run, "running", "score", 1, 1),
    ],
)
def test_an_owner_that_was_superseded_writes_nothing(tmp_path, write):
    from pipelines.chain import Chain

    config = Config.model_validate({"run": {"steps": 3}, "checkpoint": {"every": 1, "keep_best": 0}})
    for step in (1, 2, 3):
        with commit(Chain(config, tmp_path).checkpoint(step)) as (out, _):
            (out / "model").mkdir()
            (out / "model" / "weights").write_text("w")
    (tmp_path / "steps").mkdir()
    before: dict[Path, float] = {}
    with run_lock(tmp_path):
        superseded(tmp_path)
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        with pytest.raises(LockLost, match=f"process {os.getpid()} on other"):
            write(tmp_path)
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    before.pop(tmp_path / "steps")  # its list of names had a folder for a moment
    after.pop(tmp_path / "steps")
    assert after == before  # the other one's lock as well


def test_one_that_was_superseded_while_it_made_a_step_leaves_nothing_of_it(tmp_path):
    def work() -> None:
        with run_lock(tmp_path), commit(Step("score", 1, tmp_path)) as (out, _):
            (out / "a").write_text("a")
            superseded(tmp_path)

    with pytest.raises(LockLost):
        work()
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def written(run: Path) -> dict[str, tuple[int, int]]:
    """All that is whole in a run, but for the locks of evaluations: those may be given back."""
    return {
        name: stamp
        for name, stamp in stamps(run, "**/*").items()
        if (run / name).is_file() and not name.endswith((".lock", ".lock.claim"))
    }


@pytest.mark.parametrize("stage", ["update", "validation"])
def test_a_run_that_is_taken_over_while_stopped_ends_when_it_wakes_and_writes_nothing(
    stage: str, finished: tuple[Path, Command], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copy_of(finished[0], tmp_path)
    back_to(run, f"{stage} 3")
    arguments = ("train", "--run", "small")
    owner = start(*arguments, runs=run.parent)
    while owner.running() and (runs.read_state(run).stage, runs.read_state(run).step) != (stage, 3):
        time.sleep(0.002)
    owner.signal(signal.SIGSTOP)
    silent(run, lock.DEAD_S + 5)
    monkeypatch.setattr(lock.socket, "gethostname", lambda: "another")  # this machine, for the taker
    with run_lock(run):
        before = written(run)
        owner.signal(signal.SIGCONT)
        assert owner.code == 1, owner.err
        assert "was taken over by process" in owner.err
        assert "Traceback" not in owner.err
        assert written(run) == before
        assert list(run.rglob("*.partial")) == []
    vppo(*arguments, runs=run.parent).succeeded()
    assert contents(run) == contents(finished[0])
