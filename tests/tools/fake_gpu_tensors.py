"""Tensors that say ``cuda:0`` and hold CPU data, and what looks at every operation on them.

Part of tests/tools/fake_gpu.py, which says how it is used and what it cannot see.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cache
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

CUDA = torch.device("cuda:0")
DEVICE = torch.ops.prim.device.default
HERE = __file__.removesuffix("_tensors.py")


class MixedDevices(RuntimeError):
    """An operation was given tensors of both devices: which, of what shapes, and where."""


@dataclass(frozen=True)
class Counts:
    """What a program asked of the GPU.

    Attributes:
        launches: kernels, one for each operation that is no mere view: torch's own are more here and there.
        up, down: copies from the host and to it.
        waits: times the host needed a result: a copy down, an item, a size that depends on values.
    """

    launches: int = 0
    up: int = 0
    down: int = 0
    waits: int = 0

    def __sub__(self, before: Counts) -> Counts:
        return Counts(*(getattr(self, f.name) - getattr(before, f.name) for f in fields(self)))


class Gpu(Tensor):
    """A tensor on the emulated GPU; ``data`` lies in ``held``."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor, requires_grad: bool = False) -> Gpu:
        with torch._C._DisableTorchDispatch():
            shape = torch.empty_strided(held.size(), held.stride(), dtype=held.dtype, device="meta")
        made = torch.Tensor._make_subclass(
            cls, shape, requires_grad, dispatch_device=True, device_for_backend_keys=CUDA
        )
        made.held = held
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return GPU.run(func, args, kwargs or {})

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return CUDA

    def __repr__(self, **_: Any) -> str:
        return f"Gpu({tuple(self.shape)}, {self.dtype})"

    def tolist(self) -> Any:
        GPU.copied("down")
        return self.held.tolist()

    def numpy(self, **_: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    __array__ = numpy

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def untyped_storage(self) -> Any:
        return self.held.untyped_storage()

    def __deepcopy__(self, memo: Any) -> Any:
        copy = type(self)(self.held.clone(), self.requires_grad)
        return torch.nn.Parameter(copy) if isinstance(self, torch.nn.Parameter) else copy


NO_KERNEL = frozenset(
    {
        "_reshape_alias",
        "_unsafe_view",
        "detach",
        "detach_",
        "device",
        "empty",
        "empty_like",
        "empty_strided",
        "is_pinned",
        "is_same_size",
        "item",
        "lift",
        "lift_fresh",
        "new_empty",
        "new_empty_strided",
        "record_stream",
        "sym_size",
    }
)
COPIES = frozenset({"copy_", "_to_copy"})
INDEXED = frozenset({"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"})
WAITS = frozenset(
    {
        "_local_scalar_dense",
        "_unique2",
        "bincount",
        "equal",
        "is_nonzero",
        "masked_select",
        "nonzero",
        "repeat_interleave",
        "unique_consecutive",
        "unique_dim",
    }
)
SCALAR_TAKEN = frozenset({"fill_", "masked_fill", "masked_fill_", "where"})
"""Beside the pointwise ones: operations that take a CPU tensor of no dimension for a number."""
PRODUCTS = frozenset({"addmm", "baddbmm", "bmm", "mm"})
NOT_DETERMINISTIC = frozenset({"cumsum", "cumprod", "histc", "kthvalue", "put_", "median"})
"""Of floats, on CUDA (documentation of torch.use_deterministic_algorithms)."""


class FakeGpu(TorchDispatchMode):
    """Runs every operation on the held data, and counts.

    Attributes:
        waited: file:line -> how often the host waited there.
        loose: gradients of attention computed outside strict deterministic mode: on CUDA the fast kernels
            then add in no fixed order, and cuDNN's may be taken.
    """

    _mode_key = torch._C._TorchDispatchModeKey.FAKE  # below autograd and autocast
    # What torch asks a mode of this key.
    shape_env = None
    static_shapes = True
    allow_non_fake_inputs = True

    def __init__(self) -> None:
        super().__init__()
        self.forget()

    def forget(self) -> None:
        """Count from nothing."""
        self._counted: Counter[str] = Counter()
        self.waited: Counter[str] = Counter()
        self.loose = 0

    @property
    def counts(self) -> Counts:
        """So far."""
        return Counts(**self._counted)

    def copied(self, way: str) -> None:
        """Count a copy between host and device."""
        self._counted[way] += 1
        if way == "down":
            self._wait()

    def _wait(self) -> None:
        self._counted["waits"] += 1
        self.waited[place()] += 1

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing here is compiled, and the guard against it costs as much as an operation."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One operation, wherever its tensors are."""
        if func is DEVICE:  # more than half of all
            return CUDA if isinstance(args[0], Gpu) else torch.device("cpu")
        name, mutable = _about(func)
        tensors = list(_tensors((*args, *kwargs.values())))
        ours = [x for x in tensors if isinstance(x, Gpu)]
        here = bool(ours)  # whether what comes out is on the GPU
        if kwargs.get("device") is not None:
            asked = torch.device(kwargs["device"])
            here = asked.type == "cuda"
            kwargs = {**kwargs, "device": torch.device("cpu") if here else asked}
        kwargs = {key: value for key, value in kwargs.items() if key != "pin_memory"}
        if ours:
            self._check(func, name, args, tensors)
        if ours or here:
            self._count(func, name, args, kwargs, here)
        held = {key: _mapped(_held, x) for key, x in kwargs.items()}
        found = _computed(func, name, _mapped(_held, args), held)
        for one in ours if mutable else ():
            if one.shape != one.held.shape:
                raise NotImplementedError(f"{func} changes the shape of a tensor in place")
        if name in ("_local_scalar_dense", "equal", "is_nonzero", "is_pinned"):
            return found
        same = {id(_held(x)): x for x in tensors}  # an operation in place returns what it was given

        def back(x: Any) -> Any:
            if not isinstance(x, Tensor) or isinstance(x, Gpu):
                return x
            return same[id(x)] if id(x) in same else Gpu(x) if here else x

        return _mapped(back, found)

    def _check(self, func: Any, name: str, args: tuple[Any, ...], tensors: Sequence[Tensor]) -> None:
        """Refuse what CUDA refuses.

        Raises:
            MixedDevices: tensors of both devices.
            RuntimeError: strict deterministic mode, and there is no such kernel.
        """
        others = [x for x in tensors if not isinstance(x, Gpu)]
        if not others or name in COPIES:
            others = []
        elif name in INDEXED:  # indices may lie on the host
            taken = {id(x) for x in args[1] if x is not None}
            values = args[2] if len(args) > 2 else None
            others = [x for x in others if id(x) not in taken and not (x is values and x.dim() == 0)]
        elif (
            torch.Tag.pointwise in func.tags
            or name in SCALAR_TAKEN
            or (name.startswith("_foreach_") and func._overloadname == "Tensor")
        ):
            others = [x for x in others if x.dim() > 0]
        if others:
            gpu = [tuple(x.shape) for x in tensors if isinstance(x, Gpu)]
            cpu = [tuple(x.shape) for x in others]
            raise MixedDevices(f"{func} takes tensors of cuda:0 {_few(gpu)} and of cpu {_few(cpu)} at {place()}")
        if torch.are_deterministic_algorithms_enabled() and not (torch.is_deterministic_algorithms_warn_only_enabled()):
            floats = tensors[0].is_floating_point()
            if name in NOT_DETERMINISTIC and floats:
                raise RuntimeError(f"{name} has no deterministic kernel on CUDA, at {place()}")
            if name in PRODUCTS and os.environ.get("CUBLAS_WORKSPACE_CONFIG") not in (":4096:8", ":16:8"):
                raise RuntimeError(f"deterministic {name} needs CUBLAS_WORKSPACE_CONFIG, at {place()}")

    def _count(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], here: bool) -> None:
        if not (func.is_view or name in NO_KERNEL):
            self._counted["launches"] += 1
        if name in COPIES:
            to = isinstance(args[0], Gpu) if name == "copy_" else here
            of = isinstance(args[1 if name == "copy_" else 0], Gpu)
            if to != of:
                self.copied("up" if to else "down")
        elif name in INDEXED:
            for index in args[1]:
                if index is not None and not isinstance(index, Gpu):
                    self.copied("up")
                if index is not None and index.dtype in (torch.bool, torch.uint8):
                    self._wait()
        elif name in WAITS and not kwargs.get("output_size"):
            self._wait()

    def launched(self) -> None:
        """Count one kernel."""
        self._counted["launches"] += 1


