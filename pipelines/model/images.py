"""An encoded image -> the RGB image that a person sees, which is what the model gets. Torch-free.

Training, evaluation and perceive all decode by :func:`open_image`, and all sizes are :func:`image_size`:

- turned as its EXIF orientation says;
- what is transparent (alpha, palette entries, a colour key) stands on white;
- of several frames or pages, the first;
- 16-bit grey (and 32-bit integers): 65535 is white. Where no value is above 255 they are taken for 8-bit
  values; where none is above 4095, or one is below 0 or above 65535, which value is white is not known, and
  the image is refused. Real numbers: 1 is white where none is above 1, else 255; refused where one is
  negative, above 255 or not a number;
- CMYK, YCCK, LAB, YCbCr, HSV, one bit and palettes as Pillow converts them.

Images come from outside: they must decode completely, in a format that needs no outside program, and a
header that announces absurd sizes is refused before anything is decoded.
"""

from __future__ import annotations

import io
import logging
import math
import struct
import warnings
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

logging.getLogger("PIL").addHandler(logging.NullHandler())  # what it says before it raises is in the error

MAX_IMAGE_BYTES = 64 * 2**20
"""Larger encoded images are left out."""

MAX_IMAGE_PIXELS = 64_000_000
"""Larger images are left out: decoded, such an image takes 192 MB. Models shrink to about 1 M."""

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""Formats that PIL decodes by itself (EPS, for one, would run Ghostscript on the data)."""

WHITE_16 = 65535
DARKEST_WHITE_16 = 4096
"""16-bit images whose values all lie below this, and not all in 8 bits, hold 10- or 12-bit values, or
nearly nothing."""

_ORIENTATION = 0x0112  # the EXIF tag
_PHOTOMETRIC = 262  # the TIFF tag; 0: the value 0 is white
_WIDE = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")
_UNDECODABLE = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)
"""What PIL's decoders raise on damaged data."""


class Unusable(ValueError):
    """Why a row cannot be used. ``reason`` is one of a few phrases, ``detail`` what was found."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


@dataclass(frozen=True)
class About:
    """What decoding an image told: its size as seen, whether it is a single colour, Pillow's warnings."""

    height: int
    width: int
    single_colour: bool
    warnings: tuple[str, ...]


def open_image(data: bytes) -> Image.Image:
    """Decode an encoded image to the RGB image that the model gets.

    Raises:
        Unusable: it is not an image, is damaged, beyond the size limits, or of unknown brightness.
    """
    return _decoded(data)[0]


@lru_cache(maxsize=8)  # prepare asks for the same image up to three times in a row
def about(data: bytes) -> About:
    """Decode an image to the end, as training will, and drop the pixels.

    Raises:
        Unusable: as :func:`open_image`.
    """
    image, warned = _decoded(data)
    single = all(low == high for low, high in image.getextrema())  # type: ignore[misc]
    return About(image.height, image.width, single, warned)


def image_size(data: bytes) -> tuple[int, int]:
    """An encoded image's (height, width) as the model gets it, turned if it has to be.

    Raises:
        Unusable: as :func:`open_image`.
    """
    found = about(data)
    return found.height, found.width


def limited_size(height: int, width: int, min_pixels: int | None, max_pixels: int | None) -> tuple[int, int]:
    """(height, width) of an image shrunk to ``max_pixels``, or enlarged to ``min_pixels``, before the
    processor sees it: sides by one factor, rounded down, as EasyR1 does. None is no limit."""
    if max_pixels is not None and height * width > max_pixels:
        height, width = _scaled(height, width, max_pixels)
    if min_pixels is not None and height * width < min_pixels:
        height, width = _scaled(height, width, min_pixels)
    return height, width


def _scaled(height: int, width: int, pixels: int) -> tuple[int, int]:
    factor = math.sqrt(pixels / (height * width))
    return max(int(height * factor), 1), max(int(width * factor), 1)


def png(image: Image.Image) -> bytes:
    """An image of any mode, as it is seen, as PNG.

    Raises:
        Unusable: which of its values is white is not known.
    """
    buffer = io.BytesIO()
    seen(image).save(buffer, "PNG")
    return buffer.getvalue()


def as_shown(data: bytes) -> bytes:
    """The encoded image for whoever decodes it by other means, such as a browser.

    Itself where any decoder gives what the model gets; else that as PNG.

    Raises:
        Unusable: as :func:`open_image`.
    """
    shown = open_image(data)
    with _warnings(), Image.open(io.BytesIO(data), formats=FORMATS) as image:
        plain = image.mode in ("L", "RGB") and "transparency" not in image.info
        if plain and _orientation(image) == 1 and getattr(image, "n_frames", 1) == 1:
            return data
    return png(shown)


def _decoded(data: bytes) -> tuple[Image.Image, tuple[str, ...]]:
    if len(data) > MAX_IMAGE_BYTES:
        raise Unusable("image too large", f"{len(data)} bytes")
    try:
        with _warnings() as found, Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_IMAGE_PIXELS:
                raise Unusable("image too large", f"{width} x {height} pixels")
            if width * height == 0:
                raise Unusable("unreadable image", f"{width} x {height} pixels")
            return seen(image, data), tuple(dict.fromkeys(str(one.message) for one in found))
    except Unusable:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Unusable("image too large", str(error)) from error
    except Image.UnidentifiedImageError as error:
        raise Unusable("unreadable image", f"{len(data)} bytes that are not an image") from error
    except _UNDECODABLE as error:
        raise Unusable("unreadable image", str(error) or type(error).__name__) from error


