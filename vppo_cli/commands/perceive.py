"""``vppo perceive``."""

from __future__ import annotations

from json import dumps  # JSON is YAML
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.errors import UserError
from pipelines.words import counted
from vppo_cli.options import Json, RunName, Settings

if TYPE_CHECKING:
    from pipelines.chain import Chain
    from pipelines.model.policy import Policy
    from pipelines.perceive.one import Perception
    from pipelines.perceive.provenance import Made

MAX_NEW_TOKENS = "rollout.max_new_tokens=512"
"""Of a model on its own, as of the Python call; a run has its own settings."""


def perceive(
    image: Annotated[
        list[Path] | None, typer.Option("--image", metavar="FILE", help="An image; may be repeated.")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="The question; <image> where images go, else first.")
    ] = None,
    response: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What to look at (default: the model writes it).")
    ] = None,
    model: Annotated[str | None, typer.Option(metavar="PATH", help="A model folder or hub id (default: tiny).")] = None,
    run: RunName = None,
    checkpoint: Annotated[
        str | None, typer.Option(metavar="WHICH", help="Of --run: last (default), best, a step number, 0.")
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE", help="Every row of a file, a folder, a hub id, or glyphs.", rich_help_panel="A data set"
        ),
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option(
            metavar="OURS=THEIRS",
            rich_help_panel="A data set",
            help="Its columns for problem, images, answer, response; may be repeated.",
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Only the first rows.", rich_help_panel="A data set")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Write a page, FILE.html; with --dataset a new folder.")
    ] = None,
    estimator: Annotated[str | None, typer.Option(metavar="NAME", help="kl (default), k3, jsd, top1_drop ...")] = None,
    perturbation: Annotated[
        str | None, typer.Option(metavar="NAME", help="patch_black (default), gaussian_noise, grey ...")
    ] = None,
    probability: Annotated[
        float | None, typer.Option(metavar="P", help="Of a patch to be black (default: 0.5).")
    ] = None,
    masks: Annotated[int, typer.Option(metavar="N", min=1, help="Perturbed images to average over: less noise.")] = 1,
    seed: Annotated[int | None, typer.Option(metavar="N", min=0, help="Of masks and sampling (default: 0).")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(metavar="N", help="Longest response to write (default: 512).")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(metavar="T", help="Of sampling, and of what is compared.")
    ] = None,
    settings: Settings = None,
    json: Json = False,
) -> None:
    """See which words of a response looked at the image; no training needed.

    The model reads the response twice, with the image and with half of its
    patches black. How far its prediction of a token moves (KL, in nats) is how
    much that token depends on the image. The prompt is asked as it is; a run's
    checkpoint is asked as in training.

    With --dataset, a new folder: perception.parquet (a row a response),
    look.html, rejected.jsonl. Responses are read from the column response, or
    sampled.

    [bold]Examples[/bold]

    vppo perceive --image chart.png --prompt "Which bar is highest?" --model Qwen/Qwen2.5-VL-3B-Instruct

    vppo perceive --image a.png --prompt "What is a1 + b2?" --run tiny-7f3a --masks 8 --out look.html

    vppo perceive --dataset answers.jsonl --columns problem=question --out perceived
    """
    if run is not None and model is not None:
        raise UserError(f"--model {model}", "is another model than that of --run.", "Drop one.")
    if checkpoint is not None and run is None:
        raise UserError(f"--checkpoint {checkpoint}", "belongs to a run.", "Name it with --run.")
    if dataset is None:
        _refuse("goes with --dataset.", columns=columns, limit=limit)
        _need("image", image, "an image: without one there is nothing to perceive")
        _need("prompt", prompt, "a question about it")
    else:
        own = {"image": image, "prompt": prompt, "response": response}
        _refuse("goes with one example, and --dataset brings its own.", "Drop one.", **own)
    changed = _overrides(
        {
            "score.estimator": estimator,
            "score.perturbation": perturbation,
            "score.probability": probability,
            "seed": seed,
            "rollout.max_new_tokens": max_new_tokens,
            "rollout.temperature": temperature,
        }
    )
    if dataset is not None:
        changed += _source(dataset, columns, limit)
    asked = Asked(model, run, checkpoint, [*changed, *(settings or [])], masks)
    if dataset is None:
        _one(asked, image or [], prompt or "", response, out, as_json=json)
    else:
        _every_row(asked, out, as_json=json)


def _refuse(problem: str, fix: str = "", **given: Any) -> None:
    for name, value in given.items():
        if value:
            raise UserError(f"--{name}", problem, fix or f"Drop --{name}.")


def _need(name: str, value: Any, what: str) -> None:
    if value in (None, []):
        raise UserError(f"--{name}", f"is missing; give {what}.", "See vppo perceive --help.")


def _overrides(given: dict[str, Any]) -> list[str]:
    """``KEY=VALUE`` of each setting that was given."""
    return [f"{name}={dumps(value)}" for name, value in given.items() if value is not None]


def _source(dataset: str, columns: list[str] | None, limit: int | None) -> list[str]:
    """The settings that read a data set whole, or its first rows, and nothing else of a run's data."""
    if not dataset.strip():
        raise UserError("--dataset", "names none.", "Such as --dataset questions.parquet.")
    named = {"data.source": dataset, "data.split": "train", "data.columns": _pairs(columns)}
    return [*_overrides(named), "data.subset=null", "data.revision=null", f"data.limit={dumps(limit)}"]