GPU = FakeGpu()


def place() -> str:
    """file:line of the project's code, or else the library's, that asked for this."""
    frame: FrameType | None = sys._getframe(1)
    library = ""
    while frame is not None:
        file, line = frame.f_code.co_filename, frame.f_lineno
        if "site-packages" not in file and not file.startswith((HERE, "<")):
            return f"{library}{file}:{line}"
        if not library and "/torch/" not in file and "site-packages" in file:
            library = f"{file.rpartition('/')[2]}:{line}, called from "
        frame = frame.f_back
    return library


@cache
def _about(func: Any) -> tuple[str, bool]:
    """An operation's name, and whether it changes what it is given."""
    return func._schema.name.partition("::")[2], func._schema.is_mutable


def _few(shapes: list[tuple[int, ...]]) -> str:
    return ", ".join(map(str, shapes[:3])) + (f" and {len(shapes) - 3} more" if shapes[3:] else "")


def _tensors(arguments: Iterable[Any]) -> Iterator[Tensor]:
    """Those of an operation's arguments, which are no deeper than a list."""
    for x in arguments:
        if isinstance(x, Tensor):
            yield x
        elif isinstance(x, list | tuple):
            yield from _tensors(x)


def _mapped(function: Callable[[Any], Any], x: Any) -> Any:
    """The same with ``function`` of each of its members that is no list."""
    if isinstance(x, list | tuple):
        return type(x)(_mapped(function, y) for y in x)
    return function(x)


