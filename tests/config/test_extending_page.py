"""docs/extending.md: every snippet is a file that works as the page says, from a config."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from command_line import TINY, given, vppo
from hub_schema import png
from random_batch import random_batch

from evals.benchmarks.questions import gather, groups, questions_step, read_questions
from pipelines.config import settings
from pipelines.config.schema import UpdateConfig
from pipelines.disk.part_sources import SETTINGS
from pipelines.disk.records import ROLLOUTS, Rollout, Sample, read_rows
from pipelines.grading.graders import GraderPool
from pipelines.grading.reward import check_keys, make_reward
from pipelines.model.policy import Policy
from pipelines.model.sampling import Sampling
from pipelines.objectives.table import find_objective
from pipelines.rollout.hf import HuggingFaceEngine
from pipelines.score.perturb import perturb
from pipelines.watch import Silent

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "extending.md").read_text(encoding="utf-8")
SNIPPETS = {
    Path(name).name: text
    for page in (PAGE, (DOCS / "objectives.md").read_text(encoding="utf-8"))
    for text, name in re.findall(r"^```python\n(# (\S+\.py).*?)^```", page, re.M | re.S)
}
USED = [
    setting.strip("'") for text in SNIPPETS.values() for setting in re.findall(r"(?:--set )('[^']+'|\S+)", text[:200])
]

FEW = (*TINY, "checkpoint.validation_samples=0", "eval.benchmarks=[]", "run.steps=1")


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with every snippet of the page as a file, which is the current one."""
    for name, text in SNIPPETS.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in SNIPPETS:
        sys.modules.pop(Path(name).stem, None)


def loaded(name: str) -> ModuleType:
    return importlib.import_module(name)


def test_the_page_has_every_setting_that_takes_an_import_path() -> None:
    rows = re.findall(r"^\| \[[^|]+\| (`[^|]+`) \|", PAGE, re.M)
    named = {name for row in rows for name in re.findall(r"`([^`]+)`", row)}
    parts = {"stages.NAME" if name.startswith("stages.") else name for name in SETTINGS}
    assert named == parts
    tried = {setting.partition("=")[0] for setting in USED}
    assert tried == parts - {"stages.NAME"}  # whose example is that of docs/artifacts.md (tests/test_own_stages.py)


def test_a_run_with_all_of_them(files: Path) -> None:
    used = [one for one in USED if not one.startswith("eval.benchmarks")]  # its questions are below
    command = ["train", "--run", "mine", *given(*FEW, *used, "eval.graders=[graders:near]")]
    vppo(*command, runs=files / "runs").succeeded()
    (row,) = [json.loads(line) for line in (files / "runs/mine/metrics.jsonl").read_text().splitlines()]
    assert row["update/moved"] > 0
    assert row["update/entropy_gap"] > 0
    assert row["score/perception_mean"] > 0

    (made,) = files.glob("runs/mine/steps/0001/rollout-*")
    for group in read_rows(made / ROLLOUTS, Rollout):
        for text, outcome, reward in zip(group.response, group.outcome, group.reward, strict=True):
            longer = max(0, len(text.split()) - 20)
            assert reward == pytest.approx((outcome == "correct") - 0.01 * longer, abs=1e-6)
        assert group.named["boxed"] == [float("\\boxed{" in text) for text in group.response]
    (scored,) = files.glob("runs/mine/steps/0001/score-*")
    column = pq.read_table(scored / "scores.parquet")["perception"].to_pylist()
    assert min(x for group in column for response in group for x in response) == 0  # never below

    told = [line.split(",") for line in (files / "runs/mine/metrics.csv").read_text().splitlines()]
    assert ["1", "update/moved", str(row["update/moved"])] in told


def test_data_as_the_page_shows_them(files: Path) -> None:
    from pipelines.prepare.samples import prepare

    lines, config = (re.search(rf"^```{kind}\n(.*?)^```", PAGE, re.M | re.S)[1] for kind in ("json", "yaml"))
    for folder in ("data", "images/kitchen", "out"):
        (files / folder).mkdir(parents=True)
    (files / "data/train.jsonl").write_text(lines)
    (files / "images/kitchen/0007.png").write_bytes(png(3))
    (files / "mine.yaml").write_text(config.replace("/shared/images", str(files / "images")))
    asked = settings.load(Path("mine.yaml"), ["model.path=tiny", "data.validation_count=0"])
    prepare(asked, files / "out", Silent())
    cups, sum_ = samples = read_rows(files / "out/train.parquet", Sample)
    assert (list(cups.images), list(sum_.images), sum_.details()) == ([png(3)], [], {})
    assert loaded("boxes").reward([r"At [120, 40, 380, 200]: \boxed{7}", r"\boxed{8}"], samples) == [1.5, 0]
    assert asked.reward.function == "boxes:reward"
    assert asked.data.instruction.endswith("{problem}\nPut the answer into \\boxed{}.")


