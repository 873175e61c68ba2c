"""The tasks in lm-eval, held to our own runner on copies of the benchmarks in the hub's schema."""

import json
import os
import runpy
import subprocess
import sys
from functools import partial
from pathlib import Path

import hub_schema
import lm_eval.tasks
import numpy as np
import pytest
from lm_eval import simple_evaluate
from lm_eval.api.registry import get_model
from lm_eval.tasks import TaskManager

from evals.benchmarks.questions import gather
from evals.benchmarks.table import BENCHMARKS, EIGHT
from evals.journal import Entry, append, prompt_digest, read_journal
from evals.lm_eval import tasks_folder
from evals.lm_eval.functions import dataset, doc_to_image, sample
from evals.profiles import PUBLISHED
from evals.run import grade_cell, questions, sample_missing
from evals.stage import engine
from pipelines.chain import Chain
from pipelines.config import settings
from pipelines.config.settings import shipped_config
from pipelines.disk.records import RESULTS
from pipelines.errors import UserError
from pipelines.grading.graders import GraderPool
from pipelines.live import Session
from pipelines.model.prompts import load_processor, messages, open_image
from pipelines.watch import Silent

TASKS = Path(__file__).parents[2] / "evals" / "lm_eval" / "tasks"
METRICS = ("avg@8", "avg@8_low", "avg@8_high", "avg@8_as_published", "pass@8", "avg@8_math-verify")
TORCHVISION = "from pipelines.model.torchvision_ops import ensure_importable\nensure_importable()\n"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Local copies of all benchmarks."""
    return hub_schema.write(tmp_path_factory.mktemp("hub"))


@pytest.fixture(scope="module")
def chain_of(data, tmp_path_factory):
    """``chain_of("eval.profile=matched", ...)``: the run of the tiny model that evaluates so."""

    def made(*overrides):
        given = [f"eval.data_dir={data}", "run.threads=1", *overrides]
        return Chain(settings.load(None, given), tmp_path_factory.mktemp("run"))

    return made


@pytest.fixture(scope="module")
def chain(chain_of):
    """A run whose journals answer the eight benchmarks: i mod 9 of the i-th question's are right."""
    chain = chain_of()
    gather(chain.config, EIGHT, Silent())
    for name in EIGHT:
        cell = chain.cell(0, name)
        for i, row in enumerate(questions(cell)):
            digest = prompt_digest(row, cell.how.asking)
            texts = [rf"so \boxed{{{row.answer}}}"] * (i % 9) + [r"or \boxed{-54321}", "no"] * 4
            entries = [Entry(row.id, k, texts[k], False, 5, digest) for k in range(8)]
            append(cell.journal, entries)
    return chain


def run(data, tasks, arguments, **more):
    """lm-eval in this process, without its own tasks."""
    manager = TaskManager(include_defaults=False, include_path=TASKS, metadata={"data_dir": str(data)})
    return simple_evaluate("vppo", model_args=arguments, tasks=tasks, task_manager=manager, **more)


def responses(found, task):
    """Question -> its responses in lm-eval's results."""
    return {row["doc"]["id"]: row["resps"][0] for row in found["samples"][task]}


def journalled(cell, limit=None):
    entries = read_journal(cell.journal)
    return {row.id: [e.response for e in entries[row.id]] for row in questions(cell)[:limit]}


# --- the tasks ------------------------------------------------------------------------------------


def test_every_benchmark_is_a_task_that_samples_as_the_paper_does():
    index = TaskManager(include_defaults=False, include_path=TASKS).task_index
    assert set(index) == {"vppo_eight", *(f"vppo_{name}" for name in BENCHMARKS)}
    assert index["vppo_eight"].cfg["task"] == [f"vppo_{name}" for name in EIGHT]
    for name, benchmark in BENCHMARKS.items():
        task = index[f"vppo_{name}"].cfg
        assert (task["dataset_kwargs"], task["task_alias"]) == ({"benchmark": name}, benchmark.title)
        given = task["generation_kwargs"]
        asked = (given["temperature"], given["top_p"], given["top_k"], given["max_gen_toks"])
        assert asked == (PUBLISHED.temperature, PUBLISHED.top_p, PUBLISHED.top_k, PUBLISHED.max_new_tokens)
        assert (task["repeats"], given["do_sample"], given["until"]) == (8, True, [])


