"""``vppo perceive``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from itertools import islice
from json import dumps  # JSON is YAML
from math import exp
from pathlib import Path
from typing import Any

from rich.text import Text

from pipelines.chain import Chain
from pipelines.config import settings
from pipelines.config.schema import Config
from pipelines.disk.records import Perceived
from pipelines.errors import UserError
from pipelines.live import Live
from pipelines.model.images import ImageTally
from pipelines.model.load import load_policy
from pipelines.model.policy import Policy
from pipelines.perceive.dataset import PAGE, ROWS, check_new, perceive_dataset
from pipelines.perceive.example import example
from pipelines.perceive.one import DEFAULTS, Perception, check, see
from pipelines.prepare.sources import check_sources
from pipelines.score.scoring import needs_two_views
from pipelines.watch import Silent
from vppo_cli.choose import choose
from vppo_cli.commands.evaluate import refuse_another_model, which_checkpoint
from vppo_cli.screen import display
from vppo_cli.screen.counting import counting
from vppo_cli.screen.results import policy_name
from vppo_cli.screen.shading import LEAST, scale, shaded

NATS = ("kl", "k3", "jsd", "log_ratio", "entropy")
SHOWN, FROM = 6, 0.01
"""Tokens that are told of one by one on a terminal: at most so many, from this share of the highest
perception on."""

MAX_NEW_TOKENS = "rollout.max_new_tokens=512"
"""Of a model on its own, as of the Python call; a run has its own settings."""


class Asked:
    """A model, how it is asked, and what to call it."""

    def __init__(
        self, model: str | None, run: str | None, checkpoint: str | None, options: dict[str, Any],
        overrides: Sequence[str], masks: int,
    ) -> None:  # fmt: skip
        given = [f"{name}={dumps(value)}" for name, value in options.items() if value is not None]
        self.masks = masks
        self._chain: Chain | None = None
        if run is not None:
            choice = choose(run, None, [*given, *overrides], new=False)
            refuse_another_model(choice)
            self.config, self._chain = choice.wanted.config, choice.chain
            self._step = which_checkpoint(choice.made, checkpoint or "last")
            self.name = f"{policy_name(self._step)} of {choice.run.name}"
        else:
            path = dumps(model or "tiny")
            named = [*DEFAULTS, MAX_NEW_TOKENS, f"model.path={path}", *given, *overrides]
            self.config = settings.load(None, named, base={})
            self.name = self.config.model.path
        check(self.config, masks)

    def policy(self) -> Policy:
        """The model, loaded."""
        if self._chain is None:
            return load_policy(self.config)
        return Live(self._chain, Silent(), self.config).policy(self._step).spread()


def one(asked: Asked, images: Sequence[Path], prompt: str, response: str | None, out: Path | None,
        *, as_json: bool) -> None:  # fmt: skip
    """Look at one response."""
    sample = example(list(images), prompt)
    if response is not None and not response:
        raise UserError("--response", "is empty.", "Leave it out to sample one.")
    if out and (out.suffix.lower() not in (".html", ".htm") or not out.parent.is_dir()):
        problem = "names no page." if out.parent.is_dir() else "its folder is not there."
        raise UserError(f"--out {out}", problem, "Such as --out look.html.")
    policy = asked.policy()
    [found] = see(asked.config, policy, [sample], [response], asked.masks)
    if out:
        found.to_html(out)
    odd = ImageTally()
    odd.add(sample.images)
    notes = odd.told()
    if found.problem != sample.problem:
        notes.append(
            "control tokens of the model in the question, written apart: <|name|> as < |name| >"
        )
    if as_json:
        about = _about(asked) | _columns(found) | {"page": str(out) if out else None}
        display.print_json(about | {"notes": notes})
        return
    _say_model(asked, policy)
    for note in notes:
        display.line("note", note)
    if display.console.is_terminal:
        _show(asked.config, found, asked.masks)
    else:
        _list(asked.config, found)
    if out:
        display.line("wrote", f"{out}  (open it in a browser)")
        return
    display.line(
        "next", "add --out look.html      the same as a page, with what the model was shown"
    )
    if asked.masks == 1 and needs_two_views(asked.config):
        display.line(
            "", "add --masks 8            less noise: the mean over eight perturbed images"
        )


def _say_model(asked: Asked, policy: Policy) -> None:
    display.line("model", f"{asked.name} on {policy.device.type}")
    for note in policy.notes:
        display.line("note", note)
    display.line("measured", _measured(asked))


def dataset(asked: Asked, out: Path | None, *, as_json: bool) -> None:
    """Look at a whole data set."""
    if out is None:
        raise UserError("--out", "is needed with --dataset.", "Name a new folder.")
    check_new(out)
    check_sources(asked.config.data, examples=True)  # before a model is loaded
    policy = asked.policy()
    if not as_json:
        _say_model(asked, policy)
    with counting(as_json=as_json) as watch:
        found = perceive_dataset(asked.config, policy, asked.masks, out, watch)
    if as_json:
        display.print_json(_about(asked) | found | {"out": str(out)})
        return
    unit = f" {_unit(asked.config)}".rstrip()
    display.line("responses", f"{found['responses']}, {found['truncated']} of them truncated; "
                 f"{found['rejected']} rows left out")  # fmt: skip
    display.line("dependency", f"{found['dependency']:.4f}{unit} a token, on average")
    if found["graded"]:
        parts = [f"{found['correct']} of {found['graded']} correct"]
        for name in ("correct", "wrong"):
            if found[f"dependency_{name}"] is not None:
                parts.append(f"dependency if {name} {found[f'dependency_{name}']:.4f}")
        display.line("graded", "; ".join(parts))
    display.line("wrote", f"{out / ROWS}  a row for each response")
    display.line("", f"{out / PAGE}  the first {found['shown']}, to be looked at in a browser")
    display.line("next", f"pandas.read_parquet({str(out / ROWS)!r})")


def _measured(asked: Asked) -> str:
    score = asked.config.score
    if not needs_two_views(asked.config):
        return f"{score.estimator}, without a perturbed image"
    view = score.perturbation
    if view in ("patch_black", "raw_black"):
        view += f" {score.probability:g}"
    which = "the image and a perturbed one"
    if asked.masks > 1:
        which = f"the image and {asked.masks} perturbed ones, the mean"
    return f"{score.estimator} between {which} ({view}, seed {asked.config.seed})"


def _unit(config: Config) -> str:
    return "nats" if config.score.estimator in NATS else ""


def _show(config: Config, found: Perception, masks: int) -> None:
    display.console.print()
    display.console.print(
        shaded(found.tokens, found.perception, found.keep), soft_wrap=False, overflow="fold"
    )
    display.console.print()
    steps = scale(found.perception)
    if steps:
        display.console.print(
            Text.assemble(
                (f"{'shade':<{display.LABEL}}", "bold"), steps, f" {_unit(config)} and more"
            )
        )
    else:
        display.line("shade", "none: no token depends on the image")
    kept, number = sum(found.keep), len(found.tokens)
    display.console.print(Text.assemble(
        (f"{'kept':<{display.LABEL}}", "bold"), ("underlined", "underline"),
        f": the {kept} of {number} tokens that an update would learn from",
    ))  # fmt: skip
    if found.truncated:
        display.line("note", f"cut off after {number} tokens (--max-new-tokens)")
    display.console.print()
    rows = _most(config, found)
    if len(rows) > 1:
        display.columns(rows, styles=["bold"])
        display.line("", "p: probability with the image" + (
            f"; q: with the {'first ' if masks > 1 else ''}perturbed one" if found.logp_perturbed else ""
        ), style="dim")  # fmt: skip
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
        others = [_told((text, p) for text, p, _ in found.alternatives()[index])]
        if two:
            chances.append(f"{exp(found.logp_perturbed[index]):.3f}")
            others.append(
                _told((t, q or 0.0) for t, _, q in found.alternatives(perturbed=True)[index])
            )
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


def _list(config: Config, found: Perception) -> None:
    """One line a token, for a pipe."""
    rows = [("token", config.score.estimator, "kept")]
    for index, (value, kept) in enumerate(zip(found.perception, found.keep, strict=True)):
        rows.append((_named(found, index), f"{value:.6f}", "kept" if kept else ""))
    display.columns(rows)


def _about(asked: Asked) -> dict[str, Any]:
    score = asked.config.score
    return {
        "model": asked.name, "estimator": score.estimator, "perturbation": score.perturbation,
        "probability": score.probability, "masks": asked.masks, "seed": asked.config.seed,
        "temperature": asked.config.rollout.temperature, "keep_fraction": score.keep_fraction,
    }  # fmt: skip


def _columns(found: Perception) -> dict[str, Any]:
    values = asdict(found)
    return {f.name: values[f.name] for f in fields(Perceived)}
