"""``vppo eval`` on the public benchmarks, in the hub's schema, with the tiny model."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import shutil
import time
from pathlib import Path

import hub_schema
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import SMALL, Command, copy_of, given, stamps, start, vppo

from evals.benchmarks.table import BENCHMARKS, EIGHT
from pipelines.config import settings
from pipelines.embedded.glyphs import GlyphsOptions, make_samples

Finished = tuple[Path, Command]
SHORT = ("--samples", "2", "--max-new-tokens", "8")


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few rows of every benchmark."""
    return hub_schema.write(tmp_path_factory.mktemp("schema"))


@pytest.fixture(scope="module")
def readable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Geometry3k's columns, with questions that the tiny model can answer."""
    folder = tmp_path_factory.mktemp("readable")
    rows = [
        {
            "images": [{"bytes": image, "path": None} for image in sample.images],
            "problem": sample.problem,
            "answer": sample.answer,
            "id": number,
        }
        for number, sample in enumerate(make_samples("test", 24, 0, GlyphsOptions()))
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "geo3k.parquet")
    return folder


@pytest.fixture(scope="module")
def everything(schema: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Command]:
    """All benchmarks, evaluated: (folder of runs, the command)."""
    runs = tmp_path_factory.mktemp("everything") / "runs"
    names = f"all,{','.join(name for name in BENCHMARKS if name not in EIGHT)}"
    command = vppo("eval", "--benchmarks", names, "--model", "tiny", "--data-dir", schema, *SHORT, "--json", runs=runs)
    return runs, command.succeeded()


def folder_of(runs: Path) -> Path:
    (folder,) = runs.glob("models/*/eval/0000")
    return folder


# --- every benchmark ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_runs_end_to_end(name, everything, schema):
    runs, command = everything
    (found,) = [row for row in command.json["evaluations"] if row["benchmark"] == name]
    kept = found["rows"]["kept"]
    assert found["questions"] == kept > 0
    assert sum(found["outcomes"].values()) == 2 * kept
    assert set(found["breakdowns"]) == set(BENCHMARKS[name].breakdowns)
    for levels in found["breakdowns"].values():
        assert sum(level["questions"] for level in levels.values()) == kept
    assert found["settings"]["max_pixels"] == 589_824  # the paper's profile
    # The made-up files are smaller than the real ones, and every report says so.
    assert any(str(BENCHMARKS[name].rows) in text for text in found["warnings"])
    (journal,) = folder_of(runs).glob(f"journals/{name}-????????.jsonl")
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    assert len(lines) == 2 * kept
    assert {line["sample"] for line in lines} == {0, 1}


def test_the_scores_that_benchmarks_define_themselves(everything):
    found = {row["benchmark"]: row for row in everything[1].json["evaluations"]}
    assert "worst_case" in found["dynamath"]["scores"]
    assert {"score_strict", "score_loose"} <= found["wemath"]["scores"].keys()
    assert found["mathverse"]["cluster"] == "problem"
    assert found["dynamath"]["cluster"] == "seed"


