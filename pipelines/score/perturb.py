"""Perturbed images: what the model must do without when its token perception is measured.

Perturbations work on the processed ``pixel_values``, on the patch grid of the vision encoder, so
that a black patch is exactly one patch the encoder sees. Two layouts occur:

    Qwen2-VL, Qwen2.5-VL, Qwen3-VL: [patches of all images, C * F * p * p], with ``grid_thw``
    SmolVLM, Idefics3, LLaVA:       [..., C, H, W]; each [C, H, W] is an image or a tile of one

Axes: C colour channels, H and W pixels, F frames (Qwen stacks a still image with itself), p patch
side. One generator makes one draw; the caller seeds it by (run, step, prompt), or by response.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from pipelines.config.resolve import find_part
from pipelines.errors import UserError

# The settings of the paper's Table 11 (arXiv 2510.09285), in units of 0..255 and of pixels.
NOISE_SIGMA = 189.0
BLUR_SIGMA = 6.0
GREY = 128.0


@dataclass(frozen=True)
class _Scale:
    """How pixels were normalised, and how they are cut into patches."""

    mean_C11: Tensor
    std_C11: Tensor
    patch_size: int
    temporal_patch_size: int
    probability: float

    def normalize(self, pixels: Tensor | float) -> Tensor:
        """0..255 -> what the encoder gets."""
        return (pixels / 255.0 - self.mean_C11) / self.std_C11

    def pixels(self, image_FCHW: Tensor) -> Tensor:
        """What the encoder gets -> 0..255."""
        return (image_FCHW * self.std_C11 + self.mean_C11) * 255.0


def _patch_black(image_FCHW: Tensor, rng: np.random.Generator, scale: _Scale) -> Tensor:
    """Each patch black with the probability, independently; the others untouched."""
    frames, _, height, width = image_FCHW.shape
    p, t = scale.patch_size, scale.temporal_patch_size
    # A last, partial patch that the encoder ignores gets a number too.
    grid = (math.ceil(frames / t), math.ceil(height / p), math.ceil(width / p))
    black = torch.from_numpy(rng.random(grid) < scale.probability).to(image_FCHW.device)
    for axis, size in enumerate((t, p, p)):
        black = black.repeat_interleave(size, dim=axis)
    black_F1HW = black[:frames, :height, :width].unsqueeze(1)
    return torch.where(black_F1HW, scale.normalize(0.0), image_FCHW)


def _gaussian_noise(image_FCHW: Tensor, rng: np.random.Generator, scale: _Scale) -> Tensor:
    """Normal noise of sigma 189 on every channel, clipped to the range of a pixel."""
    frames, *shape = image_FCHW.shape
    t = scale.temporal_patch_size
    # The frames of one patch are one still image: they get the same noise.
    noise = rng.standard_normal((math.ceil(frames / t), *shape), dtype=np.float32)
    noise_FCHW = torch.from_numpy(noise).to(image_FCHW.device).repeat_interleave(t, 0)[:frames]
    return scale.normalize((scale.pixels(image_FCHW) + NOISE_SIGMA * noise_FCHW).clamp(0.0, 255.0))


def _gaussian_blur(image_FCHW: Tensor, rng: np.random.Generator, scale: _Scale) -> Tensor:
    """Gaussian of sigma 6 pixels, which is PIL's radius 6; the border repeats its last pixel.

    Linear with weights that add up to 1, so the normalisation may stay on.
    """
    reach = math.ceil(3 * BLUR_SIGMA)
    offsets = torch.arange(-reach, reach + 1, device=image_FCHW.device, dtype=torch.float32)
    weights = torch.softmax(-(offsets**2) / (2 * BLUR_SIGMA**2), 0)
    frames, channels, height, width = image_FCHW.shape
    planes = image_FCHW.reshape(frames * channels, 1, height, width)
    across = F.pad(planes, (reach, reach, 0, 0), mode="replicate")
    planes = F.conv2d(across, weights.view(1, 1, 1, -1))
    down = F.pad(planes, (0, 0, reach, reach), mode="replicate")
    planes = F.conv2d(down, weights.view(1, 1, -1, 1))
    return planes.reshape(image_FCHW.shape)


def _grey(image_FCHW: Tensor, rng: np.random.Generator, scale: _Scale) -> Tensor:
    """The whole image one grey of 128."""
    return scale.normalize(GREY).expand_as(image_FCHW).clone()


_Perturbation = Callable[[Tensor, np.random.Generator, _Scale], Tensor]

PERTURBATIONS: dict[str, _Perturbation] = {
    "patch_black": _patch_black,
    "gaussian_noise": _gaussian_noise,
    "gaussian_blur": _gaussian_blur,
    "grey": _grey,
}
"""Normalised float32 image -> perturbed image, both [F, C, H, W]. The paper's averages (Table 11),
with its own of each kind, in this order: 57.5, 56.5, 56.4, 56.4."""


def perturbation_settings(how: str, probability: float) -> dict[str, float]:
    """What a perturbation is drawn with: chances; sigma and grey in units of 0..255, of a blur in pixels."""
    chance = {"probability": probability}
    known = {"patch_black": chance, "raw_black": chance, "gaussian_noise": {"sigma": NOISE_SIGMA}}
    known |= {"gaussian_blur": {"sigma": BLUR_SIGMA}, "grey": {"value": GREY}}
    return known.get(how, {})


def _find(how: str) -> _Perturbation:
    """A perturbation by name; one's own gets and returns pixels of 0..255.

    Raises:
        UserError: there is none, or one's own returns something else than an image of the same shape.
    """
    part = find_part("score.perturbation", how, PERTURBATIONS)
    if how in PERTURBATIONS:
        return part

    def own(image_FCHW: Tensor, rng: np.random.Generator, scale: _Scale) -> Tensor:
        result = part(scale.pixels(image_FCHW), rng)
        shape = list(image_FCHW.shape)
        if not isinstance(result, Tensor) or list(result.shape) != shape:
            found = str(list(result.shape)) if isinstance(result, Tensor) else type(result).__name__
        elif result.is_complex():
            found = "complex numbers"
        else:
            pixels_FCHW = result.to(image_FCHW)
            if bool(torch.isfinite(scale.normalize(pixels_FCHW)).all()):
                return scale.normalize(pixels_FCHW)
            found = f"numbers that are not finite in {str(image_FCHW.dtype).removeprefix('torch.')} (NaN or infinite)"
        raise UserError(
            f"score.perturbation: {how}",
            f"returned {found} for an image of {shape}.",
            "Return a tensor of the same shape, [frames, channels, height, width], of 0..255.",
        )

    return own


def patches_to_image(
    patches: Tensor, grid: tuple[int, int, int], patch_size: int, temporal_patch_size: int = 2, merge_size: int = 2
) -> Tensor:
    """One image from its Qwen patches -> [F, C, H, W]; the inverse of :func:`image_to_patches`.

    Args:
        patches: [T * Y * X, C * f * p * p], rows in blocks of ``merge_size`` squared neighbours.
        grid: patches in time, down and across (T, Y, X): a row of ``image_grid_thw``.
        patch_size: p.
        temporal_patch_size: f, frames a patch; F = T * f.
        merge_size: side of the blocks whose patches the encoder merges into one token.
    """
    t, y, x = grid
    f, p, m = temporal_patch_size, patch_size, merge_size
    c = patches.shape[1] // (f * p * p)
    # T, Y/m, X/m, m, m, C, f, p, p -> T, f, C, Y/m, m, p, X/m, m, p
    blocks = patches.reshape(t, y // m, x // m, m, m, c, f, p, p)
    return blocks.permute(0, 6, 5, 1, 3, 7, 2, 4, 8).reshape(t * f, c, y * p, x * p)


def image_to_patches(image_FCHW: Tensor, patch_size: int, temporal_patch_size: int = 2, merge_size: int = 2) -> Tensor:
    """An image cut into Qwen's patches -> [T * Y * X, C * f * p * p].

    H and W are multiples of ``patch_size * merge_size``, F of ``temporal_patch_size``.
    """
    frames, c, height, width = image_FCHW.shape
    f, p, m = temporal_patch_size, patch_size, merge_size
    t, y, x = frames // f, height // p, width // p
    # T, f, C, Y/m, m, p, X/m, m, p -> T, Y/m, X/m, m, m, C, f, p, p
    blocks = image_FCHW.reshape(t, f, c, y // m, m, p, x // m, m, p)
    return blocks.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(t * y * x, c * f * p * p)


def perturb(
    pixel_values: Tensor,
    how: str,
    rng: np.random.Generator,
    *,
    image_mean: Sequence[float],
    image_std: Sequence[float],
    patch_size: int,
    temporal_patch_size: int = 2,
    grid_thw: Tensor | None = None,
    merge_size: int = 2,
    pixel_mask: Tensor | None = None,
    probability: float = 0.5,
) -> Tensor:
    """The processed images of one prompt, perturbed -> same shape, dtype and device.

    Args:
        pixel_values: as the processor made them, in one of the two layouts above.
        how: a key of PERTURBATIONS, or the import path of a function from (pixels of 0..255,
            [F, C, H, W] float32, numpy Generator) to such pixels.
        rng: one for all images of the call; the result is a function of it and the images.
        image_mean, image_std: of the processor, per channel, for pixels in 0..1.
        patch_size: side of the encoder's patches, in processed pixels.
        temporal_patch_size, merge_size: of the processor; used with ``grid_thw`` only.
        grid_thw: [images, 3] for Qwen's layout; None for the other.
        pixel_mask: [..., H, W] for the other, 0 where an image or a tile is filled up to the size of
            the largest; that stays.
        probability: of a black patch.
    """
    function = _find(how)
    mean_C11, std_C11 = (
        torch.tensor(list(values), dtype=torch.float32, device=pixel_values.device).view(-1, 1, 1)
        for values in (image_mean, image_std)
    )
    frames = 1 if grid_thw is None else temporal_patch_size
    scale = _Scale(mean_C11, std_C11, patch_size, frames, probability)

    if grid_thw is not None:
        grids: list[tuple[int, int, int]] = [(t, y, x) for t, y, x in grid_thw.tolist()]
        cut = (patch_size, temporal_patch_size, merge_size)
        parts = pixel_values.float().split([t * y * x for t, y, x in grids])
        if how == "patch_black":  # whole patches: no image has to be put together
            done = [
                torch.where(
                    _black_rows(grid, rng, probability, merge_size).to(part.device), _black_row(scale, part), part
                )
                for part, grid in zip(parts, grids, strict=True)
            ]
            return torch.cat(done).to(pixel_values.dtype)
        done = [
            image_to_patches(function(patches_to_image(part, grid, *cut), rng, scale), *cut)
            for part, grid in zip(parts, grids, strict=True)
        ]
        return torch.cat(done).to(pixel_values.dtype)

    tiles = pixel_values.float().reshape(-1, 1, *pixel_values.shape[-3:])
    # Processors fill a batch up with tiles of zeros, which the models recognise as such and skip:
    # they stay, and use no random number, so that the result does not depend on the filling.
    done = [function(tile, rng, scale) if tile.any() else tile for tile in tiles]
    result = torch.stack(done).reshape(pixel_values.shape).to(pixel_values.dtype)
    if pixel_mask is None:
        return result
    return torch.where(pixel_mask.bool().unsqueeze(-3), result, pixel_values)


def _black_rows(grid: tuple[int, int, int], rng: np.random.Generator, probability: float, merge_size: int) -> Tensor:
    """Which of an image's Qwen patches are black [T * Y * X, 1]: the draws of ``_patch_black``."""
    black_T1YX = torch.from_numpy(rng.random(grid) < probability).unsqueeze(1)
    return image_to_patches(black_T1YX, 1, 1, merge_size)


