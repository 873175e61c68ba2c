"""The measurement of a large model, made here with the tiny one."""

import json

import pytest
import torch

from pipelines.bench.scale import main, write_model
from pipelines.capacity.lookup import find_shape
from pipelines.capacity.work import TEXT_TOKENS
from pipelines.config.schema import ModelConfig
from pipelines.disk.records import ROLLOUTS, Rollout, SampleTable, read_rows
from pipelines.model.load import load_policy


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    out = tmp_path_factory.mktemp("benchmark")
    main(
        [
            "--out",
            str(out),
            "--shape",
            "tiny",
            "--prompts",
            "2",
            "--samples",
            "4",
            "--repeats",
            "1",
            "--image-tokens",
            "64",
            "--response-tokens",
            "16",
        ]
    )
    return out, json.loads((out / "scale_benchmark.json").read_text())


def test_every_stage_is_measured(measured):
    _, found = measured
    assert list(found["stages"]) == ["rollout", "score", "update"]
    for row in found["stages"].values():
        assert row["seconds"] > 0
        assert row["tokens"] > 0
        assert row["bytes_predicted"] > 0
        if not torch.cuda.is_available():
            assert row["bytes"] is row["seconds_predicted"] is None
    assert found["config"]["rollout"]["samples_per_prompt"] == 4
    assert found["config"]["rollout"]["top_p"] == 0.99  # the paper's, which sorts the vocabulary
    assert found["config"]["score"]["looks"] == 0  # each would be scored twice
    assert "--shape tiny" in found["command"]


def test_steps_are_written_as_they_end(measured):
    out, _ = measured
    rows = json.loads((out / "scale_benchmark_steps.json").read_text())
    assert [(row["stage"], row["step"]) for row in rows] == [
        ("prepare", 0),
        ("rollout", 1),
        ("score", 1),
        ("update", 1),
        ("rollout", 2),
        ("score", 2),
        ("update", 2),
    ]
    assert all(row["seconds"] > 0 for row in rows)


def test_what_is_run_is_what_is_predicted(measured, configure):
    out, found = measured
    (table,) = out.glob("run-*/prepare-*/train.parquet")
    samples = SampleTable(table)
    policy = load_policy(configure("data.min_pixels=50176", "data.max_pixels=50176"))
    (file,) = out.glob(f"run-*/steps/0002/rollout-*/{ROLLOUTS}")
    groups = read_rows(file, Rollout)
    assert len(groups) == 2
    for group in groups:
        prompt = policy.encoder.encode(samples.by_id(group.sample_id))
        images = int((prompt["input_ids"] == policy.model.config.image_token_id).sum())
        assert images == found["tokens"]["image"] == 64
        assert len(prompt["input_ids"]) == pytest.approx(64 + TEXT_TOKENS, abs=8)
        assert sum(group.reward) == 2
    # Two groups of four, both views; then forward, recomputed, and backward of the same.
    stages = found["stages"]
    assert stages["update"]["flops"] == pytest.approx(2 * stages["score"]["flops"], rel=0.01)


def test_a_model_of_a_shape(tmp_path, configure):
    shape = find_shape(ModelConfig())
    write_model(shape, tmp_path)
    assert find_shape(ModelConfig(path=str(tmp_path))).parameters == shape.parameters
    model = load_policy(configure(f"model.path={tmp_path}")).model
    assert sum(p.numel() for p in model.parameters()) == shape.parameters


def test_a_large_model_needs_a_gpu(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        main(["--out", str(tmp_path)])
    assert ended.value.code == 2
    assert "--shape tiny" in capsys.readouterr().err
