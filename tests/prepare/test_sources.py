"""Reading data sets: every format, every way a row is unusable, every error one can put right."""

import base64
import io
import json
import os
import socket
import struct
import zlib
from dataclasses import replace

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_files import data_address, png, read, reasons, row, write_lines
from PIL import Image

from pipelines.chain import Chain
from pipelines.config.schema import Config, DataConfig, ModelConfig
from pipelines.config.settings import load
from pipelines.disk.records import Sample
from pipelines.disk.step import commit
from pipelines.errors import UserError
from pipelines.model.images import MAX_IMAGE_PIXELS, about
from pipelines.prepare import sources
from pipelines.prepare.rows import RowParser, kind_of, unboxed
from pipelines.prepare.sources import read_source


def noise_png():
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def huge_png():
    """A few bytes whose header announces one pixel row more than the limit allows."""
    width, height = 8000, MAX_IMAGE_PIXELS // 8000 + 1

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def parse(raw, root, **names):
    columns = {name: name for name in raw} | names
    return RowParser(columns, [root], "row-", False).parse(0, raw)


# --- formats ---

VIRL39K = datasets.Features(
    {
        "images": datasets.Sequence(datasets.Image()),
        "problem": datasets.Value("string"),
        "answer": datasets.Value("string"),
    }
)


def virl39k(count=5):
    return datasets.Dataset.from_dict(
        {
            "images": [[{"bytes": png(i), "path": None}] for i in range(count)],
            "problem": [f"<image>Question {i}?" for i in range(count)],
            "answer": [str(i) for i in range(count)],
        },
        features=VIRL39K,
    )


def virl39k_samples(count=5, prefix="row-"):
    return [Sample(f"{prefix}{i}", f"<image>Question {i}?", [png(i)], str(i)) for i in range(count)]


def test_parquet_in_virl39k_schema_written_by_datasets(tmp_path):
    virl39k().to_parquet(str(tmp_path / "data.parquet"))
    source = read_source(DataConfig(source=str(tmp_path / "data.parquet")), split="train")
    assert source.total == 5
    assert list(source.rows) == virl39k_samples()


def test_parquet_shards_in_order_and_only_of_the_split(tmp_path):
    for name, count in (("train-00000-of-00002", 2), ("train-00001-of-00002", 1), ("test-00000-of-00001", 4)):
        (tmp_path / "data").mkdir(exist_ok=True)
        virl39k(count).to_parquet(str(tmp_path / "data" / f"{name}.parquet"))
    assert [sample.problem[-2] for sample in read(tmp_path)] == ["0", "1", "0"]
    assert [sample.id for sample in read(tmp_path)] == ["row-0", "row-1", "row-2"]
    assert len(read(tmp_path, split="test")) == 4
    with pytest.raises(UserError, match=r"no split 'dev'; splits found: test, train"):
        read(tmp_path, split="dev")


@pytest.mark.parametrize("names", [("train.parquet", "test.parquet"), ("train/0.parquet", "test/0.parquet")])
def test_other_splits_beside_the_training_files_are_left_alone(tmp_path, names):
    for name, count in zip(names, (2, 5), strict=True):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        virl39k(count).to_parquet(str(tmp_path / name))
    assert len(read(tmp_path)) == 2


def test_plain_parquet_files_are_all_read(tmp_path):
    for name in ("a", "b"):
        virl39k(2).to_parquet(str(tmp_path / f"{name}.parquet"))
    assert len(read(tmp_path)) == 4


def test_saved_to_disk(tmp_path):
    virl39k().save_to_disk(str(tmp_path / "one"))
    assert read(tmp_path / "one") == virl39k_samples()
    splits = datasets.DatasetDict({"train": virl39k(3), "test": virl39k(1)})
    splits.save_to_disk(str(tmp_path / "dict"))
    assert read(tmp_path / "dict") == virl39k_samples(3)
    assert len(read(tmp_path / "dict", split="test")) == 1
    with pytest.raises(UserError, match=r"no split 'dev'; splits found: train, test"):
        read(tmp_path / "dict", split="dev")


def test_hub_data_set_by_a_local_stand_in(tmp_path, monkeypatch):
    """The hub is not reachable from tests; what is called, and what comes of it, is."""
    calls = []

    def load_dataset(*args, **kwargs):
        calls.append((args, kwargs))
        return virl39k()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    config = DataConfig(source="me/data", subset="hard", revision="abc", validation_source="me/other")
    assert list(read_source(config, split="train").rows) == virl39k_samples()
    validation = list(read_source(config, split="validation").rows)
    assert validation == virl39k_samples(prefix="validation-row-")
    assert calls == [
        (("me/data", "hard"), {"split": "train", "revision": "abc"}),
        (("me/other", None), {"split": "train", "revision": None}),
    ]


