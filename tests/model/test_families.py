"""Model families from tiny random folders: the way each takes, log-probs, perturbation, generation, scores
and updates.

What is compared with is transformers itself, run without this package's packing and positions.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from applied import gradients
from families import FAMILIES, VISION_TOWERS, picture, questions, write_folder
from PIL import Image

from pipelines.disk.records import SCORES, Sample, SampleTable, Scored, read_rows
from pipelines.errors import UserError
from pipelines.grading.reward import Graded
from pipelines.model.divergence import token_logp
from pipelines.model.load import load_policy
from pipelines.model.policy import Row
from pipelines.model.prompts import messages, open_image
from pipelines.model.sampling import Sampling
from pipelines.rollout.engine import encoded, group_row
from pipelines.rollout.hf import HuggingFaceEngine
from pipelines.score.scoring import perturbed_prompt, score
from pipelines.seeds import generator
from pipelines.update.torch_engine import TorchTrainer
from pipelines.watch import Silent

WAYS = dict.fromkeys(FAMILIES, "fast") | dict.fromkeys(("qwen3_5", "gemma3", "paligemma"), "plain")
"""As docs/method.md has it."""
LISTED = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "glm4v")
"""Those whose pixels are a list of patches."""
OVERVIEW = {"idefics3": -1, "smolvlm": -1, "internvl": -1, "llava_next": 0, "llava_onevision": 0}
"""Those that cut an image into tiles, and where among these the overview is."""
ALIKE = {
    "qwen2_vl": "qwen2_5_vl",
    "glm4v": "qwen2_5_vl",
    "qwen3_vl_moe": "qwen3_vl",
    "smolvlm": "idefics3",
    "internvl": "idefics3",
    "llava": "llava_next",
    "llava_onevision": "llava_next",
    "qwen3_5": "gemma3",
    "paligemma": "gemma3",
}
"""Family -> one that takes the same way and lays pixels out alike (of qwen3_5: qwen3_vl), so that the first
is tried nightly."""
QUESTIONS = questions()
RESPONSES = [[20, 21, 22, 23, 24], [30], [40, 41, 42]]
PLAIN = "model.shared_prefix=false"


@pytest.fixture(
    scope="module", params=[pytest.param(n, marks=pytest.mark.nightly if n in ALIKE else ()) for n in FAMILIES]
)
def family(request, tmp_path_factory, configure):
    """A family's folder, its config, and the policy loaded from it (not to be trained)."""
    folder = write_folder(request.param, tmp_path_factory.mktemp(request.param))

    def load(*overrides):
        config = configure(f"model.path={folder}", "rollout.max_new_tokens=10", *overrides)
        return load_policy(config)

    policy = load()
    asked = {n: q for n, q in QUESTIONS.items() if q.images or request.param != "paligemma"}
    return SimpleNamespace(
        name=request.param, load=load, policy=policy, config=policy.config, asked=asked, listed=request.param in LISTED
    )


@pytest.fixture(scope="module")
def rollouts(family):
    """Three responses to each of the questions, generated in one batch; one of three is right."""
    sampling = Sampling(1.0, 1.0, 0, 10, 3, seed=0)
    names = [(1, position) for position in range(len(family.asked))]
    generated = HuggingFaceEngine(family.policy).generate(list(family.asked.values()), names, sampling)
    marks = [Graded("", outcome, float(outcome == "correct")) for outcome in ("correct", "wrong", "wrong")]
    return [
        group_row(sample, position, group, marks, step=1)
        for position, (sample, group) in enumerate(zip(family.asked.values(), generated, strict=True))
    ]


@pytest.fixture(scope="module")
def table(write_prepared, tmp_path_factory):
    rows = list(QUESTIONS.values())
    return SampleTable(write_prepared(tmp_path_factory.mktemp("asked"), rows) / "train.parquet")


@pytest.fixture(scope="module")
def scored(family, rollouts, table, tmp_path_factory):
    """The scoring stage's metrics and rows."""
    out = tmp_path_factory.mktemp("scores")
    metrics = score(family.config, 1, rollouts, table, family.policy, out, Silent())
    return metrics, read_rows(out / SCORES, Scored)


