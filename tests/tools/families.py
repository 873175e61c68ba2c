"""Tiny models of several families, with random weights and real processors, as folders to load.

Each is what a hub would give: config, safetensors, image processor, tokenizer and chat template of the
family, only smaller. Images are cut and laid out as in the originals: patches of 14 or 16 pixels in
windows or with deepstack (Qwen), tiles and an overview (Idefics3, SmolVLM, InternVL).
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pipelines.config.settings import shipped_config
from pipelines.disk.records import Sample
from pipelines.embedded.tiny import CHAT_TEMPLATE
from pipelines.model.torchvision_ops import ensure_importable

HIDDEN = 64
TEXT = {
    "hidden_size": HIDDEN,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": False,
}
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_hidden_layers": 2}
MROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]}
STATISTICS = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.25, 0.5]}
"""One value a channel, so that a mistaken order of channels shows."""

IDEFICS3_CHAT = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}:"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>{% else %}"
    " {{ part['text'] }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
INTERNVL_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<IMG_CONTEXT>\n"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

LLAVA_CHAT = (
    "{% for message in messages %}{{ message['role'] | upper }}: "
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %} {% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
PALIGEMMA_CHAT = (
    "{% for part in messages[0]['content'] %}{% if part['type'] == 'image' %}<image>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
)


def tokenizer(*more: str, **named: str) -> Any:
    """The shipped model's, with ``more`` special tokens and others known by ``named`` attributes."""
    from transformers import PreTrainedTokenizerFast

    folder = shipped_config("tiny_model")
    made = PreTrainedTokenizerFast.from_pretrained(folder, extra_special_tokens=named)
    made.add_tokens([*more, *named.values()], special_tokens=True)
    return made


def qwen(name: str, patch_size: int, text: dict[str, Any], vision: dict[str, Any]) -> Any:
    """Qwen2-VL and its successors, (config, processor): a flat list of patches and M-RoPE."""
    import transformers
    from transformers import AutoConfig, Qwen2VLImageProcessor

    classes = {
        "qwen2_vl": ("Qwen2VLProcessor", "Qwen2VLVideoProcessor"),
        "qwen2_5_vl": ("Qwen2_5_VLProcessor", "Qwen2VLVideoProcessor"),
        "qwen3_vl": ("Qwen3VLProcessor", "Qwen3VLVideoProcessor"),
        "qwen3_vl_moe": ("Qwen3VLProcessor", "Qwen3VLVideoProcessor"),
        "qwen3_5": ("Qwen3VLProcessor", "Qwen3VLVideoProcessor"),
    }
    processor_class, video_class = (getattr(transformers, n) for n in classes[name])
    words = tokenizer()
    settings = STATISTICS | {"patch_size": patch_size, "size": {"shortest_edge": 56 * 56, "longest_edge": 160 * 160}}
    processor = processor_class(
        image_processor=Qwen2VLImageProcessor(**settings),
        video_processor=video_class(**settings),
        tokenizer=words,
        chat_template=CHAT_TEMPLATE,
    )
    token = words.convert_tokens_to_ids
    config = AutoConfig.for_model(
        name,
        text_config=TEXT | {"vocab_size": len(words)} | text,
        vision_config={"depth": 2, "num_heads": 2, "patch_size": patch_size} | vision,
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=False,
    )
    return config, processor


def qwen2_vl() -> Any:
    return qwen("qwen2_vl", 14, {"rope_parameters": MROPE}, {"embed_dim": 32, "hidden_size": HIDDEN, "mlp_ratio": 2})


def qwen2_5_vl() -> Any:
    """Its vision tower attends in windows of 56 pixels in the first layer."""
    return qwen(
        "qwen2_5_vl",
        14,
        {"rope_parameters": MROPE},
        {
            "hidden_size": 32,
            "intermediate_size": 48,
            "out_hidden_size": HIDDEN,
            "window_size": 56,
            "fullatt_block_indexes": [1],
        },
    )


def qwen3_vl() -> Any:
    """Interleaved M-RoPE; both vision layers feed a layer of the language model too (deepstack)."""
    return qwen(
        "qwen3_vl",
        16,
        {"head_dim": 32, "rope_parameters": MROPE | {"mrope_interleaved": True}},
        {
            "hidden_size": 32,
            "intermediate_size": 48,
            "out_hidden_size": HIDDEN,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1],
        },
    )