def test_json_lines_with_paths_base64_and_data_addresses(tmp_path):
    (tmp_path / "img").mkdir()
    (tmp_path / "img" / "a.png").write_bytes(png(1))
    plain = base64.b64encode(png(2)).decode()
    path = write_lines(
        tmp_path / "train.jsonl",
        row(images=["img/a.png"]),
        row(images="img/a.png"),
        row(images=[plain]),
        row(images=f"data:image/png;base64,{plain}"),
        row(images=[{"bytes": None, "path": "img/a.png"}, "img/a.png"], problem="two"),
        row(images=[str(tmp_path / "img" / "a.png")]),
        row(images=None, problem="no image"),
    )
    a, b = png(1), png(2)
    assert [list(s.images) for s in read(path)] == [[a], [a], [b], [b], [a, a], [a], []]
    assert [list(s.images) for s in read(path, limit=2)] == [[a], [a]]
    assert read_source(DataConfig(source=str(path)), split="train").total is None


def test_json_lines_keep_id_kind_and_numbers(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    path = write_lines(
        tmp_path / "t.json",
        row(id=17, answer=4, kind="choice"),
        row(answer=2.5, kind="geometry"),  # not asked for: somebody else's meaning of kind
    )
    first, second = read(path)
    assert (first.id, first.answer, first.kind) == ("17", "4", "choice")
    assert (second.id, second.answer, second.kind) == ("row-1", "2.5", "value")


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_image_folder(tmp_path, form):
    (tmp_path / "a.png").write_bytes(png(3))
    if form == "jsonl":
        write_lines(tmp_path / "metadata.jsonl", {"file_name": "a.png", "problem": "p, q", "answer": "B"})
    else:
        (tmp_path / "metadata.csv").write_text('file_name,problem,answer\na.png,"p, q",B\n')
    assert read(tmp_path) == [Sample("row-0", "p, q", [png(3)], "B", kind="choice")]


def test_image_folder_with_a_folder_a_split(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a.png").write_bytes(png())
    write_lines(tmp_path / "train" / "metadata.jsonl", row(images="a.png"))
    assert len(read(tmp_path)) == 1


def test_raw_bytes_column_and_mapped_names(tmp_path):
    table = pa.table({"picture": [png(5)], "question": ["What?"], "gold": ["A, C"], "tag": ["value"]})
    pq.write_table(table, tmp_path / "t.parquet")
    columns = {"images": "picture", "problem": "question", "answer": "gold", "kind": "tag"}
    assert read(tmp_path / "t.parquet", columns=columns) == [Sample("row-0", "What?", [png(5)], "A, C", kind="value")]


def test_pil_images_and_pairs_are_taken_too(tmp_path):
    sample = parse(row(images=(Image.new("L", (4, 4)), png())), tmp_path, problem="answer")
    assert [data[:4] for data in sample.images] == [b"\x89PNG", b"\x89PNG"]


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("A", "choice"),
        ("B, D", "choice"),
        ("A and C", "choice"),
        ("A;B", "choice"),
        ("AC", "value"),
        ("a", "value"),
        ("12", "value"),
        ("x = A", "value"),
    ],
)
def test_kind_of(answer, kind):
    assert kind_of(answer) == kind


