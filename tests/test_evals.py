"""Evaluation: the journal after a crash, intervals by hand, names of benchmarks."""

import json

import pytest

from evals.benchmarks import BENCHMARKS, check_names, questions
from evals.run import JOURNAL, RESULTS, compare, evaluate, read_journal
from evals.statistics import bootstrap, paired_difference
from pipelines.config import EvalConfig
from pipelines.engines import HuggingFaceEngine
from pipelines.errors import UserError
from pipelines.reward import make_reward
from pipelines.watch import Silent

SETTINGS = EvalConfig(samples=3, max_new_tokens=48, batch_prompts=3)


@pytest.fixture(scope="module")
def reward():
    with make_reward(workers=1) as reward:
        yield reward


class Counting(HuggingFaceEngine):
    """The real engine, which notes the questions it is asked."""

    def __init__(self, policy):
        super().__init__(policy)
        self.asked = []

    def generate(self, samples, names, sampling):
        self.asked += [sample.id for sample in samples]
        return super().generate(samples, names, sampling)


@pytest.fixture(scope="module")
def run(policy, samples, reward):
    """``run(folder)`` -> (summary, questions that were sampled)."""

    def evaluated(out, settings=SETTINGS, rows=samples):
        out.mkdir(exist_ok=True)
        engine = Counting(policy)
        summary = evaluate("glyphs", rows, engine, reward, settings, 0, out, Silent())
        return summary, engine.asked

    return evaluated


@pytest.fixture(scope="module")
def undisturbed(run, tmp_path_factory):
    """The folder of an evaluation that nothing interrupted."""
    out = tmp_path_factory.mktemp("undisturbed")
    run(out)
    return out


# --- results and journal --------------------------------------------------------------------------


def test_results(undisturbed, samples):
    results = json.loads((undisturbed / RESULTS).read_text())
    rows = results["questions"]
    assert list(rows) == sorted(sample.id for sample in samples)
    assert all(len(row) == 3 for row in rows.values())
    right = sum(map(sum, rows.values()))
    assert results["accuracy"] == pytest.approx(right / 24)
    assert results["pass_at_k"] == sum(map(any, rows.values())) / 8
    assert results["outcomes"]["correct"] == right
    assert sum(results["outcomes"].values()) == 24
    assert results["interval"][0] <= results["accuracy"] <= results["interval"][1]
    assert 0 < right < 24  # so that what is tested here could differ


def test_the_journal_has_a_line_per_response(undisturbed, samples):
    lines = [json.loads(line) for line in (undisturbed / JOURNAL).read_text().splitlines()]
    assert [(line["question"], line["sample"]) for line in lines] == [
        (sample.id, number) for sample in samples for number in range(3)
    ]
    assert all(line["tokens"] > 1 for line in lines)


def test_the_same_evaluation_twice_and_in_other_batches(undisturbed, run, tmp_path):
    run(tmp_path / "again")
    run(tmp_path / "cut", SETTINGS.model_copy(update={"batch_prompts": 1}))
    expected = (undisturbed / RESULTS).read_bytes()
    assert (tmp_path / "again" / RESULTS).read_bytes() == expected
    assert (tmp_path / "cut" / RESULTS).read_bytes() == expected


@pytest.mark.parametrize(
    ("lines", "characters", "left"),
    [
        (0, 0, 8),  # nothing was written
        (0, 20, 8),  # the first line is cut
        (3, 0, 7),  # one whole question
        (4, 0, 7),  # one whole question, one sample of the next
        (4, 30, 7),  # the same, and its second sample is cut
        (9, 0, 5),  # the first batch of three questions
        (23, 40, 1),  # the very last line is cut
        (24, 0, 0),  # only the results are missing
    ],
)
def test_an_interrupted_evaluation_ends_the_same(
    undisturbed, run, samples, tmp_path, lines, characters, left
):
    whole = (undisturbed / JOURNAL).read_text().splitlines(keepends=True)
    kept = "".join(whole[:lines]) + (whole[lines][:characters] if characters else "")
    (tmp_path / JOURNAL).write_text(kept)
    _, asked = run(tmp_path)
    assert asked == [sample.id for sample in samples[8 - left :]]
    assert (tmp_path / RESULTS).read_bytes() == (undisturbed / RESULTS).read_bytes()
    # The journal is mended as well: reading it again finds every question.
    assert len(read_journal(tmp_path / JOURNAL, 3)) == 8


