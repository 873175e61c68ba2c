"""Records: what is written is read back, and a file that does not fit is refused by column."""

import dataclasses

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.disk.records import (
    Rollout,
    Sample,
    SampleTable,
    Scored,
    Statistics,
    copied,
    read_rows,
    schema,
    write_rows,
)
from pipelines.errors import UserError

SAMPLES = [
    Sample("a", "What is <image> + 1?", [b"\x89PNG\x00", b""], "2", "value", '{"level": 1}'),
    Sample("b", "", [], "B", "choice"),
]
ROLLOUTS = [
    Rollout(
        sample_id="a",
        position=2**40,
        response_ids=[[5, 2], [7]],
        response=["é 5", ""],
        logp=[[-0.5, -0.25], [0.0]],
        truncated=[False, True],
        answer=["5", ""],
        outcome=["correct", "truncated"],
        reward=[1.0, 0.0],
    )
]
SCORED = [
    Scored(
        sample_id="a",
        position=0,
        old_logp=[[-0.5, -0.25], [0.0]],
        entropy=[[1.5, 0.0], [0.125]],
        perception=[[2.0, 0.0], [-1.0]],
        keep=[[True, False], [True]],
        dependency=[1.0, -1.0],
    )
]


@pytest.mark.parametrize("rows", [SAMPLES, ROLLOUTS, SCORED], ids=lambda r: type(r[0]).__name__)
def test_rows_come_back_as_they_were(tmp_path, rows):
    path = tmp_path / "rows.parquet"
    write_rows(path, type(rows[0]), rows)
    assert read_rows(path, type(rows[0])) == rows


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Sample)])
def test_a_question_cannot_be_changed(field):
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(SAMPLES[0], field, None)
    assert isinstance(SAMPLES[0].images, tuple)


def test_a_copy_has_lists_of_its_own():
    row = dataclasses.replace(ROLLOUTS[0], named={"length": [1.0, 2.0]})
    other = copied(row)
    assert other == row
    other.response_ids[1].append(9)
    other.logp.clear()
    other.named["length"][0] = 0.0
    assert row == dataclasses.replace(ROLLOUTS[0], named={"length": [1.0, 2.0]})


@pytest.mark.parametrize("row_type", [Sample, Rollout, Scored, Statistics])
def test_no_rows_are_a_file_too(tmp_path, row_type):
    path = tmp_path / "rows.parquet"
    write_rows(path, row_type, [])
    assert read_rows(path, row_type) == []
    assert pq.read_schema(path).names == [f.name for f in dataclasses.fields(row_type) if "arrow" in f.metadata]


def test_log_probs_are_kept_to_the_bit(tmp_path):
    # The on-policy ratio exp(logp - old_logp) is exactly 1 only if old_logp survives the disk:
    # float32 in, the same float32 out (here the one nearest to 0.1).
    value = 0.10000000149011612
    write_rows(tmp_path / "a", Scored, [dataclasses.replace(SCORED[0], old_logp=[[value, value], [0.0]])])
    assert read_rows(tmp_path / "a", Scored)[0].old_logp[0] == [value, value]


# --- random access --------------------------------------------------------------------------------


@pytest.fixture
def table(tmp_path):
    """Ten samples in row groups of 4, 4 and 2."""
    rows = [Sample(f"s{i}", f"question {i}", [bytes([i])], str(i)) for i in range(10)]
    arrow = pa.Table.from_pylist([dataclasses.asdict(r) for r in rows], schema=schema(Sample))
    pq.write_table(arrow, tmp_path / "samples.parquet", row_group_size=4)
    return SampleTable(tmp_path / "samples.parquet")


def test_samples_by_position(table):
    assert len(table) == 10
    for index in (9, 0, 4, 3, 7, 8):  # both ends of every row group, in no order
        assert table[index].id == f"s{index}"
        assert list(table[index].images) == [bytes([index])]


def test_samples_by_slice_from_the_end_and_in_turn(table):
    assert [s.id for s in table[2:5]] == ["s2", "s3", "s4"]
    assert [s.id for s in table[-2:]] == ["s8", "s9"]
    assert table[-1].id == "s9"
    assert [s.id for s in table] == table.ids == [f"s{i}" for i in range(10)]
    with pytest.raises(IndexError):
        table[10]


def test_samples_by_id(table):
    assert table.by_id("s6").answer == "6"
    with pytest.raises(UserError, match="has no sample s10"):
        table.by_id("s10")


