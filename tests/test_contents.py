"""The memory of hashes: never wrong, whatever became of a file or of the memory itself."""

import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines import contents


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A memory of its own, as a process that starts has it; files are young for a moment only."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(contents, "YOUNG_S", 0.2)
    return lambda: monkeypatch.setattr(contents, "_MEMORY", contents._Memory())


def aged(path: Path, content: bytes) -> Path:
    """A file that has been as it is for longer than contents.YOUNG_S."""
    path.write_bytes(content)
    os.utime(path, (1e9, 1e9))
    return path


def told(path: Path, reads: list[str]) -> str:
    def make() -> str:
        reads.append("read")
        return path.read_text()

    return contents.remembered("text", path, [path], make)


def test_an_old_file_is_read_once_also_by_later_processes(tmp_path, cache):
    cache()
    path, reads = aged(tmp_path / "a", b"one"), []
    assert [told(path, reads), told(path, reads)] == ["one", "one"]
    assert len(reads) == 2  # its inode was changed just now
    time.sleep(contents.YOUNG_S + 0.1)
    assert [told(path, reads), told(path, reads)] == ["one", "one"]
    assert len(reads) == 3
    contents._MEMORY.write()
    cache()
    assert told(path, reads) == "one"
    assert len(reads) == 3


def test_a_change_that_hides_its_time_is_seen(tmp_path, cache):
    cache()
    path, reads = aged(tmp_path / "a", b"one"), []
    time.sleep(contents.YOUNG_S + 0.1)
    assert told(path, reads) == "one"
    aged(path, b"two")  # same size, same time of content
    assert told(path, reads) == "two"


@pytest.mark.parametrize("damage", ["flipped", "text", "empty", "folder", "other table"])
def test_a_damaged_memory_only_costs_time(tmp_path, cache, damage):
    cache()
    path, reads = aged(tmp_path / "a", b"one"), []
    time.sleep(contents.YOUNG_S + 0.1)
    told(path, reads)
    contents._MEMORY.write()
    file = tmp_path / "cache/vppo/contents.sqlite"
    if damage == "flipped":
        with sqlite3.connect(file) as table:
            table.execute("UPDATE known SET found = 'ona'")
    else:
        file.unlink()
        if damage == "folder":
            file.mkdir()
        elif damage == "other table":
            with sqlite3.connect(file) as table:
                table.execute("CREATE TABLE known (a)")
        else:
            file.write_text("no table" * 1000 if damage == "text" else "")
    cache()
    assert told(path, reads) == "one"
    assert len(reads) == 2
    contents._MEMORY.write()


def test_without_a_folder_for_it_all_works(tmp_path):
    path = aged(tmp_path / "a", b"one")
    script = "import sys, pathlib, pipelines.contents as c; print(c.file_hash(pathlib.Path(sys.argv[1])))"
    ran = subprocess.run(
        [sys.executable, "-c", script, path],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "XDG_CACHE_HOME": "/dev/null/nowhere"},
    )
    assert (ran.stdout.strip()[:8], ran.stderr) == ("7692c3ad", "")  # SHA-256 of "one"
