"""Test sets of one's own (eval.sources) and benchmarks by import path: read, keyed, graded, told, resumed."""

import csv
import importlib
import json
import re
import signal
import sys
import time
from dataclasses import replace

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import given, start, vppo
from hub_schema import png

from evals.benchmarks.questions import check, gather, groups, questions_step, read_questions
from evals.benchmarks.table import canonical
from evals.compare import compare
from evals.groups import Member, RunGroup, compare_groups
from evals.journal import Entry, append
from evals.profiles import evaluation, matched
from evals.report.build import build
from evals.report.formats import as_csv, as_latex, as_markdown
from evals.run import grade_cell, questions
from pipelines.chain import Chain
from pipelines.config import settings
from pipelines.disk.step import commit
from pipelines.errors import UserError
from pipelines.grading.graders import GraderPool
from pipelines.opening import check_inputs
from pipelines.runs import CONFIG, write_config
from pipelines.watch import Silent
from vppo_cli.screen import results as screen

ROWS = [{"problem": f"How many? {i}", "image": f"{i}.png", "answer": str(i % 3)} for i in range(4)]

SHAPES = """
from dataclasses import replace

import numpy as np

from evals.benchmarks.base import Benchmark, one_image
from evals.numbers.statistics import rate


def question(raw, where):
    if raw["answer"]:
        return one_image(raw["id"], raw["problem"], raw["image"], raw["answer"], level=raw["level"], form=raw["form"])


def scores(rows):
    right = np.array([row.accuracy for row in rows])
    return {"doubled": rate(2 * right, np.ones(len(right)), "Shapes/doubled", "twice the accuracy")}


SHAPES = Benchmark(
    name="shapes",
    title="Shapes",
    about="counting shapes",
    hub="someone/shapes",
    columns=("id", "problem", "image", "answer", "level", "form"),
    rows=5,
    kept=4,
    row=question,
    cluster="form",
    unit="kind",
    breakdowns=("level",),
    levels=("high", "low"),
    scores=scores,
    note="Shapes are drawn by hand.",
)
TWIN = replace(SHAPES, title="Twin")
TAKEN = replace(SHAPES, name="geo3k")
DASHED = replace(SHAPES, name="my-shapes")
TUPLE = replace(SHAPES, columns="id")
PRINTED = replace(SHAPES, published={"Qwen2.5-VL-7B": (1.0,)})
LISTED = replace(SHAPES, row=lambda raw, where: [raw])
NUMBER = replace(SHAPES, row=lambda raw, where: replace(question(raw, where), answer=3))
KIND = replace(SHAPES, row=lambda raw, where: replace(question(raw, where), kind="list"))
RAISES = replace(SHAPES, row=lambda raw, where: 1 / 0)
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A current folder with test sets in ``data``, and a module ``shapes`` with its file in ``copies``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("VPPO_RUNS", str(tmp_path / "runs"))
    data, copies = tmp_path / "data", tmp_path / "copies"
    for folder in (data, copies):
        folder.mkdir()
        for i in range(4):
            (folder / f"{i}.png").write_bytes(png(i))
    lines(data / "mytest.jsonl", ROWS)
    more = [{"id": f"q{i}", "level": ["low", "high"][i % 2], "form": f"f{i // 2}", **row} for i, row in enumerate(ROWS)]
    lines(copies / "shapes.jsonl", [*more, {**more[0], "id": "none", "answer": ""}])
    (tmp_path / "shapes.py").write_text(SHAPES)
    yield tmp_path
    sys.modules.pop("shapes", None)


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def as_csv_file(folder):
    with open(folder / "a.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ROWS[0])
        writer.writeheader()
        writer.writerows(ROWS)
    return "data/a.csv"


def embedded():
    columns = {name: [row[name] for row in ROWS] for name in ("problem", "answer")}
    return columns | {"images": [[{"bytes": png(i), "path": None}] for i in range(4)]}


def as_parquet(folder):
    pq.write_table(pa.table(embedded()), folder / "a.parquet")
    return "data/a.parquet"


def as_saved(folder):
    """Of two splits, the other one with a row too many."""
    other = {name: [*values, values[0]] for name, values in embedded().items()}
    splits = {"test": datasets.Dataset.from_dict(embedded()), "train": datasets.Dataset.from_dict(other)}
    datasets.DatasetDict(splits).save_to_disk(str(folder / "saved"))
    return "data/saved"


def configured(*overrides, **sources):
    """The embedded default with these test sets, all of them asked."""
    named = [f"eval.sources.{name}={json.dumps(value)}" for name, value in sources.items()]
    return settings.load(None, [f"eval.benchmarks=[{', '.join(sources)}]", *named, *overrides])


def gathered(config, name):
    """The questions, and the metrics of their step."""
    gather(config, [name], Silent())
    step = questions_step(name, config)
    return list(read_questions(step)), step.manifest()["metrics"]


# --- how they are read ----------------------------------------------------------------------------


@pytest.mark.parametrize("write", [as_csv_file, as_parquet, as_saved])
def test_every_form_gives_the_same_questions(here, write):
    config = configured(mytest="data/mytest.jsonl", other=write(here / "data"))
    first, metrics = gathered(config, "mytest")
    assert [(row.id, row.problem, row.answer) for row in first] == [
        (f"row-{i}", f"How many? {i}", str(i % 3)) for i in range(4)
    ]
    assert [list(row.images) for row in first] == [[png(i)] for i in range(4)]
    place = str(here / "data/mytest.jsonl")
    assert metrics == {"rows": 4, "kept": 4, "unreadable": 0, "warnings": [], "place": place}
    assert gathered(config, "other")[0] == first


def test_columns_are_the_training_datas_or_the_sets_own(here):
    lines(here / "data/theirs.jsonl", [{"q": "1?", "image": "1.png", "gold": r"\boxed{7}"}])
    theirs = "data.columns={problem: q, answer: gold}"
    (row,), _ = gathered(configured(theirs, theirs="data/theirs.jsonl"), "theirs")
    assert (row.problem, row.answer) == ("1?", "7")
    own = {"source": "data/theirs.jsonl", "columns": {"problem": "q", "answer": "gold"}}
    assert gathered(configured(theirs=own), "theirs")[0] == [row]
    config = configured(theirs, mytest="data/mytest.jsonl", theirs=own)
    with pytest.raises(UserError, match=r"\(our 'problem', by data.columns\).*--set eval\.sources\.mytest\.columns='"):
        check("mytest", config)
    check("theirs", config)
    with pytest.raises(UserError, match=r"^data\.columns, question: not one of our columns"):
        check("mytest", configured("data.columns={question: q}", mytest="data/mytest.jsonl"))


def test_a_wrong_column_of_the_training_data_is_told_of_them_first(here):
    lines(here / "data/train.jsonl", ROWS)
    asked = ["data.source=data/train.jsonl", "data.columns={answer: gold}"]
    with pytest.raises(UserError, match=r"^data/train\.jsonl.*--set data\.columns='\{answer: THEIR_NAME\}'"):
        check_inputs(Chain(configured(*asked, mytest="data/mytest.jsonl"), here / "run"))


def test_rows_that_are_left_out_are_told_and_listed(here):
    bad = {"problem": "?", "image": "none.png", "answer": "1"}
    lines(here / "data/mytest.jsonl", [*ROWS, bad, {**ROWS[0], "answer": ""}])
    config = configured(mytest="data/mytest.jsonl")
    rows, metrics = gathered(config, "mytest")
    assert (len(rows), metrics["rows"], metrics["kept"], metrics["unreadable"]) == (4, 6, 4, 2)
    assert "2 of 6 rows left out (1 image not found, 1 no answer). Row 4, for one" in metrics["warnings"][0]
    listed = (questions_step("mytest", config).path / "rejected.jsonl").read_text().splitlines()
    assert [json.loads(line)["row"] for line in listed] == [4, 5]
    lines(here / "data/mytest.jsonl", [bad])
    with pytest.raises(UserError, match=r"no usable row: all 1 are rejected\. Row 0, for one: image not found"):
        gather(config, ["mytest"], Silent())


def test_what_decides_is_in_the_key_and_what_does_not_is_not(here):
    def keys(config):
        cell = Chain(config, here / "run").cell(0, "mytest")
        return cell.questions.key, cell.results.key, cell.journal.name

    config = configured(mytest="data/mytest.jsonl")
    first = keys(config)
    (here / "moved").mkdir()
    for file in (here / "data").iterdir():
        (here / "moved" / file.name).write_bytes(file.read_bytes())
    assert keys(configured(mytest="moved/mytest.jsonl")) == first
    others = [keys(configured(mytest={"source": "data/mytest.jsonl", "columns": {"id": "problem"}}))]
    (here / "data/3.png").write_bytes(png(7))  # an image that the file names
    others.append(keys(config))
    lines(here / "data/mytest.jsonl", ROWS[:3])
    others.append(keys(config))
    assert all(len({first[i], *(other[i] for other in others)}) == 4 for i in range(3))


def test_short_floats_are_read_as_they_were_written_under_another_key(here):
    for name, type_ in (("wide", pa.float64()), ("short", pa.float32())):
        columns = {"problem": ["?", "!"], "answer": pa.array([0.1, 0.7], type_)}
        pq.write_table(pa.table(columns), here / f"data/{name}.parquet")
    config = configured(wide="data/wide.parquet", short="data/short.parquet")
    assert [row.answer for row in gathered(config, "short")[0]] == ["0.1", "0.7"]
    said = [questions_step(name, config).settings.get("short floats") for name in ("wide", "short")]
    assert said == [None, "as written"]
    made = questions_step("short", config)
    (here / "data/short.parquet").unlink()
    assert questions_step("short", config) == made  # of a file that is gone, what was gathered last


def test_what_was_gathered_before_short_floats_were_in_the_key_stands(here):
    pq.write_table(pa.table({"problem": ["?"], "answer": pa.array([0.1], pa.float32())}), here / "data/short.parquet")
    config = configured(short="data/short.parquet")
    now = questions_step("short", config)
    then = replace(now, settings={name: value for name, value in now.settings.items() if name != "short floats"})
    assert then != now
    with commit(then):
        pass
    assert questions_step("short", config) == then
    columns = {"source": "data/short.parquet", "columns": {"id": "problem"}}
    assert questions_step("short", configured(short=columns)).settings["short floats"] == "as written"


def test_images_elsewhere_and_further_columns_are_those_of_the_training_data(here):
    elsewhere = here / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "far.png").write_bytes(png(5))
    lines(
        here / "data/mytest.jsonl", [{"problem": "?", "image": "far.png", "answer": "1", "golds": ["1", "one"], "x": 2}]
    )
    folders = f"data.image_folders=[{elsewhere}]"
    (row,), metrics = gathered(configured(folders, mytest="data/mytest.jsonl"), "mytest")
    assert (list(row.images), row.details(), metrics["warnings"]) == ([png(5)], {"x": 2}, [])
    config = configured(folders, "data.extra=[golds]", mytest="data/mytest.jsonl")
    first = questions_step("mytest", config)
    (row,), _ = gathered(config, "mytest")
    assert row.details() == {"golds": ["1", "one"]}
    (elsewhere / "far.png").write_bytes(png(6))
    assert questions_step("mytest", config).key != first.key


def test_it_is_asked_as_training_asks_and_judged_as_validation_is(here):
    config = configured("reward.grader=math-verify", "eval.samples=2", "data.instruction=Think.", mytest="data")
    how, validation = evaluation(config, "mytest"), evaluation(config, "validation")
    assert (how.profile, how.asking) == ("matched", matched(config))
    assert how.graders == validation.graders == ("math-verify", "mathruler")
    assert (how.samples, how.limit) == (2, None)
    assert evaluation(configured("reward.function=mine:brief", mytest="data"), "mytest").reward == "mine:brief"


# --- how they are named ---------------------------------------------------------------------------


def test_a_path_or_a_mapping_in_a_file_and_one_by_one_on_the_command_line(here):
    (here / "my.yaml").write_text("eval:\n  sources: {a: a.csv, b: {source: b.csv, split: dev}}\n")
    asked = [
        "eval.sources.a.subset=x",
        "eval.sources.d=d.csv",
        "eval.sources.b=other.csv",
        "eval.sources.b.columns.id=n",
    ]
    config = settings.load(here / "my.yaml", asked)
    told = {name: (one.source, one.split, one.subset, one.columns) for name, one in config.eval.sources.items()}
    assert told == {
        "a": ("a.csv", "test", "x", None),
        "b": ("other.csv", "dev", None, {"id": "n"}),
        "d": ("d.csv", "test", None, None),
    }
    write_config(here / "runs/one", config)
    assert settings.load(here / "runs/one" / CONFIG, stored=True) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sources: {a: {sorce: x}}", r"bad.yaml, line 2.*no such setting: eval.sources.a.sorce.*has source, columns"),
        ("sources: {a: }", r"bad.yaml, line 2, eval.sources.a.source: None: input should be a valid string"),
        ("sources: {a: {split: x}}", r"eval.sources.a.source.*field required"),
        ("sources: [a.csv]", r"bad.yaml, line 2, eval.sources: is no mapping of names to sources"),
        ("sources: {my-set: a.csv}", r"'my-set' is no name for a test set"),
    ],
)
def test_settings_that_name_no_test_set(here, text, message):
    (here / "bad.yaml").write_text(f"eval:\n  {text}\n")
    with pytest.raises(UserError, match=message):
        settings.load(here / "bad.yaml")


@pytest.mark.parametrize(
    ("benchmark", "source", "message"),
    [
        ("mytset", "data/mytest.jsonl", "mytset: no such benchmark. Did you mean mytest.*module:NAME"),
        ("mytest", "data/none.jsonl", "eval.sources.mytest data/none.jsonl: no such file or folder"),
        ("mytest", "data/0.png", "files of type .png are not read"),
        ("mytest", "/dev/zero", "eval.sources.mytest /dev/zero: belongs to the system"),
    ],
)
def test_what_is_refused_before_anything_is_made(here, benchmark, source, message):
    asked = given(f"eval.sources.mytest={source}")
    done = vppo("plan", *asked, "--set", f"eval.benchmarks=[{benchmark}]", runs=here / "runs")
    assert (done.code, "Traceback" in done.err) == (2, False)
    assert re.search(message, " ".join(done.err.split()))


@pytest.mark.parametrize("name", ["geo3k", "mmmu", "glyphs", "all", "average", "update"])
def test_a_name_that_is_taken(here, name):
    with pytest.raises(UserError, match=rf"eval.sources.{name}: the name is taken"):
        canonical([], settings.load(None, [f"eval.sources.{name}=data/mytest.jsonl"]))


def test_a_model_on_its_own_needs_a_config_to_ask_them_by(here):
    asked = ["eval", "--model", "tiny", "--benchmarks", "mytest", *given("eval.sources.mytest=data/mytest.jsonl")]
    done = vppo(*asked, runs=here / "runs")
    assert done.code == 2
    assert "Say how, with --config FILE" in done.err


# --- benchmarks by import path --------------------------------------------------------------------


def by_path(*overrides, part="shapes:SHAPES"):
    return settings.load(None, [f"eval.benchmarks=['{part}']", "eval.data_dir=copies", *overrides])


def test_one_by_import_path_is_read_by_its_own_function(here):
    config = by_path()
    assert canonical(config.eval.benchmarks, config) == ("shapes",)
    rows, metrics = gathered(config, "shapes")
    assert [(row.id, groups(row)["level"]) for row in rows] == [
        ("q0", "low"),
        ("q1", "high"),
        ("q2", "low"),
        ("q3", "high"),
    ]
    assert metrics["warnings"] == []


def test_images_of_local_copies_may_lie_in_the_training_datas_folders(here):
    elsewhere = here / "elsewhere"
    elsewhere.mkdir()
    folders = f"data.image_folders=[{elsewhere}]"
    assert questions_step("shapes", by_path(folders)).key == questions_step("shapes", by_path()).key  # none is there
    (here / "copies/0.png").rename(elsewhere / "far.png")
    path = here / "copies/shapes.jsonl"
    path.write_text(path.read_text().replace("0.png", "far.png"))
    rows, metrics = gathered(by_path(), "shapes")
    assert len(rows) == 3
    assert "data.image_folders names further folders" in " ".join(metrics["warnings"])
    rows, metrics = gathered(by_path(folders), "shapes")
    assert ([row.id for row in rows], metrics["warnings"]) == (["q0", "q1", "q2", "q3"], [])
    key = questions_step("shapes", by_path(folders)).key
    (elsewhere / "far.png").write_bytes(png(6))
    assert questions_step("shapes", by_path(folders)).key != key


def test_short_floats_of_one_by_import_path(here):
    (here / "copies/shapes.jsonl").unlink()
    columns = {name: [str(i) for i in range(2)] for name in ("id", "problem", "level", "form")}
    columns |= {"image": [png(0)] * 2, "answer": pa.array([0.1, 0.7], pa.float32())}
    pq.write_table(pa.table(columns), here / "copies/shapes.parquet")
    (here / "shapes.py").write_text(SHAPES.replace('raw["answer"], level', 'str(raw["answer"]), level'))
    assert [row.answer for row in gathered(by_path(), "shapes")[0]] == ["0.1", "0.7"]
    assert questions_step("shapes", by_path()).settings["short floats"] == "as written"


def test_its_source_is_in_the_keys_but_what_was_sampled_stays(here):
    def keys():
        sys.modules.pop("shapes", None)
        importlib.invalidate_caches()
        cell = Chain(by_path(), here / "run").cell(0, "shapes")
        return cell.questions.key, cell.results.key, cell.journal.name

    first = keys()
    assert keys() == first
    (here / "shapes.py").write_text(SHAPES.replace("2 * right", "3 * right"))
    second = keys()
    assert (second[0] != first[0], second[1] != first[1], second[2]) == (True, True, first[2])


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("shapes:SHAPE", "shapes has no Benchmark 'SHAPE'. Did you mean shapes:SHAPES"),
        ("shapes:question", r"no Benchmark 'question' \(it is a function\)"),
        ("nowhere:SHAPES", "cannot be imported .ModuleNotFoundError"),
        ("shapes:TAKEN", "is called geo3k, as a built-in one is"),
        ("shapes:DASHED", "its name is 'my-shapes'"),
        ("shapes:TUPLE", "its columns are 'id'"),
        ("shapes:PRINTED", "published and alias are of built-in benchmarks"),
        ("shapes:SHAPES, shapes:TWIN", "shapes:TWIN: is called shapes, as shapes:SHAPES is"),
        ("shapes:LISTED", "row 0: its function returned a list"),
        ("shapes:NUMBER", "row 0: answer 3 is of type int, and no text"),
        ("shapes:KIND", "row 0: kind 'list' is none"),
        ("shapes:RAISES", r"shapes:RAISES: raised ZeroDivisionError: division by zero\n.*shapes.py, line"),
    ],
)
def test_what_is_no_benchmark_is_refused_by_name(here, part, message):
    parts = [f"'{one.strip()}'" for one in part.split(",")]
    config = settings.load(None, [f"eval.benchmarks=[{', '.join(parts)}]", "eval.data_dir=copies"])
    with pytest.raises(UserError, match=message):
        gather(config, canonical(config.eval.benchmarks, config), Silent())


# --- evaluated, killed, told ----------------------------------------------------------------------


@pytest.fixture
def evaluated(here):
    """What ``vppo eval --json`` says of both kinds, after it was killed once; and the folder of its files."""
    (here / "my.yaml").write_text(
        "base: tiny.yaml\neval: {benchmarks: [mytest, 'shapes:SHAPES'], data_dir: copies, samples: 3,\n"
        "  batch_prompts: 1, max_new_tokens: 12, sources: {mytest: data/mytest.jsonl}}\nrun: {threads: 1}\n"
    )
    command = ["eval", "--model", "tiny", "--config", "my.yaml", "--json"]
    first = start(*command, runs=here / "runs")
    while first.running() and not any(here.glob("runs/models/*/eval/0000/journals/*.jsonl")):
        time.sleep(0.01)
    first.kill()
    assert first.code == -signal.SIGKILL, first.err
    (before,) = (path.read_text() for path in here.glob("runs/models/*/eval/0000/journals/mytest-*.jsonl"))
    found = vppo(*command, runs=here / "runs").succeeded().json
    (after,) = (path.read_text() for path in here.glob("runs/models/*/eval/0000/journals/mytest-*.jsonl"))
    whole = before[: before.rfind("\n") + 1]
    assert whole
    assert after.startswith(whole)  # what was sampled is not sampled again
    return found, next(here.glob("runs/models/*/eval/0000"))


def test_both_are_evaluated_after_a_kill_and_stand_in_every_report(evaluated, here):
    found, folder = evaluated
    own, shapes = found["evaluations"]
    assert (own["benchmark"], own["title"], own["profile"], own["rows"]["kept"]) == ("mytest", "mytest", "matched", 4)
    assert (shapes["benchmark"], shapes["title"], shapes["profile"], shapes["unit"]) == (
        "shapes",
        "Shapes",
        "published",
        "kind",
    )
    assert (shapes["cluster"], shapes["clusters"], list(shapes["breakdowns"]["level"])) == ("form", 2, ["high", "low"])
    assert shapes["scores"]["doubled"]["value"] == pytest.approx(2 * shapes["accuracy"])
    assert "Shapes are drawn by hand." in found["warnings"]
    report = json.loads((folder / "report.json").read_text())
    assert [row["title"] for row in report["results"]] == ["mytest", "Shapes"]
    again = build("tiny", report["results"])
    assert list(again["results"][1]["breakdowns"]["level"]) == ["high", "low"]  # not by the alphabet, levels say so
    for text in (as_markdown(again), as_latex(again)):
        assert all(word in text for word in ("mytest", "Shapes", "2 kinds"))
    assert {"mytest", "shapes"} <= {row["benchmark"] for row in csv.DictReader(as_csv(again).splitlines())}
    changes = compare(report["results"], report["results"]).changes
    assert [(one.benchmark, one.questions, one.change.mean) for one in changes] == [("mytest", 4, 0), ("shapes", 4, 0)]


def test_a_set_is_answered_alike_whatever_was_asked_before(here):
    # Of both sets every id, question and number of rows is the same; the pictures are others.
    for name, first in (("one", 0), ("other", 7)):
        rows = [{"problem": "How many?", "image": f"{name}{i}.png", "answer": "1"} for i in range(3)]
        lines(here / f"data/{name}.jsonl", rows)
        for i, row in enumerate(rows):
            (here / "data" / row["image"]).write_bytes(png(first + i))
    asked = given(
        "eval.samples=2",
        "eval.max_new_tokens=12",
        "run.threads=1",
        *(f"eval.sources.{name}=data/{name}.jsonl" for name in ("one", "other")),
    )
    answers = []
    for order in ("one,other", "other,one"):
        vppo(
            "eval", "--model", "tiny", "--config", "tiny.yaml", "--benchmarks", order, *asked, runs=here / order
        ).succeeded()
        journals = sorted((here / order).glob("models/*/eval/0000/journals/*.jsonl"))
        answers.append([[json.loads(line)["response"] for line in path.read_text().splitlines()] for path in journals])
    assert answers[0] == answers[1]
    assert answers[0][0] != answers[0][1]


def test_a_run_is_looked_at_where_its_benchmark_is_not_found(here):
    config = settings.load(None, ["eval.benchmarks=[glyphs, 'nowhere:SHAPES']"])
    chain = Chain(config, here / "runs/one")
    assert screen.shown_benchmarks(chain) == ["glyphs"]
    assert screen.evaluation_rows(chain) == []
    with pytest.raises(UserError, match="nowhere:SHAPES: cannot be imported"):
        _ = chain.benchmarks


# --- compared -------------------------------------------------------------------------------------


def results_of(config, name, here, run="one"):
    """What results.json holds where every response is "1"."""
    gather(config, [name], Silent())
    cell = Chain(config, here / "runs" / run).cell(0, name)
    entries = [Entry(i, s, "\\boxed{1}", False, 3, "") for i in questions(cell).ids[: cell.how.limit] for s in (0, 1)]
    append(cell.journal, entries)
    with GraderPool(1, 5.0) as pool:
        cell.results.path.mkdir(parents=True)
        grade_cell(cell, pool, None, cell.results.path, Silent())
    return json.loads((cell.results.path / "results.json").read_text())


def test_other_questions_under_one_name_are_not_compared(here):
    samples = "eval.samples=2"
    lines(here / "data/same.jsonl", [*ROWS, {**ROWS[0], "problem": "And how many more?"}])
    lines(here / "data/other.jsonl", [ROWS[0], ROWS[1], {**ROWS[2], "answer": "0"}, {**ROWS[3], "image": "0.png"}])
    one = results_of(configured(samples, mytest="data/mytest.jsonl"), "mytest", here)
    part = results_of(configured(samples, "eval.limit=3", mytest="data/same.jsonl"), "mytest", here, "two")
    other = results_of(configured(samples, mytest="data/other.jsonl"), "mytest", here, "three")
    assert compare([one], [part]).changes[0].questions == 3  # a row more, and a limit: the same questions
    folders = rf"{one['asked']['folder']} \(A\), {other['asked']['folder']} \(B\)"
    with pytest.raises(UserError, match=rf"under 2 ids there are others \(row-2, for one\)\. Their folders: {folders}"):
        compare([one], [other])
    assert (here / "runs/benchmarks" / other["asked"]["folder"]).is_dir()
    earlier = {name: value for name, value in one.items() if name != "asked"}
    assert compare([earlier], [other]).changes[0].questions == 4  # as ever: it does not tell

    sides = [RunGroup(f"{n}-*", [Member(f"{n}-1", {"mytest": r})], []) for n, r in (("a", one), ("b", other))]
    with pytest.raises(UserError, match=r"mytest: is not the same questions.*\(a-1\), .*\(b-1\)"):
        compare_groups(*sides)


def test_other_rows_of_a_benchmark_by_import_path_are_not_compared(here):
    one = results_of(by_path("eval.samples=2"), "shapes", here)
    file = here / "copies/shapes.jsonl"
    lines(file, [{**row, "answer": row["answer"] and "9"} for row in map(json.loads, file.read_text().splitlines())])
    other = results_of(by_path("eval.samples=2"), "shapes", here, "two")
    with pytest.raises(UserError, match="shapes: is not the same questions in all: under 4 ids"):
        compare([one], [other])
