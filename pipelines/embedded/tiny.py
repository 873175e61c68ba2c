"""The tiny vision-language model of the embedded default: how it is built and warm-started.

It is a real ``Qwen2_5_VLForConditionalGeneration`` with a real processor and tokenizer, a folder in
Hugging Face format, small enough to train on two CPU cores. ``rebuild`` makes that folder from
nothing: tokenizer, processor, random weights, then supervised training on worked solutions of
``pipelines.embedded.glyphs`` (the warm start). Reinforcement learning takes it from there, so the warm
start ends with careless transcripts: a model that knows how, and slips often.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from pipelines.config.settings import load
from pipelines.disk.records import Sample
from pipelines.embedded import glyphs
from pipelines.grading.reward import make_reward
from pipelines.model.load import load_policy
from pipelines.model.prompts import encode_sample
from pipelines.model.sampling import Sampling
from pipelines.model.torchvision_ops import ensure_importable
from pipelines.rollout.engine import Name
from pipelines.rollout.hf import HuggingFaceEngine
from pipelines.seeds import generator

if TYPE_CHECKING:  # the module imports torchvision: see torchvision_ops
    from transformers import PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""Qwen's names; ``<|im_end|>`` ends a response and ``<|endoftext|>`` pads."""

WORDS = r" ?</?think>| ?\\boxed\{| ?[abc][123](?!\d)| ?\d| ?[A-Za-z]+| ?[^\s\w]|\s+|."
"""What the tokenizer never merges across; a word, a cell name and a digit keep their space."""

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Qwen's chat format, without its default system message."""

STEPS = 1200
"""Steps of the warm start."""


@dataclass(frozen=True)
class Recipe:
    """The numbers of the warm start."""

    samples: int = 8_000
    """Training samples, drawn over and over (each time with another transcript)."""
    batch: int = 32
    rate: float = 2e-3
    """Peak learning rate of AdamW; 5 % linear warm-up, then a cosine to a tenth of it."""
    careful: float = 0.75
    """Fraction of the steps that train on right solutions only; the rest are careless ones."""
    slips: glyphs.Slips = field(default=glyphs.Slips(read=0.16, result=0.05))
    """How careless the transcripts of the last steps are."""
    guessable: float = 0.1
    """As in ``GlyphsOptions``: so the model knows how to use a value that the question gives."""