def logp(policy, groups):
    """Log-probs [N] of (question, responses) groups, as scoring and training compute them."""
    rows = [row for name, responses in groups for row in policy.rows(policy.encoder.encode(QUESTIONS[name]), responses)]
    token_N = torch.tensor([token for _, group in groups for ids in group for token in ids])
    return token_logp(policy.hidden_states(rows), policy.head_weight, token_N, suppressed_ids=policy.suppressed_ids)[0]


@torch.no_grad()
def straight(policy, groups):
    """The same from the model alone: its processor's tensors, a mask of ones, its own positions."""
    values = []
    for name, responses in groups:
        sample = QUESTIONS[name]
        text = policy.processor.apply_chat_template(
            messages(sample, policy.config.data.instruction), add_generation_prompt=True
        )
        images = [open_image(data) for data in sample.images]
        inputs = policy.processor(text=[text], images=[images] if images else None, return_tensors="pt")
        inputs.pop("labels", None)  # PaliGemma's
        for response in responses:
            fed = dict(inputs) | {"input_ids": torch.cat([inputs["input_ids"], torch.tensor([response])], 1)}
            fed["attention_mask"] = torch.ones_like(fed["input_ids"])
            for kind in {"mm_token_type_ids", "token_type_ids"} & inputs.keys():
                # PaliGemma's tell what follows the prompt; the others' tell images.
                types = torch.full((1, len(response)), int(policy.model.config.model_type == "paligemma"))
                fed[kind] = torch.cat([inputs[kind], types], 1)
            logits = policy.model(**fed, use_cache=False).logits[0, -len(response) - 1 : -1]
            logits[:, policy.suppressed_ids] = -torch.inf
            values.append(logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None])[:, 0])
    return torch.cat(values)


# --- log-probs ------------------------------------------------------------------------------------


def test_each_takes_its_way_and_says_why(family):
    plain = WAYS[family.name] == "plain"
    assert family.policy.plain == plain
    said = [note for note in family.policy.notes if "plain way" in note]
    assert len(said) == plain
    assert all("nats off" in note or "window" in note for note in said)


@pytest.mark.parametrize("name", QUESTIONS)
def test_packed_and_plain_rows_give_what_the_model_gives(family, name):
    if name not in family.asked:
        with pytest.raises(UserError, match="question none"):
            encoded(family.policy, QUESTIONS[name])
        return
    groups = [(name, RESPONSES)]
    expected = straight(family.policy, groups)
    with torch.no_grad():
        torch.testing.assert_close(logp(family.policy, groups), expected, atol=1e-5, rtol=0)
        other = family.load(PLAIN)
        torch.testing.assert_close(logp(other, groups), expected, atol=1e-5, rtol=0)
        other.take(plain=True)  # right for every family
        torch.testing.assert_close(logp(other, groups), expected, atol=1e-5, rtol=0)


def test_prompts_of_different_images_share_a_batch(family):
    order = ("other", "none", "two", "one")
    groups = [(name, RESPONSES) for name in order if name in family.asked]
    with torch.no_grad():
        together = logp(family.policy, groups)
    torch.testing.assert_close(together, straight(family.policy, groups), atol=1e-5, rtol=0)


@torch.no_grad()
def test_similarities_are_of_the_states_that_the_model_gives(family):
    policy, (name, sample) = family.policy, next(iter(family.asked.items()))
    response, image_id = RESPONSES[0], family.policy.model.config.image_token_id
    prompt = policy.encoder.encode(sample)
    fed = policy.copies(prompt, 1) | {n: v[None] for n, v in policy.joined(prompt, response).items()}
    fed["attention_mask"] = torch.ones_like(fed["input_ids"])
    own = family.load()
    own.take(plain=True)
    states = own.model(**fed, output_hidden_states=True, use_cache=False).hidden_states[1:]
    image_L = fed["input_ids"][0] == image_id
    assert image_L.sum() == (prompt["input_ids"] == image_id).sum() > 0
    expected = []
    for states_BLD in states:
        said_TD, mean_D = states_BLD[0, -len(response) - 1 : -1], states_BLD[0, image_L].mean(0)
        expected.append(said_TD @ mean_D / said_TD.norm(dim=-1) / mean_D.norm())
    _, image_N, layers_N = policy.with_similarities([Row(prompt, [response])])
    torch.testing.assert_close(image_N, expected[-1], atol=1e-5, rtol=0, msg=name)
    torch.testing.assert_close(layers_N, sum(expected) / len(expected), atol=1e-5, rtol=0, msg=name)


