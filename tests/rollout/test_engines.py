"""The rollout engine on the tiny model: batching, recorded log-probs, what is never sampled."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from pipelines.disk.records import Sample
from pipelines.errors import UserError
from pipelines.model import determinism
from pipelines.model.divergence import token_logp
from pipelines.model.policy import Row
from pipelines.model.sampling import Sampling
from pipelines.rollout.hf import HuggingFaceEngine
from pipelines.rollout.vllm import engine as vllm_engine

PLAIN = Sampling(temperature=1.0, top_p=1.0, top_k=0, max_new_tokens=48, samples=3, seed=0)
NAMES = [(1, position) for position in range(4)]


def ids(groups):
    return [[response.ids for response in group] for group in groups]


@pytest.fixture(scope="module")
def together(policy, samples):
    """Three responses to each of four prompts, generated in one batch."""
    return HuggingFaceEngine(policy).generate(samples[:4], NAMES, PLAIN)


def test_the_samples_do_not_depend_on_the_batch(policy, samples, together):
    engine = HuggingFaceEngine(policy)
    lengths = {len(policy.encoder.encode(sample)["input_ids"]) for sample in samples[:4]}
    assert len(lengths) > 1  # so that together they are padded, and alone they are not
    alone = [engine.generate([sample], [name], PLAIN)[0] for sample, name in zip(samples, NAMES, strict=False)]
    assert ids(alone) == ids(together)
    reverse = engine.generate(samples[3::-1], NAMES[::-1], PLAIN)
    assert ids(reverse[::-1]) == ids(together)


def test_more_samples_of_a_prompt_begin_with_the_same(policy, samples, together):
    two = dataclasses.replace(PLAIN, samples=2)
    fewer = HuggingFaceEngine(policy).generate(samples[:4], NAMES, two)
    assert ids(fewer) == [group[:2] for group in ids(together)]


def test_the_name_and_the_seed_decide(policy, samples, together):
    engine = HuggingFaceEngine(policy)
    other_step = engine.generate(samples[:4], [(2, p) for p in range(4)], PLAIN)
    other_seed = engine.generate(samples[:4], NAMES, dataclasses.replace(PLAIN, seed=1))
    assert ids(other_step) != ids(together)
    assert ids(other_seed) != ids(together)


@pytest.mark.parametrize("changes", [{}, {"temperature": 1.7}, {"top_p": 0.8}, {"top_k": 2}], ids=str)
def test_recorded_log_probs_are_the_policys(policy, samples, changes):
    # Before truncation: top-k and top-p change what is sampled, not what is recorded.
    sampling = dataclasses.replace(PLAIN, **changes)
    groups = HuggingFaceEngine(policy).generate(samples[:4], NAMES, sampling)
    rows = [
        Row(policy.encoder.encode(sample), group_ids) for sample, group_ids in zip(samples, ids(groups), strict=False)
    ]
    token_N = torch.tensor([token for row in rows for r in row.responses for token in r])
    with torch.no_grad():
        logp_N, _ = token_logp(
            policy.hidden_states(rows),
            policy.head_weight,
            token_N,
            temperature=sampling.temperature,
            suppressed_ids=policy.suppressed_ids,
        )
    recorded = torch.tensor([x for group in groups for response in group for x in response.logp])
    torch.testing.assert_close(recorded, logp_N, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "setting", [{"repetition_penalty": 1.5}, {"no_repeat_ngram_size": 2}, {"min_new_tokens": 40}, {"top_k": 1}], ids=str
)
def test_the_models_own_generation_settings_have_no_say(fresh_policy, tiny_config, samples, together, setting):
    # Qwen2.5-VL comes with a repetition penalty of 1.05: what is sampled would not be the policy.
    policy = fresh_policy(tiny_config)
    policy.model.generation_config.update(**setting)
    assert HuggingFaceEngine(policy).generate(samples[:4], NAMES, PLAIN) == together
    for name, value in setting.items():  # they are kept for the checkpoint all the same
        assert getattr(policy.model.generation_config, name) == value


def test_special_and_image_tokens_are_never_sampled(random_policy, samples):
    # Near temperature 5 random weights give all 412 ids about the same probability: 32 x 48 draws
    # would hit the 6 forbidden ones some 20 times. A sampled image token crashes the next forward.
    forbidden = set(random_policy.suppressed_ids.tolist())
    tokenizer = random_policy.tokenizer
    assert tokenizer.convert_tokens_to_ids("<|image_pad|>") in forbidden
    assert set(tokenizer.all_special_ids) - {tokenizer.eos_token_id} <= forbidden
    hot = dataclasses.replace(PLAIN, temperature=5.0, samples=8)
    groups = HuggingFaceEngine(random_policy).generate(samples[:4], NAMES, hot)
    sampled = {token for group in ids(groups) for response in group for token in response}
    assert len(sampled) > 200
    assert not sampled & forbidden


def test_a_response_ends_with_its_end_token_unless_truncated(policy, samples, together):
    end = policy.tokenizer.eos_token_id
    for group in together:
        for response in group:
            assert not response.truncated
            assert response.ids.index(end) == len(response.ids) - 1  # one, and it is the last
            assert len(response.logp) == len(response.ids)
            assert "<|im_end|>" not in response.text
            assert response.text.endswith("}")


def test_the_limit_cuts_and_marks(policy, samples, together):
    short = dataclasses.replace(PLAIN, max_new_tokens=5)
    cut = HuggingFaceEngine(policy).generate(samples[:4], NAMES, short)
    assert ids(cut) == [[response[:5] for response in group] for group in ids(together)]
    assert all(response.truncated for group in cut for response in group)


def test_a_response_that_ends_at_the_limit_is_not_truncated(policy, samples, together):
    length = len(together[0][0].ids)
    exact = dataclasses.replace(PLAIN, max_new_tokens=length, samples=1)
    [[response]] = HuggingFaceEngine(policy).generate(samples[:1], NAMES[:1], exact)
    assert response == dataclasses.replace(together[0][0], logp=response.logp)
    assert not response.truncated


def test_questions_with_and_without_images_share_a_batch(policy, samples, together):
    text = Sample("text", "What is 3 + 4?", [], "7")
    engine = HuggingFaceEngine(policy)
    alone = engine.generate([text], [(1, 9)], PLAIN)
    mixed = engine.generate([text, *samples[:2]], [(1, 9), *NAMES[:2]], PLAIN)
    assert ids(mixed) == ids(alone) + ids(together)[:2]


def test_two_images_in_one_question(policy, samples):
    both = dataclasses.replace(samples[0], id="both", problem="<image>Or <image>?", images=[samples[0].images[0]] * 2)
    engine = HuggingFaceEngine(policy)
    alone = engine.generate([both], [(1, 9)], PLAIN)
    mixed = engine.generate([samples[1], both], [NAMES[1], (1, 9)], PLAIN)
    assert ids(mixed)[1] == ids(alone)[0]


@pytest.fixture
def on_a_gpu(monkeypatch):
    """A policy on a GPU that nobody asks, and what an engine calls of vLLM's for it, in order."""
    calls = []

    def called(name):
        return lambda *_, **told: calls.append((name, *told.values(), torch.are_deterministic_algorithms_enabled()))

    llm = SimpleNamespace(
        sleep=called("sleep"),
        wake_up=called("wake"),
        collective_rpc=lambda name, kwargs: called(name)(),
        reset_prefix_cache=called("reset prefixes"),
        llm_engine=SimpleNamespace(reset_encoder_cache=called("reset images")),
    )
    monkeypatch.setattr(vllm_engine, "_start", lambda *_: called("start")() or llm)
    placement = SimpleNamespace(in_use=lambda model: iter(()))
    device = torch.device("cuda")
    policy = SimpleNamespace(device=device, config=None, model=None, placement=placement)
    return policy, calls


