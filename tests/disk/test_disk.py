"""What the system refuses is told by path and reason; what is renamed is on the disk; nothing is left."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pyarrow as pa
import pytest
import torch
from command_line import SMALL, Command, copy_of, given, stamps, vppo
from safetensors.torch import save_file

from pipelines import runs
from pipelines.chain import Chain
from pipelines.config.schema import Config
from pipelines.disk import files as disk
from pipelines.disk.files import append_text, disk_errors, sync_file, system_error, write_atomic
from pipelines.disk.lock import run_lock
from pipelines.disk.records import Sample, SampleTable, read_rows, write_rows
from pipelines.disk.step import MANIFEST, Step, commit
from pipelines.errors import UserError
from pipelines.tracking.recorder import recording
from pipelines.watch import Silent

DAMAGED = "Delete"


@contextmanager
def few_files() -> Iterator[None]:
    """While this lasts, no further file can be opened: EMFILE."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.EIO, "Input/output error", "x"), errno.EIO),
        (pa.ArrowException("Error writing bytes. Detail: [errno 28] No space left"), errno.ENOSPC),
        (Exception("No space left on device (os error 28)"), errno.ENOSPC),
        (Exception("Too many open files (os error 24)"), errno.EMFILE),
        (RuntimeError('IoError(Os { code: 5, kind: Uncategorized, message: "I/O" })'), errno.EIO),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "x"), 0),
        (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), 0),
        (ValueError("code 5"), 0),
    ],
)
def test_a_systems_error_is_known_whoever_wrapped_it(error: Exception, code: int) -> None:
    assert system_error(error) == code
    wrapped = RuntimeError("cannot load it")
    wrapped.__cause__ = error
    assert system_error(wrapped) == code


@pytest.mark.parametrize("code", ["EIO", "EMFILE", "ENFILE", "ENOSPC", "EDQUOT", "EROFS", "EACCES", "EINTR", "ESTALE"])
def test_an_error_is_told_with_path_and_reason(tmp_path: Path, code: str) -> None:
    number = getattr(errno, code)
    for given_path in (str(tmp_path / "a.parquet"), None):
        with pytest.raises(UserError) as caught, disk_errors(tmp_path):
            raise OSError(number, os.strerror(number), given_path)
        assert caught.value.place == (given_path or str(tmp_path))
        assert os.strerror(number) in caught.value.problem
        assert caught.value.fix
        assert DAMAGED not in caught.value.fix


def test_what_cannot_be_opened_is_not_called_damaged(tmp_path: Path) -> None:
    step = Step("score", 1, tmp_path)
    with commit(step) as (out, _):
        write_rows(out / "rows", Sample, [Sample("a", "b", [], "1")])
    for read in (step.manifest, lambda: read_rows(step.path / "rows", Sample), lambda: SampleTable(step.path / "rows")):
        with pytest.raises(UserError, match="too many files are open") as caught, few_files():
            read()
        assert str(step.path) in caught.value.place
        assert DAMAGED not in caught.value.fix


def test_a_file_that_may_not_be_read_is_not_called_damaged(finished: tuple[Path, Command], tmp_path: Path) -> None:
    run = copy_of(finished[0], tmp_path)
    for name in ("steps/0001/rollout-*/manifest.json", "steps/0001/score-*/manifest.json"):
        (file,) = run.glob(name)
        file.chmod(0)
        command = vppo("plan", "--run", "small", runs=run.parent, plain_user=True)
        assert command.code == 2
        assert "Permission denied" in command.err
        assert str(file) in command.err.replace("\n       ", "")
        assert DAMAGED not in command.err
        file.chmod(0o644)


FULL = """
import resource, sys
from pathlib import Path
from pipelines.disk.files import append_text
path = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 5,) * 2)
try:
    append_text(path, "whole line\\n")
except Exception as error:
    print(error)
"""


