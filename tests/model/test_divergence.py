"""pipelines/model/divergence.py against numbers by hand and against the dense computation."""

import math

import naive
import pytest
import torch
from torch.nn.functional import kl_div

from pipelines.model import divergence
from pipelines.model.divergence import ESTIMATORS, TokenStatistics, token_logp, token_statistics, views_logp
from pipelines.objectives.table import ONE_VIEW

N, V, D = 13, 37, 8
CHUNKS = [1, V // 2, V, 3 * V, 5 * V + 1, N * V, 2**24]
"""Tiles of one number, one token by half the vocabulary, then 1, 3, 5, 13 and 13 tokens by all of it."""


def problem(dtype=torch.float32, seed=0):
    rng = torch.Generator().manual_seed(seed)
    hidden, other = (torch.randn(N, D, generator=rng) for _ in range(2))
    weight, bias = torch.randn(V, D, generator=rng), torch.randn(V, generator=rng)
    token = torch.randint(0, V - 2, (N,), generator=rng)
    return (hidden.to(dtype), (hidden + 0.5 * other).to(dtype), weight.to(dtype), bias.to(dtype), token)


def dense(hidden, weight, bias, temperature, suppressed=()):
    """log p over the whole vocabulary in float64, suppressed ids left out."""
    logits = (hidden.double() @ weight.double().T + bias.double()) / temperature
    logits[:, list(suppressed)] = -torch.inf
    return logits.log_softmax(-1)


def said(s):
    """The statistics that there are."""
    return {name: x for name, x in vars(s).items() if x is not None}


def two_tokens(p, q):
    """Hidden states whose softmax under an identity head is p and q, with id 0 sampled."""
    views = (torch.tensor([x], dtype=torch.float64).log() for x in (p, q))
    hidden, other = views
    return token_statistics(hidden, torch.eye(len(p)), torch.tensor([0]), perturbed_ND=other.float())


def test_statistics_by_hand():
    # p = (1/2, 1/2), q = (1/4, 3/4), id 0 sampled.
    # KL = 1/2 log 2 + 1/2 log 2/3 = 1/2 log 4/3 = 0.143841. Entropy log 2.
    # m = (3/8, 5/8): KL(p||m) = 1/2 log 4/3 + 1/2 log 4/5 = 1/2 log 16/15 = 0.032269;
    # KL(q||m) = 1/4 log 2/3 + 3/4 log 6/5 = 0.035375; JSD = 0.033822.
    # The likeliest id (the first of equals): 1/2 - 1/4. log p/q = log 2.
    s = two_tokens([0.5, 0.5], [0.25, 0.75])
    expected = {
        "logp": -math.log(2),
        "entropy": math.log(2),
        "logp_perturbed": -math.log(4),
        "kl": 0.5 * math.log(4 / 3),
        "jsd": 0.033822,
        "argmax_drop": 0.25,
        "log_ratio": math.log(2),
        "entropy_perturbed": 0.25 * math.log(4) + 0.75 * math.log(4 / 3),
    }
    assert {k: v.item() for k, v in said(s).items()} == pytest.approx(expected, abs=1e-6)


def test_top1_drop_is_the_sampled_tokens_and_argmax_drop_the_likeliests():
    # The likeliest is id 1: 0.8 - 0.3. Id 0 was sampled: log(0.2 / 0.7), below 0.
    s = two_tokens([0.2, 0.8], [0.7, 0.3])
    assert s.argmax_drop is not None
    assert s.log_ratio is not None
    assert ESTIMATORS["argmax_drop"](s).item() == pytest.approx(0.5, abs=1e-6)
    assert ESTIMATORS["top1_drop"](s).item() == pytest.approx(0.2 - 0.7, abs=1e-6)
    assert s.log_ratio.item() == pytest.approx(math.log(2 / 7), abs=1e-6)


def test_temperature_by_hand():
    # Logits (0, log 4) at temperature 2 are (0, log 2): p = (1/3, 2/3).
    hidden = torch.tensor([[0.0, math.log(4)]])
    s = token_statistics(hidden, torch.eye(2), torch.tensor([1]), temperature=2.0)
    assert s.logp.item() == pytest.approx(math.log(2 / 3), abs=1e-6)
    assert s.entropy.item() == pytest.approx(math.log(3) - 2 / 3 * math.log(2), abs=1e-6)


def test_suppressed_ids_by_hand():
    # (1/2, 1/4, 1/4) without id 0 is (1/2, 1/2): log p = -log 2 and entropy log 2.
    # The other view (1/8, 1/8, 3/4) without id 0 is (1/7, 6/7): KL = 1/2 log 7/2 + 1/2 log 7/12.
    hidden = torch.tensor([[0.5, 0.25, 0.25]]).log()
    other = torch.tensor([[0.125, 0.125, 0.75]]).log()
    s = token_statistics(hidden, torch.eye(3), torch.tensor([1]), perturbed_ND=other, suppressed_ids=torch.tensor([0]))
    assert s.logp.item() == pytest.approx(-math.log(2), abs=1e-6)
    assert s.entropy.item() == pytest.approx(math.log(2), abs=1e-6)
    assert s.kl is not None
    assert s.kl.item() == pytest.approx(0.5 * math.log(49 / 24), abs=1e-6)


@pytest.mark.parametrize("max_elements", CHUNKS)
@pytest.mark.parametrize("suppressed", [(), (V - 1, V - 2)])
def test_streamed_statistics_are_the_dense_ones(max_elements, suppressed):
    hidden, other, weight, bias, token = problem()
    s = token_statistics(
        hidden,
        weight,
        token,
        perturbed_ND=other,
        bias_V=bias,
        temperature=0.7,
        max_elements=max_elements,
        suppressed_ids=torch.tensor(suppressed, dtype=torch.long) if suppressed else None,
    )
    logp, logq = (dense(h, weight, bias, 0.7, suppressed) for h in (hidden, other))
    allowed = [v for v in range(V) if v not in suppressed]
    at, best = token.unsqueeze(1), logp.argmax(-1, keepdim=True)
    p, q = logp[:, allowed], logq[:, allowed]
    m = ((p.exp() + q.exp()) / 2).log()

    def kl(a, b):
        return kl_div(b, a, log_target=True, reduction="none").sum(-1)

    expected = {
        "logp": logp.gather(1, at)[:, 0],
        "entropy": torch.distributions.Categorical(logits=p).entropy(),
        "logp_perturbed": logq.gather(1, at)[:, 0],
        "kl": kl(p, q),
        "jsd": (kl(p, m) + kl(q, m)) / 2,
        "argmax_drop": (logp.exp() - logq.exp()).gather(1, best)[:, 0],
        "log_ratio": (logp - logq).gather(1, at)[:, 0],
    }
    for name, value in expected.items():
        actual = getattr(s, name)
        assert actual.shape == (N,)
        assert actual.dtype == torch.float32
        torch.testing.assert_close(actual.double(), value, atol=5e-6, rtol=1e-6, msg=name)


def test_equal_views_do_not_diverge():
    hidden, _, weight, _, token = problem()
    s = token_statistics(hidden, weight, token, perturbed_ND=hidden.clone())
    for name, estimator in ESTIMATORS.items():
        if name not in ONE_VIEW:
            torch.testing.assert_close(estimator(s), torch.zeros(N), atol=1e-6, rtol=0)


@pytest.mark.parametrize("max_elements", CHUNKS)
def test_extreme_logits_and_suppression_stay_finite(max_elements):
    # p and q each put everything on one id, not the same: JSD is log 2, its maximum; half of the
    # ids are suppressed, one of them sampled by mistake.
    weight = torch.eye(6)
    hidden, other = 1000 * torch.eye(6)[[0, 0, 0]], 1000 * torch.eye(6)[[1, 1, 1]]
    s = token_statistics(
        hidden,
        weight,
        torch.tensor([0, 1, 5]),
        perturbed_ND=other,
        suppressed_ids=torch.tensor([3, 4, 5]),
        max_elements=max_elements,
    )
    assert all(torch.isfinite(x).all() for x in said(s).values())
    torch.testing.assert_close(s.jsd, torch.full((3,), math.log(2)))
    torch.testing.assert_close(s.kl, torch.full((3,), 1000.0))
    torch.testing.assert_close(s.entropy, torch.zeros(3))
    torch.testing.assert_close(s.log_ratio, torch.tensor([1000.0, -1000.0, 0.0]))


def test_no_tokens():
    hidden, other, weight, _, token = problem()
    s = token_statistics(hidden[:0], weight, token[:0], perturbed_ND=other[:0])
    assert all(x.shape == (0,) for x in said(s).values())
    assert token_logp(hidden[:0], weight, token[:0])[0].shape == (0,)


def test_one_view_leaves_the_others_out():
    hidden, _, weight, _, token = problem()
    s = token_statistics(hidden, weight, token)
    assert s.kl is None
    assert torch.equal(ESTIMATORS["entropy"](s), s.entropy)
    with pytest.raises(AssertionError, match="was not read"):
        ESTIMATORS["kl"](s)


def test_half_precision_inputs_give_float32_logits():
    # The sum of exact products of bfloat16 numbers, as the dense float64 computation has it;
    # logits rounded to bfloat16 would be off by 1e-2.
    hidden, other, weight, bias, token = problem(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        s = token_statistics(hidden, weight, token, perturbed_ND=other, bias_V=bias)
    logp = dense(hidden, weight, bias, 1.0)
    torch.testing.assert_close(s.logp.double(), logp.gather(1, token.unsqueeze(1))[:, 0], atol=5e-6, rtol=1e-6)
    assert all(x.dtype == torch.float32 for x in said(s).values())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("kl", 0.3),
        ("jsd", 0.1),
        ("log_ratio", -1.0),
        ("argmax_drop", 0.2),
        ("top1_drop", math.exp(-2) - math.exp(-1)),
        ("entropy", 1.5),
        ("k3", math.e - 2),  # d = log q - log p = 1: e - 1 - 1
    ],
)
def test_estimators_by_hand(name, expected):
    values = {"logp": -2.0, "entropy": 1.5, "logp_perturbed": -1.0, "kl": 0.3, "jsd": 0.1}
    values |= {"argmax_drop": 0.2, "log_ratio": -1.0}
    s = TokenStatistics(**{key: torch.tensor([value]) for key, value in values.items()})
    assert ESTIMATORS[name](s).item() == pytest.approx(expected)


