"""Which rows a group goes in: by hand, and never the dearer ones."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipelines.model import shared_prefix
from pipelines.model.packing import Costs, fill, operations, pairs, share, tokens

COSTS = Costs(token=10, pair=1, image=100)


def test_work_by_hand():
    # A prompt of 4, fed responses of 3 and 1.
    assert tokens(4, [3, 1], shared=True) == 8
    assert tokens(4, [3, 1], shared=False) == 12
    assert pairs(4, [3, 1], shared=True) == 8 + 2 * 3 * 7
    assert pairs(4, [3, 1], shared=False) == 49 / 2 + 25 / 2
    assert operations(COSTS, 4, [3, 1], shared=True) == 80 + 50 + 100
    assert operations(COSTS, 4, [3, 1], shared=False) == 120 + 37 + 200


@given(st.integers(1, 3000), st.lists(st.integers(0, 4000), min_size=1, max_size=32))
def test_auto_never_takes_the_dearer(prompt, fed):
    chosen = operations(COSTS, prompt, fed, share("auto", COSTS, prompt, fed))
    assert chosen == min(operations(COSTS, prompt, fed, shared) for shared in (True, False))
    assert share(True, COSTS, prompt, fed) is True
    assert share(False, COSTS, prompt, fed) is False


def test_short_prompts_with_long_responses_go_in_rows_of_their_own():
    assert share("auto", COSTS, 256, [64] * 8)
    assert not share("auto", Costs(1, 1, 0), 16, [512] * 8)


@pytest.mark.parametrize(
    ("prompts", "responses"),
    [
        ([5], [[3, 1, 2]]),
        ([2, 7], [[4, 4], [1, 0, 3]]),
        ([3, 3], [[2], [5]]),
        ([4], [[0, 0]]),
        ([6, 2, 4], [[1], [3, 2], [0]]),
    ],
)
def test_attention_is_that_of_the_mask(prompts, responses):
    torch.manual_seed(0)
    segment = []  # (row, response), response 0 for the prompt
    for b, (n, row) in enumerate(zip(prompts, responses, strict=True)):
        segment += [(b, 0)] * n + [(b, g) for g, count in enumerate(row, 1) for _ in range(count)]
    length = len(segment)
    # Four query heads, each two of which share a key head.
    query = torch.randn(length, 4, 8, requires_grad=True)
    key, value = torch.randn(2, length, 2, 8, requires_grad=True).unbind()
    found = shared_prefix.layout(prompts, responses).attend(0, query, key, value, 0.3)
    mask = torch.tensor(
        [[j <= i and a[0] == b[0] and b[1] in (0, a[1]) for j, b in enumerate(segment)] for i, a in enumerate(segment)]
    )
    expected = torch.nn.functional.scaled_dot_product_attention(
        query.transpose(0, 1),
        *(x.repeat_interleave(2, 1).transpose(0, 1) for x in (key, value)),
        attn_mask=mask,
        scale=0.3,
    ).transpose(0, 1)
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(found)
    gradients = [
        torch.autograd.grad((x * weights).sum(), (query, key, value), retain_graph=True) for x in (found, expected)
    ]
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_responses_of_similar_lengths_attend_side_by_side():
    # 10 and 8 (above 0.7 x 10) together, then 6 and 5 (above 4.2), then 1; 0 feeds nothing.
    at = shared_prefix.layout([2, 3], [[10, 1, 6], [5, 8, 0]])
    assert [list(part.index_CR.shape) for part in at.responses] == [[2, 10], [2, 6], [1, 1]]
    assert [part.owner_C.tolist() for part in at.responses] == [[0, 1], [0, 1], [0]]
    # Rows stand one after another: 2 + 17 tokens, then 3 + 13. The response of 8 follows that of 5.
    assert at.responses[0].index_CR[1].tolist() == [*range(27, 35), 35, 35]


def test_passes_of_equal_work_by_hand():
    # Above the budget of 10 alone; then 7 + 3, 6 + 4: two passes of 10.
    assert fill([7, 12, 3, 6, 4], most=8, budget=10) == [[1], [0, 2], [3, 4]]
    # Without a budget: in order, two at a time.
    assert fill([7, 12, 3, 6, 4], most=2, budget=None) == [[0, 1], [2, 3], [4]]
    # Four passes at least, for the ranks that have so many.
    assert fill([5, 5, 5, 5], most=4, budget=100, passes=4) == [[0], [1], [2], [3]]
    # A number that two ranks share equally: 9 | 8 + 1 would do, 2 is asked for.
    assert len(fill([9, 8, 1], most=4, budget=100, step=2)) == 2


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=24),
    st.integers(1, 8),
    st.one_of(st.none(), st.integers(1, 120)),
    st.integers(1, 5),
    st.sampled_from([1, 2, 4]),
)
def test_passes_hold_every_group_once_and_what_they_may(tokens, most, budget, passes, step):
    found = fill(tokens, most, budget, passes, step)
    assert sorted(i for part in found for i in part) == list(range(len(tokens)))
    assert all(1 <= len(part) <= most for part in found)
    if budget:
        assert all(len(part) == 1 or sum(tokens[i] for i in part) <= budget for part in found)
    assert len(found) >= min(passes, len(tokens))
    assert len(found) % step == 0 or len(found) == len(tokens)
