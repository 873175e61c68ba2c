"""Sampling behind prompts that are read once: what is fed, what is dropped, and the same tokens."""

import pytest
import torch

from pipelines.model import decoding
from pipelines.model.sampling import Sampling
from pipelines.rollout.hf import HuggingFaceEngine

SAMPLING = Sampling(1.0, 1.0, 0, 48, 3, seed=0)
NAMES = [(1, position) for position in range(4)]


@pytest.fixture
def fed(policy, monkeypatch):
    """Tokens of every forward pass, as they happen."""
    counts, forward = [], policy.model.base_model.forward

    def spy(*args, **kwargs):
        counts.append(kwargs["input_ids"].numel())
        return forward(*args, **kwargs)

    monkeypatch.setattr(policy.model.base_model, "forward", spy)
    return counts


def generate(policy, samples):
    groups = HuggingFaceEngine(policy).generate(samples[:4], NAMES, SAMPLING)
    return [(r.ids, r.logp) for group in groups for r in group]


def test_prompts_are_read_once_and_ended_responses_not_fed(policy, samples, fed):
    lengths = [len(policy.encoder.encode(sample)["input_ids"]) for sample in samples[:4]]
    found = generate(policy, samples)
    assert fed[0] == sum(lengths)  # not once for each of the three samples
    assert fed[1] == 12
    assert fed[1:] == sorted(fed[1:], reverse=True)
    assert len(fed) == max(len(ids) for ids, _ in found)  # the last token is not fed
    # At most a fifth of what is fed belongs to responses that ended.
    goes_on = [sum(len(ids) > t for ids, _ in found) for t in range(1, len(fed))]
    assert all(more >= 0.8 * n or n == more for n, more in zip(fed[1:], goes_on, strict=True))


@pytest.mark.parametrize("keep_above", [-1.0, 1.0])
@pytest.mark.parametrize("room", [1, 64])
def test_when_responses_are_dropped_changes_nothing(policy, samples, monkeypatch, keep_above, room):
    expected = generate(policy, samples)
    monkeypatch.setattr(decoding, "KEEP_ABOVE", keep_above)  # never, or at once
    monkeypatch.setattr(decoding, "ROOM", room)  # so that room runs out, or never does
    found = generate(policy, samples)
    assert [ids for ids, _ in found] == [ids for ids, _ in expected]
    for (_, mine), (_, theirs) in zip(found, expected, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-5)


def test_in_bfloat16_queries_and_keys_are_no_wider_than_values(fresh_policy, configure, samples, monkeypatch):
    # Rotary embeddings are float32 and would make them so: sampling would not round what scoring rounds.
    seen = set()
    for kind in (decoding.Prefill, decoding.KVCache):

        def spy(self, layer, query, key, value, scale, attend=kind.attend):
            seen.add((query.dtype, key.dtype, value.dtype))
            return attend(self, layer, query, key, value, scale)

        monkeypatch.setattr(kind, "attend", spy)
    generate(fresh_policy(configure("model.dtype=bfloat16")), samples)
    assert seen == {(torch.bfloat16,) * 3}


def test_attention_in_two_parts_is_softmax_over_both():
    # Two prompts of 3 and 2 tokens; responses 0 and 1 of the first and 2 of the second go on.
    torch.manual_seed(0)
    prefill = decoding.Prefill([3, 2], torch.device("cpu"))
    key, value, query = torch.randn(5, 2, 4), torch.randn(5, 2, 4), torch.randn(5, 4, 4)
    prefill.attend(0, query, key, value, 0.5)
    cache = decoding.KVCache(prefill, samples=2, most=8)
    steps = [tuple(torch.randn(4, heads, 4) for heads in (4, 2, 2)) for _ in range(3)]
    for step in steps[:2]:
        cache.attend(0, *step, 0.5)
        cache.length += 1
    cache.keep(torch.tensor([0, 1, 2]))
    newest = [x[:3] for x in steps[2]]
    found = cache.attend(0, *newest, 0.5)
    for row, own in enumerate([slice(0, 3), slice(0, 3), slice(3, 5)]):
        keys = torch.cat([key[own], *(k[row : row + 1] for _, k, _ in steps)])
        values = torch.cat([value[own], *(v[row : row + 1] for _, _, v in steps)])
        for head in range(4):  # query heads 0 and 1 share key head 0
            weights = (keys[:, head // 2] @ newest[0][row, head] * 0.5).softmax(0)
            torch.testing.assert_close(found[row, head], weights @ values[:, head // 2])
