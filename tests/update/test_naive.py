"""Whole updates against a naive implementation (tests/tools/naive.py), which shares no code with ours.

More seeds and settings: ``make nightly``, or ``python tests/tools/naive_sweep.py`` for a table.
"""

from __future__ import annotations

import dataclasses
import io
import math

import naive
import numpy as np
import pytest
import torch
from naive_sweep import (
    CASES,
    FEW,
    GROUP,
    MOST,
    ROUNDED,
    SEEDS,
    STEP,
    Bench,
    gaps,
    questions,
    responses,
    scored,
    sweep,
    twin_of,
)
from PIL import Image

from pipelines.config import settings
from pipelines.disk.records import Rollout, Sample, SampleTable
from pipelines.score.scoring import perturbed_views
from pipelines.seeds import generator
from pipelines.update.torch_engine import TorchTrainer


@pytest.fixture(scope="module")
def asked():
    return questions()


@pytest.fixture(scope="module")
def bench(policy, asked, write_prepared, tmp_path_factory, tiny_config):
    folder = write_prepared(tmp_path_factory.mktemp("naive"), asked)
    return Bench(policy, asked, SampleTable(folder / "train.parquet"), twin_of(tiny_config))


# --- gradients and kept tokens ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "shared"),
    [
        # Nightly both ways of every case: tests/model/test_families.py has both give one gradient.
        pytest.param(case, way, id=f"{case}-{way}", marks=() if number % 2 == turn else pytest.mark.nightly)
        for number, case in enumerate(CASES)
        for turn, way in enumerate(("true", "false"))
    ],
)
def test_an_update_is_the_naive_one(bench, case, shared, record_property):
    config = settings.load(None, [*FEW, *case.settings, f"model.shared_prefix={shared}"])
    outcome = bench.run(case, config)
    record_property("kept otherwise, tied", outcome.tied)
    assert outcome.agrees, outcome


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(SEEDS))
def test_more_updates_are_the_naive_one(policy, seed):
    rows = []
    agreed = sweep(policy, seed, rows.append)
    assert all(agreed), [row for row, agrees in zip(rows, agreed, strict=True) if not agrees]