def test_the_small_config_is_the_tiny_model_on_the_same_data(files: Path) -> None:
    (text,) = re.findall(r"^```yaml\n(# my\.yaml\n.*?)^```", PAGE, re.M | re.S)
    (files / "my.yaml").write_text(text)
    config = settings.load(Path("my.yaml"))
    assert (config.model.path, config.data.source, config.data.columns["answer"]) == (
        "tiny",
        "data/train.jsonl",
        "gold",
    )


def test_reward_and_grader_by_hand(files: Path) -> None:
    sample = Sample("a", "1 + 2?", [], "3")
    assert loaded("rewards").brief([r"so \boxed{3}", r"\boxed{4}"], [sample, sample]) == [0.998, -0.001]
    short = Sample("b", "1 + 2?", [], "3", metadata='{"max_words": 1}')
    found = loaded("shaped").answer_and_length(["so it is 3", r"\boxed{3}"], [short] * 2, ["no_answer", "correct"])
    assert found == {"reward": [-0.03, 1.0], "length": [-0.03, 0.0], "boxed": [0.0, 1.0]}
    with GraderPool(workers=1, deadline_s=5.0) as pool:
        items = [("3.001", "3", "value"), ("3.1", "3", "value"), (" x", "x", "value")]
        assert pool.grade(items, "graders:near") == [True, False, True]


def test_the_keys_of_the_reward_are_settings_that_work(files: Path) -> None:
    (line,) = re.findall(r"^vppo train (--set reward\.function=shaped.*)$", PAGE, re.M)
    config = settings.load(None, re.findall(r"--set (\S+)", line))
    sample = Sample("a", "1 + 2?", [], "3")
    with make_reward(config.reward.function) as reward:
        named = reward.named(sample, 2)
        assert named == ["boxed", "length"]
        check_keys(config, named)


def test_the_perturbation_blackens_one_half(files: Path) -> None:
    images = torch.full((1, 1, 3, 4, 4), 0.5)
    halves = set()
    for seed in range(8):
        dark = perturb(
            images,
            "perturbations:half_black",
            np.random.default_rng(seed),
            image_mean=[0.0] * 3,
            image_std=[1.0] * 3,
            patch_size=2,
        )
        assert dark.unique().tolist() == [0.0, 0.5]
        halves.add(tuple(dark[0, 0, 0, 0].tolist()))
    assert halves == {(0.0, 0.0, 0.5, 0.5), (0.5, 0.5, 0.0, 0.0)}


def test_the_engine_samples_the_same(files: Path, policy: Policy, samples: list[Sample]) -> None:
    sampling = Sampling(1.0, 1.0, 0, 16, 2, seed=0)
    asked = (samples[:3], [(1, i) for i in range(3)], sampling)
    own, ours = (engine.generate(*asked) for engine in (loaded("engines").OneByOne(policy), HuggingFaceEngine(policy)))
    assert [[r.ids for r in group] for group in own] == [[r.ids for r in group] for group in ours]


def test_an_objective_around_a_built_in_one(files: Path) -> None:
    batch = random_batch()
    found = find_objective("halved:halved")(batch, UpdateConfig(objective="halved:halved"))
    ours = find_objective("pgpo")(batch, UpdateConfig(objective="pgpo", variant="code"))
    share_B1 = torch.where(batch.truncated_B, 0.5, 1.0)[:, None]
    assert 0 < batch.truncated_B.sum() < len(share_B1)
    assert torch.equal(found.token_weight_BT, ours.token_weight_BT * share_B1)


def test_the_benchmark_is_read(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (named,) = (one for one in USED if one.startswith("eval.benchmarks"))
    monkeypatch.setenv("VPPO_RUNS", str(files / "runs"))
    (files / "a.png").write_bytes(png(3))
    rows = [
        {"id": str(i), "question": "How many?", "image": "a.png", "answer": a, "level": "1"}
        for i, a in enumerate(("3", ""))
    ]
    (files / "shapes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = settings.load(None, [named, f"eval.data_dir={files}"])
    gather(config, ["shapes"], Silent())
    (question,) = read_questions(questions_step("shapes", config))
    assert (question.answer, groups(question)) == ("3", {"level": "1"})
