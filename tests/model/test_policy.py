"""The policy: packed rows equal plain ones in value and gradient, and the mask by hand."""

import pytest
import torch

from pipelines.config.schema import ModelConfig
from pipelines.disk.records import Sample
from pipelines.errors import UserError
from pipelines.model.divergence import token_logp
from pipelines.model.load import load_policy
from pipelines.model.policy import Row, _block_mask

# Ids above the special ones; lengths 5, 1 and 3 behind one prompt, 2 and 4 behind the other.
RESPONSES = [[[20, 21, 22, 23, 2], [2], [30, 31, 2]], [[40, 2], [41, 42, 43, 44]]]


@pytest.fixture(scope="module")
def prompts(policy, samples):
    chosen = [policy.encoder.encode(samples[i]) for i in (0, 3)]
    assert len(chosen[0]["input_ids"]) != len(chosen[1]["input_ids"])
    return chosen


def packed(prompts):
    return [Row(prompt, group) for prompt, group in zip(prompts, RESPONSES, strict=True)]


def plain(prompts):
    return [Row(prompt, [response]) for prompt, group in zip(prompts, RESPONSES, strict=True) for response in group]


def logp(policy, rows):
    token_N = torch.tensor([token for row in rows for r in row.responses for token in r])
    return token_logp(policy.hidden_states(rows), policy.head_weight, token_N, suppressed_ids=policy.suppressed_ids)[0]


def one_by_one(policy, prompts):
    """Log-probs from the model as transformers runs it: each response alone, no padding, no mask."""
    values = []
    for prompt, group in zip(prompts, RESPONSES, strict=True):
        inputs = {k: v for k, v in prompt.items() if k in ("pixel_values", "image_grid_thw")}
        for response in group:
            ids_L = torch.cat([prompt["input_ids"], torch.tensor(response)])
            types_L = torch.cat([prompt["mm_token_type_ids"], torch.zeros(len(response)).int()])
            logits = policy.model(input_ids=ids_L[None], mm_token_type_ids=types_L[None], **inputs).logits[
                0, -len(response) - 1 : -1
            ]
            logits[:, policy.suppressed_ids] = -torch.inf
            values.append(logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None])[:, 0])
    return torch.cat(values)


