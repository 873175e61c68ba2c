"""The commands on real runs of the tiny model: train, look, change one's mind, evaluate, export."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import SMALL, Command, contents, copy_of, given, stamps, start, vppo
from PIL import Image, ImageDraw

from pipelines.config.settings import shipped_config
from pipelines.disk.records import ADVANTAGES, Advantages, Scored, read_rows

Finished = tuple[Path, Command]


@pytest.fixture
def run(finished: Finished, tmp_path: Path) -> Path:
    """A copy of the finished run, to be changed."""
    return copy_of(finished[0], tmp_path)


def rows_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def planned(command: Command) -> list[tuple[str, str, str, str]]:
    assert command.code == 0, command.err
    return [(r["step"], r["steps"], r["status"], r["reason"]) for r in command.json["plan"]]


# -- a whole run -----------------------------------------------------------------------------------


def test_a_run_has_everything_on_disk(finished: Finished) -> None:
    run, _ = finished
    for step in (1, 2, 3):
        for stage in ("rollout", "score", "update"):
            (folder,) = (run / "steps" / f"{step:04d}").glob(f"{stage}-*")
            manifest = json.loads((folder / "manifest.json").read_text())
            assert (manifest["step"], manifest["index"]) == (stage, step)
            assert manifest["metrics"]
    assert [row["step"] for row in rows_of(run)] == [1, 2, 3]
    for name in ("rollout/accuracy", "score/perception_mean", "update/grad_norm"):
        assert all(name in row for row in rows_of(run))
    # every=2: after update 2, and after the last
    assert {p.name for p in (run / "checkpoints").iterdir()} == {"0002", "0003"}
    assert len(list(run.glob("eval/000[03]/glyphs-*/results.json"))) == 2
    assert len(list(run.glob("eval/000[23]/validation-*/results.json"))) == 2
    assert list(run.rglob("*.partial")) == []


def test_a_run_reports_in_plain_lines_when_piped(finished: Finished) -> None:
    _, command = finished
    assert "\x1b" not in command.out + command.err
    assert "\r" not in command.out
    lines = command.out.splitlines()
    assert lines[0].startswith("run ")
    assert sum(line.startswith("step ") for line in lines) == 3
    assert command.err == ""
    (before,) = (line for line in lines if "starting model" in line)
    (after,) = (line for line in lines if "after 3 steps (vppo)" in line)
    assert "[" in before
    assert "points [" in after
    assert after.endswith("]")  # whole, however narrow the pipe is taken to be
    assert any(line.startswith("next ") for line in lines)


def test_the_same_command_again_does_nothing_and_says_why(run: Path) -> None:
    before = contents(run)
    again = vppo("train", "--run", "small", *given(*SMALL), runs=run.parent).succeeded()
    assert "nothing to do: all 3 steps are on disk with these settings" in again.out
    assert contents(run) == before
    quiet = vppo("train", "--run", "small", "--json", runs=run.parent).succeeded()
    assert quiet.json["made"] == 0
    start_row, end_row = quiet.json["evaluations"][0]["results"]
    assert (start_row["step"], end_row["step"]) == (0, 3)
    assert "difference_interval" in end_row


def test_status_of_a_finished_run(run: Path) -> None:
    told = vppo("status", "--json", runs=run.parent).succeeded().json
    assert (told["run"], told["state"], told["steps_done"], told["steps"]) == ("small", "finished", 3, 3)
    assert told["checkpoints"] == [2, 3]
    assert told["metrics"] == rows_of(run)[-1]
    text = vppo("status", "--run", "small", runs=run.parent).succeeded().out
    assert "3 of 3 done" in text
    first, *_, last = (row["score/dependency_mean"] for row in rows_of(run))
    assert re.search(rf"^dependency .*  {first:.3f} -> {last:.3f}$", text, re.M)
    assert "\x1b" not in text


# -- changing one's mind ---------------------------------------------------------------------------


def test_plan_of_a_finished_run_keeps_everything(run: Path) -> None:
    rows = planned(vppo("plan", "--json", runs=run.parent))
    assert {status for _, _, status, _ in rows} == {"keep"}
    assert {name for name, _, _, _ in rows} == {
        "prepare",
        "rollout",
        "score",
        "update",
        "checkpoint",
        "validation",
        "glyphs",
    }
    assert "nothing: every step is on disk" in vppo("plan", runs=run.parent).succeeded().out


def test_plan_names_exactly_what_a_setting_makes_stale_and_why(run: Path) -> None:
    before = contents(run)
    rows = planned(vppo("plan", "--set", "score.keep_fraction=0.2", "--json", runs=run.parent))
    of = {(name, steps): (status, reason) for name, steps, status, reason in rows}
    own = "score.keep_fraction 0.4 -> 0.2"
    # The first rollout was sampled by the starting policy, which did not change; later ones were not.
    assert of == {
        ("prepare", ""): ("keep", "same key"),
        ("rollout", "1"): ("keep", "same key"),
        ("score", "1"): ("stale", own),
        ("update", "1"): ("stale", "its input changed (score)"),
        ("rollout", "2"): ("stale", "its input changed (policy)"),
        ("score", "2..3"): ("stale", f"{own}; its input changed (rollout)"),
        ("update", "2..3"): ("stale", "its input changed (rollout, score, policy)"),
        ("rollout", "3"): ("stale", "its input changed (policy, previous rollout)"),
        ("checkpoint", "2..3"): ("stale", "its input changed (policy)"),
        ("validation", "2..3"): ("stale", "its input changed (policy)"),
        ("glyphs", "0"): ("keep", "same key"),
        ("glyphs", "3"): ("stale", "its input changed (policy)"),
    }
    text = vppo("plan", "--set", "score.keep_fraction=0.2", runs=run.parent).succeeded().out
    assert "would run  13 stages, of 3 training steps" in text
    assert contents(run) == before


def test_saved_rollouts_are_scored_another_way_without_generating(run: Path) -> None:
    config = (run / "config.yaml").read_text()
    rollouts, scores = stamps(run, "steps/*/rollout-*/*"), stamps(run, "steps/*/score-*/*")
    command = vppo("train", "--stage", "score", "--set", "score.estimator=k3", runs=run.parent)
    assert "score 1..3" in command.succeeded().out
    assert "vppo plan --run small --set score.estimator=k3" in command.out
    assert stamps(run, "steps/*/rollout-*/*") == rollouts
    after = stamps(run, "steps/*/score-*/*")
    assert {name: after[name] for name in scores} == scores  # the old ones are left alone
    assert len({Path(name).parent for name in after}) == 6  # two of each of three steps
    assert (run / "config.yaml").read_text() == config
    assert {row[2] for row in planned(vppo("plan", "--json", runs=run.parent))} == {"keep"}

    old, new = (
        read_rows(next(run.glob("steps/0001/score-*")).with_name(name) / "scores.parquet", Scored)
        for name in sorted(
            (p.name for p in run.glob("steps/0001/score-*")),
            key=lambda name: f"steps/0001/{name}/scores.parquet" not in scores,
        )
    )
    assert [row.old_logp for row in new] == [row.old_logp for row in old]
    assert [row.perception for row in new] != [row.perception for row in old]

    (variant,) = vppo("plan", "--json", runs=run.parent).json["also_on_disk"]
    assert (variant["step"], variant["steps"]) == ("score", "1..3")
    assert variant["settings"] == "score.estimator k3"
    for stale in ("update 1..3", "rollout 2..3", "score 2..3", "glyphs 3"):
        assert stale in variant["stale"]
    text = vppo("plan", runs=run.parent).out
    assert "score 1..3 also with score.estimator k3" in text
    # Going on so keeps rollout 1 and score 1, and what never depended on a score.
    rows = planned(vppo("plan", "--set", "score.estimator=k3", "--json", runs=run.parent))
    kept = {(name, steps) for name, steps, status, _ in rows if status == "keep"}
    assert kept == {("prepare", ""), ("rollout", "1"), ("score", "1"), ("glyphs", "0")}

    again = vppo("train", "--stage", "score", "--set", "score.estimator=k3", runs=run.parent)
    assert "nothing to do" in again.succeeded().out


def test_prepared_data_that_are_there_are_whole_or_made_again_as_told(run: Path) -> None:
    (data,) = run.glob("prepare-*/train.parquet")
    again = vppo("prepare", "--run", "small", runs=run.parent).succeeded()
    assert "nothing to do: prepare is on disk" in again.out
    assert "(vppo train --stage prepare --force makes it again)" in again.out.replace("\n", " ")
    whole = data.read_bytes()
    data.write_bytes(whole[:99] + bytes([whole[99] ^ 1]) + whole[100:])
    damaged = vppo("prepare", "--run", "small", runs=run.parent)
    assert (damaged.code, "its content changed since it was written" in damaged.err) == (2, True)
    vppo("train", "--run", "small", "--stage", "prepare", "--force", runs=run.parent).succeeded()
    assert data.read_bytes() == whole


@pytest.mark.parametrize("stage", ["score", "update"])
def test_a_forced_stage_makes_just_those_steps_again_and_alike(stage: str, run: Path) -> None:
    before, manifests = contents(run), stamps(run, f"steps/*/{stage}-*/manifest.json")
    vppo("train", "--stage", stage, "--steps", "2..3", "--force", runs=run.parent).succeeded()
    assert contents(run) == before  # bit for bit, metrics.jsonl too
    after = stamps(run, f"steps/*/{stage}-*/manifest.json")
    assert [after[name] == manifests[name] for name in sorted(manifests)] == [True, False, False]


def test_a_longer_run_keeps_what_there_is_and_stops_where_told(run: Path) -> None:
    before = stamps(run, "steps/000[123]/*/*")
    longer = vppo("train", "--run", "small", "--set", "run.steps=5", "--until", "4", runs=run.parent)
    assert "step   4/5" in longer.succeeded().out
    assert "step   3/5" not in longer.out
    assert stamps(run, "steps/000[123]/*/*") == before
    assert [row["step"] for row in rows_of(run)] == [1, 2, 3, 4]
    assert not (run / "steps" / "0005").exists()
    assert not (run / "eval" / "0005").exists()
    rows = planned(vppo("plan", "--json", runs=run.parent))
    assert {(name, steps) for name, steps, status, _ in rows if status == "run"} == {
        ("rollout", "5"),
        ("score", "5"),
        ("update", "5"),
        ("checkpoint", "5"),
        ("validation", "5"),
        ("glyphs", "5"),
    }


# dapo and grpo look at every token with advantages as they are; tas shapes, tgf filters.
@pytest.mark.parametrize(
    ("objective", "filters", "shapes"),
    [("dapo", False, False), ("grpo", False, False), ("vppo-tas", False, True), ("vppo-tgf", True, False)],
)
def test_every_objective_updates_from_the_same_scores(objective: str, filters: bool, shapes: bool, run: Path) -> None:
    before = stamps(run, "steps/*/*/*")
    vppo(
        "train", "--stage", "update", "--steps", "1", "--set", f"update.objective={objective}", runs=run.parent
    ).succeeded()
    added = run.glob("steps/0001/update-*/manifest.json")
    (new,) = (file.parent for file in added if str(file.relative_to(run)) not in before)
    manifest = json.loads((new / "manifest.json").read_text())
    assert manifest["settings"]["update.objective"] == objective
    metrics = manifest["metrics"]
    assert (metrics["trained_share"] < 0.6) == filters
    # alpha is computed as (alpha A) / A in float32, so 1 up to rounding without shaping
    assert (metrics["alpha_min"] < 0.95) == shapes
    used = read_rows(new / ADVANTAGES, Advantages)
    assert any(row.advantage != row.shaped_advantage for row in used) == shapes
    assert metrics["grad_norm"] > 0
    assert {name: old for name, old in stamps(run, "steps/*/*/*").items() if name in before} == before


# -- evaluation, export, doctor --------------------------------------------------------------------


def test_eval_of_checkpoints(run: Path) -> None:
    options = ("--samples", "3", "--limit", "5", "--json")
    first = vppo("eval", "--checkpoint", "0", *options, runs=run.parent).succeeded().json
    (row,) = first["evaluations"]
    assert (row["benchmark"], row["questions"], row["samples"]) == ("glyphs", 5, 3)
    assert (first["step"], first["model"]) == (0, "starting model of small")
    assert sum(row["outcomes"].values()) == 15
    last = vppo("eval", *options, runs=run.parent).succeeded().json
    assert (last["step"], last["model"]) == (3, "checkpoint 3 of small")
    again = {name: at for name, at in stamps(run, "eval/*/*/*").items() if ".lock" not in name}
    vppo("eval", *options, runs=run.parent).succeeded()
    assert stamps(run, "eval/*/*/*").items() >= again.items()
    assert {row[2] for row in planned(vppo("plan", "--json", runs=run.parent))} == {"keep"}


def test_eval_on_the_validation_questions_counts_them(run: Path) -> None:
    told = vppo("eval", "--benchmarks", "validation", "--json", runs=run.parent).succeeded().json
    (row,) = told["evaluations"]
    assert (row["questions"], row["samples"]) == (8, 2)
    assert sum(row["outcomes"].values()) == 16


def test_eval_of_the_runs_own_settings_is_the_one_on_disk(run: Path) -> None:
    before = contents(run)
    text = vppo("eval", "--checkpoint", "last", "--samples", "2", runs=run.parent).succeeded().out
    assert "16 x 2" in text
    assert contents(run) == before


def test_a_model_folder_is_evaluated_alone(finished: Finished, tmp_path: Path) -> None:
    """The starting model by its path gives the accuracy it has as the run's baseline."""
    small = [s for s in SMALL if s.startswith(("data.", "eval."))]
    command = vppo(
        "eval", "--model", shipped_config("tiny_model"), "--json", *given(*small), runs=tmp_path / "runs"
    ).succeeded()
    (result,) = command.json["evaluations"]
    (baseline,) = finished[0].glob("eval/0000/glyphs-*/results.json")
    assert result["accuracy"] == json.loads(baseline.read_text())["accuracy"]