def _held(x: Any) -> Any:
    return x.held if isinstance(x, Gpu) else x


def _computed(func: Any, name: str, args: Any, kwargs: Any) -> Any:
    if name in ("mm", "bmm") and func._overloadname == "dtype":  # which only CUDA has
        return (args[0].float() @ args[1].float()).to(args[2])
    return func(*args, **kwargs)


@contextlib.contextmanager
def _off() -> Iterator[None]:
    key = torch._C._TorchDispatchModeKey.FAKE
    mode = torch._C._unset_dispatch_mode(key)
    try:
        yield
    finally:
        torch._C._set_dispatch_mode(mode)


# -- what does not go through dispatch -------------------------------------------------------------

_attention = torch.nn.functional.scaled_dot_product_attention
_tensor = torch.tensor


def tensor(data: Any, **settings: Any) -> Tensor:
    """``torch.tensor``, which reads tensors of one number in a list one by one, each a wait."""

    def plain(x: Any) -> Any:
        if isinstance(x, list | tuple):
            return [plain(y) for y in x]
        return x.item() if isinstance(x, Gpu) else x

    return _tensor(plain(data) if isinstance(data, list | tuple) else data, **settings)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """SDPA as one kernel, and one for its gradient; under autocast of rounded inputs, as on CUDA."""
    how = {"is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
    given = (query, key, value, *(() if attn_mask is None else (attn_mask,)))
    ours = [isinstance(x, Gpu) for x in given]
    if not any(ours):
        return _attention(query, key, value, attn_mask, dropout_p, **how)
    if not all(ours):
        shapes = {
            side: [tuple(x.shape) for x, our in zip(given, ours, strict=True) if our == side] for side in (True, False)
        }
        raise MixedDevices(
            f"attention takes tensors of cuda:0 {_few(shapes[True])} and of cpu {_few(shapes[False])} at {place()}"
        )
    assert not dropout_p, "a dropout has no counterpart here"
    if torch.is_autocast_enabled("cuda"):
        half = torch.get_autocast_dtype("cuda")
        query, key, value = (x.to(half) for x in (query, key, value))
        if attn_mask is not None and attn_mask.dtype != torch.bool:
            attn_mask = attn_mask.to(half)
    if not query.dtype == key.dtype == value.dtype:
        raise RuntimeError(f"attention of {query.dtype}, {key.dtype} and {value.dtype} at {place()}")
    return _Attention.apply(query, key, value, attn_mask, how)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Gpu, key: Gpu, value: Gpu, mask: Gpu | None, how: Any) -> Gpu:
        ctx.save_for_backward(query, key, value, mask)
        ctx.how = how
        GPU.launched()
        with _off():
            return Gpu(_attention(*(_held(x) for x in (query, key, value, mask)), **how))

    @staticmethod
    def backward(ctx: Any, gradient: Gpu) -> Any:
        *given, mask = ctx.saved_tensors
        GPU.launched()
        strict = torch.are_deterministic_algorithms_enabled()
        GPU.loose += not strict or torch.is_deterministic_algorithms_warn_only_enabled()
        with _off(), torch.enable_grad():
            held = [_held(x).detach().requires_grad_() for x in given]
            out = _attention(*held, _held(mask), **ctx.how)
            found = torch.autograd.grad(out, held, _held(gradient))
        return (*(Gpu(x.detach()) for x in found), None, None)