def test_packed_and_plain_rows_give_what_the_model_gives(policy, prompts):
    with torch.no_grad():
        expected = one_by_one(policy, prompts)
        torch.testing.assert_close(logp(policy, plain(prompts)), expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(logp(policy, packed(prompts)), expected, atol=1e-5, rtol=0)


def test_packed_and_plain_rows_give_the_same_gradients(fresh_policy, tiny_config, prompts):
    policy = fresh_policy(tiny_config)
    weights_N = torch.linspace(-1, 1, 15)  # 5 + 1 + 3 + 2 + 4 tokens, each with its own say

    def gradients(rows):
        policy.model.zero_grad()
        (logp(policy, rows) * weights_N).sum().backward()
        named = policy.model.named_parameters()
        return {name: p.grad.clone() for name, p in named if p.grad is not None}

    one, other = gradients(packed(prompts)), gradients(plain(prompts))
    assert one.keys() == other.keys()
    assert any("visual" in name for name in one)
    size = max(gradient.abs().max() for gradient in other.values())
    for name in one:
        gap = (one[name] - other[name]).abs().max()
        assert gap <= 1e-4 * other[name].abs().max() + 1e-7 * size, name


def test_a_response_does_not_see_its_siblings(policy, prompts):
    with torch.no_grad():
        before = logp(policy, [Row(prompts[0], [[20, 21, 2], [30, 31, 32, 2], [40, 2]])])
        after = logp(policy, [Row(prompts[0], [[20, 21, 2], [50, 51, 52, 2], [40, 2]])])
    torch.testing.assert_close(before[:3], after[:3], atol=1e-6, rtol=0)
    torch.testing.assert_close(before[7:], after[7:], atol=1e-6, rtol=0)
    assert (before[3:7] - after[3:7]).abs().max() > 0.1


def test_a_row_does_not_see_the_rows_beside_it(policy, prompts):
    rows = packed(prompts)
    with torch.no_grad():
        both = logp(policy, rows)
        alone = torch.cat([logp(policy, [row]) for row in rows])
    torch.testing.assert_close(both, alone, atol=1e-5, rtol=0)


def test_every_part_of_the_input_counts(policy, prompts):
    # The prompt and the image are read: with another one the log-probs differ.
    other = prompts[0] | {"pixel_values": -prompts[0]["pixel_values"]}
    with torch.no_grad():
        gap = logp(policy, [Row(prompts[0], [[20, 2]])]) - logp(policy, [Row(other, [[20, 2]])])
    assert gap.abs().max() > 1e-3


def test_the_block_mask_by_hand():
    # A prompt of two tokens, responses of two and one fed tokens, one token of padding.
    # Each sees the prompt and itself up to where it stands; padding sees itself only.
    segment_BL = torch.tensor([[0, 0, 1, 1, 2, -1]])
    expected = torch.tensor(
        [
            [1, 0, 0, 0, 0, 0],
            [1, 1, 0, 0, 0, 0],
            [1, 1, 1, 0, 0, 0],
            [1, 1, 1, 1, 0, 0],
            [1, 1, 0, 0, 1, 0],
            [0, 0, 0, 0, 0, 1],
        ],
        dtype=torch.bool,
    )
    assert torch.equal(_block_mask(segment_BL), expected[None])


def test_positions_of_a_packed_row(policy, prompts):
    # Every response starts at the position after the prompt's last, whatever stands before it.
    row = Row(prompts[0], [[20, 21, 22, 2], [30, 31, 2]])
    batch = policy._pack([row])
    length = len(prompts[0]["input_ids"])
    after = int(prompts[0]["position_ids"].max()) + 1
    assert batch["position_ids"].shape == (3, 1, length + 5)  # the last tokens are not fed
    for axis in range(3):  # time, down and across move together in text
        fed = batch["position_ids"][axis, 0, length:].tolist()
        assert fed == [after, after + 1, after + 2, after, after + 1]
    # The prompt's last token predicts the first token of both.
    assert batch["where"][1].tolist() == [
        length - 1,
        length,
        length + 1,
        length + 2,
        length - 1,
        length + 3,
        length + 4,
    ]


def test_rows_are_packed_unless_told_otherwise(policy, fresh_policy, configure, prompts):
    assert len(policy.rows(prompts[0], RESPONSES[0])) == 1
    other = fresh_policy(configure("model.shared_prefix=false"))
    assert [row.responses for row in other.rows(prompts[0], RESPONSES[0])] == [[response] for response in RESPONSES[0]]


def test_a_question_without_an_image(policy, prompts):
    text = policy.encoder.encode(Sample("text", "What is 3 + 4?", [], "7"))
    with torch.no_grad():
        alone = logp(policy, [Row(text, [[20, 2]])])
        mixed = logp(policy, [Row(text, [[20, 2]]), Row(prompts[0], [[20, 2]])])
        other = logp(policy, [Row(prompts[0], [[20, 2]])])
    torch.testing.assert_close(mixed, torch.cat([alone, other]), atol=1e-5, rtol=0)


def test_bfloat16_is_close_and_keeps_float32_weights(fresh_policy, configure, prompts, policy):
    half = fresh_policy(configure("model.dtype=bfloat16"))
    with torch.no_grad():
        gap = logp(half, packed(prompts)) - logp(policy, packed(prompts))
    assert 0 < gap.abs().max() < 0.5
    assert all(parameter.dtype == torch.float32 for parameter in half.model.parameters())


def test_eager_attention_gives_the_same(configure, policy, prompts):
    eager = load_policy(configure("model.attention=eager"))
    with torch.no_grad():
        expected = logp(policy, packed(prompts))
        torch.testing.assert_close(logp(eager, packed(prompts)), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("damage", ["weights", "config", "not a model", "missing"])
def test_a_model_that_cannot_be_loaded(tmp_path, configure, policy, damage):
    folder = tmp_path / "model"
    if damage != "missing":
        policy.model.save_pretrained(folder)
        policy.processor.save_pretrained(folder)
    if damage == "weights":
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == "config":
        (folder / "config.json").write_text("{")
    elif damage == "not a model":
        for path in folder.iterdir():
            path.unlink()
    config = configure().model_copy(update={"model": ModelConfig(path=str(folder))})
    with pytest.raises(UserError, match=f"model.path {folder}"):
        load_policy(config)


# --- similarity with the image ----------------------------------------------------------------------


def naive_similarities(policy, rows):
    """(of the last states, the mean over layers) as two lists: each response by itself, all layers' states kept."""
    last, layers = [], []
    for row in rows:
        prompt_L = row.prompt["input_ids"]
        inputs = {k: v for k, v in row.prompt.items() if k in ("pixel_values", "image_grid_thw")}
        for response in row.responses:
            ids_L = torch.cat([prompt_L, torch.tensor(response)])
            types_L = (ids_L == policy.model.config.image_token_id).int()
            output = policy.model(
                input_ids=ids_L[None], mm_token_type_ids=types_L[None], **inputs, output_hidden_states=True
            )
            for t in range(len(response)):
                cosines = []
                for states_BLD in output.hidden_states[1:]:  # the first are the embeddings
                    images = [state for state, kind in zip(states_BLD[0], types_L, strict=True) if kind]
                    if not images:
                        cosines.append(0.0)
                        continue
                    mean = sum(images) / len(images)
                    said = states_BLD[0, len(prompt_L) - 1 + t]
                    cosines.append(((said @ mean) / (said.norm() * mean.norm())).item())
                last.append(cosines[-1])
                layers.append(sum(cosines) / len(cosines))
    return torch.tensor(last), torch.tensor(layers)


@pytest.fixture(scope="module")
def asked(policy, samples, prompts):
    """Rows about one image, about none, about two."""
    blind = policy.encoder.encode(Sample("text", "What is 3 + 4?", [], "7"))
    both = samples[1].images + samples[2].images
    two = policy.encoder.encode(Sample("two", "<image>and <image>: which?", both, "7"))
    return [Row(prompts[0], RESPONSES[0]), Row(blind, [[20, 2], [21]]), Row(two, RESPONSES[1])]


@torch.no_grad()
def test_similarities_are_those_of_each_response_alone(policy, fresh_policy, configure, asked):
    last, layers = naive_similarities(policy, asked)
    assert last[:9].abs().min() > 1e-3
    assert (last - layers).abs().max() > 1e-2
    plain = fresh_policy(configure())
    plain.take(plain=True)
    for way in (policy, fresh_policy(configure("model.attention=eager")), plain):
        hidden_ND, image_N, layers_N = way.with_similarities(asked)
        assert torch.equal(hidden_ND, way.hidden_states(asked))
        torch.testing.assert_close(image_N, last, atol=1e-5, rtol=0)
        torch.testing.assert_close(layers_N, layers, atol=1e-5, rtol=0)
        assert image_N[9:12].tolist() == layers_N[9:12].tolist() == [0.0] * 3  # without an image


@torch.no_grad()
def test_similarities_do_not_depend_on_the_rows_beside_or_a_shared_prefix(policy, asked):
    together = policy.with_similarities(asked)[1:]
    alone = [policy.with_similarities([Row(row.prompt, [r])])[1:] for row in asked for r in row.responses]
    for whole_N, *parts in zip(together, *alone, strict=True):
        torch.testing.assert_close(torch.cat(parts), whole_N, atol=1e-5, rtol=0)


@torch.no_grad()
def test_similarities_in_bfloat16_are_close(policy, fresh_policy, configure, asked):
    half = fresh_policy(configure("model.dtype=bfloat16"))
    for exact_N, rounded_N in zip(policy.with_similarities(asked)[1:], half.with_similarities(asked)[1:], strict=True):
        assert rounded_N.dtype == torch.float32
        assert 0 < (exact_N - rounded_N).abs().mean() < 0.01


def test_no_hook_stays(fresh_policy, tiny_config, asked, monkeypatch):
    policy = fresh_policy(tiny_config)

    def hooks():
        return sum(len(module._forward_hooks) for module in policy.model.modules())

    before = hooks()
    policy.with_similarities(asked)
    assert hooks() == before
    monkeypatch.setattr(policy.model.get_decoder().norm, "forward", lambda x: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        policy.with_similarities(asked)
    assert hooks() == before