def test_expected_k3_is_the_exact_kl():
    # E_p[k3] = sum_v p_v (q_v / p_v - log q_v / p_v - 1) = KL(p || q), while nothing is clamped:
    # with every id in turn as the sampled one, weighted by p.
    hidden, other, weight, _, _ = problem()
    one, ids = torch.ones(V, 1), torch.arange(V)
    s = token_statistics(one @ hidden[:1], weight, ids, perturbed_ND=one @ other[:1])
    assert s.kl is not None
    expected = (s.logp.exp() * ESTIMATORS["k3"](s)).sum()
    torch.testing.assert_close(expected, s.kl[0], atol=1e-5, rtol=1e-5)


# --- gradients -----------------------------------------------------------------------------------


def gradients(function, hidden, weight, bias):
    leaves = [x.clone().requires_grad_() for x in (hidden, weight, bias)]
    logp, entropy = function(*leaves)
    mix = torch.arange(1, N + 1) / N
    return torch.autograd.grad((mix * logp + mix.flip(0) * entropy).sum(), leaves)


@pytest.mark.parametrize("max_elements", CHUNKS)
@pytest.mark.parametrize("suppressed", [(), (V - 1, V - 2)])
def test_gradients_are_the_dense_ones(max_elements, suppressed):
    hidden, _, weight, bias, token = problem()
    allowed = [v for v in range(V) if v not in suppressed]

    def streamed(h, w, b):
        ids = torch.tensor(suppressed, dtype=torch.long) if suppressed else None
        return token_logp(h, w, token, bias_V=b, temperature=0.7, max_elements=max_elements, suppressed_ids=ids)

    def whole(h, w, b):
        logp = ((h @ w[allowed].T + b[allowed]) / 0.7).log_softmax(-1)
        return logp.gather(1, token.unsqueeze(1))[:, 0], -(logp.exp() * logp).sum(-1)

    expected = gradients(whole, hidden.double(), weight.double(), bias.double())
    for actual, dense_gradient in zip(gradients(streamed, hidden, weight, bias), expected, strict=True):
        torch.testing.assert_close(actual.double(), dense_gradient, atol=1e-5, rtol=1e-5)


