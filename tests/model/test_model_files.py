"""Model folders that are not what they say: each is refused by name, and nothing in one is ever run."""

import contextlib
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from command_line import given, vppo
from safetensors.torch import load_file, save_file

from pipelines.config.settings import shipped_config
from pipelines.disk.records import Sample
from pipelines.errors import UserError
from pipelines.model.load import load_policy
from pipelines.model.prompts import encode_sample, load_processor
from pipelines.rollout.engine import encoded

WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tmp_path):
    """A copy of the shipped model, to be spoilt."""
    return shutil.copytree(shipped_config("tiny_model"), tmp_path / "model")


@pytest.fixture
def load(configure):
    return lambda folder: load_policy(configure(f"model.path={folder}"))


def change(path: Path, **values):
    """Set entries of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def rewrite(folder, function):
    """Make the folder's weights another dict of tensors."""
    tensors = load_file(folder / WEIGHTS)
    save_file(function(tensors), folder / WEIGHTS, metadata={"format": "pt"})


# --- weights --------------------------------------------------------------------------------------


def without(tensors, name):
    return {n: value for n, value in tensors.items() if not n.endswith(name)}


def misnamed(tensors):
    return {f"transformer.{name}": value for name, value in tensors.items()}


def cut(tensors):
    name = next(n for n in tensors if n.endswith("norm.weight"))
    return tensors | {name: tensors[name][:-1].contiguous()}


SPOILT = [
    ("one missing", lambda t: without(t, "layers.0.mlp.up_proj.weight"), ("lacks 1 of", "layers.0.mlp.up_proj.weight")),
    ("half missing", lambda t: dict(list(t.items())[::2]), ("lacks ", " more")),
    ("another prefix", misnamed, ("lacks ", " of the model's tensors")),
    (
        "one too many",
        lambda t: t | {"model.other.weight": torch.ones(3)},
        ("holds 1 tensors that the model does not have", "model.other.weight"),
    ),
    ("another size", cut, ("another size", "norm.weight", "is [127], the model's [128]")),
]


@pytest.mark.parametrize(("spoil", "expected"), [c[1:] for c in SPOILT], ids=[c[0] for c in SPOILT])
def test_weights_that_are_not_the_models_are_named(folder, load, spoil, expected):
    rewrite(folder, spoil)
    with pytest.raises(UserError) as raised:
        load(folder)
    for words in (f"model.path {folder}", *expected):
        assert words in str(raised.value)


def test_a_tied_head_is_not_missing(folder, load):
    assert "lm_head.weight" not in load_file(folder / WEIGHTS)
    load(folder)


def test_the_command_line_refuses_a_model_without_half_of_its_tensors(folder, tmp_path):
    rewrite(folder, lambda t: dict(list(t.items())[::2]))
    command = vppo(
        "perceive",
        "--model",
        str(folder),
        "--image",
        "docs/images/digits.png",
        "--prompt",
        "What is b1?",
        runs=tmp_path / "runs",
        cwd=Path(__file__).parents[2],
    )
    assert command.code == 2, command.out
    assert command.err.startswith("error  ")
    assert "of the model's tensors" in command.err


def test_an_index_that_leads_outside(folder, load):
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).rename(folder.parent / WEIGHTS)
    index = folder / f"{WEIGHTS}.index.json"
    for place in (f"../{WEIGHTS}", str(folder.parent / WEIGHTS), "nowhere.safetensors", 7):
        content = {"metadata": {}, "weight_map": dict.fromkeys(tensors, place)}
        index.write_text(json.dumps(content))
        with pytest.raises(UserError, match=r"index\.json"):
            load(folder)


# --- code -----------------------------------------------------------------------------------------

CODE = "import pathlib\npathlib.Path({!r}).write_text('ran')\nclass Own: pass\n"


@pytest.mark.parametrize("known", [True, False])
def test_code_of_a_folder_is_never_run(folder, load, tmp_path, monkeypatch, known):
    ran = tmp_path / "ran"
    (folder / "own.py").write_text(CODE.format(str(ran)))
    kinds = ("Config", "Model", "ModelForImageTextToText", "Processor", "ImageProcessor")
    own = {f"Auto{kind}": "own.Own" for kind in kinds}
    change(folder / "config.json", auto_map=own)
    change(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Own", "own.Own"]})
    for name in ("processor_config.json", "preprocessor_config.json"):
        if (folder / name).is_file():
            change(folder / name, auto_map=own)
    if not known:
        change(folder / "config.json", model_type="own")
        change(folder / "processor_config.json", processor_class="Own")
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # what a person at a terminal may type
    if known:  # of a family that the library has
        assert any("config.json" in note and "not run" in note for note in load(folder).notes)
    else:
        with pytest.raises(UserError, match=r"model\.path"):
            load(folder)
    assert not ran.exists()


# --- end and start tokens -------------------------------------------------------------------------


@pytest.mark.parametrize("theirs", [0, [0], None])
def test_the_tokenizers_end_token_ends_whatever_the_generation_config_says(folder, load, theirs):
    change(folder / "generation_config.json", eos_token_id=theirs)
    policy = load(folder)
    end = policy.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end in policy.eos_ids
    assert end not in policy.suppressed_ids
    assert (0 in policy.eos_ids) == (theirs is not None)


def test_the_templates_turn_end_ends_too(folder, load):
    # Tokenizer and generation config both say <|endoftext|>, as many a base model's do.
    change(folder / "generation_config.json", eos_token_id=0)
    change(folder / "tokenizer_config.json", eos_token="<|endoftext|>")
    policy = load(folder)
    assert policy.eos_ids == [policy.tokenizer.convert_tokens_to_ids("<|im_end|>"), 0]


def test_an_end_token_that_the_model_does_not_have(folder, load):
    change(folder / "generation_config.json", eos_token_id=999_999)
    with pytest.raises(UserError, match="token 999999, and the model has 4"):
        load(folder)


@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize("written", [True, False])
def test_a_start_token_stands_once(folder, configure, adds, written):
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    if adds:
        bos = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}
        tokenizer["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}},
        }
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    change(folder / "tokenizer_config.json", bos_token="<|endoftext|>")
    template = folder / "chat_template.jinja"
    if written:
        template.write_text("{{ bos_token }}" + template.read_text())
    config = configure(f"model.path={folder}")
    ids = encode_sample(load_processor(config), "", Sample("a", "What is 3 + 4?", [], "7"))["input_ids"]
    assert ids.tolist().count(0) == (adds or written)
    assert ids[0] == 0 or not (adds or written)


