"""Numbers of weights: by hand on two responses, and on random batches by plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from random_batch import random_batch

from pipelines.config.schema import UpdateConfig
from pipelines.ledger import credit
from pipelines.ledger.theorem import draw, paper_ratio, square_ratio
from pipelines.objectives.batch import Terms
from pipelines.objectives.dapo import grpo
from pipelines.objectives.vppo import vppo_both

MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]).bool()
ONE = torch.tensor([[2.0, 0.0, -1.0, 0.0], [0.0, -1.0, 0.0, 0.0]], dtype=torch.float64)
OTHER = torch.tensor([[1.0, 3.0, -2.0, 0.0], [1.0, 1.0, 1.0, 0.0]], dtype=torch.float64)
COUNT = torch.tensor([2, 1])


def test_effective_mass_by_hand() -> None:
    # (2 + 1 + 1)^2 / (4 + 1 + 1) = 16 / 6 of 7 tokens.
    assert credit.mass(ONE, MASK) == pytest.approx(16 / 6 / 7)
    assert credit.mass(torch.where(MASK, -3.0, 0.0), MASK) == pytest.approx(1.0)
    assert credit.mass(torch.zeros(2, 4), MASK) is None


def test_top_tokens_by_hand() -> None:
    # Of equal ones the earlier; none of weight 0, so the second row's one of three would be its own.
    assert credit.top_BT(ONE, MASK, torch.tensor([3, 3])).tolist() == [[1, 0, 1, 0], [0, 1, 0, 0]]
    assert credit.top_BT(OTHER, MASK, COUNT).tolist() == [[0, 1, 1, 0], [1, 0, 0, 0]]


def test_overlap_by_hand() -> None:
    # The second response's weights are all equal under OTHER: it says nothing. In the first {0, 2} and {1, 2}.
    assert credit.overlap(ONE, OTHER, MASK, COUNT) == pytest.approx(1 / 2)
    # ONE has one token above 0 in the second response, and it is the smaller set.
    assert credit.overlap(ONE, ONE, MASK, torch.tensor([2, 2])) == 1.0
    assert credit.overlap(ONE, torch.where(MASK, 1.0, 0.0).double(), MASK, COUNT) is None


def test_rank_correlation_by_hand() -> None:
    # Ranks 1, 2.5, 2.5, 4 and 1, 2, 3, 4: covariances 2.25 + 0 + 0 + 2.25 = 4.5 over sqrt(4.5 x 5).
    x, y = np.array([0.0, 1.0, 1.0, 5.0]), np.array([1.0, 2.0, 3.0, 4.0])
    assert credit.ranks_N(x).tolist() == [1, 2.5, 2.5, 4]
    assert credit.spearman(x, y) == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    assert credit.spearman(x, -y) == pytest.approx(-4.5 / math.sqrt(4.5 * 5))
    assert credit.spearman(x, np.ones(4)) is None


def test_shares_by_hand() -> None:
    seen = torch.tensor([[1, 0, 0, 0], [0, 1, 0, 0]]).bool()
    found = credit.shares(ONE, {"perception": seen, "template": MASK & ~seen})
    assert found == {"perception": pytest.approx(3 / 4), "template": pytest.approx(1 / 4)}
    assert credit.shares(torch.zeros(2, 4), {"perception": seen}) is None


def test_disagreement_by_hand() -> None:
    # The first response: ONE ranks 1, 3.5, 2, 3.5 and OTHER 3, 1, 2, 4: token 1 is 2.5 of 3 apart. The second
    # has ranks under ONE alone.
    [found] = credit.disagreements({"one": ONE, "other": OTHER}, MASK, 5)
    assert (found.row, found.token, found.length) == (0, 1, 4)
    assert found.ranks == {"one": 3.5, "other": 1.0}
    assert (found.most, found.least) == ("other", "one")
    assert credit.disagreements({"one": ONE, "same": 2 * ONE}, MASK, 5) == []


def test_an_average_by_sequence_is_in_the_weights() -> None:
    terms = Terms(torch.tensor([1.0, -1.0]), MASK, 0.2, 0.2, "sequence")
    # 7 tokens over 2 responses of 4 and 3: 7/8 and 7/6 a token; then 7 over 2 x 10.
    assert credit.credit_BT(terms, MASK, 10)[:, 0].tolist() == pytest.approx([7 / 8, -7 / 6])
    longest = Terms(terms.advantage, MASK, 0.2, 0.2, "max_length")
    assert credit.credit_BT(longest, MASK, 10)[:, 0].tolist() == pytest.approx([7 / 20, -7 / 20])
    cut = credit.credit_BT(terms, MASK & torch.tensor([[True], [False]]), 10)
    assert cut[0].tolist() == pytest.approx([1.0] * 4)
    assert not cut[1].any()


@pytest.mark.parametrize("seed", range(3))
def test_random_batches_by_loops(seed: int) -> None:
    batch, settings = random_batch(seed), UpdateConfig()
    mask = batch.mask_BT
    one = credit.credit_BT(vppo_both(batch, settings), mask, 9)
    other = torch.where(mask, batch.entropy_BT.double() * batch.adv_B.double()[:, None], 0.0)
    values = [[abs(x) for x in row[: int(n)]] for row, n in zip(one.tolist(), mask.sum(-1), strict=True)]
    flat = [x for row in values for x in row]
    assert credit.mass(one, mask) == pytest.approx(sum(flat) ** 2 / sum(x * x for x in flat) / len(flat))
    count = batch.keep_BT.sum(-1)
    both = smaller = 0
    for row, k in enumerate(count.tolist()):
        pair = [[abs(x) for x in w[row, : int(mask[row].sum())].tolist()] for w in (one, other)]
        if any(max(w) - min(w) <= 1e-5 * max(w) for w in pair):
            continue
        tops = [{i for i in sorted(range(len(w)), key=lambda i: (-w[i], i))[:k] if w[i] > 0} for w in pair]
        both, smaller = both + len(tops[0] & tops[1]), smaller + min(map(len, tops))
    assert credit.overlap(one, other, mask, count) == pytest.approx(both / smaller)
    # grpo's weights are constant within a response: no ranks, whatever the batch.
    flat_w = credit.credit_BT(grpo(batch, settings), mask, 9)
    assert credit.overlap(flat_w, one, mask, count) is None


def test_what_the_theorem_predicts_by_hand() -> None:
    keep = torch.tensor([[1, 1, 0, 0], [0, 1, 0, 0]]).bool()
    # k = 3/7; mean of alpha^2 = (0.81 + 1.21) / 2.
    assert paper_ratio(torch.tensor([0.9, 1.1]), keep, MASK) == pytest.approx(3 / 7 * 1.01)
    assert square_ratio(ONE, OTHER) == pytest.approx(6 / 17)
    assert square_ratio(ONE, torch.zeros(2, 4)) is None


def test_tokens_are_drawn_by_the_seed_and_never_alone() -> None:
    drawn = draw(3, 15, [1, 5, 40, 2] * 30)
    assert drawn == draw(3, 15, [1, 5, 40, 2] * 30)
    assert drawn != draw(3, 16, [1, 5, 40, 2] * 30)
    assert 255 <= sum(len(tokens) for _, tokens in drawn) <= 256  # one alone is no pair
    assert all(2 <= len(set(tokens)) <= 8 for _, tokens in drawn)
    assert draw(0, 1, [1, 1]) == []
