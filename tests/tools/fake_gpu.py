"""A GPU for tests, made of this machine's CPU: torch runs its CUDA paths, on real numbers.

    import fake_gpu

    fake_gpu.preload()                      # before torch is imported: in a process of its own
    with fake_gpu.emulated() as gpu:
        torch.ones(3, device="cuda") + torch.ones(3)    # MixedDevices: add.Tensor ... at file:line
    gpu.counts                              # launches, copies either way, times the host waited

Tensors say ``cuda:0`` and hold CPU data. Autograd, autocast and gradient checkpointing run with their
CUDA keys, ``is_cuda`` branches are taken, and AdamW is the fused one. Every operation is looked at
(tests/tools/fake_gpu_tensors.py): tensors of both devices in one raise as on CUDA; in strict deterministic
mode so does what has no such kernel, and a matrix product without ``CUBLAS_WORKSPACE_CONFIG``.

What it cannot see:

* limits of the kernels themselves: their types, alignment and sizes, and out= products beyond mm and bmm;
* rounding: results are a CPU's, so are their last bits; which attention kernel would be taken;
* speed, memory, streams, CUDA graphs, several GPUs;
* in-place operations that change a tensor's shape (they raise NotImplementedError);
* DeepSpeed and vLLM, and what other processes do (data.workers encode on the CPU in any case).
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fake_gpu_tensors import FakeGpu

SOURCE = Path(__file__).with_suffix(".cpp")
CACHE = Path(__file__).resolve().parents[2] / "build" / "fake_gpu"
MEMORY = int(79.1 * 2**30)
"""Bytes that the device says it has: an H100's."""


def built() -> Path:
    """The library, compiled against torch's headers where it is not in the cache (some 5 s).

    Raises:
        RuntimeError: there is no C++ compiler, or it fails; the message has its words.
    """
    torch = _torch_folder()
    version = (torch / "version.py").read_bytes()
    name = hashlib.sha256(SOURCE.read_bytes() + version).hexdigest()[:16]
    library = CACHE / f"{name}.so"
    if library.is_file():
        return library
    compiler = shutil.which("g++") or shutil.which("c++") or shutil.which("clang++")
    if compiler is None:
        raise RuntimeError("the emulated GPU needs a C++ compiler (apt install g++)")
    CACHE.mkdir(parents=True, exist_ok=True)
    partial = library.with_suffix(f".{os.getpid()}")
    line = [
        compiler,
        "-std=c++20",
        "-O0",
        "-w",
        "-shared",
        "-fPIC",
        f"-I{torch / 'include'}",
        "-o",
        str(partial),
        str(SOURCE),
    ]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(line)}\n{done.stderr}")
    partial.replace(library)
    return library


def preload() -> None:
    """Load the library, so that torch, once imported, finds a device.

    Raises:
        RuntimeError: torch is imported already, or the library cannot be built.
    """
    if "torch" in sys.modules:
        raise RuntimeError("torch is imported already: the emulated GPU needs a fresh process")
    ctypes.CDLL(str(_torch_folder() / "lib" / "libtorch_cpu.so"), ctypes.RTLD_GLOBAL)
    ctypes.CDLL(str(built()))


def _torch_folder() -> Path:
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


@contextlib.contextmanager
def emulated() -> Iterator[FakeGpu]:
    """Inside, there is one GPU, ``cuda:0``; after ``preload``."""
    import torch
    from fake_gpu_tensors import GPU
    from torch.utils._device import _device_constructors

    _device_constructors()  # remembered, so that `with torch.device(...)` knows the real ones
    assert torch.accelerator.current_accelerator() == torch.device("cuda"), "call preload() first"
    with contextlib.ExitStack() as stack:
        for owner, name, value in _replaced():
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)
        torch._C._ensureCUDADeviceGuardSet()
        # A parameter that moves cannot keep its storage: it becomes another one.
        _switch(stack, torch.__future__.set_overwrite_module_params_on_conversion, after=False)
        _switch(stack, torch._C._set_only_lift_cpu_tensors, after=False)
        stack.enter_context(torch.autograd.set_multithreading_enabled(False))
        stack.enter_context(GPU)
        yield GPU


def _switch(stack: contextlib.ExitStack, switch: Callable[[bool], None], *, after: bool) -> None:
    switch(not after)
    stack.callback(switch, after)


def _replaced() -> Iterator[tuple[Any, str, Any]]:
    """(owner, name, value) of each function of torch that would ask a driver, or leave the emulation."""
    import torch
    import torch.cuda.amp.common
    from fake_gpu_tensors import attention, tensor

    card = SimpleNamespace(
        name="NVIDIA H100 80GB HBM3 (emulated)", total_memory=MEMORY, major=9, minor=0, multi_processor_count=132
    )
    answers: dict[str, Any] = {
        "is_available": True,
        "is_initialized": True,
        "is_bf16_supported": True,
        "device_count": 1,
        "current_device": 0,
        "set_device": None,
        "_lazy_init": None,
        "get_device_name": card.name,
        "get_device_properties": card,
        "get_device_capability": (9, 0),
        "is_current_stream_capturing": False,
        "synchronize": None,
        "empty_cache": None,
        "reset_peak_memory_stats": None,
        "memory_allocated": 1,
        "max_memory_allocated": 1,
    }
    for name, answer in answers.items():
        yield torch.cuda, name, lambda *_, answer=answer, **__: answer
    yield torch.cuda.amp.common, "amp_definitely_not_available", lambda: False
    yield torch.nn.functional, "scaled_dot_product_attention", attention
    yield torch, "tensor", tensor

    to = torch.nn.Module.to

    def moved(module: Any, *where: Any, **how: Any) -> Any:
        """Tied weights, moved one by one, are tied again."""
        module = to(module, *where, **how)
        if hasattr(module, "tie_weights"):
            module.tie_weights()
        return module

    yield torch.nn.Module, "to", moved