def test_an_exported_checkpoint_loads_with_plain_transformers(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "exported"
    told = vppo("export", out, "--json", runs=run.parent).succeeded().json
    assert told == {"run": "small", "step": 3, "out": str(out)}
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(out)
    start_model = AutoModelForImageTextToText.from_pretrained(shipped_config("tiny_model"))
    assert type(model).__name__ == "Qwen2_5_VLForConditionalGeneration"
    moved = [not torch.equal(a, b) for a, b in zip(model.parameters(), start_model.parameters())]  # noqa: B905
    assert any(moved)  # it learned something
    processor = AutoProcessor.from_pretrained(out)
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "sum?"}]}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    inputs = processor(text=[text], images=[Image.new("RGB", (56, 56))], return_tensors="pt")
    assert model.generate(**inputs, max_new_tokens=2).shape[1] > inputs["input_ids"].shape[1]

    best = vppo("export", tmp_path / "best", "--checkpoint", "2", runs=run.parent).succeeded()
    assert "checkpoint 2 of small" in best.out
    refused = vppo("export", out, runs=run.parent)
    assert refused.code == 2
    assert "is not an empty folder" in refused.err


def test_status_on_a_terminal_that_knows_ascii_only(run: Path) -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "vppo_cli", "status"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "VPPO_RUNS": str(run.parent), "PYTHONIOENCODING": "ascii"},
    )
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "accuracy   ???" in shown.stdout


