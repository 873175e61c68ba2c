"""``vppo perceive`` and its Python call: what is measured, told, written and refused."""

import io
import json
import math
import shlex
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from browser import page_data
from command_line import ONE_THREAD, vppo
from families import picture, questions, write_folder
from PIL import Image
from rich.console import Console
from sklearn.metrics import roc_auc_score

from pipelines.config.settings import shipped_config
from pipelines.disk.fingerprint import fingerprint
from pipelines.disk.records import SCORES, Perceived, Rollout, Sample, SampleTable, Scored, read_rows
from pipelines.embedded.glyphs import GlyphsOptions, make_samples, solution, token_roles
from pipelines.errors import UserError
from pipelines.perceive.one import perceive
from pipelines.score.scoring import group_statistics, score
from pipelines.watch import Silent
from vppo_cli.screen.shading import SHADES, scale, shaded, style

assert ONE_THREAD["OMP_NUM_THREADS"] == "1"  # as in the commands, so that numbers can be equal


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """An embedded question with two cells to read: the sample, its image's path."""
    sample = next(s for s in make_samples("test", 20, 0, GlyphsOptions()) if "+" in s.problem)
    path = tmp_path_factory.mktemp("asked") / "cells.png"
    path.write_bytes(sample.images[0])
    return sample, path


def command(asked, *more, **options):
    sample, path = asked
    prompt = sample.problem.removeprefix("<image>")
    runs = path.parent / "runs"
    return vppo("perceive", "--image", path, "--prompt", prompt, *more, runs=runs, **options)


# --- what is measured -----------------------------------------------------------------------------


def test_the_digits_that_were_read_are_marked(asked):
    # The model's own response is marked where it read a digit from the image, and nowhere above.
    sample, _ = asked
    found = command(asked, "--masks", "8", "--seed", "3", "--json").succeeded().json
    roles = token_roles(found["tokens"])
    read = [role == "perception" for role in roles]
    assert sum(read) >= 2
    assert roc_auc_score(read, found["perception"]) == 1.0
    assert all(keep for keep, digit in zip(found["keep"], read, strict=True) if digit)
    least = min(s for s, digit in zip(found["perception"], read, strict=True) if digit)
    most = max(s for s, digit in zip(found["perception"], read, strict=True) if not digit)
    assert least > 5 * most, (found["response"], least, most)
    assert found["problem"] == sample.problem.removeprefix("<image>")


def test_the_digits_of_many_right_responses_are_marked(tmp_path):
    out = tmp_path / "out"
    told = (
        vppo(
            "perceive",
            "--dataset",
            "glyphs",
            "--limit",
            "32",
            "--masks",
            "4",
            "--out",
            out,
            "--json",
            runs=tmp_path / "runs",
        )
        .succeeded()
        .json
    )
    rows = [row for row in read_rows(out / "perception.parquet", Perceived) if row.reward == 1]
    assert len(rows) == told["correct"] > 8
    truth = [[role == "perception" for role in token_roles(row.tokens)] for row in rows]
    flat = [x for row in rows for x in row.perception]
    assert roc_auc_score([x for read in truth for x in read], flat) > 0.97
    kept = [k for row, read in zip(rows, truth, strict=True) for k, digit in zip(row.keep, read, strict=True) if digit]
    assert np.mean(kept) > 0.97
    assert told["dependency_correct"] == pytest.approx(np.mean([row.dependency for row in rows]))


def test_a_response_that_is_given_is_measured_as_if_it_was_written(asked):
    written = command(asked, "--seed", "3", "--json").succeeded().json
    given = command(asked, "--seed", "3", "--json", "--response", written["response"])
    found = given.succeeded().json
    assert found.pop("given")
    assert not written.pop("given")
    assert found == written


