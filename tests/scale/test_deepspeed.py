"""DeepSpeed beside ``torch`` for real: gloo ranks, ZeRO 1 to 3, checkpoints between them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import ONE_THREAD, given
from objectives_proof import MOST, cases

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
GROUPS = given(
    "data.glyphs.train=24",
    "data.glyphs.validation=2",
    "data.glyphs.test=2",
    "rollout.prompts_per_step=5",
    "rollout.samples_per_prompt=4",
    "run.steps=1",
    "run.threads=1",
)
"""Five groups of responses of uneven length: they divide by no number of ranks."""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """One step's questions, rollouts and scores."""
    runs = tmp_path_factory.mktemp("updates")
    env = {**os.environ, **ONE_THREAD, "VPPO_RUNS": str(runs), "PYTHONPATH": str(ROOT)}
    for stage in ("prepare", "rollout", "score"):
        command = ["-m", "vppo_cli", "train", "--run", "run", "--stage", stage, *GROUPS]
        subprocess.run([sys.executable, *command], env=env, check=True, timeout=300)
    folder = tmp_path_factory.mktemp("data")
    for pattern in ("prepare-*/train", "steps/0001/rollout-*/rollouts", "steps/0001/score-*/scores"):
        (file,) = (runs / "run").glob(f"{pattern}.parquet")
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def updates(data: Path, world: int, *stages: int, script: str = "updates.py") -> list[dict]:
    """What a script found on this many ranks."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
    done = subprocess.run(
        [sys.executable, *torchrun, str(HERE / script), str(data), *map(str, stages)],
        env={**os.environ, **ONE_THREAD, "DS_ACCELERATOR": "cpu", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'tools'}"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.mark.parametrize(("world", "stages"), [(1, (1, 2, 3)), (2, (1, 2, 3)), (4, (2,))])
def test_the_update_does_not_depend_on_ranks_or_stage(data, world, stages):
    *cases, options = updates(data, world, *stages)
    assert [case["stage"] for case in cases] == list(stages)
    for case in cases:
        assert case["world"] == world
        assert case["moved"] > 1e-4  # three steps of 1e-4 each
        assert case["gap"] < 1e-5
        assert case["resumed"] < 1e-5
        assert case["on_torch"] < 1e-5
        assert case["metrics"] < 1e-6
        assert case["decayed"] < 1e-5
        assert case["at_once"] <= 1  # of all moments, on each rank
    assert options["vision_weights"] > 0
    assert options["vision_moved"] == 0
    assert options["language_moved"] > 1e-4
    assert 0 < options["bfloat16_gap"] < 6.1e-4  # AdamW moves a weight by 1e-4 a step at most
    assert options["adapters_moved"] > 1e-5
    assert options["adapters_gap"] < 1e-5
    assert options["bfloat16_stages_gap"] < options["bfloat16_moved"] / 20
    assert options["bfloat16_norm"] == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(("world", "stages"), [(2, (1, 2, 3)), (4, (2, 3))])
def test_questions_with_and_without_images_are_trained_and_scored_at_once(data, world, stages):
    found = updates(data, world, *stages, script="mixed.py")
    assert len(found) == 4 * len(stages)
    assert max(case["gap"] for case in found) < 1e-5, found


@pytest.mark.parametrize(("world", "stages"), [(1, (2,)), (2, (2, 3))])
def test_the_gradient_of_every_objective_does_not_depend_on_ranks_or_stage(tmp_path, world, stages):
    found = updates(tmp_path, world, *stages, script="objectives.py")
    assert {case["case"] for case in found} == set(map(str, cases()))
    assert len(found) == len(cases()) * len(stages)
    assert max(case["gap"] for case in found) <= MOST, found


@pytest.mark.parametrize("world", [1, 2])
def test_published_updates_do_not_depend_on_ranks_or_stage(data, world):
    """Shaping by mini-batches and micro-batches, decay of every weight, a step that is left out."""
    found = updates(data, world, 1, 2, 3, script="published.py")
    assert [case["stage"] for case in found] == [1, 2, 3] * 2
    for case in found:
        assert case["world"] == world
        assert case["moved"] > 1e-4
        assert case["gap"] < case["close"]
        assert case["half"] or case["metrics"] < 1e-6
        assert case["skipped"] == {"updates_skipped": 1}
        assert case["skip_moved"] == 0
        assert case["after_skip"] < case["close"]
        assert case["sizes_matter"] > 1e-6


def test_two_ranks_save_and_one_resumes(data):
    """The checkpoint of two ranks under ZeRO-3, in a process of its own: under ZeRO-2, and torch."""
    saved = data / "saved-2-3"
    if not saved.is_dir():
        updates(data, 2, 3)
    found = subprocess.run(
        [sys.executable, "-c", RESUME, str(data), str(saved)],
        cwd=HERE,
        capture_output=True,
        text=True,
        env={**os.environ, **ONE_THREAD, "DS_ACCELERATOR": "cpu", "PYTHONPATH": f"{ROOT}:{HERE}"},
    )
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout.splitlines()[-1]) < 1e-5


RESUME = """
import json, sys
from pathlib import Path
from updates import Case, DeepSpeedTrainer, TorchTrainer, gap
case = Case(Path(sys.argv[1]))
whole, _ = case.run(TorchTrainer)
resumed, _ = case.run(DeepSpeedTrainer, "update.zero_stage=2", updates=1, load=Path(sys.argv[2]))
print(json.dumps(gap(resumed, whole)))
"""
