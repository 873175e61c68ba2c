"""Parts that are named by import path: an edit of what they are written in makes steps stale."""

import importlib.machinery
import json
import sys
from pathlib import Path

import pytest

from pipelines.chain import Chain
from pipelines.config import settings
from pipelines.disk import part_sources
from pipelines.disk.part_sources import source_hash
from pipelines.errors import UserError

BOOM = "raise SystemExit('it was run')\n"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The current folder, into which ``write(name, text)`` puts a file."""
    monkeypatch.chdir(tmp_path)

    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())

    return write


def stale(before, *overrides):
    """Labels of the steps that do not serve any more."""
    known = {step.key for step in before.all()}
    return {step.label for step in chain(*overrides).all() if step.key not in known}


def chain(*overrides):
    config = settings.load(None, ["run.steps=2", "checkpoint.every=2", *overrides])
    return Chain(config, Path("runs/any"))


@pytest.mark.parametrize(
    ("setting", "least"),
    [
        ("reward.function=parts:f", {"rollout 1", "rollout 2"}),
        ("reward.grader=parts:f", {"rollout 1", "glyphs 0", "validation 2"}),
        ("rollout.engine=parts:f", {"rollout 1", "glyphs 0", "validation 2"}),
        ("score.estimator=parts:f", {"score 1", "update 1"}),
        ("score.perturbation=parts:f", {"score 1", "update 1"}),
        ("update.objective=parts:f", {"update 1", "checkpoint 2"}),
        ("update.engine=parts:f", {"update 1", "checkpoint 2"}),
        ("eval.graders=[mathruler, 'parts:f']", {"glyphs 0", "glyphs 2"}),
    ],
)
def test_an_edited_part_makes_what_it_decides_stale(project, setting, least):
    project("parts.py", BOOM)
    before = chain(setting)
    assert stale(before, setting) == set()
    project("parts.py", BOOM + "# edited\n")
    after = stale(before, setting)
    assert least <= after
    assert "prepare" not in after
    if setting.startswith("eval"):
        assert after == {"glyphs 0", "glyphs 2", "validation 2"}


def test_trackers_and_built_in_parts_are_no_part_of_a_key(project):
    project("parts.py", "a")
    before = chain("run.trackers=['parts:T']")
    project("parts.py", "b")
    assert stale(before, "run.trackers=['parts:T']") == set()
    assert source_hash("pipelines.objectives.dapo:dapo") == ""


FILES = {
    "a helper beside it": ("rewards.py", "import helper", "helper.py"),
    "a helper's helper": ("rewards.py", "from helper import x", "far.py"),
    "a helper imported in a function": ("rewards.py", "def f():\n  import helper", "helper.py"),
    "the package": ("rewards/__init__.py", "", "rewards/__init__.py"),
    "another module of the package": ("rewards/__init__.py", "", "rewards/sub.py"),
    "a table of the package": ("rewards/__init__.py", "", "rewards/words.json"),
    "a folder below the package": ("rewards/__init__.py", "", "rewards/a/b/c.py"),
    "a helper package": ("rewards.py", "import tools.deep", "tools/deep.py"),
}


@pytest.mark.parametrize("about", FILES)
def test_all_that_a_part_is_written_in_counts(project, about):
    main, text, file = FILES[about]
    project("helper.py", "import far\n" + BOOM)
    project("far.py", BOOM)
    project("tools/__init__.py", BOOM)
    project("tools/deep.py", "")
    project("other.py", "")
    project(main, text)
    project(file, "import far\nx = 1\n")
    first = source_hash("rewards:score")
    project("other.py", "x = 1")  # not imported
    project("rewards/__pycache__/sub.pyc" if "/" in main else "unseen.txt", "x")
    assert source_hash("rewards:score") == first
    project(file, "import far\nx = 2\n")
    assert source_hash("rewards:score") not in (first, None)


def test_modules_inside_packages_and_relative_imports(project):
    project("parts/__init__.py", BOOM)
    project("parts/rewards.py", "from . import words\nfrom .deep.er import z\n")
    project("parts/words.py", "")
    project("parts/deep/er.py", "")
    first = source_hash("parts.rewards:score")
    project("parts/deep/er.py", "z = 1")
    second = source_hash("parts.rewards:score")
    project("parts/words.py", "w = 1")
    assert len({first, second, source_hash("parts.rewards:score")}) == 3


def test_a_folder_without_init_counts_by_what_is_imported(project):
    project("src/rewards.py", "from src.words import w")
    project("src/words.py", "w = 1")
    project("src/data.bin", "1")
    first = source_hash("src.rewards:score")
    project("src/data.bin", "2")  # a mere folder may hold anything
    assert source_hash("src.rewards:score") == first
    project("src/words.py", "w = 2")
    second = source_hash("src.rewards:score")
    project("src/rewards.py", "from src.words import w\n")
    assert len({first, second, source_hash("src.rewards:score")}) == 3


def test_a_compiled_module_counts_by_its_bytes(project):
    name = "fast" + importlib.machinery.EXTENSION_SUFFIXES[0]
    project(name, b"\x7fELF one")
    first = source_hash("fast:score")
    project(name, b"\x7fELF two")
    assert source_hash("fast:score") not in (first, None)


def test_it_is_the_same_wherever_it_lies(project, tmp_path, monkeypatch):
    hashes = []
    for folder in ("here", "there"):
        project(f"{folder}/rewards.py", "import helper")
        project(f"{folder}/helper.py", "x = 1")
        monkeypatch.chdir(tmp_path / folder)
        hashes.append(source_hash("rewards:score"))
    assert hashes[0] == hashes[1] is not None


def test_what_does_not_parse_and_what_is_not_there(project):
    project("broken.py", "def (")
    assert source_hash("broken:f")
    for missing in ("nowhere:f", "broken.inner:f", "a..b:f", ".b:f", ":f", "json.nowhere:f"):
        assert source_hash(missing) is None, missing
    with pytest.raises(UserError, match="there is no module nowhere"):
        part_sources.check_part_sources(settings.load(None, ["reward.function=nowhere:f"]))


DEFINED = """
import json as js
from math import log
if True:
    async def later(): inner = 1