def idefics3(name: str = "idefics3") -> Any:
    """Tiles of 56 pixels and an overview, [1, tiles, C, H, W], with a mask of pixels."""
    import transformers
    from transformers import AutoConfig

    prefix = {"idefics3": "Idefics3", "smolvlm": "SmolVLM"}[name]
    grid = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    words = tokenizer("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", *grid)
    words.eos_token = "<end_of_utterance>"
    parts = {
        "image_processor": getattr(transformers, f"{prefix}ImageProcessor")(
            size={"longest_edge": 112}, max_image_size={"longest_edge": 56}, **STATISTICS
        )
    }
    if name == "smolvlm":
        parts["video_processor"] = transformers.SmolVLMVideoProcessor(
            size={"longest_edge": 56}, max_image_size={"longest_edge": 56}
        )
    processor = getattr(transformers, f"{prefix}Processor")(
        tokenizer=words, image_seq_len=4, chat_template=IDEFICS3_CHAT, **parts
    )
    config = AutoConfig.for_model(
        name,
        text_config=TEXT | {"model_type": "llama", "vocab_size": len(words)},
        vision_config=VISION | {"image_size": 56, "patch_size": 14},
        scale_factor=2,
        image_token_id=words.convert_tokens_to_ids("<image>"),
        tie_word_embeddings=False,
        pad_token_id=words.pad_token_id,
    )
    return config, processor


def smolvlm() -> Any:
    return idefics3("smolvlm")


def internvl() -> Any:
    """Tiles of 56 pixels and an overview, those of all images in one list [tiles, C, H, W]."""
    from transformers import AutoConfig, GotOcr2ImageProcessor, InternVLProcessor, InternVLVideoProcessor

    words = tokenizer(
        start_image_token="<img>", end_image_token="</img>", context_image_token="<IMG_CONTEXT>", video_token="<video>"
    )
    size = {"height": 56, "width": 56}
    processor = InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(
            size=size, crop_to_patches=True, min_patches=1, max_patches=4, **STATISTICS
        ),
        video_processor=InternVLVideoProcessor(size=size),
        tokenizer=words,
        image_seq_length=4,
        chat_template=INTERNVL_CHAT,
    )
    config = AutoConfig.for_model(
        "internvl",
        text_config=TEXT | {"model_type": "qwen2", "vocab_size": len(words)},
        vision_config=VISION | {"image_size": [56, 56], "patch_size": [14, 14]},
        image_token_id=words.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        tie_word_embeddings=False,
    )
    return config, processor


def qwen3_vl_moe() -> Any:
    """Every layer a mixture of four experts, two for each token."""
    return qwen(
        "qwen3_vl_moe",
        16,
        {
            "head_dim": 32,
            "rope_parameters": MROPE | {"mrope_interleaved": True},
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 48,
            "decoder_sparse_step": 1,
        },
        {
            "hidden_size": 32,
            "intermediate_size": 48,
            "out_hidden_size": HIDDEN,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1],
        },
    )


def qwen3_5() -> Any:
    """Two layers of linear attention (a gated delta rule), then one of full attention."""
    rope = MROPE | {"mrope_interleaved": True, "partial_rotary_factor": 0.5, "mrope_section": [4, 2, 2]}
    return qwen(
        "qwen3_5",
        16,
        {
            "head_dim": 32,
            "rope_parameters": rope,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "layer_types": ["linear_attention", "linear_attention", "full_attention"],
        },
        {"hidden_size": 32, "intermediate_size": 48, "out_hidden_size": HIDDEN, "num_position_embeddings": 64},
    )