def test_both_surfaces_score_a_journal_alike(data, chain, tmp_path):
    journals = chain.cell(0, "geo3k").journal.parent
    found = run(data, ["vppo_eight"], {"journal": str(journals)})
    scores = []
    with GraderPool(workers=1) as pool:
        for name in EIGHT:
            cell = chain.cell(0, name)
            grade_cell(cell, pool, None, tmp_path, Silent())
            ours = json.loads((tmp_path / RESULTS).read_text())
            count = len(questions(cell))
            scores.append(sum(i % 9 for i in range(count)) / 8 / count)
            assert ours["accuracy"] == pytest.approx(scores[-1])
            theirs = [found["results"][f"vppo_{name}"][f"{metric},all"] for metric in METRICS]
            assert theirs == [
                pytest.approx(ours["accuracy"]),
                *ours["interval"],
                pytest.approx(ours["as_published"]["accuracy"]),
                ours["pass_at_k"]["8"],
                pytest.approx(ours["graders"]["math-verify"]["accuracy"]),
            ]
            assert journalled(cell) == responses(found, f"vppo_{name}")
    assert 0 < min(scores) < max(scores) < 1
    group = found["groups"]["vppo_eight"]
    assert group["avg@8,all"] == pytest.approx(np.mean(scores))


@pytest.mark.parametrize("profile", ["published", "matched"])
def test_both_surfaces_sample_the_same_responses(data, chain_of, profile):
    chain = chain_of(f"eval.profile={profile}", "eval.max_new_tokens=12", "eval.limit=3")
    found = run(
        data,
        ["vppo_geo3k", "vppo_mathverse"],
        {"pretrained": "tiny", "profile": profile, "run.threads": 1},
        gen_kwargs={"max_gen_toks": 12},
        limit=3,
    )
    session = Session(chain, Silent(), chain.config)
    gather(chain.config, ["geo3k", "mathverse"], Silent())
    for name in ("geo3k", "mathverse"):
        cell = chain.cell(0, name)
        sample_missing(cell, questions(cell), lambda how=cell.how: engine(session, 0, how.asking), 2, Silent())
        theirs = responses(found, f"vppo_{name}")
        assert theirs == journalled(cell, 3)
        assert len({text for texts in theirs.values() for text in texts}) > 12  # 24 were drawn
    session.close()


def test_images_are_shown_as_our_encoder_sees_them(data):
    names = [f"vppo_{name}" for name in BENCHMARKS]
    tasks = TaskManager(include_defaults=False, include_path=TASKS, metadata={"data_dir": str(data)}).load(names)[
        "tasks"
    ]
    for task in tasks.values():
        for doc in task.eval_docs:
            shown, row = doc_to_image(doc), sample(doc)
            assert [image.mode for image in shown] == ["RGB"] * len(row.images)
            for image, data_ in zip(shown, row.images, strict=True):
                assert np.array_equal(np.asarray(image), np.asarray(open_image(data_)))
            assert task.doc_to_text(doc).count("<image>") == len(row.images)


# --- tasks of one's own ---------------------------------------------------------------------------


