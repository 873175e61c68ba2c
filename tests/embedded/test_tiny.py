"""The tiny model: its parts are what Qwen's are, and building it again gives the same thing."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from pipelines.embedded import glyphs, tiny
from pipelines.model.prompts import messages
from pipelines.model.torchvision_ops import ensure_importable

SHIPPED = Path(__file__).parents[2] / "configs" / "tiny_model"
RECIPE = tiny.Recipe(samples=24, batch=4)


@pytest.fixture(scope="module")
def processor():
    return tiny.build_processor()


@pytest.fixture(scope="module")
def samples():
    return glyphs.make_samples("test", 12, 0, glyphs.GlyphsOptions(guessable=0.3))


@pytest.fixture(scope="module")
def shipped():
    """(processor, model) as any Hugging Face folder is loaded."""
    ensure_importable()
    from transformers import AutoModelForImageTextToText, AutoProcessor

    loaded = AutoProcessor.from_pretrained(SHIPPED)
    return loaded, AutoModelForImageTextToText.from_pretrained(SHIPPED, dtype=torch.float32)


def test_a_piece_of_a_solution_is_a_token(processor, samples):
    for sample in samples:
        ids = processor.tokenizer(glyphs.solution(sample))["input_ids"]
        pieces = [processor.tokenizer.decode([i]) for i in ids]
        assert pieces == [text for text, _ in json.loads(sample.metadata)["roles"]]


@pytest.mark.parametrize("text", ["", "a\n\n  b ", "naïve 数字 🙂\t{x}", "b2b 1234 \\boxed{-7}"])
def test_tokenizer_encodes_any_text(processor, text):
    ids = processor.tokenizer(text)["input_ids"]
    assert processor.tokenizer.decode(ids) == text


def test_digits_are_split(processor):
    ids = processor.tokenizer(" 1234")["input_ids"]
    assert [processor.tokenizer.decode([i]) for i in ids] == [" 1", "2", "3", "4"]


def test_chat_is_in_the_format_of_qwen(processor, samples):
    text = processor.apply_chat_template(
        messages(samples[0], "", processor), add_generation_prompt=True, tokenize=False
    )
    question = samples[0].problem.removeprefix("<image>")
    assert text == (
        f"<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{question}<|im_end|>\n<|im_start|>assistant\n"
    )


def test_images_are_not_resized_and_prompts_are_short(processor, samples):
    prompts = tiny.Prompts(processor, samples)
    for sample, ids, pixels in zip(samples, prompts.ids, prompts.pixels, strict=True):
        cells = sum(len(row) for row in json.loads(sample.metadata)["grid"])
        assert ids.count(processor.image_token_id) == cells
        assert pixels.shape == (4 * cells, 3 * 2 * 14 * 14)
        assert len(ids) <= 64


def test_batch_masks_exactly_the_responses(processor, samples):
    prompts = tiny.Prompts(processor, samples)
    batch = prompts.batch([3, 5], [[9, 8, 7], [6]])
    ids_BL, mask_BL = batch["input_ids"], batch["response_mask"]
    assert ids_BL[0][mask_BL[0]].tolist() == [9, 8, 7]
    assert ids_BL[1][mask_BL[1]].tolist() == [6]
    assert batch["attention_mask"].sum(-1).tolist() == [len(prompts.ids[3]) + 3, len(prompts.ids[5]) + 1]


def test_draw_batch_covers_the_pool_and_sorts_by_length():
    lengths = list(range(100))
    batches = [tiny.draw_batch(lengths, step, 5, seed=0) for step in range(4)]
    spans = sorted((min(batch), max(batch)) for batch in batches)
    # Lengths are the indices here, so the four batches cover ranges that follow each other.
    assert all(left[1] <= right[0] for left, right in pairwise(spans))
    assert tiny.draw_batch(lengths, 0, 5, seed=0) == batches[0]


def test_learning_rate_warms_up_and_ends_at_a_tenth():
    # 100 steps: 5 of warm-up, then a cosine from the peak.
    rates = [tiny.learning_rate(step, 100, 1.0) for step in range(101)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[5] == pytest.approx(1.0)
    assert rates[100] == pytest.approx(0.1)


def test_first_steps_of_a_rebuild_are_reproducible(tmp_path):
    folders = [tmp_path / "one", tmp_path / "two"]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    steps = []
    for folder in folders:
        metrics = tiny.rebuild(
            folder,
            steps=3,
            recipe=RECIPE,
            test_samples=0,
            progress=lambda step, total, loss: steps.append((step, total)),
        )
        assert metrics["steps"] == 3
    torch.set_num_threads(threads)
    assert steps == [(1, 3), (2, 3), (3, 3)] * 2
    names = sorted(path.name for path in folders[0].iterdir())
    assert names == sorted(path.name for path in folders[1].iterdir())
    for name in names:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name


def test_shipped_processor_is_what_a_rebuild_builds(shipped, processor, samples):
    loaded = shipped[0]
    assert loaded.tokenizer.backend_tokenizer.to_str() == (processor.tokenizer.backend_tokenizer.to_str())
    assert loaded.tokenizer.all_special_ids == processor.tokenizer.all_special_ids
    assert loaded.chat_template == processor.chat_template
    one, other = tiny.Prompts(processor, samples), tiny.Prompts(loaded, samples)
    assert one.ids == other.ids
    assert all(map(torch.equal, one.pixels, other.pixels))


def test_shipped_model_is_small_and_agrees_with_the_tokenizer(shipped):
    loaded, model = shipped
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < 8e6
    assert model.config.image_token_id == loaded.image_token_id
    assert model.get_input_embeddings().num_embeddings == len(loaded.tokenizer)
    assert model.generation_config.eos_token_id == loaded.tokenizer.eos_token_id
    assert model.generation_config.pad_token_id == loaded.tokenizer.pad_token_id


def test_shipped_model_answers_better_than_chance():
    found = tiny.accuracy(SHIPPED, 40, 3)
    assert 0.25 < found["sampled_accuracy"] < found["greedy_accuracy"] > 0.6