@pytest.mark.parametrize(
    ("answer", "inside"),
    [
        (r"\boxed{A}", "A"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        ("7", "7"),
        (r"\boxed{1}, \boxed{2}", r"\boxed{1}, \boxed{2}"),
        (r"x = \boxed{1}", r"x = \boxed{1}"),
    ],
)
def test_unboxed(answer, inside):
    assert unboxed(answer) == inside


# --- rows that are left out ---


@pytest.mark.parametrize(
    ("changes", "reason", "detail"),
    [
        ({"answer": None}, "no answer", ""),
        ({"answer": "  "}, "no answer", ""),
        ({"answer": float("nan")}, "no answer", ""),
        ({"answer": ["3"]}, "answer is not text", "it is a list"),
        ({"problem": {"text": "x"}}, "problem is not text", "it is a dict"),
        ({"problem": "\ud800"}, "problem is not text", "not valid Unicode"),
        ({"problem": "<image><image>"}, "image count", "2 <image> in the problem, 1 images"),
        ({"images": None}, "image count", "1 <image> in the problem, 0 images"),
        ({"images": [], "problem": " "}, "no question", "neither text nor image"),
        ({"images": [png(), b"text"]}, "unreadable image", "image 2: 4 bytes that are not"),
        ({"images": noise_png()[:-900]}, "unreadable image", "truncated"),
        ({"images": png()[:30]}, "unreadable image", "image 1"),
        ({"images": b"%!PS-Adobe-3.0 EPSF-3.0\n"}, "unreadable image", "not an image"),
        ({"images": huge_png()}, "image too large", "8000 x 8001 pixels"),
        ({"images": [None]}, "unreadable image", "image 1: empty"),
        ({"images": {"bytes": b"", "path": ""}}, "unreadable image", "image 1: empty"),
        ({"images": 7}, "unreadable image", "a int"),
        ({"images": [[png()]]}, "unreadable image", "a list"),
        ({"images": "gone.png"}, "image not found", "gone.png"),
        ({"images": "."}, "image not found", "."),
        ({"images": "https://example.org/a.png"}, "image not found", "download"),
        ({"images": "../secret.png"}, "image outside the data folder", "../secret.png"),
        ({"images": "/etc/hostname"}, "image outside the data folder", "/etc/hostname"),
        ({"images": "link.png"}, "image outside the data folder", "link.png"),
        ({"images": "a\0.png"}, "image not found", "image 1"),
        ({"images": "a/" * 900 + ".png"}, "image not found", "image 1"),
        ({"images": "b" * 300 + ".png"}, "image not found", "bbb"),
        ({"images": "data:image/png;base64,???"}, "unreadable image", "not base64"),
        ({"images": "data:image/png;base64,AAAA"}, "unreadable image", "3 bytes"),
        ({"images": "QUJD" * 40}, "unreadable image", "120 bytes that are not an image"),
    ],
)
def test_rejections(tmp_path, changes, reason, detail):
    root = tmp_path / "data"
    root.mkdir()
    (tmp_path / "secret.png").write_bytes(png())
    (root / "a.png").write_bytes(png())
    os.symlink(tmp_path / "secret.png", root / "link.png")
    found = parse(row(**changes), root)
    assert (found.row, found.id, found.reason) == (0, "row-0", reason)
    assert detail in found.detail


def test_an_image_that_cannot_be_read_is_named_by_its_path(tmp_path):
    (tmp_path / "cut.png").write_bytes(noise_png()[:-900])
    (tmp_path / "scan").write_bytes(b"text")
    for images, detail in (
        (["cut.png"], "image 1, cut.png: image file is truncated"),
        ([{"bytes": png(), "path": None}, {"bytes": b"text", "path": "b.png"}], "image 2, b.png: 4 bytes that are not"),
        ("scan", "image 1, scan: 4 bytes that are not an image"),
    ):
        found = parse(row(images=images), tmp_path)
        assert found.reason == "unreadable image"
        assert detail in found.detail
        assert f"Row 0, for one: unreadable image: {detail}" in found.told
    gone = parse(row(images="gone.png"), tmp_path)
    assert gone.detail.count("gone.png") == 1


def test_a_file_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(png())
    for module in ("prepare.rows", "model.images"):
        monkeypatch.setattr(f"pipelines.{module}.MAX_IMAGE_BYTES", len(png()) - 1)
    about.cache_clear()
    assert parse(row(), tmp_path).reason == "image too large"
    assert parse(row(images=png()), tmp_path).reason == "image too large"


def test_a_kind_column_that_was_asked_for_is_strict(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    path = write_lines(tmp_path / "t.jsonl", row(tag="choice"), row(tag="open"), row(tag=None))
    first, second, third = read(path, columns={"kind": "tag"})
    assert first.kind == "choice"
    assert second.reason == "unknown kind"
    assert third.kind == "value"


def test_rows_without_an_id_are_counted_and_told(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    path = write_lines(tmp_path / "t.jsonl", row(), row(id="z"), row(number=7), row(id=None))
    for examples, told in (
        (False, ["without an id: 3 rows, called row-N by the place; data.columns may name one ({id: THEIR_NAME})"]),
        (True, []),
    ):
        source = read_source(DataConfig(source=str(path)), split="train", examples=examples)
        assert len(list(source.rows)) == 4
        assert [text for text in source.remarks() if "without an id" in text] == told
    path = write_lines(tmp_path / "t.jsonl", row(id="y"), row(id="z"))
    source = read_source(DataConfig(source=str(path)), split="train")
    assert len(list(source.rows)) == 2
    assert source.remarks() == []


def test_rejected_rows_do_not_stop_the_others(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    path = write_lines(tmp_path / "t.jsonl", row(), row(answer=""), {"problem": "x"}, row(id="z"))
    found = read(path)
    assert [type(item).__name__ for item in found] == ["Sample", "Rejected", "Rejected", "Sample"]
    assert [item.id for item in found] == ["row-0", "row-1", "row-2", "z"]


# --- what a person can put right ---


def test_missing_column_names_what_was_found_and_the_setting(tmp_path):
    path = write_lines(tmp_path / "t.jsonl", {"question": "x", "image": "a.png", "answer": "1"})
    with pytest.raises(UserError) as caught:
        read(path)
    assert caught.value.place == str(path)
    assert "columns found: question, image, answer" in caught.value.problem
    assert "--set data.columns='{problem: question}'" in caught.value.fix


def test_missing_column_keeps_the_mapping_already_given(tmp_path):
    pq.write_table(pa.table({"q": ["x"], "image": [png()], "label": ["1"]}), tmp_path / "t.parquet")
    with pytest.raises(UserError, match=r"data.columns='\{problem: q, answer: label\}'"):
        read(tmp_path / "t.parquet", columns={"problem": "q"})
    with pytest.raises(UserError, match="no column 'nosuch'"):
        read(tmp_path / "t.parquet", columns={"problem": "nosuch"})


def test_mapping_the_wrong_way_round(tmp_path):
    path = write_lines(tmp_path / "t.jsonl", {"question": "x", "image": "a.png", "answer": "1"})
    with pytest.raises(UserError, match="Write ours first, then theirs"):
        read(path, columns={"question": "problem"})


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"problem": "x",}\n', "not JSON"),
        ('["x"]\n', "expected an object, found a list"),
        (b'{"problem": "\xff"}\n', "not UTF-8"),
        ("[" * 100_000 + "\n", "nested too deeply"),
    ],
)
def test_broken_json_line_is_named(tmp_path, text, problem):
    good = json.dumps(row()).encode() + b"\n\n"
    path = tmp_path / "t.jsonl"
    path.write_bytes(good + (text if isinstance(text, bytes) else text.encode()))
    with pytest.raises(UserError, match=problem) as caught:
        read(path)
    assert caught.value.place == f"{path}, line 3"


@pytest.mark.parametrize(
    ("line", "problem"), [(b"a.png,x\n", "2 fields where the header has 3"), (b"\xff,x,1\n", "not CSV")]
)
def test_broken_csv_line_is_named(tmp_path, line, problem):
    path = tmp_path / "metadata.csv"
    path.write_bytes(b"file_name,problem,answer\n" + line)
    with pytest.raises(UserError, match=problem) as caught:
        read(tmp_path)
    assert caught.value.place.startswith(f"{path}, line ")


def test_broken_parquet_is_named(tmp_path):
    path = tmp_path / "t.parquet"
    virl39k(200).to_parquet(str(path))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="not a readable Parquet file"):
        read(path)
    damaged = bytearray(whole)
    damaged[4 : len(whole) // 2] = bytes(len(whole) // 2 - 4)  # the footer is whole, the data is not
    path.write_bytes(damaged)
    with pytest.raises(UserError, match="not a readable Parquet file"):
        read(path)


def test_broken_saved_data_set(tmp_path):
    virl39k().save_to_disk(str(tmp_path / "d"))
    (tmp_path / "d" / "state.json").write_text("{")
    with pytest.raises(UserError, match="not a readable saved data set"):
        read(tmp_path / "d")


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("missing.parquet", "no such file or folder"),
        ("./missing/deep/folder", "no such file or folder"),
        ("empty/tarin.jsonl", r"no such file or folder\. Did you mean empty/train\.jsonl\?"),
        ("nothing", "holds no data set"),
        ("notes.txt", "files of type .txt are not read"),
    ],
)
def test_no_such_source(tmp_path, monkeypatch, name, problem):
    monkeypatch.chdir(tmp_path)
    for folder in ("nothing", "empty"):
        (tmp_path / folder).mkdir()
    (tmp_path / "empty/train.jsonl").touch()
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match=problem):
        read(name)


