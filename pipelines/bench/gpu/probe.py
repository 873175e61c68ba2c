"""What the device does with our shapes: which kernels it takes, and how fast they are."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend
from torch.nn.functional import scaled_dot_product_attention

from pipelines.bench.gpu.place import Figures, Findings, Place
from pipelines.bench.measure import alternate, timed
from pipelines.model import determinism, vision
from pipelines.model.divergence import WIDTH
from pipelines.model.shared_prefix import layout

REPEATS = 5


@dataclass(frozen=True)
class Sizes:
    """A model's sizes, and of what it reads: tokens of a prompt and a response, patches of an image and
    of a window."""

    heads: int
    channels: int
    hidden: int
    vocabulary: int
    vision_heads: int
    vision_channels: int
    patches: int
    prompts: int
    prompt: int
    samples: int
    response: int
    window: int = 64


SIZES = {
    "tiny": Sizes(4, 32, 128, 412, 2, 32, 256, prompts=2, prompt=80, samples=4, response=16),
    "3b": Sizes(16, 128, 2048, 151_936, 16, 80, 5120, prompts=4, prompt=1440, samples=8, response=512),
}


def findings(place: Place) -> Findings:
    """Some 20 s on a GPU at 3b; what may be slow comes last."""
    at = SIZES[place.shape]
    yield "device", partial(_device, place)
    yield "peak", partial(_peak, place)
    yield "kernels started", partial(_launches, place)
    for dtype in (torch.bfloat16, torch.float32):
        for name, call in _calls(at, place, dtype).items():
            yield f"attention, {_word(dtype)}: {name}", partial(_attention, place, call)
    yield "attention with a mask, cuDNN's kernel", partial(_cudnn, place, at)
    yield "products of bfloat16 in float32", partial(_products, place, at)
    yield "head, 1,024 tokens", partial(_head, place, at)
    yield "vision windows, one layer", partial(_windows, place, at)
    yield "index_add", partial(_index_add, place, at)
    for dtype in (torch.bfloat16, torch.float32):
        yield f"patches, {_word(dtype)}", partial(_patches, place, at, dtype)


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _random(place: Place, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, device=place.device).to(dtype)


def _first_and_then(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds of the first call, and of a later one (median)."""
    times = [timed(work) for _ in range(REPEATS + 1)]
    return times[0], median(times[1:])


# -- the device ------------------------------------------------------------------------------------


