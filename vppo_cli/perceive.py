"""``vppo perceive``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from json import dumps  # JSON is YAML
from pathlib import Path
from typing import Any

from rich.text import Text

from pipelines import settings
from pipelines.chain import Chain
from pipelines.config import Config
from pipelines.errors import UserError
from pipelines.perceive import Perception, check, example, load, see
from pipelines.perceive_data import PAGE, ROWS, check_new, perceive_dataset
from pipelines.policy import Policy
from pipelines.records import Perceived
from pipelines.score import needs_two_views
from pipelines.session import Session
from pipelines.watch import Silent
from vppo_cli import display
from vppo_cli.choose import choose
from vppo_cli.counting import counting
from vppo_cli.evaluate import refuse_another_model, which_checkpoint
from vppo_cli.results import policy_name
from vppo_cli.shading import LEAST, scale, shaded

NATS = ("kl", "k3", "jsd", "log_ratio", "entropy")
SHOWN = 6
"""Tokens that are told of one by one on a terminal."""

DEFAULTS = ("rollout.max_new_tokens=512", "rollout.top_p=1", "rollout.batch_prompts=16")
"""Of a model on its own; a run has its own settings."""


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
            self._step = which_checkpoint(choice.chain, checkpoint or "last")
            self.name = f"{policy_name(self._step)} of {choice.run.name}"
        else:
            path = dumps(model or "tiny")
            named = [*DEFAULTS, f"model.path={path}", *given, *overrides]
            self.config = settings.load(None, named, base={})
            self.name = self.config.model.path
        check(self.config, masks)

    def policy(self) -> Policy:
        """The model, loaded."""
        if self._chain is None:
            return load(self.config)
        return Session(self._chain, Silent(), self.config).policy(self._step).spread()


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
    if as_json:
        display.print_json(_about(asked) | _columns(found) | {"page": str(out) if out else None})
        return
    display.line("model", f"{asked.name} on {policy.device.type}")
    display.line("measured", _measured(asked))
    if display.console.is_terminal:
        _show(asked.config, found)
    else:
        _list(found)
    if out:
        display.line("wrote", f"{out}  (open it in a browser)")
        return
    display.line("next", "--out look.html      the same as a page, with what the model was shown")
    if asked.masks == 1 and needs_two_views(asked.config):
        display.line("", "--masks 8            less noise: the mean over eight perturbed images")


def dataset(asked: Asked, out: Path | None, *, as_json: bool) -> None:
    """Look at a whole data set."""
    if out is None:
        raise UserError("--out", "is needed with --dataset.", "Name a new folder.")
    check_new(out)
    policy = asked.policy()
    if not as_json:
        display.line("model", f"{asked.name} on {policy.device.type}")
        display.line("measured", _measured(asked))
    with counting(as_json=as_json) as watch:
        found = perceive_dataset(asked.config, policy, asked.masks, out, watch)
    if as_json:
        display.print_json(_about(asked) | found | {"out": str(out)})
        return
    unit = f" {_unit(asked.config)}".rstrip()
    display.line("responses", f"{found['responses']}, {found['truncated']} of them truncated; "
                 f"{found['rejected']} rows left out")  # fmt: skip
    display.line("dependency", f"{found['dependency']:.4f}{unit} a token in the mean")
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


def _show(config: Config, found: Perception) -> None:
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
        f": the {kept} of {number} tokens that a policy update would learn from",
    ))  # fmt: skip
    if found.truncated:
        display.line("note", f"cut off after {number} tokens (--max-new-tokens)")
    display.console.print()
    display.columns(list(_most(config, found)), styles=["bold"])
    display.console.print()


def _most(config: Config, found: Perception) -> list[tuple[str, ...]]:
    """A table of the tokens that depend most on the image."""
    name = config.score.estimator
    two = bool(found.logp_perturbed)
    rows: list[tuple[str, ...]] = [
        ("token", name, *(("with image", "without", "likeliest without") if two
                          else ("probability", "likeliest others")))
    ]  # fmt: skip
    others, logp, logq = found.alternatives(perturbed=two), found.logp, found.logp_perturbed
    for i in found.most(SHOWN):
        if found.perception[i] < LEAST:
            break
        told = [f"{_quoted(text)} {q if two else p:.2f}" for text, p, q in others[i]]
        chances = [_probability(logp[i])] + ([_probability(logq[i])] if two else [])
        rows.append(
            (_quoted(found.tokens[i]), f"{found.perception[i]:.3f}", *chances, "  ".join(told))
        )
    return rows


def _probability(logp: float) -> str:
    from math import exp

    return f"{exp(logp):.3f}"


def _quoted(token: str) -> str:
    """With its blanks to be seen; "" is the token that ends a response, or a part of a character."""
    return json.dumps(token, ensure_ascii=False)


def _list(found: Perception) -> None:
    """One line a token, for a pipe."""
    rows = [("token", "perception", "kept")]
    for token, value, kept in zip(found.tokens, found.perception, found.keep, strict=True):
        rows.append((_quoted(token), f"{value:.6f}", "kept" if kept else ""))
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