def _pairs(columns: list[str] | None) -> dict[str, str]:
    pairs = {}
    for text in columns or []:
        ours, separator, theirs = text.partition("=")
        if not (ours and separator and theirs):
            raise UserError(f"--columns {text}", "names no two columns.", "Such as --columns problem=question.")
        pairs[ours] = theirs
    return pairs


class Asked:
    """A model, how it is asked, and what to call it."""

    def __init__(
        self, model: str | None, run: str | None, checkpoint: str | None, overrides: list[str], masks: int
    ) -> None:
        from pipelines.config import hub
        from pipelines.config.settings import load
        from pipelines.perceive.one import DEFAULTS, check
        from vppo_cli.choose import choose, refuse_another_model, which_checkpoint
        from vppo_cli.screen.results import policy_name

        self.masks = masks
        self._chain: Chain | None = None
        if run is not None:
            choice = choose(run, None, overrides, new=False)
            refuse_another_model(choice)
            self.config, self._chain = choice.wanted.config, choice.chain
            self._step = which_checkpoint(choice.made, checkpoint or "last")
            self.name = f"{policy_name(self._step)} of {choice.run.name}"
        else:
            path = dumps(model or "tiny")
            named = [*DEFAULTS, MAX_NEW_TOKENS, f"model.path={path}", *overrides]
            self.config = load(None, named, base={})
            self.name = self.config.model.path
        check(self.config, masks)
        self.config = hub.resolved(self.config)

    def policy(self) -> tuple[Policy, Made]:
        """The model, loaded, and what is to be said of how it is asked."""
        from pipelines.live import Session
        from pipelines.model.load import load_policy
        from pipelines.perceive.provenance import made_with, weights_of
        from pipelines.watch import Silent

        if self._chain is None:
            policy, weights = load_policy(self.config), weights_of(self.config)
        else:
            policy = Session(self._chain, Silent(), self.config).policy(self._step).spread()
            weights = f"key {self._chain.policy_key(self._step)[:16]}"
        return policy, made_with(self.config, policy, self.masks, self.name, weights)


def _one(
    asked: Asked, images: list[Path], prompt: str, response: str | None, out: Path | None, *, as_json: bool
) -> None:
    """Look at one response."""
    from pipelines.model.images import ImageTally
    from pipelines.objectives.table import needs_two_views
    from pipelines.perceive.example import example
    from pipelines.perceive.one import see
    from vppo_cli.screen import display
    from vppo_cli.screen import perception as screen

    sample = example(images, prompt)
    if response is not None and not response:
        raise UserError("--response", "is empty.", "Leave it out to sample one.")
    if out and (out.suffix.lower() not in (".html", ".htm") or not out.parent.is_dir()):
        problem = "names no page." if out.parent.is_dir() else "its folder is not there."
        raise UserError(f"--out {out}", problem, "Such as --out look.html.")
    policy, made = asked.policy()
    [found] = see(asked.config, policy, [sample], [response], asked.masks, made=made)
    if out:
        found.to_html(out)
    odd = ImageTally()
    odd.add(sample.images)
    notes = odd.told()
    if found.problem != sample.problem:
        notes.append("control tokens of the model in the question, written apart: <|name|> as < |name| >")
    if as_json:
        about = made | _columns(found) | {"page": str(out) if out else None}
        display.print_json(about | {"notes": notes})
        return
    _say_model(policy, made)
    for note in notes:
        display.line("note", note)
    if display.console.is_terminal:
        screen.show(asked.config, found, asked.masks)
    else:
        screen.list_tokens(asked.config, found)
    if out:
        display.line("wrote", f"{out}  (open it in a browser)")
        return
    display.line("next", "add --out look.html      the same as a page, with what the model was shown")
    if asked.masks == 1 and needs_two_views(asked.config):
        display.line("", "add --masks 8            less noise: the mean over eight perturbed images")


def _every_row(asked: Asked, out: Path | None, *, as_json: bool) -> None:
    """Look at a whole data set."""
    from pipelines.perceive.dataset import PAGE, ROWS, check_new, perceive_dataset
    from pipelines.prepare.sources import check_sources
    from vppo_cli.screen import display
    from vppo_cli.screen.counting import counting

    if out is None:
        raise UserError("--out", "is needed with --dataset.", "Name a new folder.")
    check_new(out)
    check_sources(asked.config.data, examples=True)  # before a model is loaded
    policy, made = asked.policy()
    if not as_json:
        _say_model(policy, made)
    with counting(as_json=as_json) as watch:
        found = perceive_dataset(asked.config, policy, asked.masks, out, watch, made)
    if as_json:
        display.print_json(made | found | {"out": str(out)})
        return
    unit = f" {made['unit']}".rstrip()
    display.line(
        "responses",
        f"{found['responses']}, {found['truncated']} of them truncated; {counted(found['rejected'], 'row')} left out",
    )
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


def _say_model(policy: Policy, made: Made) -> None:
    from pipelines.perceive.provenance import compared, versions
    from vppo_cli.screen import display

    display.line("model", f"{made['model']} ({made['weights']}) on {made['device']}, {made['dtype']}")
    for note in policy.notes:
        display.line("note", note)
    display.line("measured", compared(made))
    display.line("made with", versions(made, ("vppo", "torch", "transformers", "commit")), style="dim")


def _columns(found: Perception) -> dict[str, Any]:
    from pipelines.disk.records import Perceived, schema

    return {name: getattr(found, name) for name in schema(Perceived).names}
