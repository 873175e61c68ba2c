"""What decides a result and lies outside the config: files that lists name, content in the middle."""

import csv
import json
import os
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import runs
from pipelines.chain import VERSIONS, Chain
from pipelines.config import settings
from pipelines.disk.fingerprint import fingerprint, named_files
from pipelines.disk.step import commit
from pipelines.errors import UserError
from pipelines.run import train
from pipelines.runs import changed_shapes
from pipelines.watch import Silent

NAMED = "files named by data.source"


def prepared(source, *overrides):
    """The key of the prepare step over a source."""
    config = settings.load(None, [f"data.source={source}", *overrides])
    return Chain(config, source.parent / "run").prepare


# --- files that a list names ----------------------------------------------------------------------

ROW = {"problem": "How many?", "answer": "3"}


def as_json_lines(path, names):
    path.write_text("\n".join(json.dumps(ROW | {"images": [name]}) for name in names))


def as_json_objects(path, names):
    path.write_text("\n".join(json.dumps(ROW | {"images": {"path": name}}) for name in names))


def as_csv(path, names):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["problem", "picture", "answer"], *(["How, many?", n, "3"] for n in names)])


def as_parquet(path, names):
    pq.write_table(pa.Table.from_pylist([ROW | {"images": name} for name in names]), path)


def as_nested_parquet(path, names):
    rows = [ROW | {"images": [{"bytes": None, "path": name}]} for name in names]
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("problem", pa.string()), ("answer", pa.string()), ("images", pa.list_(image))])
    pq.write_table(pa.Table.from_pylist(rows, schema), path)


def as_dictionary_parquet(path, names):
    column = pa.array(names).dictionary_encode()
    pq.write_table(pa.table({"problem": ["?"] * len(names), "images": column}), path)


LISTS = {
    "a.jsonl": as_json_lines,
    "a.ndjson": as_json_objects,
    "a.json": as_json_lines,
    "a.csv": as_csv,
    "a.parquet": as_parquet,
    "nested.parquet": as_nested_parquet,
    "dictionary.parquet": as_dictionary_parquet,
    "A.JSONL": as_json_lines,
    "B.CSV": as_csv,
}


@pytest.fixture(params=LISTS)
def listing(request, tmp_path):
    """A list of some kind that names three images, and the second of them."""
    folder = tmp_path / "data"
    (folder / "pictures").mkdir(parents=True)
    for number in range(3):
        (folder / f"pictures/ü {number}.png").write_bytes(bytes([number]) * 10_000)
    names = ["pictures/ü 0.png", "./pictures/../pictures/ü 1.png", str(folder / "pictures/ü 2.png")]
    LISTS[request.param](folder / request.param, names)
    return folder / request.param


def test_a_replaced_image_is_seen(listing):
    first = prepared(listing)
    for number in range(3):
        image = listing.parent / f"pictures/ü {number}.png"
        before, about = image.read_bytes(), image.stat()
        image.write_bytes(before[:5000] + b"\7" + before[5001:])  # in its middle, of the same size
        os.utime(image, ns=(about.st_atime_ns, about.st_mtime_ns))
        changed = prepared(listing)
        assert changed.key != first.key
        assert changed.settings["data.source"] == first.settings["data.source"]
        assert changed.settings[NAMED] != first.settings[NAMED]
        image.write_bytes(before)
    assert prepared(listing).key == first.key
    (listing.parent / "pictures/not named.png").write_bytes(b"0")
    assert prepared(listing).key == first.key


def test_images_of_validation_and_of_mapped_columns_count(tmp_path):
    (tmp_path / "one.png").write_bytes(b"1")
    list_of_one = tmp_path / "list.jsonl"
    list_of_one.write_text(json.dumps({"q": "?", "scan": "one.png", "gold": "3"}))
    asked = ("data.columns={problem: q, images: scan, answer: gold}", f"data.validation_source={list_of_one}")
    first = prepared(list_of_one, *asked)
    assert {NAMED, "files named by data.validation_source"} <= first.settings.keys()
    (tmp_path / "one.png").write_bytes(b"2")
    assert prepared(list_of_one, *asked).key != first.key


