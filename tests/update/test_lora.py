"""LoRA: what is trained, what others see, and that a run goes on as if it had not stopped."""

import sys

import pytest
import torch
from command_line import SMALL, contents, copy_of, given, vppo
from families import write_folder
from safetensors.torch import load_file

from pipelines.chain import Chain
from pipelines.errors import UserError
from pipelines.model.load import load_policy
from pipelines.run import train
from pipelines.score.scoring import group_statistics
from pipelines.update import lora
from pipelines.update.torch_engine import TorchTrainer
from pipelines.watch import Silent

LORA = ("update.lora_rank=4", "update.lora_alpha=8", "update.learning_rate=1e-3")


@pytest.fixture
def trained(fresh_policy, configure, table, rollouts, scores):
    """A policy with adapters, after one update: (config, trainer, what it was before)."""
    config = configure(*LORA)
    policy = fresh_policy(config)
    before = {name: value.clone() for name, value in policy.model.state_dict().items()}
    trainer = TorchTrainer(policy, config)
    assert torch.equal(logp(policy, rollouts, table), logp(fresh_policy(config), rollouts, table))
    trainer.update(rollouts, scores, table)
    return config, trainer, before


def logp(policy, rollouts, table):
    owners = [table.by_id(group.sample_id) for group in rollouts]
    return group_statistics(policy.config, 1, rollouts, owners, policy, perturbed=False).logp


def test_adapters_alone_are_trained(trained):
    _, trainer, before = trained
    model = trainer.policy.model
    layers = 7 * model.config.text_config.num_hidden_layers
    assert len(trainer.named) == 2 * layers
    for name, value in model.state_dict().items():
        if ".lora_" not in name:
            assert torch.equal(value, before[name.replace(".base_layer", "")]), name
    assert all(parameter.abs().max() > 0 for _, parameter in trainer.named)


def test_others_see_the_merged_model(trained):
    _, trainer, before = trained
    merged = dict(trainer.policy.placement.weights(trainer.policy.model))
    assert merged.keys() == before.keys()
    moved = {name for name, value in merged.items() if not torch.equal(value, before[name])}
    assert {
        name.replace(".base_layer", "")
        for name in trainer.policy.model.state_dict()
        if name.endswith(".base_layer.weight")
    } == moved
    name = "model.language_model.layers.0.self_attn.q_proj"
    layer = trainer.policy.model.get_submodule(name)
    torch.testing.assert_close(
        merged[f"{name}.weight"] - before[f"{name}.weight"], layer.get_delta_weight("default").detach()
    )


def test_the_merged_model_and_the_adapters_say_what_the_policy_says(trained, fresh_policy, rollouts, table, tmp_path):
    from peft import PeftModel

    config, trainer, _ = trained
    policy = trainer.policy
    expected = logp(policy, rollouts, table)
    assert (expected - logp(fresh_policy(config), rollouts, table)).abs().max() > 1e-3
    policy.model.save_pretrained(tmp_path / "model", state_dict=dict(policy.placement.weights(policy.model)))
    policy.processor.save_pretrained(tmp_path / "model")
    merged = load_policy(config, tmp_path / "model")
    torch.testing.assert_close(logp(merged, rollouts, table), expected, atol=1e-4, rtol=0)
    (tmp_path / "trainer").mkdir()
    trainer.save(tmp_path / "trainer")
    plain = fresh_policy(config)
    plain.model = PeftModel.from_pretrained(plain.model, tmp_path / "trainer").base_model.model
    assert torch.equal(logp(plain, rollouts, table), expected)


def test_the_state_comes_back_to_the_bit(trained, fresh_policy, rollouts, scores, table, tmp_path):
    config, trainer, _ = trained
    trainer.save(tmp_path)
    other = TorchTrainer(fresh_policy(config), config)
    other.load(tmp_path)
    for one in (trainer, other):
        one.update(rollouts, scores, table)
    for (name, mine), (_, theirs) in zip(trainer.named, other.named, strict=True):
        assert torch.equal(mine, theirs), name