# --- files of another shape -----------------------------------------------------------------------

SHAPES = ("[]", "5", "null", '"text"', "{}", "{", "", '{"model": 5}', '{"model": {"type": "BPE"}}')
FILES = ("tokenizer.json", "tokenizer_config.json", "processor_config.json", "config.json", "generation_config.json")


@pytest.mark.parametrize("name", FILES)
def test_files_of_another_shape_are_told(folder, load, name):
    assert (folder / name).is_file()
    before = (folder / name).read_text()
    for shape in SHAPES:
        (folder / name).write_text(shape)
        if shape[:1] + shape[-1:] == "{}":  # without what matters it can be as good as no file
            with contextlib.suppress(UserError):
                load(folder)
        else:
            with pytest.raises(UserError, match=str(folder)):
                load(folder)
        (folder / name).write_text(before)


def nested(values, changes):
    for path, value in changes.items():
        *parts, last = path.split(".")
        here = values
        for part in parts:
            here = here.setdefault(part, {})
        here[last] = value
    return values


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("config.json", {"vision_config.patch_size": 0}),
        ("config.json", {"vision_config.spatial_merge_size": 0}),
        ("config.json", {"text_config.num_attention_heads": 0}),
        ("config.json", {"text_config.vocab_size": 100}),
        ("config.json", {"image_token_id": 10**6}),
        ("processor_config.json", {"image_processor.patch_size": 0}),
        ("processor_config.json", {"image_processor.merge_size": 0}),
        ("processor_config.json", {"image_processor.image_mean": ["x"]}),
    ],
    ids=str,
)
def test_numbers_that_cannot_be_are_told(folder, load, file, changes):
    values = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(nested(values, changes)))
    with pytest.raises(UserError, match=r"model\.path"):
        load(folder)


def test_a_tokenizer_with_more_tokens_than_the_model(folder, load):
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append(
        {
            "id": 5000,
            "content": "<far>",
            "special": True,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
        }
    )
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match="and the model has 4"):
        load(folder)


# --- chat templates -------------------------------------------------------------------------------

LOOP = "{% for i in range(99999) %}" * 3 + "{% endfor %}" * 3
TEMPLATES = [
    ("a loop", LOOP, "does not end within"),
    ("much text", "{{ 'a' * 2000000000 }}", "MemoryError"),
    (
        "text that doubles",
        "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
        "MemoryError|takes more than 512 MiB",  # its own, or where copies of it are slow, ours
    ),
    ("a large number", "{{ 7 ** (9 ** 9) }}", "does not end within"),
    ("a long line", "{{ 'a' * 9000000 }}", "makes 9,000,000 characters"),
    ("the sandbox", "{{ messages.__class__.__mro__ }}", "SecurityError"),
    ("an exception", "{{ raise_exception('not today') }}", "not today"),
    ("undefined", "{{ nothing.here.either }}", "'nothing' is undefined"),
    ("calls itself", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    ("divides by zero", "{{ 1 / 0 }}", "ZeroDivisionError"),
    ("no Jinja", "{% if %}", "TemplateSyntaxError"),
    ("empty", "", "has no chat template"),
]


@pytest.mark.parametrize(("template", "expected"), [c[1:] for c in TEMPLATES], ids=[c[0] for c in TEMPLATES])
def test_a_template_that_fails_is_told_by_name(folder, configure, template, expected):
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(UserError, match=r"model\.path") as raised:
        load_processor(configure(f"model.path={folder}"))
    assert re.search(expected, str(raised.value))
    assert "question" not in str(raised.value)


def test_no_template_is_said_and_no_question_blamed(folder, tmp_path):
    (folder / "chat_template.jinja").unlink()
    command = vppo("train", "--until", "1", *given(f"model.path={folder}"), runs=tmp_path / "runs")
    assert command.code == 2, command.out
    assert "has no chat template" in command.err


def test_a_question_that_the_template_refuses_is_told(folder, configure):
    template = folder / "chat_template.jinja"
    template.write_text(
        "{% if 'forbidden' in messages[0].content[-1].text %}{{ raise_exception('never') }}{% endif %}"
        + template.read_text()
    )
    policy = load_policy(configure(f"model.path={folder}", "data.instruction=''"))
    encoded(policy, Sample("fine", "What is 3 + 4?", [], "7"))
    with pytest.raises(UserError, match=r"question bad.*never"):
        encoded(policy, Sample("bad", "What is forbidden?", [], "7"))