class Kind: field = 1
a, (b, *c) = 1, (2, 3)
for d in (): pass
with open("x") as e: f: int = 1
"""


def test_a_name_that_a_module_lacks_is_refused_without_running_it(project):
    project("parts.py", DEFINED + BOOM)
    for name in ("js", "log", "later", "Kind", "a", "b", "c", "d", "e", "f"):
        part_sources.require_part("reward.function", f"parts:{name}")
    for name in ("json", "inner", "field", "math", "open"):
        with pytest.raises(UserError, match=f"parts has no '{name}'"):
            part_sources.require_part("reward.function", f"parts:{name}")
    with pytest.raises(UserError, match="Did you mean parts:later"):
        part_sources.require_part("reward.function", "parts:latr")
    for text in ("from math import *", "def __getattr__(name): ...", "globals()['x'] = 1", "def ("):
        project("parts.py", text)
        part_sources.require_part("reward.function", "parts:x")  # which only running it tells


def test_nothing_is_executed_and_nothing_stays_on_the_path(project):
    project("pack/__init__.py", BOOM)
    project("pack/rewards.py", BOOM + "import torch, json, pack.more\n")
    project("pack/more.py", BOOM)
    before, modules = list(sys.path), set(sys.modules)
    assert source_hash("pack.rewards:score")
    assert sys.path == before
    assert not {name for name in set(sys.modules) - modules if name.startswith("pack")}


def test_a_run_is_looked_at_without_its_parts(project, tmp_path, monkeypatch):
    project("rewards.py", "x = 1")
    made = chain("reward.function=rewards:score").rollout(1)
    there = Chain(settings.load(None, ["reward.function=rewards:score"]), tmp_path / "run")
    name = "source of rewards:score"
    manifest = {"settings": {name: made.settings[name]}}
    project(there.rollout(1).path / "manifest.json", json.dumps(manifest))
    (tmp_path / "rewards.py").unlink()
    again = Chain(there.config, tmp_path / "run")
    assert again.rollout(1).key == there.rollout(1).key


def test_plan_says_so_in_words(project, tmp_path):
    from command_line import given, vppo

    project("rewards.py", "def score(responses, samples):\n    return [float(len(r) % 2) for r in responses]\n")
    command = given(
        "reward.function=rewards:score",
        "data.glyphs.train=8",
        "data.glyphs.validation=2",
        "data.glyphs.test=2",
        "rollout.prompts_per_step=2",
        "rollout.samples_per_prompt=2",
        "rollout.max_new_tokens=8",
        "rollout.dynamic_sampling=false",
        "update.batch_prompts=2",
        "run.steps=1",
        "score.looks=0",
    )
    runs = tmp_path / "runs"
    vppo("prepare", *command, runs=runs).succeeded()
    vppo("train", "--stage", "rollout", "--steps", "1", *command, runs=runs).succeeded()
    project("rewards.py", "def score(responses, samples):\n    return [float(len(r) % 3) for r in responses]\n")
    plan = vppo("plan", *command, runs=runs).succeeded()
    assert "source of rewards:score changed" in " ".join(plan.out.split())
    # Before anything else of it is looked at: what train would refuse.
    refused = vppo("plan", *given("reward.function=reward:score"), runs=runs)
    assert (refused.code, "no module reward" in " ".join(refused.err.split())) == (2, True)
    refused = vppo("plan", *given("reward.function=rewards:scor"), runs=runs)
    assert (refused.code, "Did you mean rewards:score?" in " ".join(refused.err.split())) == (2, True)