def test_gradient_by_hand():
    # p = (1/4, 3/4), id 0: d log p_0 / d logits = (1 - 1/4, -3/4).
    hidden = torch.tensor([[0.25, 0.75]]).log().requires_grad_()
    logp, _ = token_logp(hidden, torch.eye(2), torch.tensor([0]))
    torch.testing.assert_close(torch.autograd.grad(logp.sum(), hidden)[0], torch.tensor([[0.75, -0.75]]))


def test_a_frozen_head_gets_no_gradient():
    hidden, _, weight, _, token = problem()
    hidden.requires_grad_()
    token_logp(hidden, weight, token)[0].sum().backward()
    assert hidden.grad is not None
    assert weight.grad is None


def test_training_and_scoring_agree_to_the_bit():
    # So that on-policy the ratio exp(logp - old_logp) is exactly 1.
    hidden, _, weight, _, token = problem(torch.bfloat16)
    s = token_statistics(hidden, weight, token, temperature=0.7, max_elements=4 * V)
    logp, entropy = token_logp(hidden.requires_grad_(), weight, token, temperature=0.7, max_elements=4 * V)
    assert torch.equal(s.logp, logp)
    assert torch.equal(s.entropy, entropy)


def test_bfloat16_gradients_of_the_head_add_up_in_float32():
    # Every token adds 1/512 of the same vector to the head. With one token a chunk, a bfloat16 sum
    # (8 bits) would stop growing at 1/2: 1/2 + 1/512 rounds back to 1/2. The true sum is 2.
    count = 1024
    hidden = torch.ones(count, 1, dtype=torch.bfloat16)
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    logp, _ = token_logp(hidden, weight, torch.zeros(count, dtype=torch.long), max_elements=1)
    (logp.sum() * 2 / 512).backward()  # d logp / d logit_0 = 1 - 1/2
    assert weight.grad is not None
    assert weight.grad.tolist() == [[2.0], [-2.0]]


