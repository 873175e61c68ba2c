"""What is said besides the question: an instruction after it or around it, and a system's turn."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from evals.journal import prompt_digest
from evals.profiles import PUBLISHED, evaluation, matched
from pipelines.config import settings
from pipelines.disk.records import Sample
from pipelines.errors import UserError
from pipelines.model.policy import Policy
from pipelines.model.prompts import PromptEncoder, messages
from pipelines.perceive.one import remembering
from pipelines.prepare.samples import PromptLengths
from pipelines.rollout.vllm.engine import prompt

AROUND = "Look.\n{problem}\nBox {it}."
SYSTEM = "You solve puzzles."


def text(chat):
    return "".join("<image>" if part["type"] == "image" else part["text"] for turn in chat for part in turn["content"])


def asked(problem, images=0):
    return Sample("a", problem, [b""] * images, "1")


@pytest.mark.parametrize(
    ("problem", "images", "instruction", "expected"),
    [
        ("What?", 0, "Box it.", "What?\n\nBox it."),
        ("What?", 0, "", "What?"),
        ("What?", 0, AROUND, "Look.\nWhat?\nBox {it}."),
        ("<image>What?", 1, AROUND, "Look.\n<image>What?\nBox {it}."),
        ("What?", 1, AROUND, "<image>Look.\nWhat?\nBox {it}."),
        ("{problem} {{x}}", 0, AROUND, "Look.\n{problem} {{x}}\nBox {it}."),
        ("What?", 0, "{problem}", "What?"),
        ("What?", 0, "Q: {problem}", "Q: What?"),
    ],
)
def test_the_question_goes_where_the_instruction_says(problem, images, instruction, expected):
    assert text(messages(asked(problem, images), instruction)) == expected
    turns = messages(asked(problem, images), instruction, system=SYSTEM)
    assert [turn["role"] for turn in turns] == ["system", "user"]
    assert text(turns) == SYSTEM + expected


def test_one_place_for_the_question():
    for name in ("data", "eval"):
        with pytest.raises(UserError, match=rf"{name}.instruction.*2 times"):
            settings.load(None, [f'{name}.instruction="{{problem}} {{problem}}"'])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_prompt_is_known_by_its_pictures(policy, samples, workers):
    # Of two data sets, with one id and one question.
    one, other = (dataclasses.replace(asked("What?"), images=sample.images) for sample in samples[:2])
    encoder = PromptEncoder(policy.processor, "", workers=workers)
    encoder.expect([one, other])
    for sample in (one, other):
        alone = PromptEncoder(policy.processor, "").encode(sample)["pixel_values"]
        assert torch.equal(encoder.encode(sample)["pixel_values"], alone)
    encoder.close()


@pytest.fixture
def spoken(policy):
    """The same model with a system's turn and an instruction around the question."""
    quoted = AROUND.replace("\n", "\\n")
    config = settings.load(
        None,
        [f'data.instruction="{quoted}"', f"data.system_prompt={SYSTEM}"],
        base=policy.config.model_dump(mode="json"),
    )
    return Policy(policy.model, policy.processor, config)


def test_every_reader_of_prompts_reads_the_same(spoken, samples):
    tokenizer, sample = spoken.tokenizer, samples[0]
    ids = spoken.encoder.encode(sample)["input_ids"].tolist()
    said = tokenizer.decode(ids)
    assert said.count(SYSTEM) == said.count("Look.") == said.count("Box {it}.") == 1
    assert said.index(SYSTEM) < said.index("Look.") < said.index("Box {it}.")

    images = spoken.encoder.images(sample)
    assert spoken.encoder.encode_images(sample, images)["input_ids"].tolist() == ids  # scoring's perturbed view
    assert remembering(spoken, 2).encoder.encode(sample)["input_ids"].tolist() == ids  # perceive
    assert PromptLengths(spoken.config).count(sample) == len(ids)  # prepare
    assert SYSTEM in prompt(spoken, sample)["prompt"]  # vLLM
    again = spoken.asked(matched(spoken.config))  # an evaluation as in training
    assert again.encoder.encode(sample)["input_ids"].tolist() == ids
    assert SYSTEM not in tokenizer.decode(spoken.asked(PUBLISHED).encoder.encode(sample)["input_ids"])


def test_keys_hold_it_and_those_without_are_what_they_were(spoken, policy):
    plain, said = (evaluation(p.config, "validation") for p in (policy, spoken))
    assert "eval.system_prompt" not in plain.settings()
    assert said.settings()["eval.system_prompt"] == SYSTEM
    assert spoken.config.holds("data")["data.system_prompt"] == SYSTEM
    assert "data.system_prompt" not in policy.config.holds("data")
    sample = asked("What?")
    other = dataclasses.replace(plain.asking, system_prompt=SYSTEM)
    assert prompt_digest(sample, plain.asking) != prompt_digest(sample, other)
    public = settings.load(None, ["eval.system_prompt=Be brief."])
    assert evaluation(public, "mathverse").asking == dataclasses.replace(PUBLISHED, system_prompt="Be brief.")


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{% for m in messages %}{% if m.role == 'user' %}hello{% endif %}{% endfor %}", "leaves a system's turn out"),
        ("{{ raise_exception('no system role') }}", "takes no system's turn: .*no system role"),
    ],
)
def test_a_template_without_a_systems_turn_is_refused(policy, template, problem):
    def apply(chat, **kwargs):
        return policy.processor.apply_chat_template(chat, chat_template=template, **kwargs)

    deaf = SimpleNamespace(apply_chat_template=apply, tokenizer=policy.processor.tokenizer)
    with pytest.raises(UserError, match=f"(?s)You solve.*{problem}.*data.instruction"):
        PromptEncoder(deaf, "", system=SYSTEM)
    PromptEncoder(deaf, "")
