"""The report: its numbers in every format, hostile names, warnings, the average, what a person sees."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from pylatexenc.latexwalker import LatexWalker
from small_results import EIGHT, PAPER, TITLES, WHOLE, result

from evals.benchmarks import published
from evals.benchmarks.table import EIGHT as EIGHT_BENCHMARKS
from evals.report.build import build, write
from evals.report.formats import COLUMNS, as_csv, as_latex, as_markdown, csv_text, latex_text, markdown_text
from pipelines.chain import Chain
from pipelines.config.schema import Config
from pipelines.contents import SEAL, intact
from pipelines.errors import Interrupted, UserError
from vppo_cli.screen import display, live
from vppo_cli.screen.report import show

TRAINING = {name: value for name, value in PAPER.items() if name not in ("seed", "limit")}


def all_nine() -> list[dict[str, Any]]:
    return [result(name) for name in reversed(TITLES)]


def shown(report: dict[str, Any], width: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines that a terminal of this width gets."""
    monkeypatch.setattr(display.console, "_width", width)
    with display.console.capture() as capture:
        show(report)
    return capture.get().splitlines()


def tidy(report: dict[str, Any]) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(as_csv(report))))


def markdown_tables(text: str) -> list[list[list[str]]]:
    """Rows of cells of every table; the line of dashes is left out, escapes are kept."""
    tables: list[list[list[str]]] = [[]]
    for line in text.splitlines():
        if line.startswith("|"):
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            tables[-1].append(cells)
        elif tables[-1]:
            tables.append([])
    return [[t[0], *t[2:]] for t in tables if t]


def latex_tables(text: str) -> list[tuple[str, list[list[str]]]]:
    """(column specification, rows of cells) of every tabular."""
    found = []
    for spec, body in re.findall(r"\\begin\{tabular\}\{((?:[lr]|p\{[^}]*\})+)\}\n(.*?)\\end\{tabular\}", text, re.S):
        lines = [line for line in body.splitlines() if not re.fullmatch(r"\\\w+rule", line)]
        assert all(line.endswith(r" \\") for line in lines)
        cells = [[c.strip() for c in re.split(r"(?<!\\)&", line[:-3])] for line in lines]
        found.append((re.sub(r"p\{[^}]*\}", "p", spec), cells))
    return found


# --- the published numbers ------------------------------------------------------------------------


def test_every_published_row_has_the_average_that_is_printed_beside_it():
    rows = {row.model: row.accuracy for row in published.ROWS}
    assert len(published.ROWS) == len(rows) == 18
    assert tuple(EIGHT) == EIGHT_BENCHMARKS
    for row in published.ROWS:
        eight = [row.accuracy[name] for name in EIGHT]
        # The eight are rounded to 0.1, and so is the average of what they were before.
        assert sum(eight) / 8 == pytest.approx(row.average, abs=0.05 + 1e-9), row.model
        assert set(row.accuracy) - set(EIGHT) in (set(), {"aokvqa", "simplevqa"})
    assert rows["Qwen2.5-VL-7B + VPPO"]["mathverse"] == 71.6
    assert rows["Qwen3-VL-8B + VPPO"]["mmmu_pro"] == 52.4
    assert rows["NoisyRollout-32B"]["mathvision"] == 27.9
    assert rows["R1-ShareVL-7B"]["mmmu_pro"] == 35.1


TABLE_1 = {  # model -> its eight columns, in the order of EIGHT, and the average, as the paper prints them
    "MM-Eureka-7B": (67.1, 65.4, 67.5, 40.3, 31.1, 65.5, 46.3, 30.3, 51.7),
    "ThinkLite-7B": (64.2, 64.6, 62.6, 37.6, 32.0, 66.5, 39.4, 28.0, 49.4),
    "VL-Rethinker-7B": (68.8, 65.7, 68.3, 40.7, 31.9, 68.9, 46.3, 37.0, 53.5),
    "NoisyRollout-7B": (67.8, 65.5, 50.0, 51.8, 22.1, 71.0, 47.3, 34.5, 51.3),
    "R1-ShareVL-7B": (68.0, 65.1, 70.9, 41.2, 30.1, 69.9, 45.6, 35.1, 53.2),
    "MM-Eureka-32B": (71.8, 72.0, 73.4, 51.0, 43.2, 75.0, 56.8, 43.1, 60.8),
    "NoisyRollout-32B": (73.0, 72.2, 60.2, 56.6, 27.9, 75.7, 56.2, 43.1, 58.1),
}
TABLE_8 = {"": (84.2, 38.6), " + GRPO": (87.4, 43.1), " + DAPO": (87.9, 42.9), " + VPPO": (87.9, 43.8)}