def _device(place: Place) -> Figures:
    if not place.cuda:
        return {"name": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
    card = torch.cuda.get_device_properties(place.device)
    return {
        "name": card.name,
        "memory_bytes": card.total_memory,
        "capability": f"{card.major}.{card.minor}",
        "CUDA": torch.version.cuda,
        "cuDNN": torch.backends.cudnn.version(),
    }


def _peak(place: Place) -> Figures:
    """Operations of a large product, bytes of a copy (read and written)."""
    size, count = (8192, 2**31) if place.shape == "3b" else (512, 2**24)
    found = {}
    for dtype in (torch.bfloat16, torch.float32):
        a, b = (_random(place, size, size, dtype=dtype) for _ in range(2))
        found[f"{_word(dtype)}_flops"] = 2 * size**3 / _first_and_then(lambda a=a, b=b: a @ b)[1]  # type: ignore[misc]
    if place.cuda:
        with _tf32():
            found["TF32_flops"] = 2 * size**3 / _first_and_then(lambda: a @ b)[1]
    source = torch.zeros(count, dtype=torch.uint8, device=place.device)
    target = torch.empty_like(source)
    found["copy_bytes_per_s"] = 2 * len(source) / _first_and_then(lambda: target.copy_(source))[1]
    return found


def _launches(place: Place) -> Figures:
    place.need_cuda()
    x, count = torch.zeros(16, device=place.device), 2000

    def many() -> None:
        for _ in range(count):
            x.add_(1)

    return {"per_s": count / _first_and_then(many)[1]}


@contextlib.contextmanager
def _tf32() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


# -- attention -------------------------------------------------------------------------------------

Call = Callable[[], dict[str, Any]]
"""Makes the arguments of a call of SDPA."""


def _calls(at: Sizes, place: Place, dtype: torch.dtype) -> dict[str, Call]:
    """The four calls there are: prompts, responses over them, windows of an image, and all of it."""

    def sides(rows: int, heads: int, queries: int, keys: int, channels: int) -> dict[str, Any]:
        lengths = {"query": queries, "key": keys, "value": keys}
        return {name: _random(place, rows, heads, length, channels, dtype=dtype) for name, length in lengths.items()}

    def prompts() -> dict[str, Any]:
        shape = (at.prompts, at.heads, at.prompt, at.prompt, at.channels)
        return {**sides(*shape), "is_causal": True}

    def responses() -> dict[str, Any]:
        fed = at.response - 1
        (beside,) = layout([at.prompt], [[fed] * at.samples]).responses
        shape = (at.samples, at.heads, fed, at.prompt + fed, at.channels)
        return {**sides(*shape), "attn_mask": beside.to(place.device).bias(dtype)}

    def windows() -> dict[str, Any]:
        count = at.patches // at.window
        return sides(count, at.vision_heads, at.window, at.window, at.vision_channels)

    def image() -> dict[str, Any]:
        return sides(1, at.vision_heads, at.patches, at.patches, at.vision_channels)

    return {"prompts": prompts, "responses": responses, "windows": windows, "image": image}


def _attention(place: Place, call: Call) -> Figures:
    """Which kernel is taken, also in an update, and its seconds, without gradients and with."""
    given = call()
    first, then = _first_and_then(lambda: scaled_dot_product_attention(**given))
    found: Figures = {"kernel": _kernel(given), "first_s": first, "forward_s": then}
    sides = [given[name].requires_grad_() for name in ("query", "key", "value")]

    def both() -> None:
        torch.autograd.grad(scaled_dot_product_attention(**given).sum(), sides)

    with determinism.strict(place.device):
        found["in an update"] = _kernel(given)
        found["first with gradients_s"], found["with gradients_s"] = _first_and_then(both)
    return found


def _kernel(given: dict[str, Any]) -> str:
    """The name of the one that SDPA chooses."""
    query, key, value = given["query"], given["key"], given["value"]
    mask, causal = given.get("attn_mask"), given.get("is_causal", False)
    chosen = torch._fused_sdp_choice(query, key, value, mask, 0.0, causal)
    return SDPBackend(chosen).name.lower().removesuffix("_attention").replace("_", " ")


def _cudnn(place: Place, at: Sizes) -> Figures:
    """What we switch off: it plans anew for each shape."""
    place.need_cuda()
    given = _calls(at, place, torch.bfloat16)["responses"]()
    torch.backends.cuda.enable_cudnn_sdp(True)
    try:
        kernel = _kernel(given)
        first, then = _first_and_then(lambda: scaled_dot_product_attention(**given))
    finally:
        torch.backends.cuda.enable_cudnn_sdp(False)
    return {"kernel": kernel, "first_s": first, "forward_s": then}


# -- products --------------------------------------------------------------------------------------


def _products(place: Place, at: Sizes) -> Figures:
    """``mm`` of a tile of the head, and ``bmm`` over what responses said, even and odd many tokens."""
    place.need_cuda()
    half = partial(_random, place, dtype=torch.bfloat16)
    rows, queries = at.prompts * at.samples * 2, at.heads // 2
    ways = {"mm": (torch.mm, half(1024, at.hidden), half(at.hidden, WIDTH))}
    for name, tokens in (("bmm, 256 tokens", 256), ("bmm, 257 tokens", 257)):
        said = half(rows, tokens, at.channels).transpose(1, 2)
        ways[name] = (torch.bmm, half(rows, queries, at.channels), said)
    return {
        f"{name}_s": _first_and_then(partial(product, a, b, out_dtype=torch.float32))[1]
        for name, (product, a, b) in ways.items()
    }


def _head(place: Place, at: Sizes) -> Figures:
    """Logits of 1,024 tokens over the whole vocabulary; errors of logits of size 1, against float64."""
    hidden = _random(place, 1024, at.hidden)
    weight = _random(place, at.vocabulary, at.hidden) / at.hidden**0.5
    exact = hidden[:64].double() @ weight.double().T
    kinds: dict[str, tuple[contextlib.AbstractContextManager[None], torch.dtype]] = {
        "float32": (contextlib.nullcontext(), torch.float32),
        "bfloat16": (contextlib.nullcontext(), torch.bfloat16),
    }
    if place.cuda:
        kinds["TF32"] = (_tf32(), torch.float32)
    found = {}
    for name, (mode, dtype) in kinds.items():
        a, b = hidden.to(dtype), weight.to(dtype).T
        with mode:
            found[f"{name}_s"] = _first_and_then(lambda a=a, b=b: a @ b)[1]  # type: ignore[misc]
            found[f"{name} error"] = ((a[:64] @ b).double() - exact).abs().max().item()
    return found


def _patches(place: Place, at: Sizes, dtype: torch.dtype) -> Figures:
    """An image's patches embedded, by the convolution and by the product that a GPU takes."""
    inside, sides = at.vision_heads * at.vision_channels, (2, 14, 14)
    conv, product = (nn.Conv3d(3, inside, sides, sides, bias=False).to(place.device, dtype) for _ in range(2))
    vision.patches_by_product(product)
    patches = _random(place, at.patches, 3, *sides, dtype=dtype)
    found = {}
    for name, module in (("convolution", conv), ("product", product)):
        with torch.no_grad():
            found[f"{name}_s"] = _first_and_then(partial(module, patches))[1]
        found[f"{name} with gradients_s"] = _first_and_then(
            lambda module=module: module(patches).sum().backward()  # type: ignore[misc]
        )[1]
    return found


def _windows(place: Place, at: Sizes) -> Figures:
    given = _calls(at, place, torch.bfloat16)["windows"]()
    each = [{name: x[i : i + 1] for name, x in given.items()} for i in range(at.patches // at.window)]
    turns = alternate(
        {
            "loop": lambda: [scaled_dot_product_attention(**window) for window in each],
            "one call": lambda: scaled_dot_product_attention(**given),
        },
        REPEATS,
    )
    return {f"{name}_s": median(times) for name, times in turns.items()}


def _index_add(place: Place, at: Sizes) -> Figures:
    """Gradients of a prompt's states that every response has read, added up; the same twice?"""
    place.need_cuda()
    index = torch.arange(at.prompt, device=place.device).repeat(at.samples)
    values = _random(place, len(index), at.hidden)

    def add() -> Tensor:
        return torch.zeros(at.prompt, at.hidden, device=place.device).index_add_(0, index, values)

    found: Figures = {}
    for name, mode in (("free", determinism.free), ("deterministic", determinism.strict)):
        with mode(place.device):
            found[f"{name}_s"] = _first_and_then(add)[1]
            found[f"{name}, same twice"] = torch.equal(add(), add())
    return found
