"""What an update wrote of its advantages is compared with the rollouts, where it wrote any."""

from dataclasses import replace

import pytest

from pipelines.disk.artifacts import check
from pipelines.disk.records import ADVANTAGES, ROLLOUTS, Advantages, Rollout, write_rows
from pipelines.errors import UserError

GROUPS = [
    Rollout(
        sample_id=f"s{position}",
        position=position,
        response_ids=[[1], [2]],
        response=["a", "b"],
        logp=[[0.0], [0.0]],
        truncated=[False, False],
        answer=["", ""],
        outcome=["wrong", "wrong"],
        reward=[1.0, 0.0],
    )
    for position in (5, 3)
]
USED = [Advantages(g.sample_id, g.position, [0.7, -0.7], [0.8, -0.6]) for g in GROUPS]


@pytest.fixture
def checked(tmp_path):
    """``checked(rows)``: what the check says of them beside GROUPS; None: no file."""
    (rollout := tmp_path / "rollout").mkdir()
    (out := tmp_path / "update").mkdir()
    write_rows(rollout / ROLLOUTS, Rollout, GROUPS)

    def run(rows):
        if rows is not None:
            write_rows(out / ADVANTAGES, Advantages, rows)
        check("update", out, {"rollout": rollout})

    return run


@pytest.mark.parametrize("rows", [USED, None], ids=["written", "not written"])
def test_advantages_of_the_rollouts_pass(checked, rows):
    checked(rows)


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (USED[::-1], "column position: is not that of rollouts.parquet"),
        (USED[:1], "column position: is not that of rollouts.parquet"),
        ([USED[0], replace(USED[1], advantage=[0.7])], "column advantage: has not one value for each"),
        ([replace(USED[0], shaped_advantage=[0.1] * 3), USED[1]], "column shaped_advantage: has not one"),
    ],
)
def test_others_are_refused_by_column(checked, rows, told):
    with pytest.raises(UserError, match=told):
        checked(rows)
