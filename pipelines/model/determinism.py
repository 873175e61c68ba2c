"""Kernels that add in a fixed order: what bit-identical replay needs of a GPU.

Sampling and scoring run in torch's deterministic mode with warnings only: sampling's cumulative sums
have no such kernel on CUDA (each row is summed in order all the same). The update runs in the strict mode,
which attention's gradient needs: told to warn only, torch's fast attention kernels add as they come. vLLM
computes outside either: what it sampled is recorded, and nothing of it is replayed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch

CUBLAS = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
"""Without it cuBLAS adds in no fixed order, and strict mode refuses; read when CUDA starts. 32 MiB,
Hopper's default size."""


def settle(device: torch.device) -> None:
    """Set, for the process, what results on this device depend on; before the first work there."""
    if device.type != "cuda":
        return
    os.environ.setdefault(*CUBLAS)
    # It plans anew for every shape, half a second each, and its gradient is not deterministic.
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False


def warning() -> None:
    """Take deterministic kernels from now on where there are some, and warn where there are none."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Filling what nothing reads costs a tenth of a step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


@contextlib.contextmanager
def strict(device: torch.device) -> Iterator[None]:
    """Inside, on a GPU, only deterministic kernels are taken; on a CPU they are in any case.

    Raises:
        RuntimeError: inside, what has no such kernel.
    """
    with _mode(True) if device.type == "cuda" else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def free(device: torch.device) -> Iterator[None]:
    """Inside, on a GPU, every kernel is taken: for what is not replayed."""
    with _mode(False) if device.type == "cuda" else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def _mode(on: bool) -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(on)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
