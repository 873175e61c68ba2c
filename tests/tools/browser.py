"""A headless Chromium for tests: pages from disk, with everything they log or ask for on record."""

from __future__ import annotations

import base64
import json
import os
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pipelines.page import PACKED

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


@dataclass
class Opened:
    """A page in the browser, and what it did that a page from disk should not do."""

    page: Any
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def assert_harmless(self) -> None:
        """Nothing was logged or blocked, and no request went elsewhere than to the page itself."""
        assert self.complaints == []
        assert self.requests != []
        elsewhere = [u for u in self.requests if not u.startswith(("file:", "data:"))]
        assert elsewhere == []
        assert self.page.evaluate("window.harm") is None

    def sideways(self) -> int:
        """Pixels by which the page is wider than its window."""
        return int(self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth"))


def page_data(path: Path) -> dict[str, Any]:
    """The data that a written page holds, unpacked; without a browser."""
    text = path.read_text(encoding="utf-8")
    data: dict[str, Any] = json.loads(text.split('id="data">', 1)[1].split("</script>", 1)[0])
    for name in PACKED:
        if name in data:
            data[name] = json.loads(zlib.decompress(base64.b64decode(data[name])))
    return data


class Browser:
    """Opens pages; each in a context of its own, so that nothing is remembered."""

    def __init__(self, chromium: Any) -> None:
        self._chromium = chromium

    def open(self, path: Path, *, width: int = 1280, dark: bool = False, scale: float = 1) -> Opened:
        context = self._chromium.new_context(
            viewport={"width": width, "height": 900},
            color_scheme="dark" if dark else "light",
            device_scale_factor=scale,
            reduced_motion="reduce",
        )
        opened = Opened(context.new_page())
        opened.page.set_default_timeout(20_000)
        opened.page.on("console", lambda message: opened.complaints.append(message.text))
        opened.page.on("pageerror", lambda error: opened.complaints.append(str(error)))
        opened.page.on("request", lambda request: opened.requests.append(request.url))
        opened.page.on("dialog", lambda dialog: opened.complaints.append(f"dialog {dialog.message}"))
        opened.page.goto(path.absolute().as_uri())
        opened.page.wait_for_selector("main[aria-busy=false]")
        return opened


def installed() -> str | None:
    """The browser's path, if there is one."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


@contextmanager
def chromium() -> Iterator[Browser]:
    """A running Chromium.

    Raises:
        pytest.skip.Exception: there is none here; where ``CI`` is set, that is a failure instead.
    """
    path = installed()
    if path is None:
        reason = f"no Chromium is installed (looked for {', '.join(NAMES)})"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        try:
            yield Browser(running)
        finally:
            running.close()


def tokens(opened: Opened) -> list[dict[str, Any]]:
    """Every token as it is shown: text, whether underlined, colours as [r, g, b] in 0..1."""
    opened.page.wait_for_selector(".tokens[aria-busy=false]")
    found: list[dict[str, Any]] = opened.page.evaluate("""() => {
      const colour = (text) => {
        const parts = text.match(/[\\d.]+/g).slice(0, 3).map(Number);
        return text.startsWith("color(srgb") ? parts : parts.map((p) => p / 255);
      };
      return [...document.querySelectorAll(".tokens .token")].map((token) => {
        const style = getComputedStyle(token);
        return { text: token.textContent, perception: Number(token.dataset.perception),
          kept: style.textDecorationLine === "underline", ink: colour(style.color),
          background: colour(style.backgroundColor) };
      });
    }""")
    return found
