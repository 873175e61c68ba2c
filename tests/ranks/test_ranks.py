"""Several ranks for real: two gloo processes on this machine, started by ``--nproc-per-node``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from command_line import ONE_THREAD, given

from pipelines.errors import UserError
from pipelines.ranks.launch import Launch, launch, without
from pipelines.ranks.ranks import Ranks

SETTINGS = given(
    "data.glyphs.train=24", "data.glyphs.validation=4", "data.glyphs.test=6",
    "rollout.prompts_per_step=5", "rollout.samples_per_prompt=4", "rollout.max_new_tokens=48",
    "rollout.dynamic_sampling=false", "rollout.batch_prompts=2", "score.batch_prompts=2",
    "eval.samples=2", "eval.batch_prompts=2", "run.threads=1", "run.steps=1",
)  # fmt: skip
"""Five groups on two ranks: they do not divide."""

TWO = ("--nproc-per-node", "2")


def vppo(runs: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vppo_cli", *arguments], env=environment(runs), text=True,
        capture_output=True, timeout=300,
    )  # fmt: skip


def environment(runs: Path) -> dict[str, str]:
    return {**os.environ, **ONE_THREAD, "VPPO_RUNS": str(runs)}


def rows(run: Path, name: str) -> list[dict]:
    (file,) = run.glob(f"**/{name}.parquet")
    return pq.read_table(file).to_pylist()


@pytest.fixture(scope="module")
def one_and_two(tmp_path_factory) -> tuple[Path, Path]:
    """The same stages by one process and by two ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    for name, several in (("one", ()), ("two", TWO)):
        for stage in ("prepare", "rollout", "score"):
            done = vppo(folder, "train", "--run", name, "--stage", stage, *several, *SETTINGS)
            assert done.returncode == 0, done.stdout + done.stderr
    return folder / "one", folder / "two"


def test_two_ranks_sample_what_one_does(one_and_two):
    one, two = (rows(run, "rollouts") for run in one_and_two)
    assert len(one) == 5
    for mine, theirs in zip(one, two, strict=True):
        for name in ("sample_id", "position", "response_ids", "outcome", "reward"):
            assert mine[name] == theirs[name]


def test_two_ranks_score_what_one_does(one_and_two):
    one, two = (rows(run, "scores") for run in one_and_two)
    for mine, theirs in zip(one, two, strict=True):
        assert mine["keep"] == theirs["keep"]
        for name in ("old_logp", "perception"):
            for a, b in zip(mine[name], theirs[name], strict=True):
                assert a == pytest.approx(b, abs=1e-5)


def test_two_ranks_look_as_one_does(one_and_two):
    one, two = (rows(run, "looks") for run in one_and_two)
    assert len(one) == 4  # of five groups, three on one rank and two on the other
    for mine, theirs in zip(one, two, strict=True):
        for name in ("sample_id", "position", "images", "perturbed_images", "tokens"):
            assert mine[name] == theirs[name]
        for name in ("logp", "logp_perturbed"):
            for a, b in zip(mine[name], theirs[name], strict=True):
                assert a == pytest.approx(b, abs=1e-5)


def test_two_ranks_evaluate_as_one_does(one_and_two):
    answers = []
    for run, several in zip(one_and_two, ((), TWO), strict=True):
        done = vppo(
            run.parent, "eval", "--run", run.name, "--benchmarks", "glyphs", *several, *SETTINGS
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count("glyphs") >= 1
        answers.append(rows(run, "answers"))
    assert answers[0] == answers[1]
    assert len(answers[0]) == 6 * 2


def test_an_error_of_all_ranks_is_told_once(one_and_two):
    done = vppo(one_and_two[1].parent, "train", "--run", "two", *TWO, *SETTINGS)
    assert done.returncode == 2
    assert done.stderr.count("error") == 1
    assert "update.engine: torch" in done.stderr
    assert "deepspeed" in done.stderr
    assert "Traceback" not in done.stderr


def started(runs: Path) -> tuple[subprocess.Popen[str], list[psutil.Process]]:
    """A long rollout on two ranks, both at work."""
    process = subprocess.Popen(
        [sys.executable, "-m", "vppo_cli", "train", "--run", "long", "--stage", "rollout", *TWO, *SETTINGS,
         *given("rollout.prompts_per_step=400")],
        env=environment(runs), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    until = time.monotonic() + 120
    while not list(runs.glob("long/steps/0001/rollout-*.partial")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.1)
    workers = [p for p in psutil.Process(process.pid).children() if "vppo_cli" in p.cmdline()]
    return process, sorted(workers, key=lambda p: int(p.environ()["RANK"]))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_dead_rank_brings_the_run_down_with_one_message(tmp_path, rank):
    done = vppo(tmp_path, "train", "--run", "long", "--stage", "prepare", *SETTINGS)
    assert done.returncode == 0, done.stderr
    process, workers = started(tmp_path)
    began = time.monotonic()
    workers[rank].send_signal(signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert time.monotonic() - began < 60
    assert errors.count("error ") == 1, errors
    assert f"rank {rank} (process {workers[rank].pid}) was killed by SIGKILL" in errors
    assert not [p for p in workers if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


# -- without processes -----------------------------------------------------------------------------


def test_one_process_works_on_everything():
    assert Ranks().share([3, 1, 2], lambda mine: [x * x for x in mine]) == [9, 1, 4]


def test_ranks_that_do_not_divide():
    with pytest.raises(UserError, match="tensor_parallel: 3"):
        Ranks(0, 8, 0).workers(3)


def test_several_nodes_need_an_address():
    with pytest.raises(UserError, match="--master"):
        launch(Launch(8, nnodes=2), [])
    with pytest.raises(UserError, match="counted from 0"):
        launch(Launch(8, nnodes=2, node_rank=2, master="a"), [])


def test_options_of_the_launcher_are_left_out():
    line = ["train", "--nproc-per-node", "8", "--run", "a", "--nnodes=2"]
    assert without(line, "--nproc-per-node", "--nnodes") == ["train", "--run", "a"]