def test_all_logits_never_exist_at_once(monkeypatch):
    sizes = []
    original = divergence._matmul

    def spy(a, b):
        sizes.append(a.shape[0] * b.shape[1])
        return original(a, b)

    monkeypatch.setattr(divergence, "_matmul", spy)
    hidden, other, weight, _, token = problem()
    whole = token_statistics(hidden, weight, token, perturbed_ND=other, jsd=False)
    sizes.clear()
    token_statistics(hidden, weight, token, perturbed_ND=other, max_elements=3 * V, jsd=False)
    assert max(sizes) == 3 * V
    assert len(sizes) == 2 * 5  # two views, ceil(13 / 3) ranges of tokens
    sizes.clear()
    monkeypatch.setattr(divergence, "CPU_WIDTH", 10)
    tiled = token_statistics(hidden, weight, token, perturbed_ND=other, max_elements=50, jsd=False)
    assert max(sizes) == 5 * 10
    assert len(sizes) == 2 * 3 * 4  # ceil(13 / 5) ranges of tokens, ceil(37 / 10) of the vocabulary
    for name in ("logp", "entropy", "logp_perturbed", "kl", "argmax_drop", "log_ratio"):
        torch.testing.assert_close(getattr(tiled, name), getattr(whole, name), atol=2e-6, rtol=1e-6)


# --- gradients of both views ------------------------------------------------------------------------

SAID = ("logp", "entropy", "logp_perturbed", "entropy_perturbed", "kl")


def whole_views(hidden, other, weight, bias, token, temperature=1.0, suppressed=()):
    """What views_logp gives, from all logits."""
    allowed = torch.tensor([v for v in range(V) if v not in suppressed])
    p, q = (((h @ weight[allowed].T + bias[allowed]) / temperature).log_softmax(-1) for h in (hidden, other))
    place = torch.searchsorted(allowed, token)[:, None]
    entropies = [-(x.exp() * x).sum(-1) for x in (p, q)]
    logp, logq = (x.gather(1, place)[:, 0] for x in (p, q))
    return logp, entropies[0], logq, entropies[1], (p.exp() * (p - q)).sum(-1)


def test_both_views_have_the_bits_of_scoring():
    hidden, other, weight, bias, token = problem(torch.bfloat16)
    ids = torch.tensor([V - 1])
    for most in CHUNKS:
        given = {"bias_V": bias, "temperature": 0.7, "max_elements": most, "suppressed_ids": ids}
        s = token_statistics(hidden, weight, token, perturbed_ND=other, **given)
        found = views_logp(hidden, other, weight, token, **given)
        for name, x in zip(SAID, found, strict=True):
            assert torch.equal(getattr(s, name), x), name
        assert torch.equal(found[0], token_logp(hidden, weight, token, **given)[0])


