"""What the vision encoder is shown, as pictures for people: ``pixel_values`` back to PNG.

Qwen's processors give one picture for each image, as they resized it. Idefics3, SmolVLM and InternVL
cut an image into tiles: put together again they are one picture, and the overview of the whole image,
which the model sees as well, is the next. Where it cannot be told which tiles belong together, each
is a picture of its own.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from pipelines.model.images import image_size
from pipelines.score.perturb import patches_to_image

_CUT = re.compile(r"<row_(\d+)_col_(\d+)>|<global-img>")
"""How Idefics3 and SmolVLM announce a tile, and the overview that ends an image."""


def pictures(prompt: dict[str, Tensor], processor: Any, model_config: Any, images: Sequence[bytes]) -> list[bytes]:
    """The images of an encoded prompt as PNG, in order; none for a prompt without.

    Args:
        prompt: as :class:`pipelines.model.prompts.PromptEncoder` gives it, perturbed or not.
        processor: the one that made it; tells how pixels were normalised.
        model_config: of the model; tells how they are cut into patches.
        images: as they came; their shapes say how InternVL's tiles go together.
    """
    if "pixel_values" not in prompt:
        return []
    scale = processor.image_processor
    mean_C11, std_C11 = (torch.tensor(list(values)).view(-1, 1, 1) for values in (scale.image_mean, scale.image_std))
    return [
        _png((image_CHW * std_C11 + mean_C11) * 255) for image_CHW in _images(prompt, processor, model_config, images)
    ]


def _png(pixels_CHW: Tensor) -> bytes:
    values_HWC = pixels_CHW.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0)
    data = io.BytesIO()
    Image.fromarray(values_HWC.contiguous().numpy()).save(data, "PNG")
    return data.getvalue()


def _images(prompt: dict[str, Tensor], processor: Any, model_config: Any, images: Sequence[bytes]) -> Iterator[Tensor]:
    """Normalised pictures [C, H, W] float32."""
    values = prompt["pixel_values"].detach().float().cpu()
    if "image_grid_thw" in prompt:
        vision = model_config.vision_config
        grids = prompt["image_grid_thw"].tolist()
        cut = (vision.patch_size, vision.temporal_patch_size, vision.spatial_merge_size)
        for part, grid in zip(values.split([math.prod(g) for g in grids]), grids, strict=True):
            yield patches_to_image(part, tuple(grid), *cut)[0]  # a still image's frames are equal
        return
    tiles = _used(values, prompt.get("pixel_attention_mask"))
    for grid, count in _grids(prompt["input_ids"], processor, len(tiles), images):
        here, tiles = tiles[:count], tiles[count:]
        if grid:
            rows, columns = grid
            lines = [here[row * columns : (row + 1) * columns] for row in range(rows)]
            yield torch.cat([torch.cat(line, dim=2) for line in lines], dim=1)
            here = here[rows * columns :]
        yield from here


def _used(values: Tensor, mask: Tensor | None) -> list[Tensor]:
    """The tiles [C, H, W], without those of zeros that only fill up, and without filled-up margins."""
    tiles = list(values.reshape(-1, *values.shape[-3:]))
    if mask is not None:
        for index, used_HW in enumerate(mask.reshape(-1, *mask.shape[-2:]).bool().cpu()):
            height, width = int(used_HW.any(1).sum()), int(used_HW.any(0).sum())
            tiles[index] = tiles[index][:, :height, :width]
    return [tile for tile in tiles if tile.numel() and tile.any()]


Cut = tuple[tuple[int, int] | None, int]
"""(rows, columns) of an image's tiles, or None if it is not cut; tiles with the overview."""


def _grids(input_ids: Tensor, processor: Any, tiles: int, images: Sequence[bytes]) -> list[Cut]:
    """How each image was cut; one uncut tile after the other where that does not add up."""
    for found in (_announced(input_ids, processor), _counted(input_ids, processor, images)):
        if sum(count for _, count in found) == tiles:
            return found
    return [(None, 1)] * tiles


def _announced(input_ids: Tensor, processor: Any) -> list[Cut]:
    """From the tokens between the tiles, which name row and column of each."""
    found: list[Cut] = []
    rows = columns = count = 0
    for match in _CUT.finditer(processor.tokenizer.decode(input_ids)):
        count += 1
        if match[1]:
            rows, columns = max(rows, int(match[1])), max(columns, int(match[2]))
            continue
        whole = count == rows * columns + 1
        found.append(((rows, columns) if whole and rows else None, count))
        rows = columns = count = 0
    return found


def _counted(input_ids: Tensor, processor: Any, images: Sequence[bytes]) -> list[Cut]:
    """From the number of image tokens in a row, and the shape of the image (InternVL).

    Of the grids of so many tiles, its processor takes the one nearest to the image in shape.
    """
    each = getattr(processor, "image_seq_length", None)
    token = getattr(processor, "image_token_id", None)
    if not each or token is None:
        return []
    marks = "".join("x" if here else " " for here in (input_ids == token).tolist())
    runs = [len(run) // each for run in marks.split()]
    if len(runs) != len(images):
        return []
    found: list[Cut] = []
    for count, image in zip(runs, images, strict=True):
        height, width = image_size(image)
        shapes = [(r, (count - 1) // r) for r in range(1, count) if (count - 1) % r == 0]
        nearest = min(shapes, key=lambda s: abs(width / height - s[1] / s[0]), default=None)
        found.append((nearest, count))
    return found