def test_unreachable_hub_says_what_was_tried_and_the_way_out(monkeypatch):
    # What the library reads from HF_HUB_OFFLINE=1 when it is imported.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError) as caught:
        read("nobody/nothing", subset="hard", revision="abc")
    assert caught.value.place == "data.source nobody/nothing"
    assert "split train, subset hard, revision abc" in caught.value.problem
    assert "--set data.source=PATH" in caught.value.fix


FLOATS = {
    "gold": (pa.float32(), [0.1, 7.0, 0.3, 1e-5], ["0.1", "7.0", "0.3", "1e-05"]),
    "half": (pa.float16(), [0.1, 7.0, None, 1e-5], [0.1, 7.0, None, 1e-5]),
    "box": (pa.list_(pa.float32()), [[0.1, 0.2], [], None, [0.3, None]], None),
    "fixed": (pa.list_(pa.float32(), 2), [[0.1, 0.2]] * 3 + [None], None),
    "inside": (
        pa.struct({"x": pa.large_list(pa.float32()), "y": pa.string()}),
        [{"x": [0.7], "y": "a"}] * 3 + [None],
        None,
    ),
    "wide": (pa.float64(), [0.1, 1 / 3, 0.10000000149011612, 1.0], None),
}
"""Column -> type, what somebody wrote, and what is read, where that is something else."""