def glm4v() -> Any:
    """Qwen's list of patches and M-RoPE, with norms around every block."""
    from transformers import AutoConfig, Glm4vImageProcessor, Glm4vProcessor, Glm4vVideoProcessor

    names = (
        "<|begin_of_image|>",
        "<|end_of_image|>",
        "<|begin_of_video|>",
        "<|end_of_video|>",
        "<|image|>",
        "<|video|>",
    )
    words = tokenizer(*names)
    ids = [words.convert_tokens_to_ids(name) for name in names]
    size = {"shortest_edge": 56 * 56 * 2, "longest_edge": 160 * 160 * 2}
    settings = STATISTICS | {"patch_size": 14, "size": size}
    picture = "<|begin_of_image|><|image|><|end_of_image|>"
    processor = Glm4vProcessor(
        image_processor=Glm4vImageProcessor(**settings),
        tokenizer=words,
        video_processor=Glm4vVideoProcessor(**settings),
        chat_template=CHAT_TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", picture),
    )
    config = AutoConfig.for_model(
        "glm4v",
        text_config=TEXT | {"vocab_size": len(words), "rope_parameters": MROPE},
        vision_config={
            "depth": 2,
            "num_heads": 2,
            "patch_size": 14,
            "hidden_size": 32,
            "image_size": 112,
            "intermediate_size": 48,
            "out_hidden_size": HIDDEN,
        },
        image_start_token_id=ids[0],
        image_end_token_id=ids[1],
        video_start_token_id=ids[2],
        video_end_token_id=ids[3],
        image_token_id=ids[4],
        video_token_id=ids[5],
        tie_word_embeddings=False,
    )
    return config, processor


def llava() -> Any:
    """One square of 56 pixels an image, cut from its middle; CLIP's tower, whose class token is dropped."""
    from transformers import AutoConfig, CLIPImageProcessor, LlavaProcessor

    words = tokenizer(image_token="<image>")
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(
            size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}, **STATISTICS
        ),
        tokenizer=words,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_CHAT,
    )
    config = AutoConfig.for_model(
        "llava",
        text_config=TEXT | {"model_type": "llama", "vocab_size": len(words)},
        vision_config=VISION | {"model_type": "clip_vision_model", "image_size": 56, "patch_size": 14},
        image_token_index=words.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
        vision_feature_layer=-1,
        tie_word_embeddings=False,
    )
    return config, processor


PINPOINTS = [[56, 112], [112, 56], [112, 112]]


def llava_next() -> Any:
    """An overview and tiles of 56 pixels [images, tiles, C, H, W]; what fills an image up is cut away."""
    from transformers import AutoConfig, LlavaNextImageProcessor, LlavaNextProcessor

    words = tokenizer(image_token="<image>")
    processor = LlavaNextProcessor(
        image_processor=LlavaNextImageProcessor(
            size={"shortest_edge": 56},
            crop_size={"height": 56, "width": 56},
            image_grid_pinpoints=PINPOINTS,
            **STATISTICS,
        ),
        tokenizer=words,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_CHAT,
    )
    config = AutoConfig.for_model(
        "llava_next",
        text_config=TEXT | {"model_type": "mistral", "vocab_size": len(words), "sliding_window": None},
        vision_config=VISION | {"model_type": "clip_vision_model", "image_size": 56, "patch_size": 14},
        image_token_index=words.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
        vision_feature_layer=-1,
        image_grid_pinpoints=PINPOINTS,
        tie_word_embeddings=False,
    )
    return config, processor


def llava_onevision() -> Any:
    """LLaVA-NeXT's tiles with SigLIP's tower; of several images the overviews alone."""
    from transformers import (
        AutoConfig,
        LlavaOnevisionImageProcessor,
        LlavaOnevisionProcessor,
        LlavaOnevisionVideoProcessor,
    )

    words = tokenizer(image_token="<image>", video_token="<video>")
    size = {"height": 56, "width": 56}
    processor = LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=PINPOINTS, **STATISTICS),
        video_processor=LlavaOnevisionVideoProcessor(size=size, **STATISTICS),
        tokenizer=words,
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=LLAVA_CHAT,
    )
    config = AutoConfig.for_model(
        "llava_onevision",
        text_config=TEXT | {"model_type": "qwen2", "vocab_size": len(words)},
        vision_config=VISION
        | {"model_type": "siglip_vision_model", "image_size": 56, "patch_size": 14, "vision_use_head": False},
        image_token_index=words.convert_tokens_to_ids("<image>"),
        video_token_index=words.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=PINPOINTS,
        tie_word_embeddings=False,
    )
    return config, processor


