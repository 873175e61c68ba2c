"""``vppo report``: the page of a real run says what its artifacts say."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from browser import Browser, chromium, page_data, tokens
from command_line import Command, given, vppo
from imported import HEAVY, imported_by
from looks import write_looks
from PIL import Image
from small_results import result

from evals.report.build import build, write
from pipelines import runs
from pipelines import vppo as math_of
from pipelines.config import settings
from pipelines.contents import file_hash, sealed
from pipelines.disk.records import Look, schema
from pipelines.page import embedded_json, packed, page
from vppo_cli.report import collect
from vppo_cli.report.curves import dependency
from vppo_cli.report.entries import viewer
from vppo_cli.report.figures import figures, pooled, read
from vppo_cli.report.lines import Line, fold
from vppo_cli.report.source import RunSource, Vocabulary, spread, spread_order, vocabulary
from vppo_cli.report.tables import evaluations
from vppo_cli.report.words import WordCount


@dataclass
class Made:
    """A finished run with second views of two prompts a step, another beside it, and their page."""

    runs: Path
    source: RunSource
    page: Path
    told: dict[str, Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def made(finished: tuple[Path, Command], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    runs = tmp_path_factory.mktemp("report") / "runs"
    for name in ("small", "other"):
        shutil.copytree(finished[0], runs / name)
    make_different(runs / "other")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VPPO_RUNS", str(runs))
        source = RunSource.open("small")
        for step in source.scored:
            enter(write_looks(source, step))
        page = runs.parent / "page.html"
        told = vppo("report", "small", "--compare", "other", "--out", page, "--json", runs=runs).succeeded().json
        yield Made(runs, source, page, told)


def make_different(run: Path) -> None:
    """Another value of a setting that no key depends on, and curves that can be told apart."""
    config = run / "config.yaml"
    text = config.read_text()
    assert "batch_prompts: 64" in text
    changed = text.replace("batch_prompts: 64", "batch_prompts: 32")
    config.write_text(changed.partition("\n")[2])  # by hand: without the hash
    for path in run.glob("steps/*/rollout-*/manifest.json"):
        manifest = json.loads(path.read_text())
        manifest["metrics"]["accuracy"] = 0.25
        path.write_text(json.dumps(sealed(manifest)))


def test_the_page_is_one_small_file_and_asks_for_nothing(browser: Browser, made: Made) -> None:
    assert made.told["page"] == str(made.page)
    assert made.told["bytes"] == made.page.stat().st_size < 20e6
    assert made.told["viewer_steps"] == [1, 2, 3]
    opened = browser.open(made.page)
    opened.page.wait_for_selector(".chart svg")
    opened.assert_harmless()
    assert [u for u in opened.requests if u.startswith("file:")] == [made.page.as_uri()]


def test_shades_marks_and_numbers_are_those_of_the_parquet(browser: Browser, made: Made) -> None:
    opened = browser.open(made.page)
    rollouts, scores = (table.to_pylist() for table in made.source.tables(2))
    opened.page.select_option("[aria-label=Step]", "2")
    option = opened.page.locator("[aria-label=Prompt] option").nth(1).get_attribute("value")
    opened.page.select_option("[aria-label=Prompt]", option)
    words = vocabulary(made.source.chain)
    assert words is not None
    for index in range(8):
        opened.page.locator(".chip").nth(index).click()
        found = tokens(opened)
        perception = scores[1]["perception"][index]
        assert [t["perception"] for t in found] == pytest.approx(perception, rel=1e-5)
        assert [t["kept"] for t in found] == scores[1]["keep"][index]
        texts = [words.text(token) for token in rollouts[1]["response_ids"][index]]
        assert [t["text"] for t in found] == texts
        # The colour itself: further from the ground where perception is higher.
        ground = found[int(np.argmin(perception))]["background"]
        away = [abs(t["background"][2] - ground[2]) for t in found]
        order = np.argsort(perception, kind="stable")
        assert all(np.diff(np.array(away)[order]) >= -1e-9)
        facts = " ".join(opened.page.inner_text(".facts-of").split())
        assert f"Outcome {rollouts[1]['outcome'][index].replace('_', ' ')}" in facts
        assert f"Length {len(texts)} tokens" in facts
    opened.page.locator(".tokens .token").first.hover()
    assert "</script>" in opened.page.inner_text(".inspector")  # an alternative, as text
    assert opened.page.locator(".images img").count() == 2
    opened.assert_harmless()


def test_two_runs_lie_over_each_other(browser: Browser, made: Made) -> None:
    opened = browser.open(made.page)
    opened.page.wait_for_selector(".chart svg")
    chart = opened.page.locator("figure.chart").first
    assert chart.locator(".curve.run-0").count() == chart.locator(".curve.run-1").count() == 1
    assert opened.page.locator("#curves .legend li").all_inner_texts() == ["small", "other"]
    chart.locator("svg").hover(position={"x": 60, "y": 80})  # at the first step
    told = opened.page.inner_text("#tip").split("\n")
    accuracy = made.source.rows[0]["rollout/accuracy"]
    assert told[0] == "step 1"
    assert told[told.index("other") + 1] == "25 %"
    shown = float(told[told.index("small") + 1].removesuffix(" %"))
    assert shown == pytest.approx(100 * accuracy, abs=0.06)
    differing = opened.page.locator("table.settings tr.differs:visible th code").all_inner_texts()
    assert differing == ["rollout.batch_prompts", "eval.batch_prompts"]
    opened.assert_harmless()


def test_charts_can_be_read_by_keyboard(browser: Browser, made: Made) -> None:
    opened = browser.open(made.page)
    svg = opened.page.locator("figure.chart svg").first
    svg.focus()
    for _ in range(2):
        opened.page.keyboard.press("ArrowRight")
    assert opened.page.inner_text(".tip-head") == "step 2"
    assert "Accuracy" in (svg.get_attribute("aria-label") or "")


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_window(dark: bool, width: int, browser: Browser, made: Made) -> None:
    opened = browser.open(made.page, width=width, dark=dark)
    opened.page.wait_for_selector(".chart svg")
    opened.page.click("summary")
    assert opened.sideways() == 0
    assert opened.page.get_attribute("html", "data-theme") == ("dark" if dark else "light")
    token = opened.page.locator(".tokens .token").nth(2)
    token.click()
    assert opened.sideways() == 0
    assert opened.page.is_visible(".inspector .token-head")
    opened.assert_harmless()


def test_what_is_drawn_is_what_metrics_and_manifests_say(made: Made) -> None:
    sections = collect([made.source])
    charts = {chart["title"]: chart for group in sections["curves"]["groups"] for chart in group["charts"]}
    rows = made.source.rows
    for title, key in (
        ("Accuracy", "rollout/accuracy"),
        ("Entropy", "score/entropy"),
        ("Gradient norm", "update/grad_norm"),
        ("Policy KL", "update/policy_kl"),
        ("Clipped above", "update/clipped_high"),
        ("Engine mismatch", "score/mismatch_mean"),
        ("Response length", "rollout/response_tokens_mean"),
    ):
        series = charts[title]["series"][0]
        assert series["x"] == [1, 2, 3]
        assert series["y"] == pytest.approx([row[key] for row in rows], rel=1e-4)
    manifest = made.source.chain.score(2).manifest()
    assert manifest is not None
    assert charts["Score time"]["series"][0]["y"][1] == pytest.approx(manifest["seconds"], rel=1e-4)
    speed = charts["Rollout speed"]["series"][0]["y"][0]
    seconds = (made.source.chain.rollout(1).manifest() or {})["seconds"]
    assert speed == pytest.approx(rows[0]["rollout/tokens_sampled"] / seconds, rel=1e-4)
    assert charts["Score speed"]["series"][0]["y"][1] == pytest.approx(
        count_tokens(made.source, 2) / manifest["seconds"], rel=1e-4
    )


def count_tokens(source: RunSource, step: int) -> int:
    file = source.chain.score(step).path / "scores.parquet"
    return sum(len(r) for group in pq.read_table(file)["perception"].to_pylist() for r in group)


def test_figures_are_counted_from_every_token(made: Made) -> None:
    sections = collect([made.source])
    charts = {chart["title"]: chart for chart in sections["figures"]["charts"]}
    reading = read(made.source)
    everything = np.concatenate(reading.perception)
    assert len(everything) == sum(count_tokens(made.source, step) for step in (1, 2, 3))
    assert sum(charts["Token perception"]["series"][0]["y"]) == pytest.approx(1, abs=1e-3)
    curve = charts["Few tokens look"]["series"][0]
    at = curve["x"].index(10.0)
    highest = np.sort(everything)[::-1]
    top = highest[: round(len(highest) / 10)].sum() / highest.sum()
    assert curve["y"][at] == pytest.approx(top, abs=2e-3)
    kept = charts["Perception in kept tokens"]["series"][0]["y"]
    assert kept == pytest.approx([r["score/perception_in_kept"] for r in made.source.rows], abs=1e-3)


def test_words_join_letters_and_hold_all_perception(made: Made) -> None:
    words = vocabulary(made.source.chain)
    assert words is not None
    count = WordCount(words)
    reading = read(made.source, count)
    rows = count.words()
    assert sum(row[1] for row in rows) == pytest.approx(np.concatenate(reading.perception).sum())
    assert rows[0][0].isdigit()  # digits are what has to be read off the image
    assert all(not row[0].isspace() for row in rows)


def test_a_word_is_a_run_of_letters_within_a_response() -> None:
    """` sma` + `ller` is one word of perception 1 + 2; a response's end and `3` end a word."""

    class Texts(Vocabulary):
        def __init__(self) -> None:
            self._texts = {1: " sma", 2: "ller", 3: " 3", 4: "than"}

    count = WordCount(Texts())
    count.add(np.array([1, 2, 3, 4, 4]), np.array([1.0, 2.0, 4.0, 0.5, 0.25]), np.array([4, 1]))
    assert count.words() == [("3", 4.0, 1), ("smaller", 3.0, 1), ("than", 0.75, 2)]