def test_images_and_their_positions_count(family):
    # So that agreement above means something: what is compared depends on each of them.
    policy = family.policy
    prompt = policy.with_positions(policy.encoder.encode(QUESTIONS["two"]))
    kept = (prompt["pixel_values"], prompt["position_ids"])
    turned = kept[1].roll(1, 0) if family.listed else kept[1].flip(1)
    changes = {"pixel_values": kept[0].flip(0, 1), "position_ids": turned}
    if policy.plain:  # the model makes its own
        del changes["position_ids"]
    with torch.no_grad():
        before = logp(policy, [("two", RESPONSES)])
        for name, value in changes.items():
            original = prompt[name]
            prompt[name] = value
            moved = (logp(policy, [("two", RESPONSES)]) - before).abs().max()
            prompt[name] = original
            assert moved > 1e-2, name


def test_a_saved_model_gives_the_same(family, tmp_path):
    family.policy.model.save_pretrained(tmp_path)
    family.policy.processor.save_pretrained(tmp_path)
    groups = [(name, RESPONSES) for name in family.asked]
    again = load_policy(family.config, tmp_path)
    with torch.no_grad():
        assert torch.equal(logp(again, groups), logp(family.policy, groups))


# --- perturbation ---------------------------------------------------------------------------------


def patch_side(family):
    """In pixels, and 14 or 16 by the family."""
    side = family.policy.model.config.vision_config.patch_size
    assert (16 if family.name.startswith("qwen3") else 14) in (side, *np.atleast_1d(side))
    return int(np.atleast_1d(side)[0])


def patches_of(family, pixel_values):
    """The encoder's patches in the order of the layout [patches, C, pixels]."""
    if family.listed:
        return pixel_values.unflatten(1, (3, -1))
    p = patch_side(family)
    tiles = pixel_values.reshape(-1, *pixel_values.shape[-3:])
    cut = tiles.unfold(2, p, p).unfold(3, p, p)  # tiles, C, down, across, p, p
    return cut.permute(0, 2, 3, 1, 4, 5).flatten(4).flatten(0, 2)


def black_of(family):
    """What (0 - mean) / std is, [C, 1]."""
    processor = family.policy.processor.image_processor
    mean, std = torch.tensor(processor.image_mean), torch.tensor(processor.image_std)
    return (-mean / std)[:, None]


def visible(family, patches):
    """Which patches are not black from the start, as LLaVA-NeXT's margins are, nor fill a batch up."""
    black = (patches - black_of(family)).abs().flatten(1).amax(1) < 1e-6
    return patches.flatten(1).any(1) & ~black


def view_of(family, sample, *, step=1, **settings):
    """(the encoded prompt, the same perturbed)."""
    update = family.config.score.model_copy(update=settings)
    config = family.config.model_copy(update={"score": update})
    prompt = family.policy.encoder.encode(sample)
    return prompt, perturbed_prompt(config, sample, prompt, family.policy, step, 0)


@pytest.mark.parametrize("name", ["one", "two"])
def test_patches_are_black_or_untouched(family, name):
    share, count = 0, 0
    for step in range(20):
        prompt, view = view_of(family, QUESTIONS[name], step=step)
        assert view["pixel_values"].shape == prompt["pixel_values"].shape
        before, after = (patches_of(family, x["pixel_values"]) for x in (prompt, view))
        touched = (before != after).flatten(1).any(1)
        black = black_of(family).expand_as(after[touched])
        torch.testing.assert_close(after[touched], black, atol=1e-6, rtol=0)
        share, count = share + int(touched.sum()), count + int(visible(family, before).sum())
        for key in prompt.keys() - {"pixel_values"}:  # masks of pixels, grids, ids
            assert torch.equal(prompt[key], view[key])
    # Half of 20 times 40 patches and more; 4 standard deviations of the mean are 0.07 at most.
    assert share / count == pytest.approx(0.5, abs=0.07)


