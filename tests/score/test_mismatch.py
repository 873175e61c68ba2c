"""The guard: what it lets pass, and when it stops a run."""

from __future__ import annotations

import pytest

from pipelines.errors import UserError
from pipelines.score.mismatch import FIRST_LIMIT, FLOOR, check_mismatch, limit


def measured(mean):
    return {"mismatch_mean": mean, "mismatch_max": 2 * mean}


def test_the_limit_grows_with_what_the_run_began_with(configure):
    assert limit(configure(), None) == FIRST_LIMIT
    assert limit(configure(), 0.02) == pytest.approx(0.2)
    assert limit(configure(), 1e-7) == FLOOR
    assert limit(configure("rollout.mismatch_limit=0.3"), 1e-7) == 0.3


def test_rounding_passes(configure):
    check_mismatch(configure(), 1, measured(0.03), None)
    check_mismatch(configure(), 2, measured(0.05), 0.03)
    check_mismatch(configure(), 2, measured(5e-4), 1e-7)


def test_weights_that_did_not_arrive_stop_the_run(configure):
    with pytest.raises(UserError) as caught:
        check_mismatch(configure("rollout.engine=vllm"), 7, measured(0.02), 1e-7)
    assert "step 7" in caught.value.place
    assert "vllm are 0.02 nats" in caught.value.problem
    assert "1e-07 at step 1" in caught.value.problem
    assert "--stage rollout --steps 7 --force" in caught.value.fix
