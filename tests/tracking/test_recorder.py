"""run.json: what a run is doing, as others read it."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from pipelines import runs
from pipelines.chain import Chain
from pipelines.config.schema import Config
from pipelines.disk.lock import run_lock
from pipelines.errors import Interrupted
from pipelines.tracking import recorder
from pipelines.tracking.recorder import Recorder, recording


class Heard:
    """A watch that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def progress(self, label: str, done: int, total: int | None = None) -> None:
        self.told.append(("progress", label, done, total))

    def note(self, text: str) -> None:
        self.told.append(("note", text))

    def stage(self, name: str, index: int) -> None:
        self.told.append(("stage", name, index))

    def finished(self, name: str, index: int, metrics: dict[str, Any]) -> None:
        self.told.append(("finished", name, index, metrics))


@pytest.fixture
def chain(tmp_path: Path) -> Chain:
    run = tmp_path / "r"
    run.mkdir()
    return Chain(Config(), run)


def test_progress_is_written_at_most_every_other_second(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(recorder.time, "monotonic", lambda: now[0])
    heard = Heard()
    watch = Recorder(chain, heard)
    with run_lock(chain.run):
        watch.stage("rollout", 7)
        now[0] += 1.9
        watch.progress("groups", 4, 32)  # too soon
        state = runs.read_state(chain.run)
        assert (state.state, state.stage, state.step, state.total) == ("running", "rollout", 7, 0)
        now[0] += 0.1
        watch.progress("groups", 12, 32)
        watch.progress("groups", 13, 32)  # too soon again
        state = runs.read_state(chain.run)
        assert (state.doing, state.done, state.total) == ("groups", 12, 32)
        assert state.memory > 10e6  # bytes of a Python process
        assert (state.pid, state.host) == (os.getpid(), socket.gethostname())
        assert 0 <= state.silent_s() < 60
        watch.stage("score", 7)  # another stage has no progress yet
        assert (runs.read_state(chain.run).doing, runs.read_state(chain.run).total) == ("", 0)
    watch.note("n")
    watch.finished("score", 7, {"a": 1})
    assert heard.told == [
        ("stage", "rollout", 7),
        ("progress", "groups", 4, 32),
        ("progress", "groups", 12, 32),
        ("progress", "groups", 13, 32),
        ("stage", "score", 7),
        ("note", "n"),
        ("finished", "score", 7, {"a": 1}),
    ]


@pytest.mark.parametrize(("error", "state"), [(ValueError("x"), "failed"), (Interrupted("SIGINT"), "stopped")])
def test_how_the_work_ended_is_recorded(chain: Chain, error: BaseException, state: str) -> None:
    def work() -> None:
        with recording(chain, Heard()) as watch:
            watch.stage("update", 2)
            raise error

    with pytest.raises(type(error)):
        work()
    found = runs.read_state(chain.run)
    assert (found.state, found.stage, found.step) == (state, "update", 2)


def test_a_run_folder_that_takes_no_progress_does_not_stop_the_work(chain: Chain) -> None:
    watch = Recorder(chain, heard := Heard())
    chain.run.rmdir()  # nothing can be written there
    watch.progress("groups", 1, 2)
    assert heard.told == [("progress", "groups", 1, 2)]


def test_states_of_earlier_and_later_versions_are_read(chain: Chain) -> None:
    old = {
        "state": "finished",
        "stage": "update",
        "step": 3,
        "steps": 3,
        "pid": 1,
        "host": "a",
        "updated": "2026-01-01 00:00:00",
    }
    (chain.run / runs.STATE).write_text(json.dumps(old | {"of_later": [1]}))
    state = runs.read_state(chain.run)
    assert (state.state, state.step, state.doing, state.time) == ("finished", 3, "", 0.0)
    for broken in ("", "[]", "null", "7", "{}"):
        (chain.run / runs.STATE).write_text(broken)
        state = runs.read_state(chain.run)
        assert (state.state, state.damaged) == ("stopped", True)


def test_a_run_on_another_machine_counts_as_running_while_it_gives_signs(chain: Chain) -> None:
    def written(host: str, ago: float) -> str:
        value = {"state": "running", "host": host, "time": time.time() - ago}
        (chain.run / runs.STATE).write_text(json.dumps(value))
        return runs.read_state(chain.run).state

    assert written("elsewhere", 30) == "running"
    assert written("elsewhere", 3600) == "stopped"
    assert written(socket.gethostname(), 30) == "stopped"  # its lock is free, and that is certain