def test_the_measure_is_the_scoring_stages(policy, samples, tiny_config, write_prepared, tmp_path):
    # Step 0, position 0: the same mask.
    sample = Sample("example", samples[0].problem, samples[0].images, "")
    table = SampleTable(write_prepared(tmp_path / "data", [sample]) / "train.parquet")
    found = perceive(policy, sample.images[0], sample.problem, solution(samples[0]))
    logp = [[0.0] * len(found.token_ids)] * 2
    group = Rollout(
        "example",
        0,
        [found.token_ids] * 2,
        [found.response] * 2,
        logp,
        [False] * 2,
        [""] * 2,
        ["correct", "wrong"],
        [1.0, 0.0],
        0,
    )
    score(tiny_config, 0, [group], table, policy, tmp_path, Silent())
    [row] = read_rows(tmp_path / SCORES, Scored)
    assert found.perception == pytest.approx(row.perception[0], abs=1e-5)
    assert found.logp == pytest.approx(row.old_logp[0], abs=1e-5)
    assert found.dependency == pytest.approx(row.dependency[0], abs=1e-5)
    assert sum(found.keep) == math.ceil(0.4 * len(found.tokens))


def test_several_masks_are_averaged(policy, samples, tiny_config):
    found = perceive(policy, samples[0].images[0], samples[0].problem, solution(samples[0]), masks=3)
    sample = Sample("example", samples[0].problem, samples[0].images, "")
    group = Rollout("example", 0, [found.token_ids], [found.response], [[]], [False], [], [], [], 0)
    each = [group_statistics(tiny_config, m, [group], [sample], policy).kl for m in range(3)]
    assert not torch.allclose(each[0], each[1])
    mean = torch.stack(each).mean(0).tolist()
    assert found.perception == pytest.approx(mean, abs=1e-6)
    for mask, values in enumerate(each):  # what is shown of one mask is that mask's
        assert found.perception_by_mask[mask] == pytest.approx(values.tolist(), abs=1e-6)
        assert found.by_mask[mask].perception == found.perception_by_mask[mask]
    again = [group_statistics(tiny_config, m, [group], [sample], policy).logp_perturbed for m in range(3)]
    for mask, values in enumerate(again):
        assert found.by_mask[mask].logp_perturbed == pytest.approx(values.tolist(), abs=1e-5)
    assert found.logp_perturbed == found.by_mask[0].logp_perturbed
    assert len({view[0] for view in found.perturbed_images}) == 3
    entry = found.entry()
    assert len(entry["perturbed"]) == len(entry["responses"][0]["masks"]) == 3


def test_images_in_every_form(policy, samples, tmp_path):
    data, problem = samples[0].images[0], samples[0].problem
    path = tmp_path / "a.png"
    path.write_bytes(data)
    forms = [path, str(path), data, Image.open(io.BytesIO(data)), [path], (data,)]
    found = [perceive(policy, form, problem, solution(samples[0])).perception for form in forms]
    assert all(one == found[0] for one in found)


def test_another_image_is_another_example(policy, samples):
    # The policy is the same, and so is the question.
    one, other = (perceive(policy, samples[i].images, "What is a1 + b1?", solution(samples[0])) for i in (0, 1))
    again = perceive(policy, samples[0].images, "What is a1 + b1?", solution(samples[0]))
    assert one.images != other.images
    assert one.perception != other.perception
    assert again == one


def test_a_sampled_response_is_seeded(policy, samples):
    def text(seed, **more):
        return perceive(policy, samples[0].images, samples[0].problem, seed=seed, **more).response

    assert text(1) == text(1)
    assert len({text(seed) for seed in range(6)}) > 1
    short = perceive(policy, samples[0].images, samples[0].problem, max_new_tokens=3)
    assert (short.truncated, len(short.tokens)) == (True, 3)


@pytest.mark.parametrize("estimator", ["kl", "k3", "jsd", "log_ratio", "top1_drop", "argmax_drop", "entropy", "random"])
def test_every_estimator(policy, samples, estimator):
    found = perceive(policy, samples[0].images, samples[0].problem, solution(samples[0]), estimator=estimator)
    assert len(found.perception) == len(found.tokens)
    assert bool(found.perturbed_images) == (estimator not in ("entropy", "random"))
    entry = json.loads(json.dumps(found.entry()))
    assert entry["responses"][0]["tokens"] == found.tokens
    assert (entry["responses"][0]["top_perturbed"] is None) == (not found.perturbed_images)
    assert [len(top) for top in entry["responses"][0]["top"]] == [3] * len(found.tokens)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "idefics3", "internvl"])
def test_every_family(name, tmp_path):
    folder = write_folder(name, tmp_path / "model")
    sample = questions()["two"]
    found = perceive(folder, list(sample.images), sample.problem, max_new_tokens=8)
    tiled = name in ("idefics3", "internvl")
    assert len(found.images) == len(found.perturbed_images[0]) == (4 if tiled else 2)
    assert max(found.perception) > 1e-2
    assert "".join(found.tokens) == found.response


