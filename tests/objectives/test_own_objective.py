"""An objective of one's own: soft weights and a term of its own, in one file outside the package."""

import json
import math

import pytest
import torch
from command_line import TINY, given, vppo
from random_batch import random_batch

from pipelines.config import settings
from pipelines.config.schema import UpdateConfig
from pipelines.errors import UserError
from pipelines.objectives import table
from pipelines.objectives.batch import Reading
from pipelines.objectives.table import OBJECTIVES
from pipelines.vppo import average_loss

OWN = '''
"""Tokens that the perturbed view makes less likely count more, by a sigmoid; and entropy is held near 1 nat."""

import numpy as np
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


def of(**given):
    """An objective that returns DAPO's terms but for these."""
    def terms(batch, settings):
        return Terms(**{**DAPO, "advantage": batch.adv_B, "weight_BT": batch.mask_BT, **given})
    return terms


def in_place(batch, settings):
    return Terms(batch.adv_B.mul_(2), batch.mask_BT, 0.2, 0.28, "token")


class Asking:
    """An object that is called; what it asks for is its class's."""
    passes = ("perturbed",)

    def __call__(self, batch, settings):
        return Terms(batch.adv_B, batch.mask_BT, 0.2, 0.28, "token")


class Misspelt(Asking):
    passes = ("pertubed",)


class Unlisted(Asking):
    passes = "perturbed"


asking, misspelt, unlisted = Asking(), Misspelt(), Unlisted()


DAPO = {"clip_low": 0.2, "clip_high": 0.28, "average": "token"}
wide, text = of(clip_low=float("nan")), of(clip_high="0.28")
single, scalar = of(clip_low=np.float32(0.25)), of(clip_low=torch.tensor(0.25), clip_high=np.float64(0.5))
inward, unknown, no_function = of(clip_high=-0.1), of(average="tokens"), of(extra={"gap": 0})


def extra(name):
    """An objective whose further terms are these."""
    return of(extra=lambda reading: FURTHER[name](reading))


FURTHER = {
    "raises": lambda reading: {"gap": {}["gap"]},
    "shape": lambda reading: {"gap": torch.zeros(3)},
    "scalar": lambda reading: {"gap": reading.entropy_BT.sum()},
    "number": lambda reading: {"gap": 0.5},
    "plain": lambda reading: reading.entropy_BT,
    "nan": lambda reading: {"fine": reading.entropy_BT, "gap": reading.entropy_BT * float("nan")},
    "loss": lambda reading: {"loss": reading.entropy_BT},
    "slash": lambda reading: {"loss/mine": reading.entropy_BT},
    "padding": lambda reading: {"gap": torch.where(reading.mask_BT, reading.entropy_BT, float("nan"))},
    "blind": lambda reading: {"gap": reading.logp_BT},
    "in_place": lambda reading: {"gap": reading.entropy_BT.sub_(1)},
}
globals().update({f"extra_{name}": extra(name) for name in FURTHER})
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
        ("wide", "returned clip_low nan, which is no number of 0 or more."),
        ("text", "returned clip_high '0.28', which is no number of 0 or more."),
        ("inward", "returned clip_high -0.1, which is no number of 0 or more."),
        ("unknown", "returned average 'tokens', which is none of token, sequence, max_length."),
        ("in_place", "changed batch.adv_B in place"),
        ("no_function", "returned extra as dict, not a function of a Reading."),
    ],
)
def test_what_it_returns_is_looked_at(own, name, problem):
    with pytest.raises(Exception, match=r"update\.objective: softened") as raised:
        table.find_objective(f"softened:{name}")(random_batch(), settings.load(None).update)
    assert problem in str(raised.value)


@pytest.mark.parametrize(("name", "high"), [("single", 0.28), ("scalar", 0.5)])
def test_widths_may_be_any_real_scalars(own, name, high):
    terms = table.find_objective(f"softened:{name}")(random_batch(), settings.load(None).update)
    assert (terms.clip_low, terms.clip_high) == (0.25, high)
    assert type(terms.clip_low) is type(terms.clip_high) is float


def test_the_passes_of_an_object_are_its_class_s(own):
    for name, found in (("asking", {"perturbed"}), ("softly", set())):
        objective = table.find_objective(f"softened:{name}")
        assert table.passes(objective, UpdateConfig(objective=f"softened:{name}")) == found


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("misspelt", r"'pertubed', of its passes, is none\. Did you mean perturbed\? Write passes = \('perturbed',\)"),
        ("unlisted", "its passes are 'perturbed', which is no list of names"),
    ],
)
def test_a_pass_that_there_is_not_is_refused(own, name, problem):
    with pytest.raises(UserError, match=problem):
        table.find_objective(f"softened:{name}")


def reading(batch, **given):
    found = {"mask_BT": batch.mask_BT, "logp_BT": batch.logp_BT, "entropy_BT": batch.entropy_BT, **given}
    return Reading(torch.arange(len(batch.mask_BT)), **found)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("raises", "raised KeyError: 'gap'"),
        ("shape", "extra returned gap as [3], not [20, 9]."),
        ("scalar", "extra returned gap as [], not [20, 9]."),
        ("number", "extra returned gap as float, not [20, 9]."),
        ("plain", "extra returned Tensor, not a dict of tensors [B, T]."),
        ("nan", "extra returned gap that is not finite."),
        ("loss", "extra calls a term 'loss', which every update measures: call it otherwise."),
        ("in_place", "changed reading.entropy_BT in place"),
        ("slash", "extra calls a term 'loss/mine', which is no name"),
    ],
)
def test_so_are_its_further_terms(own, name, problem):
    batch = random_batch()
    terms = table.find_objective(f"softened:extra_{name}")(batch, settings.load(None).update)
    with pytest.raises(UserError, match=r"update\.objective: softened:extra_") as raised:
        terms.extra(reading(batch))
    assert problem in str(raised.value)


def test_a_term_may_be_anything_on_padding_and_is_no_number_where_the_policy_is_none(own):
    batch = random_batch()

    def gap(name, **given):
        terms = table.find_objective(f"softened:extra_{name}")(batch, settings.load(None).update)
        return terms.extra(reading(batch, **given))["gap"]

    assert gap("padding").isnan().any()
    assert gap("blind", logp_BT=batch.logp_BT * math.nan).isnan().any()


def test_whole_numbers_weigh_as_others_do():
    batch = random_batch()
    loss_BT = torch.randn(batch.mask_BT.shape, generator=torch.Generator().manual_seed(0))
    for weight_BT in (batch.mask_BT * 3, batch.mask_BT.int() * 3):
        found = average_loss(loss_BT, weight_BT, batch.mask_BT)
        assert found == average_loss(loss_BT, weight_BT.float(), batch.mask_BT)
    plain = average_loss(loss_BT, batch.mask_BT, batch.mask_BT)
    assert average_loss(loss_BT, batch.mask_BT.long(), batch.mask_BT) == plain


@pytest.mark.parametrize(("name", "variant"), [(n, v) for n, row in OBJECTIVES.items() for v in row.variants])
def test_one_around_a_built_in_one_names_its_variant(name, variant):
    """What it is called in update.objective decides nothing."""
    ours, batch = table.find_objective(name), random_batch()
    own = UpdateConfig(objective="mine:wrapped")
    found = ours(batch, own if variant == OBJECTIVES[name].variants[0] else own.model_copy(update={"variant": variant}))
    wanted = ours(batch, UpdateConfig(objective=name, variant=variant))
    assert torch.equal(found.token_weight_BT, wanted.token_weight_BT)
    both = reading(batch, kl_BT=batch.kl_BT, perturbed_entropy_BT=batch.perturbed_entropy_BT)
    for key, value_BT in (wanted.extra(both) if wanted.extra else {}).items():
        assert torch.equal(found.extra(both)[key], value_BT)
    with pytest.raises(UserError, match=rf"update.variant: else: {name} has no such variant"):
        ours(batch, own.model_copy(update={"variant": "else"}))
