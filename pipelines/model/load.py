"""A model folder or hub id -> a policy: loaded, and checked once for being computed right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pipelines.config.schema import Config
from pipelines.errors import UserError
from pipelines.model.check import settled
from pipelines.model.files import cannot_load, check_folder, check_weights, other_sizes, reading
from pipelines.model.finite import first_not_finite
from pipelines.model.placement import OnMain
from pipelines.model.policy import Policy, choose_device
from pipelines.model.prompts import load_processor, model_location, only_local
from pipelines.model.torchvision_ops import ensure_importable
from pipelines.ranks.ranks import ranks


def load_policy(config: Config, location: str | Path | None = None) -> Policy:
    """Load a model folder or hub id through the Auto classes, weights in float32.

    For an update engine that divides the weights they stay with rank 0, in host memory.

    Raises:
        UserError: it cannot be loaded, is not an image-text-to-text model, or is not computed right.
    """
    ensure_importable()
    where = str(location or model_location(config.model))
    processor = load_processor(config, where)
    device = choose_device(config)
    if config.update.engine != "deepspeed":
        model = _pretrained(where, config)
        policy = Policy(model.to(device), processor, config)
    else:
        model = ranks().first(lambda: _pretrained(where, config), lambda: _shapes(where, config))
        model.generation_config = ranks().agree(model.generation_config)
        policy = Policy(model, processor, config, OnMain(device))
    _check_ids(where, model, processor)
    if with_code := check_folder(where):
        policy.notes.append(f"code of the model's own ({', '.join(with_code)}) is not run")
    return settled(policy)


def _check_ids(where: str, model: Any, processor: Any) -> None:
    """See that the model has every token of its tokenizer.

    Raises:
        UserError: they do not belong together.
    """
    have = model.get_input_embeddings().weight.shape[0]
    vocabulary = processor.tokenizer.get_vocab()
    token = max(vocabulary, key=vocabulary.__getitem__, default="")
    if vocabulary and vocabulary[token] >= have:
        raise UserError(
            f"model.path {where}",
            f"its tokenizer has the token {token!r} with id {vocabulary[token]}, and the model has {have} tokens.",
            "Take the tokenizer that came with the weights.",
        )


def _pretrained(where: str, config: Config) -> Any:
    from transformers import AutoModelForImageTextToText

    with reading(where):
        try:
            loaded: Any = AutoModelForImageTextToText.from_pretrained(
                where,
                revision=config.model.revision,
                dtype=torch.float32,
                attn_implementation=config.model.attention,
                use_safetensors=True,
                local_files_only=only_local(where),
                trust_remote_code=False,
                output_loading_info=True,
            )
        except RuntimeError as error:
            if "mismatched" in str(error):
                _tell_sizes(where, config)
            raise
    model, info = loaded
    check_weights(where, info)
    if found := first_not_finite(model.named_parameters()):
        raise cannot_load(where, ValueError(f"its weights are not finite ({found[0]}: {found[1]})."))
    return model.requires_grad_(True).eval()


def _tell_sizes(where: str, config: Config) -> None:
    """Name the tensors whose sizes are others than the model's, if they can be told."""
    shapes = {n: tuple(value.shape) for n, value in _shapes(where, config).state_dict().items()}
    if found := other_sizes(where, shapes):
        raise UserError(
            f"model.path {where}",
            f"holds {len(found)} tensors of another size than config.json says: {found[0]}.",
            "Its config.json must be that of the weights.",
        )


def _shapes(where: str, config: Config) -> Any:
    """The same model without its weights (meta tensors)."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    with reading(where):
        described = AutoConfig.from_pretrained(
            where, revision=config.model.revision, local_files_only=only_local(where), trust_remote_code=False
        )
        with torch.device("meta"):
            model: Any = AutoModelForImageTextToText.from_config(
                described, dtype=torch.float32, attn_implementation=config.model.attention, trust_remote_code=False
            )
    return model.requires_grad_(True).eval()
