"""A part of `make objectives-proof`: one objective of each kind of needs and passes."""

from __future__ import annotations

import pytest
from objectives_proof import MOST, Benches, cases, trained

from pipelines.config import settings
from pipelines.objectives.table import find_objective, needs, passes


def kinds():
    """The first case of each."""
    found = {}
    for case in cases():
        config = settings.load(None, case.settings)
        kind = needs(config), passes(find_objective(case.name), config.update)
        found.setdefault(kind, case)
    return list(found.values())


@pytest.fixture(scope="module")
def benches(policy, tmp_path_factory):
    return Benches(policy, tmp_path_factory.mktemp("objectives"))


@pytest.mark.parametrize("case", kinds(), ids=str)
def test_its_gradient_does_not_depend_on_shared_prefixes(benches, case):
    assert benches.prefix_gap(case) <= MOST


def test_it_trains_a_run(tmp_path):
    (case,) = [case for case in cases(["papo"]) if case.variant == "exact"]
    small = (
        "data.glyphs.train=8",
        "data.glyphs.validation=2",
        "data.glyphs.test=2",
        "rollout.prompts_per_step=4",
        "rollout.samples_per_prompt=2",
        "rollout.max_new_tokens=16",
        "rollout.dynamic_sampling=false",
        "update.batch_prompts=4",
        "checkpoint.validation_samples=0",
        "run.steps=1",
        "run.threads=1",
    )
    (step,) = trained(case, tmp_path, *small)
    assert step["update/perception_loss"] < 0