def test_others_rows_of_table_1_and_those_of_table_8():
    rows = {row.model: row for row in published.ROWS}
    for model, numbers in TABLE_1.items():
        assert (*(rows[model].accuracy[name] for name in EIGHT), rows[model].average) == numbers
    for method, numbers in TABLE_8.items():
        found = rows[f"Qwen2.5-VL-7B{method}"].accuracy
        assert (found["aokvqa"], found["simplevqa"]) == numbers


def test_what_is_not_of_the_paper_says_so():
    for row in published.ROWS:
        assert ("later release, not of the paper" in row.source) == (row.family == "Qwen3-VL-8B")
        assert ("2510.09285, Table 1" in row.source) == (row.family != "Qwen3-VL-8B")
    report = build("m", [result("geo3k")], "a/Qwen3-VL-8B")
    for text in (as_markdown(report), as_latex(report)):
        assert "Qwen3-VL-8B: the authors' later release, not of the paper" in text
        assert all(row.model.partition(" ")[0] in text for row in published.ROWS)
    later = [row for row in tidy(report) if row["model"].startswith("Qwen3-VL-8B")]
    assert {row["source"] for row in later} == {"Qwen3-VL-8B: the authors' later release, not of the paper"}


@pytest.mark.parametrize(
    ("path", "family"),
    [
        ("Qwen/Qwen2.5-VL-32B-Instruct", "Qwen2.5-VL-32B"),
        ("Qwen/Qwen3-VL-8B-Thinking", "Qwen3-VL-8B"),
        ("./qwen2_5_vl_32b", "Qwen2.5-VL-32B"),
        ("/models/qwen3_vl_8b/", "Qwen3-VL-8B"),
        ("hub/models--Qwen--Qwen3-VL-8B-Instruct/snapshots/32b7b8b", "Qwen3-VL-8B"),
        ("Qwen2.5-VL-32B-runs/Qwen3-VL-8B", "Qwen3-VL-8B"),  # the last part is the model
        ("Qwen2.5-VL-7B", "Qwen2.5-VL-7B"),
        # All others get the smallest.
        ("tiny-3a8b", "Qwen2.5-VL-7B"),
        ("OpenGVLab/InternVL3-8B", "Qwen2.5-VL-7B"),
        ("Qwen3-8B", "Qwen2.5-VL-7B"),
        ("Qwen2-VL-32B", "Qwen2.5-VL-7B"),
        ("Qwen3-VL-32B", "Qwen2.5-VL-7B"),
        ("Qwen2.5-VL-8B", "Qwen2.5-VL-7B"),
        ("Qwen3-VL-1.8B", "Qwen2.5-VL-7B"),
        ("Qwen2.5-VL-132B", "Qwen2.5-VL-7B"),
        ("Qwen3-VL-30B-A8B", "Qwen2.5-VL-7B"),
        ("Qwen3-VL-4B-distilled-from-8B", "Qwen2.5-VL-7B"),
        ("qwen3-vl/8b", "Qwen2.5-VL-7B"),  # kind and size are of one name
        ("my model", "Qwen2.5-VL-7B"),
        ("", "Qwen2.5-VL-7B"),
    ],
)
def test_the_nearest_family(path, family):
    assert published.nearest_family(path) == family


def test_the_label_has_no_say_in_the_family():
    rows = [result("geo3k")]
    assert build("checkpoint 30 of Qwen3-VL-8B", rows)["published"]["nearest"] == "Qwen2.5-VL-7B"
    assert build("checkpoint 30 of tiny-3a8b", rows)["warnings"] == []
    report = build("mine", rows, "Qwen/Qwen3-VL-8B-Instruct")
    assert (report["model"], report["published"]["nearest"]) == ("mine", "Qwen3-VL-8B")


# --- the average ----------------------------------------------------------------------------------


