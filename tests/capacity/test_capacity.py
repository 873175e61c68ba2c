"""What a run takes: published sizes, numbers derived by hand, and what torch itself counts."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from alive import Alive
from applied import gradients
from command_line import vppo
from families import FAMILIES, VISION_TOWERS
from torch.utils.flop_counter import FlopCounterMode

from pipelines.capacity import counts as model_counts
from pipelines.capacity import work as capacity
from pipelines.capacity.fitting import changed, problems
from pipelines.capacity.gpus import GPUS, find_gpu
from pipelines.capacity.lookup import KNOWN, find_shape, from_config
from pipelines.capacity.shapes import Shape, Vision
from pipelines.capacity.work import GIB, Lengths, Run, group_flops, layer_activations
from pipelines.config import settings
from pipelines.config.schema import Config, ModelConfig
from pipelines.disk.records import Rollout, Scored, write_rows
from pipelines.errors import UserError
from pipelines.model import divergence, shared_prefix
from pipelines.model.load import load_policy
from pipelines.model.policy import Row
from pipelines.model.prompts import CACHED_BYTES
from pipelines.update.torch_engine import TorchTrainer

SEVEN, THIRTY_TWO = KNOWN["Qwen/Qwen2.5-VL-7B-Instruct"], KNOWN["Qwen/Qwen2.5-VL-32B-Instruct"]


def planned(name: str, *overrides: str, gpu: str = "H100", gpus: int = 8) -> Run:
    config = settings.load(Path(f"{name}.yaml"), overrides)
    return Run(config, find_shape(config.model), GPUS[gpu], gpus)


# -- weights ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("Qwen/Qwen2.5-VL-3B-Instruct", 3_754_622_976),
        ("Qwen/Qwen2.5-VL-7B-Instruct", 8_292_166_656),
        ("Qwen/Qwen2.5-VL-32B-Instruct", 33_452_718_336),
        ("Qwen/Qwen3-VL-8B-Instruct", 8_767_123_696),
    ],
)
def test_known_models_have_their_published_sizes(name, published):
    assert KNOWN[name].parameters == published
    assert find_shape(ModelConfig(path=name)) == KNOWN[name]


def test_the_tiny_model_is_counted_exactly(policy):
    shape = find_shape(ModelConfig())
    assert shape.parameters == sum(p.numel() for p in policy.model.parameters())
    tower = policy.model.base_model.visual
    assert shape.vision.parameters == sum(p.numel() for p in tower.parameters())


def test_a_qwen3_model_is_counted_exactly():
    from transformers import AutoModelForImageTextToText, Qwen3VLConfig

    config = Qwen3VLConfig(
        text_config={
            "hidden_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "head_dim": 32,
            "num_key_value_heads": 2,
            "intermediate_size": 96,
            "vocab_size": 500,
            "tie_word_embeddings": False,
        },
        vision_config={
            "depth": 3,
            "hidden_size": 32,
            "intermediate_size": 80,
            "num_heads": 2,
            "out_hidden_size": 64,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1],
        },
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    shape = from_config(config.to_dict(), "here")
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    assert shape.vision.parameters == sum(p.numel() for p in model.base_model.visual.parameters())


def test_adapters_are_counted_exactly(fresh_policy, configure):
    config = configure("update.lora_rank=4")
    trainer = TorchTrainer(fresh_policy(config), config)
    run = Run(config, find_shape(config.model), GPUS["H100"], 1)
    assert run.trained == sum(p.numel() for _, p in trainer.named)
    assert run.state()["gradients"] == 4 * run.trained


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_counted_exactly(family):
    from transformers import AutoModelForImageTextToText

    config, _ = FAMILIES[family]()
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    shape = from_config(config.to_dict(), "here")
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    towers = [m for name, m in model.base_model.named_children() if name in VISION_TOWERS]
    assert shape.vision.parameters >= sum(p.numel() for m in towers for p in m.parameters()) > 0
    assert changed(Run(Config(), shape, GPUS["H100"], 1), {"update.freeze_vision": True}).trained == sum(
        p.numel() for p in {*model.get_decoder().parameters(), *model.get_output_embeddings().parameters()}
    )
    assert all(m.total > 0 for m in Run(Config(), shape, GPUS["H100"], 1).memory().values())


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_counting_a_model_gives_what_is_written_out_for_it(family):
    config = FAMILIES[family]()[0].to_dict()
    written, counted = from_config(config, "here"), model_counts.count(config, "here")
    assert counted.parameters == written.parameters
    assert counted.vision.parameters == written.vision.parameters
    assert counted.layer_matrices == written.layer_matrices
    assert counted.lora_parameters(4) == written.lora_parameters(4)
    names = ("layers", "hidden", "heads", "kv_heads", "head_dim", "intermediate", "vocab", "tied")
    assert all(getattr(counted, n) == getattr(written, n) for n in names)
    assert counted.vision.merge == written.vision.merge


def test_of_a_mixture_a_token_goes_through_the_active_experts():
    config = FAMILIES["qwen3_vl_moe"]()[0].to_dict()
    two, four = (
        from_config(config | {"text_config": config["text_config"] | {"num_experts_per_tok": n}}, "here")
        for n in (2, 4)
    )
    # Three matrices of 64 x 48 for each of two more experts.
    assert four.layer_matrices - two.layer_matrices == 2 * 3 * 64 * 48
    assert four.parameters == two.parameters


def test_models_that_cannot_be_counted():
    with pytest.raises(UserError, match="models of type bert cannot be counted"):
        from_config({"model_type": "bert"}, "here")
    with pytest.raises(UserError, match="models of type newest cannot be counted"):
        from_config({"model_type": "newest"}, "here")
    with pytest.raises(UserError, match="no hidden_size"):
        from_config({"model_type": "qwen2_5_vl", "vision_config": {}}, "here")
    with pytest.raises(UserError, match="the hub does not give"):
        find_shape(ModelConfig(path="nobody/nothing"))


# -- operations ------------------------------------------------------------------------------------


def test_operations_of_a_forward_pass_by_hand():
    # One layer, width 4, two heads of 2, one of keys, gate 6, vocabulary 10.
    vision = Vision(1, 4, 6, 4, patch=2, merge=1, temporal=1, full_layers=1, window=4)
    shape = Shape(1, 4, 2, 1, 2, 6, 10, True, vision)
    # q 16, k 8, v 8, o 16, three matrices of 24: 120 weights.
    assert shape.layer_matrices == 120
    # A prompt of two tokens, two responses of two, of each of which one is fed.
    found = group_flops(shape, Lengths(2, 0, 2), 2, shared=True)
    # Two a weight and token, 4 of them; the prompt's pairs, half of 4, and 3 of each response; four a
    # pair and 4 channels; two a weight of the head and predicted token.
    assert (found.layers, found.attention, found.head) == (960, 4 * 4 * (2 + 6), 2 * 40 * 4)
    found = group_flops(shape, Lengths(2, 0, 2), 2, shared=False)
    assert (found.layers, found.attention, found.head) == (1440, 4 * 4 * (4.5 + 4.5), 2 * 40 * 4)
    # Two patches: embedding 12 * 4, a layer 16 * 4 / 4 * 4 + 3 * 24, a projector 4 * (4 + 4).
    assert vision.layer_matrices == 64 + 72
    assert capacity.vision_flops(vision, 2) == 2 * (48 + 136) * 2 + 2 * 32 * 2 + 4 * 4 * 2 * 2


@pytest.mark.parametrize("packed", [True, False])
def test_operations_of_the_tiny_model_are_those_torch_counts(configure, samples, packed, monkeypatch):
    policy = load_policy(configure())
    prompt = policy.encoder.encode(samples[0])
    length, answers = len(prompt["input_ids"]), [[10] * 40 for _ in range(4)]
    images = int((prompt["input_ids"] == policy.model.config.image_token_id).sum())
    rows = [Row(prompt, answers)] if packed else [Row(prompt, [a]) for a in answers]
    policy.with_positions(prompt)
    attended, plain = [], shared_prefix.scaled_dot_product_attention

    def counted(query, key, value, **settings):
        skipped = 2 if settings.get("is_causal") else 1
        attended.append(4 * query.numel() * key.shape[-2] / skipped)
        return plain(query, key, value, **settings)

    monkeypatch.setattr(shared_prefix, "scaled_dot_product_attention", counted)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        hidden_ND = policy.hidden_states(rows)
        hidden_ND @ policy.head_weight.T
    shape = find_shape(ModelConfig())
    expected = group_flops(shape, Lengths(length, images, 40), 4, packed)
    assert sum(attended) == expected.attention
    # On a CPU torch counts nothing for attention, the vision tower's included.
    unseen = 4 * shape.vision.hidden * (4 * images) ** 2 * (1 if packed else 4)
    matrices = expected.total - expected.attention - unseen
    assert counter.get_total_flops() == pytest.approx(matrices, rel=0.001)


def test_rows_are_chosen_by_the_same_costs(policy):
    found, told = policy.costs, capacity.costs(find_shape(ModelConfig()), 64)
    assert (found.token, found.pair) == (told.token, told.pair)
    numbers = 4 * 64 * 3 * 2 * 14**2  # of an image of 64 tokens: 4 patches each, two frames
    assert found.image * numbers == pytest.approx(told.image, rel=0.25)  # but for its attention


def test_an_update_is_three_forwards_and_one_more_with_checkpointing():
    run = planned("qwen2_5_vl_7b", "update.gradient_checkpointing=false")
    once, score = run.flops()["update"], run.flops()["score"]
    # Scoring is two forwards; the head is computed once more in the backward pass.
    assert once.layers == 1.5 * score.layers
    assert once.head == 2 * score.head
    again = planned("qwen2_5_vl_7b").flops()["update"]
    assert (again.layers, again.head) == (2 * score.layers, 2 * score.head)
    frozen = planned("qwen2_5_vl_7b", "update.freeze_vision=true").flops()["update"]
    assert frozen.vision == score.vision / 2
    adapted = planned("qwen2_5_vl_7b", "update.lora_rank=64").flops()["update"]
    assert (adapted.layers, adapted.vision) == (1.5 * score.layers, score.vision / 2)
    one_view = planned("qwen2_5_vl_7b", "score.estimator=entropy").flops()["score"]
    assert 2 * one_view.total == score.total


def test_long_responses_are_cheaper_in_rows_of_their_own():
    def work(name: str, shared: str) -> float:
        return planned(name, f"model.shared_prefix={shared}").flops()["score"].total

    for name, cheaper in (("qwen2_5_vl_7b", "true"), ("qwen3_vl_8b", "true")):
        assert work(name, "auto") == work(name, cheaper) <= work(name, "false")
    assert planned("qwen2_5_vl_7b").packed


# -- memory ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "weights", "optimizer", "gradients"),
    [(1, 2, 12 / 8, 4), (2, 2, 12 / 8, 4 / 8), (3, 2 / 8, 12 / 8, 4 / 8)],
)
def test_zero_divides_bytes_per_weight(stage, weights, optimizer, gradients):
    state = planned("qwen2_5_vl_7b", f"update.zero_stage={stage}").state()
    assert state["weights"] == weights * SEVEN.parameters
    assert state["optimizer"] == optimizer * SEVEN.parameters
    assert state["gradients"] == gradients * SEVEN.parameters + capacity.BUCKETS


def test_float32_takes_16_bytes_a_weight_and_offload_moves_the_optimizer():
    plain = ("model.dtype=float32", "update.engine=torch")
    run = planned("qwen2_5_vl_7b", *plain)
    assert (run.world, sum(run.state().values())) == (1, 16 * SEVEN.parameters)
    away = planned("qwen2_5_vl_7b", "update.offload=true")
    assert away.state()["optimizer"] == 0
    # A rank's masters and gradients, 4.15 GB each, are in pinned blocks of 4 GiB; moments take 8.29 GB.
    each = 2 * 4 * GIB + 8 * SEVEN.parameters / 8
    assert away.host(8)["offloaded"] == 8 * each
    frozen = planned("qwen2_5_vl_7b", "update.freeze_vision=true").state()["optimizer"]
    assert frozen == 12 / 8 * (SEVEN.parameters - SEVEN.vision.parameters)


def test_the_machines_memory_of_the_7b(monkeypatch):
    # 33 GB of weights on rank 0; 8 x 31 GB asleep: 16.6 in blocks of powers of two.
    monkeypatch.setattr(capacity, "SLEEP_LEVEL", 1)
    found = planned("qwen2_5_vl_7b").host(8)
    assert found["weights"] == 4 * SEVEN.parameters
    # Qwen2.5-VL-7B: a layer's q, k, v 31.5 MiB -> 32, output 24.5 -> 32, gate and up 259 -> 512, down 129.5
    # -> 256; embedding and head 1.02 GiB -> 2 each; 1.3 GB of small ones by 20 MiB in blocks of 32.
    asleep = 28 * (32 + 32 + 512 + 256) / 1024 + 4
    assert found["vLLM asleep"] / 8 / GIB == pytest.approx(asleep + 2.0, abs=0.3)
    assert 265e9 < found["weights"] + found["vLLM asleep"] < 285e9
    assert found["prompts"] == 8 * CACHED_BYTES
    assert [capacity.pinned(n) for n in (4096, 4097)] == [4096, 8192]
    monkeypatch.setattr(capacity, "SLEEP_LEVEL", 2)
    assert planned("qwen2_5_vl_7b").host(8) == {n: b for n, b in found.items() if n != "vLLM asleep"}


def test_what_is_there_at_once():
    """pipelines' own order: 3B, bfloat16 over float32 weights, by hand."""
    shape = KNOWN["Qwen/Qwen2.5-VL-3B-Instruct"]
    own = [
        "model.dtype=bfloat16",
        "update.gradient_checkpointing=true",
        "update.micro_batch_prompts=1",
        "rollout.max_new_tokens=512",
        "data.max_prompt_tokens=1440",
        "rollout.batch_prompts=4",
    ]
    run = Run(settings.load(None, own), shape, GPUS["H100"], 1)
    update, matrix = run.memory()["update"], 151936 * 2048
    # At the end of the forward pass: copies of all matrices but the tied head; each layer's input.
    assert update.weights + update.gradients + update.optimizer == 16 * shape.parameters
    assert update.copies == 2 * (shape.parameters - matrix)
    assert 2e9 < update.activations < 4e9
    assert (update.total - capacity.OVERHEAD) / 1e9 == pytest.approx(70, abs=2)
    # With adapters a frozen matrix is copied while it is used; without recomputation all of them wait.
    adapted = changed(run, {"update.lora_rank": 64})
    assert adapted.copies() == 2 * 2048 * 11008 + 2 * adapted.trained
    assert adapted.copies(saved=True) == 2 * (shape.language_parameters + adapted.trained - matrix)
    # A reference model is one more, in float32.
    beside = changed(run, {"update.kl_coefficient": 0.1}).memory()["score"]
    assert beside.weights == 8 * shape.parameters
    # A prompt's keys and values are there once, its responses' for each: 4 (1440 + 8 x 512) tokens.
    assert run.memory()["rollout"].kv_cache == 4 * (1440 + 8 * 512) * 2 * 36 * 2 * 128 * 2