def test_advantages_are_those_of_the_update(made: Made) -> None:
    """What vppo.py gives for the step's rewards and dependencies, all of them, is what the page shows."""
    for step in (1, 3):
        rollouts, scores = (table.to_pylist() for table in made.source.tables(step))
        reward_B = torch.tensor([r for group in rollouts for r in group["reward"]])
        dependency_B = torch.tensor([d for scored in scores for d in scored["dependency"]])
        adv_B = math_of.group_advantages(reward_B, 8)
        shaped_B = math_of.shaping_weights(dependency_B, 0.9) * adv_B
        found = [
            [[r[name] for r in entry["responses"]] for entry in viewer(made.source, None, 10**9, [step]).entries]
            for name in ("advantage", "shaped_advantage")
        ]
        for shown_PG, expected_B in zip(found, (adv_B, shaped_B), strict=True):
            expected_PG = expected_B.reshape(-1, 8)[: len(shown_PG)]  # two a step have second views
            assert np.array(shown_PG) == pytest.approx(expected_PG.numpy(), rel=1e-4)


def test_of_an_update_that_kept_no_advantages_none_are_shown(made: Made, tmp_path: Path) -> None:
    run = Path(shutil.copytree(made.runs / "small", tmp_path / "runs" / "small"))
    (kept,) = run.glob("steps/0002/update-*/advantages.parquet")
    kept.unlink()
    enter(kept)
    vppo("report", "small", runs=run.parent).succeeded()
    data = page_data(run / "report.html")
    known = {
        (entry["step"], r[name] is not None)
        for entry in data["viewer"]
        for r in entry["responses"]
        for name in ("advantage", "shaped_advantage")
    }
    assert known == {(1, True), (2, False), (3, True)}
    assert any("nobody knows what it used" in note for note in data["viewer_notes"])
    assert not any("nobody knows" in note for note in page_data(made.page)["viewer_notes"])


