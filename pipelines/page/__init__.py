"""One HTML page that holds everything it shows: it opens from disk and asks the network for nothing.

The page is a template, a style sheet and scripts, kept beside this file as what they are, and the data
as JSON (the token viewer's compressed). What models and data sets wrote only ever becomes text (the
scripts use textContent), and the Content-Security-Policy lets nothing run or load but the page's own
style and script, by their hashes, and images that are in the page. Torch-free.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import zlib
from importlib.resources import files
from pathlib import Path
from typing import Any

from pipelines.disk.step import disk_errors, write_atomic

SCRIPTS = ("theme.js", "base.js", "charts.js", "sections.js", "tokens.js", "viewer.js", "ledger.js", "start.js")
"""In the order in which they run: each uses only what stands before it."""

PACKED = ("viewer", "credit")
"""Sections that hold tokens: compressed in the page."""


def write_page(path: Path, title: str, sections: dict[str, Any]) -> None:
    """Write the page in one instant.

    ``sections`` are what to show, JSON values throughout. ``viewer`` is the token viewer's list of
    entries, one a prompt: ``step``, ``position``, ``sample_id``, ``problem``, ``gold``, ``images``
    (data URLs), ``perturbed`` (those of each perturbed view) and ``responses``. A response has one of
    each a token in ``tokens`` (texts), ``perception`` and ``entropy`` (nats), ``keep``, ``logp`` and
    ``logp_perturbed``, ``top`` and ``top_perturbed`` ([text, p, q] of the likeliest tokens of a view:
    their probabilities with the image and with it perturbed); and ``dependency``, ``reward``, ``named``
    (what a reward names besides, by name), ``outcome``, ``answer``, ``truncated``, ``advantage`` and
    ``shaped_advantage``. What is not known is None. A report's other sections, and a ledger's, are
    ``vppo_cli/report``'s.

    Args:
        path: the HTML file; its folder is made if need be.
        title: the heading, and the name of the browser's tab.
        sections: by name.

    Raises:
        UserError: the file cannot be written.
        ValueError: a number is nan or infinite.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, page(title, sections))


def page(title: str, sections: dict[str, Any]) -> str:
    """The page's text; see ``write_page``."""
    style = _asset("page.css")
    script = "(async () => {\n'use strict';\n" + "\n".join(map(_asset, SCRIPTS)) + "\n})();\n"
    data = {"title": title, **sections}
    data |= {name: packed(embedded_json(sections[name])) for name in PACKED if name in sections}
    parts = {
        "policy": _policy(style, script),
        "title": html.escape(title),
        "style": style,
        "data": embedded_json(data),
        "script": script,
    }
    before, *pieces = _asset("template.html").split("{{")
    names_and_texts = (piece.split("}}", 1) for piece in pieces)
    return before + "".join(parts[name] + text for name, text in names_and_texts)


def packed(text: str) -> str:
    """Text compressed (zlib), in base64: of an entry's JSON a fifth or less, as tokens repeat."""
    return base64.b64encode(zlib.compress(text.encode())).decode()


def embedded_json(value: Any) -> str:
    """JSON that no HTML parser can mistake for markup, whatever the strings in it are.

    Every ``<``, ``>`` and ``&`` is escaped as JSON allows, so that neither a tag nor a comment nor the
    end of the script element can arise. Numbers that JSON does not have (nan) are not let through.

    Raises:
        ValueError: a number is nan or infinite.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text.encode("utf-8", "backslashreplace").decode("utf-8")  # a lone surrogate: \udxxx is JSON


def _policy(style: str, script: str) -> str:
    """The Content-Security-Policy: this style, this script, embedded images, and nothing else."""
    return (
        f"default-src 'none'; img-src data:; style-src {_source(style)}; "
        f"script-src {_source(script)}; base-uri 'none'; form-action 'none'"
    )


def _source(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def _asset(name: str) -> str:
    return (files("pipelines.page") / name).read_text(encoding="utf-8")