def test_the_average_over_the_eight_by_hand():
    # Four questions each; in the first seven benchmarks every question is half right, so they are
    # certain. The last has two clusters of two questions, one all right and one all wrong: half of
    # the resamples have 1/2, a quarter 0 and a quarter 1. The average is then (7/2 + x) / 8.
    certain, split = [[1, 0]] * 4, [[1, 1], [1, 1], [0, 0], [0, 0]]
    rows = [result(name, certain) for name in EIGHT[:-1]]
    clusters = {"q0": "a", "q1": "a", "q2": "b", "q3": "b"}
    rows.append(result(EIGHT[-1], split, cluster="seed", clusters_of=clusters))
    rows[0] |= {"cluster": "question"}
    found = build("m", rows)["average"]
    assert found["accuracy"] == 0.5
    assert found["interval"] == [3.5 / 8, 4.5 / 8]
    assert found["graders"] == {"math-verify": 0.5, "mathruler": 0.5}


def test_the_average_is_of_the_eight_only_and_unweighted():
    rows = [result(name) for name in EIGHT[1:]]
    rows += [result("mathverse", [[1, 1, 1, 1]] * 8), result("mmmu_val", [[0, 0]] * 4)]
    rows += [result("glyphs", [[0]] * 4)]
    average = build("m", rows)["average"]
    assert average["accuracy"] == pytest.approx((7 * 7 / 16 + 1) / 8)
    assert average["graders"]["mathruler"] == pytest.approx(average["accuracy"])


def test_no_average_unless_all_eight_are_there_in_full():
    report = build("m", [result(name) for name in EIGHT if name not in ("geo3k", "mmk12")])
    assert report["average"] is None
    assert report["no_average"] == "needs all eight in full (not here: mmk12, geo3k)"
    rows = [result(name) for name in EIGHT]
    rows[5] |= {"settings": PAPER | {"limit": 4}}
    report = build("m", rows)
    assert report["average"] is None
    assert report["no_average"] == "needs all eight in full (limited: We-Math)"
    report = build("m", [result("glyphs")])
    assert (report["average"], report["no_average"]) == (None, "")


@pytest.mark.parametrize(
    ("counts", "reason"),
    [
        ({"kept": 3}, "Geometry3K 3 of 4"),
        ({"kept": 9}, "Geometry3K 9 of 4"),  # other data, if not less
        ({"all": 7}, None),  # what the filter took does not count
        (None, "Geometry3K unknown"),
    ],
)
def test_no_average_over_a_part_of_a_benchmark(counts, reason):
    rows = [result(name) for name in EIGHT]
    rows[3] |= {"rows": None if counts is None else WHOLE | counts}
    report = build("m", rows)
    if reason is None:
        assert report["average"] is not None
        return
    assert report["average"] is None
    assert report["no_average"] == f"needs all eight in full (questions in the data: {reason})"


def test_wrong_use():
    with pytest.raises(ValueError, match="each benchmark once"):
        build("m", [])
    with pytest.raises(ValueError, match="each benchmark once"):
        build("m", [result("geo3k"), result("geo3k")])


# --- warnings -------------------------------------------------------------------------------------


def test_nothing_to_warn_of():
    rows = [result(name, training=TRAINING) for name in EIGHT if name != "mmk12"]
    assert build("Qwen2.5-VL-7B", rows)["warnings"] == []
    own = result("glyphs", profile="matched", grader="math-verify", settings=PAPER | {"top_p": 0.9})
    assert build("m", [own])["warnings"] == []  # nothing published is beside it


def test_warnings_say_what_differs_and_for_which_benchmarks():
    trained = TRAINING | {"top_p": 0.99, "min_pixels": None, "instruction": "Think."}
    rows = [result("geo3k", training=trained, warnings=["600 rows, expected 601."]), result("mmk12", training=trained)]
    assert build("m", rows)["warnings"] == [
        "Trained with top_p 0.99, evaluated with 1.0.",
        "Trained with min_pixels unset, evaluated with 1024.",
        "Trained with another instruction than evaluated with.",
        "The MMK12 test set is also what the authors' code validates on while training.",
        "Geometry3K: 600 rows, expected 601.",
    ]


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        (
            {"settings": PAPER | {"limit": 100}},
            "Only the first 100 questions were asked (a limit is set); the printed numbers are of "
            "all questions and do not compare.",
        ),
        (
            {"profile": "matched", "settings": PAPER | {"top_p": 0.99, "top_k": 0}},
            "Profile matched, not published: the printed numbers are sampled otherwise (top_p 1.0, here "
            "0.99; top_k 50, here 0).",
        ),
        (
            {"settings": PAPER | {"temperature": 0.6}},
            "The printed numbers of Qwen2.5-VL-7B are sampled otherwise: temperature 1.0, here 0.6.",
        ),
    ],
)
def test_what_does_not_compare_with_the_published_numbers(changes, warning):
    assert build("m", [result("geo3k", **changes)])["warnings"] == [warning]


