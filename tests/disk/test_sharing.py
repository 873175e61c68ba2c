"""Prepared data of several runs: made once, on the disk once, and each run's folder whole in itself."""

import dataclasses
import errno
import os
import shutil
import signal

import pytest

from pipelines.disk.sharing import one_at_a_time, others, taken_over
from pipelines.disk.step import Step, commit

CONTENT = {"train.parquet": b"x" * 1000, "more/rejected.jsonl": b"y"}


def step(folder, run, **settings):
    return Step("prepare", None, folder / run, settings={"data.source": "s", **settings})


def made(wanted):
    with commit(wanted) as (out, metrics):
        (out / "more").mkdir()
        for name, content in CONTENT.items():
            (out / name).write_bytes(content)
        metrics["train"] = 7
    return wanted.path


def take(wanted):
    """What a run does with a step that it lacks: whether it had to be made, and what was said."""
    told, anew = [], False
    with one_at_a_time(wanted, told.append), commit(wanted) as (out, metrics):
        if not (found := taken_over(wanted, out, told.append)):
            anew = True
            assert not list(out.iterdir())
            (out / "train.parquet").write_bytes(b"anew")
        metrics |= found
    assert not list(wanted.parent.parent.glob(".*"))
    return anew, told


def test_a_second_run_has_the_same_files_and_either_may_go(tmp_path):
    first = made(step(tmp_path, "a"))
    second = step(tmp_path, "b")
    assert [one.path for one in others(second)] == [first]  # as vppo plan says
    anew, told = take(second)
    assert (anew, told) == (False, ["prepared already by run a, under the same key: shares its files"])
    for name, content in CONTENT.items():
        assert (second.path / name).stat().st_ino == (first / name).stat().st_ino
        assert (second.path / name).read_bytes() == content
    assert second.manifest()["metrics"] == {"train": 7}
    second.verify()
    shutil.rmtree(first.parent)
    second.verify()
    assert take(step(tmp_path, "c")) == (False, ["prepared already by run b, under the same key: shares its files"])


def test_under_another_key_or_by_force_it_is_made(tmp_path):
    made(step(tmp_path, "a"))
    assert take(step(tmp_path, "b", seed=1))[0]
    own = step(tmp_path, "c")
    assert not take(own)[0]
    assert take(own)[0]  # it was there
    assert (step(tmp_path, "a").path / "train.parquet").read_bytes() == CONTENT["train.parquet"]


@pytest.mark.parametrize("damage", ["changed", "short", "gone", "manifest"])
def test_what_is_not_whole_is_left_alone(tmp_path, damage):
    file = made(step(tmp_path, "a")) / ("manifest.json" if damage == "manifest" else "train.parquet")
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(b"z" * (10 if damage == "short" else 1000))
    assert len([*others(step(tmp_path, "b"))]) == (damage == "changed")  # which only its hash tells
    assert take(step(tmp_path, "b")) == (True, [])


def test_without_hard_links_files_are_copied(tmp_path, monkeypatch):
    def link(*_):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    first = made(step(tmp_path, "a"))
    monkeypatch.setattr(os, "link", link)
    second = step(tmp_path, "b")
    assert take(second) == (
        False,
        ["prepared already by run a, under the same key: copied from it (no hard links here)"],
    )
    second.verify()
    assert (second.path / "train.parquet").stat().st_ino != (first / "train.parquet").stat().st_ino


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of a fork
@pytest.mark.parametrize("links", range(len(CONTENT)))
def test_killed_while_it_takes_over(tmp_path, links):
    first, second = made(step(tmp_path, "a")), step(tmp_path, "b")
    if not (child := os.fork()):
        link, left = os.link, [None] * links

        def until(*names):
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
            left.pop()
            link(*names)

        try:
            os.link = until
            take(second)
        finally:
            os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert not second.path.exists()
    assert not take(second)[0]  # which takes the dead one's lock over
    second.verify()
    assert [path.name for path in second.parent.iterdir()] == [second.path.name]
    assert (first / "train.parquet").read_bytes() == CONTENT["train.parquet"]


def test_other_steps_are_never_shared(tmp_path):
    kept = dataclasses.replace(step(tmp_path, "a"), name="rollout")
    made(kept)
    assert take(dataclasses.replace(kept, parent=tmp_path / "b")) == (True, [])
