"""The runner on the embedded questions: journal, crashes, growth, regrading, profiles."""

import json
import os
from dataclasses import replace

import hub_schema
import pyarrow.parquet as pq
import pytest

from evals.benchmarks.questions import gather
from evals.grade import ANSWERS
from evals.journal import Entry, append, count, mend_journal, prompt_digest, read_journal
from evals.profiles import INSTRUCTION, PUBLISHED, PromptSettings, evaluation
from evals.run import complete, grade_cell, questions
from pipelines.chain import Chain
from pipelines.config import settings
from pipelines.disk.records import RESULTS
from pipelines.errors import UserError
from pipelines.grading.graders import GraderPool
from pipelines.rollout.hf import HuggingFaceEngine
from pipelines.watch import Silent

ASKED = ("eval.samples=3", "eval.batch_prompts=3")


@pytest.fixture(scope="module")
def pool():
    with GraderPool(workers=1) as pool:
        yield pool


class Counting(HuggingFaceEngine):
    """The real engine, which notes the cells (question, sample) it is asked for."""

    def __init__(self, policy):
        super().__init__(policy)
        self.asked = []

    def generate(self, samples, names, sampling):
        self.asked += [(s.id, sampling.first + i) for s in samples for i in range(sampling.samples)]
        return super().generate(samples, names, sampling)


@pytest.fixture(scope="module")
def run(policy, configure, write_prepared, pool):
    """``run(folder, "eval.samples=3", ...)`` -> (cell, summary, cells that were sampled)."""

    def evaluated(folder, *overrides, batch_prompts=3):
        config = configure(*ASKED, *overrides)
        chain = Chain(config, folder)
        write_prepared(chain.prepare.path)
        cell = chain.cell(0, "glyphs")
        cell.results.path.mkdir(parents=True, exist_ok=True)
        engine = Counting(policy)
        summary = complete(cell, lambda: engine, batch_prompts, pool, None, cell.results.path, Silent())
        return cell, summary, engine.asked

    return evaluated


@pytest.fixture(scope="module")
def undisturbed(run, tmp_path_factory):
    """The cell of an evaluation that nothing interrupted."""
    return run(tmp_path_factory.mktemp("undisturbed"))[0]


def results(cell):
    return (cell.results.path / RESULTS).read_bytes()


def started(cell, text):
    """A run folder beside, in which only this much of the journal was written."""
    cell.journal.parent.mkdir(parents=True)
    cell.journal.write_text(text)


# --- results and journal --------------------------------------------------------------------------


def test_results(undisturbed, samples):
    found = json.loads(results(undisturbed))
    rows = found["right"]
    assert list(rows) == [sample.id for sample in samples]
    assert all(len(row) == 3 for row in rows.values())
    right = sum(map(sum, rows.values()))
    assert found["accuracy"] == pytest.approx(right / 24)
    assert found["pass_at_k"]["1"] == pytest.approx(right / 24)
    assert found["pass_at_k"]["3"] == sum(map(any, rows.values())) / 8
    assert found["outcomes"]["correct"] == right
    assert sum(found["outcomes"].values()) == 24
    assert found["interval"][0] <= found["accuracy"] <= found["interval"][1]
    assert 0 < right < 24  # so that what is tested here could differ
    assert (found["questions"], found["samples"], found["grader"]) == (8, 3, "mathruler")
    assert set(found["graders"]) == {"mathruler", "math-verify"}
    assert found["settings"]["max_new_tokens"] == 48
    assert found["settings"]["instruction"] == ""


def test_every_answer_is_stored_with_both_verdicts(undisturbed, samples):
    table = pq.read_table(undisturbed.results.path / ANSWERS).to_pylist()
    assert [(row["question"], row["sample"]) for row in table] == [
        (sample.id, i) for sample in samples for i in range(3)
    ]
    right = json.loads(results(undisturbed))["right"]
    for row in table:
        assert (row["mathruler"] == "correct") == right[row["question"]][row["sample"]]
        if row["mathruler"] == "correct":
            gold = next(s.answer for s in samples if s.id == row["question"])
            assert row["answer"] == gold
            assert row["math-verify"] == "correct"