@pytest.mark.parametrize("mode", ["exact", "published"])
def test_two_steps_of_an_update(bench, fresh_policy, mode):
    # Two update batches of a step: the second trains a policy that its responses are not from.
    half = len(bench.samples) // 2
    rate, decay, most = 5e-4, 0.1, 0.3
    mini = half * GROUP // 2
    given, method = [], naive.EXACT
    if mode == "published":
        method = naive.published(mini, mini // 2)
        given = [
            "mode=published",
            f"published.mini_batch_responses={mini}",
            f"published.micro_batch_responses={mini // 2}",
        ]
    config = settings.load(
        None,
        [
            *FEW,
            *given,
            f"update.batch_prompts={half}",
            f"update.learning_rate={rate}",
            f"update.weight_decay={decay}",
            f"update.max_grad_norm={most}",
        ],
    )
    policy = fresh_policy(config)
    batch = responses(config, policy, bench.samples, bench.groups)
    scores = scored(config, bench.groups, bench.table, policy)
    method = dataclasses.replace(method, never=tuple(policy.suppressed_ids.tolist()))
    seen = bench.perceived(batch, method)
    keep = [row for s in scores for row in s.keep]
    old = [row for s in scores for row in s.old_logp]
    batch = [dataclasses.replace(r, old_logp=x) for r, x in zip(batch, old, strict=True)]

    trainer = TorchTrainer(policy, config)
    steps = []

    def look(*_):
        weights = {n: p.detach().clone() for n, p in trainer.named}
        steps.append((weights, {n: p.grad.clone() for n, p in trainer.named}))

    trainer.optimizer.register_step_pre_hook(look)
    metrics = trainer.update(bench.groups, scores, bench.table)
    assert len(steps) == 2
    assert metrics["clipped_low"] + metrics["clipped_high"] > 0.02  # of the tokens of both

    start = {n: w.clone() for n, w in bench.twin.state_dict().items()}
    try:
        for number, (weights, ours) in enumerate(steps):
            bench.twin.load_state_dict(weights, strict=False)  # the head is the embedding
            rows = slice(number * half * GROUP, (number + 1) * half * GROUP)
            alpha = naive.shaping(seen[rows], batch[rows], method)
            theirs = naive.gradient(bench.twin, batch[rows], keep[rows], alpha, method)
            one, whole = gaps(ours, naive.clipped(theirs, most))
            assert whole <= MOST, number
            assert max(one.values()) <= ROUNDED, (number, max(one, key=one.__getitem__))
    finally:
        bench.twin.load_state_dict(start)

    decays = {n: decay if mode == "published" or w.dim() > 1 else 0.0 for n, w in steps[0][0].items()}
    wanted = naive.adamw(steps[0][0], [g for _, g in steps], rate, decays)
    for name, weight in trainer.named:
        moved = (wanted[name] - steps[0][0][name].double()).norm()
        assert (weight.detach().double() - wanted[name]).norm() <= 1e-4 * moved, name


def test_without_an_image_s_is_0_in_bfloat16_too(bench):
    # A row for each response is another shape than one behind the prompt they share, and rounds otherwise.
    given = ("mode=published", "model.dtype=bfloat16", "model.shared_prefix=true")
    config = settings.load(None, [*FEW, *given])
    rows = scored(config, bench.groups, bench.table, bench.copy(config))
    for sample, row in zip(bench.samples, rows, strict=True):
        if sample.images:
            continue
        for seen, keep in zip(row.perception, row.keep, strict=True):
            assert seen == [0.0] * len(seen)
            assert keep == sorted(keep, reverse=True)  # the first ones


def test_the_largest_score_does_not_matter():
    # alpha = beta + (1 - beta) (S - min) / (mean(S) - min): eq. 5 is rid of its maximum.
    rows = [[0.1], [0.4], [0.3]]
    batch = [naive.Response([0], [1], i, 0.0, torch.zeros(1)) for i in range(3)]
    alpha = naive.shaping(rows, batch, naive.EXACT)
    mean = sum(r[0] for r in rows) / 3
    assert alpha == pytest.approx([0.9 + 0.1 * (r[0] - 0.1) / (mean - 0.1) for r in rows])


# --- images -----------------------------------------------------------------------------------------

BLACK = -1.0
"""(0 / 255 - 0.5) / 0.5."""


def array(image: Image.Image) -> np.ndarray:
    return np.array(image.convert("RGB"))


def test_whole_patches_turn_black_alike_for_a_prompt(bench, fresh_policy):
    config = settings.load(None, list(FEW))
    policy = fresh_policy(config)
    shares = []
    for sample, group in zip(bench.samples, bench.groups, strict=True):
        prompt = policy.encoder.encode(sample)
        (view,) = perturbed_views(config, STEP, group, sample, prompt, policy)
        if not sample.images:
            assert "pixel_values" not in view
            continue
        images = [array(Image.open(io.BytesIO(image))) for image in sample.images]
        want = np.concatenate([naive.patches(image) for image in images])
        assert np.abs(prompt["pixel_values"].numpy() - want).max() < 1e-6
        black = [bool((row == BLACK).all()) for row in view["pixel_values"]]
        same = [bool((a == b).all()) for a, b in zip(view["pixel_values"], prompt["pixel_values"], strict=True)]
        assert all(x or y for x, y in zip(black, same, strict=True))
        shares += black
    assert 0.3 < sum(shares) / len(shares) < 0.7


def test_squares_turn_black_before_the_processor_for_each_response(fresh_policy):
    # 16,500 pixels: shrunk to 8,000 (104 x 76), blackened, then to the processor's multiples of 28.
    least, most = 4_000, 8_000
    config = settings.load(None, [*FEW, "mode=published", f"data.min_pixels={least}", f"data.max_pixels={most}"])
    policy = fresh_policy(config)
    raw = Image.fromarray(np.random.default_rng(0).integers(0, 256, (11, 15, 3), dtype=np.uint8)).resize((150, 110))
    buffer = io.BytesIO()
    raw.save(buffer, "PNG")
    sample = Sample("noise", "<image>What is it?", [buffer.getvalue()], "1")
    group = Rollout(
        sample_id="noise",
        position=7,
        response_ids=[[9], [9, 2]],
        response=["", ""],
        logp=[[0.0], [0.0, 0.0]],
        truncated=[True, False],
        answer=["", ""],
        outcome=["wrong", "correct"],
        reward=[0.0, 1.0],
    )
    image = naive.fitted(raw, least, most)
    assert image.size == (104, 76)
    assert (array(image) == array(policy.encoder.images(sample)[0])).all()
    prompt = policy.encoder.encode(sample)
    sizes = policy.processor.image_processor.size
    limits = (sizes["shortest_edge"], sizes["longest_edge"])

    def processed(pixels: np.ndarray) -> np.ndarray:
        return naive.patches(array(naive.rounded(Image.fromarray(pixels), *limits)))

    def near(ours: torch.Tensor, theirs: np.ndarray) -> None:
        # torchvision's bicubic and PIL's round differently: by a level of 255, seldom.
        levels = np.abs(ours.numpy() - theirs) * 127.5
        assert levels.max() < 1.5
        assert levels.mean() < 0.1

    near(prompt["pixel_values"], processed(array(image)))
    views = perturbed_views(config, STEP, group, sample, prompt, policy)
    assert len(views) == 2
    squares = (math.ceil(76 / 14), math.ceil(104 / 14))
    for index, view in enumerate(views):
        black = generator(config.seed, "perturb", STEP, 7, index).random(squares) < 0.5
        near(view["pixel_values"], processed(naive.blackened(array(image), black)))
    assert not torch.equal(views[0]["pixel_values"], views[1]["pixel_values"])
