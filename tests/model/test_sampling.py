"""Sampling: the draw by hand, the truncations by hand, and frequencies against probabilities."""

import numpy as np
import pytest
import torch

from pipelines.model.divergence import Head
from pipelines.model.sampling import Sampling, draw, next_token, truncate, uniforms
from pipelines.seeds import generator

INF = float("inf")
CPU = torch.device("cpu")


def logs(*probabilities):
    return torch.tensor([probabilities]).log()


def allowed(logp_BV):
    """The ids left by a truncation of one row."""
    return logp_BV[0].isfinite().nonzero()[:, 0].tolist()


# --- draw -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uniform", "token"), [(0.0, 0), (0.2499, 0), (0.2501, 1), (0.7499, 1), (0.7501, 2), (0.999999, 2)]
)
def test_draw_inverts_the_cumulative_distribution(uniform, token):
    # Shares: id 0 has [0, 1/4), id 1 has [1/4, 3/4), id 2 has [3/4, 1).
    assert draw(logs(0.25, 0.5, 0.25), torch.tensor([uniform], dtype=torch.float64)).item() == token


def test_draw_needs_no_normalisation():
    # What top-k leaves: masses 1/4 and 1/8. Id 0 has two thirds of them.
    logp = torch.tensor([[0.25, 0.125, 0.0]]).log()
    assert draw(logp, torch.tensor([0.66], dtype=torch.float64)).item() == 0
    assert draw(logp, torch.tensor([0.67], dtype=torch.float64)).item() == 1


@pytest.mark.parametrize("uniform", [0.0, 1e-300, 0.5, 1 - 2**-53, 1.0])
def test_draw_never_takes_an_impossible_token(uniform):
    # Impossible ids before, between and after the possible ones, and at both ends of the numbers.
    logp = torch.tensor([[0.0, 0.3, 0.0, 0.0, 0.7, 0.0, 0.0]]).log()
    assert draw(logp, torch.tensor([uniform], dtype=torch.float64)).item() in (1, 4)


def test_draw_never_takes_an_impossible_token_of_a_large_vocabulary():
    # 50,000 equal shares do not add up to exactly 1; the last 1,000 ids are impossible.
    logp = torch.full((1, 51_000), 1 / 50_000).log()
    logp[:, 50_000:] = -INF
    last = draw(logp, torch.tensor([1 - 2**-53], dtype=torch.float64)).item()
    assert last == 49_999


def test_each_row_has_its_own_number():
    logp = logs(0.5, 0.5).expand(3, 2)
    uniform = torch.tensor([0.1, 0.9, 0.4], dtype=torch.float64)
    assert draw(logp, uniform).tolist() == [0, 1, 0]


# --- top-k and top-p ------------------------------------------------------------------------------


def test_top_k_by_hand():
    logp = logs(0.1, 0.4, 0.2, 0.3)
    assert allowed(truncate(logp, 1, 1.0)) == [1]
    assert allowed(truncate(logp, 2, 1.0)) == [1, 3]
    assert allowed(truncate(logp, 4, 1.0)) == [0, 1, 2, 3]
    assert allowed(truncate(logp, 9, 1.0)) == [0, 1, 2, 3]
    assert torch.equal(truncate(logp, 0, 1.0), logp)  # both off


def test_top_p_by_hand():
    # In order: 1/2 (id 2), 1/4 (id 0), 1/8 (id 3), 1/8 (id 1). The mass reaches 1/2 with one id,
    # 3/4 with two, 7/8 with three. Of equals the first stands before the second.
    logp = logs(0.25, 0.125, 0.5, 0.125)
    assert allowed(truncate(logp, 0, 0.01)) == [2]  # the likeliest always stays
    assert allowed(truncate(logp, 0, 0.49)) == [2]
    assert allowed(truncate(logp, 0, 0.51)) == [0, 2]
    assert allowed(truncate(logp, 0, 0.74)) == [0, 2]
    assert allowed(truncate(logp, 0, 0.8)) == [0, 1, 2]
    assert allowed(truncate(logp, 0, 0.9)) == [0, 1, 2, 3]


def test_the_nucleus_is_that_of_what_top_k_left():
    # Top 2 leaves 1/2 and 1/4, which are 2/3 and 1/3 of what is left: 0.6 of it is the first alone,
    # though 1/2 < 0.6.
    logp = logs(0.25, 0.125, 0.5, 0.125)
    assert allowed(truncate(logp, 2, 0.6)) == [2]
    assert allowed(truncate(logp, 2, 0.7)) == [0, 2]


