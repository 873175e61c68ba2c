"""``import vppo``: what the commands do, from Python; docs/python.md, and the notebook, whose cells run in order."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from browser import page_data
from command_line import ONE_THREAD, TINY, vppo
from imported import HEAVY

import vppo as face
from pipelines.config import settings
from pipelines.disk.records import Sample, SampleTable
from pipelines.embedded.glyphs import solution
from pipelines.errors import UserError

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs" / "vppo.ipynb"


def python(code, folder, **environment):
    """Run code in an interpreter of its own, with this checkout's modules."""
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=os.environ | ONE_THREAD | {"PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


# --- importing it ---------------------------------------------------------------------------------


@pytest.mark.parametrize("where", [ROOT, None], ids=["the clone", "elsewhere"])
def test_importing_it_brings_nothing_heavy(where, tmp_path):
    code = "import sys, vppo; print(vppo.__file__); print(dir(vppo)); print(*sys.modules)"
    done = python(code, where or tmp_path)
    assert done.returncode == 0, done.stderr
    file, names, modules = done.stdout.splitlines()
    assert file == str(ROOT / "vppo.py")
    assert {name for name in HEAVY | {"numpy", "pyarrow", "typer"} if name in modules.split()} == set()
    assert set(face.__all__) <= set(re.findall(r"\w+", names))


def test_what_is_public_is_there_and_documented():
    for name in face.__all__:
        assert getattr(face, name).__doc__, name
    for name, member in vars(face.Run).items():
        assert name.startswith("_") or not callable(member) or member.__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'perceve'"):
        _ = face.perceve
    assert face.UserError is UserError


# --- a run, opened --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(finished):
    return face.open_run(finished[0])


def test_a_runs_tables_are_what_is_on_disk(run, finished):
    folder, _ = finished
    assert (run.name, run.state, run.steps, run.config.run.steps) == ("small", "finished", [1, 2, 3], 3)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    metrics = run.metrics()
    assert metrics["step"].to_pylist() == [1, 2, 3]
    assert metrics["rollout/accuracy"].to_pylist() == [line["rollout/accuracy"] for line in lines]
    assert run.rollouts()["training_step"].unique().to_pylist() == [1, 2, 3]
    [file] = folder.glob("steps/0002/rollout-*/rollouts.parquet")
    assert run.rollouts(2).drop_columns("training_step").to_pylist() == pq.read_table(file).to_pylist()
    assert run.scores([1, 3])["position"].to_pylist() == run.rollouts([1, 3])["position"].to_pylist()
    status = vppo("status", "--run", "small", "--json", runs=folder.parent).succeeded().json
    told = [row["accuracy"] for row in status["evaluations"][0]["results"]]
    found = run.evaluations()
    assert found["benchmark"].to_pylist() == ["glyphs", "glyphs", "validation", "validation"]
    assert found["step"].to_pylist() == [0, 3, 2, 3]
    measured = [json.loads(next(folder.glob(f"eval/{s:04d}/validation-*/results.json")).read_text()) for s in (2, 3)]
    assert found["accuracy"].to_pylist() == [*told, *(results["accuracy"] for results in measured)]
    assert all(row["low"] <= row["accuracy"] <= row["high"] for row in found.to_pylist())


def test_the_token_view_is_the_same_numbers_token_by_token(run):
    view, rollouts, scores = run.tokens(2), run.rollouts(2), run.scores(2)
    groups = list(zip(rollouts.to_pylist(), scores.to_pylist(), strict=True))
    assert view["token_id"].to_pylist() == [t for g, _ in groups for ids in g["response_ids"] for t in ids]
    assert view["perception"].to_pylist() == [x for _, s in groups for row in s["perception"] for x in row]
    assert view["keep"].to_pylist() == [x for _, s in groups for row in s["keep"] for x in row]
    [(group, scored)] = [pair for pair in groups if pair[0]["position"] == groups[1][0]["position"]]
    for index in (0, len(group["response"]) - 1):
        mine = pc.and_(pc.equal(view["position"], group["position"]), pc.equal(view["response"], index))
        rows = view.filter(mine)
        assert rows["token"].to_pylist() == list(range(len(rows)))
        assert "".join(rows["text"].to_pylist()).startswith(group["response"][index])
        assert rows["entropy"].to_pylist() == scored["entropy"][index]
        assert set(rows["reward"].to_pylist()) == {group["reward"][index]}
        assert set(rows["sample_id"].to_pylist()) == {group["sample_id"]}
    by_role = {row["role"]: row["perception_mean"] for row in _by_role(run.tokens()).to_pylist()}
    assert by_role["perception"] > 5 * by_role["template"]


def test_a_column_solution_of_ones_own_data_makes_no_roles(finished, monkeypatch):
    own = face.open_run(finished[0])
    metadata = json.dumps({"solution": "b1 shows 9", "task": "sum"})
    monkeypatch.setattr(SampleTable, "by_id", lambda self, name: Sample(name, "?", [], "9", metadata=metadata))
    assert own.tokens(1)["role"].null_count == len(own.tokens(1))


def _by_role(tokens):
    return tokens.group_by("role").aggregate([("perception", "mean")])


def test_its_checkpoint_questions_and_page(run, tmp_path):
    questions, question = run.questions(), run.questions()[0]
    assert repr(questions) == f"<64 samples of {questions.path}>"
    assert f"problem={question.problem!r}, images=[<{len(question.images[0])} bytes>], answer=" in repr(question)
    assert (run.checkpoint() / "config.json").is_file()
    found = face.perceive(run.checkpoint("last"), question.images[0], question.problem, solution(question))
    assert found.made_with["weights"].startswith("content ")
    assert page_data(run.to_html(tmp_path / "report.html"))["runs"] == ["small"]
    for call, words in (
        (lambda: run.checkpoint(1), "It has: 2 3"),
        (lambda: run.tokens(7), r"step 7: is not scored in run small. On disk: \[1, 2, 3\]"),
        (lambda: face.open_run(tmp_path), "not the folder of a run"),
        (lambda: face.open_run("nowhere"), "no such run"),
        (lambda: face.open_run(5), "run 5: is of type int. A run's name, or the path"),
    ):
        with pytest.raises(UserError, match=words):
            call()


def test_a_run_of_an_earlier_version_opens():
    old = face.open_run(ROOT / "tests" / "fixtures" / "tiny-6287")
    tokens = old.tokens()
    assert (old.steps, len(old.metrics()), len(old.evaluations())) == ([1, 2], 2, 3)
    assert tokens["perception"].null_count == tokens["text"].null_count == tokens["role"].null_count == 0
    with pytest.raises(UserError, match="no such checkpoint"):
        old.checkpoint()


# --- training -------------------------------------------------------------------------------------


class Notes:
    """A watch that remembers what it is told."""

    def __init__(self):
        self.stages = []

    def progress(self, label, done, total=None): ...

    def note(self, text): ...

    def stage(self, name, index):
        self.stages.append((name, index))

    def finished(self, name, index, metrics): ...


def test_training_is_the_commands_and_says_nothing(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("VPPO_RUNS", str(tmp_path / "runs"))
    few = (*TINY, "checkpoint.validation_samples=0", "eval.benchmarks=[]", "run.steps=1")
    watch = Notes()
    run = face.train(dict(settings.load(None, few).model_dump(mode="json")), watch=watch)
    assert run.name == settings.run_name(settings.load(None, few))  # as the command names it
    assert [name for name, _ in watch.stages] == ["prepare", "rollout", "score", "update", "checkpoint"]
    assert (run.state, run.steps) == ("finished", [1])
    again = Notes()
    dotted = dict(text.split("=") for text in few) | {"rollout.dynamic_sampling": False, "eval.benchmarks": []}
    whole = {name: int(value) if str(value).isdigit() else value for name, value in dotted.items()}
    assert face.train(settings=whole, watch=again).path == run.path
    assert again.stages == []
    same = vppo("train", *(f"--set={text}" for text in few), runs=tmp_path / "runs").succeeded()
    assert "nothing to do" in same.out
    assert capfd.readouterr().out == ""  # the notebook below holds standard error, in a process of its own
    face.train(settings=whole, show=True)
    assert f"run        {run.path}" in capfd.readouterr().out
    for bad, words in (
        ({"rollout.promts_per_step": 4}, "prompts_per_step"),
        ({"rollout": {"samples_per_prompt": 1}}, "samples_per_prompt"),
        ("nowhere.yaml", "nowhere.yaml"),
        (5, "config 5: is of type int. A YAML file, or a dict"),
    ):
        with pytest.raises(UserError, match=words):
            face.train(bad)
    with pytest.raises(UserError, match="run 5: is of type int"):
        face.train(run=5)
    assert len(list((tmp_path / "runs").iterdir())) == 1


# --- given responses ------------------------------------------------------------------------------


def test_scores_of_given_responses_are_perceives(policy, samples, tmp_path):
    (tmp_path / "a.png").write_bytes(samples[1].images[0])
    mine = {"image": str(tmp_path / "a.png"), "prompt": samples[1].problem, "answer": 0, "id": "mine"}
    told = [[solution(samples[0]), "7"], solution(samples[1])]
    table = face.score(policy, [samples[0], mine], told, masks=2, seed=3)
    assert table["id"].to_pylist() == [samples[0].id, samples[0].id, "mine"]
    assert table["gold"].to_pylist() == [samples[0].answer, samples[0].answer, "0"]
    assert table["response"].to_pylist() == [solution(samples[0]), "7", solution(samples[1])]
    alone = face.perceive(policy, samples[0].images, samples[0].problem, told[0][0], masks=2, seed=3)
    assert table["perception"][0].as_py() == pytest.approx(alone.perception, abs=1e-5)
    by_mask = np.array(table["perception_by_mask"][1].as_py())
    assert by_mask.shape == (2, len(table["tokens"][1]))
    made = json.loads(table.schema.metadata[b"vppo"])
    assert (made["masks"], made["seed"], made["estimator"]) == (2, 3, "kl")
    written = face.score(policy, [mine], settings={"rollout": {"max_new_tokens": 3}})
    assert (written["given"].to_pylist(), len(written["tokens"][0])) == ([False], 3)
    for arguments, words in (
        (([mine], ["a", "b"]), "2 for 1 questions"),
        (([], []), "there is none"),
        (([{"image": str(tmp_path / "a.png")}], ["a"]), "question 0: has no prompt"),
        (([{"prompt": "<image>x"}], ["a"]), "question 0, prompt: 1 <image> in the problem, 0 images"),
        (([mine | {"imge": 1}], ["a"]), "imge: no such key"),
        (([{"image": "nowhere.png", "prompt": "x"}], ["a"]), "question 0, image nowhere.png"),
        (([mine], [""]), "has no token"),
    ):
        with pytest.raises(UserError, match=words):
            face.score(policy, *arguments)
    with pytest.raises(TypeError, match="mask"):
        face.score(policy, [mine], ["7"], mask=2)


def test_a_question_without_an_image_depends_on_none(policy, samples):
    """As in training (tests/score): S is 0, and all its tokens are kept."""
    text = {"prompt": "What is 3 + 4?"}
    plain = face.score(policy, [text, samples[0], text | {"image": None}, text | {"image": []}], ["7"] * 4, masks=2)
    rows = plain.to_pylist()
    for row in (rows[0], *rows[2:]):
        assert row["perception"] == [0.0] * len(row["tokens"]) == row["perception_by_mask"][1]
        assert (row["dependency"], row["keep"]) == (0.0, [True] * len(row["tokens"]))
        assert row["logp"] == row["logp_perturbed"]
    assert rows[1]["dependency"] > 0
    with pytest.raises(UserError, match="image: none is given"):
        face.perceive(policy, None, "What is 3 + 4?")


# --- the page and the notebook --------------------------------------------------------------------


def cells(*kinds):
    return ["".join(c["source"]) for c in json.loads(NOTEBOOK.read_text())["cells"] if c["cell_type"] in kinds]


def test_the_notebook_runs_from_top_to_bottom(tmp_path):
    document = json.loads(NOTEBOOK.read_text())
    code = [cell for cell in document["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)  # none that could be stale
    done = python("\n".join(cells("code")), tmp_path, VPPO_RUNS=str(tmp_path / "runs"))
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^step 3  accuracy 0\.\d\d  perception 0\.\d+ nats", done.stdout, re.M)
    assert re.search(r"^after 3 steps \(vppo\) +0\.\d+ \[", done.stdout, re.M)
    assert re.search(r"^perception  \d\.\d+ nats +\d+ tokens  #{40}$", done.stdout, re.M)
    assert "the mean over 4 masks" in done.stdout
    assert len(page_data(tmp_path / "look.html")["viewer"][0]["perturbed"]) == 4
    assert [file.name for file in (tmp_path / "runs").iterdir() if (file / "metrics.jsonl").is_file()]


def test_the_pages_snippets_run(policy, samples, finished, tmp_path, monkeypatch):
    page = (ROOT / "docs" / "python.md").read_text()
    first, second, third = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    names = {"questions": [samples[0]], "responses": ["7"]}
    exec(first + second, names)
    assert names["table"]["response"].to_pylist() == ["7"]
    assert (tmp_path / "look.html").is_file()
    monkeypatch.setattr(face, "train", lambda given: face.open_run(finished[0]))
    monkeypatch.setenv("VPPO_RUNS", str(finished[0].parent))
    exec(third, names | {"vppo": face})