def test_bytes_of_a_checkpoint_and_of_the_trainers_state(configure, fresh_policy, table, rollouts, scores, tmp_path):
    config = configure()
    policy = fresh_policy(config)
    trainer = TorchTrainer(policy, config)
    applied = gradients(trainer)
    trainer.update(rollouts, scores, table)
    held = [t for s in trainer.optimizer.state.values() for n, t in s.items() if n != "step"]
    run = Run(config, find_shape(config.model), GPUS["H100"], 1)
    assert _bytes(policy.model.parameters()) == run.state()["weights"]
    assert _bytes(held) == run.state()["optimizer"]
    assert _bytes(applied.values()) == run.state()["gradients"]
    policy.model.save_pretrained(tmp_path)
    trainer.save(tmp_path)
    written = sum(f.stat().st_size for f in tmp_path.glob("*.safetensors"))
    assert written == pytest.approx(run.disk()["checkpoint"], rel=0.01)


def _bytes(tensors) -> int:
    return sum(t.nbytes for t in tensors)


def test_logits_take_a_few_chunks_however_many_tokens():
    assert capacity.LOGITS_ELEMENTS == divergence.DEFAULT_MAX_ELEMENTS
    elements, vocabulary = 2**18, 2**12
    for count in (256, 2048):  # 4 and 32 chunks
        hidden_ND = torch.randn(count, 8)
        with Alive() as alive:
            divergence.token_statistics(
                hidden_ND,
                torch.randn(vocabulary, 8),
                torch.zeros(count, dtype=torch.long),
                perturbed_ND=hidden_ND + 0.1,
                max_elements=elements,
            )
        chunks = alive.most / (4 * elements)
        assert capacity.LOGITS_ALIVE - 2 < chunks <= capacity.LOGITS_ALIVE


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "mixed"])
def test_activations_of_a_layer_are_those_autograd_saves(kind):
    assert _saved_per_token(kind) == pytest.approx(layer_activations(256, 768, 256, 64, kind), rel=0.1)


