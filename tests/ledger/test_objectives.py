"""Which objectives a ledger has, and with which settings."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pipelines.config.schema import Config
from pipelines.errors import UserError
from pipelines.ledger.objectives import KNOWN, choose, with_objective


def test_all_of_any_run_or_a_reason(configure: Callable[..., Config]) -> None:
    for settings in ([], ["update.clip_high=0.3", "update.loss_average=sequence"], ["update.surrogate=cispo"]):
        found, left_out = choose(configure(*settings), roles=True)
        assert {one.name for one in found} | set(left_out) == set(KNOWN)
        assert set(left_out) == {"pepo", "pivot-vaa"}
    without = choose(configure(), roles=False)[1]
    assert {"oracle-k", "oracle-k-reasoning", "cgpo"} < set(without)
    found, left_out = choose(configure("update.constants={beta: 0.5}"), ["pivot-vaa"], roles=True)
    assert [one.name for one in found] == ["vppo", "dapo", "pivot-vaa"]
    assert not left_out


def test_settings_are_the_runs_but_for_what_the_objective_is(configure: Callable[..., Config]) -> None:
    config = configure("update.surrogate=cispo", "score.estimator=k3", "update.learning_rate=1e-5")
    grpo, random, own = (with_objective(config, name) for name in ("grpo", "random-k", "a.b:c"))
    assert (grpo.config.update.surrogate, grpo.measured[0]) == ("ppo", "k3")
    assert (random.config.update.objective, random.measured[0]) == ("vppo-tgf", "random")
    assert (own.row, own.config.update.surrogate, own.config.update.learning_rate) == (None, "cispo", 1e-5)
    assert with_objective(config, "cgpo").measured == ("k3", "evidence")


def test_mistakes(configure: Callable[..., Config]) -> None:
    with pytest.raises(UserError, match="Did you mean pgpo"):
        choose(configure(), ["pgpoo"], roles=True)
    with pytest.raises(UserError, match="Did you mean tau"):
        choose(configure("update.constants={tua: 1}"), ["pgpo"], roles=True)