def test_only_data_that_may_lack_an_image_has_new_versions_of_what_treats_such_questions(tmp_path):
    (tmp_path / "q.jsonl").write_text("{}")
    own = settings.load(None, [f"data.source={tmp_path / 'q.jsonl'}"])
    found = [Chain(one, tmp_path) for one in (settings.load(None), own)]
    versions = [(run.score(1).version, run.update(1).version) for run in found]
    assert versions == [(3, 3), (4, 4)]
    assert [runs.outdated(run) for run in found] == ["", ""]
    # An estimator of one's own is not asked about them any more; others never counted there, or count as they did.
    estimator = "score.estimator=json:dumps"
    asked = (settings.load(None, [estimator, *more]) for more in ((), [f"data.source={tmp_path / 'q.jsonl'}"]))
    assert [Chain(one, tmp_path).score(1).version for one in asked] == [3, 5]
    # A run of before, on data of one's own: what is there is read as it was made, and made again.
    made = Chain(own, tmp_path, VERSIONS | {"score": 3, "update": 3})
    with commit(made.score(1)) as (_, metrics):
        metrics["perception_mean"] = 0.0
    assert runs.as_made(own, tmp_path, "score").score(1).path == made.score(1).path
    assert "score (version 3 -> 4)" in runs.outdated(found[1])


def test_how_questions_are_shown_is_in_every_key_that_it_decides(tmp_path):
    asked = ("eval.profile=matched", "eval.benchmarks=[mathverse]")
    plain, shown = (
        Chain(settings.load(None, [*asked, *more]), tmp_path) for more in ((), ("published.resize_first=true",))
    )
    assert plain.prepare.key != shown.prepare.key
    assert plain.model.key == shown.model.key
    assert plain.eval(0, "mathverse").key != shown.eval(0, "mathverse").key
    assert plain.eval(0, "glyphs").key != shown.eval(0, "glyphs").key


@pytest.mark.parametrize(
    ("setting", "first"),
    [
        ("resize_first=true", "prepare"),
        ("strip_question=true", "prepare"),
        ("drop_surplus=true", "rollout"),
        ("choice_rule=false", "rollout"),
        ("filter_text_only=true", "score"),
        ("decay_all=true", "update"),
        ("mini_batch_responses=8", "update"),
        ("micro_batch_responses=7", "update"),
    ],
)
def test_a_published_setting_is_in_the_keys_from_the_stage_that_it_changes(tmp_path, setting, first):
    plain, changed = (Chain(settings.load(None, more), tmp_path) for more in ([], [f"published.{setting}"]))
    steps = [[run.prepare, run.rollout(1), run.score(1), run.update(1)] for run in (plain, changed)]
    apart = [one.name for one, other in zip(*steps, strict=True) if one.key != other.key]
    assert apart[0] == first
    own = [one.name for one, other in zip(*steps, strict=True) if one.settings != other.settings]
    assert own == ([first, "update"] if setting == "filter_text_only=true" else [first])


def test_a_source_in_ones_home_is_known_by_its_content(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "q.jsonl").write_text("{}")
    config = settings.load(None, ["data.source=~/q.jsonl"])
    first = Chain(config, tmp_path).prepare.key
    (tmp_path / "q.jsonl").write_text("{ }")
    assert Chain(config, tmp_path).prepare.key != first


@pytest.mark.parametrize("ascii_only", [True, False])
def test_a_long_name_in_another_script_counts(tmp_path, ascii_only):
    name = "/".join(["\u56fe" * 80] * 5)  # 404 characters; 1204 bytes, 2404 where they are escaped
    image = tmp_path / name
    image.parent.mkdir(parents=True)
    image.write_bytes(b"1")
    rows = json.dumps(
        {"images": [name], "long": ["\u56fe" * 1025, "a" * 1025, "\U0001f600" * 2000]}, ensure_ascii=ascii_only
    )
    (tmp_path / "q.jsonl").write_text(rows)
    first = named_files(tmp_path / "q.jsonl", tmp_path)
    image.write_bytes(b"2")
    assert named_files(tmp_path / "q.jsonl", tmp_path) != first != ""


def test_only_files_of_the_data_folder_count(tmp_path):
    (tmp_path / "secret").write_text("1")
    folder = tmp_path / "data"
    folder.mkdir()
    names = ["../secret", str(tmp_path / "secret"), "", ".", "a\0b", "x" * 5000, "q.jsonl", "/dev/zero"]
    as_json_lines(folder / "q.jsonl", names)
    assert named_files(folder / "q.jsonl", folder) == ""
    assert NAMED not in prepared(folder / "q.jsonl").settings