def _saved_per_token(kind: str) -> float:
    """Bytes saved of a token by a layer, weights and what belongs to no layer taken away."""
    few, many = (_saved(kind, 4, tokens) - _saved(kind, 2, tokens) for tokens in (256, 512))
    return (many - few) / 2 / 256


def _saved(kind: str, layers: int, tokens: int) -> int:
    """Bytes that autograd saves in a small random model's forward pass."""
    from transformers import AutoModelForImageTextToText, Qwen2_5_VLConfig

    config = Qwen2_5_VLConfig(
        text_config={
            "hidden_size": 256,
            "num_hidden_layers": layers,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "intermediate_size": 768,
            "vocab_size": 512,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]},
            "bos_token_id": None,
            "eos_token_id": 2,
            "pad_token_id": 0,
        },
        vision_config={"depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 32, "out_hidden_size": 256},
    )
    model = AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa")
    model = model.to(torch.bfloat16 if kind == "bfloat16" else torch.float32)
    saved: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=kind == "mixed"),
    ):
        model.base_model(
            input_ids=torch.full((1, tokens), 10),
            use_cache=False,
            attention_mask=torch.ones(1, 1, tokens, tokens, dtype=torch.bool).tril(),
            position_ids=torch.arange(tokens).expand(3, 1, -1),
        )
    return sum(t.untyped_storage().nbytes() for t in saved.values())