def gemma3() -> Any:
    """Image tokens see each other; two of three layers attend in a window of 32 tokens."""
    from transformers import AutoConfig, Gemma3ImageProcessor, Gemma3Processor

    words = tokenizer(boi_token="<start_of_image>", eoi_token="<end_of_image>", image_token="<image_soft_token>")
    processor = Gemma3Processor(
        image_processor=Gemma3ImageProcessor(size={"height": 56, "width": 56}, **STATISTICS),
        tokenizer=words,
        image_seq_length=4,
        chat_template=CHAT_TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", "<start_of_image>"),
    )
    token = words.convert_tokens_to_ids
    config = AutoConfig.for_model(
        "gemma3",
        text_config=TEXT
        | {
            "vocab_size": len(words),
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "sliding_window": 32,
            "eos_token_id": words.eos_token_id,
            "bos_token_id": None,
            "pad_token_id": words.pad_token_id,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        },
        vision_config=VISION | {"image_size": 56, "patch_size": 14, "vision_use_head": False},
        mm_tokens_per_image=4,
        boi_token_index=token("<start_of_image>"),
        eoi_token_index=token("<end_of_image>"),
        image_token_index=token("<image_soft_token>"),
        tie_word_embeddings=False,
    )
    return config, processor


def paligemma() -> Any:
    """The whole prompt sees itself, text too; what follows is causal, and positions count from 1."""
    from transformers import AutoConfig, PaliGemmaProcessor, SiglipImageProcessor

    words = tokenizer(image_token="<image>")
    words.bos_token = words.pad_token
    image_processor = SiglipImageProcessor(size={"height": 56, "width": 56}, **STATISTICS)
    image_processor.image_seq_length = 16
    processor = PaliGemmaProcessor(image_processor=image_processor, tokenizer=words, chat_template=PALIGEMMA_CHAT)
    words = processor.tokenizer
    config = AutoConfig.for_model(
        "paligemma",
        text_config=TEXT
        | {
            "model_type": "gemma",
            "vocab_size": len(words),
            "head_dim": 32,
            "eos_token_id": words.eos_token_id,
            "bos_token_id": words.bos_token_id,
            "pad_token_id": words.pad_token_id,
        },
        vision_config=VISION
        | {"model_type": "siglip_vision_model", "image_size": 56, "patch_size": 14, "vision_use_head": False},
        image_token_index=words.convert_tokens_to_ids("<image>"),
        projection_dim=HIDDEN,
        hidden_size=HIDDEN,
        vocab_size=len(words),
        tie_word_embeddings=False,
    )
    return config, processor


FAMILIES: dict[str, Callable[[], Any]] = {
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "qwen3_vl_moe": qwen3_vl_moe,
    "glm4v": glm4v,
    "idefics3": idefics3,
    "smolvlm": smolvlm,
    "internvl": internvl,
    "llava": llava,
    "llava_next": llava_next,
    "llava_onevision": llava_onevision,
    "qwen3_5": qwen3_5,
    "gemma3": gemma3,
    "paligemma": paligemma,
}
"""How to make (config, processor) of each."""

VISION_TOWERS = ("visual", "vision_model", "vision_tower")
"""What the families call their vision towers."""


def write_folder(name: str, folder: Path, seed: int = 0) -> Path:
    """Make a family's model and write its folder."""
    ensure_importable()
    from transformers import AutoModelForImageTextToText, GenerationConfig

    config, processor = FAMILIES[name]()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config)
        draw_weights(model)
    words = processor.tokenizer
    model.generation_config = GenerationConfig(eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@torch.no_grad()
def draw_weights(model: torch.nn.Module) -> None:
    """Weights so large that every part of the input moves the log-probs well above rounding."""
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            if isinstance(module, torch.nn.Embedding) or "position" in name:
                weight.normal_(std=0.5)
            elif weight.dim() > 1:
                weight.normal_(std=weight[0].numel() ** -0.5)
            elif name == "bias":
                weight.normal_(std=0.1)


def picture(height: int, width: int, seed: int) -> bytes:
    """A PNG of smooth colours, different everywhere."""
    small = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    image = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def questions() -> dict[str, Sample]:
    """With one image, another, two and none; the images differ in size, so their grids and tiles do."""
    wide, high = picture(56, 140, 1), picture(112, 84, 2)
    return {
        "one": Sample("one", "<image>What is a1 + b2?", [high], "7"),
        "other": Sample("other", "<image>What is c3?", [wide], "3"),
        "two": Sample("two", "<image>Or <image>? What is a1 + a2 + a3?", [wide, high], "9"),
        "none": Sample("none", "What is 3 + 4?", [], "7"),
    }
