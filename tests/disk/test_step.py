"""Steps: keys, atomic commits, plans with reasons, damaged folders, a full disk, and the lock."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.disk.lock import is_running, run_lock
from pipelines.disk.step import MANIFEST, Step, commit, disk_errors, plan, write_atomic
from pipelines.errors import UserError


def make_step(parent, **changes):
    step = Step("score", 3, parent, 1, {"score.keep_fraction": 0.4, "seed": 0}, {"rollout": "a" * 64})
    return dataclasses.replace(step, **changes)


def write(step, text="content", **kwargs):
    with commit(step, **kwargs) as (out, metrics):
        (out / "scores.txt").write_text(text)
        metrics["mean"] = 0.5
    return step


def stop(step, name, text):
    """An attempt that is stopped (Ctrl-C) after it wrote one file."""
    with commit(step) as (out, _):
        (out / name).write_text(text)
        raise KeyboardInterrupt


# --- keys -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "rollout"},
        {"index": 4},
        {"version": 2},
        {"settings": {"score.keep_fraction": 0.2, "seed": 0}},
        {"settings": {"score.keep_fraction": 0.4}},
        {"inputs": {"rollout": "b" * 64}},
        {"inputs": {"rollout": "a" * 64, "policy": "c" * 64}},
    ],
)
def test_a_key_depends_on_everything_that_decides_the_content(tmp_path, changes):
    assert make_step(tmp_path, **changes).key != make_step(tmp_path).key


def test_a_key_does_not_depend_on_the_folder_or_on_order(tmp_path):
    settings = {"seed": 0, "score.keep_fraction": 0.4}
    assert make_step(tmp_path / "moved", settings=settings).key == make_step(tmp_path).key


def test_the_folder_is_named_by_the_key(tmp_path):
    step = make_step(tmp_path)
    assert step.path == tmp_path / f"score-{step.key[:8]}"
    assert step.label == "score 3"
    assert make_step(tmp_path, index=None).label == "score"


# --- commit ---------------------------------------------------------------------------------------


def test_a_committed_step_has_its_files_and_a_manifest_that_lists_them(tmp_path):
    step = make_step(tmp_path)
    assert step.manifest() is None
    with commit(step) as (out, metrics):
        (out / "model").mkdir()
        (out / "model" / "weights").write_bytes(b"1234")
        (out / "empty").touch()
        metrics |= {"loss": 1.5}
        assert not step.path.exists()
    manifest = step.manifest()
    assert {name: entry["bytes"] for name, entry in manifest["files"].items()} == {"empty": 0, "model/weights": 4}
    assert manifest["metrics"] == {"loss": 1.5}
    assert manifest["key"] == step.key
    assert manifest["provenance"]["torch"]
    assert [p.name for p in tmp_path.iterdir()] == [step.path.name]
    step.verify()


def test_an_interruption_leaves_no_folder(tmp_path):
    step = make_step(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        stop(step, "half", "half of it")
    assert not step.path.exists()
    assert step.manifest() is None
    assert plan(step) == ("run", "not made yet")


def test_a_partial_folder_is_replaced(tmp_path):
    step = make_step(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        stop(step, "half", "half of it")
    write(step)
    assert list(step.manifest()["files"]) == ["scores.txt"]
    assert not (step.path / "half").exists()


@pytest.mark.parametrize("name", [MANIFEST, f"{MANIFEST}.partial"])
def test_a_kill_between_manifest_and_rename_does_no_harm(tmp_path, name):
    # The last instants of a commit: the manifest is written, the folder still has its partial name.
    step = write(make_step(tmp_path))
    (step.path / MANIFEST).rename(step.path / name)
    step.path.rename(tmp_path / f"{step.path.name}.partial")
    assert plan(step) == ("run", "not made yet")
    write(step)
    assert list(step.manifest()["files"]) == ["scores.txt"]


def test_making_a_step_again_replaces_it(tmp_path):
    step = write(make_step(tmp_path), "old")
    write(step, "new content")
    assert (step.path / "scores.txt").read_text() == "new content"
    step.verify()


def test_a_failed_second_attempt_keeps_the_first(tmp_path):
    step = write(make_step(tmp_path), "old")
    with pytest.raises(KeyboardInterrupt):
        stop(step, "scores.txt", "new")
    assert (step.path / "scores.txt").read_text() == "old"
    step.verify()


# --- damage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"key": "1"}', "\x00\x00\x00"], ids=range(6))
def test_a_corrupt_manifest(tmp_path, text):
    step = write(make_step(tmp_path))
    (step.path / MANIFEST).write_text(text)
    with pytest.raises(UserError, match="corrupt manifest") as caught:
        step.manifest()
    assert caught.value.place == str(step.path / MANIFEST)
    assert f"Delete the folder {step.path}" in caught.value.fix


def test_a_missing_manifest(tmp_path):
    step = write(make_step(tmp_path))
    (step.path / MANIFEST).unlink()
    with pytest.raises(UserError, match="corrupt manifest"):
        step.manifest()


def test_a_truncated_or_missing_file(tmp_path):
    step = write(make_step(tmp_path), "content")
    (step.path / "scores.txt").write_text("cont")
    with pytest.raises(UserError, match="should hold 7 bytes, found 4 bytes"):
        step.manifest()
    (step.path / "scores.txt").unlink()
    with pytest.raises(UserError, match="should hold 7 bytes, found missing"):
        step.manifest()


def test_changed_content_of_the_same_size(tmp_path):
    step = write(make_step(tmp_path), "content")
    (step.path / "scores.txt").write_text("kontent")
    step.manifest()  # sizes only: it is asked for every step of a run, and must be quick
    with pytest.raises(UserError, match="content changed"):
        step.verify()


def test_the_folder_of_another_step(tmp_path):
    step = write(make_step(tmp_path))
    other = make_step(tmp_path, index=4)
    step.path.rename(other.path)
    with pytest.raises(UserError, match="belongs to another step"):
        other.manifest()


# --- plan -----------------------------------------------------------------------------------------


def test_plan_tells_keep_from_run(tmp_path):
    step = make_step(tmp_path)
    assert plan(step) == ("run", "not made yet")
    write(step)
    assert plan(step) == ("keep", "same key")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"settings": {"score.keep_fraction": 0.2, "seed": 0}}, "score.keep_fraction 0.4 -> 0.2"),
        ({"settings": {"score.keep_fraction": 0.4, "seed": 0, "new": "x"}}, "new null -> x"),
        ({"settings": {"score.keep_fraction": 0.2, "seed": 1}}, "score.keep_fraction 0.4 -> 0.2; seed 0 -> 1"),
        ({"version": 2}, "its code changed (version 1 -> 2)"),
        ({"inputs": {"rollout": "b" * 64}}, "its input changed (rollout)"),
        (
            {"version": 2, "inputs": {"rollout": "b" * 64}},
            "its code changed (version 1 -> 2); its input changed (rollout)",
        ),
    ],
)
def test_plan_says_why_a_step_is_stale(tmp_path, changes, reason):
    write(make_step(tmp_path))
    assert plan(make_step(tmp_path, **changes)) == ("stale", reason)


def test_plan_compares_with_the_latest_and_shortens_long_values(tmp_path):
    old = write(make_step(tmp_path, settings={"text": "old"}))
    os.utime(old.path / MANIFEST, (0, 0))
    write(make_step(tmp_path, settings={"text": "x" * 50}))
    status, reason = plan(make_step(tmp_path, settings={"text": "short"}))
    assert (status, reason) == ("stale", f"text {'x' * 37}... -> short")


def test_going_back_to_old_settings_costs_nothing(tmp_path):
    first = write(make_step(tmp_path))
    write(make_step(tmp_path, settings={"score.keep_fraction": 0.2}))
    assert plan(first) == ("keep", "same key")


# --- a full disk, no permission -------------------------------------------------------------------

LIMITED = """
import resource, sys
from pathlib import Path
from pipelines.errors import UserError
from pipelines.disk.records import Sample, write_rows
from pipelines.disk.step import Step, commit
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # writes past it fail: EFBIG
step = Step("score", 3, Path(sys.argv[1]))
data = Path("/dev/urandom").open("rb").read(200_000)
try:
    with commit(step) as (out, _):
        if sys.argv[2] == "python":
            (out / "scores").write_bytes(data)
        else:
            write_rows(out / "scores", Sample, [Sample("a", "b", [data], "1")])
