"""Tokens chosen by entropy, by chance and by the truth; CGPO. And the names that stand for two settings."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from random_batch import random_batch

from pipelines.checks import check_parts
from pipelines.config import settings
from pipelines.config.schema import UpdateConfig
from pipelines.disk.records import Sample, SampleTable, write_rows
from pipelines.embedded import glyphs
from pipelines.errors import UserError
from pipelines.objectives.cgpo import cgpo
from pipelines.objectives.choices import entropy_k, oracle_k, oracle_k_reasoning
from pipelines.objectives.dapo import dapo
from pipelines.score.perturb import blacken_boxes

TRUE, FALSE = True, False
HAND = {
    "groups": 1,
    "size": 2,
    "longest": 3,
    "mask_BT": torch.tensor([[TRUE, TRUE, TRUE], [TRUE, TRUE, FALSE]]),
    "adv_B": torch.tensor([0.5, -0.5]),
}


# --- the tokens -----------------------------------------------------------------------------------


def test_entropy_of_the_batch_by_hand():
    # Of five tokens ceil(0.2 5) = 1: the 0.9. The second response has none.
    entropy_BT = torch.tensor([[0.1, 0.9, 0.3], [0.8, 0.2, 9.0]])  # 9 pads
    batch = random_batch(**HAND, entropy_BT=entropy_BT)
    expected = torch.tensor([[0.0, 0.5, 0.0], [0.0, 0.0, 0.0]])
    assert torch.equal(entropy_k(batch, UpdateConfig()).token_weight_BT, expected)
    # ceil(0.4 5) = 2: the 0.8 as well. A response's own share would be two of three and one of two.
    wider = UpdateConfig(constants={"fraction": 0.4})
    assert entropy_k(batch, wider).weight_BT.tolist() == [[FALSE, TRUE, FALSE], [TRUE, FALSE, FALSE]]
    # Three are the highest: all are kept, whatever the order of responses.
    alike = dataclasses.replace(batch, entropy_BT=torch.tensor([[0.9, 0.9, 0.3], [0.9, 0.2, 9.0]]))
    assert entropy_k(alike, UpdateConfig()).weight_BT.sum() == 3


def test_the_oracle_keeps_what_is_true_and_no_more():
    reads = torch.tensor([[FALSE, TRUE, FALSE], [FALSE, FALSE, FALSE]])
    reasons = torch.tensor([[FALSE, FALSE, TRUE], [FALSE, TRUE, FALSE]])
    batch = random_batch(**HAND, perceives_BT=reads, reasons_BT=reasons)
    assert torch.equal(oracle_k(batch, UpdateConfig()).weight_BT, reads)
    assert torch.equal(oracle_k_reasoning(batch, UpdateConfig()).weight_BT, reads | reasons)


def test_cgpo_by_hand():
    # Mean S 1, 2, 6 and 7: the lower middle one is 2; deviations 1, 0, 4, 5, of which it is 1, so MAD is 1:
    # alpha = 1 + 0.1 tanh(-1, 0, 4, 5). Of twelve tokens ceil(0.3 12) = 4 are the highest by S (9, 8, and of the
    # three 7 the first two), and 4 by H (5, 4, 4, and of the 1 the first, in the first response). The 9 and the 5
    # are one token: it has alpha.
    batch = random_batch(
        groups=1,
        size=4,
        longest=3,
        mask_BT=torch.ones(4, 3, dtype=torch.bool),
        adv_B=torch.tensor([1.0, 1.0, -1.0, -1.0]),
        depends_B=torch.ones(4, dtype=torch.bool),
        dependency_B=torch.tensor([1.0, 2.0, 6.0, 7.0]),
        perception_BT=torch.tensor([[3.0, 0.0, 0.0], [6.0, 0.0, 0.0], [9.0, 2.0, 7.0], [7.0, 7.0, 8.0]]),
        entropy_BT=torch.tensor([[4.0, 1.0, 1.0], [1.0, 4.0, 1.0], [5.0, 1.0, 1.0], [1.0, 1.0, 1.0]]),
    )
    third, fourth = 1 + 0.0999329, 1 + 0.0999909
    expected = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0], [-third, 0.0, -third], [-fourth, 0.0, -fourth]])
    terms = cgpo(batch, UpdateConfig())
    torch.testing.assert_close(terms.token_weight_BT, expected, atol=1e-6, rtol=0)
    assert terms.average == "token"
    # The lower two's alpha shows where S chooses every token.
    every = cgpo(batch, UpdateConfig(constants={"perception_share": 1.0})).token_weight_BT
    torch.testing.assert_close(every[:, 1], torch.tensor([1 - 0.0761594, 1.0, -third, -fourth]), atol=1e-6, rtol=0)
    # All alike: MAD is 0, and so is every deviation. One that is not is 1 / 1e-8 of them away: tanh is 1.
    alike = dataclasses.replace(batch, dependency_B=torch.tensor([2.0, 2.0, 3.0, 2.0]))
    found = cgpo(alike, UpdateConfig(constants={"perception_share": 1.0})).token_weight_BT
    torch.testing.assert_close(found[:, 1], torch.tensor([1.0, 1.0, -1.1, -1.0]), atol=1e-6, rtol=0)


def test_cgpo_without_an_image_is_dapo():
    batch = random_batch(3, depends_B=torch.zeros(20, dtype=torch.bool))
    assert torch.equal(cgpo(batch, UpdateConfig()).token_weight_BT, dapo(batch, UpdateConfig()).token_weight_BT)


# --- the evidence ---------------------------------------------------------------------------------


def test_evidence_is_the_cells_that_the_answer_needs(policy, samples):
    for sample in samples:
        puzzle = glyphs.puzzle_of(sample)
        (image,) = policy.encoder.images(sample)
        before, after = np.array(image), np.array(blacken_boxes(image, glyphs.evidence(sample)))
        for row, digits in enumerate(puzzle.grid):
            for column in range(len(digits)):
                cell = slice(28 * row, 28 * row + 28), slice(28 * column, 28 * column + 28)
                if f"{'abc'[column]}{row + 1}" in puzzle.cells:
                    assert before[cell].any()
                    assert not after[cell].any()
                else:
                    assert (before[cell] == after[cell]).all()


def test_evidence_stays_in_its_place_when_the_image_is_enlarged(policy, samples):
    (image,) = policy.encoder.images(samples[0])
    boxes = glyphs.evidence(samples[0])
    twice = image.resize((2 * image.width, 2 * image.height), 0)
    found = np.array(blacken_boxes(twice, boxes))
    assert (found[::2, ::2] == np.array(blacken_boxes(image, boxes))).all()


def test_nothing_is_drawn_for_it(configure, score_rows, rollouts):
    config = configure("score.perturbation=evidence")
    found, again = (score_rows(c, rollouts) for c in (config, configure("score.perturbation=evidence", "seed=7")))
    assert [row.perception for row in found] == [row.perception for row in again]


# --- what is asked of whom ------------------------------------------------------------------------


def loaded(*asked):
    return settings.load(None, asked)


@pytest.mark.parametrize(("name", "estimator"), [("random-k", "random"), ("entropy-response-k", "entropy")])
@pytest.mark.parametrize("mode", ["exact", "published"])
def test_a_name_for_two_settings_is_those_two(name, estimator, mode, tmp_path):
    one = loaded(f"mode={mode}", f"update.objective={name}")
    other = loaded(f"mode={mode}", "update.objective=vppo-tgf", f"score.estimator={estimator}")
    assert one == other
    assert settings.run_name(one) == settings.run_name(other)
    also = loaded(f"mode={mode}", f"update.objective={name}", f"score.estimator={estimator}")
    assert also == one
    file = tmp_path / "mine.yaml"
    file.write_text(f"base: tiny.yaml\nmode: {mode}\nupdate: {{objective: {name}}}\n")
    assert settings.load(file) == one


def test_another_estimator_than_the_name_says_is_refused(tmp_path):
    with pytest.raises(UserError) as caught:
        loaded("update.objective=random-k", "score.estimator=kl")
    told = str(caught.value)
    assert "score.estimator" in told
    assert "'kl' is not what update.objective: random-k ranks tokens by" in told
    file = tmp_path / "mine.yaml"
    file.write_text("base: tiny.yaml\nscore:\n  estimator: jsd\n")
    with pytest.raises(UserError, match=r"mine.yaml, line 3, score.estimator.*'jsd'"):
        settings.load(file, ["update.objective=entropy-response-k"])


def test_the_batchs_entropy_is_not_the_responses():
    assert settings.run_name(loaded("update.objective=entropy-k")) != settings.run_name(
        loaded("update.objective=entropy-response-k")
    )


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (["update.objective=oracle-k"], ("update.objective: oracle-k", "no known token roles")),
        (["update.objective=oracle-k-reasoning"], ("update.objective: oracle-k-reasoning", "token roles")),
        (["score.estimator=oracle"], ("score.estimator: oracle", "token roles")),
        (["score.perturbation=evidence"], ("score.perturbation: evidence", "no known evidence regions")),
        (["update.objective=cgpo", "score.perturbation=evidence"], ("evidence", "data.source=glyphs")),
    ],
)
def test_the_truth_is_not_asked_of_ones_own_data(asked, expected):
    check_parts(loaded(*asked))
    with pytest.raises(UserError) as caught:
        check_parts(loaded("data.source=some/where", *asked))
    assert all(text in str(caught.value) for text in expected)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (["update.objective=cgpo"], ("score.perturbation: patch_black", "score.perturbation=evidence")),
        (["update.objective=entropy-k", "update.constants={fraction: 0}"], ("update.constants.fraction", "(0, 1]")),
        (["update.objective=entropy-k", "update.constants={share: 0.2}"], ("no such constant", "fraction")),
    ],
)
def test_what_does_not_fit_is_refused(asked, expected):
    with pytest.raises(UserError) as caught:
        check_parts(loaded(*asked))
    assert all(text in str(caught.value) for text in expected)


def test_a_sample_without_cells_is_named(configure, score_rows, rollouts, samples, tmp_path):
    rows = [dataclasses.replace(sample, metadata=json.dumps({})) for sample in samples]
    write_rows(tmp_path / "train.parquet", Sample, rows)
    with pytest.raises(UserError, match="has no known evidence regions"):
        score_rows(configure("score.perturbation=evidence"), rollouts, samples=SampleTable(tmp_path / "train.parquet"))