def test_two_verdicts_of_every_answer(pool, tmp_path, monkeypatch):
    monkeypatch.setenv("VPPO_RUNS", str(tmp_path / "runs"))
    data = hub_schema.write(tmp_path / "hub", names=("mathvision",))
    config = settings.load(None, [f"eval.data_dir={data}", "eval.samples=4"])
    gather(config, ["mathvision"], Silent())
    cell = Chain(config, tmp_path / "run").cell(0, "mathvision")
    said = {
        # Gold B, whose text is 7: both; ours only; the text alone; another letter.
        "3": ["B", "B. 7", "7", "(A) 7"],
        # Gold 60: as published only, as mathruler reads the last side; both; neither.
        "1": ["4=60", "60", "61", "about 60"],
    }
    for row in questions(cell):
        digest = prompt_digest(row, cell.how.asking)
        texts = [rf"\boxed{{{answer}}}" for answer in said.get(row.id, ["no"] * 4)]
        append(cell.journal, [Entry(row.id, i, t, False, 5, digest) for i, t in enumerate(texts)])
    summary = grade_cell(cell, pool, None, tmp_path, Silent())
    found = json.loads((tmp_path / RESULTS).read_text())
    assert "right_as_published" not in summary
    assert (found["right"]["3"], found["right_as_published"]["3"]) == ([1, 1, 0, 0], [1, 0, 0, 0])
    assert (found["right"]["1"], found["right_as_published"]["1"]) == ([0, 1, 0, 0], [1, 1, 0, 0])
    assert found["differ"] == {"ours_only": 1, "as_published_only": 1, "by_content": 1}
    assert (found["accuracy"], found["as_published"]["accuracy"]) == (3 / 28, 3 / 28)
    assert found["as_published"]["outcomes"]["correct"] == 3
    table = {(row["question"], row["sample"]): row for row in pq.read_table(tmp_path / ANSWERS).to_pylist()}
    by_content = [table["3", i]["by_content"] for i in range(4)]
    assert by_content == [False, False, True, False]
    assert table["1", 0]["by_content"] is None  # no options
    assert [table["3", i]["as_published"] for i in range(2)] == ["correct", "wrong"]


def test_own_questions_have_both_verdicts_too(undisturbed):
    found = json.loads(results(undisturbed))
    assert found["right_as_published"] == found["right"]
    assert found["differ"] == {"ours_only": 0, "as_published_only": 0, "by_content": None}


def test_the_journal_has_a_line_per_response(undisturbed, samples):
    lines = [json.loads(line) for line in undisturbed.journal.read_text().splitlines()]
    assert [(line["question"], line["sample"]) for line in lines] == [
        (sample.id, number) for sample in samples for number in range(3)
    ]
    assert all(line["tokens"] > 1 for line in lines)
    assert len({line["prompt"] for line in lines}) == 8


def test_the_same_evaluation_twice_and_in_other_batches(undisturbed, run, tmp_path):
    again, _, _ = run(tmp_path / "again")
    cut, _, _ = run(tmp_path / "cut", batch_prompts=1)
    assert results(again) == results(undisturbed)
    assert results(cut) == results(undisturbed)


@pytest.mark.parametrize(
    ("lines", "characters", "done"),
    [
        (0, 0, 0),  # nothing was written
        (0, 20, 0),  # the first line is cut
        (3, 0, 3),  # one whole question
        (4, 0, 4),  # one whole question, one sample of the next
        (4, 30, 4),  # the same, and its second sample is cut
        (9, 0, 9),  # the first batch of three questions
        (23, 40, 23),  # the very last line is cut
        (24, 0, 24),  # only the results are missing
    ],
)
def test_an_interrupted_evaluation_ends_the_same(
    undisturbed, run, configure, samples, tmp_path, lines, characters, done
):
    whole = undisturbed.journal.read_text().splitlines(keepends=True)
    cell = Chain(configure(*ASKED), tmp_path).cell(0, "glyphs")
    started(cell, "".join(whole[:lines]) + (whole[lines][:characters] if characters else ""))
    _, _, asked = run(tmp_path)
    every = [(sample.id, number) for sample in samples for number in range(3)]
    assert sorted(asked) == sorted(every[done:])  # what was sampled is not sampled again
    assert results(cell) == results(undisturbed)
    # The journal is mended as well: it is the undisturbed one, in some order of its lines.
    assert sorted(cell.journal.read_text().splitlines(keepends=True)) == sorted(whole)


