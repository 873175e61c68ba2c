"""Images as data URLs, small enough for a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

from pipelines.model.images import Unusable, as_shown, open_image

LARGE = 60_000
"""Bytes beyond which an image is made smaller for the page."""

SIDE = 896
"""Longest side, in pixels, of an image that was made smaller."""

_KINDS = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpeg", b"GIF8": "gif"}


class PageImages:
    """Makes data URLs; counts what was made smaller and what could not be read."""

    def __init__(self) -> None:
        self.shrunk = self.unreadable = 0

    def urls(self, images: Sequence[bytes]) -> list[str]:
        """``data:image/...`` of each image; "" for one that is no readable image."""
        return [self._url(image) for image in images]

    def _url(self, image: bytes) -> str:
        try:
            shown = as_shown(image)
            kind = next((name for start, name in _KINDS.items() if shown.startswith(start)), None)
            if kind and len(shown) <= LARGE:
                return _data_url(kind, shown)
            small = smaller(image)
        except Unusable:
            self.unreadable += 1
            return ""
        self.shrunk += len(shown) > LARGE
        return _data_url("webp", small)


def png_urls(images: Sequence[bytes]) -> list[str]:
    """``data:image/png`` of PNG images, as large as they are."""
    return [_data_url("png", image) for image in images]


def smaller(image: bytes, side: int = SIDE, quality: int = 82) -> bytes:
    """The image, as the model gets it, as WebP, no side longer than ``side`` pixels.

    Raises:
        Unusable: it is not a readable image.
    """
    picture = open_image(image)
    picture.thumbnail((side, side))
    out = io.BytesIO()
    picture.save(out, "WEBP", quality=quality)
    return out.getvalue()


def _data_url(kind: str, image: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"