def _black_row(scale: _Scale, patches: Tensor) -> Tensor:
    """What a black patch is for the encoder: its channels' black, each for all its pixels."""
    black_C = scale.normalize(0.0).flatten().to(patches.device)
    return black_C.repeat_interleave(patches.shape[1] // len(black_C))


RAW = ("raw_black", "evidence")
"""Perturbations of the image before the processor: ``blacken_raw``, ``blacken_boxes``."""

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, as shares of the image's width and height."""


def blacken_boxes(image: Image.Image, boxes: Sequence[Box]) -> Image.Image:
    """The image, RGB, with the boxes black; their edges to the nearest pixel."""
    pixels_HWC = np.array(image.convert("RGB"))
    height, width, _ = pixels_HWC.shape
    for left, top, right, bottom in boxes:
        pixels_HWC[round(top * height) : round(bottom * height), round(left * width) : round(right * width)] = 0
    return Image.fromarray(pixels_HWC)


def blacken_raw(
    image: Image.Image, rng: np.random.Generator, probability: float = 0.5, square: int = 14
) -> Image.Image:
    """The authors' perturbation: black squares on the image, before the processor resizes it.

    Independent for each square of a grid from the top left corner; those at the right and the
    bottom may be cut. The squares match no patch of the encoder unless the image keeps its size.

    Args:
        image: of any mode; the result is RGB.
        square: side, in raw pixels.
    """
    pixels_HWC = np.array(image.convert("RGB"))
    height, width, _ = pixels_HWC.shape
    grid = (math.ceil(height / square), math.ceil(width / square))
    black = (rng.random(grid) < probability).repeat(square, axis=0).repeat(square, axis=1)
    pixels_HWC[black[:height, :width]] = 0
    return Image.fromarray(pixels_HWC)
