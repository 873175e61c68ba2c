"""The README's screenshots, from a finished run: ``python tests/tools/screenshots.py RUN [--out DIR]``."""

from __future__ import annotations

import argparse
import io
import tempfile
from pathlib import Path
from typing import Any

from browser import Opened, chromium
from PIL import Image

from pipelines.page import write_page
from vppo_cli.report import collect
from vppo_cli.report.source import RunSource

LARGEST = 400_000
"""Bytes of a screenshot in the repository."""


def save(png: bytes, path: Path) -> None:
    """Write it as small as PNG can be without losing anything."""
    with Image.open(io.BytesIO(png)) as picture:
        picture.convert("RGB").save(path, optimize=True)
    size = path.stat().st_size
    assert size < LARGEST, f"{path}: {size} bytes"
    print(f"{path}  {size / 1000:.0f} kB")


def report(opened: Opened) -> bytes:
    """The top of the page with the curves, one of them pointed at."""
    opened.page.wait_for_selector(".chart svg")
    opened.page.locator("figure.chart svg").first.hover(position={"x": 220, "y": 90})
    return bytes(opened.page.screenshot(clip={"x": 0, "y": 0, "width": 1280, "height": 900}))


def viewer(opened: Opened) -> bytes:
    """The viewer at the response that depends most on the image, its most perceptive token pointed at."""
    page: Any = opened.page
    page.evaluate("document.querySelector('.bar').style.display = 'none'")  # it would lie over it
    page.select_option("[aria-label='Responses of']", "step")
    page.select_option("[aria-label=Order]", "dependency")
    page.wait_for_selector(".tokens[aria-busy=false]")
    page.evaluate("""() => {
      const tokens = [...document.querySelectorAll(".tokens .token")];
      tokens.sort((a, b) => b.dataset.perception - a.dataset.perception)[0]?.click();
    }""")
    return bytes(page.locator("#token-viewer").screenshot())


def viewer_phone(opened: Opened) -> bytes:
    """A phone's screen with the tokens in the middle, one of them tapped."""
    page: Any = opened.page
    viewer(opened)
    page.evaluate("document.querySelector('.images').scrollIntoView({block: 'start'})")
    page.evaluate("window.scrollBy(0, 120)")
    return bytes(page.screenshot())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", nargs="?", help="a run (default: the latest)")
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    source = RunSource.open(given.run)
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        page = Path(folder) / "report.html"
        write_page(page, source.name, collect([source]))
        for name, width, scale, take in (
            ("report", 1280, 1.5, report),
            ("viewer", 1280, 1.5, viewer),
            ("viewer-phone", 390, 2.0, viewer_phone),
        ):
            for dark in (False, True):
                opened = browser.open(page, width=width, dark=dark, scale=scale)
                save(take(opened), given.out / f"{name}{'-dark' if dark else ''}.png")


if __name__ == "__main__":
    main()
