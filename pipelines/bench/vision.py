"""A vision tower's windows in one call against the library's loop, its patches by a product against the
convolution: seconds, forward and with gradients.

The tower is Qwen2.5-VL's with 8 layers (2 of them without windows) of width 256, patches are embedded into
its own 1,280 dimensions; all random.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.bench.measure import alternate, ratio
from pipelines.model import vision

GRIDS = ((8, 8), (16, 16), (32, 32), (64, 80), (62, 78))
"""Height and width in patches, four to a token; the last divides into windows of four sizes."""
PATCH = (3, 2, 14, 14)
WIDTH = 1280


def tower() -> Any:
    """Random weights from a seed."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    text = {
        "hidden_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 64,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
    }
    sight = {
        "hidden_size": 256,
        "depth": 8,
        "num_heads": 4,
        "intermediate_size": 512,
        "out_hidden_size": 64,
        "fullatt_block_indexes": [3, 7],
    }
    torch.manual_seed(0)
    config = Qwen2_5_VLConfig(text_config=text, vision_config=sight)
    model: Any = Qwen2_5_VLForConditionalGeneration(config)
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def compare(shape: str, repeats: int, out: Path, say: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """Every size of image, without and with gradients; the figures so far after each."""
    model, rng = tower(), torch.Generator().manual_seed(0)
    device = next(model.parameters()).device
    conv, product = (nn.Conv3d(PATCH[0], WIDTH, PATCH[1:], PATCH[1:], bias=False).to(device) for _ in range(2))
    vision.patches_by_product(product)
    rows: list[dict[str, Any]] = []
    for height, width in GRIDS:
        say(f"vision: {height} x {width} patches")
        patches = torch.randn(height * width, *PATCH, generator=rng).to(device)
        grid = torch.tensor([[1, height, width]], device=device)
        for back in (False, True):
            windows = alternate(
                {
                    "loop": partial(_seen, model, vision.leave_windows, patches.flatten(1), grid, back),
                    "one call": partial(_seen, model, vision.attend_in_windows, patches.flatten(1), grid, back),
                },
                repeats,
            )
            embedding = alternate(
                {
                    "convolution": partial(_pass, partial(conv, patches), back),
                    "product": partial(_pass, partial(product, patches), back),
                },
                repeats,
            )
            rows.append(
                {
                    "patches": height * width,
                    "gradients": back,
                    "windows": windows,
                    "embedding": embedding,
                    "windows_faster": ratio(windows["loop"], windows["one call"]),
                    "embedding_faster": ratio(embedding["convolution"], embedding["product"]),
                }
            )
            yield {"rows": rows}


def _seen(model: Any, attend: Callable[[Any], None], patches: Tensor, grid: Tensor, back: bool) -> None:
    attend(model)
    _pass(lambda: model.base_model.visual(patches, grid_thw=grid).pooler_output, back)


def _pass(compute: Callable[[], Tensor], back: bool) -> None:
    if not back:
        with torch.no_grad():
            compute()
    else:
        compute().square().sum().backward()
