"""Token perception in a terminal: text on shades of one blue, kept tokens underlined.

The shades differ in how blue they are more than in how light, so that they stand out from a dark and a
light background alike, and blue against grey is told apart by colour-blind people.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from vppo_cli.screen.display import plain

SHADES = (
    (0.5, "bold #ffffff on #005fff"),
    (0.2, "#ffffff on #005faf"),
    (0.05, "#ffffff on #56789f"),
    (0.01, "#ffffff on #767676"),
)
"""From this share of the response's highest perception on -> style."""

LEAST = 1e-4
"""Where no token has more than this, nothing is shaded: it is rounding."""


def style(value: float, highest: float) -> str:
    """How a token is shown."""
    if highest < LEAST:
        return ""
    return next((look for share, look in SHADES if value >= share * highest), "")


def shaded(tokens: Sequence[str], perception: Sequence[float], keep: Sequence[bool]) -> Text:
    """The response, its tokens shaded and kept ones underlined; blanks around words stay plain."""
    highest = max(perception, default=0.0)
    text = Text()
    for token, value, kept in zip(tokens, perception, keep, strict=True):
        shown = plain(token, 0)
        word = shown.strip()
        look = f"{style(value, highest)} underline" if kept else style(value, highest)
        before, _, after = shown.partition(word) if word else (shown, "", "")
        text.append(before)
        text.append(word, look.strip() or None)
        text.append(after)
    return text


def scale(perception: Sequence[float]) -> Text:
    """The shades, each with the value it begins at; empty where nothing is shaded."""
    highest = max(perception, default=0.0)
    if highest < LEAST:
        return Text()
    parts = [Text(f" {share * highest:.2g} ", look) for share, look in reversed(SHADES)]
    return Text(" ").join(parts)