def test_the_length_limit_is_that_of_the_family():
    assert build("m", [result("geo3k")], "Qwen2.5-VL-32B")["warnings"] == [
        "The printed numbers of Qwen2.5-VL-32B are sampled otherwise: max_new_tokens 4096, here 2048."
    ]
    longer = result("geo3k", settings=PAPER | {"max_new_tokens": 4096})
    assert build("m", [longer], "Qwen2.5-VL-32B")["warnings"] == []


def test_benchmarks_asked_in_different_ways():
    rows = [result("geo3k"), result("wemath", settings=PAPER | {"seed": 1})]
    (warning,) = build("m", rows)["warnings"]
    assert warning.startswith("Settings, samples or grader differ between the benchmarks")


# --- the files ------------------------------------------------------------------------------------


def test_the_files(tmp_path):
    report = build("Qwen2.5-VL-7B", all_nine())
    files = write(report, tmp_path / "new" / "folder")
    assert [path.name for path in files] == ["report.json", "report.csv", "report.md", "report.tex"]
    assert all(path.parent == tmp_path / "new" / "folder" for path in files)
    assert len(list(files[0].parent.iterdir())) == 4
    written = json.loads(files[0].read_text())
    assert intact(written)
    assert {name: value for name, value in written.items() if name != SEAL} == report
    assert files[1].read_text() == as_csv(report)
    again = {path: path.read_bytes() for path in files}
    write(build("Qwen2.5-VL-7B", all_nine()), files[0].parent)
    assert {path: path.read_bytes() for path in files} == again


def test_json_holds_every_mark_and_the_paper_s_order():
    report = build("m", all_nine())
    assert [row["benchmark"] for row in report["results"]] == list(TITLES)
    assert report["results"][0]["right"]["q1"] == [1, 1, 0, 0]
    assert report["results"][0]["clusters_of"]["q3"] == "p1"
    assert len(report["published"]["rows"]) == 18
    # results.json sorts its keys; here levels and ks are as people list them.
    assert list(report["results"][0]["breakdowns"]["version"]) == [
        "Text Dominant",
        "Vision Intensive",
        "Vision Dominant",
    ]
    assert list(report["results"][0]["pass_at_k"]) == ["1", "2", "4", "16"]


def test_csv_has_one_row_per_number():
    rows = tidy(build("m", all_nine()))
    assert tuple(rows[0]) == COLUMNS
    found = {
        (
            *(r[key] for key in ("model", "benchmark", "group", "group_value", "metric", "grader")),
            r["verdict"].removesuffix("ours"),
        ): r
        for r in rows
    }
    assert len(found) == len(rows)

    def numbers(*key: str, verdict: str = "") -> list[str]:
        row = found["m", *key, verdict]
        return [row["value"], row["low"], row["high"], row["n"], row["unit"]]

    assert numbers("geo3k", "", "", "accuracy", "mathruler") == ["43.75", "10.0", "80.0", "4", "%"]
    assert numbers("geo3k", "", "", "accuracy", "math-verify") == ["50.0", "25.0", "75.0", "4", "%"]
    assert numbers("geo3k", "", "", "no_answer", "mathruler") == ["2", "", "", "16", "responses"]
    assert numbers("geo3k", "", "", "pass_at_4", "mathruler") == ["75.0", "", "", "4", "%"]
    assert numbers("geo3k", "", "", "majority_at_4", "mathruler") == ["50.0", "", "", "4", "%"]
    assert numbers("geo3k", "settings", "max_pixels", "setting", "")[0] == "589824"
    level = ("mathverse", "version", "Vision Dominant", "accuracy", "mathruler")
    assert numbers(*level) == ["40.0", "30.0", "50.0", "2", "%"]
    worst = ("dynamath", "score", "worst_case", "score", "mathruler")
    assert numbers(*worst) == ["37.5", "20.0", "50.0", "4", "%"]
    assert numbers("average", "", "", "accuracy", "mathruler")[0] == "43.75"
    published = ("geo3k", "", "", "accuracy", "mathruler")
    assert numbers(*published, verdict="as published") == ["37.5", "5.0", "70.0", "4", "%"]
    assert numbers("geo3k", "", "", "ours_only", "") == ["1", "", "", "16", "responses"]
    assert numbers("geo3k", "", "", "by_content", "") == ["2", "", "", "16", "responses"]
    mean = numbers("average", "", "", "accuracy", "mathruler", verdict="as published")
    assert (mean[0], mean[3]) == ("37.5", "8")
    model = ("Qwen2.5-VL-7B + VPPO", "average", "", "", "accuracy", "mathruler", "as published")
    paper = found[model]
    assert (paper["value"], paper["profile"]) == ("57.5", "")
    assert paper["source"].startswith("arXiv 2510.09285, Table 1")
    assert {row["source"] for row in rows if row["model"] == "m"} == {""}


