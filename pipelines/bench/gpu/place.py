"""Where the parts of ``make gpu`` measure, and what they give."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

Figures = dict[str, Any]
"""Numbers, words and truths by name. The name ends with the unit where there is one: ``_s``, ``_bytes``,
``_share``, ``_per_s``, ``_flops``, ``_bytes_per_s``."""
NEEDS_CUDA = "needs CUDA"


class NotMeasured(Exception):
    """What cannot be measured here; the message says why."""


@dataclass(frozen=True)
class Place:
    """Where a part measures, and at what size.

    Attributes:
        shape: ``tiny``, or ``3b`` with random weights.
        out: where results go.
        work: for what may be large and is not kept.
    """

    shape: str
    device: torch.device
    out: Path
    work: Path

    @property
    def cuda(self) -> bool:
        """Whether it is a GPU."""
        return self.device.type == "cuda"

    def need_cuda(self) -> None:
        """Stop here on a CPU.

        Raises:
            NotMeasured: it is one.
        """
        if not self.cuda:
            raise NotMeasured(NEEDS_CUDA)

    @property
    def name(self) -> str:
        """The device's."""
        if self.cuda:
            return torch.cuda.get_device_name(self.device)
        return f"CPU, {torch.get_num_threads()} threads"


Findings = Iterator[tuple[str, Callable[[], Figures]]]
"""What is measured -> what measures it, in order."""