@pytest.mark.parametrize("form", ["parquet", "saved", "several splits"])
def test_short_floats_are_read_as_they_were_written(tmp_path, form):
    columns = {
        name: pa.array(np.array(values, np.float16) if type_ == pa.float16() else values, type_, from_pandas=True)
        for name, (type_, values, _) in FLOATS.items()
    }
    columns["problem"] = pa.array(list("abcd"))
    if form == "parquet":
        pq.write_table(pa.table(columns), tmp_path / "q.parquet")
    else:
        saved = datasets.Dataset(pa.table(columns))
        (datasets.DatasetDict({"train": saved}) if form != "saved" else saved).save_to_disk(tmp_path / "q")
    found = read(tmp_path / ("q.parquet" if form == "parquet" else "q"), columns={"answer": "gold"})
    assert [sample.answer for sample in found] == FLOATS["gold"][2]
    for name, (_, written, expected) in FLOATS.items():
        if name != "gold":
            assert [sample.details()[name] for sample in found] == (expected or written)


def test_only_data_with_short_floats_have_another_key(tmp_path):
    def keyed(name, *tables):
        for number, table in enumerate(tables):
            (tmp_path / name).mkdir(exist_ok=True)
            pq.write_table(table, tmp_path / name / f"{number}.parquet")
        asked = DataConfig(source=str(tmp_path / name), validation_source=str(tmp_path / "wide"))
        settings = Chain(Config(data=asked, model=ModelConfig()), tmp_path).prepare.settings
        return {setting: value for setting, value in settings.items() if "float" in setting}

    wide = pa.table({"problem": ["?"], "answer": [0.5]})
    short = pa.table({"problem": ["?"], "answer": pa.array([[{"x": 0.5}]], pa.list_(pa.struct({"x": pa.float32()})))})
    assert keyed("wide", wide) == {}
    assert keyed("short", wide, short) == {"short floats of data.source": "as written"}
    assert keyed("gone") == {}


def floats_beside(tmp_path, *overrides):
    """A run's chain on data whose column ``score``, which is none of ours, has short floats."""
    table = pa.table({"problem": ["?"], "answer": ["1"], "score": pa.array([0.1], pa.float32())})
    if not (tmp_path / "q.parquet").exists():
        pq.write_table(table, tmp_path / "q.parquet")
    return Chain(load(None, [f"data.source={tmp_path / 'q.parquet'}", *overrides]), tmp_path / "run")


@pytest.mark.parametrize(
    ("asked", "counts"),
    [
        ("data.extra=all", True),
        ("data.extra=none", False),
        ("data.extra=[other]", False),
        ("data.extra=[score]", True),
        ("data.columns={answer: score}", True),
    ],
)
def test_short_floats_count_only_where_they_are_read(tmp_path, asked, counts):
    none = [] if "extra" in asked else ["data.extra=none"]
    found = floats_beside(tmp_path, asked, *none).prepare.settings
    assert ("short floats of data.source" in found) == counts


def test_a_run_prepared_before_short_floats_were_in_the_key_goes_on(tmp_path):
    now = floats_beside(tmp_path).prepare
    assert "short floats of data.source" in now.settings
    then = replace(now, settings={name: value for name, value in now.settings.items() if "float" not in name})
    with commit(then):
        pass
    assert floats_beside(tmp_path).prepare == then
    other = floats_beside(tmp_path, "data.instruction=Otherwise.").prepare
    assert "short floats of data.source" in other.settings
    with commit(now):
        pass
    assert floats_beside(tmp_path).prepare == now


@pytest.mark.parametrize(
    ("name", "text", "extra"),
    [
        ("q.csv", "id,problem,answer,,\nq,?,1,,\n", "all"),
        ("q.csv", "id,problem,answer, , ,x\nq,?,1,,,2\n", "all"),
        ("q.csv", "id,problem,answer,x,x\nq,?,1,2,3\n", "none"),
        ("q.csv", "id,problem,answer,golds,golds\nq,?,1,4,5\n", "all"),
        ("q.jsonl", '{"id": "q", "problem": "?", "answer": "1", "x": 1, "x": 2}', "none"),
        ("q.jsonl", '{"id": "q", "problem": "?", "answer": "1", "x": {"a": 1, "a": 2}}', "all"),
        ("q.json", '[{"id": "q", "problem": "?", "answer": "1", "x": {"answer": 1, "answer": 2}}]', "all"),
        ("q.json", '{"q": {"problem": "?", "answer": "1", "x": 1, "x": 2}}', "none"),
        ("q.json", '{"x": 1, "x": 2, "data": [{"id": "q", "problem": "?", "answer": "1"}]}', "all"),
        ("q.jsonl", '{"id": "q", "problem": "?", "answer": "1", "data": {"a": 1}, "data": {"a": 2}}', "none"),
    ],
)
def test_names_that_nobody_reads_may_stand_there_twice(tmp_path, name, text, extra):
    (tmp_path / name).write_text(text)
    (found,) = read(tmp_path / name, extra=extra)
    assert (found.id, found.problem, found.answer) == ("q", "?", "1")


