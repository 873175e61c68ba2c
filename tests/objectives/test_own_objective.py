"""An objective of one's own: soft weights and a term of its own, in one file outside the package."""

import json
import math

import pytest
from command_line import TINY, given, vppo
from random_batch import random_batch

from pipelines.config import settings
from pipelines.objectives import table

OWN = '''
"""Tokens that the perturbed view makes less likely count more, by a sigmoid; and entropy is held near 1 nat."""

import torch

from pipelines.objectives.batch import Terms


def softly(batch, settings):
    drop_BT = batch.clean_logp_BT - batch.perturbed_logp_BT
    weight_BT = torch.where(batch.mask_BT, torch.sigmoid(drop_BT), 0.0)

    def extra(reading):
        return {"entropy_gap": 0.1 * (reading.entropy_BT - 1.0) ** 2}

    return Terms(
        batch.adv_B * (1 + batch.truncated_B), weight_BT, settings.clip_low, settings.clip_high, "token", extra
    )


def negative(batch, settings):
    return Terms(batch.adv_B, batch.logp_BT, 0.2, 0.2, "token")


def short(batch, settings):
    return Terms(batch.adv_B[1:], batch.mask_BT, 0.2, 0.2, "token")


def endless(batch, settings):
    return Terms(batch.adv_B / 0.0, batch.mask_BT, 0.2, 0.2, "token")


def nothing(batch, settings):
    return None


def broken(batch, settings):
    return batch.no_such_thing
'''

FEW = given(
    *TINY, "update.micro_batch_prompts=1", "checkpoint.validation_samples=0", "eval.benchmarks=[]", "run.steps=2"
)


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "softened.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / "runs"


def test_it_trains_a_run_and_its_source_is_in_the_key(own):
    command = ["train", "--run", "mine", *FEW, *given("update.objective=softened:softly")]
    vppo(*command, runs=own).succeeded()
    rows = [json.loads(line) for line in (own / "mine/metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2
    assert all(row["update/entropy_gap"] > 0 and math.isfinite(row["update/loss"]) for row in rows)
    assert all(row["update/trained_share"] == pytest.approx(1) for row in rows)  # no token has no weight
    assert next((own / "mine").glob("steps/0001/score-*/statistics.parquet"))  # all that one may ask for

    source = own.parent / "softened.py"
    source.write_text(source.read_text().replace("0.1 *", "0.2 *"))
    plan = vppo("plan", "--run", "mine", "--json", runs=own).succeeded().json
    stale = {row["step"].split()[0] for row in plan["plan"] if row["status"] != "keep"}
    assert stale == {"update", "rollout", "score", "checkpoint"}
    assert next(row["step"] for row in plan["plan"] if row["status"] != "keep") == "update"


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("negative", "returned weights below 0: the sign is the advantage's."),
        ("short", "returned advantage as [19], not [20, 9] or [20]."),
        ("endless", "returned advantage that is not finite."),
        ("nothing", "returned NoneType, not pipelines.objectives.batch.Terms."),
        ("broken", "raised AttributeError: 'Batch' object has no attribute 'no_such_thing'"),
    ],
)
def test_what_it_returns_is_looked_at(own, name, problem):
    with pytest.raises(Exception, match=r"update\.objective: softened") as raised:
        table.find_objective(f"softened:{name}")(random_batch(), settings.load(None).update)
    assert problem in str(raised.value)
