"""How one response's token perception is shown, for ``vppo perceive``."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import islice
from math import exp

from rich.text import Text

from pipelines.config.schema import Config
from pipelines.page.viewer import alternatives, unit
from pipelines.perceive.one import Perception
from vppo_cli.screen import display
from vppo_cli.screen.shading import LEAST, scale, shaded

SHOWN, FROM = 6, 0.01
"""Tokens that are told of one by one on a terminal: at most so many, from this share of the highest
perception on."""


def show(config: Config, found: Perception, masks: int) -> None:
    """For a terminal: the response shaded, and the tokens that depend most on the image."""
    display.console.print()
    display.console.print(shaded(found.tokens, found.perception, found.keep), soft_wrap=False, overflow="fold")
    display.console.print()
    steps = scale(found.perception)
    if steps:
        display.console.print(
            Text.assemble((f"{'shade':<{display.LABEL}}", "bold"), steps, f" {unit(config.score.estimator)} and more")
        )
    else:
        display.line("shade", "none: no token depends on the image")
    kept, number = sum(found.keep), len(found.tokens)
    display.console.print(
        Text.assemble(
            (f"{'kept':<{display.LABEL}}", "bold"),
            ("underlined", "underline"),
            f": the {kept} of {number} tokens that depend on the image most: what VPPO trains",
        )
    )
    if found.truncated:
        display.line("note", f"cut off after {number} tokens (--max-new-tokens)")
    display.console.print()
    rows = _most(config, found)
    if len(rows) > 1:
        other = f"mask 1 of {masks} alone" if masks > 1 else "the perturbed one"
        display.columns(rows, styles=["bold"])
        display.line(
            "", "p: probability with the image" + (f"; q: with {other}" if found.logp_perturbed else ""), style="dim"
        )
        display.console.print()


def _most(config: Config, found: Perception) -> list[tuple[str, ...]]:
    """A table of the tokens that depend most on the image."""
    name, two = config.score.estimator, bool(found.logp_perturbed)
    heads = ("p", "q", "likeliest p", "likeliest q") if two else ("p", "likeliest p")
    rows: list[tuple[str, ...]] = [("token", name, *heads)]
    least = FROM * max(found.perception, default=0.0)
    for index in found.most(SHOWN):
        if found.perception[index] < max(least, LEAST):
            break
        chances = [f"{exp(found.logp[index]):.3f}"]
        others = [_told((text, p) for text, p, _ in alternatives(found)[index])]
        if two:
            chances.append(f"{exp(found.logp_perturbed[index]):.3f}")
            others.append(_told((t, q or 0.0) for t, _, q in alternatives(found, perturbed=True)[index]))
        rows.append((_named(found, index), f"{found.perception[index]:.3f}", *chances, *others))
    return rows


def _told(alternatives: Iterable[tuple[str, float]]) -> str:
    return "  ".join(f"{_quoted(text)} {p:.2f}" for text, p in islice(alternatives, 2))


def _named(found: Perception, index: int) -> str:
    """A token of the response; those without a text of their own by what they are."""
    if found.tokens[index]:
        return _quoted(found.tokens[index])
    last = index == len(found.tokens) - 1 and not found.truncated
    return "(end)" if last else "(part of a character)"


def _quoted(token: str) -> str:
    """With its blanks to be seen."""
    return json.dumps(token, ensure_ascii=False)


def list_tokens(config: Config, found: Perception) -> None:
    """One line a token, for a pipe."""
    rows = [("token", config.score.estimator, "kept")]
    for index, (value, kept) in enumerate(zip(found.perception, found.keep, strict=True)):
        rows.append((_named(found, index), f"{value:.6f}", "kept" if kept else ""))
    display.columns(rows)