def test_the_viewer_keeps_to_its_bytes_and_says_what_is_left_out(made: Made) -> None:
    words = vocabulary(made.source.chain)
    whole = viewer(made.source, words, 10**9)
    size = sum(len(packed(embedded_json(entry))) for entry in whole.entries)
    assert whole.left_out == []
    assert len(whole.entries) == 6  # two a step have second views
    half = viewer(made.source, words, size // 2)
    assert 0 < len(half.entries) < 6
    assert sum(len(packed(embedded_json(entry))) for entry in half.entries) <= size // 2
    assert half.steps[-1] == 3  # the last step first
    assert half.left_out == [step for step in (1, 2, 3) if step not in half.steps]
    assert any(f"--steps {half.left_out[0]}" in note for note in half.notes)
    one = len(packed(embedded_json(half.entries[-2])))  # step 3's first prompt
    tight = viewer(made.source, words, one - 1)  # less than one prompt: its alternatives go
    assert [r["top"] for entry in tight.entries for r in entry["responses"]] == [None] * 8
    assert viewer(made.source, words, 0).entries == []
    chosen = viewer(made.source, words, 10**9, [2])
    assert {entry["step"] for entry in chosen.entries} == {2}


def test_the_whole_page_keeps_to_its_bytes(made: Made) -> None:
    bare = len(page("small", collect([made.source], most_bytes=0)))
    sections = collect([made.source], most_bytes=80_000)
    assert bare < len(page("small", sections)) < bare + 80_000
    assert sections["viewer_left_out"]


def test_our_row_stands_beside_the_published_ones(
    browser: Browser, finished: tuple[Path, Command], tmp_path: Path
) -> None:
    run = Path(shutil.copytree(finished[0], tmp_path / "runs" / "small"))
    write(build("ours <b>", [result("mathverse"), result("geo3k")]), run / "eval" / "0003")
    vppo("report", runs=tmp_path / "runs").succeeded()
    opened = browser.open(run / "report.html", width=390)
    rows = opened.page.locator("#evaluations table:has(caption) >> nth=0").locator("tr")
    cells = [row.split("\t") for row in rows.all_inner_texts()]
    assert ["Qwen2.5-VL-7B + VPPO", "71.6", "46.5"] in cells  # as printed in the paper
    assert cells[-1][0].startswith("ours <b>")
    assert cells[-1][1].startswith("37.5 [")  # 6 of 16 right as published
    assert opened.sideways() == 0
    opened.assert_harmless()


def test_evenly_spread() -> None:
    assert spread([3, 4, 5], 5) == [3, 4, 5]
    assert spread(range(1, 101), 3) == [1, 51, 100]
    assert spread_order(9)[:5] == [8, 0, 4, 6, 2]
    assert sorted(spread_order(9)) == list(range(9))
    assert spread_order(1) == [0]
    assert spread_order(0) == []


def test_a_run_without_second_views_says_so(browser: Browser, finished: tuple[Path, Command], tmp_path: Path) -> None:
    shutil.copytree(finished[0], tmp_path / "runs" / "bare")
    for looks in (tmp_path / "runs").rglob("looks.parquet"):
        looks.unlink()
        enter(looks)
    done = vppo("report", runs=tmp_path / "runs").succeeded()
    page = tmp_path / "runs" / "bare" / "report.html"
    assert f"wrote      {page}" in done.out
    assert re.search(r"\(\d+\.\d [kM]B\)", done.out)
    assert "next " in done.out
    opened = browser.open(page)
    assert "kept no second views" in opened.page.inner_text("#viewer")
    assert opened.page.locator(".images img").count() == 1
    assert "not recorded" in opened.page.inner_text(".images")
    assert opened.page.locator("[aria-label=Prompt] option").count() == 4
    opened.assert_harmless()


def test_second_views_without_a_perturbed_one(browser: Browser, made: Made, tmp_path: Path) -> None:
    """As an estimator that needs one view leaves them: empty for each response."""
    run = Path(shutil.copytree(made.runs / "small", tmp_path / "runs" / "small"))
    for file in run.rglob("looks.parquet"):
        rows = pq.read_table(file).to_pylist()
        for row in rows:
            row["perturbed_images"] = []
            for name in ("logp_perturbed", "top_q", "top_perturbed", "top_perturbed_p", "top_perturbed_q"):
                row[name] = [[] for _ in row[name]]
        pq.write_table(pa.Table.from_pylist(rows, schema=schema(Look)), file)
        enter(file)
    vppo("report", runs=tmp_path / "runs").succeeded()
    opened = browser.open(run / "report.html")
    opened.page.locator(".tokens .token").nth(3).hover()
    told = " ".join(opened.page.inner_text(".inspector").split())
    assert "with the image perturbed not recorded" in told
    assert "Likeliest with the image" in told
    assert "Likeliest with it perturbed" not in told
    assert "not recorded" in opened.page.inner_text(".images")
    opened.assert_harmless()


def enter(file: Path) -> None:
    """Make a step's manifest say what a file is now; a file that is gone is taken out."""
    path = file.parent / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"].pop(file.name, None)
    if file.exists():
        manifest["files"][file.name] = {"bytes": file.stat().st_size, "sha256": file_hash(file)}
    path.write_text(json.dumps(sealed(manifest)))


def test_one_step_and_no_evaluation(browser: Browser, finished: tuple[Path, Command], tmp_path: Path) -> None:
    run = tmp_path / "runs" / "short"
    shutil.copytree(finished[0], run)
    shutil.rmtree(run / "eval")
    for step in ("0002", "0003"):
        shutil.rmtree(run / "steps" / step)
    (run / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text().splitlines()[0] + "\n")
    vppo("report", "short", runs=tmp_path / "runs").succeeded()
    opened = browser.open(run / "report.html", width=390)
    assert "Not evaluated yet: vppo eval --run short" in opened.page.inner_text("#evaluations")
    assert opened.page.locator("figure.chart .dot").count() > 5  # a point where no line can be
    assert "NaN" not in opened.page.inner_html("main")
    assert opened.sideways() == 0
    opened.assert_harmless()


def test_a_run_that_only_began(browser: Browser, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    settings = ("data.glyphs.train=4", "data.glyphs.validation=2", "data.glyphs.test=2")
    vppo("prepare", "--run", "begun", *given(*settings), runs=runs).succeeded()
    vppo("report", "begun", runs=runs).succeeded()
    opened = browser.open(runs / "begun" / "report.html")
    text = opened.page.inner_text("main")
    assert "No training step is finished yet." in text
    assert "No scored response is on disk" in text
    opened.assert_harmless()


def test_mistakes_are_told(made: Made, tmp_path: Path) -> None:
    for arguments, expected in (
        (("smal",), "Did you mean small?"),
        (("nothing-like-it",), "There: other small."),
        (("small", "--compare", "othr"), "Did you mean other?"),
        (("small", "--compare", "small"), "Name each run once."),
        (("small", "--steps", "7"), "the run has steps 1..3"),
        (("small", "--steps", "x"), "Write 3 or 3..5."),
        (("small", "--out", str(tmp_path)), "is a folder"),
    ):
        done = vppo("report", *arguments, runs=made.runs)
        assert done.code == 2, arguments
        assert expected in done.err
        assert "Traceback" not in done.err


def test_a_run_is_known_by_its_folder_too(made: Made) -> None:
    out = made.runs.parent / "by-path.html"
    told = vppo("report", f"{made.runs}/small/", "--out", out, "--json", runs=made.runs).json
    assert told["run"] == "small"


def test_a_damaged_file_is_named(made: Made, tmp_path: Path) -> None:
    shutil.copytree(made.runs / "small", tmp_path / "runs" / "small")
    scores = next((tmp_path / "runs").rglob("steps/0002/score-*/scores.parquet"))
    content = bytearray(scores.read_bytes())
    content[len(content) // 2] ^= 0xFF
    scores.write_bytes(content)
    done = vppo("report", "small", runs=tmp_path / "runs")
    assert done.code == 2
    assert str(scores) in done.err


def test_nothing_heavy_is_imported(made: Made) -> None:
    out = made.runs.parent / "light.html"
    packages, done = imported_by("report", "small", "--out", str(out), runs=made.runs)
    assert done.returncode == 0, done.stderr
    assert not packages & HEAVY


# --- several runs of a method ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def six(finished: tuple[Path, Command], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of two methods with three runs each, whose accuracy in training is 0.25 and 0.5 in b-2 and b-3."""
    runs = tmp_path_factory.mktemp("six") / "runs"
    for name in ("a-1", "a-2", "a-3", "b-1", "b-2", "b-3"):
        run = Path(shutil.copytree(finished[0], runs / name))
        if name in ("b-2", "b-3"):
            for path in run.glob("steps/*/rollout-*/manifest.json"):
                manifest = json.loads(path.read_text())
                manifest["metrics"]["accuracy"] = 0.25 * int(name[2]) - 0.25
                path.write_text(json.dumps(sealed(manifest)))
    return runs


def test_a_method_is_its_mean_in_a_band(browser: Browser, six: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    told = vppo("report", "--compare", "b-*", "a-*", "--out", page, "--json", runs=six).succeeded().json
    assert (told["run"], told["compared"]) == ("a-*", ["b-*"])
    assert told["runs"] == [["a-1", "a-2", "a-3"], ["b-1", "b-2", "b-3"]]
    data = page_data(page)
    (accuracy,) = (c for g in data["curves"]["groups"] for c in g["charts"] if c["title"] == "Accuracy")
    first, second = accuracy["series"]
    assert (first["run"], first["seeds"], second["run"], second["x"]) == (0, 3, 1, [1, 2, 3])
    assert first["low"] == first["y"] == first["high"]  # three copies of one run
    one = first["y"][1]
    assert second["y"][1] == pytest.approx((one + 0.25 + 0.5) / 3, abs=1e-4)
    assert (second["low"][1], second["high"][1]) == pytest.approx((min(one, 0.25), max(one, 0.5)), abs=1e-4)
    assert "are one run twice" in data["evaluations"]["notes"][0]  # as they are: copies are no seeds
    opened = browser.open(page)
    opened.page.wait_for_selector(".chart svg")
    assert opened.page.locator("#curves .legend li").all_inner_texts() == [
        f"{name}: mean of 3 runs, band from the lowest to the highest" for name in ("a-*", "b-*")
    ]
    chart = opened.page.locator("figure.chart").first
    assert chart.locator(".curve").count() == chart.locator(".band").count() == 2
    chart.locator("svg").hover(position={"x": 60, "y": 80})
    assert re.search(r"b-\*\s+[\d.]+ % \[[\d.]+ %, 50 %\]", opened.page.inner_text("#tip"))
    opened.assert_harmless()


def test_the_head_of_a_methods_page_is_that_of_all_its_runs(browser: Browser, six: Path) -> None:
    there = sorted(path for path in six.rglob("*") if path.name == "report.html")
    told = vppo("report", "b-*", "--compare", "a-*", "--json", runs=six).succeeded().json
    page = six / "reports" / "b-against-a.html"
    assert told["page"] == str(page)
    assert sorted(path for path in six.rglob("*") if path.name == "report.html") == there  # in no run's folder
    found = page_data(page)["summary"]
    sources = [
        json.loads(one.read_text())["metrics"] for one in sorted(six.glob("b-*/steps/0003/rollout-*/manifest.json"))
    ]
    accuracy = [metrics["accuracy"] for metrics in sources]
    facts = {label: (value, remark) for label, value, remark in found["facts"]}
    value, remark = facts["Training accuracy"]
    assert value == f"{100 * sum(accuracy) / 3:.1f} %"
    assert remark.startswith(f"runs {100 * min(accuracy):.1f} to {100 * max(accuracy):.1f} %; from ")
    assert facts["Response length"][1].startswith(f"all runs {sources[0]['response_tokens_mean']:.0f} tokens; from ")
    assert "Best checkpoint" not in facts  # of one run
    assert (found["run"], found["state"], found["done"]) == ("b-*", "finished", 3)
    opened = browser.open(page)
    assert opened.page.inner_text("#summary .line").startswith("b-*: mean of 3 runs, seeds ")
    opened.assert_harmless()


def test_the_methods_average_is_that_of_compare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("dapo-1", "dapo-2", "vppo-1", "vppo-2"):
        method, seed = name.split("-")
        runs.write_config(tmp_path / name, settings.load(None, [f"seed={seed}", f"update.objective={method}"]))
        steps = runs.read_config(tmp_path / name).run.steps
        marks = [
            [[int((q + k + int(seed)) % (2 + of + (method == "dapo")) == 0) for k in (0, 1)] for q in range(8)]
            for of in (0, 1)
        ]
        results = [result(name, rows) for name, rows in zip(("glyphs", "geo3k"), marks, strict=True)]
        write(build(name, results), tmp_path / name / "eval" / f"{steps:04d}")
    monkeypatch.setenv("VPPO_RUNS", str(tmp_path))
    lines = [Line(f"{m}-*", [RunSource.open(f"{m}-{seed}") for seed in (1, 2)]) for m in ("dapo", "vppo")]
    found = evaluations(lines)["changes"]
    assert [row["benchmark"] for row in found] == ["geo3k", "glyphs", "average"]
    told = vppo("compare", "dapo-*", "vppo-*", "--json", runs=tmp_path).json
    changes = [*(one["change"] for one in told["changes"]), told["average"]]
    for row, change in zip(found, changes, strict=True):
        assert [row["difference"], *row["interval"]] == [100 * change[end] for end in ("mean", "low", "high")]


@pytest.mark.parametrize(("estimator", "low", "about"), [("kl", 0, ", cut at 0"), ("log_ratio", -0.1, "")])
def test_a_band_ends_where_what_it_is_of_does(estimator: str, low: float, about: str) -> None:
    rows = [{"step": 1, "score/dependency_mean": 0.1, "score/dependency_std": 0.2}]
    chain = SimpleNamespace(config=settings.load(None, [f"score.estimator={estimator}"]))
    found = dependency([SimpleNamespace(rows=rows, chain=chain)])  # type: ignore[list-item]
    (series,) = found["series"]
    assert (series["low"], series["high"]) == ([low], [0.3])
    assert found["about"] == f"mean ± standard deviation over responses{about}"


@pytest.mark.parametrize("dark", [False, True])
def test_a_table_that_goes_on_is_shaded_where_it_is_cut(dark: bool, browser: Browser, made: Made) -> None:
    page: Any = browser.open(made.page, width=390, dark=dark).page
    page.evaluate("document.querySelector('.bar').style.display = 'none'")
    table = page.locator("#evaluations .scroll", has_text="starting model").first

    def ground() -> list[int]:
        """Distance from paper, at the left edge and at the right, where the table has nothing else."""
        picture = np.asarray(Image.open(io.BytesIO(table.screenshot())).convert("RGB")).astype(int)
        paper = (20, 22, 26) if dark else (255, 255, 255)
        return [int(np.abs(picture[4, x] - paper).sum()) for x in (0, -1)]

    left, right = ground()
    assert left == 0
    assert right > 60
    table.evaluate("(found) => { found.scrollLeft = 9999; }")
    left, right = ground()
    assert left > 60
    assert right == 0


@pytest.mark.parametrize("width", [390, 1280])
def test_the_navigation_of_six_runs_is_in_sight(width: int, browser: Browser, six: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    others = [part for name in ("a-2", "a-3", "b-1", "b-2", "b-3") for part in ("--compare", name)]
    vppo("report", "a-1", *others, "--out", page, runs=six).succeeded()
    opened = browser.open(page, width=width)
    assert opened.page.inner_text("h1") == "a-1 against 5 others"
    opened.page.evaluate("document.getElementById('brand').textContent = 'a-run-with-a-long-name against '.repeat(9)")
    boxes = [opened.page.locator("nav a").nth(i).bounding_box() for i in range(6)]
    shown = [box for box in boxes if box and box["x"] + box["width"] <= width]
    assert len(shown) == 6 if width > 900 else len(shown) >= 3
    nav = opened.page.locator("nav").bounding_box()
    assert nav is not None
    assert nav["x"] + nav["width"] <= opened.page.locator("#theme").bounding_box()["x"]
    assert nav["width"] >= min(400, width / 2)
    assert opened.sideways() == 0


def test_a_band_is_of_one_kind() -> None:
    """Beside a method's band from lowest to highest, no run keeps a range of another meaning."""
    series = [{"run": i, "x": [1, 2], "y": [i, i + 1], "low": [0, 0], "high": [9, 9]} for i in range(3)]
    series[1] = series[1] | {"x": [2, 3], "y": [5, 6]}
    lines = [Line("two", [None, None]), Line("one", [None])]  # type: ignore[list-item]
    found = fold({"about": "mean ± spread", "plain": "mean", "series": [dict(s) for s in series]}, lines)
    assert found["about"] == "mean"
    assert found["series"][0] == {"run": 0, "x": [2], "y": [3], "low": [1], "high": [5], "seeds": 2}
    assert found["series"][1] == {"run": 1, "x": [1, 2], "y": [2, 3]}
    alone = {"about": "mean ± spread", "plain": "mean", "series": series[:1]}
    alone = fold(alone, [Line("a", [None])])  # type: ignore[list-item]
    assert alone == {"about": "mean ± spread", "series": [series[0]]}


def test_perception_has_the_unit_of_its_estimator(made: Made) -> None:
    reading = read(made.source)
    for estimators, known in ((("kl", "k3"), True), (("random", "random"), False), (("kl", "random"), False)):
        configs = [settings.load(None, [f"score.estimator={estimator}"]) for estimator in estimators]
        drawn: Any = [SimpleNamespace(chain=SimpleNamespace(config=config)) for config in configs]
        found = figures(["a", "b"], drawn, [reading, reading])
        assert ("nats" in json.dumps(found)) == known
        assert found["lead"].startswith("a: ")  # of two, it says whose


def test_figures_of_a_method_hold_the_tokens_of_all_its_runs(made: Made) -> None:
    one = read(made.source)
    both = pooled([one, one])
    assert both.steps == one.steps
    assert [len(step) for step in both.perception] == [2 * len(step) for step in one.perception]
    assert both.kept_share == pytest.approx(one.kept_share)