def test_bytes_of_a_steps_rows(tmp_path):
    rng, groups, samples, tokens = np.random.default_rng(0), 4, 8, 500
    ids = [[rng.integers(150_000, size=tokens).tolist() for _ in range(samples)] for _ in range(groups)]

    def numbers():
        return [rng.random(tokens).astype(np.float32).tolist() for _ in range(samples)]

    text = ["".join(rng.choice(list("abcdefghij "), 4 * tokens)) for _ in range(samples)]
    write_rows(
        tmp_path / "r",
        Rollout,
        [
            Rollout(
                "a", 0, ids[g], text, numbers(), [False] * samples, [""] * samples, ["wrong"] * samples, [0.0] * samples
            )
            for g in range(groups)
        ],
    )
    keep = [[bool(x) for x in rng.integers(2, size=tokens)] for _ in range(samples)]
    write_rows(
        tmp_path / "s",
        Scored,
        [Scored("a", 0, numbers(), numbers(), numbers(), keep, [0.0] * samples) for _ in range(groups)],
    )
    written = sum((tmp_path / name).stat().st_size for name in "rs")
    size = f"rollout.prompts_per_step={groups}"
    run = planned("qwen2_5_vl_7b", size, "score.looks=0")
    run.expected = replace(run.expected, response=tokens)
    assert 0.7 < written / run.disk()["step"] < 1

    # Looks: 8 x 500 tokens of 84 bytes, and two pictures of 2 bytes a pixel, 28 x 28 pixels a token.
    more = planned("qwen2_5_vl_7b", size, "score.looks=2")
    more.expected = replace(run.expected, image=100)
    expected = 2 * (8 * 500 * 84 + 2 * 2 * 100 * 28 * 28)
    assert more.disk()["step"] - run.disk()["step"] == pytest.approx(expected)