def test_a_journal_with_many_gaps_is_completed_in_full_batches(undisturbed, run, configure, tmp_path):
    # Every other question lacks all, the others the last sample: 4 + 4 questions, 3 in a batch.
    lines = undisturbed.journal.read_text().splitlines(keepends=True)
    entries = {(row["question"], row["sample"]): n for n, row in enumerate(map(json.loads, lines))}
    names = list(dict.fromkeys(name for name, _ in entries))
    kept = [lines[entries[name, number]] for name in names[::2] for number in (0, 1)]
    cell = Chain(configure(*ASKED), tmp_path).cell(0, "glyphs")
    started(cell, "".join(kept))
    _, _, asked = run(tmp_path)
    assert asked == [(name, n) for name in names[1::2] for n in range(3)] + [(name, 2) for name in names[::2]]
    assert results(cell) == results(undisturbed)


def test_rubbish_in_the_middle_of_a_journal(undisturbed, run, configure, samples, tmp_path):
    # After a power cut a file may have a hole of zeros: the question it spoils is sampled again.
    content = bytearray(undisturbed.journal.read_bytes())
    hole = content.index(samples[4].id.encode())
    content[hole : hole + 50] = bytes(50)
    cell = Chain(configure(*ASKED), tmp_path).cell(0, "glyphs")
    started(cell, "")
    cell.journal.write_bytes(content)
    _, _, asked = run(tmp_path)
    assert asked == [(samples[4].id, number) for number in range(3)]
    assert results(cell) == results(undisturbed)


def test_a_question_that_changed_is_asked_again(samples, tmp_path):
    path, asking = tmp_path / "journal.jsonl", replace(PUBLISHED, instruction="")
    for sample in samples[:2]:
        append(path, [Entry(sample.id, 0, "text", False, 1, prompt_digest(sample, asking))])
    assert set(mend_journal(path, read_journal(path), samples, asking)) == {samples[0].id, samples[1].id}
    changed = [samples[0], replace(samples[1], images=[b"another image"])]
    assert set(mend_journal(path, read_journal(path), changed, asking)) == {samples[0].id}
    assert set(read_journal(path)) == {samples[0].id}  # and the file forgets it
    other = replace(asking, max_pixels=1)
    assert mend_journal(path, read_journal(path), samples, other) == {}


def test_a_journal_that_is_not_there_and_lines_that_are_none(tmp_path):
    path = tmp_path / "journal.jsonl"
    assert read_journal(path) == {}
    entry = Entry("a", 0, "line\n", True, 3, "0")
    append(path, [entry])
    path.write_bytes(path.read_bytes() + b'[1]\n{"question": "b"}\nnull\n' + b"[" * 9999 + b"\n")
    assert read_journal(path) == {"a": [entry]}
    assert count(read_journal(path), ["a", "b"], 2) == 1


def test_a_response_with_half_a_character_passes(tmp_path):
    entry = Entry("a", 0, "\ud800 \u2028 \0", True, 3, "0")
    append(tmp_path / "journal.jsonl", [entry])
    assert read_journal(tmp_path / "journal.jsonl") == {"a": [entry]}


# --- growing, shrinking, other graders ------------------------------------------------------------


def test_more_samples_and_questions_add_to_what_is_there(undisturbed, run, samples, tmp_path):
    few, _, first = run(tmp_path, "eval.samples=2", "eval.limit=4")
    whole, _, then = run(tmp_path)
    assert few.journal == whole.journal
    every = {(sample.id, number) for sample in samples for number in range(3)}
    assert len(first) == 8
    assert sorted(first + then) == sorted(every)
    assert results(whole) == results(undisturbed)
    again, _, asked = run(tmp_path, "eval.samples=2", "eval.limit=4")
    assert asked == []
    assert json.loads(results(again))["questions"] == 4


