"""What is installed is whole: evaluations from the wheel, outside the repository, killed and resumed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import hub_schema
import pytest
from command_line import ONE_THREAD, given

ROOT = Path(__file__).parents[1]
PARTS = ("vppo_cli", "pipelines", "evals", "configs", "vppo.py")


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


def test_an_editable_install_finds_modules_that_come_later(installed):
    """It names the folder, and lists no modules."""
    source = installed.parent / "source"
    build = "from setuptools.build_meta import build_editable; build_editable('.')"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (wheel,) = source.glob("vppo-*.editable-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (found,) = [name for name in archive.namelist() if "/" not in name]
        assert Path(archive.read(found).decode().strip()) == source


def started(site, folder):
    """``vppo eval`` of the tiny model on two public benchmarks, from the wheel's code alone."""
    code = (
        "import sys; sys.meta_path = [x for x in sys.meta_path if 'editable' not in repr(x)]\n"
        "import pipelines; assert pipelines.__file__.startswith(sys.argv.pop(1))\n"
        "from vppo_cli.app import main; main()"
    )
    few = given("eval.samples=2", "eval.batch_prompts=2", "eval.max_new_tokens=32")
    asked = ["eval", "--model", "tiny", "--benchmarks", "mathverse,mmmu", "--data-dir", folder / "hub", *few, "--json"]
    environment = os.environ | ONE_THREAD
    environment |= {"PYTHONPATH": str(site), "VPPO_RUNS": str(folder / "runs")}
    return subprocess.Popen(
        [sys.executable, "-c", code, str(site), *map(str, asked)],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_configs_of_the_paper_and_whose_numbers_they_are_come_along(installed, tmp_path):
    code = (
        "import sys; sys.meta_path = [x for x in sys.meta_path if 'editable' not in repr(x)]\n"
        "from vppo_cli.app import main; main()"
    )
    asked = ["config", "update", "--config", "paper/table3_fixed_08_12.yaml"]
    said = subprocess.run(
        [sys.executable, "-c", code, *asked],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | ONE_THREAD | {"PYTHONPATH": str(installed)},
    ).stdout
    assert "update.beta_max  1.2" in said
    assert "Paper (Table 9): 0.9." in said


def test_the_python_face_comes_along(installed, tmp_path):
    code = (
        "import sys; sys.meta_path = [x for x in sys.meta_path if 'editable' not in repr(x)]\n"
        "import vppo; assert vppo.__file__.startswith(sys.argv[1]), vppo.__file__\n"
        "try: vppo.open_run('nowhere')\n"
        "except vppo.UserError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(installed)],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | ONE_THREAD | {"PYTHONPATH": str(installed)},
    )
    assert "run nowhere: no such run" in done.stdout


def test_the_tasks_of_lm_eval_come_along_and_are_found(installed, tmp_path):
    code = (
        "import sys; sys.meta_path = [x for x in sys.meta_path if 'editable' not in repr(x)]\n"
        "from evals.lm_eval.__main__ import main; main()"
    )
    told = subprocess.run(
        [sys.executable, "-c", code, "tasks"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | ONE_THREAD | {"PYTHONPATH": str(installed)},
    ).stdout.strip()
    assert told == str(installed / "evals" / "lm_eval" / "tasks")
    ours = {path.name for path in (ROOT / "evals" / "lm_eval" / "tasks").iterdir()}
    assert {path.name for path in Path(told).iterdir()} == ours


def journalled(folder):
    """Benchmark -> lines of its journal."""
    return {
        path.name.partition("-")[0]: path.read_text().splitlines()
        for path in folder.glob("runs/*/*/eval/0000/journals/*.jsonl")
    }


def test_evaluations_from_the_wheel_are_killed_and_go_on(installed, tmp_path):
    hub_schema.write(tmp_path / "hub", names=("mathverse", "mmmu_pro"))
    first = started(installed, tmp_path)
    while first.poll() is None and not any(map(len, journalled(tmp_path).values())):
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    said = first.communicate()[1]
    assert first.returncode == -signal.SIGKILL, said
    before = journalled(tmp_path)
    assert any(before.values())

    again = started(installed, tmp_path)
    out, err = again.communicate()
    assert again.returncode == 0, err
    found = {one["benchmark"]: one for one in json.loads(out)["evaluations"]}
    assert found.keys() == {"mathverse", "mmmu_pro"}
    for name, lines in journalled(tmp_path).items():
        assert len(lines) == found[name]["questions"] * 2
        whole = [line for line in before.get(name, []) if line.endswith("}")]
        assert lines[: len(whole)] == whole  # what was sampled is not sampled again
