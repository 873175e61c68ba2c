"""Makes torchvision importable beside a CPU build of torch.

The stock processors of Qwen2.5-VL and Qwen3-VL import torchvision. Its wheel on PyPI has compiled
operators that need CUDA libraries; without them ``import torchvision`` stops at "operator
torchvision::nms does not exist", although nothing here uses those operators. Naming the two
operators first is enough.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_LIBRARY: torch.library.Library | None = None  # torch forgets a definition with its library object


def ensure_importable() -> None:
    """Define the operator names torchvision looks up while importing; harmless where they exist."""
    global _LIBRARY
    import torch

    if _LIBRARY is not None or torch.version.cuda is not None:
        return
    _LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
    _LIBRARY.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _LIBRARY.define("qnms(Tensor dets, Tensor scores, Tensor order, float iou_threshold) -> Tensor")


class _Finder:
    """Finds torchvision as usual; the operators are defined just before its code runs."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name == "torchvision" else None
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                ensure_importable()
                run(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def in_every_process() -> None:
    """For a .pth file of an environment: whoever imports torchvision there can; costs nothing else."""
    sys.meta_path.insert(0, _Finder)
