"""The sizes of the model that is named: of a folder, of the hub, or, for some, known without.

Torch-free for Qwen2.5-VL and Qwen3-VL; other families are counted by transformers.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.capacity.shapes import Shape, Vision
from pipelines.config.schema import ModelConfig
from pipelines.config.settings import shipped_config
from pipelines.errors import UserError

HUB_TIMEOUT_S = 3.0


def from_config(config: Mapping[str, Any], place: str) -> Shape:
    """The shape that a config.json describes, of transformers 4 (flat) or 5 (``text_config``).

    Args:
        place: where it was read, for messages.

    Raises:
        UserError: the family cannot be counted, or a size is missing.
    """
    kind = config.get("model_type")
    if kind not in ("qwen2_5_vl", "qwen3_vl"):
        from pipelines.capacity.counts import count  # brings torch

        return count(config, place)
    qwen3 = kind == "qwen3_vl"
    text, seen = config.get("text_config") or config, config.get("vision_config") or {}
    try:
        layers = int(seen["depth"] if qwen3 else seen.get("depth", 32))
        vision = Vision(
            layers=layers,
            hidden=seen["hidden_size"],
            intermediate=seen["intermediate_size"],
            out=seen["out_hidden_size"],
            patch=seen.get("patch_size", 16 if qwen3 else 14),
            merge=seen.get("spatial_merge_size", 2),
            temporal=seen.get("temporal_patch_size", 2),
            full_layers=layers if qwen3 else len(seen.get("fullatt_block_indexes", (7, 15, 23, 31))),
            window=seen.get("window_size", 112),
            qwen3=qwen3,
            positions=seen.get("num_position_embeddings", 2304) if qwen3 else 0,
            deepstack=len(seen.get("deepstack_visual_indexes", (8, 16, 24))) if qwen3 else 0,
        )
        heads = text["num_attention_heads"]
        return Shape(
            layers=text["num_hidden_layers"],
            hidden=text["hidden_size"],
            heads=heads,
            kv_heads=text["num_key_value_heads"],
            head_dim=text.get("head_dim") or text["hidden_size"] // heads,
            intermediate=text["intermediate_size"],
            vocab=text["vocab_size"],
            tied=bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))),
            vision=vision,
            qwen3=qwen3,
        )
    except KeyError as error:
        raise UserError(place, f"has no {error.args[0]}.", "Is it a whole vision-language model?") from error


def _qwen2_5(hidden: int, layers: int, heads: int, kv: int, ffn: int, vocab: int, seen: int) -> Shape:
    return Shape(layers, hidden, heads, kv, 128, ffn, vocab, vocab == 151936, Vision(32, 1280, seen, hidden))


KNOWN: dict[str, Shape] = {
    "Qwen/Qwen2.5-VL-3B-Instruct": _qwen2_5(2048, 36, 16, 2, 11008, 151936, 3420),
    "Qwen/Qwen2.5-VL-7B-Instruct": _qwen2_5(3584, 28, 28, 4, 18944, 152064, 3420),
    "Qwen/Qwen2.5-VL-32B-Instruct": _qwen2_5(5120, 64, 40, 8, 27648, 152064, 3456),
    "Qwen/Qwen3-VL-8B-Instruct": Shape(
        36,
        4096,
        32,
        8,
        128,
        12288,
        151936,
        False,
        qwen3=True,
        vision=Vision(27, 1152, 4304, 4096, patch=16, full_layers=27, qwen3=True, positions=2304, deepstack=3),
    ),
}
"""The models that are known without the hub, from their config.json there."""


def find_shape(model: ModelConfig) -> Shape:
    """The shape of ``model.path``: a folder's, a known model's, or what the hub says.

    Raises:
        UserError: there is no such folder, and the hub does not answer or does not know it.
    """
    folder = shipped_config("tiny_model") if model.path == "tiny" else Path(model.path)
    file = folder / "config.json"
    if not file.is_file():
        if model.path in KNOWN:
            return KNOWN[model.path]
        file = _from_hub(model)
    try:
        return from_config(json.loads(file.read_text(encoding="utf-8")), str(file))
    except (OSError, ValueError) as error:
        raise UserError(str(file), f"is not readable JSON ({error}).", "") from error


def _from_hub(model: ModelConfig) -> Path:
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    def file(*, local: bool) -> Path:
        return Path(hf_hub_download(model.path, "config.json", revision=model.revision, local_files_only=local))

    try:
        with contextlib.suppress(LocalEntryNotFoundError):
            return file(local=True)
        HfApi().model_info(model.path, timeout=HUB_TIMEOUT_S)  # the download would try for long
        return file(local=False)
    except Exception as error:  # the HTTP client's own types, which change between versions
        raise UserError(
            f"model.path {model.path}",
            "no folder here, and the hub does not give its config.json.",
            f"Known without the hub: {', '.join(KNOWN)}.",
        ) from error