def test_so_may_those_of_parquet(tmp_path):
    names = ["problem", "answer", "text", "text"]
    pq.write_table(pa.Table.from_arrays([pa.array(["?"])] * 4, names), tmp_path / "q.parquet")
    assert [row.answer for row in read(tmp_path / "q.parquet", extra="none")] == ["?"]
    with pytest.raises(UserError, match="'text' stands there more than once"):
        read(tmp_path / "q.parquet")


def test_a_key_that_is_kept_and_repeated_far_down_is_refused(tmp_path):
    lines = ['{"problem": "?", "answer": "1"}'] * 70 + ['{"problem": "?", "answer": "1", "x": 1, "x": 2}']
    (tmp_path / "q.jsonl").write_text("\n".join(lines))
    assert len(read(tmp_path / "q.jsonl", extra="none")) == 71
    with pytest.raises(UserError, match="line 71: 'x' stands there more than once"):
        read(tmp_path / "q.jsonl")


CSV = "question,image,gold,gold,w\nq0,a.png,FIRST,SECOND,1\n"


@pytest.mark.parametrize(
    ("name", "text", "place"),
    [
        ("q.csv", CSV, "q.csv, line 1"),
        ("metadata.csv", CSV, "metadata.csv, line 1"),
        ("q.jsonl", '{"question": "?", "gold": "1"}\n{"question": "?", "gold": "1", "gold": "2"}', "q.jsonl, line 2"),
        ("q.json", '[{"question": "?", "gold": "1", "gold": "2"}]', "q.json"),
        ("q.json", '{\n"gold": {"question": "?"}, "gold": {"question": "!"}}', "q.json"),
        ("q.json", '{"gold": 1, "data": [{"question": "?", "gold": "1", "gold": "2"}]}', "q.json"),
    ],
)
def test_a_name_that_stands_there_twice_is_refused(tmp_path, name, text, place):
    (tmp_path / name).write_text(text)
    asked = {"problem": "question", "answer": "gold"}
    with pytest.raises(UserError, match=rf"{place}: 'gold' stands there more than once.*Give each"):
        read(tmp_path if name == "metadata.csv" else tmp_path / name, columns=asked)


def test_so_is_one_of_parquet(tmp_path):
    twice = pa.Table.from_arrays([pa.array(["?"])] * 3, ["problem", "answer", "answer"])
    pq.write_table(twice, tmp_path / "q.parquet")
    with pytest.raises(UserError, match=r"q\.parquet, columns: 'answer' stands there more than once"):
        read(tmp_path / "q.parquet")


def test_nothing_is_decoded_ahead(tmp_path):
    """Streaming: the first row is there although a later line is broken."""
    (tmp_path / "a.png").write_bytes(png())
    path = tmp_path / "t.jsonl"
    path.write_text((json.dumps(row()) + "\n") * (sources.PEEK + 1) + "broken\n")
    rows = read_source(DataConfig(source=str(path)), split="train").rows
    assert list(next(rows).images) == [png()]
    with pytest.raises(UserError, match=f"line {sources.PEEK + 2}"):
        list(rows)


# --- images elsewhere ---


