"""``vppo runs``, and why a run failed."""

import json
from importlib.metadata import version

import pytest
from command_line import SMALL, copy_of, given, vppo

from pipelines.errors import UserError
from pipelines.opening import held
from pipelines.watch import Silent


def test_runs_are_listed_and_removed(finished, tmp_path):
    run = copy_of(finished[0], tmp_path)
    runs = run.parent
    broken = runs / "broken"
    broken.mkdir()
    (broken / "config.yaml").write_text("update: {no_such: 1}\n")
    told = vppo("runs", runs=runs).succeeded().out
    assert "small" in told
    assert "3/3" in told
    listed = {row["name"]: row for row in vppo("runs", "--json", runs=runs).succeeded().json["runs"]}
    assert listed["small"]["state"] == "finished"
    assert listed["small"]["bytes"] == sum(f.stat().st_size for f in run.rglob("*") if f.is_file())
    assert listed["broken"]["problem"].startswith(str(broken / "config.yaml"))

    refused = vppo("runs", "--remove", "small", runs=runs)
    assert (refused.code, "Add --yes" in refused.err, run.is_dir()) == (2, True, True)
    for name in ("nobody", "../runs/small", "."):
        refused = vppo("runs", "--remove", "small", "--remove", name, "--yes", runs=runs)
        assert (refused.code, run.is_dir()) == (2, True), name
    assert "deleted" in vppo("runs", "--remove", "small", "--yes", runs=runs).succeeded().out
    assert not run.exists()
    refused = vppo("status", "--run", "small", runs=runs)
    assert f"no such run in {runs.resolve()}/" in "".join(refused.err.split("\n       "))
    assert "There: broken. If it is elsewhere, go where it was begun, or set VPPO_RUNS." in " ".join(
        refused.err.split()
    )
    empty = vppo("runs", runs=tmp_path / "nothing")
    assert (empty.code, "VPPO_RUNS" in empty.err) == (2, True)


def test_a_plan_says_whose_prepared_data_it_takes(finished, tmp_path):
    runs = copy_of(finished[0], tmp_path).parent
    another = ("--config", "tiny.yaml", *given(*SMALL, "update.learning_rate=0.5"))
    plan = vppo("plan", *another, "--json", runs=runs).succeeded().json["plan"]
    assert (plan[0]["step"], plan[0]["status"]) == ("prepare", "run")
    assert plan[0]["reason"] == "run small has it: taken over"
    named = vppo("plan", *another, "--run", "mine", "--json", runs=runs).succeeded().json
    assert (named["run"], named["plan"]) == ("mine", plan)
    assert vppo("plan", "--run", "mine", runs=runs).code == 2  # no such run, and nothing to make one of
    refused = vppo("plan", *another, *given("rollout.filter_key=rewrad"), runs=runs)
    assert (refused.code, "Did you mean reward?" in refused.err) == (2, True)


def test_a_run_that_is_refused_before_its_first_step_leaves_nothing(tmp_path):
    runs = tmp_path / "runs"
    (tmp_path / "bad.jsonl").write_text('{"problem": "?", "answer": ""}\n')
    for setting, words in (
        ("update.engine=nowhere:engine", "nowhere"),
        (f"data.source={tmp_path}/bad.jsonl", "no usable row"),
    ):
        refused = vppo("train", "--run", "bad", *given(setting), runs=runs)
        assert (refused.code, words in refused.err) == (2, True)
        assert list(runs.iterdir()) == []
    (runs / "bad").mkdir()  # somebody's: it stays, and says why
    (runs / "bad" / "notes.txt").write_text("mine")
    assert vppo("train", "--run", "bad", *given("update.engine=nowhere:engine"), runs=runs).code == 2
    assert {"notes.txt", "config.yaml"} <= {path.name for path in (runs / "bad").iterdir()}
    assert "bad" in vppo("runs", runs=runs).succeeded().out


def refused_with(run, *names):
    """A new run that is refused once these are in its folder."""
    with held(run, Silent()):
        for name in names:
            (run / name).parent.mkdir(parents=True, exist_ok=True)
            (run / name).mkdir() if name.endswith("/") else (run / name).write_text("made")
        raise UserError("it", "is refused.")


def test_a_run_that_is_refused_leaves_what_another_command_put_there(tmp_path):
    for name in ("eval/0000/journals/glyphs-1.jsonl", "eval/0000/journals/glyphs-1.lock", "notes.txt"):
        run = tmp_path / name.replace("/", "-")
        with pytest.raises(UserError, match="refused"):
            refused_with(run, "config.yaml", name)
        assert ((run / name).read_text(), (run / "config.yaml").is_file()) == ("made", True)
    for name in ("run.json", "prepare-1.2-host.partial/train.parquet", "steps/0001/"):
        with pytest.raises(UserError, match="refused"):
            refused_with(tmp_path / "new", "config.yaml", name)
        assert not (tmp_path / "new").exists(), name


def test_a_failed_run_says_why(tmp_path):
    (tmp_path / "failing.py").write_text("def terms(batch, settings):\n    raise ValueError('no such luck')\n")
    runs, small = tmp_path / "runs", given(*SMALL, "update.objective=failing:terms", "rollout.dynamic_sampling=false")
    assert vppo("train", "--run", "bad", *small, runs=runs).code == 2
    status = vppo("status", "--run", "bad", "--json", runs=runs).succeeded().json
    assert status["state"] == "failed"
    assert "raised ValueError: no such luck" in status["why"]
    for command in (("status", "--run", "bad"), ("runs",)):
        assert "no such luck" in vppo(*command, runs=runs).succeeded().out


def test_config_for_a_program_and_the_version(tmp_path):
    found = vppo("config", "score", "--json", *given("score.looks=2"), runs=tmp_path).succeeded().json
    assert (found["score.looks"], found["score.store"]) == (2, "auto")
    assert all(name.startswith("score.") for name in found)
    json.dumps(vppo("config", "--json", "--all", runs=tmp_path).succeeded().json)
    assert vppo("--version", runs=tmp_path).succeeded().out == f"vppo {version('vppo')}\n"