# -- whether it fits -------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "gpus"), [("qwen2_5_vl_7b", 8), ("qwen3_vl_8b", 8), ("qwen2_5_vl_32b", 32)])
def test_the_large_configs_fit_as_many_gpus_as_the_authors_had(name, gpus):
    assert problems(planned(name, gpus=gpus)) == []
    assert problems(planned(name, gpus=gpus, gpu="A100-80")) == []


def test_more_is_taken_where_more_is_needed():
    def peak(*overrides: str, **where) -> float:
        return max(m.total for m in planned("qwen2_5_vl_7b", *overrides, **where).memory().values())

    assert peak("update.gradient_checkpointing=false") > 2 * peak()
    assert peak(gpus=16) <= peak()
    assert peak("rollout.memory_fraction=0.7") > peak()


def test_time_follows_the_gpu():
    def seconds(stage: str, **where) -> float:
        return planned("qwen2_5_vl_7b", **where).seconds()[stage]

    assert seconds("update", gpus=16) == pytest.approx(seconds("update") / 2)
    # The same operations, more bandwidth: decoding alone gains.
    assert seconds("update", gpu="H200") == seconds("update")
    assert seconds("rollout", gpu="H200") < seconds("rollout")
    # 17.0 hours on 8 H800 in the paper (Table 14), a card between these two.
    hours = [202 * sum(planned("qwen2_5_vl_7b", gpu=g).seconds().values()) / 3600 for g in ("H100", "A100-80")]
    assert hours[0] < 17 < hours[1]


