"""Several ranks for real: two gloo processes on this machine, started by ``--nproc-per-node``."""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from command_line import Command, copy_of, given, start, vppo

from pipelines.errors import UserError
from pipelines.ranks.launch import Launch, launch, without
from pipelines.ranks.ranks import Ranks

SETTINGS = given(
    "data.glyphs.train=24",
    "data.glyphs.validation=4",
    "data.glyphs.test=6",
    "rollout.prompts_per_step=5",
    "rollout.samples_per_prompt=4",
    "rollout.max_new_tokens=48",
    "rollout.dynamic_sampling=false",
    "rollout.batch_prompts=2",
    "score.batch_prompts=2",
    "checkpoint.validation_samples=0",
    "eval.samples=2",
    "eval.batch_prompts=2",
    "eval.baseline=false",
    "run.threads=1",
    "run.steps=1",
    "update.engine=own:Trainer",
)
"""Five groups on two ranks: they do not divide. Updates are others' (tests/scale): here they do nothing."""

OWN = """
class Trainer:
    def __init__(self, policy, config, reference): pass
    def update(self, rollouts, scores, samples): return {}
    def save(self, folder): pass
    def load(self, folder): pass
"""

TWO = ("--nproc-per-node", "2")


def rows(run: Path, name: str) -> list[dict]:
    (file,) = run.glob(f"**/{name}.parquet")
    return pq.read_table(file).to_pylist()


@pytest.fixture(scope="module")
def one_and_two(tmp_path_factory) -> tuple[Path, Path]:
    """The same run by one process and by two ranks."""
    runs = tmp_path_factory.mktemp("ranks") / "runs"
    (runs.parent / "own.py").write_text(OWN)
    for name, several in (("one", ()), ("two", TWO)):
        vppo("train", "--run", name, *several, *SETTINGS, runs=runs, forked_ranks=True).succeeded()
    return runs / "one", runs / "two"


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
    one, two = (rows(run, "answers") for run in one_and_two)
    assert one == two
    assert len(one) == 6 * 2


def test_an_error_of_all_ranks_is_told_once(one_and_two):
    # By interpreters of their own, as torchrun starts them; all others here are forks.
    done = vppo("train", "--run", "torch", *TWO, *SETTINGS, *given("update.engine=torch"), runs=one_and_two[1].parent)
    assert done.code == 2
    assert done.err.count("error") == 1
    assert "update.engine: torch" in done.err
    assert "deepspeed" in done.err
    assert "Traceback" not in done.err


def at_work(command: Command, run: Path, pattern: str) -> list[psutil.Process]:
    """The ranks of a command, in order, once one has written more than there was."""
    before = {path: path.stat().st_size for path in run.glob(pattern)}
    until = time.monotonic() + 120
    while {path: path.stat().st_size for path in run.glob(pattern)} == before:
        assert command.running(), command.err
        assert time.monotonic() < until
        time.sleep(0.1)
    return sorted(psutil.Process(command.pid).children(), key=lambda rank: rank.create_time())


@pytest.mark.parametrize(
    ("rank", "arguments", "written"),
    [
        (0, ("eval", "--samples", "100"), "eval/0001/journals/glyphs-*"),
        (1, ("train", "--stage", "rollout", *given("rollout.prompts_per_step=900")), "steps/0001/rollout-*.partial"),
    ],
)
def test_a_dead_rank_brings_the_command_down_with_one_message(one_and_two, tmp_path, rank, arguments, written):
    run = copy_of(one_and_two[0], tmp_path)
    (tmp_path / "own.py").write_text(OWN)
    command = start(*arguments, "--run", "one", *TWO, runs=run.parent, forked_ranks=True)
    ranks = at_work(command, run, written)
    assert len(ranks) == 2
    ranks[rank].kill()
    assert command.code == 1
    assert command.err.count("error ") == 1, command.err
    assert f"rank {rank} (process {ranks[rank].pid}) was killed by SIGKILL" in command.err
    assert not [p for p in ranks if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


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