@contextmanager
def _warnings() -> Iterator[list[warnings.WarningMessage]]:
    """Collects what Pillow warns of, instead of letting it through to the screen."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield found


def seen(image: Image.Image, data: bytes = b"") -> Image.Image:
    """An opened image of any mode as a person sees it: RGB, upright, on white.

    Args:
        data: the file it was opened from, if it was from one.

    Raises:
        Unusable: which of its values is white is not known.
    """
    layout = next(iter(getattr(image, "tile", ())), None)  # gone once it is loaded
    image.load()
    orientation = _orientation(image)
    if image.mode in _WIDE:
        shown = _narrowed(image)
    else:
        shown = _on_white(image, layout.args if layout and isinstance(layout.args, str) else "")
    covered = _webp_frame(data) if image.format == "WEBP" else None
    if image.format == "GIF" and layout:
        covered = layout.extents
    if covered and covered != (0, 0, *shown.size):  # the rest of the canvas is clear
        white = Image.new("RGB", shown.size, "white")
        white.paste(shown.crop(covered), covered[:2])
        shown = white
    if orientation in _TURNS:
        shown = shown.transpose(_TURNS[orientation])
    shown.info = {}  # nobody is to turn it again, or to take one of its colours for clear
    return shown


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What puts an image upright, by its EXIF orientation; 1 is upright."""


def _orientation(image: Image.Image) -> Any:
    """The EXIF orientation; 1 where there is none, or EXIF is damaged, as viewers take it.

    Pillow itself has turned a TIFF by the time it is loaded, and says so by 1.
    """
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except _UNDECODABLE:
        return 1


def _on_white(image: Image.Image, layout: str) -> Image.Image:
    """RGB of an image of 8 bits a channel or fewer; ``layout`` is Pillow's name for that of a PNG."""
    key = image.info.get("transparency")
    if image.mode in ("L", "RGB", "1") and key is not None:
        return _without_colour(image, key, layout)
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or key is not None:
        above = image.convert("RGBA")
        white = Image.new("RGBA", above.size, "white")
        return Image.alpha_composite(white, above).convert("RGB")
    return image.convert("RGB")


def _without_colour(image: Image.Image, key: Any, layout: str) -> Image.Image:
    """RGB, white where the pixel is the file's transparent colour (tRNS of a PNG without palette).

    The key counts in the file's own depth, which Pillow has brought to 8 bits.
    """
    depth = 16 if "16" in layout else int(layout[2:]) if layout[:2] == "L;" else 8
    top = 2**depth - 1
    keys = [key] if isinstance(key, int) else list(key)
    pixels = np.array(image.convert("RGB"))
    if all(isinstance(value, int) and 0 <= value <= top for value in keys):
        scaled = [value >> 8 if depth == 16 else value * 255 // top for value in keys]
        pixels[(pixels == np.array(scaled, dtype=np.uint8)).all(axis=2)] = 255
    return Image.fromarray(pixels)


def _narrowed(image: Image.Image) -> Image.Image:
    """RGB of a grey image with more than 8 bits, by the rule at the top."""
    if image.mode == "F":
        values = np.asarray(image, dtype=np.float64)
        low, high = float(values.min()), float(values.max())  # NaN if any is NaN
        if not (low >= 0 and high <= 255):
            raise Unusable("unknown brightness", f"real numbers from {low:g} to {high:g}; expected 0 to 1, or 0 to 255")
        grey = values * (255 if high <= 1 else 1)
    else:
        values = np.asarray(image).astype(np.int64)
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > WHITE_16 or 255 < high < DARKEST_WHITE_16:
            raise Unusable(
                "unknown brightness", f"grey values from {low} to {high}; expected up to {WHITE_16} (white), or 8 bits"
            )
        grey = values / (WHITE_16 / 255 if high > 255 else 1)
    grey = np.rint(grey).astype(np.uint8)
    if getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0:
        grey = 255 - grey
    key = image.info.get("transparency")
    if isinstance(key, int):
        grey[np.asarray(image) == key] = 255
    return Image.fromarray(grey).convert("RGB")


def _webp_frame(data: bytes) -> tuple[int, int, int, int] | None:
    """Left, top, right and bottom of what the first frame of an animated WebP covers of its canvas.

    Encoders leave clear margins out, and then say that there is no alpha.
    """
    at = 12  # behind RIFF, size, WEBP
    while at + 24 <= len(data):
        name, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if name == b"ANMF":
            left, top, width, height = (
                int.from_bytes(data[at + 8 + 3 * i : at + 11 + 3 * i], "little") for i in range(4)
            )
            return 2 * left, 2 * top, 2 * left + width + 1, 2 * top + height + 1
        at += 8 + size + size % 2
    return None


class ImageTally:
    """Counts what is odd about images that are used all the same."""

    def __init__(self) -> None:
        self.single_colour = 0
        self._warned: Counter[str] = Counter()

    def add(self, images: Iterable[bytes]) -> None:
        """Look at these; each was decoded a moment ago."""
        for data in images:
            found = about(data)
            self.single_colour += found.single_colour
            if found.warnings:
                self._warned[found.warnings[0]] += 1

    def __iadd__(self, other: ImageTally) -> ImageTally:
        self.single_colour += other.single_colour
        self._warned += other._warned
        return self

    @property
    def warned(self) -> int:
        """How many images Pillow warned of."""
        return self._warned.total()

    def told(self) -> list[str]:
        """One line each for what was found."""
        lines = []
        if n := self.single_colour:
            lines.append(f"{n} images are a single colour" if n > 1 else "1 image is a single colour")
        if self.warned:
            (example, _), *_ = self._warned.most_common(1)
            what = "images" if self.warned > 1 else "image"
            lines.append(f"Pillow warns of {self.warned} {what} ({' '.join(example.split())[:120]})")
        return lines