@pytest.mark.parametrize(("probability", "share"), [(0.0, 0.0), (1.0, 1.0)])
def test_no_patch_and_every_patch(family, probability, share):
    prompt, view = view_of(family, QUESTIONS["two"], probability=probability)
    before, after = (patches_of(family, x["pixel_values"]) for x in (prompt, view))
    touched = (before != after).flatten(1).any(1)
    assert touched[visible(family, before)].float().mean() == share


def test_black_patches_are_squares_of_the_image(family):
    # The drawn squares of the image painted black, then the family's own processor: the same. Tiles
    # are drawn one after the other, four by four patches; an overview of the whole comes last or first.
    p, overview = patch_side(family), OVERVIEW.get(family.name)
    rng = generator(family.config.seed, "perturb", 1, 0)
    if family.listed:
        drawn = rng.random((6, 4)) < 0.5
    elif overview is None:
        drawn = rng.random((4, 4)) < 0.5
    else:
        tiles = list(rng.random((5, 4, 4)) < 0.5)
        small = torch.from_numpy(tiles.pop(overview)).flatten()
        drawn = np.block([tiles[:2], tiles[2:]])
    data = picture(*(side * p for side in drawn.shape), 3)  # of a size that is not resized
    sample = Sample("squares", "<image>What?", [data], "1")
    pixels = np.array(open_image(data))
    pixels[drawn.repeat(p, 0).repeat(p, 1)] = 0
    painted = family.policy.encoder.encode_images(sample, [Image.fromarray(pixels)])
    prompt, view = view_of(family, sample)
    before, found, expected = (patches_of(family, x["pixel_values"]) for x in (prompt, view, painted))
    whole = slice(0, drawn.size) if overview != 0 else slice(16, None)
    torch.testing.assert_close(found[whole], expected[whole], atol=1e-5, rtol=0)
    if overview is not None:
        rest = slice(drawn.size, None) if overview else slice(0, 16)
        assert torch.equal((before[rest] != found[rest]).flatten(1).any(1), small)


def test_what_fills_a_batch_up_stays_empty(family):
    # Of prompts with 3 and with 5 tiles, in one tensor [2, 5, C, H, W], two are no tiles at all.
    names = ("other", "one")
    views = [view_of(family, QUESTIONS[name])[1] for name in names]
    policy = family.policy
    rows = [Row(view, [RESPONSES[0]]) for view in views]
    batch = policy._plain(rows) if policy.plain else policy._pack(rows)
    if batch["pixel_values"].dim() < 5:  # patches, or tiles, of all prompts in one list
        assert torch.equal(batch["pixel_values"], torch.cat([v["pixel_values"] for v in views]))
        return
    assert batch["pixel_values"].shape[:2] == (2, 5)
    assert not batch["pixel_values"][0, 3:].any()
    if "pixel_attention_mask" not in batch:
        return
    tile = 56 * 56
    used = batch["pixel_attention_mask"].sum((-1, -2)).tolist()
    assert used == [[tile] * 3 + [0] * 2, [tile] * 5]


def test_perception(family, rollouts, scored):
    _, rows = scored
    for group, row in zip(rollouts, rows, strict=True):
        most = max(value for values in row.perception for value in values)
        if group.sample_id == "none":
            assert most < 1e-6
        else:
            assert min(value for values in row.perception for value in values) > -1e-6
            assert most > 1e-2


# --- generation and scores ------------------------------------------------------------------------


def test_the_engines_log_probs_are_the_trainers(family, rollouts, scored):
    metrics, rows = scored
    assert metrics["mismatch_max"] < 1e-4
    groups = [(group.sample_id, group.response_ids) for group in rollouts]
    old_N = torch.tensor([x for row in rows for values in row.old_logp for x in values])
    torch.testing.assert_close(old_N, straight(family.policy, groups), atol=1e-5, rtol=0)


def test_the_samples_do_not_depend_on_the_batch(family, rollouts):
    engine = HuggingFaceEngine(family.policy)
    sampling = Sampling(1.0, 1.0, 0, 10, 3, seed=0)
    order = [2, 0, 3][: len(family.asked) - 1]
    some = engine.generate([list(family.asked.values())[i] for i in order], [(1, i) for i in order], sampling)
    for index, group in zip(order, some, strict=True):
        assert [response.ids for response in group] == rollouts[index].response_ids