# ---------------------------------------------------------------------------------- the parts


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer in which a word, a cell name or a digit of the data is one token.

    It encodes any UTF-8 text: what it has not learned falls apart into bytes.
    """
    from transformers import PreTrainedTokenizerFast

    samples = glyphs.make_samples("train", 600, 0, glyphs.GlyphsOptions(guessable=0.3))
    corpus = [text for s in samples for text in (s.problem, glyphs.solution(s))]
    corpus += ["user\nassistant\nsystem\n"] * 20
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1000,  # never reached: merges end when every word is whole
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=list(SPECIAL_TOKENS),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
        extra_special_tokens=sorted(set(SPECIAL_TOKENS) - {"<|im_end|>", "<|endoftext|>"}),
    )


def build_processor() -> Any:
    """The processor: tokenizer, chat template, and Qwen's image and video preprocessing.

    Images of 1 to 16 cells are not resized, and the grids of the data have 4 to 9.
    """
    ensure_importable()
    from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    cell = glyphs.CELL**2
    size = {"shortest_edge": cell, "longest_edge": 16 * cell}
    statistics = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=size, **statistics),
        video_processor=Qwen2VLVideoProcessor(size=size, **statistics),
        tokenizer=build_tokenizer(),
        chat_template=CHAT_TEMPLATE,
    )


def build_model(tokenizer: Any, seed: int) -> Qwen2_5_VLForConditionalGeneration:
    """The model with random weights, about one million parameters, fp32."""
    ensure_importable()
    from transformers import GenerationConfig, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    token = tokenizer.convert_tokens_to_ids
    hidden = 128
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": hidden,
            "intermediate_size": 256,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 1024,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]},
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": token("<|im_end|>"),
            "pad_token_id": token("<|endoftext|>"),
        },
        vision_config={
            "depth": 1,
            "hidden_size": 64,
            "intermediate_size": 192,
            "num_heads": 2,
            "out_hidden_size": hidden,
            "window_size": 112,
            "fullatt_block_indexes": [0],  # on CPU attention is a loop over windows: have few
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        eos_token_id=token("<|im_end|>"),
        pad_token_id=token("<|endoftext|>"),
        do_sample=True,
        top_k=0,
        top_p=1.0,
        temperature=1.0,
    )
    return model


# ---------------------------------------------------------------------------------- batches


class Prompts:
    """Samples made ready once: prompt ids, and pixels as the processor gives them."""

    def __init__(self, processor: Any, samples: Sequence[Sample]) -> None:
        self.processor = processor
        self.ids: list[list[int]] = []
        self.pixels: list[torch.Tensor] = []
        self.grids: list[torch.Tensor] = []
        for sample in samples:
            encoded = encode_sample(processor, "", sample)
            self.ids.append(encoded["input_ids"].tolist())
            self.grids += list(encoded["image_grid_thw"])
            # Halves keep 8,000 images in memory; the values are n/127.5 - 1, exact to 1/4 of a step.
            self.pixels.append(encoded["pixel_values"].half())

    def batch(self, indices: Sequence[int], responses: Sequence[list[int]]) -> dict[str, Any]:
        """Right-padded inputs [B, L] of prompts with responses, and the mask of the responses."""
        rows = [torch.tensor(self.ids[i] + response) for i, response in zip(indices, responses, strict=True)]
        ids_BL = pad_sequence(rows, batch_first=True, padding_value=self.processor.tokenizer.pad_token_id)
        place_L = torch.arange(ids_BL.shape[1])
        used_BL = place_L < torch.tensor([[len(row)] for row in rows])
        prompt_B1 = torch.tensor([[len(self.ids[i])] for i in indices])
        return {
            "input_ids": ids_BL,
            "attention_mask": used_BL.long(),
            "response_mask": (place_L >= prompt_B1) & used_BL,
            "mm_token_type_ids": (ids_BL == self.processor.image_token_id).int(),
            "pixel_values": torch.cat([self.pixels[i] for i in indices]).float(),
            "image_grid_thw": torch.stack([self.grids[i] for i in indices]),
        }


# ---------------------------------------------------------------------------------- training


class CellReader(nn.Module):
    """Training wheels, thrown away after the warm start: tells which cell it is, and the digit.

    The next-token loss alone needs many hundred steps before it finds out that a cell's name points
    at an image token. So two linear heads on the image tokens ask for the digit (on what the vision
    tower hands over, and half-way through the language model) and for the name of the cell.
    """

    NAMES = 9

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.seen = nn.Linear(hidden, 10)
        self.digit = nn.Linear(hidden, 10)
        self.name = nn.Linear(hidden, self.NAMES)

    def forward(self, vision_ND: torch.Tensor, middle_ND: torch.Tensor, samples: Sequence[Sample]) -> torch.Tensor:
        """Mean cross-entropy over the N image tokens of a batch, in nats."""
        digits, names = [], []
        for sample in samples:
            for row, cells in enumerate(sample.details()["grid"]):
                digits += cells
                names += [3 * row + column for column in range(len(cells))]
        digit_N, name_N = torch.tensor(digits), torch.tensor(names)
        return (
            F.cross_entropy(self.seen(vision_ND), digit_N)
            + F.cross_entropy(self.digit(middle_ND), digit_N)
            + F.cross_entropy(self.name(middle_ND), name_N)
        )


@contextmanager
def kept_outputs(**modules: nn.Module) -> Iterator[dict[str, Any]]:
    """Keep the latest output of some modules, by name, while the context lasts."""
    outputs: dict[str, Any] = {}

    def keeper(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: outputs.__setitem__(name, output)

    handles = [module.register_forward_hook(keeper(name)) for name, module in modules.items()]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def losses(
    model: Qwen2_5_VLForConditionalGeneration, reader: CellReader, batch: dict[str, Any], samples: Sequence[Sample]
) -> tuple[torch.Tensor, torch.Tensor]:
    """(next-token loss on the responses, cell-reading loss), means in nats."""
    inputs = {key: value for key, value in batch.items() if key != "response_mask"}
    layers = model.model.language_model.layers
    middle = layers[len(layers) // 2 - 1]
    with kept_outputs(vision=model.model.visual.merger, middle=middle) as kept:
        hidden_BLD = model.model(**inputs, use_cache=False).last_hidden_state
    target_BL = batch["response_mask"][:, 1:]
    logits_NV = model.lm_head(hidden_BLD[:, :-1][target_BL])
    text_loss = F.cross_entropy(logits_NV, batch["input_ids"][:, 1:][target_BL])
    image_BL = batch["mm_token_type_ids"].bool()
    return text_loss, reader(kept["vision"], kept["middle"][image_BL], samples)


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over 5 % of the steps, then a cosine to a tenth of the peak."""
    warm = max(1, steps // 20)
    if step < warm:
        return peak * (step + 1) / warm
    progress = (step - warm) / max(1, steps - warm)
    return peak * (0.1 + 0.45 * (1 + math.cos(math.pi * progress)))


def draw_batch(lengths: Sequence[int], step: int, batch: int, seed: int, pool: int = 4) -> list[int]:
    """The samples of a step, of about equal length: ``pool`` batches are drawn at once and sorted.

    Without sorting a third of the work is padding.
    """
    random = generator(seed, "warm-start-batch", step // pool)
    drawn = sorted(random.integers(len(lengths), size=pool * batch), key=lambda i: lengths[i])
    part = random.permutation(pool)[step % pool]
    return [int(i) for i in drawn[part * batch : (part + 1) * batch]]


def warm_start(
    model: Qwen2_5_VLForConditionalGeneration,
    processor: Any,
    *,
    seed: int,
    steps: int,
    recipe: Recipe,
    progress: Callable[[int, int, float], None] | None = None,
) -> dict[str, float]:
    """Train the model in place on transcripts; the same arguments give bit-identical weights.

    Args:
        progress: called after each step with (step, steps, next-token loss).

    Returns:
        The last step's losses, in nats.
    """
    options = glyphs.GlyphsOptions(guessable=recipe.guessable)
    # Other samples than a run's own, which start from the run's seed.
    samples = glyphs.make_samples("train", recipe.samples, seed + 1_000_003, options)
    prompts = Prompts(processor, samples)
    lengths = [len(ids) + len(s.details()["roles"]) for ids, s in zip(prompts.ids, samples, strict=True)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        reader = CellReader(model.lm_head.in_features)
    parameters = [*model.parameters(), *reader.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.rate, betas=(0.9, 0.98), weight_decay=0.01)
    model.train()
    text_loss = cell_loss = torch.zeros(())
    for step in range(steps):
        random = generator(seed, "warm-start", step)
        indices = draw_batch(lengths, step, recipe.batch, seed)
        chosen = [samples[i] for i in indices]
        slips = glyphs.Slips() if step < recipe.careful * steps else recipe.slips
        texts = [glyphs.transcript(sample, slips, random) + "<|im_end|>" for sample in chosen]
        batch = prompts.batch(indices, processor.tokenizer(texts)["input_ids"])
        text_loss, cell_loss = losses(model, reader, batch, chosen)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, recipe.rate)
        optimizer.zero_grad()
        (text_loss + 0.3 * cell_loss).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if progress:
            progress(step + 1, steps, float(text_loss.detach()))
    model.eval()
    return {"text_loss": float(text_loss.detach()), "cell_loss": float(cell_loss.detach())}


# ---------------------------------------------------------------------------------- the command


def accuracy(folder: Path, count: int, seed: int) -> dict[str, float]:
    """Fractions of held-out questions that a model answers right, 0..1: sampled at temperature 1, and greedily."""
    policy = load_policy(load(None, [f"model.path={json.dumps(str(folder))}"], base={}))
    samples = glyphs.make_samples("test", count, seed, glyphs.GlyphsOptions())
    names: list[Name] = [("tiny", index) for index in range(count)]
    found = {}
    with make_reward(workers=1) as grade:
        for name, top_k in (("sampled_accuracy", 0), ("greedy_accuracy", 1)):
            groups = HuggingFaceEngine(policy).generate(samples, names, Sampling(1.0, 1.0, top_k, 64, 1, seed))
            marks = grade([one.text for [one] in groups], samples, [one.truncated for [one] in groups])
            found[name] = sum(mark.reward for mark in marks) / count
    return found


def rebuild(
    out: Path,
    *,
    seed: int = 0,
    steps: int = STEPS,
    progress: Callable[[int, int, float], None] | None = None,
    recipe: Recipe = Recipe(),
    test_samples: int = 500,
) -> dict[str, float]:
    """Build the tiny model from nothing, warm-start it and write its folder.

    Args:
        out: the folder to write (made if missing).
        progress: called after each step with (step, steps, next-token loss).
        test_samples: how many held-out samples to measure accuracy on, 0 for none.

    Returns:
        steps, parameters, seconds, text_loss, cell_loss, and (if measured) sampled_accuracy and
        greedy_accuracy, 0..1.
    """
    started = time.monotonic()
    processor = build_processor()
    model = build_model(processor.tokenizer, seed)
    metrics = warm_start(model, processor, seed=seed, steps=steps, recipe=recipe, progress=progress)
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    processor.save_pretrained(out)
    metrics["seconds"] = time.monotonic() - started
    metrics["steps"] = steps
    metrics["parameters"] = sum(p.numel() for p in model.parameters())
    return metrics | (accuracy(out, test_samples, seed) if test_samples else {})