SHAPES = """
from evals.benchmarks.base import Benchmark, one_image

SHAPES = Benchmark(
    name="shapes", title="Shapes", about="shapes", hub="someone/shapes", columns=("problem", "image", "answer"),
    rows=4, kept=4, row=lambda raw, where: one_image(where.row, raw["problem"], raw["image"], raw["answer"], form="f"),
    cluster="form",
)
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder with my.yaml, its test set, and a benchmark by import path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    rows = [{"problem": f"How many? {i}", "image": f"{i}.png", "answer": str(i)} for i in range(4)]
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(hub_schema.png(i))
    for name in ("mytest", "shapes"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "shapes.py").write_text(SHAPES)
    (tmp_path / "my.yaml").write_text(
        "base: tiny.yaml\ndata: {instruction: Think.}\nreward: {grader: math-verify}\n"
        "eval: {benchmarks: [mytest, 'shapes:SHAPES', geo3k], data_dir: ., sources: {mytest: mytest.jsonl}}\n"
    )
    yield tmp_path
    sys.modules.pop("shapes", None)


def test_the_folder_of_the_tasks_is_told(capsys):
    tasks_folder.main([])
    assert Path(capsys.readouterr().out.strip()) == TASKS


def test_own_tasks_are_written_and_score_as_vppo_eval_does(own, monkeypatch, capsys):
    tasks_folder.main(["mine", "--config", "my.yaml"])
    assert capsys.readouterr().out.strip() == str(own / "mine")
    index = TaskManager(include_defaults=False, include_path=own / "mine").task_index
    assert set(index) == {"vppo_eight", "vppo_mytest", "vppo_shapes", *(f"vppo_{name}" for name in BENCHMARKS)}
    config = settings.load(own / "my.yaml")
    chain = Chain(config, own / "run")
    cells = [chain.cell(0, name) for name in chain.benchmarks[:2]]
    gather(config, ["mytest", "shapes"], Silent())
    monkeypatch.chdir(own.parent)  # what is written means the same from anywhere
    manager = TaskManager(include_defaults=False, include_path=own / "mine")
    for number, cell in enumerate(cells):
        name = cell.how.benchmark
        for i, row in enumerate(questions(cell)):
            digest = prompt_digest(row, cell.how.asking)
            texts = [rf"so \boxed{{{row.answer}}}"] * (2 * i + number) + [r"or \boxed{-54321}"] * 8
            append(cell.journal, [Entry(row.id, k, texts[k], False, 5, digest) for k in range(8)])
        arguments = {"journal": str(cell.journal), "config": str(own / "my.yaml")}
        found = simple_evaluate("vppo", model_args=arguments, tasks=[f"vppo_{name}"], task_manager=manager)
        with GraderPool(workers=1) as pool:
            grade_cell(cell, pool, None, own, Silent())
        ours = json.loads((own / RESULTS).read_text())
        assert ours["accuracy"] == (12 + 4 * number) / 32
        theirs = [found["results"][f"vppo_{name}"][f"{metric},all"] for metric in METRICS[:3]]
        assert theirs == [ours["accuracy"], *ours["interval"]]
        prompt = found["samples"][f"vppo_{name}"][0]["arguments"][0][0]
        assert prompt == f"<image>How many? 0\n\n{cell.how.asking.instruction}"
        asked = found["configs"][f"vppo_{name}"]["generation_kwargs"]
        assert asked["max_gen_toks"] == cell.how.asking.max_new_tokens


def test_a_test_set_is_asked_by_the_config_that_it_is_of(own):
    tasks_folder.main(["mine", "--config", "my.yaml"])
    manager = TaskManager(include_defaults=False, include_path=own / "mine")
    for config, message in ((None, "have no such test set"), ("my.yaml", "another instruction")):
        arguments = {"journal": "x.jsonl", **({"config": config, "data.instruction": "Guess."} if config else {})}
        with pytest.raises(UserError, match=message):
            simple_evaluate("vppo", model_args=arguments, tasks=["vppo_mytest"], task_manager=manager)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mine"], "name no test set and no benchmark of yours"),
        (["--config", "my.yaml"], "where are these tasks"),
        (["mine", "--config", "my.yaml", "--set", "data.system_prompt=Be brief."], "has no system's turn"),
    ],
)
def test_tasks_that_cannot_be_written(own, arguments, message):
    with pytest.raises(UserError, match=message):
        tasks_folder.main(arguments)


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "pretrained= or journal="),
        ({"journal": "x", "pretrained": "tiny"}, "one of the two"),
        ({"journal": "nowhere.jsonl"}, "no such file"),
        ({"journal": "."}, "holds 0 journals of geo3k"),
        ({"pretrained": "tiny", "eval.sample": 8}, "eval.sample"),
        ({"pretrained": "tiny", "proflie": "matched"}, "proflie"),
    ],
    ids=str,
)
def test_wrong_model_arguments(data, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        run(data, ["vppo_geo3k"], arguments)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"gen_kwargs": {"temperature": 0}}, "samples by"),
        ({"gen_kwargs": {"do_sample": False}}, "samples by"),
        ({"gen_kwargs": {"until": ["."]}}, "samples by"),
        ({"gen_kwargs": {"repetition_penalty": 2}}, "samples by"),
        ({"system_instruction": "Be brief."}, "not the task's own"),
    ],
    ids=str,
)
def test_requests_that_the_engines_do_not_serve(data, chain, more, message):
    with pytest.raises(UserError, match=message):
        run(data, ["vppo_geo3k"], {"journal": str(chain.cell(0, "geo3k").journal)}, **more)


def test_a_journal_that_answers_something_else(data, chain, tmp_path):
    journal = chain.cell(0, "geo3k").journal
    with pytest.raises(UserError, match="was asked something else"):
        run(data, ["vppo_geo3k"], {"journal": str(journal), "eval.max_pixels": 50_000})
    short = tmp_path / "short.jsonl"
    short.write_text("".join(journal.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(UserError, match=r"has 7 of 8 responses"):
        run(data, ["vppo_geo3k"], {"journal": str(short)})


def test_it_has_no_likelihoods(tmp_path):
    model = get_model("vppo")(journal=str(tmp_path))
    for method in (model.loglikelihood, model.loglikelihood_rolling):
        with pytest.raises(NotImplementedError, match="it has no loglikelihood"):
            method([])


# --- the command lines ----------------------------------------------------------------------------


ASKED = ("--tasks", "vppo_geo3k")


@pytest.mark.nightly
def test_lm_evals_own_command_with_its_own_model(data, tmp_path):
    site, folder = tmp_path / "site", tmp_path / "out"
    site.mkdir()
    (site / "sitecustomize.py").write_text(TORCHVISION)  # or a CPU build cannot load hf-multimodal
    path = os.pathsep.join(map(str, [site, *filter(None, [os.environ.get("PYTHONPATH")])]))
    model = f"pretrained={shipped_config('tiny_model')},min_pixels=1024,max_pixels=589824"
    line = [
        Path(sys.executable).with_name("lm_eval"),
        "--include_path",
        TASKS,
        *ASKED,
        "--model",
        "hf-multimodal",
        "--model_args",
        model,
        "--apply_chat_template",
        "--device",
        "cpu",
        "--batch_size",
        "8",
        "--gen_kwargs",
        "max_gen_toks=8",
        "--log_samples",
        "--output_path",
        folder,
    ]
    environment = os.environ | {
        "VPPO_DATA_DIR": str(data),
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    printed = subprocess.run(list(map(str, line)), env=environment, capture_output=True, text=True, check=True).stdout
    assert "|Geometry3k|" in printed
    (file,) = folder.rglob("samples_vppo_geo3k_*.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) == 3
    dataset("geo3k", str(data))  # whose questions the lines name
    processor = load_processor(settings.load())
    for row in rows:
        assert len(row["filtered_resps"][0]) == 8
        assert len(set(row["filtered_resps"][0])) > 1
        chat = messages(sample(row["doc"]), PUBLISHED.instruction)
        asked = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        assert row["arguments"]["gen_args_0"]["arg_0"] == asked


def test_lm_evals_command_with_our_model(data, chain, tmp_path, monkeypatch, capsys):
    """``python -m evals.lm_eval`` in this process, without lm-eval's own tasks, whose index takes it ten
    seconds."""
    journal = chain.cell(0, "geo3k").journal
    line = ["--model", "vppo", "--model_args", f"journal={journal}", "--output_path", str(tmp_path)]
    monkeypatch.setenv("VPPO_DATA_DIR", str(data))
    monkeypatch.setattr(sys, "argv", ["lm_eval", *ASKED, *line])
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", partial(TaskManager, include_defaults=False))
    runpy.run_module("evals.lm_eval", run_name="__main__", alter_sys=True)
    printed = capsys.readouterr().out
    assert "|Geometry3k|" in printed
    (file,) = tmp_path.rglob("results_*.json")
    found = json.loads(file.read_text())["results"]["vppo_geo3k"]
    assert found["avg@8,all"] == pytest.approx((0 + 1 + 2) / 8 / 3)
    assert found["pass@8,all"] == pytest.approx(2 / 3)
