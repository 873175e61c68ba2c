"""What several test files share."""

from __future__ import annotations

import copy
import fcntl
import gc
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # before torch: do not spin while others compute

import pytest
from command_line import SERVER, SMALL, Command, given, serve, vppo

if TYPE_CHECKING:
    from pipelines.config.schema import Config
    from pipelines.disk.records import Rollout, Sample, SampleTable, Scored
    from pipelines.model.policy import Policy

FEW = (
    "rollout.prompts_per_step=4",
    "rollout.samples_per_prompt=4",
    "rollout.max_new_tokens=48",
    "rollout.temperature=1",
    "rollout.top_p=1",
    "update.objective=vppo",
    "update.loss_average=token",
    "update.batch_prompts=4",
    "update.micro_batch_prompts=2",
    "score.batch_prompts=4",
    "run.threads=1",
)
"""The embedded default with 4 prompts a step and 4 responses a prompt."""


LONGEST = (
    "test_fake_gpu",
    "test_wrong_inputs",
    "test_graders",
    "test_cli_run",
    "test_bench",
    "test_cli_eval",
    "test_families",
    "test_own_stages",
    "test_ranks",
    "test_grader_walls",
    "test_committed",
    "test_perceive",
    "test_trackers",
    "test_lock",
    "test_wheel",
)
"""Files that take more than some twenty seconds."""


def pytest_configure(config: pytest.Config) -> None:
    """Of several processes, the one that hands out the tests starts what all of them run commands with.

    It imports nothing heavy itself: what this file needs, fixtures import.
    """
    if getattr(config.option, "numprocesses", None):
        os.environ[SERVER] = serve()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that none is left to one worker at the end; then by name."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


def pytest_collection_finish() -> None:
    """What is imported by now stays: no collection of garbage looks through it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _runs_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test writes into the runs of the checkout, or remembers hashes in the user's cache."""
    import torch

    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("VPPO_RUNS", str(tmp_path_factory.mktemp("runs")))
        yield


@contextmanager
def shared(factory: pytest.TempPathFactory, name: str) -> Iterator[Path]:
    """A folder that all processes of these tests share; one at a time is inside."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Command]:
    """A small finished run: its folder (not to be changed: copy it), and the command that made it."""
    with shared(tmp_path_factory, "finished") as folder:
        runs, command = folder / "runs", Command(0, folder / "out", folder / "err", 0)
        if not command.out_path.exists():
            made = vppo("train", "--run", "small", *given(*SMALL), runs=runs).succeeded()
            shutil.copy(made.err_path, command.err_path)
            shutil.copy(made.out_path, command.out_path)
    return runs / "small", command


@pytest.fixture(scope="session")
def configure() -> Callable[..., Config]:
    """``configure("score.estimator=k3", ...)``: the small config with other settings."""
    from pipelines.config import settings

    return lambda *overrides: settings.load(None, [*FEW, *overrides])


@pytest.fixture(scope="session")
def tiny_config(configure: Callable[..., Config]) -> Config:
    return configure()


@pytest.fixture(scope="session")
def policy(tiny_config: Config) -> Policy:
    """The shipped tiny model. Not to be trained: take ``fresh_policy`` for that."""
    from pipelines.model.load import load_policy

    return load_policy(tiny_config)


@pytest.fixture(scope="session")
def processor(tiny_config: Config) -> Any:
    """The shipped tiny model's. Not to be changed."""
    from pipelines.model.prompts import load_processor

    return load_processor(tiny_config)


@pytest.fixture(scope="session")
def random_policy(tiny_config: Config, processor: Any) -> Policy:
    """The same architecture with random weights, which knows nothing of what it should not say."""
    from pipelines.embedded import tiny
    from pipelines.model.policy import Policy

    return Policy(tiny.build_model(processor.tokenizer, 1).eval(), processor, tiny_config)


@pytest.fixture
def fresh_policy(policy: Policy) -> Callable[..., Policy]:
    """``fresh_policy(config)``: a copy of the tiny model, to be trained or changed."""
    from pipelines.model.policy import Policy

    return lambda config: Policy(copy.deepcopy(policy.model), policy.processor, config)


@pytest.fixture(scope="session")
def samples() -> list[Sample]:
    """Eight questions, with prompts of different lengths."""
    from pipelines.embedded.glyphs import GlyphsOptions, make_samples

    return make_samples("test", 8, 0, GlyphsOptions())


@pytest.fixture(scope="session")
def write_prepared(samples: list[Sample]) -> Callable[..., Path]:
    """``write_prepared(folder, rows)``: what the prepare stage leaves behind."""
    from pipelines.disk.records import Sample, write_rows

    def write(folder: Path, rows: Sequence[Sample] = samples) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for split in ("train", "validation", "test"):
            write_rows(folder / f"{split}.parquet", Sample, rows)
        return folder

    return write


@pytest.fixture(scope="session")
def table(write_prepared: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> SampleTable:
    """The eight questions as the stages read them."""
    from pipelines.disk.records import SampleTable

    return SampleTable(write_prepared(tmp_path_factory.mktemp("prepared")) / "train.parquet")


@pytest.fixture(scope="session")
def rollouts(policy: Policy, samples: list[Sample], tiny_config: Config) -> list[Rollout]:
    """Groups of 4 responses to the first 4 questions; two responses of each pass for right."""
    from pipelines.grading.reward import Graded
    from pipelines.model.sampling import Sampling
    from pipelines.rollout.engine import group_row
    from pipelines.rollout.hf import HuggingFaceEngine

    sampling = Sampling(1.0, 1.0, 0, tiny_config.rollout.max_new_tokens, 4, seed=0)
    generated = HuggingFaceEngine(policy).generate(samples[:4], [(1, i) for i in range(4)], sampling)
    marks = [Graded("", o, float(o == "correct")) for o in ("correct", "wrong", "wrong", "correct")]
    return [
        group_row(sample, position, group, marks, step=1)
        for position, (sample, group) in enumerate(zip(samples[:4], generated, strict=True))
    ]


@pytest.fixture(scope="session")
def score_rows(
    table: SampleTable, policy: Policy, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., list[Scored]]:
    """``score_rows(config, rollouts)``: what the scoring stage writes."""
    from pipelines.disk.records import SCORES, Scored, read_rows
    from pipelines.score.scoring import score
    from pipelines.watch import Silent

    def rows(config: Config, rollouts: list[Rollout], **other: Any) -> list[Scored]:
        out = tmp_path_factory.mktemp("scores")
        by = other.get("policy", policy)
        score(config, 1, rollouts, other.get("samples", table), by, out, Silent())
        return read_rows(out / SCORES, Scored)

    return rows


@pytest.fixture(scope="session")
def scores(score_rows: Callable[..., list[Scored]], tiny_config: Config, rollouts: list[Rollout]) -> list[Scored]:
    """The scores of ``rollouts`` by the default settings."""
    return score_rows(tiny_config, rollouts)
