"""Parts that are named by import path: an edit of what they are written in makes steps stale."""

import importlib.machinery
import json
import sys
from pathlib import Path
from pkgutil import resolve_name

import pytest

from pipelines.chain import Chain
from pipelines.config import settings
from pipelines.config.imports import check_same
from pipelines.config.resolve import find_part
from pipelines.config.source import names_in, require_part, source_hash
from pipelines.disk import part_sources
from pipelines.errors import UserError
from pipelines.model.divergence import ESTIMATORS

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
        require_part("reward.function", f"parts:{name}")
    for name in ("json", "inner", "field", "math", "open"):
        with pytest.raises(UserError, match=f"parts has no '{name}'"):
            require_part("reward.function", f"parts:{name}")
    with pytest.raises(UserError, match="Did you mean parts:later"):
        require_part("reward.function", "parts:latr")
    for text in ("from math import *", "def __getattr__(name): ...", "globals()['x'] = 1", "def ("):
        project("parts.py", text)
        require_part("reward.function", "parts:x")  # which only running it tells


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


LINKS = {
    "a helper": ("rewards.py", "import helper", {"helper.py": "lib/impl.py"}, "lib/impl.py"),
    "a helper package": ("rewards.py", "from helper.deep import x", {"helper": "lib/impl"}, "lib/impl/deep.py"),
    "a table of one": ("rewards.py", "import helper", {"helper": "lib/impl"}, "lib/impl/words.json"),
    "a package of its own": ("rewards/__init__.py", "", {"rewards/sub": "lib/impl"}, "lib/impl/words.json"),
    "a folder of its own": ("rewards/__init__.py", "from .sub import x", {"rewards/sub": "lib/bare"}, "lib/bare/x.py"),
}


@pytest.mark.parametrize("about", LINKS)
def test_what_lies_beside_a_part_by_a_link_counts(project, tmp_path, monkeypatch, about):
    main, text, links, file = LINKS[about]
    for name in ("lib/impl.py", "lib/impl/__init__.py", "lib/impl/deep.py", "lib/impl/words.json", "lib/bare/x.py"):
        project(name, "1")
    project(f"here/{main}", text)
    for link, to in links.items():
        (tmp_path / "here" / link).symlink_to(tmp_path / to)
    monkeypatch.chdir(tmp_path / "here")
    first = source_hash("rewards:score")
    project(file, "2")
    assert source_hash("rewards:score") not in (first, None)


def test_links_that_lead_back_end(project, tmp_path):
    project("__init__.py", "")
    project("rewards/__init__.py", "")
    first = source_hash("rewards:score")
    (tmp_path / "rewards/again").symlink_to(tmp_path / "rewards")
    assert source_hash("rewards:score") == first
    (tmp_path / "rewards/up").symlink_to(tmp_path)
    assert source_hash("rewards:score")
    (tmp_path / "rewards/up").unlink()
    project("images/a.png", "")
    (tmp_path / "rewards/data").symlink_to(tmp_path / "images")
    assert source_hash("rewards:score") == first  # a linked folder that is no package may be anything


def test_what_lies_elsewhere_on_the_path_does_not_count(project, tmp_path, monkeypatch):
    project("here/rewards.py", "import helper")
    project("lib/helper.py", "x = 1")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.syspath_prepend(str(tmp_path / "lib"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "lib"))
    first = source_hash("rewards:score")
    project("lib/helper.py", "x = 2")
    assert source_hash("rewards:score") == first  # it may be a whole library


def test_what_is_no_code_is_in_the_key_and_stops_no_command(project, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    project(
        "noted/__init__.py", "from pathlib import Path\nPath(__file__).with_name('log').open('a').write('imported')"
    )
    project("noted/rewards.py", "def score(responses, samples): return [0.0] * len(responses)")
    part = "noted.rewards:score"
    for _ in range(2):  # the second time what the first one wrote is there
        find_part("reward.function", part, {})
        check_same("reward.function", part)
        first = source_hash(part)
        project("noted/note.md", "x" * len((tmp_path / "noted/log").read_text()))
        assert source_hash(part) != first
        check_same("reward.function", part)
        for name in ("noted", "noted.rewards"):
            sys.modules.pop(name)
    find_part("reward.function", part, {})
    project("noted/rewards.py", "def score(responses, samples): return [1.0] * len(responses)")
    with pytest.raises(UserError, match="was changed while the command ran"):
        check_same("reward.function", part)


@pytest.mark.parametrize("text", ["import importlib\nimportlib.import_module('helper')", "__import__('helper')"])
def test_a_module_that_is_imported_by_its_written_name_counts(project, text):
    project("rewards.py", text)
    project("helper.py", "x = 1")
    first = source_hash("rewards:score")
    project("helper.py", "x = 2")
    assert source_hash("rewards:score") != first


def test_the_built_in_names_are_read_as_they_are():
    for tables in part_sources.TABLES.values():
        for table in tables:
            known = resolve_name(table)
            assert set(names_in(table)) == set(known) - (
                set(ESTIMATORS) if table.endswith("ESTIMATOR_NAMES") else set()
            )
    with pytest.raises(LookupError):
        names_in("pipelines.rollout.engines:NOTHING")


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("reward.function=outcom", "Did you mean outcome"),
        ("reward.function=side.f", "no such part"),
        ("score.estimator=k33", "Did you mean k3"),
        ("score.perturbation=patchblack", "Did you mean patch_black"),
        ("rollout.engine=hff", "Did you mean hf"),
        ("update.engine=torc", "Did you mean torch"),
        ("reward.grader=mathrule", "Did you mean mathruler"),
        ("eval.graders=[mathrule]", "Did you mean mathruler"),
        ("run.trackers=[wand]", "Did you mean wandb"),
        ("stages.score=foo", "Name an import path"),
    ],
)
def test_a_built_in_name_that_is_none_is_refused(setting, told):
    with pytest.raises(UserError, match=told) as error:
        part_sources.check_part_sources(settings.load(None, [setting]))
    assert error.value.place.startswith(setting.partition("=")[0])


def test_every_built_in_name_passes():
    for setting, tables in part_sources.TABLES.items():
        for name in [one for table in tables for one in names_in(table)]:
            given = f"[{name}]" if setting in ("eval.graders", "run.trackers") else name
            part_sources.check_part_sources(settings.load(None, [f"{setting}={given}"]))


def test_parts_that_were_imported_from_another_source_than_keys_name_are_refused(project):
    project("early.py", "def score(responses, samples): return [1.0]\n")
    asked = chain("reward.function=early:score")
    asked.rollout(1)
    project("early.py", "def score(responses, samples): return [2.0]\n")
    find_part("reward.function", "early:score", {})
    with pytest.raises(UserError, match=r"reward\.function: early:score: its source was changed while the command ran"):
        part_sources.check_imported(asked.config, [asked.rollout(1)])
    now = chain("reward.function=early:score")
    part_sources.check_imported(now.config, now.all())
    assert now.rollout(1).key != asked.rollout(1).key
