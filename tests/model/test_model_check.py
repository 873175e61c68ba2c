"""Whether a model is computed right: what the check finds, refuses, remembers and says."""

import json
import re
from pathlib import Path

import pytest
import torch
from command_line import SMALL, given, vppo
from families import questions, write_folder

from pipelines.errors import UserError
from pipelines.model import check as model_check
from pipelines.model.load import load_policy
from pipelines.model.sampling import Sampling
from pipelines.rollout.hf import HuggingFaceEngine


@pytest.fixture
def memory(tmp_path, monkeypatch):
    """An empty cache folder, and where the outcomes are in it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vppo" / "models"


def outcomes(memory):
    return [json.loads(file.read_text()) for file in sorted(memory.glob("*.json"))]


def test_the_shipped_model_is_measured_once_whatever_its_weights(configure, memory, tmp_path, monkeypatch):
    policy = load_policy(configure())
    [found] = outcomes(memory)
    assert not policy.plain
    assert not found["plain"]
    assert 0 < found["difference"] < 1e-5
    assert ["first use" in note for note in policy.notes] == [True]
    with torch.no_grad():
        for weight in policy.model.parameters():
            weight.mul_(1.01)
    policy.model.save_pretrained(tmp_path / "trained")
    policy.processor.save_pretrained(tmp_path / "trained")
    monkeypatch.setattr(model_check, "find_way", lambda policy: pytest.fail("measured again"))
    for place in (None, tmp_path / "trained"):
        assert load_policy(configure(), place).notes == []


@pytest.mark.parametrize("other", ["model.dtype=bfloat16", "model.attention=eager"])
def test_another_way_to_compute_is_measured_anew(configure, memory, other):
    load_policy(configure())
    load_policy(configure(other))
    assert len(outcomes(memory)) == 2


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"plain": true}', "\x00\xff", None])
def test_a_damaged_memory_is_made_again(configure, memory, content):
    load_policy(configure())
    [file] = memory.glob("*.json")
    good = file.read_text()
    changed = json.dumps(json.loads(good) | {"key": "other", "plain": True})
    file.write_text(changed if content is None else content, encoding="latin-1")
    assert not load_policy(configure()).plain
    assert file.read_text() == good


def test_a_folder_that_cannot_be_written_is_no_reason_to_stop(configure, memory):
    memory.parent.mkdir(parents=True)
    memory.write_text("a file is no folder, for root either")
    assert not load_policy(configure()).plain


def test_what_is_wrong_in_both_ways_is_refused(fresh_policy, tiny_config):
    # A head with a bias: the model's own forward adds it, and no way of ours does.
    policy = fresh_policy(tiny_config)
    head = policy.model.lm_head
    biased = torch.nn.Linear(*head.weight.T.shape)
    biased.weight = head.weight
    with torch.no_grad():
        biased.bias.copy_(torch.linspace(-1, 1, len(head.weight)))
    policy.model.lm_head = biased
    with pytest.raises(UserError) as raised:
        model_check.find_way(policy)
    for words in ("is not computed right", "the fast way is", "the plain way is", "nats off"):
        assert words in str(raised.value)
    assert policy.dtype == "float32"


def test_a_model_that_does_not_see_the_picture_is_refused(fresh_policy, tiny_config):
    policy = fresh_policy(tiny_config)
    policy.model.config.image_token_id = 50  # not the one that the processor writes
    with pytest.raises(UserError, match=r"does not look at the picture|own forward fails on a pic"):
        model_check.find_way(policy)


def test_a_model_whose_own_forward_fails_is_refused(fresh_policy, tiny_config):
    policy = fresh_policy(tiny_config)
    policy.model.model.visual.patch_embed.proj = torch.nn.Linear(3, 5)
    with pytest.raises(UserError, match="own forward fails on a picture"):
        model_check.find_way(policy)


def test_the_limit_is_above_rounding_and_below_what_matters(fresh_policy, tiny_config, monkeypatch):
    # The same weights with a mask that lets answers see each other: far beyond the limit.
    policy = fresh_policy(tiny_config)
    right = model_check.find_way(policy)
    assert right.difference < 1e-5
    from pipelines.model import shared_prefix

    layout = shared_prefix.layout

    def leaky(prompts, responses):
        made = layout(prompts, responses)
        for part in made.responses:
            part.seen_CRK[:] = True
        return made

    monkeypatch.setattr(shared_prefix, "layout", leaky)
    wrong = model_check.find_way(policy)
    assert wrong.plain
    assert float(re.search(r"is ([\d.e-]+) nats off", wrong.reason)[1]) > 1e-2


@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava"])
def test_both_ways_sample_the_same_responses(configure, tmp_path, name):
    policy = load_policy(configure(f"model.path={write_folder(name, tmp_path)}"))
    asked = list(questions().values())
    for sampling in (Sampling(1.0, 1.0, 0, 12, 3, seed=0), Sampling(0.7, 0.9, 20, 12, 2, seed=1, first=1)):
        found = []
        for plain in (False, True):
            policy.take(plain=plain)
            names = [(1, i) for i in range(len(asked))]
            found.append(HuggingFaceEngine(policy).generate(asked, names, sampling))
        for one, other in zip(*found, strict=True):
            assert [r.ids for r in one] == [r.ids for r in other]
            for a, b in zip(one, other, strict=True):
                assert a.logp == pytest.approx(b.logp, abs=1e-4)


def test_the_plain_way_leaves_the_models_own_generation_settings_alone(configure, tmp_path):
    policy = load_policy(configure(f"model.path={write_folder('gemma3', tmp_path)}"))
    sampling, asked = Sampling(1.0, 1.0, 0, 12, 3, seed=0), [questions()["one"]]
    before = HuggingFaceEngine(policy).generate(asked, [(1, 0)], sampling)
    own = policy.model.generation_config
    own.repetition_penalty, own.no_repeat_ngram_size, own.top_k = 1.9, 1, 1
    assert HuggingFaceEngine(policy).generate(asked, [(1, 0)], sampling) == before
    assert policy.model.generation_config is own
    assert own.repetition_penalty == 1.9


def test_a_run_of_a_plain_family_trains_evaluates_and_says_so(tmp_path):
    folder = write_folder("gemma3", tmp_path / "model")
    settings = given(
        *SMALL,
        f"model.path={folder}",
        "run.steps=1",
        "checkpoint.every=1",
        "rollout.dynamic_sampling=false",
        "rollout.max_new_tokens=8",
    )
    command = vppo("train", "--run", "r", *settings, runs=tmp_path / "runs").succeeded()
    said = command.out + command.err
    assert said.count("plain way") == 1
    assert "window of 32 tokens" in said
    [scores] = Path(tmp_path / "runs").glob("r/steps/0001/score-*/manifest.json")
    assert json.loads(scores.read_text())["metrics"]["mismatch_max"] < 1e-4
    assert list(Path(tmp_path / "runs").glob("r/eval/0001/*/results.json"))
