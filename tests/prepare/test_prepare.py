"""The prepare stage on real files and the real processor: what is written, left out and counted."""

import base64
import io
import json

import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.config.schema import Config, DataConfig, GlyphsConfig
from pipelines.disk.records import ROWS_PER_GROUP, Sample, read_rows, write_samples
from pipelines.errors import UserError
from pipelines.prepare.samples import PromptLengths, hold_out, prepare
from pipelines.watch import Silent


class Notes(Silent):
    """Keeps what it is told."""

    def __init__(self):
        self.notes, self.steps = [], []

    def note(self, text):
        self.notes.append(text)

    def progress(self, label, done, total=None):
        self.steps.append((label, done, total))


def png(width=28, height=28, shade=0):
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (shade, shade, shade)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def run(tmp_path):
    """Prepare with these data settings; returns (metrics, output folder, what was noted)."""

    def run_(**data):
        out, notes = tmp_path / "out", Notes()
        out.mkdir(exist_ok=True)
        config = Config(data=DataConfig(**data))
        return prepare(config, out, notes), out, notes

    return run_


def source(path, *rows):
    """A JSON Lines file; rows are changes to a good one."""
    good = {"problem": "<image>What is in a1?", "images": base64.b64encode(png()).decode()}
    path.write_text("".join(json.dumps(good | {"answer": "3"} | row) + "\n" for row in rows))
    return str(path)


def ids(path):
    return [sample.id for sample in read_rows(path, Sample)]


def rejected(out):
    return [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("setting", "text", "told"),
    [
        ("instruction", "<image>\n{problem} <image>", "<image>"),
        ("instruction", "Look at <image_1> and <|image|>.", "<image_1>, <|image|>"),
        ("instruction", "Name <image_type>, and think in <think> tags.", None),
        ("system_prompt", "You see <|vision_start|><|video_pad|>.", "<|vision_start|>, <|video_pad|>"),
    ],
)
def test_a_place_for_an_image_in_what_is_said_besides_the_question_is_told_of(run, tmp_path, setting, text, told):
    *_, notes = run(source=source(tmp_path / "q.jsonl", {}, {}), validation_count=1, **{setting: text})
    found = [note for note in notes.notes if note.startswith(f"WARNING data.{setting} holds")]
    assert found == ([f"WARNING data.{setting} holds {told}, {GOES}"] if told else [])


GOES = "where no image goes: they go where the question has <image>, or, if it has none, before all text"


def test_embedded_data(run):
    metrics, out, notes = run(glyphs=GlyphsConfig(train=40, validation=5, test=7))
    assert metrics == {"train": 40, "validation": 5, "test": 7, "rejected": 0}
    assert {split: len(ids(out / f"{split}.parquet")) for split in ("train", "validation", "test")} == {
        "train": 40,
        "validation": 5,
        "test": 7,
    }
    assert rejected(out) == []
    assert ("prepare train", 32, 40) in notes.steps
    assert ("prepare train", 40, 40) in notes.steps


def test_embedded_data_do_not_depend_on_the_run_seed(tmp_path):
    files = []
    for seed in (0, 1):
        out = tmp_path / str(seed)
        out.mkdir()
        data = DataConfig(glyphs=GlyphsConfig(train=3, validation=1, test=1, levels=(2,)))
        prepare(Config(data=data, seed=seed), out, Silent())
        files.append((out / "train.parquet").read_bytes())
        levels = {json.loads(s.metadata)["level"] for s in read_rows(out / "train.parquet", Sample)}
        assert levels == {2}
    assert files[0] == files[1]