def test_markdown_tables():
    text = as_markdown(build("m", all_nine()))
    main, verdicts, counted, outcomes, scores, versions = markdown_tables(text)
    assert main[0] == ["model", *TITLES.values(), "average"]
    assert all(len(row) == 11 for row in main)
    assert main[1] == ["Qwen2.5-VL-7B", "39.0", "55.7", "42.5", "37.1", "18.4", "46.4", "42.4", "25.1", "", "38.3"]
    assert len(main) == 1 + 18 + 1
    # As published, and that alone, is in the table with the printed rows.
    assert main[-1][:2] == ["**m (published profile)**", "**37.5 [5.0, 70.0]**"]
    assert not any("43.8" in cell for cell in main[-1])
    assert "graded as published (mathruler alone, on the boxed text)" in text
    assert verdicts[1] == ["MathVerse", "43.8 [10.0, 80.0]", "37.5 [5.0, 70.0]", "16", "1", "1", "0", "2"]
    assert verdicts[-1][0] == "average"
    assert counted[1] == [
        "MathVerse",
        "4 x 4",
        "2 problems",
        "published",
        "mathruler",
        "43.8",
        "50.0",
        "60.0",
        "75.0",
        "90.0",
        "50.0",
    ]
    assert counted[2][2] == "4 questions"
    assert outcomes[0] == ["benchmark", "correct", "wrong", "no answer", "timed out", "truncated", "tokens"]
    assert outcomes[1] == ["MathVerse", "7", "6", "2", "0", "1", "321"]
    assert scores[1][:3] == ["DynaMath", "worst case", "37.5 [20.0, 50.0]"]
    assert versions[2] == ["Vision Intensive", "40.0 [30.0, 50.0]", "2"]
    assert "max_pixels 589824" in text
    assert "&lt;think&gt;" in text
    assert "The MMK12 test set" in text


def test_a_test_set_without_printed_numbers_is_ours():
    report = build("m", [result("mytest")])
    main, verdicts, *_ = markdown_tables(as_markdown(report))
    assert main[1:] == [["**m (published profile)**", "**43.8 [10.0, 80.0]**"]]
    assert verdicts[1][1:3] == ["43.8 [10.0, 80.0]", "37.5 [5.0, 70.0]"]
    for text in (as_markdown(report), as_latex(report)):
        assert "then the grader (ours), mean of 4 samples" in text
        assert "graded as published" not in text


def test_latex_tables():
    report = build("m", all_nine())
    text = as_latex(report)
    balanced(text)
    tables = latex_tables(text)
    assert len(tables) == text.count(r"\begin{tabular}") == text.count(r"\end{table*}") == 6
    for spec, rows in tables:
        assert {len(row) for row in rows} == {len(spec)}
    spec, main = tables[0]
    assert spec == "l" + "r" * 10
    assert main[4][-1] == "57.5"
    assert main[-2][:2] == [r"\textbf{m (published profile)}", r"\textbf{37.5}"]
    assert main[-1][:2] == [r"95 \% interval", "[5.0, 70.0]"]
    for word in (r"\toprule", r"\bottomrule", r"\centering"):
        assert text.count(word) == 6
    assert "% The MMK12 test set" in text


def balanced(text: str) -> None:
    """Every brace and environment is closed: a strict parser reads the text to its end."""
    walker = LatexWalker(text, tolerant_parsing=False)
    nodes, start, length = walker.get_latex_nodes()
    assert (start, length) == (0, len(text))
    assert nodes


# --- hostile names --------------------------------------------------------------------------------

