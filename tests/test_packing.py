"""Which rows a group goes in: by hand, and never the dearer ones."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipelines import shared_prefix
from pipelines.packing import Costs, operations, pairs, share, tokens

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
    [([5], [[3, 1, 2]]), ([2, 7], [[4, 4], [1, 0, 3]]), ([3, 3], [[2], [5]]), ([4], [[0, 0]]),
     ([6, 2, 4], [[1], [3, 2], [0]])],
)  # fmt: skip
def test_attention_is_that_of_the_mask(prompts, responses):
    torch.manual_seed(0)
    totals = [n + sum(row) for n, row in zip(prompts, responses, strict=True)]
    length = max(totals)
    query, key, value = torch.randn(3, len(prompts), 2, length, 8, requires_grad=True).unbind()
    at = shared_prefix.layout(prompts, responses)
    found = shared_prefix.attend(query, key, value, at, 0.3)
    segment = torch.full((len(prompts), length), -1)
    for b, (n, row) in enumerate(zip(prompts, responses, strict=True)):
        segment[b, : totals[b]] = torch.cat(
            [torch.zeros(n), *(torch.full((count,), g + 1.0) for g, count in enumerate(row))]
        ).long()
    same = segment[:, :, None] == segment[:, None]
    mask = (same | (segment[:, None] == 0)) & torch.ones(length, length).tril().bool()
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask[:, None], scale=0.3
    )
    real = segment >= 0
    torch.testing.assert_close(found.transpose(1, 2)[real], expected.transpose(1, 2)[real])
    weights = torch.randn_like(found.transpose(1, 2)[real])
    gradients = [
        torch.autograd.grad(
            (x.transpose(1, 2)[real] * weights).sum(), (query, key, value), retain_graph=True
        )
        for x in (found, expected)
    ]
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs)