@pytest.mark.parametrize("name", ["a.csv", "a.parquet", "a.json", "a.jsonl"])
def test_a_damaged_list_is_told_by_who_reads_it(tmp_path, name):
    for content in (b"", b"\xff\xfe\x00", b'"', b"PAR1" * 9, b'a,"b\n' * 9):
        (tmp_path / name).write_bytes(content)
        assert prepared(tmp_path / name).key


def test_a_folder_counts_with_the_folders_it_links_to(tmp_path):
    there, folder = tmp_path / "there", tmp_path / "data"
    for place in (there, folder):
        place.mkdir()
    (there / "part.parquet").write_bytes(b"1")
    (folder / "a.txt").write_bytes(b"1")
    plain = fingerprint(folder)
    (folder / "train").symlink_to(there)
    (folder / "circle").symlink_to(folder)
    linked = fingerprint(folder)
    (there / "part.parquet").write_bytes(b"2")
    assert len({plain, linked, fingerprint(folder)}) == 3


# --- whole content --------------------------------------------------------------------------------


def sparse(path, size, **places):
    """A file of so many bytes, none of them on the disk but these."""
    with path.open("wb") as file:
        file.truncate(size)
        for offset, byte in places.items():
            file.seek(int(offset[1:]))
            file.write(byte)


def test_models_that_differ_in_the_middle_of_a_large_file(tmp_path):
    size = 85 * 2**20
    keys = set()
    for number in (1, 2):
        model = tmp_path / str(number)
        model.mkdir()
        (model / "config.json").write_text("{}")
        sparse(model / "model.safetensors", size, **{f"_{size // 2}": bytes([number])})
        config = settings.load(None, [f"model.path={model}"])
        keys.add(Chain(config, tmp_path).model.key)
    assert len(keys) == 2


def test_a_corrected_answer_in_a_large_list(tmp_path):
    path, size = tmp_path / "q.jsonl", 76 * 2**20
    keys = set()
    for gold in (b'"answer": "3"}', b'"answer": "4"}'):
        sparse(path, size, **{f"_{size // 2}": gold})
        keys.add(fingerprint(path))
    assert len(keys) == 2


# --- what is told before any work is done ----------------------------------------------------------


def test_a_model_whose_generation_settings_cannot_be_saved_is_told_first(tmp_path):
    model = tmp_path / "model"
    shutil.copytree(settings.shipped_config("tiny_model"), model)
    file = model / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"do_sample": False, "temperature": 0.1}))
    config = settings.load(None, [f"model.path={model}", "run.steps=1", "data.glyphs.train=4"])
    chain = Chain(config, tmp_path / "run")
    chain.run.mkdir()
    with pytest.raises(UserError, match=r"generation_config\.json: transformers refuses .*temperature"):
        train(chain, Silent())
    assert not list(tmp_path.glob("run/*/"))


def test_another_batch_is_told_in_bfloat16_and_recorded(tmp_path):
    def begun(dtype, *more):
        config = settings.load(None, [f"model.dtype={dtype}", "run.steps=2", *more])
        return Chain(config, tmp_path / dtype)

    for dtype in ("float32", "bfloat16"):
        for step in (begun(dtype).rollout(1), begun(dtype).update(1)):
            with commit(step):
                pass
        manifest = begun(dtype).rollout(1).manifest()
        assert manifest["shape"]["rollout.batch_prompts"] == 64
        assert changed_shapes(begun(dtype)) == ""
    other = "rollout.batch_prompts=3", "update.micro_batch_prompts=2", "score.batch_prompts=1"
    assert changed_shapes(begun("float32", *other)) == ""
    assert changed_shapes(begun("bfloat16", *other)) == (
        "rollout.batch_prompts 64 (now 3), update.micro_batch_prompts 16 (now 2)"
    )
    # Manifests from before have none of it.
    path = begun("bfloat16").rollout(1).path / "manifest.json"
    before = {"format", "step", "index", "version", "key", "settings", "inputs", "metrics", "files"}
    found = json.loads(path.read_text())
    path.write_text(json.dumps({name: found[name] for name in found if name in before} | {"format": 1}))
    assert changed_shapes(begun("bfloat16", other[0])) == ""