def test_what_cannot_be_used_is_listed_and_counted(run, tmp_path):
    long = "What is in a1 ? " * 40
    tall = base64.b64encode(png(2, 500)).decode()  # Qwen refuses sides of more than 1 : 200
    path = source(
        tmp_path / "t.jsonl",
        {},
        {"answer": ""},
        {"images": "gone.png"},
        {"problem": long},
        {"answer": None},
        {},
        {"images": tall},
        {"images": base64.b64encode(png()[:60]).decode()},
    )
    metrics, out, notes = run(source=path, validation_count=1, max_prompt_tokens=100)
    assert metrics == {
        "train": 1,
        "validation": 1,
        "test": 0,
        "rejected": 6,
        "rejected_image_not_found": 1,
        "rejected_no_answer": 2,
        "rejected_prompt_too_long": 1,
        "rejected_unusable_prompt": 1,
        "rejected_unreadable_image": 1,
        "single_colour": 2,
    }
    listed = rejected(out)
    assert [(item["split"], item["row"], item["id"]) for item in listed] == [
        ("train", n, f"row-{n}") for n in (1, 2, 3, 4, 6, 7)
    ]
    assert listed[1]["reason"] == "image not found"
    assert listed[2]["detail"].endswith("tokens; data.max_prompt_tokens is 100")
    assert "aspect ratio" in listed[4]["detail"]
    assert "6 of 8 rows left out (2 no answer, 1 " in notes.notes[0]
    assert "). Row 1, for one: no answer; rejected.jsonl lists them" in notes.notes[0]


def test_lengths_are_those_of_the_encoded_prompt():
    """Counting by image size against the processor itself, also with pixel limits that resize."""
    images = [png(28, 28), png(100, 61), png(500, 300), png(7, 9)]
    for limits in ({}, {"min_pixels": 3 * 784, "max_pixels": 9 * 784}):
        config = Config(data=DataConfig(instruction="Box it.", **limits))
        lengths = PromptLengths(config)
        for i in range(len(images) + 1):
            sample = Sample(str(i), "Compare <b>:\n" + "<image>" * i, images[:i], "1")
            assert lengths.count(sample) == lengths._encoded(sample)
        assert lengths.by_size


def test_a_processor_that_adds_more_than_it_says_is_asked_itself(monkeypatch):
    lengths = PromptLengths(Config())
    kind = type(lengths.processor)
    monkeypatch.setattr(kind, "_get_num_multimodal_tokens", lambda self, image_sizes: {"num_image_tokens": [99]})
    sample = Sample("a", "<image>What?", [png()], "1")
    exact = lengths._encoded(sample)
    assert [lengths.count(sample), lengths.count(sample)] == [exact, exact]
    assert not lengths.by_size


def test_the_longest_allowed_prompt_stays(run, tmp_path):
    path = source(tmp_path / "t.jsonl", {}, {"problem": "<image>What is in a1 ? a2"})
    first, second = (
        PromptLengths(Config()).count(Sample("x", problem, [png()], "3"))
        for problem in ("<image>What is in a1?", "<image>What is in a1 ? a2")
    )
    assert first < second
    metrics, _, _ = run(source=path, validation_count=0, max_prompt_tokens=first)
    assert (metrics["train"], metrics["rejected_prompt_too_long"]) == (1, 1)
    metrics, _, _ = run(source=path, validation_count=0, max_prompt_tokens=second)
    assert metrics["train"] == 2


def test_held_out_rows_are_spread_and_stay_when_rows_are_added():
    def held_of(count, rows):
        held = []
        passed = list(hold_out([Sample(str(i), "", [], "") for i in range(rows)], count, held))
        assert sorted(int(s.id) for s in passed + held) == list(range(rows))
        return [int(s.id) for s in held]

    held = held_of(20, 1000)
    assert held == sorted(held)
    assert len(held) == 20
    assert 300 < sum(held) / 20 < 700  # uniform over 0..999: mean 500, standard error 65
    assert len(set(held_of(20, 1010)) & set(held)) >= 18
    assert held_of(0, 10) == []


