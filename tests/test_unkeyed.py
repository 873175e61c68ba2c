"""No setting that is left out of keys decides a result: each is tried with two values.

One step (rollout, score, update) in float32, then an evaluation: the same tokens, values to 1e-5.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from unkeyed import OF_SCALE, STEP, differences, numbers

from pipelines.config import settings
from pipelines.config.schema import Config, Section

OTHERWISE = {
    "data.workers": "1",
    "model.shared_prefix": "false",
    "rollout.batch_prompts": "3",
    "reward.workers": "2",
    "score.batch_prompts": "3",
    "score.batch_tokens": "300",
    "score.looks": "0",
    "score.watch": "1",
    "update.micro_batch_prompts": "3",
    "update.micro_batch_tokens": "300",
    "update.gradient_checkpointing": "true",
    "run.threads": "2",
}
"""Setting -> another value than that of STEP."""

APART = {
    "rollout.mismatch_limit": "5",
    "checkpoint.every": "7",
    "checkpoint.keep_last": "1",
    "checkpoint.keep_best": "0",
    "checkpoint.best_key": "reward",
    "eval.batch_prompts": "2",
    "eval.benchmarks": "[validation]",
    "eval.baseline": "false",
    "eval.sources": "{mine: mine.jsonl}",
    "eval.data_dir": "somewhere",
    "run.steps": "9",
    "run.trackers": "[tensorboard]",
    "run.device": "auto",
}
"""The same of settings that no kernel sees, tried all at once."""


PUBLISHED = ("mode=published", "published.mini_batch_responses=8", "published.micro_batch_responses=4")
"""Of 16 responses."""


def unkeyed(section: type[Section] = Config, prefix: str = "") -> Iterator[str]:
    """Every setting that is left out of keys, whole sections field by field."""
    for name, info in section.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            whole = name in section.unkeyed
            names = kind.model_fields if whole else ()
            yield from (f"{prefix}{name}.{inner}" for inner in names)
            if not whole:
                yield from unkeyed(kind, f"{prefix}{name}.")
        elif name in section.unkeyed:
            yield prefix + name


def test_every_unkeyed_setting_is_tried_somewhere():
    # The mode alone is a name for other settings (tests/config/test_settings.py).
    assert set(unkeyed()) - {"mode"} == OTHERWISE.keys() | APART.keys() | OF_SCALE
    assert OTHERWISE.keys() == {name for names in TOGETHER for name in names} | SLOW


def test_what_reaches_a_kernel_is_recorded():
    config = settings.load(None)
    recorded = {
        name
        for section in ("model", "rollout", "score", "update", "eval", "run")
        for name in getattr(config, section).shape(section)
    }
    bystanders = {"data.workers", "reward.workers", "score.looks", "score.watch"}
    expected = OTHERWISE.keys() - bystanders | OF_SCALE | {"run.device", "eval.batch_prompts"}
    assert recorded == expected


@pytest.fixture(scope="module")
def step(tmp_path_factory):
    """``step(*overrides)``: the numbers of one step, made once for the same overrides."""
    known: dict[tuple[str, ...], dict[str, Any]] = {}

    def made(*overrides: str) -> dict[str, Any]:
        if overrides not in known:
            folder = tmp_path_factory.mktemp("run")
            known[overrides] = numbers(settings.load(None, [*STEP, *overrides]), folder)
        return known[overrides]

    return made


SLOW = {"data.workers"}
"""Processes that import all anew in every stage; tests/model/test_prefetch.py compares their tensors."""


TOGETHER = (
    ("model.shared_prefix",),
    ("run.threads",),
    ("rollout.batch_prompts", "score.batch_prompts", "update.micro_batch_prompts"),
    ("reward.workers", "score.batch_tokens", "update.micro_batch_tokens"),
    ("score.looks", "score.watch", "update.gradient_checkpointing"),
)
"""Those of one row are of different stages, or only look, so that none hides what another does."""


@pytest.mark.parametrize(
    "names", [*TOGETHER, pytest.param(tuple(SLOW), marks=pytest.mark.nightly)], ids=lambda names: names[0]
)
def test_it_changes_nothing_but_last_bits(step, names):
    changed = [f"{name}={OTHERWISE[name]}" for name in names]
    assert differences(step("mode=exact"), step("mode=exact", *changed)) == []


@pytest.mark.parametrize("mode", [("mode=exact",), PUBLISHED], ids=["exact", "published"])
def test_what_no_kernel_sees_changes_nothing(step, mode):
    changed = [f"{name}={value}" for name, value in APART.items()]
    if mode == PUBLISHED:  # all at once
        changed += [f"{n}={value}" for n, value in OTHERWISE.items() if n not in SLOW]
    assert differences(step(*mode), step(*mode, *changed)) == []


def test_passes_decide_nothing_as_published(step):
    changed = "update.micro_batch_prompts=1"
    assert differences(step(*PUBLISHED), step(*PUBLISHED, changed)) == []


def test_a_setting_that_decides_is_seen(step):
    # The sizes that shaping is by: in keys, counted in responses.
    found = differences(step(*PUBLISHED), step(*PUBLISHED, "published.micro_batch_responses=2"))
    assert {"update metrics", "weights", "moments"} <= set(found)
    assert not {"rollouts", "scores", "rollout metrics"} & set(found)