def test_gpus_are_found_by_name():
    assert find_gpu("h100") is find_gpu("H-100") is GPUS["H100"]
    assert find_gpu("rtx 4090").name == "RTX4090"
    with pytest.raises(UserError, match=r"(?s)--gpu T4.*"):
        find_gpu("T4")


# -- the command -----------------------------------------------------------------------------------


def test_the_screen(tmp_path):
    text = vppo("plan", "--config", "qwen2_5_vl_7b.yaml", runs=tmp_path).succeeded().out
    lines = text.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 118
    for part in ("8.29 billion weights", "8 x H100", "KV cache", "PFLOP", "a checkpoint", "result     fits"):
        assert part in text


def test_the_numbers(tmp_path):
    told = (
        vppo(
            "plan",
            "--config",
            "qwen2_5_vl_32b.yaml",
            "--gpu",
            "a100-80",
            "--gpus",
            "32",
            "--response-tokens",
            "700",
            "--json",
            runs=tmp_path,
        )
        .succeeded()
        .json
    )
    found = told["capacity"]
    assert (found["gpu"], found["gpus"], found["parameters"]) == ("A100-80", 32, THIRTY_TWO.parameters)
    assert found["assumed"]["response_tokens"] == 700
    assert set(found["memory_per_gpu"]) == {"rollout", "score", "update"}
    assert found["gpu_memory"] == GPUS["A100-80"].memory * GIB
    assert told["plan"][0]["step"] == "prepare"


def test_the_embedded_default_is_counted_when_asked(tmp_path):
    assert "capacity" not in vppo("plan", "--json", runs=tmp_path).json
    assert vppo("plan", "--gpu", "L40S", "--json", runs=tmp_path).json["capacity"]["gpus_used"] == 1
    assert "uses one GPU" in vppo("plan", "--gpu", "L40S", runs=tmp_path).out


def test_one_gpu_is_said_to_be_one(tmp_path):
    shown = vppo("plan", "--config", "qwen2_5_vl_7b.yaml", "--gpu", "H200", "--gpus", "1", runs=tmp_path).out
    assert "1 x H200" in shown
    assert "of the first machine's memory" in shown
    assert "8 GPUs" not in shown


def test_wrong_gpus_and_models(tmp_path):
    command = vppo("plan", "--gpu", "T4", runs=tmp_path)
    assert command.code == 2
    assert "Known: A100-40, A100-80, H100" in command.err
    unknown = ("--set", "model.path=nobody/nothing")
    assert vppo("plan", *unknown, runs=tmp_path).succeeded().out.startswith("run")
    command = vppo("plan", *unknown, "--gpu", "H100", runs=tmp_path)
    assert (command.code, "Known without the hub" in command.err) == (2, True)


def test_planning_imports_no_torch(tmp_path):
    code = (
        "import sys; sys.argv = ['vppo', 'plan', '--config', 'qwen2_5_vl_7b.yaml']\n"
        "from vppo_cli.app import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'transformers', 'vllm', 'deepspeed'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"VPPO_RUNS": str(tmp_path), "HF_HUB_OFFLINE": "1"},
    )
    assert done.stdout.endswith("[]\n")