def test_images_in_a_named_folder_or_behind_a_link_into_it(tmp_path):
    for folder in ("data", "shared/sub", "other"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "shared/sub/a.png").write_bytes(png(1))
    (tmp_path / "shared/b.png").write_bytes(png(2))
    (tmp_path / "data/b.png").write_bytes(png(3))
    (tmp_path / "other/c.png").write_bytes(png(4))
    (tmp_path / "data/link").symlink_to(tmp_path / "shared")
    (tmp_path / "shared/out.png").symlink_to(tmp_path / "other/c.png")
    places = [str(tmp_path / "shared/b.png"), "link/sub/a.png", "sub/a.png", "b.png", "out.png", "../other/c.png"]
    path = write_lines(tmp_path / "data/q.jsonl", *(row(images=[place]) for place in places))
    refused = read(path)
    assert [item.reason for item in refused if not isinstance(item, Sample)] == [
        "image outside the data folder",
        "image outside the data folder",
        "image not found",
        "image not found",
        "image outside the data folder",
    ]
    assert f"adding {tmp_path / 'shared'} to data.image_folders allows it" in refused[0].detail
    assert f"adding {tmp_path / 'shared/sub'} to data.image_folders allows it" in refused[1].detail
    assert refused[2].told == (
        f"Row 2, for one: image not found: image 1: sub/a.png; looked for in {tmp_path / 'data'}; "
        "data.image_folders names further folders"
    )

    found = read(path, image_folders=[str(tmp_path / "shared")])
    assert [list(item.images) for item in found[:4]] == [[png(2)], [png(1)], [png(1)], [png(3)]]  # the data's own first
    assert [item.reason for item in found[4:]] == ["image outside the data folder"] * 2
    assert f"adding {tmp_path / 'other'} to data" in found[4].detail
    gone = read(
        write_lines(tmp_path / "data/gone.jsonl", row(images="x.png")), image_folders=[str(tmp_path / "shared")]
    )
    assert f"looked for in {tmp_path / 'data'}, {tmp_path / 'shared'};" in gone[0].detail
    system = read(write_lines(tmp_path / "data/system.jsonl", row(images="/etc/hostname")))
    assert system[0].told == "Row 0, for one: image outside the data folder: image 1: /etc/hostname"
    with pytest.raises(UserError, match=r"data.image_folders .*no such folder"):
        read(path, image_folders=[str(tmp_path / "none")])


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_lies_in_named_folders_is_in_the_key_and_where_they_lie_is_not(tmp_path, kind):
    (tmp_path / "data").mkdir()
    (tmp_path / "shared").mkdir()
    image = tmp_path / "shared/a.png"
    image.write_bytes(png(1))
    listing = write_lines(tmp_path / "data/metadata.jsonl", row(images=["a.png"]))
    source = listing if kind == "file" else listing.parent

    def key(*folders, name="shared"):
        data = DataConfig(source=str(source), image_folders=[str(tmp_path / f) for f in folders])
        return Chain(Config(data=data, model=ModelConfig()), tmp_path).prepare.key

    one, without = key("shared"), key()
    assert one != without
    assert len(read(source, image_folders=[str(image.parent)])) == 1
    image.write_bytes(png(2))
    assert key("shared") not in (one, without)
    image.write_bytes(png(1))
    image.parent.rename(tmp_path / "moved")
    assert key("moved") == one
    (tmp_path / "moved/unnamed.png").write_bytes(png(9))
    assert key("moved") == one
    with pytest.raises(UserError, match="belongs to the system"):
        key("/etc")


# --- questions of text alone ---


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".csv"])
def test_a_set_without_images_needs_no_column_of_them(tmp_path, suffix):
    rows = [{"problem": f"1 + {n}?", "answer": str(n + 1), "note": f"b, {n}.png"} for n in range(2)]
    path = tmp_path / f"q{suffix}"
    if suffix == ".jsonl":
        write_lines(path, *rows)
    elif suffix == ".csv":
        path.write_text("problem,answer\n1 + 0?,1\n1 + 1?,2\n")
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    found = read(path)
    assert [(sample.problem, list(sample.images), sample.answer) for sample in found] == [
        ("1 + 0?", [], "1"),
        ("1 + 1?", [], "2"),
    ]


def test_pictures_under_a_name_that_nobody_knows_are_not_lost(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    path = write_lines(tmp_path / "q.jsonl", {"problem": "?", "answer": "1", "media": ["a.png"]})
    (left_out,) = read(path)
    assert left_out.reason == "images in another column"
    assert "'media'" in left_out.detail
    assert "{images: ''}" in left_out.detail
    (sample,) = read(path, columns={"images": ""})
    assert (list(sample.images), sample.details()) == ([], {"media": ["a.png"]})
    pq.write_table(pa.table({"problem": ["?"], "answer": ["1"], "media": [png()]}), tmp_path / "q.parquet")
    assert reasons(read(tmp_path / "q.parquet")) == ["images in another column"]
    with pytest.raises(UserError, match=r"no column 'images'.*(?s:.*)images: img.*\{images: ''\}"):
        read(write_lines(path, {"problem": "?", "answer": "1", "img": "a.png"}))


# --- folders that hold more than data ---


@pytest.mark.parametrize(
    "hidden",
    [
        ".ipynb_checkpoints/a-checkpoint.parquet",
        ".cache/huggingface/a.parquet",
        "._a.parquet",
        "__MACOSX/a.parquet",
        "sub/.trash/a.parquet",
    ],
)
def test_what_people_do_not_see_is_no_data(tmp_path, hidden):
    (tmp_path / hidden).parent.mkdir(parents=True, exist_ok=True)
    for name, count in (("a.parquet", 3), (hidden, 5)):
        virl39k(count).to_parquet(str(tmp_path / name))
    assert len(read(tmp_path)) == 3
    assert len(read((tmp_path / hidden).parent)) in (3, 5)  # named itself, it is data


def test_copies_and_missing_shards_are_told(tmp_path):
    virl39k(2).to_parquet(str(tmp_path / "train-00000-of-00003.parquet"))
    virl39k(3).to_parquet(str(tmp_path / "train-00001-of-00003.parquet"))
    copied = tmp_path / "train-00001-of-00003.parquet"
    (tmp_path / "train.parquet").write_bytes(copied.read_bytes())
    source = read_source(DataConfig(source=str(tmp_path)), split="train")
    assert len(list(source.rows)) == 8
    assert source.remarks()[:-1] == [
        "train.parquet is a copy of train-00001-of-00003.parquet: its questions count twice",
        "2 of the 3 shards of train are there",
    ]


def test_a_long_csv_field_is_an_image(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    text = base64.b64encode(buffer.getvalue()).decode()
    assert len(text) > 131072  # Python's own limit of a field
    (tmp_path / "q.csv").write_text(f"problem,images,answer\n?,{text},1\n")
    assert list(read(tmp_path / "q.csv")[0].images) == [buffer.getvalue()]


def test_a_csv_field_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "LONGEST_FIELD", 1000)
    (tmp_path / "q.csv").write_text('problem,images,answer\n?,"' + "x" * 2000)
    with pytest.raises(UserError, match="not CSV: field larger than field limit"):
        read(tmp_path / "q.csv")


def test_a_line_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "LONGEST_LINE", 1000)
    write_lines(tmp_path / "q.jsonl", row(problem="?" * 2000))
    with pytest.raises(UserError, match="line 1: is longer than 1000 bytes"):
        read(tmp_path / "q.jsonl")