HOSTILE = [
    '=HYPERLINK("http://x","y")',
    "+1",
    "-1",
    "@SUM(A1)",
    "＝1",
    " \t=1",
    "a|b",
    "a\nb",
    "[x](http://y)",
    "<script>alert(1)</script>",
    "`code`",
    "*a* _b_ **c** ~d~ # $e$",
    "a\\",
    "\\input{/etc/passwd}",
    "100% & {more} ^~_#$",
    "[2cm]",
    "[1.0]",
    "%",
    "}",
    "\x1b[31mred",
    "a\u202eb",
    "é 中 😀",
    'a, "b"',
    "[bold]x[/bold]",
    "\ud800",
    "--",
    "1 x 2\n| 3",
    "&amp;",
]


def hostile_report(name: str) -> dict[str, Any]:
    level = {name: {"accuracy": 0.4, "interval": [0.3, 0.5], "questions": 2}}
    scores = {name: {"value": 0.4, "interval": [0.3, 0.5], "about": name}}
    changes = {"breakdowns": {name: level}, "scores": scores, "warnings": [name], "grader": name}
    row = result("wemath", **changes)
    row["graders"] = {name: row["graders"]["mathruler"], "b" + name: row["graders"]["math-verify"]}
    return build(name, [row])


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_leaves_every_format_whole(name, tmp_path, monkeypatch):
    report = hostile_report(name)
    files = write(report, tmp_path)
    assert json.loads(files[0].read_text())["model"] == name
    tables = [files[1].read_text(), files[2].read_text(), files[3].read_text()]
    terminal = "\n".join(shown(report, 100, monkeypatch))
    for text in (*tables, terminal):
        assert all(c.isprintable() or c == "\n" for c in text)

    harmless = build("name", [hostile_report("name")["results"][0]])
    rows, expected = tidy(report), tidy(harmless)
    assert len(rows) == len(expected)
    assert all(set(row) == set(COLUMNS) for row in rows)  # None would name surplus cells
    assert not any(cell[:1] in tuple("=+-@＝\t") for row in rows for cell in row.values() if cell)

    found, wanted = markdown_tables(tables[1]), markdown_tables(as_markdown(harmless))
    assert [[len(row) for row in table] for table in found] == [[len(row) for row in table] for table in wanted]
    balanced(tables[2])
    found_tex, wanted_tex = latex_tables(tables[2]), latex_tables(as_latex(harmless))
    assert [[len(row) for row in table] for _, table in found_tex] == [
        [len(row) for row in table] for _, table in wanted_tex
    ]
    assert all(not row[0].startswith("[") for _, table in found_tex for row in table)


def test_cells_say_what_they_said():
    assert csv_text("=1+1") == "'=1+1"
    assert csv_text("plane = flat") == "plane = flat"
    assert latex_text("50% of A&B_c {x} \\d") == r"50\% of A\&B\_c \{x\} {\textbackslash}d"
    assert latex_text("[2] --x é") == r"{[}2{]} {-}-x \'e"
    assert markdown_text("a|b *c* [d](e) <f> snake_case _g_") == (r"a\|b \*c\* \[d\](e) &lt;f&gt; snake_case \_g\_")


# --- the terminal ---------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [80, 100, 120])
def test_the_terminal_shows_whole_lines(width, monkeypatch):
    lines = shown(build("Qwen2.5-VL-7B", all_nine()), width, monkeypatch)
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert "printed: Qwen2.5-VL-7B" in text
    assert "…" not in text
    begun = lines.index(next(line for line in lines if line.strip() == "ours, published profile"))
    between = next(i for i, line in enumerate(lines) if "as published  " in line)
    end = next(i for i, line in enumerate(lines) if line.startswith("verdicts"))

    def table(lines: list[str]) -> dict[str, list[str]]:
        return {line.split()[0]: line.split() for line in lines if line.strip()}

    ours, rows = table(lines[begun:between]), table(lines[between:end])
    assert ours["MathVerse"][1:] == ["43.8", "[10.0,", "80.0]", "50.0"]
    assert ours["average"][1] == "43.8"
    # Printed numbers stand beside the verdict as published, and no other.
    assert rows["MathVerse"][1:] == ["37.5", "[5.0,", "70.0]", "39.0", "66.5", "68.3", "71.6", "68.6"]
    assert "MMMU" in ours
    assert "MMMU" not in rows  # nothing printed
    assert rows["average"][1:2] == ["37.5"]
    assert rows["average"][-5:] == ["38.3", "53.1", "55.0", "57.5", "55.3"]
    words = " ".join(text.split())
    assert (
        "ours and as published differ on 9 of 144 answers: 9 are right by ours only, 0 as published "
        "only; wrong by ours, but the text of the right option: 18" in words
    )
    assert "profile published: temperature 1.0, top_p 1.0, top_k 50, max_new_tokens 2048" in words
    assert "all ten variants of a seed right, mean over the samples; 1 of 2 seeds" in words
    assert words.index("The MMK12 test set") > words.index("instruction:")


