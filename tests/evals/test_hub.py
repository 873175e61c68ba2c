"""A hub repository changes under its name: what a run reads is a commit, resolved once and kept."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.config import hub, settings
from pipelines.errors import UserError

SHA, OLD = "a" * 40, "b" * 40


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """What hub_story.py tells."""
    done = subprocess.run(
        [sys.executable, Path(__file__).parents[1] / "tools/hub_story.py", tmp_path_factory.mktemp("story")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_commits_are_resolved_keyed_recorded_and_kept(story):
    assert story["resolved"] == story["expected"]
    assert story["keyed"]
    assert story["config"]
    assert story["manifest"]
    assert story["goes on"] == [True, True]
    assert story["another run"]


def test_a_hub_that_moved_is_told(story):
    assert len(story["notes"]) == 1
    assert f"at {story['second'][:12]} on the hub by now" in story["notes"][0]
    assert f"stays with {story['first'][:12]}" in story["notes"][0]


def test_golds_of_a_benchmark_are_of_one_commit_and_results_say_which(story):
    assert story["questions"]
    assert story["results"]
    assert story["golds stay"]


def test_without_a_connection_another_commit_is_not_taken_for_the_one_asked_for(story):
    assert f"cache of this machine holds {story['second']}" in story["offline"]


# --- the cache ------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A hub that cannot be reached, and a cache in its layout."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "_head", lambda kind, name: ("", "no connection"))
    return tmp_path


def snapshot(cache, folder, commit, head=None):
    (cache / folder / "snapshots" / commit).mkdir(parents=True)
    if head:
        (cache / folder / "refs").mkdir()
        (cache / folder / "refs" / "main").write_text(head)


def test_the_cached_commit_is_taken(cache):
    snapshot(cache, "models--me--model", OLD)
    snapshot(cache, "models--me--model", SHA, head=OLD)
    config = hub.resolved(settings.load(None, ["model.path=me/model"]))
    assert config.model.revision == OLD  # main, not the newest
    snapshot(cache, "datasets--me--data", SHA)
    assert hub.commit_of("dataset", "me/data", "") == SHA


def test_neither_hub_nor_cache_is_told(cache):
    with pytest.raises(UserError, match="cannot be loaded: no connection"):
        hub.commit_of("dataset", "me/unknown", "data.source")
    # What is wrong with a run's own is said by whoever loads it.
    config = settings.load(None, ["data.source=me/unknown"])
    assert hub.resolved(config) == config


# --- going on -------------------------------------------------------------------------------------


def begun(asked, stored, *given):
    config = hub.as_begun(settings.load(None, asked), settings.load(None, stored), set(given))
    return config.data.revision


def test_a_run_goes_on_with_the_commit_it_was_begun_with():
    pinned = ["data.source=me/data", f"data.revision={SHA}"]
    assert begun(["data.source=me/data"], pinned) == SHA
    # One that is asked for counts; one of another data set does not.
    assert begun(["data.source=me/data", "data.revision=v2"], pinned) == "v2"
    assert begun(["data.source=me/other", f"data.revision={SHA}"], pinned) is None
    other = ["data.source=me/other", f"data.revision={SHA}"]
    assert begun(other, pinned, "data.revision") == SHA


def test_local_and_embedded_sources_have_no_commit(tmp_path):
    (tmp_path / "data").mkdir()
    for source in ("glyphs", tmp_path / "data", "no/such/path", "nothing.jsonl"):
        config = settings.load(None, [f"data.source={source}"])
        assert list(hub.named_on_hub(config)) == []