def test_vllm_works_outside_deterministic_mode(on_a_gpu):
    # Its kernels are its own, and CUDA graphs cannot be captured in that mode.
    policy, calls = on_a_gpu
    with determinism.strict(policy.device):
        vllm_engine.VLLMEngine(policy).sync(policy)
        assert torch.are_deterministic_algorithms_enabled()
    assert [call for call in calls if call[0] in ("start", "reload_weights")] == [
        ("start", False),
        ("reload_weights", False),
    ]


def test_weights_go_to_vllm_while_it_has_no_kv_cache(on_a_gpu):
    policy, calls = on_a_gpu
    engine = vllm_engine.VLLMEngine(policy)
    engine.sleep()
    engine.sync(policy)
    engine.sync(policy)  # which is awake
    loaded = [("reload_weights",), ("wake", ["kv_cache"]), ("reset prefixes",), ("reset images",)]
    assert [call[:-1] for call in calls] == [
        ("start",),
        ("sleep", 1),
        ("wake", ["weights"]),
        *loaded,
        *(step for step in loaded if step[0] != "wake"),
    ]


def test_more_ids_than_vllm_can_ban(policy, monkeypatch):
    many = SimpleNamespace(config=policy.config, device=torch.device("cuda"), suppressed_ids=torch.arange(1025))
    with pytest.raises(UserError, match=r"model.path tiny: has 1025 special and unused ids"):
        vllm_engine.check_banned(many)
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "0")
    vllm_engine.check_banned(many)
    monkeypatch.delenv("VLLM_USE_V2_MODEL_RUNNER")
    many.suppressed_ids = torch.arange(1024)
    vllm_engine.check_banned(many)


def test_a_variable_that_vllm_would_fail_on_is_told_at_once(configure, monkeypatch):
    monkeypatch.setenv("VLLM_DISTRIBUTED_USE_SPLIT_GROUP", "1")
    with pytest.raises(UserError, match="VLLM_DISTRIBUTED_USE_SPLIT_GROUP: 1"):
        vllm_engine.check(configure("rollout.engine=vllm"))


def test_a_kv_cache_that_would_cut_responses_is_an_error(configure):
    config = configure("data.max_prompt_tokens=100", "rollout.max_new_tokens=50")
    vllm_engine._check_room(config, positions=1024, room=150)
    vllm_engine._check_room(config, positions=120, room=120)  # the model's own limit
    with pytest.raises(UserError, match=r"rollout.memory_fraction: 0.4: .* room for 149 tokens"):
        vllm_engine._check_room(config, positions=1024, room=149)