@pytest.mark.parametrize(
    "setting",
    [
        "eval.temperature=0.5",
        "seed=1",
        "eval.max_new_tokens=20",
        "eval.instruction=Go",
        "eval.max_pixels=9999",
        "rollout.engine=my:engine",
        "model.dtype=bfloat16",
    ],
)
def test_another_setting_never_mixes_with_an_old_journal(undisturbed, configure, setting):
    chain = Chain(configure(*ASKED, setting), undisturbed.journal.parents[3])
    assert chain.cell(0, "glyphs").journal != undisturbed.journal


def test_other_graders_need_no_model(undisturbed, run, configure, pool):
    folder = undisturbed.journal.parents[3]
    cell, _, asked = run(folder, "reward.grader=math-verify", "eval.graders=[math-verify]")
    assert asked == []
    assert cell.results.path != undisturbed.results.path
    found = json.loads(results(cell))
    assert (found["grader"], list(found["graders"])) == ("math-verify", ["math-verify"])


@pytest.mark.parametrize(("choice_rule", "paid"), [("true", 0.0), ("false", 1.0)])
def test_a_reward_of_ones_own_gets_outcomes_as_training_has_them(
    configure, write_prepared, pool, tmp_path, monkeypatch, choice_rule, paid
):
    """As published, mathruler reads the last side of an equation; our rules want the value alone."""
    text = "def right(responses, samples, outcomes):\n    return [float(o == 'correct') for o in outcomes]\n"
    (tmp_path / f"paid_{choice_rule}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    asked = f"reward.function=paid_{choice_rule}:right", f"published.choice_rule={choice_rule}", "eval.samples=1"
    chain = Chain(configure(*asked), tmp_path / "run")
    write_prepared(chain.prepare.path)
    cell = chain.cell(0, "glyphs")
    for row in questions(cell):
        said = rf"\boxed{{99={row.answer}}}"
        append(cell.journal, [Entry(row.id, 0, said, False, 5, prompt_digest(row, cell.how.asking))])
    found = grade_cell(cell, pool, None, tmp_path, Silent())
    assert (found["accuracy"], found["as_published"]["accuracy"]) == (0, 1)
    assert found["rewards"]["reward"] == {"value": paid, "interval": [paid, paid]}


def test_grading_an_incomplete_journal_is_refused(undisturbed, configure, pool, tmp_path):
    folder = undisturbed.journal.parents[3]
    cell = Chain(configure(*ASKED, "eval.samples=5"), folder).cell(0, "glyphs")
    with pytest.raises(UserError, match="24 of 40 responses"):
        grade_cell(cell, pool, None, tmp_path, Silent())
    assert not os.listdir(tmp_path)


# --- profiles -------------------------------------------------------------------------------------


def test_the_published_profile_and_training_s(configure):
    config = configure("data.min_pixels=200704", "rollout.top_p=0.99", "data.instruction=Think.")
    assert evaluation(config, "mathverse").asking == PromptSettings(1.0, 1.0, 50, 2048, 1024, 589_824, INSTRUCTION)
    matched = evaluation(configure("eval.profile=matched", "rollout.top_p=0.99"), "mathverse")
    assert matched.asking == PromptSettings(1.0, 0.99, 0, 48, None, None, "")
    # The run's own questions are asked as in training, whatever the profile.
    own = evaluation(config, "validation")
    assert (own.profile, own.asking.top_p, own.asking.instruction) == ("matched", 0.99, "Think.")


def test_what_is_set_apart_from_the_profile(configure):
    config = configure("eval.max_new_tokens=8192", "eval.top_k=0", "eval.instruction=''")
    expected = replace(PUBLISHED, max_new_tokens=8192, top_k=0, instruction="")
    assert evaluation(config, "geo3k").asking == expected


def test_validation_has_a_sample_count_of_its_own(configure):
    config = configure("eval.limit=3", "eval.samples=8", "checkpoint.validation_samples=2")
    how = evaluation(config, "validation")
    assert (how.samples, how.limit) == (2, None)
    how = evaluation(config, "glyphs")
    assert (how.samples, how.limit) == (8, 3)
