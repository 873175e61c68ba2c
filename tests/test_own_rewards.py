"""A reward of one's own in one file outside the package: graded outcomes, a further column, named lists, their keys."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from statistics import fmean

import numpy as np
import pyarrow.parquet as pq
import pytest
from command_line import TINY, back_to, contents, copy_of, given, vppo

from evals.journal import read_journal
from pipelines import checkpoints, runs
from pipelines.chain import Chain
from pipelines.disk.records import ROLLOUTS, SURPLUS, Rollout, SampleTable, read_rows
from pipelines.tracking.names import metrics_of
from vppo import open_run
from vppo_cli.report import collect
from vppo_cli.report.source import RunSource
from vppo_cli.screen.display import changed

REWARDS = """
def words(response):
    return len(response.split()) / 100

def mine(responses, samples, outcomes):
    level = [sample.details()["level"] for sample in samples]
    right = [float(outcome == "correct") for outcome in outcomes]
    images = [float(bool(sample.images)) for sample in samples]
    even = [float(i % 4 == 0 and int(sample.id[-1]) % 2 == 0) for i, sample in enumerate(samples)]
    length = [-words(response) for response in responses]
    reward = [a + b for a, b in zip(right, length)]
    return {"reward": reward, "level": level, "length": length, "even": even, "images": images}

def broken(responses, samples):
    return {"reward": [0.0] * len(responses), "format": [1.0] * len(responses[1:]) + [float("nan")]}