def test_a_table_without_samples(tmp_path):
    write_rows(tmp_path / "empty.parquet", Sample, [])
    table = SampleTable(tmp_path / "empty.parquet")
    assert (len(table), list(table)) == (0, [])


# --- refused --------------------------------------------------------------------------------------


def opens(path):
    """Both ways of reading samples."""
    return [lambda: read_rows(path, Sample), lambda: SampleTable(path)]


def without(column):
    return pa.Table.from_pylist([dataclasses.asdict(s) for s in SAMPLES], schema=schema(Sample)).drop([column])


def test_a_missing_column_is_named(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(without("answer"), path)
    for read in opens(path):
        with pytest.raises(UserError) as caught:
            read()
        assert caught.value.place == f"{path}, column answer"
        assert caught.value.problem == "expected string, found none."


def test_a_column_of_another_type_is_named(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(without("answer").append_column("answer", pa.array([1, 2])), path)
    for read in opens(path):
        with pytest.raises(UserError, match=r"column answer: expected string, found int64"):
            read()


def test_further_columns_do_no_harm(tmp_path):
    path = tmp_path / "a.parquet"
    whole = pa.Table.from_pylist([dataclasses.asdict(s) for s in SAMPLES], schema=schema(Sample))
    pq.write_table(whole.append_column("more", pa.array([1, 2])), path)
    assert read_rows(path, Sample) == list(SampleTable(path)) == SAMPLES


def named(*lists):
    return [dataclasses.replace(ROLLOUTS[0], position=i, named=found) for i, found in enumerate(lists)]


def test_named_rewards_are_columns_of_their_own(tmp_path):
    path, groups = tmp_path / "a.parquet", len(ROLLOUTS[0].reward)
    rows = named({"format": [1.0] * groups}, {}, {"format": [0.5] * groups, "a-b": [-2.0] * groups})
    write_rows(path, Rollout, rows)
    assert pq.read_schema(path).names == [*schema(Rollout).names, "reward/a-b", "reward/format"]
    assert read_rows(path, Rollout) == rows
    write_rows(path, Rollout, ROLLOUTS)  # without: as it always was
    assert pq.read_schema(path).names == schema(Rollout).names
    assert read_rows(path, Rollout) == ROLLOUTS


def test_named_rewards_of_another_type_or_not_finite_are_refused(tmp_path):
    path, groups = tmp_path / "a.parquet", len(ROLLOUTS[0].reward)
    with pytest.raises(UserError, match="column reward/format: holds nan"):
        write_rows(path, Rollout, named({"format": [float("nan")] * groups}))
    write_rows(path, Rollout, ROLLOUTS[:1])
    pq.write_table(pq.read_table(path).append_column("reward/format", pa.array(["good"])), path)
    with pytest.raises(UserError, match=r"column reward/format: expected list<.*>, found string"):
        read_rows(path, Rollout)


def test_rows_of_another_stage_are_refused(tmp_path):
    write_rows(tmp_path / "a.parquet", Rollout, ROLLOUTS)
    with pytest.raises(UserError, match=r"column old_logp") as caught:
        read_rows(tmp_path / "a.parquet", Scored)
    assert caught.value.fix == "It should be a file of Scored rows."


@pytest.mark.parametrize("keep", [0, 3, 0.5, -4], ids=["empty", "head", "half", "tail"])
def test_a_file_cut_short_is_refused(tmp_path, keep):
    path = tmp_path / "a.parquet"
    write_rows(path, Sample, SAMPLES)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    for read in opens(path):
        with pytest.raises(UserError, match="not a readable Parquet file") as caught:
            read()
        assert caught.value.place == str(path)


def test_a_page_that_is_damaged_is_refused(tmp_path):
    # The footer is whole, so the file opens; the fault shows when the rows are read.
    path = tmp_path / "a.parquet"
    write_rows(path, Sample, SAMPLES)
    content = bytearray(path.read_bytes())
    content[8:60] = b"\xff" * 52
    path.write_bytes(content)
    with pytest.raises(UserError, match="not a readable Parquet file"):
        read_rows(path, Sample)


def test_a_missing_file_is_named(tmp_path):
    for read in opens(tmp_path / "no.parquet"):
        with pytest.raises(UserError, match=r"no.parquet: no such file"):
            read()
