"""Where a policy's weights are: whole on every rank, on rank 0 alone, or divided among the ranks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch

from pipelines.model import vision
from pipelines.ranks.ranks import ranks

T = TypeVar("T")


class Placement:
    """Whole, on every rank's device, in float32. A trainer that divides them brings its own.

    Attributes:
        divided: whether a layer's weights are put together as all ranks reach it.
    """

    divided = False

    def weights(self, model: Any) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and whole value of each weight, one at a time, in the precision that is trained (the
        master weights); every rank iterates to the end. The names are the model's own."""
        yield from model.state_dict().items()

    def in_use(self, model: Any) -> Iterator[tuple[str, torch.Tensor]]:
        """The same for the weights that passes compute with: rounded to ``model.dtype`` where the trainer
        rounds them."""
        return self.weights(model)

    def buffers(self, model: Any) -> Iterator[tuple[str, torch.Tensor]]:
        """The same for what is computed and not saved, as rotary frequencies are."""
        yield from model.named_buffers()

    def gathered(self) -> contextlib.AbstractContextManager[Any]:
        """Inside, every weight is whole on every rank; every rank enters."""
        return contextlib.nullcontext()

    def forward(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function that uses the model; every rank calls it equally often."""
        return function(*arguments)


class OnMain(Placement):
    """In rank 0's host memory alone, in float32; the other ranks know the shapes (meta tensors).

    So a large model is loaded once, whatever the number of ranks, and takes no GPU's memory until a
    trainer divides it. Values reach the others one by one.

    Args:
        device: where they are put, one at a time.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def weights(self, model: Any) -> Iterator[tuple[str, torch.Tensor]]:
        for name, value in model.state_dict().items():
            yield name, self._whole(value)

    def buffers(self, model: Any) -> Iterator[tuple[str, torch.Tensor]]:
        for name, value in model.named_buffers():
            yield name, self._whole(value)

    def _whole(self, value: torch.Tensor) -> torch.Tensor:
        here = ranks()
        if here.world == 1:
            return value.detach().to(self.device)
        whole = (
            value.detach().to(self.device).contiguous()
            if here.main
            else torch.empty(value.shape, dtype=value.dtype, device=self.device)
        )
        torch.distributed.broadcast(whole, 0)
        return whole


def skeleton(model: Any, dtype: torch.dtype) -> Any:
    """A model of the same architecture, made here from the config alone; its vision tower goes the
    library's way.

    Where it is made and whether its weights are set is for the caller's contexts to say.
    """
    made = type(model)._from_config(vision.config_of(model), dtype=dtype)
    made.generation_config = model.generation_config
    return made.requires_grad_(True).eval()


def copied(model: Any, placement: Placement, device: torch.device, dtype: torch.dtype) -> Any:
    """A whole copy of a model on this rank's device; every rank calls it."""
    with torch.device("meta"):
        made = skeleton(model, dtype)
    made.to_empty(device=device)
    made.tie_weights()  # emptying gave each of two tied weights its own memory
    here = made.state_dict()
    with torch.no_grad():
        for name, value in placement.weights(model):
            here[name].copy_(value)
    fill_buffers(made, model, placement, device)
    return made


def fill_buffers(made: Any, model: Any, placement: Placement, device: torch.device) -> None:
    """Give a model another's buffers, which are float32 whatever the weights are."""
    for name, value in list(placement.buffers(model)):
        owner, _, last = name.rpartition(".")
        setattr(made.get_submodule(owner), last, value.to(device, copy=True))
