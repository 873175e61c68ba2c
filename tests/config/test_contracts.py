"""What an evaluation of a user's own returns."""

import pytest

from pipelines.config.contracts import check_results
from pipelines.errors import UserError

RESULTS = {
    "title": "Mine",
    "accuracy": 0.5,
    "interval": [0.25, 0.75],
    "questions": 4,
    "samples": 2,
    "outcomes": {"correct": 4, "wrong": 4},
    "pass_at_k": {1: 0.5, 2: 0.75},
    "training": None,
    "rewards": {"reward": {"value": 0.5, "interval": [0.25, 0.75]}},
}


def test_results_come_through_as_they_are():
    assert check_results("eval", RESULTS | {"mine": 1}) == RESULTS | {"mine": 1}
    assert check_results("eval", {name: RESULTS[name] for name in RESULTS if name != "rewards"})


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"accuracy": "half"}, "returned no accuracy of finite numbers."),
        ({"accuracy": float("nan")}, "returned what JSON cannot hold"),
        ({"mine": {1, 2}}, "returned what JSON cannot hold"),
        ({"interval": None}, "returned no interval of finite numbers."),
        ({"interval": [0.5]}, "returned no interval of finite numbers."),
        ({"pass_at_k": [0.5]}, "returned no pass_at_k of finite numbers."),
        ({"outcomes": {"correct": "4"}}, "returned no outcomes of finite numbers."),
        ({"rewards": {"length": 0.5}}, "returned no rewards, length of finite numbers."),
        ({"rewards": [0.5]}, "returned no rewards of finite numbers."),
    ],
)
def test_what_is_read_of_them_has_to_be_there(given, told):
    with pytest.raises(UserError) as raised:
        check_results("stages.eval: mine:eval", RESULTS | given)
    assert told in str(raised.value)


def test_nothing_is_no_result():
    with pytest.raises(UserError, match="returned None, not a dict of results"):
        check_results("stages.eval: mine:eval", None)
