"""The sizes of any family that transformers knows: its model is made without memory, and counted.

Torch and transformers are imported here and only here: for a family whose sizes are not written out in
pipelines/capacity/shapes.py a plan takes some seconds more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any

from pipelines.capacity.shapes import Shape, Vision
from pipelines.errors import UserError


@dataclass(frozen=True)
class CountedVision(Vision):
    """All of a model but its language model and head: the tower, and what joins it."""

    weights: int = 0
    matrices: int = 0

    @property
    def parameters(self) -> int:
        return self.weights

    @property
    def layer_matrices(self) -> int:
        """The tower's and projector's matrices, divided by its layers."""
        return self.matrices // max(1, self.layers)

    @property
    def embed_matrix(self) -> int:
        return 0

    @property
    def merger_matrices(self) -> int:
        return 0


@dataclass(frozen=True)
class CountedShape(Shape):
    """A model whose weights were counted."""

    weights: int = 0
    """Of the language model and the head."""
    matrices: int = 0
    """Of its layers' matrices, those that a token goes through: of a mixture's experts the active ones."""
    adapted: int = 0
    """Inputs and outputs of the linear layers that adapters stand beside."""

    @property
    def layer_matrices(self) -> int:
        return self.matrices // self.layers

    @property
    def language_parameters(self) -> int:
        return self.weights

    def lora_parameters(self, rank: int) -> int:
        return rank * self.adapted


def count(config: Mapping[str, Any], place: str) -> Shape:
    """The shape of a model that a config.json describes.

    Raises:
        UserError: transformers does not know the family, or its config lacks a size; by name.
    """
    import torch
    from transformers import AutoModelForImageTextToText
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from pipelines.model.torchvision_ops import ensure_importable

    ensure_importable()
    kind = str(config.get("model_type"))
    try:
        whole = CONFIG_MAPPING[kind].from_dict(dict(config))
        with torch.device("meta"):
            model: Any = AutoModelForImageTextToText.from_config(whole)
        return _shape(model, whole)
    except Exception as error:  # whatever its own code makes of wrong sizes
        detail = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            place,
            f"models of type {kind} cannot be counted ({detail[:200]}).",
            "The plan needs a vision-language model that this version of transformers knows.",
        ) from error


def _shape(model: Any, config: Any) -> CountedShape:
    import torch

    text, decoder, head = (config.get_text_config(), model.get_decoder(), model.get_output_embeddings())
    known = {id(p): p for p in (*decoder.parameters(), *head.parameters())}
    ends = {id(head.weight), id(model.get_input_embeddings().weight)}
    layers = [p for index, p in known.items() if index not in ends]
    linear = [m for m in decoder.modules() if isinstance(m, torch.nn.Linear) and m is not head]
    seen = [p for p in model.parameters() if id(p) not in known]
    heads = text.num_attention_heads
    experts = _first(text, "num_experts", "num_local_experts", "n_routed_experts") or 1
    active = (_first(text, "num_experts_per_tok") or 1) if experts > 1 else 1
    ffn = _first(text, "moe_intermediate_size") if experts > 1 else None
    share = [active / experts if p.dim() == 3 and len(p) == experts else 1.0 for p in layers]
    vision = _vision(config, sum(p.numel() for p in seen), sum(p.numel() for p in seen if p.dim() > 1))
    return CountedShape(
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        heads=heads,
        kv_heads=_first(text, "num_key_value_heads") or heads,
        head_dim=_first(text, "head_dim") or text.hidden_size // heads,
        intermediate=ffn * active if ffn else text.intermediate_size,
        vocab=head.weight.shape[0],
        tied=head.weight is model.get_input_embeddings().weight,
        vision=vision,
        weights=sum(p.numel() for p in known.values()),
        matrices=round(sum(p.numel() * s for p, s in zip(layers, share, strict=True) if p.dim() > 1)),
        adapted=sum(m.in_features + m.out_features for m in linear),
    )


def _vision(config: Any, weights: int, matrices: int) -> CountedVision:
    seen = config.vision_config
    layers = _first(seen, "depth", "num_hidden_layers")
    hidden = _first(seen, "embed_dim", "hidden_size")
    patch = _side(_first(seen, "patch_size"))
    wide = _first(seen, "intermediate_size") or int(hidden * (_first(seen, "mlp_ratio") or 4))
    return CountedVision(
        layers=layers,
        hidden=hidden,
        intermediate=wide,
        out=config.get_text_config().hidden_size,
        patch=patch,
        merge=_merge(config, seen, patch),
        full_layers=layers,
        weights=weights,
        matrices=matrices,
    )


def _merge(config: Any, seen: Any, patch: int) -> int:
    """Patches along one side of what becomes one token."""
    if merge := _first(seen, "spatial_merge_size") or _first(config, "scale_factor"):
        return int(merge)
    if ratio := _first(config, "downsample_ratio"):
        return round(1 / ratio)
    if tokens := _first(config, "mm_tokens_per_image"):
        return max(1, round(_side(seen.image_size) // patch / sqrt(tokens)))
    return 1


def _side(size: Any) -> int:
    return int(size[0] if isinstance(size, list | tuple) else size)


def _first(config: Any, *names: str) -> Any:
    """The first of these settings that there is; None where there is none."""
    return next((v for name in names if (v := getattr(config, name, None)) is not None), None)
