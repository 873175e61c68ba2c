"""What is installed is whole: evaluations from the wheel, outside the repository."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import hub_schema
import pytest
from command_line import ONE_THREAD, given

ROOT = Path(__file__).parents[1]
PARTS = ("vppo_cli", "pipelines", "evals", "configs")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with what the wheel holds, and nothing else of the repository."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in (*PARTS, "pyproject.toml", "README.md", "LICENSE"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "-w", folder, source], check=True)
    (wheel,) = folder.glob("vppo-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def ran(site, folder, *asked):
    """What ``vppo`` prints, run from the wheel's code alone."""
    code = (
        "import sys; sys.meta_path = [x for x in sys.meta_path if 'editable' not in repr(x)]\n"
        "import pipelines; assert pipelines.__file__.startswith(sys.argv.pop(1))\n"
        "from vppo_cli.app import main; main()"
    )
    environment = os.environ | ONE_THREAD | {"PYTHONPATH": str(site), "VPPO_RUNS": str(folder / "runs")}
    line = [sys.executable, "-c", code, str(site), *map(str, asked)]
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_configs_of_the_paper_and_whose_numbers_they_are_come_along(installed, tmp_path):
    said = ran(installed, tmp_path, "config", "update", "--config", "paper/table3_fixed_08_12.yaml")
    assert "update.beta_max  1.2" in said
    assert "Paper (Table 9): 0.9." in said


def test_the_model_is_evaluated_on_public_benchmarks(installed, tmp_path):
    hub_schema.write(tmp_path / "hub", names=("mathverse", "mmmu_pro"))
    few = given("eval.samples=2", "eval.batch_prompts=2", "eval.max_new_tokens=32")
    asked = ("--model", "tiny", "--benchmarks", "mathverse,mmmu", "--data-dir", tmp_path / "hub", *few, "--json")
    found = {one["benchmark"]: one for one in json.loads(ran(installed, tmp_path, "eval", *asked))["evaluations"]}
    assert found.keys() == {"mathverse", "mmmu_pro"}
    journals = {path.name.partition("-")[0]: path for path in tmp_path.glob("runs/*/*/eval/0000/journals/*.jsonl")}
    assert journals.keys() == found.keys()
    for name, path in journals.items():
        assert len(path.read_text().splitlines()) == found[name]["questions"] * 2