def test_the_report_lies_in_four_formats(everything):
    runs, command = everything
    folder = folder_of(runs)
    assert command.json["files"] == [str(folder / f"report.{kind}") for kind in ("json", "csv", "md", "tex")]
    report = json.loads((folder / "report.json").read_text())
    assert [row["benchmark"] for row in report["results"]][:8] == list(EIGHT)
    with (folder / "report.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    accuracies = {row["benchmark"] for row in rows if row["metric"] == "accuracy"}
    assert accuracies >= set(BENCHMARKS)
    assert "71.6" in (folder / "report.md").read_text()  # published beside ours
    assert r"\toprule" in (folder / "report.tex").read_text()


def test_the_same_again_runs_nothing(everything, schema):
    runs, _ = everything
    before = stamps(runs, "**/*.jsonl") | stamps(runs, "**/results.json")
    vppo("eval", "--benchmarks", "geo3k,wemath", "--model", "tiny", "--data-dir", schema, *SHORT, runs=runs).succeeded()
    assert stamps(runs, "**/*.jsonl") | stamps(runs, "**/results.json") == before


# --- which policy, which questions ----------------------------------------------------------------


def test_alone_it_takes_the_newest_checkpoint_of_the_latest_run(finished: Finished, schema, tmp_path):
    run = copy_of(finished[0], tmp_path)
    command = vppo("eval", "--benchmarks", "geo3k,mmmu", "--data-dir", schema, *SHORT, runs=run.parent).succeeded()
    assert f"checkpoint 3 of {run}" in command.out
    assert "mmmu is MMMU-Pro here, as in the paper" in command.out
    assert "mmmu_val" in command.out
    assert len(list(run.glob("eval/0003/mmmu_pro-*/results.json"))) == 1
    # How the run was trained, and that it was asked otherwise.
    assert "rained with max_new_tokens 64, evaluated with 8" in " ".join(command.out.split())


def test_a_data_set_out_of_reach_is_told_before_a_model_is_loaded(finished: Finished, tmp_path):
    run = copy_of(finished[0], tmp_path)
    command = vppo("eval", "--benchmarks", "mathverse,mmmu", runs=run.parent)
    assert command.code == 2
    assert f"checkpoint 3 of {run}" in command.out
    assert "mathverse: hub data set AI4Math/MathVerse" in command.err
    assert "--data-dir DIR" in command.err
    assert "Traceback" not in command.err
    assert not list(run.glob("eval/0003/journals/mathverse*"))
    # A model that does not exist makes no difference: the questions come first.
    command = vppo("eval", "--benchmarks", "mathverse", "--model", "no/such-model", runs=run.parent)
    assert command.code == 2
    assert "AI4Math/MathVerse" in command.err


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ("--benchmarks mathvers", ("mathvers", "Did you mean mathverse?", "mmmu_val")),
        ("--profile papr", ("eval.profile", "papr")),
        ("--max-new-tokens 0", ("eval.max_new_tokens", "0")),
        ("--benchmarks geo3k --data-dir no/where", ("no/where", "no such folder")),
        ("--set eval.graders=[mathrulr]", ("mathrulr", "Did you mean mathruler?")),
        ("--set eval.graders=[]", ("eval.graders",)),
        ("--set eval.graders=[mathruler,mathruler]", ("name each grader once",)),
        ("--set eval.benchmarks=[]", ("eval.benchmarks", "names none")),
        ("--benchmarks ,", ("--benchmarks", "names none")),
        ("--benchmarks [geo3k]", ("[geo3k]", "Did you mean geo3k?")),
        ("--model tiny --run small", ("--run small", "belongs to a run", "--checkpoint 0")),
        ("--model tiny --checkpoint 2", ("--checkpoint 2", "belongs to a run")),
        ("--model tiny --benchmarks validation", ("no validation questions", "--config FILE")),
        (f"--model {__file__}", ("is not a model folder",)),
        ("--config ci.yaml", ("no such run", "There: small")),
        ("--set model.dtype=bfloat16", ("model.dtype bfloat16", "small has float32", "--model")),
        ("--regrade --samples 3", ("glyphs", "of 48 responses")),
        ("--regrade --set eval.temperature=0.5", ("glyphs", "no journal of these settings")),
    ],
)
def test_wrong_inputs(finished: Finished, arguments, parts, tmp_path):
    run = copy_of(finished[0], tmp_path)
    command = vppo("eval", *arguments.split(), runs=run.parent)
    assert command.code == 2
    for part in parts:
        assert part in command.err
    assert "Traceback" not in command.err
    assert not list(run.rglob("*.partial"))


# --- crashes, growth, regrading -------------------------------------------------------------------

ASKED = (
    "--benchmarks",
    "geo3k",
    "--model",
    "tiny",
    "--profile",
    "matched",
    "--samples",
    "4",
    *given("eval.batch_prompts=2"),
)