def test_rows_are_cut_one_by_one_and_what_stays_is_unchanged():
    logp = torch.cat([logs(0.5, 0.3, 0.2), logs(0.1, 0.1, 0.8)])
    cut = truncate(logp, 0, 0.75)
    assert cut.isfinite().tolist() == [[True, True, False], [False, False, True]]
    assert torch.equal(cut[cut.isfinite()], logp[cut.isfinite()])


# --- the sampler ----------------------------------------------------------------------------------


def sampler_draws(logits_V, count, *, temperature=1.0, top_p=1.0, top_k=0, suppressed=()):
    """``count`` tokens from the same logits, and their recorded log-probs."""
    sampling = Sampling(temperature, top_p, top_k, 1, count, seed=0)
    forbidden = torch.tensor(suppressed, dtype=torch.long)
    # A head of these logits: each response's hidden state is 1.
    head = Head(logits_V[:, None], None, temperature, forbidden)
    logp_BV = head.logits_NV(torch.ones(count, 1)).log_softmax(-1)
    return next_token(logp_BV, uniforms(sampling, ("test",), CPU)[:, 0], sampling)


LOGITS = torch.tensor([0.0, 2.0, -1.0, 1.0, 3.0, 0.5])


@pytest.mark.parametrize(
    ("settings", "possible"),
    [
        ({}, range(6)),
        ({"temperature": 2.0}, range(6)),
        ({"top_k": 3}, [1, 3, 4]),
        # exp: 1, 7.39, 0.37, 2.72, 20.09, 1.65 of 33.21: the largest two are 0.827, three 0.909.
        ({"top_p": 0.9}, [1, 3, 4]),
        ({"suppressed": (4,)}, [0, 1, 2, 3, 5]),
    ],
    ids=["plain", "temperature", "top_k", "top_p", "suppressed"],
)
def test_frequencies_follow_the_probabilities(settings, possible):
    from scipy.stats import chisquare  # slow to import

    count, possible = 20_000, list(possible)
    tokens, _ = sampler_draws(LOGITS, count, **settings)
    expected_V = np.zeros(6)
    masses = np.exp(LOGITS.double().numpy()[possible] / settings.get("temperature", 1.0))
    expected_V[possible] = count * masses / masses.sum()
    found_V = np.bincount(tokens.numpy(), minlength=6)
    assert found_V[expected_V == 0].sum() == 0
    # A right sampler falls below this once in a thousand seeds; the seed is fixed.
    assert chisquare(found_V[possible], expected_V[possible]).pvalue > 1e-3


def test_recorded_log_probs_are_those_before_truncation():
    # log p at temperature 2 without id 4, though top-k would leave but one id.
    tokens, logp = sampler_draws(LOGITS, 5, temperature=2.0, top_k=1, suppressed=(4,))
    kept = LOGITS[[0, 1, 2, 3, 5]] / 2
    expected = LOGITS[1] / 2 - kept.logsumexp(0)
    assert tokens.tolist() == [1] * 5
    torch.testing.assert_close(logp, expected.expand(5))


def test_a_position_uses_its_own_numbers():
    # Two ids of equal probability: the token says on which side of 1/2 the number lies.
    sampling = Sampling(1.0, 1.0, 0, max_new_tokens=50, samples=2, seed=0)
    numbers = uniforms(sampling, ("test",), CPU)
    tokens = [next_token(torch.zeros(2, 2), numbers[:, t], sampling)[0] for t in range(50)]
    assert torch.equal(torch.stack(tokens, dim=1), (numbers >= 0.5).long())


# --- the numbers ----------------------------------------------------------------------------------


def test_uniforms_depend_on_their_name_and_seed_alone():
    def numbers(name, seed=0, samples=3, tokens=5):
        return uniforms(Sampling(1.0, 1.0, 0, tokens, samples, seed), name, CPU)

    first = numbers((1, 7))
    assert first.shape == (3, 5)
    assert ((first >= 0) & (first < 1)).all()
    assert torch.equal(first, numbers((1, 7)))
    for other in (numbers((1, 8)), numbers((2, 7)), numbers((17,)), numbers((1, 7), seed=1)):
        assert not (first == other).any()
    assert len(first.unique()) == 15  # the samples of a prompt share none either
    # More samples or longer responses leave those there are as they were.
    assert torch.equal(numbers((1, 7), samples=5, tokens=9)[:3, :5], first)


def test_names_do_not_run_into_each_other():
    first = generator(0, "sampling", 1, 12).random(4).tolist()
    assert generator(0, "sampling", 11, 2).random(4).tolist() != first
    assert generator(0, "sampling1", 12).random(4).tolist() != first
    assert generator(0, "sampling", "1", "12").random(4).tolist() == first