def test_first_weights_are_those_of_the_seed(configure):
    name, config = "layers.0.q_proj.lora_A.default.weight", configure(*LORA)
    one = lora.initial(config, name, (4, 64))
    assert torch.equal(one, lora.initial(config, name, (4, 64)))
    assert not torch.equal(one, lora.initial(configure(*LORA, "seed=1"), name, (4, 64)))
    assert 0.12 < one.abs().max() <= 1 / 8
    assert lora.initial(config, name.replace("_A", "_B"), (64, 4)).abs().max() == 0


def test_a_run_that_stopped_goes_on_as_if_it_had_not(tmp_path):
    settings = given(
        *SMALL,
        *LORA,
        "checkpoint.every=1",
        "run.steps=2",
        "checkpoint.validation_samples=0",
        "data.glyphs.test=2",
        "eval.baseline=false",
    )
    vppo("train", "--run", "whole", *settings, runs=tmp_path / "a").succeeded()
    vppo("train", "--run", "whole", "--until", "1", *settings, runs=tmp_path / "b").succeeded()
    vppo("train", "--run", "whole", *settings, runs=tmp_path / "b").succeeded()
    assert contents(tmp_path / "a" / "whole") == contents(tmp_path / "b" / "whole")
    (adapter, *_) = sorted((tmp_path / "a").rglob(lora.ADAPTER))
    assert len(load_file(adapter)) > 0


def test_other_weights_are_another_run(finished, tmp_path):
    run = copy_of(finished[0], tmp_path)
    command = vppo(
        "train", "--run", run.name, "--stage", "update", *given(*SMALL, "update.lora_rank=4"), runs=run.parent
    )
    assert command.code == 2
    assert "Start another run" in command.err


def test_peft_is_missing(monkeypatch, fresh_policy, configure):
    monkeypatch.setitem(sys.modules, "peft", None)
    config = configure(*LORA)
    with pytest.raises(UserError, match=r"lora_rank: 4") as raised:
        TorchTrainer(fresh_policy(config), config)
    assert "vppo[lora]" in str(raised.value)


@pytest.mark.parametrize(
    ("package", "setting"), [("peft", "update.lora_rank=4"), ("deepspeed", "update.engine=deepspeed")]
)
def test_a_missing_package_is_told_before_anything_is_made(monkeypatch, configure, tmp_path, package, setting):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=f"{package} is not installed") as raised:
        train(Chain(configure(setting), tmp_path / "run"), Silent())
    assert "pip install" in raised.value.fix
    assert not (tmp_path / "run").exists()


def test_experts_of_a_mixture_are_left_out_and_named(configure, tmp_path):
    folder = write_folder("qwen3_vl_moe", tmp_path)
    config = configure(*LORA, f"model.path={folder}")
    policy = load_policy(config)
    trainer = TorchTrainer(policy, config)
    [note] = [note for note in policy.notes if "LoRA" in note]
    assert "layers.*.mlp.experts.gate_up_proj" in note
    assert "layers.*.mlp.experts.down_proj" in note
    # Of each layer's weights: 4 experts of 3 x 64 x 48 each and a router of 4 x 64 have no adapter;
    # q 64 x 64, k and v 64 x 32 each, o 64 x 64 do; norms 2 x 64 and 2 x 32; one more norm of 64.
    without, others = 4 * 3 * 64 * 48 + 4 * 64, 64 * 64 + 2 * 64 * 32 + 64 * 64 + 2 * 64 + 2 * 32
    assert f"({3 * without / (3 * (without + others) + 64):.0%} of its weights)" in note
    assert not any("experts" in name for name, _ in trainer.named)


def test_a_model_of_linear_layers_has_none_left_out(trained):
    _, trainer, _ = trained
    assert not [note for note in trainer.policy.notes if "LoRA" in note]
