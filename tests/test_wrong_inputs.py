"""Wrong inputs: each is told with its value, its place and what to do, and leaves the run intact."""

from __future__ import annotations

import fcntl
import io
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import SMALL, Command, back_to, contents, copy_of, given, vppo
from PIL import Image

Finished = tuple[Path, Command]


def refused(command: Command, *expected: str) -> None:
    """It ended with exit code 2, a message that holds all of ``expected``, and no traceback."""
    assert command.code == 2, f"exit code {command.code}\n{command.out}\n{command.err}"
    assert "Traceback" not in command.err
    assert command.err.startswith("error  ")
    for words in expected:
        assert words in command.err, command.err


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (56, 56)).save(file, "PNG")
    return file.getvalue()


def lines(**row: object) -> bytes:
    """Three rows of JSON Lines."""
    return "".join(json.dumps(row) + "\n" for _ in range(3)).encode()


def parquet(**columns: list[object]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


MERGED = "a: &a {x: 1}\n" + "".join(
    f"{this}: &{this} {{<<: [{', '.join(['*' + below] * 9)}]}}\n" for below, this in pairwise("abcdefghi")
)


# -- commands, settings and configs ----------------------------------------------------------------


@dataclass
class Case:
    """A command line that cannot work, files it is given, and what the message has to say."""

    name: str
    arguments: str
    expected: tuple[str, ...]
    files: dict[str, bytes] = field(default_factory=dict)


TYPO = b"name: mine\nscore:\n  keep_fracton: 0.2\n"
LONELY = b"base: tiny.yaml\nrollout:\n  max_tries: 3\n  samples_per_prompt: 1\n"

SETTINGS = [
    Case(
        "unknown key",
        "train --set score.keep_fracton=0.2",
        ("score.keep_fracton", "no such setting", "Did you mean score.keep_fraction?", "vppo config score"),
    ),
    Case(
        "unknown key in a file",
        "train --config my.yaml",
        ("my.yaml, line 3, score.keep_fracton", "Did you mean score.keep_fraction?"),
        {"my.yaml": TYPO},
    ),
    Case("wrong type", "train --set run.steps=many", ("run.steps", "'many'", "integer", "It means: ")),
    Case(
        "wrong type in a file",
        "plan --config my.yaml",
        ("my.yaml, line 1, seed", "'zero'"),
        {"my.yaml": b"seed: zero\n"},
    ),
    Case(
        "out of range", "train --set score.keep_fraction=1.5", ("score.keep_fraction", "1.5", "less than or equal to 1")
    ),
    Case(
        "too few samples",
        "train --config my.yaml",
        ("my.yaml, line 4, rollout.samples_per_prompt", "1 is too few", "at least 2"),
        {"my.yaml": LONELY},
    ),
    Case(
        "settings that contradict each other",
        "train --set rollout.accuracy_low=0.995",
        ("rollout.accuracy_low (0.995) must be below rollout.accuracy_high (0.99)",),
    ),
    Case("no value", "train --set run.steps", ("--set run.steps", "no value", "section.key=value")),
    Case("not YAML on the command line", "train --set run.steps=[1", ("--set run.steps=[1", "not YAML")),
    Case("missing config", "train --config nowhere.yaml", ("nowhere.yaml", "no such config file", "tiny.yaml")),
    Case(
        "YAML syntax", "train --config my.yaml", ("my.yaml, line 2", "not YAML"), {"my.yaml": b"name: mine\nscore: ]\n"}
    ),
    Case("config is a list", "train --config my.yaml", ("my.yaml, line 1", "key: value"), {"my.yaml": b"- 1\n- 2\n"}),
    Case("config is binary", "train --config my.yaml", ("my.yaml", "not a text file"), {"my.yaml": b"\xff\xfe\x00"}),
    Case(
        "bases in a circle",
        "train --config a.yaml",
        ("goes round in a circle",),
        {"a.yaml": b"base: b.yaml\n", "b.yaml": b"base: a.yaml\n"},
    ),
    Case("unknown mode", "train --set mode=papre", ("mode", "'papre'", "'exact'")),
    Case("unknown stage", "train --stage scoer", ("--stage scoer", "no such stage", "Did you mean score?", "rollout")),
    Case("steps of all stages", "train --steps 1..2", ("--steps", "--stage")),
    Case(
        "unknown benchmark in a setting",
        "train --set eval.benchmarks=[glyfs]",
        ("glyfs", "no such benchmark", "Did you mean glyphs?"),
    ),
    Case("no run yet", "status", ("holds no run yet", "vppo train", "VPPO_RUNS")),
    Case("unknown run", "plan --run tiny-0000", ("run tiny-0000", "no such run", "There: none")),
    Case("run is a path", "train --run ../elsewhere", ("--run ../elsewhere", "not a name")),
    Case("unknown device", "train --set run.device=tpu", ("run.device", "'tpu'", "cuda")),
    Case("missing model folder", "train --set model.path=./nowhere", ("model.path: ./nowhere", "no such folder")),
    Case("a run of 300 letters", f"train --run {'x' * 300}", ("--run xxx", "is not a name")),
    Case(
        "more steps than anybody",
        "plan --set run.steps=99999999999",
        ("run.steps", "99999999999", "less than or equal"),
    ),
    Case("a long range of steps", "train --stage score --run r --steps 1..99999999999", ("run r", "no such run")),
    Case("half a surrogate pair", r"""train --set 'data.instruction="\ud800"'""", ("data.instruction", "surrogate")),
    Case("betas of one", "train --set update.adam_betas=[1,1]", ("adam_betas", "below 1")),
    Case("an alias bomb", "plan --config my.yaml", ("my.yaml", "too many values"), {"my.yaml": b"a: &a [*a, *a]\n"}),
    Case(
        "a bomb of merged maps", "plan --config my.yaml", ("my.yaml", "too many values"), {"my.yaml": MERGED.encode()}
    ),
    Case("data without end", "train --set data.source=/dev/zero", ("data.source /dev/zero", "belongs to the system")),
    Case("all of the disk", "plan --set data.source=/", ("data.source /:", "belongs to the system")),
    Case("a model without end", "plan --set model.path=/dev/zero", ("model.path /dev/zero",)),
    Case("unknown section", "config scor", ("config scor", "no such section", "score")),
]


@pytest.mark.parametrize("case", SETTINGS, ids=lambda case: case.name)
def test_wrong_settings_are_refused_before_anything_is_written(case: Case, tmp_path: Path) -> None:
    for name, data in case.files.items():
        (tmp_path / name).write_bytes(data)
    refused(vppo(*shlex.split(case.arguments), runs=tmp_path / "runs"), *case.expected)
    assert {p.name for p in tmp_path.iterdir()} == set(case.files)


# -- data and models -------------------------------------------------------------------------------

GOOD = {"problem": "<image>What digit?", "images": "a.png", "answer": "1"}

DATA = [
    Case(
        "missing path",
        "--set data.source=nowhere/q.jsonl",
        ("data.source nowhere/q.jsonl", "no such file or folder", "Check the path"),
    ),
    Case("empty file", "--set data.source=q.jsonl", ("q.jsonl", "no rows"), {"q.jsonl": b""}),
    Case(
        "no rows",
        "--set data.source=q.parquet",
        ("q.parquet", "no rows"),
        {"q.parquet": parquet(problem=[], images=[], answer=[])},
    ),
    Case(
        "folder without data",
        "--set data.source=data",
        ("data", "holds no data set", "metadata.jsonl"),
        {"data/readme.txt": b"nothing"},
    ),
    Case("unknown file type", "--set data.source=q.xlsx", ("q.xlsx", ".xlsx", ".parquet"), {"q.xlsx": b"?"}),
    Case(
        "images that are none",
        "--set data.source=q.jsonl",
        ("q.jsonl", "no usable row: all 3", "image", "Row 0"),
        {"q.jsonl": lines(**GOOD), "a.png": b"this is text"},
    ),
    Case(
        "image files that are missing",
        "--set data.source=q.jsonl",
        ("q.jsonl", "no usable row: all 3", "a.png"),
        {"q.jsonl": lines(**GOOD)},
    ),
    Case(
        "answers that are empty",
        "--set data.source=q.jsonl",
        ("q.jsonl", "no usable row: all 3", "answer"),
        {"q.jsonl": lines(**{**GOOD, "answer": ""}), "a.png": png()},
    ),
    Case(
        "missing column",
        "--set data.source=q.jsonl",
        ("no column 'answer'", "columns found: problem, images, gold", "--set data.columns='{answer: gold}'"),
        {"q.jsonl": lines(problem="?", images="a.png", gold="1"), "a.png": png()},
    ),
    Case(
        "mapping of a column we do not have",
        "--set data.source=q.jsonl --set 'data.columns={question: problem}'",
        ("data.columns",),
        {"q.jsonl": lines(**GOOD), "a.png": png()},
    ),
    Case(
        "broken Parquet",
        "--set data.source=q.parquet",
        ("q.parquet", "not a readable Parquet file"),
        {"q.parquet": parquet(problem=["?"], images=["a.png"], answer=["1"])[:-20]},
    ),
    Case(
        "broken JSON line",
        "--set data.source=q.jsonl",
        ("q.jsonl, line 4", "not JSON"),
        {"q.jsonl": lines(**GOOD) + b'{"problem": \n', "a.png": png()},
    ),
    Case(
        "everything held out",
        "--set data.source=q.jsonl --set data.validation_count=5",
        ("data.validation_count 5", "3 usable rows", "Set it lower"),
        {"q.jsonl": lines(**GOOD), "a.png": png()},
    ),
    Case("prompts too long", "--set data.max_prompt_tokens=3", ("no usable row", "prompt too long")),
    Case(
        "a folder that is no model",
        "--set model.path=model",
        ("model.path model", "is not a usable model folder"),
        {"model/config.json": b"{}"},
    ),
    Case(
        "weights that are none",
        "--set model.path=model --until 1",
        ("model.path model", "is not a usable model folder"),
        {"model/": b""},
    ),
    Case(
        "a hub id out of reach",
        "--set model.path=nobody/nothing",
        ("model.path nobody/nothing", "cannot be loaded", "hub id this machine can reach"),
    ),
]


@pytest.mark.parametrize("case", DATA, ids=lambda case: case.name)
def test_wrong_data_and_models_are_refused(case: Case, tmp_path: Path) -> None:
    from pipelines.config.settings import shipped_config

    for name, data in case.files.items():
        if name == "model/":  # a model whose weights were cut short, as by a broken download
            shutil.copytree(shipped_config("tiny_model"), tmp_path / "model")
            os.truncate(tmp_path / "model" / "model.safetensors", 1000)
            continue
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    runs = tmp_path / "runs"
    command = vppo("train", "--run", "r", *given(*SMALL), *shlex.split(case.arguments), runs=runs)
    refused(command, *case.expected)
    if (runs / "r").exists():  # what only reading all of it shows
        told = vppo("status", "--json", runs=runs).succeeded().json
        assert told["steps_done"] == 0


PLANNED = [
    Case(
        "glyphs on own data",
        "--set data.source=q.jsonl --set eval.benchmarks=[glyphs]",
        ("eval.benchmarks: glyphs", "needs the embedded data"),
        {"q.jsonl": lines(**GOOD)},
    ),
    Case(
        "validation without questions",
        "--set data.source=q.jsonl --set data.validation_count=0 --set eval.benchmarks=[validation]",
        ("eval.benchmarks: validation", "data.validation_source"),
        {"q.jsonl": lines(**GOOD)},
    ),
    Case(
        "missing columns",
        "--set data.source=q.jsonl",
        ("no column 'problem'", "no column 'images'", "no column 'answer'"),
        {"q.jsonl": lines(question="?", img="a.png", gold="1")},
    ),
    Case(
        "missing columns of the validation source",
        "--set data.source=q.jsonl --set data.validation_source=v.jsonl",
        ("v.jsonl", "no column 'answer'"),
        {"q.jsonl": lines(**GOOD), "v.jsonl": lines(problem="?", images="a.png", gold="1")},
    ),
    Case(
        "a missing file", "--set data.source=nowhere/q.jsonl", ("data.source nowhere/q.jsonl", "no such file or folder")
    ),
    Case("a folder without data", "--set data.source=data", ("holds no data set",), {"data/readme.txt": b"nothing"}),
    Case(
        "a missing local copy of a benchmark",
        "--set eval.benchmarks=[geo3k] --set eval.data_dir=data",
        ("benchmark geo3k", "no local copy"),
        {"data/readme.txt": b"nothing"},
    ),
]


@pytest.mark.parametrize("case", PLANNED, ids=lambda case: case.name)
def test_plan_refuses_what_train_would(case: Case, tmp_path: Path) -> None:
    for name, data in case.files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    for command in ("plan", "train"):
        refused(vppo(command, *shlex.split(case.arguments), runs=tmp_path / "runs"), *case.expected)


def test_own_data_are_evaluated_on_their_own_questions(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_bytes(lines(**GOOD) * 100)
    told = vppo("plan", "--set", "data.source=q.jsonl", "--json", runs=tmp_path / "runs")
    names = {row["step"] for row in told.succeeded().json["plan"]}
    assert "validation" in names
    assert "glyphs" not in names


PARTS = [
    ("score.estimator=k33", ("score.estimator: k33", "Did you mean k3?", "jsd")),
    ("score.perturbation=patch_blak", ("patch_blak", "Did you mean patch_black?", "raw_black")),
    ("update.objective=vpo", ("update.objective: vpo", "Did you mean vppo?", "grpo")),
    ("update.engine=torhc", ("update.engine: torhc", "Did you mean torch?")),
    ("rollout.engine=vlm", ("rollout.engine: vlm", "Known: hf", "import path")),
    ("reward.function=outcom", ("outcom", "Did you mean outcome?", "import path")),
    ("reward.function=no_such_module:f", ("no_such_module:f", "cannot be imported")),
    ("reward.function=json:dumsp", ("json", "dumsp", "Did you mean json:dump")),
    ("reward.grader=mathrular", ("mathrular", "Did you mean mathruler?", "math-verify")),
]


@pytest.mark.parametrize(("setting", "expected"), PARTS, ids=lambda value: str(value)[:40])
def test_an_unknown_part_is_refused_before_any_work_and_the_run_keeps_its_settings(
    setting: str, expected: tuple[str, ...], finished: Finished, tmp_path: Path
) -> None:
    run = copy_of(finished[0], tmp_path)
    before, config = contents(run), (run / "config.yaml").read_text()
    command = vppo("train", "--run", "small", "--set", setting, "--set", "seed=1", runs=run.parent)
    refused(command, *expected)
    assert contents(run) == before
    assert (run / "config.yaml").read_text() == config
    again = vppo("train", "--run", "small", runs=run.parent).succeeded()
    assert "nothing to do" in again.out


# -- requests a finished run cannot meet -----------------------------------------------------------

REQUESTS = [
    ("train --stage score --steps 9..12", ("--steps 9..12", "steps 1..3", "--set run.steps=N")),
    ("train --stage score --steps 3..1", ("--steps 3..1",)),
    ("train --stage update --steps 0", ("--steps 0", "steps 1..3")),
    ("train --stage score --steps two", ("--steps two", "Write 3 or 3..5")),
    ("eval --benchmarks glyfs", ("glyfs", "no such benchmark", "Did you mean glyphs?")),
    ("eval --checkpoint 7", ("--checkpoint 7", "no such checkpoint", "It has: 0 2 3")),
    ("eval --samples 0", ("eval.samples", "0", "greater than or equal to 1")),
    ("export out --checkpoint 1", ("checkpoint 1", "It has: 2 3")),
    ("export runs", ("runs", "not an empty folder", "Name a new folder")),
    ("export notes.txt", ("notes.txt", "not an empty folder")),
    ("status --run smal", ("run smal", "There: small")),
]


@pytest.mark.parametrize(("arguments", "expected"), REQUESTS, ids=lambda value: str(value)[:40])
def test_what_a_run_cannot_give_is_refused(
    arguments: str, expected: tuple[str, ...], finished: Finished, tmp_path: Path
) -> None:
    run = copy_of(finished[0], tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    before = contents(run)
    refused(vppo(*arguments.split(), runs=run.parent), *expected)
    assert contents(run) == before


# -- a run that was damaged ------------------------------------------------------------------------


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def scribble(path: Path) -> None:
    """Change bytes in the middle, not the length."""
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 64] = bytes(byte ^ 0xFF for byte in data[middle : middle + 64])
    path.write_bytes(data)


STEPS = ("prepare-", "rollout-", "score-", "update-", "checkpoint-")

# Every kind of damage once; tests/disk/test_committed.py damages every file.
DAMAGE: list[tuple[str, Callable[[Path], None], str, str]] = [
    ("steps/0002/rollout-*/manifest.json", lambda p: p.write_text("{"), "train", "corrupt manifest"),
    ("steps/0001/update-*/manifest.json", lambda p: p.write_text("[]"), "train", "lacks its fields"),
    ("steps/0003/score-*/scores.parquet", Path.unlink, "train", "found missing"),
    ("checkpoints/0003/*/model/model.safetensors", cut, "train", "bytes, found"),
    ("checkpoints/0003/*/model/model.safetensors", scribble, "export out", "its content changed"),
    ("checkpoints/0003/*/trainer/optimizer.safetensors", scribble, "train --set run.steps=4", "its content changed"),
    ("steps/0002/rollout-*/rollouts.parquet", scribble, "train --stage score --steps 2 --force", "its content changed"),
]
MORE: list[tuple[str, Callable[[Path], None], str, str]] = [
    ("checkpoints/0003/*/manifest.json", Path.unlink, "train", "corrupt manifest"),
    ("steps/0002/rollout-*/rollouts.parquet", cut, "train", "bytes, found"),
    ("prepare-*/test.parquet", cut, "train", "bytes, found"),
]


@pytest.mark.parametrize(
    ("pattern", "damage", "arguments", "expected"),
    [*DAMAGE, *(pytest.param(*case, marks=pytest.mark.nightly) for case in MORE)],
    ids=lambda value: getattr(value, "__name__", str(value)[:60]),
)
def test_a_damaged_step_is_named_and_made_again_once_deleted(
    pattern: str, damage: Callable[[Path], None], arguments: str, expected: str, finished: Finished, tmp_path: Path
) -> None:
    run = copy_of(finished[0], tmp_path)
    (file,) = run.glob(pattern)
    damage(file)
    command = vppo(*arguments.split(), "--run", "small", runs=run.parent)
    refused(command, str(file), expected)
    advice = re.search(r"Delete (?:the folder (\S+)|its folder); it is made again", command.err)
    assert advice
    step = next(folder for folder in file.parents if folder.name.startswith(STEPS))
    assert advice[1] in (None, str(step))
    shutil.rmtree(step)
    vppo("train", "--run", "small", "--set", "run.steps=3", runs=run.parent).succeeded()
    assert contents(run) == contents(finished[0])


def test_a_broken_config_of_a_run_is_named_with_its_line(finished: Finished, tmp_path: Path) -> None:
    run = copy_of(finished[0], tmp_path)
    with (run / "config.yaml").open("a") as file:
        file.write("colour: blue\n")
    count = len((run / "config.yaml").read_text().splitlines())
    refused(vppo("train", "--run", "small", runs=run.parent), f"config.yaml, line {count}, colour")


# -- locks -----------------------------------------------------------------------------------------


def test_a_lock_left_by_another_machine_is_named_with_the_command_that_clears_it(
    finished: Finished, tmp_path: Path
) -> None:
    run = copy_of(finished[0], tmp_path)
    owner = {"pid": 4711, "host": "elsewhere", "since": "2026-01-02 03:04:05"}
    (run / "lock").write_text(json.dumps(owner))
    shutil.rmtree(next(run.glob("eval/0003/glyphs-*")))  # something to do
    command = vppo("train", "--run", "small", runs=run.parent)
    refused(command, "process 4711 on elsewhere", "2026-01-02 03:04:05", f"rm {run / 'lock'}")
    (run / "lock").unlink()
    vppo("train", "--run", "small", runs=run.parent).succeeded()
    assert contents(run) == contents(finished[0])


def test_a_run_in_use_is_refused_and_keeps_its_settings(finished: Finished, tmp_path: Path) -> None:
    run = copy_of(finished[0], tmp_path)
    before, config = contents(run), (run / "config.yaml").read_text()
    with (run / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        json.dump({"pid": os.getpid(), "host": socket.gethostname(), "since": "today"}, lock)
        lock.flush()
        command = vppo("train", "--run", "small", "--set", "run.steps=5", runs=run.parent)
        refused(command, f"in use by process {os.getpid()} since today", "vppo status --run small")
        again = vppo("train", "--run", "small", runs=run.parent).succeeded()  # nothing to do: allowed
        assert "nothing to do" in again.out
    assert (run / "config.yaml").read_text() == config
    assert contents(run) == before


# -- disks -----------------------------------------------------------------------------------------


def test_a_file_too_large_for_the_disk_is_told_and_the_run_goes_on_later(finished: Finished, tmp_path: Path) -> None:
    """No file may grow beyond 500 kB: the first that would is checkpoint 3's model."""
    run = copy_of(finished[0], tmp_path)
    back_to(run, "checkpoint 3")
    arguments = ("train", "--run", "small")
    command = vppo(*arguments, runs=run.parent, largest_file=500_000)
    refused(command, "checkpoints/0003", "the disk is full", "give the same command again")
    vppo(*arguments, runs=run.parent).succeeded()
    assert contents(run) == contents(finished[0])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 14 MB, where this user may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=14m", "none", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_told_and_the_run_goes_on_once_there_is_room(small_disk: Path, finished: Finished) -> None:
    """It holds one checkpoint, of 10 MB, and not another."""
    whole = copy_of(finished[0], small_disk.with_name("whole"))
    back_to(whole, "checkpoint 3")
    run = copy_of(whole, small_disk)
    arguments = ("train", "--run", "small")
    refused(vppo(*arguments, runs=run.parent), str(run), "the disk is full", "Free some space")
    subprocess.run(["mount", "-o", "remount,size=100m", str(small_disk)], check=True)
    vppo(*arguments, runs=run.parent).succeeded()
    assert contents(run) == contents(finished[0])


def test_a_folder_without_permission_is_told(finished: Finished, tmp_path: Path) -> None:
    run = copy_of(finished[0], tmp_path)
    shutil.rmtree(next(run.glob("eval/0003/glyphs-*")))
    before = contents(run)
    (run / "eval" / "0003").chmod(0o500)
    command = vppo("train", "--run", "small", runs=run.parent, plain_user=True)
    refused(command, "eval/0003", "no permission")
    assert contents(run) == before
    (run / "eval" / "0003").chmod(0o700)
    vppo("train", "--run", "small", runs=run.parent, plain_user=True).succeeded()
    assert contents(run) == contents(finished[0])


def test_runs_that_may_not_be_made_are_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    command = vppo("train", *given(*SMALL), runs=tmp_path / "runs", plain_user=True)
    tmp_path.chmod(0o700)
    refused(command, str(tmp_path / "runs"), "no permission")


# -- while it runs ---------------------------------------------------------------------------------


def test_sampling_that_never_finds_mixed_groups_gives_up_with_advice(tmp_path: Path) -> None:
    """Of 8 answers a share in (0.98, 0.99) is never right, so no group is informative."""
    never = given("rollout.accuracy_low=0.98", "rollout.max_tries=2")
    command = vppo("train", "--run", "r", *given(*SMALL), *never, runs=tmp_path / "runs")
    refused(
        command,
        "rollout, step 1",
        "only 0 of 4 groups",
        "after 2 rounds",
        "rollout.max_tries",
        "rollout.dynamic_sampling=false",
    )
    assert "vppo train --run r" in vppo("status", runs=tmp_path / "runs").succeeded().out


def test_a_reward_that_is_no_number_is_told(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def nan(responses, samples):\n    return [float('nan')] * 9\n")
    command = vppo("train", *given(*SMALL), "--set", "reward.function=mine:nan", runs=tmp_path / "runs")
    refused(command, "mine:nan", "9 rewards for 32 responses", "one finite reward per response")
