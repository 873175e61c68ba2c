"""The embedded data set: deterministic, solvable, and true about what each token is for."""

import io
import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from pipelines.embedded import glyphs
from pipelines.embedded.glyphs import PERCEPTION, REASONING, TEMPLATE, GlyphsOptions, Puzzle, Slips
from pipelines.seeds import generator


@pytest.fixture(scope="module")
def samples():
    return glyphs.make_samples("train", 300, 7, GlyphsOptions(guessable=0.3, distractors=0.5))


def details(sample):
    return json.loads(sample.metadata)


def test_sample_does_not_depend_on_count(samples):
    options = GlyphsOptions(guessable=0.3, distractors=0.5)
    assert glyphs.make_samples("train", 5, 7, options) == samples[:5]
    assert glyphs.make_samples("train", 5, 8, options) != samples[:5]
    assert samples[12].id == "train-000012"


def test_splits_share_no_scan():
    used = {}
    for split in glyphs.SPLITS:
        many = glyphs.make_samples(split, 300, 0, GlyphsOptions())
        used[split] = {scan for s in many for row in details(s)["scans"] for scan in row}
    assert not used["train"] & used["validation"]
    assert not used["train"] & used["test"]
    assert not used["validation"] & used["test"]


def test_every_task_and_level_is_drawn(samples):
    assert {details(s)["task"] for s in samples} == set(glyphs.TASKS)
    levels = Counter(details(s)["level"] for s in samples)
    assert set(levels) == {1, 2, 3}
    easy = glyphs.make_samples("train", 20, 0, GlyphsOptions(levels=(1,)))
    assert {details(s)["level"] for s in easy} == {1}


def test_images_have_one_image_token_per_cell(samples):
    for sample in samples[:30]:
        grid = details(sample)["grid"]
        image = Image.open(io.BytesIO(sample.images[0]))
        assert image.size == (len(grid[0]) * 28, len(grid) * 28)
        assert image.mode == "RGB"
        assert np.ptp(np.asarray(image)) > 80  # ink against paper


def test_problem_starts_with_the_image_and_solution_ends_with_the_answer(samples):
    for sample in samples:
        assert sample.problem.startswith("<image>")
        assert sample.problem.count("<image>") == 1
        assert glyphs.solution(sample).startswith("<think>")
        assert glyphs.solution(sample).endswith(f"</think> \\boxed{{{sample.answer}}}")


# a1 b1    7 3      The answers by hand, for each task.
# a2 b2 =  5 9
@pytest.mark.parametrize(
    ("task", "cells", "answer"),
    [
        ("add", ("a1", "b2"), 7 + 9),
        ("larger", ("b1", "a2"), 5),
        ("apart", ("b1", "b2"), 6),
        ("sum_line", ("a1", "a2"), 12),
        ("largest_in_line", ("a2", "b2"), 9),
        ("count", ("a1", "b1", "a2", "b2"), 1),  # of 5
        ("larger_row", ("a1", "b1", "a2", "b2"), 14),  # 10 against 14
        ("spread", ("a1", "b1"), 4),
        ("add_larger", ("a1", "b1", "b2"), 16),
    ],
)
def test_answers_by_hand(task, cells, answer):
    puzzle = Puzzle(task, ((7, 3), (5, 9)), cells, digit=5)
    pieces, found = glyphs.write(puzzle, Slips(), generator(0, "test"))
    assert found == answer
    assert "".join(text for text, _ in pieces).endswith(f"\\boxed{{{answer}}}")


def test_solution_by_hand():
    puzzle = Puzzle("apart", ((7, 3), (5, 9)), ("b1", "b2"), given=("b2",))
    pieces, _ = glyphs.write(puzzle, Slips(), generator(0, "test"))
    assert "".join(text for text, _ in pieces) == (
        "<think> b1 shows 3, b2 given 9. 3 is smaller than 9, 9 - 3 = 6 </think> \\boxed{6}"
    )


def test_token_roles_agree_with_the_generator(samples):
    for sample in samples:
        pieces = [text for text, _ in details(sample)["roles"]]
        roles = [role for _, role in details(sample)["roles"]]
        assert glyphs.token_roles(pieces) == roles


def test_token_roles_agree_with_the_generator_on_careless_transcripts(samples):
    for index, sample in enumerate(samples[:100]):
        puzzle = glyphs.puzzle_of(sample)
        pieces, _ = glyphs.write(puzzle, Slips(0.5, 0.5), generator(0, "test", index))
        assert glyphs.token_roles([text for text, _ in pieces]) == [role for _, role in pieces]


def test_token_roles_of_arbitrary_text():
    broken = ["<think>", " a1", " shows", " 7", " 8", " shows", "}", "", "<|im_end|>"]
    expected = [TEMPLATE] * 9
    expected[3] = PERCEPTION
    assert glyphs.token_roles(broken) == expected
    assert glyphs.token_roles([]) == []
    # A tokenizer that cuts elsewhere: the token that holds the digit has the digit's role.
    assert glyphs.token_roles(["b2 sho", "ws 4, ", "4 + 1", "2 = 16"]) == [TEMPLATE, PERCEPTION, REASONING, REASONING]


def test_guessable_tells_values_and_leaves_something_to_read():
    told = glyphs.make_samples("validation", 100, 0, GlyphsOptions(guessable=1.0))
    for sample in told:
        puzzle = glyphs.puzzle_of(sample)
        assert 0 < len(puzzle.given) < len(puzzle.cells)
        for cell in puzzle.given:
            assert f"{cell} is {puzzle.value(cell)}. " in sample.problem
    none = glyphs.make_samples("validation", 100, 0, GlyphsOptions())
    assert not any(glyphs.puzzle_of(sample).given for sample in none)


def test_distractors_read_a_cell_without_need(samples):
    with_extra = [s for s in samples if details(s)["extra"]]
    assert with_extra
    for sample in with_extra:
        assert details(sample)["extra"] not in details(sample)["cells"]
        assert f"{details(sample)['extra']} shows" in glyphs.solution(sample)


def test_transcript_slips_at_the_given_rate(samples):
    wrong = right = 0
    for index, sample in enumerate(samples):
        puzzle = glyphs.puzzle_of(sample)
        pieces, _ = glyphs.write(puzzle, Slips(read=0.25), generator(1, "test", index))
        texts = [text for text, _ in pieces]
        for place, (text, role) in enumerate(pieces):
            if role == PERCEPTION:
                same = int(text) == puzzle.value(texts[place - 2].strip())
                right, wrong = right + same, wrong + (not same)
    # About 900 reads at 1/4: the standard deviation is 0.014.
    assert wrong / (wrong + right) == pytest.approx(0.25, abs=0.06)


def test_solutions_are_short():
    many = glyphs.make_samples("test", 500, 0, GlyphsOptions(guessable=0.2))
    assert max(len(details(s)["roles"]) for s in many) + 1 <= 64
