"""Makes torchvision importable beside a CPU build of torch.

The stock processors of Qwen2.5-VL and Qwen3-VL import torchvision. Its wheel on PyPI has compiled
operators that need CUDA libraries; without them ``import torchvision`` stops at "operator
torchvision::nms does not exist", although nothing here uses those operators. Naming the two
operators first is enough.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

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


class _BeforeTorchvision:
    """Finds nothing; defines the operators when torchvision is first looked for."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        if name == "torchvision":
            ensure_importable()


def in_every_process() -> None:
    """For a .pth file of an environment: whoever imports torchvision there can; costs nothing else."""
    sys.meta_path.insert(0, _BeforeTorchvision)  # type: ignore[arg-type]