def test_the_terminal_shows_the_family_of_the_model_and_no_other(monkeypatch):
    text = "\n".join(shown(build("m", [result("geo3k")], "a/Qwen3-VL-8B"), 80, monkeypatch))
    assert "printed: Qwen3-VL-8B" in text
    assert "later release, not of the paper" in " ".join(text.split())
    assert "GRPO" not in text
    assert re.search(r"Geometry3K +43\.8 \[10\.0, 80\.0\] +50\.0$", text, re.M)
    assert re.search(r"Geometry3K +37\.5 \[5\.0, 70\.0\] +57\.5 +71\.9", text)
    assert "needs all eight in full" in text


def test_the_terminal_without_anything_published(monkeypatch):
    text = "\n".join(shown(build("m", [result("glyphs")]), 80, monkeypatch))
    assert "printed" not in text
    assert "average" not in text
    assert "warnings" not in text


def test_profiles_that_differ_are_named_beside_each_number(monkeypatch):
    rows = [result("geo3k"), result("wemath", profile="matched")]
    report = build("m", rows)
    text = "\n".join(shown(report, 100, monkeypatch))
    assert "Geometry3K (published) " in text
    assert "We-Math (matched) " in text
    main = markdown_tables(as_markdown(report))[0]
    assert main[0] == ["model", "Geometry3K (published)", "We-Math (matched)"]
    assert main[-1][0] == "**m**"


def test_groups_that_no_question_has_are_no_tables(tmp_path, monkeypatch):
    """The authors' files tell no version, subject or level: these groups are empty in their results."""
    report = build("m", [result("mathverse", breakdowns={"version": {}, "subject": {}})])
    assert not any("by version" in line for line in shown(report, 80, monkeypatch))
    write(report, tmp_path)
    stored = report | {"results": [report["results"][0] | {"breakdowns": {"version": {}}}]}
    assert shown(stored, 80, monkeypatch)


def earlier(name: str) -> dict[str, Any]:
    """A result as earlier versions wrote it: one verdict, and another name of the profile."""
    new = ("format", "as_published", "right_as_published", "differ")
    found = {key: value for key, value in result(name).items() if key not in new}
    return found | {"profile": "paper"}


def test_results_of_earlier_versions_are_read_as_what_they_are(tmp_path, monkeypatch):
    report = build("m", [earlier(name) for name in EIGHT])
    assert {row["profile"] for row in report["results"]} == {"published"}
    assert report["average"]["accuracy"] == pytest.approx(0.4375)
    assert report["average"]["as_published"] is None
    assert any("earlier version, which had no verdict as published" in w for w in report["warnings"])
    (main, *_) = markdown_tables(as_markdown(report))
    assert main[-1][:2] == ["**m (published profile)**", "**43.8 [10.0, 80.0]**"]
    assert len(main) == 2  # and nothing printed beside it
    assert "as earlier versions did" in as_markdown(report)
    terminal = " ".join(" ".join(shown(report, 80, monkeypatch)).split())
    assert "43.8 [10.0, 80.0]" in terminal
    for text in (as_csv(report), as_latex(report)):
        assert "43.75" in text or "43.8" in text
    mixed = build("m", [earlier("geo3k"), result("wemath")])
    main, verdicts, *_ = markdown_tables(as_markdown(mixed))
    assert main[-1] == ["**m (published profile)**", "", "**37.5 [5.0, 70.0]**"]
    assert [row[0] for row in verdicts[1:]] == ["We-Math"]


