"""One's own question about one's own images, checked. Torch-free."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from pipelines.disk.records import Sample
from pipelines.errors import UserError
from pipelines.model.images import MAX_IMAGE_BYTES, Unusable, about, png
from pipelines.prepare.rows import IMAGE, check_question

ImageLike = str | Path | bytes | Image.Image


def example(image: ImageLike | Sequence[ImageLike] | None, prompt: str, name: str = "example") -> Sample:
    """One's own question, checked.

    Raises:
        UserError: no image, or one that cannot be read; an empty prompt; places that do not fit the images.
    """
    sample = question(image, prompt, name)
    if not sample.images:
        raise UserError("image", "none is given: there is nothing to perceive.", "Name one.")
    return sample


def question(image: ImageLike | Sequence[ImageLike] | None, prompt: str, name: str) -> Sample:
    """The same, which may be of text alone.

    Args:
        image: one, or a list; None or an empty list: there is none.

    Raises:
        UserError: as of ``example``.
    """
    given = [] if image is None else list(image) if isinstance(image, (list, tuple)) else [image]
    images = [encoded_image(one, f"image {i}") for i, one in enumerate(given, 1)]  # type: ignore[arg-type]
    if not prompt.replace(IMAGE, "").strip():
        raise UserError("prompt", "is empty.", "Ask something.")
    try:
        check_question(prompt, len(images))
    except Unusable as why:
        raise UserError("prompt", f"{why.detail}.", "Write one for each image, or none.") from why
    return Sample(name, prompt, images, "")


def encoded_image(image: ImageLike, place: str) -> bytes:
    """The bytes of an image file, decoded once to see that it is one.

    Raises:
        UserError: there is no such file, or it is no image.
    """
    if isinstance(image, Image.Image):
        try:
            return png(image)
        except Unusable as why:
            raise UserError(place, f"{why}.", "Give it in 8 bits a channel.") from why
    if isinstance(image, (str, Path)):
        place = f"image {image}"
        image = _content(Path(image), place)
    try:
        about(image)
    except Unusable as why:
        raise UserError(
            place, f"{why.reason}: {why.detail}.", "PNG, JPEG, WebP, GIF, BMP, TIFF and PPM are read."
        ) from why
    return image


def _content(path: Path, place: str) -> bytes:
    try:
        mode = path.stat().st_mode  # opening a pipe would wait for who writes into it
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise UserError(place, "is no file that ends.", "Devices and pipes are not read.")
        with path.open("rb") as file:
            return file.read(MAX_IMAGE_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        detail = getattr(error, "strerror", None) or str(error)
        raise UserError(place, f"cannot be read ({detail}).", "Check the path.") from error