@pytest.fixture(scope="module")
def undisturbed(readable: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of an evaluation that nothing interrupted; the tiny model answers a part rightly."""
    runs = tmp_path_factory.mktemp("undisturbed") / "runs"
    command = vppo("eval", *ASKED, "--data-dir", readable, "--json", runs=runs).succeeded()
    (found,) = command.json["evaluations"]
    assert 0.2 < found["accuracy"] < 0.8
    assert found["graders"]["math-verify"]["accuracy"] == found["accuracy"]
    return runs


def results(runs: Path) -> bytes:
    (file,) = folder_of(runs).glob("geo3k-????????/results.json")
    return file.read_bytes()


@pytest.mark.parametrize("batches", [1, pytest.param(5, marks=pytest.mark.nightly)])  # one kill is like another
def test_killed_and_gone_on_with_it_ends_the_same(undisturbed, readable, tmp_path, batches):
    runs = tmp_path / "runs"
    command = start("eval", *ASKED, "--data-dir", readable, runs=runs)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        journals = list(runs.glob("models/*/eval/0000/journals/geo3k-????????.jsonl"))
        if journals and journals[0].read_bytes().count(b"\n") >= 8 * batches:
            break
        assert command.running(), command.err
        time.sleep(0.005)
    command.kill()
    assert command.code == -9
    written = journals[0].read_bytes()
    assert 8 * batches <= written.count(b"\n") < 96
    assert not list(runs.glob("models/*/eval/0000/geo3k-*/results.json"))
    vppo("eval", *ASKED, "--data-dir", readable, runs=runs).succeeded()
    assert journals[0].read_bytes().startswith(written)  # nothing was sampled twice
    assert results(runs) == results(undisturbed)


def test_more_samples_go_on_from_the_journal(undisturbed, readable, tmp_path):
    runs = tmp_path / "runs"
    fewer = [*ASKED, "--data-dir", readable, "--samples", "1", "--limit", "7"]
    vppo("eval", *fewer, runs=runs).succeeded()
    (journal,) = folder_of(runs).glob("journals/*.jsonl")
    first = journal.read_bytes()
    assert first.count(b"\n") == 7
    vppo("eval", *ASKED, "--data-dir", readable, runs=runs).succeeded()
    assert journal.read_bytes().startswith(first)
    assert journal.read_bytes().count(b"\n") == 96
    whole = json.loads((folder_of(runs) / "report.json").read_text())["results"][0]
    expected = json.loads(results(undisturbed))
    assert whole["right"] == expected["right"]


def test_regrading_needs_no_model_and_no_data(undisturbed, readable, tmp_path):
    runs = Path(shutil.copytree(undisturbed, tmp_path / "runs"))
    (cell,) = folder_of(runs).glob("geo3k-????????")
    expected, made = results(runs), (cell / "manifest.json").stat().st_mtime_ns
    (tmp_path / "mine.py").write_text(
        "def judge(answer, gold):\n    return answer.strip() == gold.strip() and len(gold) > 1\n"
    )
    regraded = [*ASKED, "--data-dir", readable, "--regrade"]
    command = vppo("eval", *regraded, runs=runs).succeeded()
    assert "model" in command.out
    assert results(runs) == expected
    assert (cell / "manifest.json").stat().st_mtime_ns > made  # graded anew all the same
    command = vppo(
        "eval", *regraded, "--json", *given("eval.graders=[mine:judge,mathruler]"), runs=runs, cwd=tmp_path
    ).succeeded()
    (found,) = command.json["evaluations"]
    assert found["grader"] == "mine:judge"
    assert found["accuracy"] < found["graders"]["mathruler"]["accuracy"]
    assert found["graders"]["mathruler"]["accuracy"] == json.loads(expected)["accuracy"]


def test_a_checkpoint_is_evaluated_while_the_run_trains(finished: Finished, readable, tmp_path):
    run = copy_of(finished[0], tmp_path)
    state = (run / "run.json").read_bytes()
    with (run / "lock").open("w") as lock:  # as a training process holds it
        fcntl.flock(lock, fcntl.LOCK_EX)
        owner = {"pid": os.getpid(), "host": os.uname().nodename, "since": "today"}
        json.dump(owner, lock)
        lock.flush()
        vppo(
            "eval", "--benchmarks", "geo3k", "--data-dir", readable, *SHORT, "--limit", "2", runs=run.parent
        ).succeeded()
    assert (run / "run.json").read_bytes() == state


def test_two_processes_do_not_evaluate_the_same(undisturbed, readable, tmp_path):
    runs = Path(shutil.copytree(undisturbed, tmp_path / "runs"))
    with (folder_of(runs) / "journals" / "geo3k.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        command = start("eval", *ASKED, "--data-dir", readable, "--limit", "3", runs=runs)
        deadline = time.monotonic() + 60
        told = ""
        while "Waiting for it" not in told and time.monotonic() < deadline:
            time.sleep(0.02)
            told = command.out if command.out_path.is_file() else ""
        assert command.running()
        assert not list(folder_of(runs).glob("geo3k-*.partial"))
    command.succeeded()
    assert "geo3k of tiny" in command.out


def test_regrading_when_the_weights_are_gone(finished: Finished, tmp_path):
    run = copy_of(finished[0], tmp_path)
    before = {path: path.read_bytes() for path in run.glob("eval/0003/glyphs-*/results.json")}
    shutil.rmtree(run / "checkpoints")
    command = vppo("eval", "--regrade", runs=run.parent).succeeded()
    assert f"checkpoint 3 of {run}" in command.out
    assert {path: path.read_bytes() for path in before} == before
    command = vppo("eval", "--regrade", "--checkpoint", "1", runs=run.parent)
    assert command.code == 2
    assert "Sampled: 0 2 3" in command.err


def test_a_journal_of_other_questions_is_not_graded(undisturbed, readable, tmp_path):
    runs = Path(shutil.copytree(undisturbed, tmp_path / "runs"))
    (journal,) = folder_of(runs).glob("journals/geo3k-*.jsonl")
    lines = journal.read_text().splitlines(keepends=True)
    lines[:4] = [line.replace('"prompt": "', '"prompt": "0') for line in lines[:4]]
    journal.write_text("".join(lines))
    command = vppo("eval", *ASKED, "--data-dir", readable, "--regrade", runs=runs)
    assert command.code == 2
    assert "92 of 96 responses" in command.err
    vppo("eval", *ASKED, "--data-dir", readable, "--samples", "3", runs=runs).succeeded()
    assert journal.read_text().count("\n") == 92 + 3


def test_the_report_grows_benchmark_by_benchmark(finished: Finished, readable, tmp_path):
    run = copy_of(finished[0], tmp_path)
    asked = ("--data-dir", readable, *SHORT, "--limit", "2", "--json")
    command = vppo("eval", "--benchmarks", "geo3k", *asked, runs=run.parent).succeeded()
    assert [row["benchmark"] for row in command.json["evaluations"]] == ["geo3k"]
    report = json.loads((run / "eval" / "0003" / "report.json").read_text())
    assert [row["benchmark"] for row in report["results"]] == ["geo3k", "glyphs"]
    vppo("compare", finished[0], run, runs=run.parent).succeeded()  # on glyphs


def test_the_run_that_a_config_and_settings_made_is_meant(finished: Finished, tmp_path):
    config = settings.load(None, list(SMALL))
    run = copy_of(finished[0], tmp_path).rename(tmp_path / "runs" / settings.run_name(config))
    asked = ("eval", "--config", "tiny.yaml", "--benchmarks", "glyphs", "--json", *given(*SMALL))
    for more in ((), given("run.threads=1")):  # which makes it no other run
        assert vppo(*asked, *more, runs=run.parent).succeeded().json["run"] == run.name
    other = vppo(*asked, *given("seed=7"), runs=run.parent)
    assert (other.code, "seed=7: no run was made with these settings." in other.err) == (2, True)
    shutil.rmtree(run / "checkpoints")
    started = vppo("eval", "--run", run.name, "--benchmarks", "glyphs", runs=run.parent).succeeded()
    assert "has no checkpoint yet: this is the model that it starts from" in " ".join(started.out.split())


def test_a_grader_that_fails_is_no_bad_model(finished: Finished, tmp_path):
    run = copy_of(finished[0], tmp_path)
    (tmp_path / "mine.py").write_text("def raises(answer, gold):\n    raise ValueError\n")
    graders = given("eval.graders=[mine:raises]")
    command = vppo("eval", "--regrade", *graders, "--json", runs=run.parent, cwd=tmp_path)
    (found,) = command.succeeded().json["evaluations"]
    assert found["grader"] == "mathruler"  # own questions are judged as in training
    assert found["graders"]["mine:raises"]["outcomes"]["correct"] == 0
    assert any("mine:raises came to no verdict on" in text for text in command.json["warnings"])
    trained = vppo("train", "--run", run.name, *graders, "--json", runs=run.parent, cwd=tmp_path).succeeded()
    (row,) = trained.json["evaluations"]
    (warning,) = row["warnings"]  # of both policies, as many answers
    assert warning.startswith("mine:raises came to no verdict on 32 of 32")
    shown = vppo("train", "--run", run.name, *graders, runs=run.parent, cwd=tmp_path).succeeded().out
    assert f"warning    {warning}" in shown.replace("\n           ", " ")


# --- as the end of a training run -----------------------------------------------------------------


def test_a_training_run_ends_with_public_benchmarks(finished: Finished, readable, tmp_path):
    run = copy_of(finished[0], tmp_path)
    command = vppo(
        "train",
        "--run",
        "small",
        *given("eval.benchmarks=[glyphs, geo3k]", f"eval.data_dir={readable}", "eval.limit=4", "eval.profile=matched"),
        runs=run.parent,
    ).succeeded()
    assert "geo3k, 4 questions x 2 samples" in command.out
    assert "starting model" in command.out
    report = json.loads((run / "eval" / "0003" / "report.json").read_text())
    assert [row["benchmark"] for row in report["results"]] == ["geo3k", "glyphs"]


def test_training_does_not_begin_if_its_benchmarks_are_out_of_reach(tmp_path):
    runs = tmp_path / "runs"
    command = vppo("train", *given("eval.benchmarks=[wemath]", "data.glyphs.train=8"), runs=runs)
    assert command.code == 2
    assert "We-Math/We-Math" in command.err
    assert not list(runs.glob("*/steps/*"))
