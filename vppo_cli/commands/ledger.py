"""``vppo ledger``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.errors import UserError
from vppo_cli.options import Json, Settings

if TYPE_CHECKING:
    from pipelines.chain import Chain
    from pipelines.ledger.step import Ledger

MOST_STEPS = 100
"""That one command may name."""


def ledger(
    run: Annotated[str | None, typer.Argument(metavar="RUN", help="A run (default: the latest).")] = None,
    step: Annotated[
        str | None, typer.Option(metavar="N", help="The step, or several: 15, or 1,15,30, or 1..3 (default: the last).")
    ] = None,
    objectives: Annotated[
        str | None, typer.Option(metavar="A,B", help="These beside vppo and dapo (default: all there are).")
    ] = None,
    gradients: Annotated[
        bool, typer.Option(help="Take gradients: their cosines and variance. A model of billions has no room for them.")
    ] = True,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page, ledger.html.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print tables as Markdown.")] = False,
    latex: Annotated[bool, typer.Option("--latex", help="Print tables as LaTeX (booktabs).")] = False,
    settings: Settings = None,
    json: Json = False,
) -> None:
    """What every objective would have done with a saved step, token by token.

    No rollout and no update: the policy as it was, the step's responses from
    disk, both views scored once; then each objective's weight of every token,
    the gradient it would have taken, how that varies over the prompts, and what
    the paper's Theorem 3.1 predicts. Nothing in the run's folder changes.

    --set gives constants that are published nowhere, or measures S otherwise.
    docs/ledger.md says what each number is.

    [bold]Examples[/bold]

    vppo ledger tiny-7f3a --step 15

    vppo ledger --step 1,15,30 --out ledger.html

    vppo ledger tiny-7f3a --step 15 --objectives entropy-k --set score.estimator=k3
    """
    if json + markdown + latex > 1:
        raise UserError("--json, --markdown, --latex", "are different outputs.", "Take one.")
    if out and (out.suffix.lower() not in (".html", ".htm") or not out.parent.is_dir()):
        problem = "names no page." if out.parent.is_dir() else "its folder is not there."
        raise UserError(f"--out {out}", problem, "Such as --out ledger.html.")
    from vppo_cli.choose import choose, refuse_another_model

    choice = choose(run, None, settings or [], new=False)
    refuse_another_model(choice)
    chain = choice.chain
    names = [name.strip() for name in (objectives or "").split(",") if name.strip()]
    if objectives is not None and not names:
        raise UserError("--objectives", "names none.", "Such as --objectives entropy-k,pgpo.")
    steps = parse(step, chain)
    from pipelines.ledger.run import ledgers
    from vppo_cli.screen import display
    from vppo_cli.screen.counting import counting

    quiet = json or markdown or latex
    found: list[Ledger] = []
    if not quiet:
        display.line("run", str(chain.run))
    with counting(as_json=quiet) as watch:
        for one in ledgers(chain, choice.wanted.config, steps, names, watch, gradients=gradients):
            found.append(one)
    _print(chain, found, out, "json" if json else "markdown" if markdown else "latex" if latex else "")


def _print(chain: Chain, found: list[Ledger], out: Path | None, form: str) -> None:
    from evals.report.formats import latex_table, markdown_table
    from pipelines.disk.records import SampleTable
    from pipelines.page import write_page
    from vppo_cli.report import ledger as values
    from vppo_cli.report import ledger_screen as screen
    from vppo_cli.screen import display

    if out:
        samples = SampleTable(chain.prepare.path / "train.parquet")
        write_page(out, f"Credit ledger of {chain.run.name}", values.sections(chain, found, samples))
    tables = [table for one in found for table in values.tables(one)]
    if form == "json":
        display.print_json(values.as_json(chain, found) | {"page": str(out) if out else None})
    elif form == "markdown":
        display.print_text("\n\n".join(map(markdown_table, tables)))
    elif form == "latex":
        display.print_text("\n".join(["% \\usepackage{booktabs}", "", *map(latex_table, tables)]))
    else:
        for one in found:
            screen.show(one)
        display.console.print()
        steps = ",".join(str(one.step) for one in found)
        if out:
            display.line("wrote", f"{out}  (open it in a browser)")
        else:
            display.line(
                "next", f"vppo ledger {chain.run.name} --step {steps} --out ledger.html      the same, token by token"
            )


def parse(text: str | None, chain: Chain) -> list[int]:
    """``15``, ``1,15,30``, ``1..3`` or several of these -> steps; none: the last whose rollouts are on disk.

    Raises:
        UserError: it is none of these.
    """
    from pipelines.disk.step import is_there

    if text is None:
        made = [t for t in range(1, chain.config.run.steps + 1) if is_there(chain.rollout(t).path)]
        if not made:
            raise UserError(
                f"run {chain.run.name}",
                "has sampled nothing yet.",
                f"Train it first: vppo train --run {chain.run.name}",
            )
        return made[-1:]
    found: list[int] = []
    for part in text.split(","):
        first, dots, last = part.strip().partition("..")
        ends = (first, last if dots else first)
        if not all(end.isdecimal() and len(end) < 8 for end in ends) or int(ends[1]) < int(ends[0]):
            raise UserError(f"--step {text[:60]}", "names no steps.", "Write 15, or 1,15,30, or 1..3.")
        found += range(int(ends[0]), min(int(ends[1]), int(ends[0]) + MOST_STEPS) + 1)
    if len(found) > MOST_STEPS:
        raise UserError(f"--step {text[:60]}", f"names more than {MOST_STEPS} steps.", "Name fewer.")
    return found