def test_special_and_image_tokens_are_never_sampled(family):
    policy = family.policy
    forbidden = set(policy.suppressed_ids.tolist())
    assert policy.model.config.image_token_id in forbidden
    assert not forbidden & set(policy.eos_ids)
    hot = Sampling(5.0, 1.0, 0, 20, 16, seed=0)
    groups = HuggingFaceEngine(policy).generate([QUESTIONS["one"], QUESTIONS["two"]], [(1, 0), (1, 1)], hot)
    sampled = {token for group in groups for response in group for token in response.ids}
    assert len(sampled) > 100
    assert not sampled & forbidden


@pytest.mark.nightly  # a CPU is slow in bfloat16; make test has it for one of each way
def test_every_family_in_bfloat16(family, rollouts):
    other_way(family, rollouts, "model.dtype=bfloat16", 0.1)


def test_other_ways_to_compute(family, rollouts):
    other_way(family, rollouts, "model.attention=eager", 1e-5)
    if family.name in ("qwen2_5_vl", "gemma3"):  # a fast way and a plain one
        other_way(family, rollouts, "model.dtype=bfloat16", 0.1)


def other_way(family, rollouts, setting, most):
    other = family.load(setting)
    sampling = Sampling(1.0, 1.0, 0, 5, 2, seed=0)
    [[first, _]] = HuggingFaceEngine(other).generate([QUESTIONS["two"]], [(1, 2)], sampling)
    assert len(first.ids) == len(first.logp)
    groups = [(group.sample_id, group.response_ids) for group in rollouts]
    gap_N = (logp(other, groups) - logp(family.policy, groups)).abs()
    gap_N.sum().backward()
    assert gap_N.mean() < most


# --- updates --------------------------------------------------------------------------------------


def updated(family, table, rollouts, rows, *overrides):
    """A trainer after one update, its metrics, and the gradients that it applied."""
    policy = family.load("update.max_grad_norm=1e9", *overrides)
    trainer = TorchTrainer(policy, policy.config)
    applied = gradients(trainer)
    return trainer, trainer.update(rollouts, rows, table), applied


def test_an_update_reaches_both_towers_packed_or_plain(family, table, rollouts, scored):
    _, rows = scored
    trainer, metrics, packed = updated(family, table, rollouts, rows)
    assert metrics["ratio_mean"] == pytest.approx(1.0, abs=1e-5)
    assert metrics["grad_norm"] > 1e-3
    for vision in (True, False):
        own = [n for n, _ in trainer.named if vision == any(tower in n for tower in VISION_TOWERS)]
        moved = [n for n in own if n in packed and packed[n].any()]
        assert len(moved) > 0.8 * len(own), sorted(set(own) - set(moved))
    for other in (PLAIN, "update.gradient_checkpointing=true"):
        _, _, found = updated(family, table, rollouts, rows, other)
        size = max(gradient.abs().max() for gradient in packed.values())
        assert found.keys() == packed.keys()
        for name, gradient in found.items():
            gap = (gradient - packed[name]).abs().max()
            assert gap <= 1e-4 * packed[name].abs().max() + 1e-6 * size, (other, name)


def test_the_vision_tower_can_be_frozen(family):
    trainer = TorchTrainer(family.load(), family.load("update.freeze_vision=true").config)
    names = [name for name, _ in trainer.named]
    assert any("layers.2" in name for name in names)
    others = (*VISION_TOWERS, "connector", "projector")
    assert not [name for name in names if any(other in name for other in others)]


# --- what a family cannot do ----------------------------------------------------------------------


def test_limits_of_area_are_for_those_that_resize_by_area(family):
    if family.listed:
        smaller = family.load("data.max_pixels=6400").encoder.encode(QUESTIONS["one"])
        area = len(smaller["pixel_values"]) * patch_side(family) ** 2
        assert 2000 < area <= 6400  # one has 112 x 84
    else:
        with pytest.raises(UserError, match="does not limit images by area"):
            family.load("data.max_pixels=3200")