def test_warnings_of_row_counts_are_told_together(monkeypatch):
    counted = "15 rows before the filter, expected 3940; 10 after it, expected 2180"
    rows = [result(name, warnings=[counted.replace("15", str(20 + i))]) for i, name in enumerate(EIGHT)]
    rows[1]["warnings"] = ["7 questions, expected 3666", "2 rows left out (2 no image). First: x"]
    report = build("m", rows)
    assert f"MathVerse: {counted.replace('15', '20')}" in report["warnings"]
    for text in (as_markdown(report), as_latex(report)):
        assert text.count("rows before the filter, expected 3940; 10 after it") == 7
    lines = shown(report, 80, monkeypatch)
    start = lines.index("           Numbers of rows other than expected (before the filter; after it):")
    assert lines[start + 1 :] == [
        "           MathVerse: 20, expected 3940; 10, expected 2180",
        "           DynaMath: 7 questions, expected 3666",
        *(f"           {TITLES[name]}: {22 + i}, expected 3940; 10, expected 2180" for i, name in enumerate(EIGHT[2:])),
    ]
    above = " ".join(" ".join(lines[:start]).split())
    assert "DynaMath: 2 rows left out (2 no image). First: x" in above
    assert "MathVerse: 2" not in above


def test_one_warning_of_row_counts_is_a_whole_sentence(monkeypatch):
    counted = "15 rows before the filter, expected 601; 10 after it, expected 601"
    report = build("m", [result("geo3k", warnings=[counted]), result("mmk12")])
    words = " ".join(" ".join(shown(report, 80, monkeypatch)).split())
    assert f"Geometry3K: {counted}" in words
    assert "Numbers of rows" not in words


# --- untrusted text -------------------------------------------------------------------------------

RAW = [
    "\x1b[2J\x1b[31mred",
    "\x1b]0;title\x07",
    "\x9b31m",
    "\x90q\x9c",
    "a\u202eb\u2066c",
    "\ud800",
    "\x00\x7f",
    "a\rb",
    "a\x0bb\u2028c",
]


def printed(console: Any, act: Any) -> str:
    with console.capture() as capture:
        act()
    return capture.get()


@pytest.mark.parametrize("text", RAW)
def test_control_characters_never_reach_the_terminal(text):
    shown_texts = [
        printed(display.console, lambda: display.line(text, text)),
        printed(display.console, lambda: display.columns([[text, "b"], ["c", text]])),
        printed(display.errors, lambda: display.show_error(UserError(text, text, text))),
        printed(display.console, lambda: watch().note(text)),
        printed(display.console, lambda: watch().note(f"WARNING {text}")),
        printed(display.console, lambda: watch().say(text)),
    ]
    for found in shown_texts:
        assert all(c.isprintable() or c == "\n" for c in found), found


def watch() -> live.PlainWatch:
    return live.PlainWatch(Chain(Config(), Path("run")))


def test_columns_stay_columns():
    rows = [["a\nb\x1bc", ":skull:", "x"], ["[bold]d[/bold]", ":skull:", "y"]]
    assert printed(display.console, lambda: display.columns(rows)) == (
        "a b\ufffdc" + " " * 11 + ":skull:  x\n[bold]d[/bold]  :skull:  y\n"
    )


def test_a_line_break_cannot_begin_a_line_of_its_own():
    found = printed(display.console, lambda: display.line("note", "harmless\nerror      all is lost"))
    assert found == "note       harmless\n           error      all is lost\n"
    error = UserError("a\nerror  b", ":skull: [red]c[/red]\\", "d\ne")
    found = printed(display.errors, lambda: display.show_error(error))
    assert found == ("error  a\n       error  b: :skull: [red]c[/red]\\\n       d\n       e\n")


# --- after Ctrl-C ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("again", "hint"),
    [
        (None, "vppo train --run small"),
        ("the same command goes on where it was", "the same command goes on where it was"),
    ],
)
def test_how_to_go_on_after_ctrl_c(again, hint, tmp_path, monkeypatch):
    monkeypatch.setattr(display, "_running", [])
    chain = Chain(Config(), tmp_path / "small")
    with pytest.raises(Interrupted), live.watching(chain, as_json=True, again=again):
        raise Interrupted
    assert printed(display.errors, display.show_interrupted) == (
        f"stopped    everything committed so far is kept\nnext       {hint}\n"
    )


def test_no_hint_once_all_is_done(tmp_path, monkeypatch):
    monkeypatch.setattr(display, "_running", [])
    with live.watching(Chain(Config(), tmp_path / "small"), as_json=True):
        pass
    assert "next" not in printed(display.errors, display.show_interrupted)