# --- what is told ---------------------------------------------------------------------------------


def test_plain_lines_where_nobody_watches(asked):
    told = command(asked, "--response", solution(asked[0])).succeeded().out
    assert "\x1b" not in told
    lines = [line.split() for line in told.splitlines()]
    weights = fingerprint(shipped_config("tiny_model"))
    assert lines[0] == ["model", "tiny", "(content", f"{weights})", "on", lines[0][-2], "float32"]
    assert "kl between the image and a perturbed one (patch_black 0.5, seed 0)" in told
    assert f"torch {torch.__version__}" in told
    start = lines.index(["token", "kl", "kept"]) + 1
    tokens = [line for line in told.splitlines()[start:] if line[0] in '"(']
    found = command(asked, "--response", solution(asked[0]), "--json").succeeded().json
    assert len(tokens) == len(found["tokens"])
    for line, token, value, keep in zip(tokens, found["tokens"], found["perception"], found["keep"], strict=True):
        assert line.startswith(json.dumps(token) if token else "(end)")
        assert f"{value:.6f}" in line
        assert line.endswith("kept") == keep
    assert "add --out look.html" in told


def entries(page):
    """What the viewer of a page shows."""
    return page_data(page)["viewer"]


def test_a_page_is_written(asked, tmp_path):
    page = tmp_path / "look.html"
    sly = "</script><script>alert(1)</script> 7"
    told = command(asked, "--response", sly, "--out", page).succeeded().out
    assert f"wrote      {page}" in told
    assert "<script>alert" not in page.read_text()
    [entry] = entries(page)
    [response] = entry["responses"]
    assert "".join(response["tokens"]) == sly
    assert len(response["perception"]) == len(response["tokens"]) == len(response["top"])
    assert len(entry["images"]) == len(entry["perturbed"][0]) == 1
    sample, path = asked
    again = perceive("tiny", path, sample.problem.removeprefix("<image>"), sly)
    assert entries(again.to_html(tmp_path / "again.html")) == [entry]


def test_a_checkpoint_of_a_run_is_asked(finished, asked):
    run, _ = finished

    def found(*more):
        sample, path = asked
        return vppo(
            "perceive",
            "--run",
            "small",
            "--image",
            path,
            "--prompt",
            sample.problem,
            "--json",
            "--response",
            solution(sample),
            *more,
            runs=run.parent,
        )

    last, first = found().succeeded().json, found("--checkpoint", "0").succeeded().json
    assert last["model"] == "checkpoint 3 of small"
    assert last["perception"] != first["perception"]
    alone = command(asked, "--response", solution(asked[0]), "--json").succeeded().json
    assert first["perception"] == alone["perception"]  # the run began with the tiny model
    missing = found("--checkpoint", "7")
    assert missing.code == 2
    assert "no such checkpoint" in missing.err


def test_shades():
    # The highest is 2 nats: shades begin at 1, 0.4, 0.1 and 0.02.
    assert [style(x, 2.0) for x in (2, 1, 0.99, 0.4, 0.1, 0.02)] == [
        SHADES[0][1],
        SHADES[0][1],
        SHADES[1][1],
        SHADES[1][1],
        SHADES[2][1],
        SHADES[3][1],
    ]
    assert style(0.019, 2.0) == style(-1.0, 2.0) == style(0.0, 0.0) == style(1e-6, 1e-6) == ""
    assert scale([2.0, 0.0]).plain.split() == ["0.02", "0.1", "0.4", "1"]
    assert scale([0.0, 1e-6]).plain == ""


def test_shaded_text_is_the_response_made_safe():
    text = shaded(["a", " 7", "\n", "\x1b[31m", "  "], [0.0, 2.0, 0.0, 0.0, 0.0], [False, True, *[True] * 3])
    assert text.plain == "a 7\n\ufffd[31m  "
    seven = next(span for span in text.spans if text.plain[span.start : span.end] == "7")
    assert seven.style == f"{SHADES[0][1]} underline"
    console = Console(force_terminal=True, color_system="truecolor", file=io.StringIO())
    console.print(text)
    assert "\x1b[31m" not in console.file.getvalue()


