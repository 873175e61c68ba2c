"""LoRA (arXiv 2106.09685) through peft: small adapters are trained, the model's own weights stay.

Every linear layer of the language model gets one; what else has a matrix there, as the experts of a
mixture do, is left as it is, and named. To everything else (the rollout engine, checkpoints,
export) the policy is the merged model, under its own names: W + alpha / rank * B A.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save_file

from pipelines.config.schema import Config
from pipelines.errors import UserError
from pipelines.model.placement import Placement
from pipelines.model.policy import Policy
from pipelines.ranks.ranks import ranks
from pipelines.seeds import generator

T = TypeVar("T")

ADAPTER = "adapter_model.safetensors"
PREFIX, SUFFIX = "base_model.model.", ".weight"
"""How peft names an adapter's weights on disk: without the adapter's own name, which is ``default``."""


def attach(policy: Policy, config: Config) -> None:
    """Put adapters beside the linear layers of the language model, and freeze everything else.

    Raises:
        UserError: peft is not installed.
    """
    try:
        from peft import inject_adapter_in_model
    except ImportError as error:
        raise UserError(
            f"update.lora_rank: {config.update.lora_rank}",
            f"peft cannot be imported ({error}).",
            "pip install 'vppo[lora]'",
        ) from error
    if left := _left_out(policy):
        policy.notes.append(f"LoRA adapters reach linear layers alone: {left}")
    inject_adapter_in_model(_settings(policy, config), policy.model)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(initial(config, name, parameter.shape))


def _left_out(policy: Policy) -> str:
    """The matrices of the language model that get no adapter, with their share of its weights; or ""."""
    kinds: dict[str, int] = {}
    total = 0
    embedding = policy.model.get_input_embeddings()
    for path, module in policy.model.get_decoder().named_modules():
        if module is embedding:
            continue
        for name, value in module.named_parameters(recurse=False):
            total += value.numel()
            if value.dim() > 1 and not isinstance(module, torch.nn.Linear):
                kind = re.sub(r"(^|\.)\d+(?=\.)", r"\1*", f"{path}.{name}")
                kinds[kind] = kinds.get(kind, 0) + value.numel()
    if not kinds:
        return ""
    return f"{', '.join(kinds)} stay as they are ({sum(kinds.values()) / total:.0%} of its weights)"


def initial(config: Config, name: str, shape: Sequence[int]) -> torch.Tensor:
    """An adapter's first weights: A uniform as peft has it, seeded by its name, and B zero."""
    if ".lora_B." in name:
        return torch.zeros(*shape)
    bound = 1 / math.sqrt(shape[1])  # Kaiming's with a = sqrt(5)
    drawn = generator(config.seed, "lora", name).uniform(-bound, bound, tuple(shape))
    return torch.from_numpy(drawn).float()


def save(policy: Policy, config: Config, folder: Path) -> None:
    """Write the adapters as peft reads them; every rank calls it, rank 0 writes."""
    assert isinstance(policy.placement, Adapted)
    found = {
        PREFIX + name.replace(".default", ""): value.detach().float().cpu().contiguous()
        for name, value in policy.placement.adapters(policy.model)
    }
    if ranks().main:
        save_file(found, folder / ADAPTER, metadata={"format": "pt"})
        _settings(policy, config).save_pretrained(str(folder))


def load(folder: Path) -> dict[str, torch.Tensor]:
    """Parameter name -> value, as ``save`` wrote them."""
    found = load_file(folder / ADAPTER)
    return {
        name.removeprefix(PREFIX).removesuffix(SUFFIX) + ".default" + SUFFIX: value for name, value in found.items()
    }


class Adapted(Placement):
    """The merged model, from a placement of its parts.

    Args:
        parts: where weights and adapters are.
        scale: alpha / rank.
    """

    def __init__(self, parts: Placement, scale: float) -> None:
        self.parts, self.scale, self.divided = parts, scale, parts.divided

    def weights(self, model: Any) -> Iterator[tuple[str, torch.Tensor]]:
        base = a = torch.empty(0)
        name = ""
        for part, value in self.parts.weights(model):
            if part.endswith(".base_layer.weight"):  # its A and B follow
                name, base = part.replace(".base_layer", ""), value
            elif ".lora_A." in part:
                a = value
            elif ".lora_B." in part:
                yield name, base.float() + self.scale * (value.float() @ a.float())
            else:
                yield part.replace(".base_layer", ""), value

    def adapters(self, model: Any) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and whole value of A and B of each layer; every rank iterates to the end."""
        for part, value in self.parts.weights(model):
            if ".lora_" in part:
                yield part, value

    def buffers(self, model: Any) -> Iterator[tuple[str, torch.Tensor]]:
        yield from self.parts.buffers(model)

    def gathered(self) -> contextlib.AbstractContextManager[Any]:
        return self.parts.gathered()

    def forward(self, function: Callable[..., T], *arguments: Any) -> T:
        return self.parts.forward(function, *arguments)


def _settings(policy: Policy, config: Config) -> Any:
    from peft import LoraConfig

    language = {id(module) for module in policy.model.get_decoder().modules()}
    layers = {
        name.removesuffix(".base_layer")
        for name, module in policy.model.named_modules()
        if isinstance(module, torch.nn.Linear) and id(module) in language and ".lora_" not in name
    }
    return LoraConfig(
        r=config.update.lora_rank,
        lora_alpha=config.update.lora_alpha,
        target_modules=sorted(layers),
        base_model_name_or_path=config.model.path,
    )
