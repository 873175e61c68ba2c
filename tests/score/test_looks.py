"""looks.parquet: pictures of both views, token texts, and what else each token might have been."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from families import picture, questions, write_folder
from PIL import Image

from pipelines.disk.records import SCORES, Look, Sample, SampleTable, Scored, read_rows
from pipelines.grading.reward import Graded
from pipelines.model.divergence import Head
from pipelines.model.load import load_policy
from pipelines.model.sampling import Sampling
from pipelines.model.token_texts import token_texts
from pipelines.rollout.engine import group_row
from pipelines.rollout.hf import HuggingFaceEngine
from pipelines.score.alternatives import top_alternatives
from pipelines.score.looks import LOOKS
from pipelines.score.pictures import pictures
from pipelines.score.scoring import both_views, perturbed_prompt, score
from pipelines.watch import Silent

TILED = ("idefics3", "smolvlm", "internvl")


def pixels(png):
    """[H, W, C] of a picture."""
    return np.array(Image.open(io.BytesIO(png)))


@pytest.fixture
def written(policy, table, rollouts, tmp_path):
    """``written(config)``: (metrics, rows of scores, rows of looks) of the scoring stage."""

    def run(config, samples=table, groups=rollouts, by=policy, folder="out"):
        out = tmp_path / folder
        out.mkdir()
        metrics = score(config, 1, groups, samples, by, out, Silent())
        return metrics, read_rows(out / SCORES, Scored), read_rows(out / LOOKS, Look)

    return run


# --- the rows -------------------------------------------------------------------------------------


def test_the_first_groups_are_kept(written, configure, rollouts):
    _, _, looks = written(configure("score.looks=2"))
    assert [look.position for look in looks] == [0, 1]
    assert [look.sample_id for look in looks] == [g.sample_id for g in rollouts[:2]]


def test_tokens_joined_are_the_response(written, tiny_config, rollouts):
    _, _, looks = written(tiny_config)
    for look, group in zip(looks, rollouts, strict=True):
        for tokens, ids, text in zip(look.tokens, group.response_ids, group.response, strict=True):
            assert len(tokens) == len(ids)
            assert "".join(tokens) == text


def test_log_probs_are_those_of_the_scores(written, tiny_config):
    _, scores, looks = written(tiny_config)
    for look, row in zip(looks, scores, strict=True):
        assert look.logp == row.old_logp
    ratio = written(
        tiny_config.model_copy(update={"score": tiny_config.score.model_copy(update={"estimator": "log_ratio"})}),
        folder="ratio",
    )
    for look, row in zip(ratio[2], ratio[1], strict=True):  # log p - log q, which has both
        for p, q, gap in zip(look.logp, look.logp_perturbed, row.perception, strict=True):
            assert np.subtract(p, q) == pytest.approx(gap, abs=1e-6)


def test_looking_changes_no_score(written, configure):
    metrics, scores, looks = written(configure("score.looks=0"))
    assert looks == []
    again = written(configure("score.looks=3"), folder="again")
    assert again[:2] == (metrics, scores)


def test_looks_are_the_same_bytes_every_time(written, tiny_config, tmp_path):
    for name in "ab":
        written(tiny_config, folder=name)
    assert (tmp_path / "a" / LOOKS).read_bytes() == (tmp_path / "b" / LOOKS).read_bytes()


def test_one_view_estimators_show_one_view(written, configure):
    _, _, [look, *_] = written(configure("score.estimator=entropy"))
    empty = [[]] * 4
    assert look.perturbed_images == []
    assert look.logp_perturbed == look.top_perturbed == look.top_q == empty
    assert look.top_perturbed_p == look.top_perturbed_q == empty
    assert [len(row) for row in look.top] == [len(row) for row in look.logp]


def test_one_view_for_each_response(written, configure, policy, samples):
    config = configure("score.mask_per=response")
    _, _, [look, *_] = written(config)
    prompt = policy.encoder.encode(samples[0])
    assert len({view[0] for view in look.perturbed_images}) == 4
    for index, [png] in enumerate(look.perturbed_images):
        view = perturbed_prompt(config, samples[0], prompt, policy, 1, 0, index)
        shown = pictures(view, policy.processor, policy.model.config, samples[0].images)
        assert shown == [png]


# --- alternatives ---------------------------------------------------------------------------------


def test_alternatives_by_hand():
    # Logits are the hidden state itself: p = softmax(ln 6, ln 3, ln 1), q of the second view (1, 1, 8).
    weight_VD = torch.eye(3)
    hidden = torch.log(torch.tensor([[6.0, 3.0, 1.0]]))
    other = torch.log(torch.tensor([[1.0, 1.0, 8.0]]))
    found = top_alternatives(hidden, Head(weight_VD), 2, perturbed_ND=other)
    assert found.top_NK.tolist() == [[0, 1]]
    assert found.top_p_NK[0].tolist() == pytest.approx([0.6, 0.3])
    assert found.top_q_NK[0].tolist() == pytest.approx([0.1, 0.1])
    assert found.perturbed_NK[0, 0] == 2
    assert found.perturbed_q_NK[0, 0].item() == pytest.approx(0.8)
    assert found.perturbed_p_NK[0, 0].item() == pytest.approx(0.1)


def test_alternatives_do_not_depend_on_the_chunks(policy, rollouts, samples, tiny_config):
    views = both_views(tiny_config, 1, rollouts, samples[:4], policy)

    def found(most):
        head = Head(policy.head_weight, None, 1.0, policy.suppressed_ids)
        return top_alternatives(views.hidden_ND, head, 3, perturbed_ND=views.perturbed_ND, max_elements=most)

    whole, cut = found(2**24), found(5 * len(policy.head_weight))
    assert torch.equal(whole.top_NK, cut.top_NK)
    torch.testing.assert_close(whole.perturbed_q_NK, cut.perturbed_q_NK)
    assert not set(whole.perturbed_NK.flatten().tolist()) & set(policy.suppressed_ids.tolist())


def test_alternatives_are_likeliest_first_and_probabilities(written, tiny_config):
    _, _, looks = written(tiny_config)
    for look in looks:
        for top, p, logp, tokens in zip(look.top, look.top_p, look.logp, look.tokens, strict=True):
            for names, chances, own, token in zip(top, p, logp, tokens, strict=True):
                assert len(names) == len(chances) == 3
                assert sorted(chances, reverse=True) == chances
                assert sum(chances) <= 1 + 1e-5
                if token and token in names:  # the sampled one is among them, with its probability
                    assert chances[names.index(token)] == pytest.approx(np.exp(own), rel=1e-4)


# --- token texts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["plain words", "naïve café", "数字 7", "🙂🙃 a 🏳️‍🌈", "tab\tand\nline", ""])
def test_parts_of_a_character_wait_for_the_rest(policy, text):
    ids = policy.tokenizer(text, add_special_tokens=False)["input_ids"]
    texts = token_texts(policy.tokenizer, [*ids, policy.eos_ids[0]])
    assert "".join(texts) == text
    assert len(texts) == len(ids) + 1
    assert texts[-1] == ""
    assert "\ufffd" not in "".join(texts)
    if "🙂" in text:
        assert "🙂" in texts
        assert "" in texts[:-1]


def test_broken_characters_still_join_to_the_response(policy):
    ids = policy.tokenizer("a🙂b🙃", add_special_tokens=False)["input_ids"]
    for cut in range(len(ids) + 1):
        for start in range(cut + 1):
            part = ids[start:cut]
            whole = policy.tokenizer.decode(part, skip_special_tokens=True)
            texts = token_texts(policy.tokenizer, part)
            assert ("".join(texts), len(texts)) == (whole, len(part))


# --- pictures, by family --------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen3_vl", *TILED])
def family(request, tmp_path_factory, configure):
    folder = write_folder(request.param, tmp_path_factory.mktemp(request.param))
    config = configure(f"model.path={folder}", "rollout.max_new_tokens=6")
    return SimpleNamespace(name=request.param, config=config, policy=load_policy(config))


def shown(family, sample, prompt=None):
    prompt = family.policy.encoder.encode(sample) if prompt is None else prompt
    found = pictures(prompt, family.policy.processor, family.policy.model.config, sample.images)
    return [pixels(png) for png in found]


@pytest.mark.parametrize("height_width", [(112, 112), (112, 56), (56, 168)])
def test_the_picture_is_the_image(family, height_width):
    # Resized in its own way by each processor, with its proportions or nearly.
    data = picture(*height_width, 5)
    sample = Sample(f"same {height_width}", "<image>What?", [data], "1")
    first, *overview = shown(family, sample)
    assert len(overview) == (family.name in TILED)
    resized = Image.open(io.BytesIO(data)).resize(first.shape[1::-1], Image.Resampling.BICUBIC)
    gap = np.abs(first.astype(float) - np.array(resized))
    assert gap.mean() < 4  # resized by another library; put together wrongly it is over 30
    for small in overview:
        assert small.shape == (56, 56, 3) or max(small.shape) <= 56


def test_pictures_put_together_wrongly_would_show(family):
    sample = Sample("same", "<image>What?", [picture(112, 112, 5)], "1")
    first, *_ = shown(family, sample)
    half = np.roll(first, first.shape[0] // 2, axis=0)
    assert np.abs(first.astype(float) - half).mean() > 30


def test_two_images_and_none(family):
    asked = questions()
    two = shown(family, asked["two"])
    alone = [
        png for image in asked["two"].images for png in shown(family, Sample(str(len(image)), "<image>?", [image], "1"))
    ]
    assert [x.tolist() for x in two] == [x.tolist() for x in alone]
    assert shown(family, asked["none"]) == []


def test_the_perturbed_view_is_black_where_it_differs(family):
    sample = questions()["two"]
    prompt = family.policy.encoder.encode(sample)
    view = perturbed_prompt(family.config, sample, prompt, family.policy, 1, 0)
    before, after = shown(family, sample), shown(family, sample, view)
    assert [x.shape for x in before] == [x.shape for x in after]
    changed = np.concatenate([(x != y).any(-1).ravel() for x, y in zip(before, after, strict=True)])
    black = np.concatenate([(y == 0).all(-1).ravel() for y in after])
    assert 0.3 < changed.mean() < 0.7
    assert (black | ~changed).all()


def test_looks_of_every_family(family, write_prepared, tmp_path):
    asked = list(questions().values())
    table = SampleTable(write_prepared(tmp_path / "prepared", asked) / "train.parquet")
    sampling = Sampling(1.0, 1.0, 0, 6, 2, seed=0)
    made = HuggingFaceEngine(family.policy).generate(asked, [(1, i) for i in range(4)], sampling)
    marks = [Graded("", "correct", 1.0), Graded("", "wrong", 0.0)]
    groups = [group_row(s, i, g, marks, step=1) for i, (s, g) in enumerate(zip(asked, made, strict=True))]
    score(family.config, 1, groups, table, family.policy, tmp_path, Silent())
    looks = read_rows(tmp_path / LOOKS, Look)
    for look, group in zip(looks, groups, strict=True):
        assert ["".join(tokens) for tokens in look.tokens] == group.response
        assert len(look.images) == len(look.perturbed_images[0])
        for png, other in zip(look.images, look.perturbed_images[0], strict=True):
            assert pixels(png).shape == pixels(other).shape
            assert not np.array_equal(pixels(png), pixels(other))
        for p, q in zip(look.logp, look.logp_perturbed, strict=True):
            assert (np.abs(np.subtract(p, q)).max() < 1e-5) == (look.sample_id == "none")