@pytest.mark.parametrize("max_elements", [CHUNKS[1], CHUNKS[3], CHUNKS[-1]])
@pytest.mark.parametrize("suppressed", [(), (V - 1, V - 2)])
@pytest.mark.parametrize("of", [*range(5), None], ids=[*SAID, "all"])
def test_gradients_of_both_views_are_the_dense_ones(max_elements, suppressed, of):
    *inputs, token = problem()
    ids = torch.tensor(suppressed, dtype=torch.long) if suppressed else None
    mix = torch.linspace(-1, 2, 5 * N).reshape(5, N)
    if of is not None:
        mix = mix * (torch.arange(5) == of)[:, None]

    def taken(function, *tensors):
        leaves = [x.clone().requires_grad_() for x in tensors]
        total = sum((w * x).sum() for w, x in zip(mix, function(*leaves), strict=True))
        return torch.autograd.grad(total, leaves)

    def streamed(h, o, w, b):
        return views_logp(h, o, w, token, bias_V=b, temperature=0.7, max_elements=max_elements, suppressed_ids=ids)

    expected = taken(lambda *x: whole_views(*x, token, 0.7, suppressed), *(x.double() for x in inputs))
    for actual, exact in zip(taken(streamed, *inputs), expected, strict=True):
        torch.testing.assert_close(actual.double(), exact, atol=1e-5, rtol=1e-5)


def test_gradients_of_both_views_are_those_of_differences():
    # In float64 throughout: the derivative, and not one that float32 cannot tell from it.
    with naive.wide():
        hidden, other, weight, bias, token = problem(torch.float64)
        leaves = [x[:3].clone() if len(x) == N else x.clone() for x in (hidden, other, weight, bias)]
        ids = torch.tensor([V - 1])

        def function(h, o, w, b):
            return views_logp(h, o, w, token[:3], bias_V=b, temperature=0.7, max_elements=2 * V, suppressed_ids=ids)

        assert torch.autograd.gradcheck(function, [x.requires_grad_() for x in leaves], fast_mode=True)


def test_gradient_of_the_divergence_by_hand():
    # p = (1/2, 1/2), q = (1/4, 3/4): KL = log(4/3) / 2; d / d a_0 = 1/2 (log 2 - KL), d / d b = q - p.
    p, q = (torch.tensor([x]).log().requires_grad_() for x in ([0.5, 0.5], [0.25, 0.75]))
    kl = views_logp(p, q, torch.eye(2), torch.tensor([0]))[4]
    of_p, of_q = torch.autograd.grad(kl.sum(), (p, q))
    first = 0.5 * (math.log(2) - 0.5 * math.log(4 / 3))
    torch.testing.assert_close(of_p, torch.tensor([[first, -first]]))
    torch.testing.assert_close(of_q, torch.tensor([[-0.25, 0.25]]))


def test_equal_views_have_no_divergence_and_no_gradient_of_it():
    hidden, _, weight, _, token = problem()
    leaves = [x.clone().requires_grad_() for x in (hidden, hidden, weight)]
    kl = views_logp(*leaves, token)[4]
    assert kl.max() < 1e-6
    for gradient in torch.autograd.grad(kl.sum(), leaves):
        assert gradient.abs().max() < 1e-6


def test_no_tokens_of_two_views():
    hidden, other, weight, _, token = problem()
    weight.requires_grad_()
    found = views_logp(hidden[:0], other[:0], weight, token[:0])
    assert all(x.shape == (0,) for x in found)
    sum(x.sum() for x in found).backward()
    assert not weight.grad.any()


def test_all_logits_of_two_views_never_exist_at_once(monkeypatch):
    sizes = []
    original = divergence._matmul

    def spy(a, b):
        if b.shape[0] == D and a.shape[1] == D:  # logits, not gradients of states or of the head
            sizes.append(a.shape[0] * b.shape[1])
        return original(a, b)

    monkeypatch.setattr(divergence, "_matmul", spy)
    hidden, other, weight, _, token = problem()
    found = views_logp(hidden.requires_grad_(), other, weight, token, max_elements=3 * V)
    assert len(sizes) == 2 * 5
    found[4].sum().backward()
    assert max(sizes) == 3 * V
    assert len(sizes) == 4 * 5