# --- JSON of other shapes ---


def plain(**changes):
    return {"problem": "How many?", "images": data_address(png()), "answer": "3"} | changes


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize(
    ("content", "ids"),
    [
        ([plain(), plain()], ["row-0", "row-1"]),
        ({"x1": plain(), "x2": plain()}, ["x1", "x2"]),
        ({"x1": plain(id="own"), "7": plain()}, ["own", "7"]),
        ({"version": 1, "data": [plain(), plain(id=5)]}, ["row-0", "5"]),
        ({"data": {"x1": plain()}}, ["x1"]),
        (plain(id="one"), ["one"]),
    ],
)
def test_json_of_one_value(tmp_path, content, ids, indent):
    (tmp_path / "q.json").write_text(json.dumps(content, indent=indent))
    found = read(tmp_path / "q.json")
    assert [sample.id for sample in found] == ids
    assert all(list(sample.images) == [png()] for sample in found)


def test_json_lines_under_the_name_json(tmp_path):
    write_lines(tmp_path / "q.json", plain(), plain())
    assert len(read(tmp_path / "q.json")) == 2
    (tmp_path / "q.json").write_text('{"problem": \n')
    with pytest.raises(UserError, match="line 1: not JSON"):
        read(tmp_path / "q.json")
    (tmp_path / "q.json").write_text('[{"problem": \n')
    with pytest.raises(UserError, match="not JSON"):
        read(tmp_path / "q.json")
    (tmp_path / "q.json").write_text('["a", "b"]')
    with pytest.raises(UserError, match="expected a list of objects"):
        read(tmp_path / "q.json")


# --- what is no data at all ---


def test_devices_pipes_and_system_folders_are_refused_before_they_are_read(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home" / "me").mkdir(parents=True)
    os.mkfifo(tmp_path / "pipe.jsonl")
    os.symlink("/dev/zero", tmp_path / "zero.jsonl")
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(str(tmp_path / "s.parquet"))
        system = ("/dev/zero", "/", "/proc", "/proc/meminfo", "/sys", "/usr", "~", tmp_path)
        for place in (*system, *(tmp_path / n for n in ("pipe.jsonl", "zero.jsonl", "s.parquet"))):
            with pytest.raises(UserError) as caught:
                read(place)
            assert caught.value.place == f"data.source {place}"
            with pytest.raises(UserError):
                Chain(Config(data=DataConfig(source=str(place))), tmp_path / "run")
            with pytest.raises(UserError):
                Chain(Config(model=ModelConfig(path=str(place))), tmp_path / "run")


def test_a_pipe_among_shards_and_images_is_no_data(tmp_path):
    virl39k(2).to_parquet(str(tmp_path / "a.parquet"))
    os.mkfifo(tmp_path / "b.parquet")
    assert len(read(tmp_path)) == 2
    path = write_lines(tmp_path / "q.jsonl", row(images="b.parquet"), row(images="/dev/zero"))
    assert reasons(read(path)) == ["image not found", "image outside the data folder"]


@pytest.mark.parametrize("name", ["x" * 300, "a/" * 3000 + "x.jsonl", "~nobody-here/x.jsonl"])
def test_a_name_that_is_no_path_is_told(tmp_path, name):
    with pytest.raises(UserError, match=r"data\.source"):
        read(name)
    if len(name) > 255:
        with pytest.raises(UserError, match=r"data\.source"):
            Chain(Config(data=DataConfig(source=name)), tmp_path / "run")