@pytest.mark.parametrize("look", [look for _, look in SHADES])
def test_shades_are_readable_on_dark_and_light(look):
    # WCAG contrast: of the letters on the shade, and of the shade against black and white.
    shade = [int(look[-6:][i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in shade]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    assert "#ffffff on" in look
    assert 1.05 / (luminance + 0.05) > 4.4
    assert (luminance + 0.05) / 0.05 > 3


# --- data sets ------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path):
    """Four good rows, with responses, and three that have nothing to look at; no answers."""
    samples = make_samples("test", 4, 0, GlyphsOptions())
    rows = []
    for index, sample in enumerate(samples):
        (tmp_path / f"{index}.png").write_bytes(sample.images[0])
        rows.append(
            {"question": sample.problem.removeprefix("<image>"), "image": f"{index}.png", "said": solution(sample)}
        )
    rows += [
        {"question": "No image?", "image": None, "said": "7"},
        {"question": "No response?", "image": "0.png", "said": ""},
        {"question": "A special token?", "image": "0.png", "said": "7 <|image_pad|>"},
    ]
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path, samples


def look_at(path, out, *more, runs=None):
    return vppo("perceive", "--dataset", path, "--out", out, *more, runs=runs or path.parent / "runs")


MAPPED = ("--columns", "problem=question", "--columns", "response=said")


def test_responses_of_a_data_set_are_read(data, tmp_path):
    path, samples = data
    out = tmp_path / "new" / "out"
    told = look_at(path, out, *MAPPED).succeeded().out
    rows = read_rows(out / "perception.parquet", Perceived)
    assert [row.response for row in rows] == [solution(s) for s in samples]
    assert {(row.given, row.gold, row.outcome, row.reward) for row in rows} == {(True, None, None, None)}
    for row, sample in zip(rows, samples, strict=True):
        alone = perceive("tiny", sample.images, row.problem, row.response)
        assert row.tokens == alone.tokens
        assert len(row.top) == len(row.top_p) == len(row.logp_perturbed) == len(row.tokens)
        assert row.logp == pytest.approx(alone.logp, abs=1e-4)
    left_out = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert [(r["row"], r["reason"]) for r in left_out] == [
        (4, "no image"),
        (5, "no response"),
        (6, "unusable response"),
    ]
    about = json.loads((out / "about.json").read_text())
    assert (about["responses"], about["rejected"], about["shown"], about["graded"]) == (4, 3, 4, 0)
    shown = entries(out / "look.html")
    assert [e["responses"][0]["perception"] for e in shown] == [pytest.approx(row.perception, abs=1e-6) for row in rows]
    assert "4, 0 of them truncated; 3 rows left out" in told
    assert sorted(p.name for p in out.parent.iterdir()) == ["out"]


def test_every_form_says_what_it_was_made_with(tmp_path):
    out = tmp_path / "out"
    asked = ("--limit", "4", "--masks", "3", "--seed", "5", "--perturbation", "gaussian_noise", "--json")
    found = look_at("glyphs", out, *asked, runs=tmp_path / "runs").succeeded().json
    about = json.loads((out / "about.json").read_text())
    made = json.loads(pq.read_schema(out / "perception.parquet").metadata[b"vppo"])
    assert made == about["made_with"]
    assert made == {name: found[name] for name in made if name != "data"} | {"data": "glyphs, the first 4 rows"}
    assert made["weights"] == f"content {fingerprint(shipped_config('tiny_model'))}"
    assert (made["perturbation"], made["perturbation_settings"]) == ("gaussian_noise", {"sigma": 189.0})
    assert (made["estimator"], made["masks"], made["seed"], made["dtype"]) == ("kl", 3, 5, "float32")
    assert made["versions"]["torch"] == torch.__version__
    for row in read_rows(out / "perception.parquet", Perceived):
        mean = np.mean(row.perception_by_mask, axis=0)
        assert len(row.perception_by_mask) == 3
        assert row.perception == pytest.approx(mean, abs=1e-6)
    page = page_data(out / "look.html")
    told = dict(page["provenance"]["facts"])
    assert told["Model"] == "tiny"
    assert told["Weights"] == made["weights"]
    assert told["Perturbation"] == "gaussian_noise sigma 189"
    assert (told["Masks"], told["Seed"], told["Data"]) == ("3, the mean of them", "5", made["data"])
    assert f"torch {torch.__version__}" in told["Versions"]
    assert "kl between the image and 3 perturbed ones, the mean (gaussian_noise sigma 189, seed 5)" in page["line"]
    titles = [chart["title"] for chart in page["figures"]["charts"]]
    assert titles[:2] == ["Token perception", "Few tokens look"]
    assert "Perception by role" in titles
    assert found["roles"]["perception"]["perception"] > 10 * found["roles"]["template"]["perception"]


def test_one_example_says_it_too(policy, samples, tmp_path):
    found = perceive(policy, samples[0].images[0], samples[0].problem, solution(samples[0]), estimator="entropy")
    assert (found.made_with["weights"], found.made_with["masks"], found.by_mask) == (None, 0, [])
    page = page_data(found.to_html(tmp_path / "look.html"))
    told = dict(page["provenance"]["facts"])
    assert told["Perturbation"] == "none"
    assert told["Responses"] == "given"
    assert (page["estimator"], page["unit"]) == ("entropy", "nats")
    drop = perceive(policy, samples[0].images[0], samples[0].problem, estimator="top1_drop", probability=0.25)
    told = dict(page_data(drop.to_html(tmp_path / "drop.html"))["provenance"]["facts"])
    assert told["Perturbation"] == "patch_black 0.25"
    assert told["Responses"] == "written by the model, at most 512 tokens"
    assert drop.made_with["unit"] == ""


def test_rows_do_not_depend_on_the_batch(data, tmp_path):
    path, _ = data
    few = [*MAPPED, "--set", "score.batch_prompts=1"]
    one, other = tmp_path / "one", tmp_path / "other"
    look_at(path, one, *few).succeeded()
    look_at(path, other, *MAPPED).succeeded()
    for a, b in zip(*(read_rows(out / "perception.parquet", Perceived) for out in (one, other)), strict=True):
        assert a.token_ids == b.token_ids
        assert a.perception == pytest.approx(b.perception, abs=1e-4)


def test_responses_are_sampled_and_graded_where_there_are_none(tmp_path):
    samples = make_samples("test", 6, 0, GlyphsOptions())
    path, out = tmp_path / "q.parquet", tmp_path / "out"
    pq.write_table(
        pa.table(
            {
                "problem": [s.problem for s in samples],
                "images": [s.images for s in samples],
                "answer": [s.answer for s in samples],
            }
        ),
        path,
    )
    found = look_at(path, out, "--json", "--limit", "5").succeeded().json
    rows = read_rows(out / "perception.parquet", Perceived)
    assert len(rows) == found["responses"] == found["graded"] == 5
    assert [row.gold for row in rows] == [s.answer for s in samples[:5]]
    assert not any(row.given for row in rows)
    assert found["correct"] == sum(row.outcome == "correct" for row in rows)
    for row in rows:
        assert (row.answer == row.gold) == (row.outcome == "correct") == (row.reward == 1.0)


def test_a_folder_is_never_overwritten_nor_left_half_done(data, tmp_path):
    path, _ = data
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    refused = look_at(path, out, *MAPPED)
    assert refused.code == 2
    assert "is there already" in refused.err
    assert [p.name for p in out.iterdir()] == ["mine.txt"]
    with path.open("a") as file:
        file.write("{broken\n")
    broken = look_at(path, tmp_path / "other", *MAPPED, "--set", "score.batch_prompts=1")
    assert broken.code == 2
    assert "line 8" in broken.err
    assert not list(tmp_path.glob("other*"))


# --- what is refused ------------------------------------------------------------------------------


WRONG = [
    ("--prompt x", ("--image", "missing")),
    ("--image a.png", ("--prompt", "missing")),
    ("--image nowhere.png --prompt x", ("image nowhere.png", "No such file")),
    ("--image . --prompt x", ("image .", "cannot be read")),
    ("--image /dev/zero --prompt x", ("image /dev/zero", "no file that ends")),
    ("--dataset /dev/zero --out out", ("data.source /dev/zero", "belongs to the system")),
    ("--image text.png --prompt x", ("image text.png", "not an image")),
    ("--image cut.png --prompt x", ("image cut.png", "unreadable image")),
    ("--image a.png --prompt ''", ("prompt", "is empty")),
    ("--image a.png --prompt ' <image> '", ("prompt", "is empty")),
    ("--image a.png --prompt '<image> and <image>'", ("prompt", "2 <image>", "1 images")),
    ("--image a.png --prompt x --response ''", ("response", "is empty")),
    ("--image a.png --prompt x --response '7 <|im_end|>'", ("response", "special token", "im_end")),
    ("--image a.png --prompt x --estimator kll", ("score.estimator: kll", "Did you mean kl?")),
    ("--image a.png --prompt x --estimator oracle", ("oracle", "no known token roles")),
    ("--image a.png --prompt x --perturbation gray", ("score.perturbation: gray", "Did you mean grey?")),
    ("--image a.png --prompt x --probability 2", ("score.probability", "less than or equal to 1")),
    ("--image a.png --prompt x --estimator entropy --masks 4", ("masks: 4", "no perturbed image")),
    ("--image a.png --prompt x --perturbation grey --masks 4", ("masks: 4", "nothing at random")),
    ("--image a.png --prompt x --temperature 0", ("rollout.temperature", "greater than 0")),
    ("--image a.png --prompt x --model nowhere/at-all", ("model.path nowhere/at-all", "cannot be loaded")),
    ("--image a.png --prompt x --model text_only", ("model.path text_only", "text alone")),
    ("--image a.png --prompt x --run nowhere", ("run nowhere", "no such run")),
    ("--image a.png --prompt x --run a --model b", ("--model b", "--run")),
    ("--image a.png --prompt x --checkpoint 3", ("--checkpoint 3", "--run")),
    ("--image a.png --prompt x --out page.txt", ("--out page.txt", "look.html")),
    ("--image a.png --prompt x --out no/page.html", ("--out no/page.html", "folder is not there")),
    ("--image a.png --prompt x --limit 3", ("--limit", "--dataset")),
    ("--image wide.png --prompt x", ("question example", "processor refuses")),
    ("--dataset q.jsonl --prompt x --out out", ("--prompt", "--dataset")),
    ("--dataset q.jsonl", ("--out", "Name a new folder")),
    ("--dataset nowhere.jsonl --out out", ("data.source nowhere.jsonl", "no such file")),
    ("--dataset q.jsonl --out out --columns problem", ("--columns problem", "problem=question")),
    ("--dataset q.jsonl --out out --columns problm=q", ("problm", "not one of our columns", "response")),
    ("--dataset q.jsonl --out out --columns response=r", ("no column 'r'",)),
    ("--dataset q.jsonl --out out", ("no usable row", "no image")),
]


@pytest.fixture(scope="module")
def wrong(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wrong")
    (folder / "a.png").write_bytes(picture(56, 56, 0))
    (folder / "wide.png").write_bytes(picture(10, 4000, 0))
    (folder / "cut.png").write_bytes(picture(56, 56, 0)[:-40])
    (folder / "text.png").write_text("not an image")
    (folder / "q.jsonl").write_text('{"problem": "Why?", "images": [], "answer": "1"}\n')
    text_only(folder / "text_only")
    return folder


def text_only(folder):
    """A model of the Qwen2 family that cannot be shown an image, with its tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from pipelines.config.settings import shipped_config

    sizes = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "vocab_size": 512,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen2", **sizes)).save_pretrained(folder)
    shutil.copy(shipped_config("tiny_model") / "tokenizer.json", folder)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')


@pytest.mark.parametrize(("arguments", "expected"), WRONG, ids=lambda value: str(value)[:60])
def test_wrong_inputs_are_told(wrong, arguments, expected):
    before = {p.name for p in wrong.iterdir()}
    found = vppo("perceive", *shlex.split(arguments), runs=wrong / "runs", cwd=wrong)
    assert found.code == 2, found.out + found.err
    assert found.err.startswith("error  ")
    assert "Traceback" not in found.err
    for words in expected:
        assert words in found.err
    assert {p.name for p in wrong.iterdir()} == before


def test_the_call_refuses_as_the_command_does(policy, samples):
    for arguments, words in (
        (([], "What?"), "nothing to perceive"),
        ((samples[0].images, "What?", ""), "has no token"),
        ((b"text", "What?"), "not an image"),
        ((samples[0].images, "  "), "is empty"),
    ):
        with pytest.raises(UserError, match=words):
            perceive(policy, *arguments)
    with pytest.raises(UserError, match="at least one"):
        perceive(policy, samples[0].images, "What?", masks=0)