def test_lines_that_do_not_fit_are_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append_text(path, "first\n")
    command = [sys.executable, "-c", FULL, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.startswith(f"{path}: the disk is full"), done.stderr
    assert path.read_text() == "first\n"


def test_a_full_disk_is_told_of_the_step_that_filled_it(tmp_path: Path) -> None:
    chain = Chain(Config(), tmp_path)

    def work() -> None:
        with recording(chain, Silent()) as watch:
            watch.stage("score", 1)
            (tmp_path / "run.json").unlink()
            (tmp_path / "run.json").mkdir()  # which cannot be replaced: IsADirectoryError
            with commit(chain.score(1)) as (out, _):
                raise OSError(errno.ENOSPC, "No space left on device", str(out / "scores"))

    with pytest.raises(UserError, match="the disk is full") as caught:
        work()
    assert caught.value.place == str(chain.score(1).path / "scores")
    assert not list(tmp_path.rglob("*.partial"))


# -- on the disk -----------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES])
def test_folders_that_cannot_be_synced_do_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    real = os.fsync

    def fsync(file: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{file}"):
            raise OSError(code, os.strerror(code))
        real(file)

    monkeypatch.setattr(os, "fsync", fsync)
    with run_lock(tmp_path / "run"):
        with commit(Step("score", 1, tmp_path / "run" / "steps")) as (out, _):
            (out / "a").write_text("a")
        write_atomic(tmp_path / "run" / "b", "b")
    assert Step("score", 1, tmp_path / "run" / "steps").manifest()


def test_a_failing_disk_is_told_also_where_a_folder_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match=str(tmp_path)):
        sync_file(tmp_path)


def test_every_rename_of_a_commit_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, seen = os.fsync, {}

    def fsync(file: int) -> None:
        path = os.readlink(f"/proc/self/fd/{file}")
        if os.path.isdir(path):
            seen[path] = set(os.listdir(path))
        real(file)

    monkeypatch.setattr(os, "fsync", fsync)
    step = Step("score", 1, tmp_path / "run" / "steps" / "0001")
    with commit(step) as (out, _):
        (out / "model").mkdir()
        (out / "model" / "a").write_text("a")
    assert seen[str(disk.partial_of(step.path))] == {MANIFEST, "model"}  # after the last rename
    assert seen[str(disk.partial_of(step.path) / "model")] == {"a"}
    assert step.path.name in seen[str(step.parent)]
    for folder in (step.parent, step.parent.parent, step.parent.parent.parent):
        assert folder.name in seen[str(folder.parent)]
    write_atomic(tmp_path / "config.yaml", "")
    assert "config.yaml" in seen[str(tmp_path)]


def test_files_have_the_permissions_that_plain_ones_have(tmp_path: Path) -> None:
    step = Step("checkpoint", 1, tmp_path)
    before = os.umask(0o027)
    try:
        with commit(step) as (out, _):
            for folder in ("model", "trainer"):
                (out / folder).mkdir()
                save_file({"a": torch.zeros(1)}, out / folder / "a.safetensors")
    finally:
        os.umask(before)
    for file in step.path.glob("*/*"):
        assert file.stat().st_mode & 0o777 == 0o640


# -- what is left over -----------------------------------------------------------------------------


def test_what_dead_processes_left_half_written_is_removed_by_the_next_run(
    finished: tuple[Path, Command], tmp_path: Path
) -> None:
    run = copy_of(finished[0], tmp_path)
    dead = next(pid for pid in range(2, 1 << 22) if not psutil.pid_exists(pid))
    here, folder = disk.host(), "steps/0001/score-12345678"
    gone = [
        f"run.json.{dead}.partial",
        f"metrics.jsonl.{dead}.partial",
        f"report.html.{dead}.partial",
        f"eval/0003/report.json.{dead}-{here}.partial",
        f"lock.{dead}-{here}.partial",
        f"eval/0003/journals/a.jsonl.{dead}-{here}.partial",
        f"{folder}.{dead}-{here}.partial/a",
    ]
    stay = [f"report.html.{os.getpid()}.partial", f"report.html.{dead}-elsewhere.partial"]
    for name in (*gone, *stay):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("half")
    vppo("train", "--run", "small", runs=run.parent).succeeded()
    assert {path.name for path in run.rglob("*.partial")} == set(stay)
    os.utime(run / stay[1], (0, 0))
    vppo("train", "--run", "small", runs=run.parent).succeeded()
    assert {path.name for path in run.rglob("*.partial")} == {stay[0]}


def test_settings_are_written_only_by_who_holds_the_run(finished: tuple[Path, Command], tmp_path: Path) -> None:
    run = copy_of(finished[0], tmp_path)
    before = stamps(run, "*")
    with run_lock(run):
        locked = stamps(run, "lock")
        for arguments in (("--set", "run.steps=5"), ("--stage", "score", "--force")):
            command = vppo("train", "--run", "small", *arguments, runs=run.parent)
            assert command.code == 2
            assert "in use by process" in command.err
    assert {n: s for n, s in stamps(run, "*").items() if n != "lock"} == {
        n: s for n, s in before.items() if n != "lock"
    }
    assert locked


def test_a_new_run_that_another_process_begins_gets_that_ones_settings(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "new"
    with run_lock(run):
        command = vppo("train", "--run", "new", *given(*SMALL), runs=run.parent)
        assert command.code == 2
        assert not (run / runs.CONFIG).exists()


def test_a_report_that_a_kill_has_prevented_is_written_by_the_next_run(
    finished: tuple[Path, Command], tmp_path: Path
) -> None:
    run = copy_of(finished[0], tmp_path)
    report = (run / "eval/0003/report.json").read_bytes()
    for file in (run / "eval/0003").glob("report.*"):
        file.unlink()
    vppo("train", "--run", "small", runs=run.parent).succeeded()
    assert (run / "eval/0003/report.json").read_bytes() == report