def test_doctor_finds_this_environment_fit(tmp_path: Path) -> None:
    told = vppo("doctor", "--json", runs=tmp_path / "runs").succeeded().json
    assert told["ok"]
    states = {finding["name"]: finding["state"] for finding in told["findings"]}
    assert states["torch"] == states["tiny model"] == states["mathruler"] == states["runs"] == "ok"
    assert states["AutoProcessor"] == "ok"  # in an interpreter of its own, as export advises
    found = {finding["name"]: finding["found"] for finding in told["findings"]}
    assert "no network, writing, fork, exec" in found["grader walls"]  # tried, here, by a worker


# -- stopped, watched, continued -------------------------------------------------------------------


def test_ctrl_c_stops_cleanly_and_the_run_goes_on_as_if_nothing_happened(finished: Finished, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "small"
    training = start("train", "--run", "small", *given(*SMALL), runs=run.parent)
    while training.running() and not ((run / "metrics.jsonl").is_file() and rows_of(run)):
        time.sleep(0.01)
    training.signal(signal.SIGSTOP)  # hold it, so that what it is doing stays true while we look
    told = vppo("status", "--json", runs=run.parent).succeeded().json
    assert (told["state"], told["pid"]) == ("running", training.pid)
    assert 1 <= told["steps_done"] < 3
    busy = vppo("train", "--run", "small", runs=run.parent)
    assert busy.code == 2
    assert f"is in use by process {training.pid}" in busy.err
    training.signal(signal.SIGINT)
    training.signal(signal.SIGCONT)
    assert training.code == 130
    assert "everything committed so far is kept" in training.err
    assert "vppo train --run small" in training.err
    assert "Traceback" not in training.err

    told = vppo("status", "--json", runs=run.parent).succeeded().json
    assert told["state"] == "stopped"
    assert "vppo train --run small" in vppo("status", runs=run.parent).out
    rollouts = stamps(run, "steps/*/rollout-*/*")
    vppo("train", "--run", "small", runs=run.parent).succeeded()
    after = stamps(run, "steps/*/rollout-*/*")
    assert {name: after[name] for name in rollouts} == rollouts
    assert contents(run) == contents(finished[0])


# -- one's own data, config and reward -------------------------------------------------------------

REWARD = """
def tokens_and_answer(responses, samples):
    return [min(len(response), 100) / 100 + ("box" in response) for response in responses]
"""

CONFIG = """
base: tiny.yaml
name: mine
data:
  source: questions.jsonl
  columns: {problem: question, images: picture, answer: gold}
  validation_count: 2
  max_prompt_tokens: 256
rollout: {prompts_per_step: 4, samples_per_prompt: 4, dynamic_sampling: false}
reward: {function: "my_rewards:tokens_and_answer"}
update: {objective: grpo, batch_prompts: 2, micro_batch_prompts: 2}
checkpoint: {validation_samples: 0}  # and yet evaluated at the end
eval: {benchmarks: [validation], samples: 2}
run: {steps: 1}
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Command]:
    """A run on one's own pictures, with one's own config and reward: the folder, and the command."""
    folder = tmp_path_factory.mktemp("own")
    lines = []
    for number in range(8):
        picture = Image.new("RGB", (56, 56))
        ImageDraw.Draw(picture).text((20, 20), str(number), fill="white")
        picture.save(folder / f"{number}.png")
        lines.append({"question": "<image>What digit?", "picture": f"{number}.png", "gold": str(number)})
    (folder / "7.png").write_bytes(b"not a picture")
    (folder / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "my_rewards.py").write_text(REWARD)
    (folder / "mine.yaml").write_text(CONFIG)
    command = vppo("train", "--config", "mine.yaml", runs=folder / "runs", cwd=folder)
    return folder, command.succeeded()


def test_own_data_are_screened_and_trained_on(own: tuple[Path, Command]) -> None:
    folder, command = own
    (run,) = (folder / "runs").iterdir()
    assert run.name.startswith("mine-")
    assert "train 5  validation 2  1 left out (1 unreadable image)" in command.out
    (rejected,) = next(run.glob("prepare-*/rejected.jsonl")).read_text().splitlines()
    assert json.loads(rejected)["row"] == 7
    assert "image 1, 7.png: 13 bytes" in json.loads(rejected)["detail"]
    assert "image 1, 7.png: 13 bytes" in command.out
    assert "after 1 steps (grpo)" in command.out or "after 1 step (grpo)" in command.out


def test_an_own_reward_is_what_the_policy_is_paid(own: tuple[Path, Command]) -> None:
    (run,) = (own[0] / "runs").iterdir()
    (row,) = rows_of(run)
    # length/100 (at most 1), plus 1 for a box: neither 0 nor 1 as the outcome's would be
    assert 0 < row["rollout/reward"] <= 2
    assert row["rollout/reward"] not in (0.0, 1.0)
    assert row["update/grad_norm"] > 0


def test_a_changed_data_file_makes_the_run_stale(own: tuple[Path, Command], tmp_path: Path) -> None:
    folder = shutil.copytree(own[0], tmp_path / "copy")
    with (folder / "questions.jsonl").open("a") as file:
        file.write('{"question": "<image>?", "picture": "0.png", "gold": "0"}\n')
    (run,) = (folder / "runs").iterdir()
    rows = planned(vppo("plan", "--run", run.name, "--json", runs=run.parent, cwd=folder))
    assert rows[0][:3] == ("prepare", "", "stale")
    assert "data.source content" in rows[0][3]
    for place, edited in ((folder, ["data.source"]), (tmp_path, [])):  # from elsewhere the path leads nowhere
        seen = vppo("status", "--run", run.name, "--json", runs=run.parent, cwd=place).succeeded().json
        assert (seen["steps_done"], seen["checkpoints"], seen["edited"]) == (1, [1], edited)
    with (folder / "my_rewards.py").open("a") as file:
        file.write("# another\n")
    told = vppo("status", "--run", run.name, runs=run.parent, cwd=folder).succeeded().out
    assert f"made: my_rewards:tokens_and_answer, data.source; vppo plan --run {run.name} says" in told