def test_held_out_and_training_rows_are_disjoint(run, tmp_path):
    path = source(tmp_path / "t.jsonl", *({"id": i} for i in range(30)))
    metrics, out, _ = run(source=path, validation_count=10)
    assert (metrics["train"], metrics["validation"]) == (20, 10)
    train, validation = ids(out / "train.parquet"), ids(out / "validation.parquet")
    assert sorted(map(int, train + validation)) == list(range(30))
    assert not (out / "test.parquet").exists()


def test_a_validation_source_of_its_own(run, tmp_path):
    train = source(tmp_path / "train.jsonl", {"id": "a"}, {}, {})
    validation = source(tmp_path / "val.jsonl", {"id": "a"}, {}, {"answer": ""})
    metrics, out, _ = run(source=train, validation_source=validation, validation_count=1)
    assert (metrics["train"], metrics["validation"], metrics["rejected"]) == (3, 2, 1)
    assert ids(out / "train.parquet") == ["a", "row-1", "row-2"]
    assert ids(out / "validation.parquet") == ["a-2", "validation-row-1"]  # unique over both
    assert rejected(out)[0]["split"] == "validation"


def test_repeated_ids_are_made_unique(run, tmp_path):
    path = source(tmp_path / "t.jsonl", *({"id": name} for name in ("7", "7", "7-2", "7", "8")))
    _, out, notes = run(source=path, validation_count=0)
    assert ids(out / "train.parquet") == ["7", "7-2", "7-2-2", "7-3", "8"]
    assert notes.notes[0] == "train: 3 repeated ids got a number after them (row 1, '7' -> '7-2', ...)"
    assert ids(out / "validation.parquet") == []


def test_row_groups_stay_small(tmp_path):
    samples = [Sample(str(i), "p", [b"x" * 10], "1") for i in range(2 * ROWS_PER_GROUP + 1)]
    assert write_samples(tmp_path / "a.parquet", samples) == len(samples)
    groups = pq.ParquetFile(tmp_path / "a.parquet").metadata
    sizes = [groups.row_group(i).num_rows for i in range(groups.num_row_groups)]
    assert sizes == [ROWS_PER_GROUP, ROWS_PER_GROUP, 1]
    assert read_rows(tmp_path / "a.parquet", Sample) == samples
    large = [Sample(str(i), "p", [b"x" * 5 * 2**20], "1") for i in range(3)]
    write_samples(tmp_path / "b.parquet", large)
    assert pq.ParquetFile(tmp_path / "b.parquet").num_row_groups == 2  # 10 MiB, 5 MiB
    assert write_samples(tmp_path / "c.parquet", []) == 0


def test_limit(run, tmp_path):
    path = source(tmp_path / "t.jsonl", *[{}] * 9)
    assert run(source=path, validation_count=2, limit=5)[0]["train"] == 3


@pytest.mark.parametrize(
    ("rows", "settings", "problem"),
    [
        ([], {}, "no rows"),
        (
            [{"answer": ""}] * 3 + [{"images": "x.png"}],
            {},
            r"all 4 are rejected \(3 no answer, 1 image not found\).* Row 0, for one: no answer",
        ),
        ([{}] * 3, {"max_prompt_tokens": 1}, "3 prompt too long"),
        ([{}] * 3, {"validation_count": 3}, "has 3 usable rows: none is left to train on"),
    ],
)
def test_nothing_to_train_on(run, tmp_path, rows, settings, problem):
    path = source(tmp_path / "t.jsonl", *rows)
    with pytest.raises(UserError, match=problem):
        run(source=path, **{"validation_count": 0} | settings)


def test_no_rows_at_all(run, tmp_path):
    (tmp_path / "metadata.csv").write_text("file_name,problem,answer\n")
    with pytest.raises(UserError, match="the data set has no rows"):
        run(source=str(tmp_path))


def test_all_sources_are_opened_before_the_first_row_is_read(run, tmp_path):
    path = source(tmp_path / "t.jsonl", {})
    with pytest.raises(UserError, match=r"data.validation_source missing.parquet"):
        run(source=path, validation_source="missing.parquet")
    assert not (tmp_path / "out" / "train.parquet").exists()
