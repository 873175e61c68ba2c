"""How much memory this process takes. Torch is asked only if a stage has brought it."""

from __future__ import annotations

import sys

import psutil


def resident() -> int:
    """Bytes of the machine's memory that this process holds now; grading workers are others."""
    return int(psutil.Process().memory_info().rss)


def gpu_peak() -> int:
    """Most bytes of GPU memory that torch has held in this process; 0 where it uses no GPU."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return 0
    return int(torch.cuda.max_memory_allocated())