def test_rubbish_in_the_middle_of_a_journal(undisturbed, run, samples, tmp_path):
    # After a power cut a file may have a hole of zeros: what follows it is sampled again.
    content = bytearray((undisturbed / JOURNAL).read_bytes())
    hole = content.index(samples[4].id.encode())
    content[hole : hole + 50] = bytes(50)
    (tmp_path / JOURNAL).write_bytes(content)
    _, asked = run(tmp_path)
    assert asked == [sample.id for sample in samples[4:]]
    assert (tmp_path / RESULTS).read_bytes() == (undisturbed / RESULTS).read_bytes()


def test_a_journal_that_is_not_there(tmp_path):
    assert read_journal(tmp_path / JOURNAL, 3) == {}


# --- intervals ------------------------------------------------------------------------------------


def test_equal_values_leave_no_doubt():
    interval = bootstrap([0.25] * 10)
    assert (interval.mean, interval.low, interval.high) == (0.25, 0.25, 0.25)


def test_the_interval_of_many_coins_by_hand():
    # 400 questions, half right: the standard error is sqrt(0.25 / 400) = 0.025, and 95 % lie
    # within 1.96 of it: 0.451 .. 0.549.
    interval = bootstrap([0.0, 1.0] * 200)
    assert interval.mean == 0.5
    assert interval.low == pytest.approx(0.451, abs=0.003)
    assert interval.high == pytest.approx(0.549, abs=0.003)
    assert bootstrap([0.0, 1.0] * 200) == interval  # seeded


def test_samples_of_one_question_count_as_one():
    # The question is the unit: 100 questions all right or all wrong in 8 samples are 100 coins,
    # not 800. Standard error sqrt(0.25 / 100) = 0.05.
    interval = bootstrap([0.0, 1.0] * 50)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * 0.05, abs=0.01)


def test_a_paired_difference_by_hand():
    # Each question gains exactly 1/8, so the difference is certain, however the questions differ.
    before = [0.0, 0.125, 0.5, 0.875]
    interval = paired_difference(before, [x + 0.125 for x in before])
    assert (interval.mean, interval.low, interval.high) == (0.125, 0.125, 0.125)
    assert paired_difference([1.0], [0.0]).mean == -1.0
    with pytest.raises(ValueError, match="1 and 2 questions"):
        paired_difference([1.0], [1.0, 0.0])


def test_two_evaluations_are_compared_on_the_questions_they_share(tmp_path):
    # Shared: a, from 1/2 to 1, and b, from 0 to 1/2. Both gain 1/2; c and d are in one only.
    rows = [{"a": [1, 0], "b": [0, 0], "c": [1, 1]}, {"a": [1, 1], "b": [1, 0], "d": [0, 0]}]
    folders = []
    for name, questions_ in zip(("before", "after"), rows, strict=True):
        folders.append(tmp_path / name)
        folders[-1].mkdir()
        (folders[-1] / RESULTS).write_text(json.dumps({"questions": questions_}))
    interval = compare(*folders)
    assert (interval.mean, interval.low, interval.high) == (0.5, 0.5, 0.5)


# --- the table of benchmarks ----------------------------------------------------------------------


def test_an_unknown_benchmark_is_answered_with_the_nearest():
    with pytest.raises(UserError, match=r"Did you mean glyphs\?") as caught:
        check_names(["glyphs", "glyps"])
    assert caught.value.place == "glyps"
    assert all(name in caught.value.fix for name in BENCHMARKS)
    with pytest.raises(UserError, match="no such benchmark"):
        questions("xyz", None, None)


def test_questions_of_the_embedded_benchmarks(write_prepared, samples, tmp_path):
    prepared = write_prepared(tmp_path / "prepare")
    assert questions("glyphs", prepared, None) == samples
    assert questions("validation", prepared, 3) == samples[:3]


def test_questions_that_are_not_there(write_prepared, tmp_path):
    prepared = write_prepared(tmp_path / "prepare", [])
    with pytest.raises(UserError, match="has no questions"):
        questions("glyphs", prepared, None)
    (prepared / "test.parquet").unlink()
    with pytest.raises(UserError, match=r"needs data.source=glyphs"):
        questions("glyphs", prepared, None)