except UserError as error:
    print(error)
    sys.exit(2)
"""


@pytest.mark.parametrize("writer", ["python", "parquet"])
def test_a_full_disk_says_so_and_loses_nothing(tmp_path, writer):
    old = write(make_step(tmp_path))
    command = [sys.executable, "-c", LIMITED, str(tmp_path), writer]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "the disk is full" in done.stdout
    assert "what was committed is kept" in done.stdout
    old.verify()
    step = Step("score", 3, tmp_path)
    assert not step.path.exists()
    write(step)  # with space again, the same step is made
    step.verify()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux only")
def test_no_space_left_is_told_from_other_errors(tmp_path):
    with pytest.raises(UserError, match="the disk is full"), disk_errors(tmp_path / "a" / "b"):
        Path("/dev/full").write_text("x")
    with pytest.raises(FileNotFoundError), disk_errors(tmp_path):
        (tmp_path / "no" / "such").open()
    with pytest.raises(UserError, match="no permission"), disk_errors(tmp_path):
        raise PermissionError("root, whom tests may run as, is never refused")


def test_a_small_file_is_replaced_at_once(tmp_path):
    write_atomic(tmp_path / "a", "one")
    write_atomic(tmp_path / "a", "two")
    assert (tmp_path / "a").read_text() == "two"
    assert len(list(tmp_path.iterdir())) == 1


# --- the lock -------------------------------------------------------------------------------------

HOLD = """
import sys
from pathlib import Path
from pipelines.disk.lock import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of the run ``tmp_path`` until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_process_is_refused_and_told_whose_it_is(tmp_path, holder):
    assert is_running(tmp_path) == holder.pid
    with pytest.raises(UserError, match=f"is in use by process {holder.pid}"), run_lock(tmp_path):
        pass
    holder.communicate()  # ends its input
    assert is_running(tmp_path) is None
    with run_lock(tmp_path):
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    left = json.loads((tmp_path / "lock").read_text())
    assert left["pid"] == holder.pid  # it had no time to clear it
    assert is_running(tmp_path) is None
    with run_lock(tmp_path):
        assert is_running(tmp_path) == os.getpid()
    assert (tmp_path / "lock").read_text() == ""


def test_the_lock_is_freed_after_an_exception(tmp_path):
    with pytest.raises(ZeroDivisionError), run_lock(tmp_path):
        1 / 0  # noqa: B018
    with run_lock(tmp_path):
        pass


def test_the_lock_of_another_machine_is_honoured(tmp_path):
    owner = {"pid": 77, "host": "elsewhere", "since": "2026-01-01 00:00:00"}
    (tmp_path / "lock").write_text(json.dumps(owner))
    with pytest.raises(UserError, match="process 77 on elsewhere") as caught, run_lock(tmp_path):
        pass
    assert f"rm {tmp_path / 'lock'}" in caught.value.fix
    assert json.loads((tmp_path / "lock").read_text()) == owner
    (tmp_path / "lock").write_text(json.dumps(owner | {"host": socket.gethostname()}))
    with run_lock(tmp_path):
        pass


def test_a_lock_file_without_sense_is_taken_over(tmp_path):
    (tmp_path / "lock").write_text("{")
    with run_lock(tmp_path):
        pass