"""

RUN = (
    *TINY,
    "data.glyphs.train=16",
    "rollout.dynamic_sampling=true",
    "rollout.filter_key=even",
    "reward.function=own_rewards:mine",
    "checkpoint.every=1",
    "checkpoint.keep_last=2",
    "checkpoint.validation_samples=2",
    "checkpoint.best_key=length",
    "eval.samples=2",
    "run.steps=2",
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished run (not to be changed: copy it), and what its command printed."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_rewards.py").write_text(REWARDS)
    command = vppo("train", "--run", "mine", *given(*RUN), runs=folder / "runs").succeeded()
    return folder / "runs" / "mine", command.out


@pytest.fixture
def run(made: tuple[Path, str], tmp_path: Path) -> Path:
    (tmp_path / "own_rewards.py").write_text(REWARDS)
    return copy_of(made[0], tmp_path)


def chain_of(run: Path) -> Chain:
    return Chain(runs.read_config(run), run)


def test_named_lists_are_stored_and_logged_and_choose_the_groups(made: tuple[Path, str]) -> None:
    run, out = made
    chain = chain_of(run)
    samples = SampleTable(chain.prepare.path / "train.parquet")
    carried = 0
    for step in (1, 2):
        used, surplus = (read_rows(chain.rollout(step).path / name, Rollout) for name in (ROLLOUTS, SURPLUS))
        carried += len(surplus)
        for group in [*used, *surplus]:
            assert int(group.sample_id[-1]) % 2 == 0
            assert group.named["even"] == [1, 0, 0, 0]
            assert group.named["level"] == [samples.by_id(group.sample_id).details()["level"]] * 4
            assert group.named["images"] == [1] * 4
            paid = np.float32(group.named["length"]) + [outcome == "correct" for outcome in group.outcome]
            assert group.reward == pytest.approx(paid.tolist(), abs=1e-6)
    assert carried
    for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()):
        assert {f"rollout/reward/{name}" for name in ("level", "length", "even", "images")} <= row.keys()
        assert row["rollout/reward"] == pytest.approx(row["rollout/accuracy"] + row["rollout/reward/length"])
        if row["rollout/groups_sampled"]:
            assert row["rollout/reward/even"] == pytest.approx(row["rollout/informative_share"] / 4)
    (line,) = [line for line in out.splitlines() if line.startswith("step   1/2")]
    assert " length -0." in line
    assert out.count("  images 1.000  ") >= 4  # two steps, two validations


def test_evaluations_have_them_and_choose_the_best(made: tuple[Path, str]) -> None:
    run, out = made
    chain = chain_of(run)
    means = {}
    for step in (1, 2):
        cell = chain.cell(step, "validation")
        results = json.loads((cell.results.path / "results.json").read_text())
        entries = [entry for several in read_journal(cell.journal).values() for entry in several]
        lengths = [-len(entry.response.split()) / 100 for entry in entries]
        found = results["rewards"]["length"]
        assert results["asked"]["hashes"].keys() == results["right"].keys()  # other questions are not compared
        assert found["value"] == pytest.approx(fmean(lengths))
        assert found["interval"][0] <= found["value"] <= found["interval"][1]
        assert results["rewards"]["reward"]["value"] == pytest.approx(results["accuracy"] + found["value"])
        answers = pq.read_table(cell.results.path / "answers.parquet")
        assert answers["reward/length"].to_pylist() == pytest.approx(lengths)
        assert answers["reward/images"].to_pylist() == [1] * 4
        assert metrics_of(chain, cell.results)["eval/validation/reward/length"] == found["value"]
        means[step] = found["value"]
    assert checkpoints.best(chain, [1, 2]) == sorted(means, key=lambda step: (-means[step], step))
    table = out[out.index("eval       glyphs") :]
    assert [line.split()[0] for line in table.splitlines()[1:7]] == [
        "starting",
        "reward",
        "even",
        "images",
        *("length", "level"),
    ]


def test_what_looks_at_a_run_shows_them(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    best = checkpoints.best(chain_of(run), [1, 2])[0]
    status = vppo("status", "--run", "mine", runs=run.parent).succeeded().out
    assert f"{best} (best length)" in status
    assert any(line.endswith("  length") and " -> -0." in line for line in status.splitlines())
    found = vppo("status", "--run", "mine", "--json", runs=run.parent).succeeded().json
    assert (found["best"], found["best_key"]) == (best, "length")
    measured = ("--benchmarks", "validation", "--checkpoint", "0")
    told = vppo("eval", "--run", "mine", *measured, runs=run.parent).succeeded().out
    assert any(line.split() == ["rewards", "reward", "even", "images", "length", "level"] for line in told.splitlines())

    monkeypatch.setenv("VPPO_RUNS", str(run.parent))
    page = collect([RunSource.open("mine")])
    assert {*page["evaluations"]["own"][0]["rewards"]} == {"reward", "level", "length", "even", "images"}
    charts = {chart["title"]: chart for group in page["curves"]["groups"] for chart in group["charts"]}
    assert {"Reward, length", "Validation reward", "Validation reward, length"} <= charts.keys()
    assert charts["Informative groups"]["about"] == "not all of the same even (rollout.filter_key)"
    validated = charts["Validation reward, length"]
    assert validated["about"] == "of the starting model and the checkpoints, with 95 % intervals"
    assert validated["series"][0]["x"] == [0, 1, 2]
    reports = [run / "eval" / step for step in ("0000", "0002")]
    compared = vppo("compare", *reports, "--json", runs=run.parent).json
    (change,) = [change for change in compared["changes"] if change["benchmark"] == "glyphs"]
    paid = change["rewards"]["length"]
    stored = [json.loads(next(one.glob("glyphs-*/results.json")).read_text())["rewards"] for one in reports]
    assert [paid["before"], paid["after"]] == pytest.approx([one["length"]["value"] for one in stored], abs=1e-6)
    assert paid["change"]["low"] <= paid["change"]["mean"] <= paid["change"]["high"]
    shown = vppo("compare", *reports, runs=run.parent).out
    assert f" {paid['before']:.3f} " in next(line for line in shown.splitlines() if line.split()[1:2] == ["length"])
    (own,) = [row for row in page["evaluations"]["own"] if row["difference"] is not None]
    drawn = own["rewards"]["length"]
    ends = [drawn["difference"], *drawn["difference_interval"]]
    assert ends == [paid["change"][end] for end in ("mean", "low", "high")]
    line = [line for line in status.splitlines() if line.split()[:1] == ["length"]][-1]
    assert line.endswith(changed(drawn, drawn["places"]))
    assert changed({"difference": 0.5, "difference_interval": [0.25, 0.75]}, 2) == "+0.50 [+0.25, +0.75]"
    assert (
        changed({"difference": -0.0, "difference_interval": [0.0, 0.0]}, 1, " points")
        == "+0.0 points at every question"
    )
    table = open_run(run).evaluations()
    assert list(zip(table["benchmark"].to_pylist(), table["step"].to_pylist(), strict=True)) == [
        *(("glyphs", step) for step in (0, 2)),
        *(("validation", step) for step in (0, 1, 2)),
    ]
    for name, drawn in (("", validated["series"][0]["y"]), ("/low", validated["series"][0]["low"])):
        assert table[f"reward/length{name}"].to_pylist()[2:] == pytest.approx(drawn, rel=1e-3)
    assert table["reward"].null_count == table["reward/images/high"].null_count == 0
    assert ["Best checkpoint", str(best), "by validation length"] in page["summary"]["facts"]
    for entry in page["viewer"]:
        for response in entry["responses"]:
            assert response["named"]["length"] < 0
            assert not math.isclose(response["reward"], response["named"]["length"]) or response["outcome"] != "correct"
    captions = [table["caption"] for report in page["evaluations"]["reports"] for table in report["tables"]]
    assert any(caption.startswith("What the run's own reward gives") for caption in captions)


def test_a_run_whose_answers_are_damaged_is_shown_without_the_difference_of_rewards(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (answers,) = run.glob("eval/0002/glyphs-*/answers.parquet")
    before = vppo("status", "--run", "mine", "--json", runs=run.parent).succeeded().json
    content = bytearray(answers.read_bytes())
    content[len(content) // 2] ^= 1
    answers.write_bytes(content)
    after = vppo("status", "--run", "mine", "--json", runs=run.parent).succeeded().json
    (old,), (new,) = before["evaluations"], after["evaluations"]
    (warning,) = [line for line in new["warnings"] if line not in old.get("warnings", [])]
    assert warning == f"the difference of rewards is left out: {answers}: its content changed since it was written."
    whole, shown = old["results"][1], new["results"][1]
    assert "difference" in whole["rewards"]["length"]
    assert "difference" not in shown["rewards"]["length"]
    assert shown["rewards"]["length"]["value"] == whole["rewards"]["length"]["value"]
    assert shown["difference"] == whole["difference"]
    status = " ".join(vppo("status", "--run", "mine", runs=run.parent).succeeded().out.split())
    assert "the difference of rewards is left out" in status
    vppo("train", "--run", "mine", *given(*RUN), runs=run.parent).succeeded()
    monkeypatch.setenv("VPPO_RUNS", str(run.parent))
    page = collect([RunSource.open("mine")])
    assert page["evaluations"]["own"][1]["rewards"].keys() == whole["rewards"].keys()
    refused = vppo("compare", run / "eval" / "0000", run / "eval" / "0002", runs=run.parent)
    assert (refused.code, "answers.parquet" in refused.err) == (2, True)


def test_a_run_that_goes_on_from_stored_rollouts_ends_with_the_same_bits(made: tuple[Path, str], run: Path) -> None:
    """From a policy that is replayed, with groups that the step before left over."""
    back_to(run, "rollout 2")
    shutil.rmtree(run / "checkpoints")
    assert contents(run) != contents(made[0])
    vppo("train", "--run", "mine", *given(*RUN), runs=run.parent).succeeded()
    assert contents(run) == contents(made[0])


def test_a_key_that_it_does_not_return_is_refused_by_name(run: Path) -> None:
    before = contents(run), runs.config_text(run)
    known = "Known: accuracy, reward, even, images, length, level."
    refused = vppo("train", "--run", "mine", *given("checkpoint.best_key=lenght"), runs=run.parent)
    assert refused.code == 2
    assert "checkpoint.best_key: lenght: own_rewards:mine returns no such list." in refused.err
    assert f"Did you mean length? {known}" in refused.err
    asked = given("rollout.filter_key=formt")
    refused = vppo("train", "--run", "mine", "--stage", "rollout", "--steps", "1", *asked, runs=run.parent)
    assert refused.code == 2
    assert "rollout.filter_key: formt: own_rewards:mine returns no such list." in refused.err
    assert known in refused.err
    asked = given("reward.function=own_rewards:broken", "rollout.filter_key=format")
    refused = vppo("train", "--run", "mine", "--stage", "rollout", "--steps", "1", *asked, runs=run.parent)
    assert refused.code == 2
    assert "reward.function: own_rewards:broken, format: format " in refused.err
    assert " is nan." in refused.err
    assert "Traceback" not in refused.err
    assert (contents(run), runs.config_text(run)) == before

    vppo("train", "--run", "mine", *given("checkpoint.best_key=reward"), runs=run.parent).succeeded()
    assert contents(run) == before[0]  # it decides nothing that was made
    assert "(best reward)" in vppo("status", "--run", "mine", runs=run.parent).succeeded().out


def test_a_run_whose_reward_was_edited_is_seen_as_it_was_made(run: Path, tmp_path: Path) -> None:
    assert "steps      2 of 2 done" in vppo("status", "--run", "mine", runs=run.parent).succeeded().out
    before = vppo("status", "--run", "mine", "--json", runs=run.parent).succeeded().json
    (tmp_path / "own_rewards.py").write_text(REWARDS.replace("/ 100", "/ (print('paid') or 200)"))
    (tmp_path / "elsewhere").mkdir()
    for place in (tmp_path, tmp_path / "elsewhere"):
        after = vppo("status", "--run", "mine", "--json", runs=run.parent, cwd=place).succeeded().json
        assert after["checkpoints"] == before["checkpoints"]
        vppo("export", place / "model", "--run", "mine", runs=run.parent, cwd=place).succeeded()
    assert (tmp_path / "model/model.safetensors").read_bytes() == (
        tmp_path / "elsewhere/model/model.safetensors"
    ).read_bytes()
    assert "source of own_rewards:mine changed" in vppo("plan", "--run", "mine", runs=run.parent).succeeded().out
    other = shutil.copytree(run, run.with_name("other"))
    runs.write_config(other, runs.read_config(other).model_copy(update={"seed": 5}))
    compared = vppo("compare", run, other, runs=run.parent).out
    assert "A -> B     seed 0 -> 5" in compared
    assert "mine: edited since its steps were made: own_rewards:mine" in " ".join(compared.split())
    command = ("eval", "--run", "mine", "--benchmarks", "validation")
    evaluated = vppo(*command, "--json", runs=run.parent).succeeded()
    assert "checkpoint 2 of mine" in json.dumps(evaluated.json)  # the weights of then, by the reward of now
    assert "paid" in evaluated.err  # what it prints is not in a program's way
    found = [json.loads(path.read_text()) for path in run.glob("eval/0002/validation-*/results.json")]
    old, new = sorted(one["rewards"]["length"]["value"] for one in found)
    assert new == pytest.approx(old / 2)
