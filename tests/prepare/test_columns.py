"""The columns of a data set: those a question is made of, those that are missing, and those that are kept besides."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_files import data_address, opened, png, read, reasons, row, write_lines

from pipelines.chain import Chain
from pipelines.config.schema import Config, DataConfig, ModelConfig
from pipelines.disk.records import Sample
from pipelines.errors import UserError
from pipelines.prepare import sources
from pipelines.prepare.sources import read_source

# --- rows that differ in their columns ---


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_rows_may_call_their_images_either_name(tmp_path, suffix):
    for name in ("a", "b"):
        (tmp_path / f"{name}.png").write_bytes(png())
    rows = [
        {"problem": "?", ("images", "image")[n % 2]: f"{'ab'[n % 2]}.png", "answer": "1"}
        for n in range(2 * sources.PEEK + 2)
    ]
    rows[:-1] = sorted(rows[:-1], key=lambda row: "image" in row)  # the other name comes late
    path = tmp_path / f"q{suffix}"
    columns = ["problem", "images", "image", "answer"]
    if suffix == ".jsonl":
        write_lines(path, *rows)
    elif suffix == ".json":
        path.write_text(json.dumps(rows))
    elif suffix == ".csv":
        lines = [",".join(str(row.get(name, "")) for name in columns) for row in rows]
        path.write_text("\n".join([",".join(columns), *lines]) + "\n")
    else:
        table = {name: [row.get(name) for row in rows] for name in columns}
        pq.write_table(pa.table(table), path)
    found = read(path)
    assert len(found) == len(rows)
    assert [len(sample.images) for sample in found] == [1] * len(rows)


def test_a_column_may_begin_late(tmp_path):
    text_only = [{"problem": "1 + 2?", "answer": "3"}] * (sources.PEEK + 3)
    path = write_lines(tmp_path / "q.jsonl", *text_only, row(images=data_address(png()), id="z"))
    found = read(path)
    assert found[-1] == Sample("z", "<image>How many?", [png()], "3")


@pytest.mark.parametrize("name", ["img", "decoded_image", "picture_1", "image_path", "photo"])
@pytest.mark.parametrize("value", [data_address(png()), "a.png", ["a.png"], {"path": "a.png"}])
def test_a_picture_in_a_column_that_was_not_named_is_never_lost_in_silence(tmp_path, name, value):
    (tmp_path / "a.png").write_bytes(png())
    path = write_lines(tmp_path / "q.jsonl", row(problem="?"), {"problem": "?", name: value, "answer": "3"})
    found = read(path)
    assert reasons(found) == ["images in another column"]
    assert repr(name) in found[1].detail
    source = read_source(DataConfig(source=str(path)), split="train")
    list(source.rows)
    assert source.remarks()[:-1] == [f"columns not used: {name}"]


def test_the_same_in_parquet_whose_rows_have_all_columns(tmp_path):
    table = pa.table(
        {
            "problem": ["?", "?"],
            "images": [png(), None],
            "img": [None, png()],
            "answer": ["1", "2"],
            "image_width": [28, 28],
            "topic": ["a", "b"],
        }
    )
    pq.write_table(table, tmp_path / "q.parquet")
    found = read(tmp_path / "q.parquet")
    assert reasons(found) == ["images in another column"]
    source = read_source(DataConfig(source=str(tmp_path / "q.parquet")), split="train")
    list(source.rows)
    kept = "columns kept for rewards, in Sample.details(): image_width, topic"
    assert source.remarks()[:-1] == [kept, "columns not used: img"]
    assert read(tmp_path / "q.parquet", extra="none")[0].details() == {}


def test_a_question_or_answer_under_another_name_is_told_too(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    path = write_lines(
        tmp_path / "q.jsonl",
        row(),
        {"question": "What?", "images": ["a.png"], "answer": "3"},
        {"images": ["a.png"], "answer": "3"},
        {"problem": "?", "images": ["a.png"], "solution": "3"},
    )
    found = read(path)
    assert reasons(found) == ["problem in another column", "no question", "no answer"]
    assert "'question'" in found[1].detail
    assert "'solution'" in found[3].detail


def test_all_missing_columns_are_told_at_once(tmp_path):
    path = write_lines(tmp_path / "q.jsonl", {"question": "x", "img": "a.png", "gold": "1"})
    with pytest.raises(UserError) as caught:
        read(path)
    for ours in ("problem", "images", "answer"):
        assert f"no column {ours!r}" in caught.value.problem
    assert "'{problem: question, images: img, answer: gold}'" in caught.value.fix


def test_unknown_columns_of_ours_are_told_at_once_with_the_way_to_metadata(tmp_path):
    path = write_lines(tmp_path / "q.jsonl", row(bbox=[1, 2]))
    with pytest.raises(UserError) as caught:
        read(path, columns={"metadata": "bbox", "answr": "answer"})
    assert "metadata, answr" in caught.value.place
    assert "answr may be answer" in caught.value.fix
    assert "sample.details()['bbox']" in caught.value.fix


def test_near_names_are_told(tmp_path):
    path = write_lines(tmp_path / "q.jsonl", row(qestion="?", anwser="3"))
    with pytest.raises(UserError) as caught:
        read(path, columns={"problem": "question", "answer": "answers"}, extra=["problem_id", "imges"])
    for name in ("question", "answers", "problem_id", "imges"):
        assert f"no column {name!r}" in caught.value.problem
    assert "{problem: qestion, answer: answer}" in caught.value.fix
    assert "data.extra='[problem, images]'" in caught.value.fix


# --- columns that no question is made of ---


def test_further_columns_are_kept_as_the_json_that_they_are(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    more = {
        "bbox": [1, 2.5],
        "source": {"book": "x"},
        "golds": ["3", "4"],
        "wide": "x" * 70_000,
        "scan": data_address(png()),
    }
    path = write_lines(tmp_path / "q.jsonl", row(**more), row(bbox=None, late=True))
    found, told = opened(path)
    assert [sample.details() for sample in found] == [
        {"bbox": [1, 2.5], "source": {"book": "x"}},
        {"bbox": None, "late": True},
    ]
    assert told[0] == "columns kept for rewards, in Sample.details(): bbox, source, late"
    assert [line for line in told if line.startswith("golds is left out")]
    assert "wide is left out: longer than 65536 characters, in 1 row" in told
    assert "scan is left out: an image, in 1 row" in told

    some, told = opened(path, extra=["golds", "bbox"])
    assert some[0].details() == {"bbox": [1, 2.5], "golds": ["3", "4"]}
    assert told[:-1] == [
        "columns kept for rewards, in Sample.details(): bbox, golds",
        "golds decide grading: each of their texts counts as right",
        "columns not used: source, wide, scan, late",
    ]
    assert reasons(read(write_lines(path, row(golds="3")), extra=["golds"])) == ["golds are no list of texts"]
    write_lines(path, row(golds=None), row(golds=["3"]), row())
    assert [sample.details().get("golds") for sample in read(path, extra=["golds"])] == [None, ["3"], None]
    assert "bbox is left out: no JSON (float), in 1 row" in opened(write_lines(path, row(bbox=float("inf"))))[1]


def test_what_parquet_holds_and_json_does_not_is_told_by_name(tmp_path):
    table = {
        "problem": ["?"],
        "images": [png()],
        "answer": ["1"],
        "mask": [b"\x00"],
        "thumb": [{"bytes": png(), "path": "t"}],
    }
    pq.write_table(pa.table(table | {"score": [float("nan")]}), tmp_path / "q.parquet")
    (sample,), told = opened(tmp_path / "q.parquet")
    assert sample.details() == {"score": None}
    assert {"mask is left out: no JSON (bytes), in 1 row", "thumb is left out: no JSON (bytes), in 1 row"} < set(told)


@pytest.mark.parametrize("metadata", [{"a": 1, "level": 2, "golds": ["9"]}, '{"a": 1, "level": 2}'])
def test_an_object_called_metadata_gives_its_keys_and_columns_go_before_them(tmp_path, metadata):
    (tmp_path / "a.png").write_bytes(png())
    path = write_lines(tmp_path / "q.jsonl", row(metadata=metadata, level="hard"), row(metadata="as it is"))
    found, told = opened(path)
    assert [sample.details() for sample in found] == [{"a": 1, "level": "hard"}, {"metadata": "as it is"}]
    assert told[0].endswith("metadata, level")
    assert read(path, extra="none")[0].details() == {}


def test_what_is_kept_is_in_the_key_and_what_earlier_versions_made_stays(tmp_path):
    path = write_lines(tmp_path / "q.jsonl", row(images=data_address(png())))

    def settings(**data):
        chain = Chain(Config(data=DataConfig(source=str(path), **data), model=ModelConfig()), tmp_path)
        return chain.prepare.settings

    assert settings()["reader version"] == 3
    assert settings(extra="none")["reader version"] == 2
    assert {"data.extra"} == {name for name in settings(extra=["a"]) if name not in settings()}
    assert "data.extra" not in settings(extra="none")
