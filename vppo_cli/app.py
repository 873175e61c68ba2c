"""The commands. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
import signal
import sys
from collections.abc import Iterator
from json import dumps  # JSON is YAML
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from pipelines.errors import Interrupted, LockLost, UserError
from pipelines.ranks import heartbeat
from pipelines.ranks.launch import without
from pipelines.ranks.ranks import is_main, launched

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False,
    rich_markup_mode="rich", context_settings={"help_option_names": ["-h", "--help"]},
    help="Train a vision-language model with reinforcement learning on verifiable rewards, and know "
    "what it looks at.\n\nStages: prepare -> rollout -> score -> update -> checkpoint -> eval. Each "
    "writes a folder to disk; what is there is not made again, whether a run is resumed, extended or "
    "given another setting.\n\nStart with [bold]vppo train[/bold]: a tiny model learns to read digits "
    "on this machine.",
)  # fmt: skip

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="A YAML config (default: tiny.yaml)."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting; may be repeated."),
]
RunName = Annotated[
    str | None, typer.Option("--run", metavar="NAME", help="The run's folder name.")
]
Processes = Annotated[
    int | None,
    typer.Option(
        "--nproc-per-node", metavar="N", min=1, help="Start N ranks here, one for each GPU.",
        rich_help_panel="Several GPUs or nodes",
    ),
]  # fmt: skip
Nodes = Annotated[
    int,
    typer.Option(
        "--nnodes", metavar="N", min=1, help="Nodes of the run.",
        rich_help_panel="Several GPUs or nodes",
    ),
]  # fmt: skip
NodeRank = Annotated[
    int,
    typer.Option(
        "--node-rank", metavar="R", min=0, help="Which of them this is, from 0.",
        rich_help_panel="Several GPUs or nodes",
    ),
]  # fmt: skip
Master = Annotated[
    str | None,
    typer.Option(
        "--master", metavar="HOST[:PORT]", help="The first node, where all meet.",
        rich_help_panel="Several GPUs or nodes",
    ),
]  # fmt: skip
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object for a program to read.")]


@app.command()
def train(
    stage: Annotated[
        str,
        typer.Option(help="all, or one of prepare, rollout, score, update, checkpoint, eval."),
    ] = "all",
    config: ConfigFile = None,
    settings: Settings = None,
    run: RunName = None,
    steps: Annotated[
        str | None,
        typer.Option(metavar="A..B", help="Training steps of a single stage: 3 or 3..5."),
    ] = None,
    until: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Stop after training step N.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Make a single stage again even if it is there.")
    ] = False,
    json: Json = False,
    nproc_per_node: Processes = None,
    nnodes: Nodes = 1,
    node_rank: NodeRank = 0,
    master: Master = None,
) -> None:
    """Train: every stage in turn, or one alone.

    Without --run, a run is named after its settings, so the same command
    goes on with the same run, and does nothing once it is finished.

    With --stage, one stage is made again from what is on disk, with the
    settings given; the run itself keeps its own.

    [bold]Examples[/bold]

    vppo train

    vppo train --config ci.yaml --set run.steps=20 --set seed=1

    vppo train --stage score --set score.estimator=k3

    vppo train --config qwen2_5_vl_7b.yaml --nproc-per-node 8
    """
    if nproc_per_node or nnodes > 1:
        _launch(nproc_per_node, nnodes, node_rank, master)
    from vppo_cli.commands import train as commands

    if stage == "all":
        _refuse_with_all(steps=steps, force=force)
        commands.train_all(run, config, settings or [], until, as_json=json)
    else:
        commands.train_one(run, config, settings or [], stage, steps, force=force, as_json=json)


def _launch(
    nproc_per_node: int | None, nnodes: int = 1, node_rank: int = 0, master: str | None = None
) -> NoReturn:
    """Give this command to every rank instead, and end as they do."""
    from pipelines.ranks.launch import Launch, RankFailed, launch

    options = ("--nproc-per-node", "--nnodes", "--node-rank", "--master")
    try:
        code = launch(
            Launch(nproc_per_node or 1, nnodes, node_rank, master), without(sys.argv[1:], *options)
        )
    except RankFailed as error:
        from vppo_cli.screen.display import show_error

        kept = "What was committed is kept; the same command goes on from there."
        show_error(UserError(str(error), "all ranks were stopped.", kept))
        code = 1
    sys.exit(code)


def _refuse_with_all(**given: Any) -> None:
    for name, value in given.items():
        if value:
            raise UserError(
                f"--{name}", "goes with a single --stage.", f"Add --stage, or drop --{name}."
            )


@app.command()
def prepare(
    config: ConfigFile = None,
    settings: Settings = None,
    run: RunName = None,
    rebuild_tiny: Annotated[
        bool, typer.Option("--rebuild-tiny", help="Train the shipped tiny model again instead.")
    ] = False,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Where --rebuild-tiny writes the model.")
    ] = Path("tiny_model"),
    steps: Annotated[
        int | None, typer.Option(min=1, help="Warm-start steps of --rebuild-tiny (default: 1200).")
    ] = None,
    json: Json = False,
) -> None:
    """Turn a data set into checked samples.

    Embedded digits, a hub id, Parquet, JSONL, an image folder. Over-long
    prompts and unreadable images are left out, counted, and listed in
    rejected.jsonl.
    """
    from vppo_cli.commands import train as commands

    if rebuild_tiny:
        commands.rebuild_tiny(out, steps, as_json=json)
    else:
        commands.train_one(run, config, settings or [], "prepare", None, force=False, as_json=json)


@app.command("eval")
def evaluate(
    benchmarks: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="Benchmarks, or all (default: the config's)."),
    ] = None,
    run: RunName = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            metavar="WHICH", help="last (default), best, a step number; 0 is the starting model."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Evaluate this model folder or hub id instead."),
    ] = None,
    config: ConfigFile = None,
    data_dir: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Local copies of the benchmarks, instead of the hub."),
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="paper (its pixels and sampling) or matched (training's)."
        ),
    ] = None,
    samples: Annotated[int | None, typer.Option(help="Samples per question (paper: 8).")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first questions.")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Longest response (paper: 2048; 32B 4096; 8B 8192).")
    ] = None,
    regrade: Annotated[
        bool, typer.Option("--regrade", help="Grade what was sampled again; needs no model.")
    ] = False,
    settings: Settings = None,
    json: Json = False,
    nproc_per_node: Processes = None,
) -> None:
    """Evaluate a checkpoint of a run, or any model.

    Alone, the newest checkpoint of the latest run. Benchmarks: mathverse,
    dynamath, mmk12, geo3k, mathvision, wemath, logicvista, mmmu_pro (all: these
    eight, as in the paper), mmmu_val, and the run's own: glyphs, validation.

    Every response is journalled: an interrupted evaluation goes on where it
    was, and more --samples or a higher --limit add to what is there.

    [bold]Examples[/bold]

    vppo eval --benchmarks mathverse,mmmu

    vppo eval --benchmarks all --model Qwen/Qwen2.5-VL-7B-Instruct

    vppo eval --benchmarks geo3k --data-dir /data/benchmarks --limit 50

    vppo eval --benchmarks all --regrade --set eval.graders=\\[math-verify,mathruler]
    """
    if nproc_per_node:
        _launch(nproc_per_node)
    from vppo_cli.commands import evaluate as commands

    if benchmarks is not None and not benchmarks.strip(", "):
        raise UserError(
            "--benchmarks", "names none.", "Such as --benchmarks mathverse,mmmu, or all."
        )
    if data_dir == "":
        raise UserError("--data-dir", "names no folder.", "Such as --data-dir /data/benchmarks.")
    if model is not None:
        _refuse_with_model(run=run, checkpoint=checkpoint)
    options = {
        "benchmarks": [name.strip() for name in (benchmarks or "").split(",") if name.strip()],
        "data_dir": data_dir, "profile": profile, "samples": samples, "limit": limit,
        "max_new_tokens": max_new_tokens,
    }  # fmt: skip
    asked = [f"eval.{name}={dumps(v)}" for name, v in options.items() if v is not None and v != []]
    commands.evaluate(
        run, checkpoint or "last", model, config, [*(settings or []), *asked], regraded=regrade,
        as_json=json,
    )  # fmt: skip


def _refuse_with_model(**given: str | None) -> None:
    for name, value in given.items():
        if value is not None:
            raise UserError(
                f"--{name} {value}", "belongs to a run; --model evaluates a model on its own.",
                f"Drop --{name} or --model.",
            )  # fmt: skip


@app.command()
def perceive(
    image: Annotated[
        list[Path] | None,
        typer.Option("--image", metavar="FILE", help="An image; may be repeated."),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="The question; <image> where images go, else first."),
    ] = None,
    response: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="What to look at (default: the model writes it)."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="A model folder or hub id (default: tiny)."),
    ] = None,
    run: RunName = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(metavar="WHICH", help="Of --run: last (default), best, a step number, 0."),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="Every row of a file, a folder, a hub id, or glyphs.",
            rich_help_panel="A data set",
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
        int | None,
        typer.Option(metavar="N", min=1, help="Only the first rows.", rich_help_panel="A data set"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Write a page, FILE.html; with --dataset a new folder."),
    ] = None,
    estimator: Annotated[
        str | None, typer.Option(metavar="NAME", help="kl (default), k3, jsd, top1_drop ...")
    ] = None,
    perturbation: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="patch_black (default), gaussian_noise, grey ..."),
    ] = None,
    probability: Annotated[
        float | None, typer.Option(metavar="P", help="Of a patch to be black (default: 0.5).")
    ] = None,
    masks: Annotated[
        int,
        typer.Option(metavar="N", min=1, help="Perturbed images to average over: less noise."),
    ] = 1,
    seed: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="Of masks and sampling (default: 0).")
    ] = None,
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
    _refuse_perceive(
        {"image": image, "prompt": prompt, "response": response},
        {"dataset": dataset, "columns": columns, "limit": limit}, run, model, checkpoint,
    )  # fmt: skip
    from vppo_cli.commands import perceive as commands

    options: dict[str, Any] = {
        "score.estimator": estimator, "score.perturbation": perturbation,
        "score.probability": probability, "seed": seed, "rollout.max_new_tokens": max_new_tokens,
        "rollout.temperature": temperature,
    }  # fmt: skip
    if dataset is not None:
        options |= {"data.source": dataset, "data.split": "train", "data.columns": _pairs(columns)}
        overrides = ["data.subset=null", "data.revision=null", f"data.limit={dumps(limit)}"]
        asked = commands.Asked(
            model, run, checkpoint, options, [*overrides, *(settings or [])], masks
        )
        commands.dataset(asked, out, as_json=json)
        return
    asked = commands.Asked(model, run, checkpoint, options, settings or [], masks)
    commands.one(asked, image or [], prompt or "", response, out, as_json=json)


def _refuse_perceive(
    own: dict[str, Any], data: dict[str, Any], run: str | None, model: str | None,
    checkpoint: str | None,
) -> None:  # fmt: skip
    if run is not None and model is not None:
        raise UserError(f"--model {model}", "is another model than that of --run.", "Drop one.")
    if checkpoint is not None and run is None:
        raise UserError(f"--checkpoint {checkpoint}", "belongs to a run.", "Name it with --run.")
    if data["dataset"] is not None:
        for name, value in own.items():
            if value:
                raise UserError(
                    f"--{name}", "goes with one example, and --dataset brings its own.", "Drop one."
                )
        if not data["dataset"].strip():
            raise UserError("--dataset", "names none.", "Such as --dataset questions.parquet.")
        return
    for name in ("columns", "limit"):
        if data[name]:
            raise UserError(f"--{name}", "goes with --dataset.", f"Drop --{name}.")
    for name, what in (("image", "an image: without one there is nothing to perceive"),
                       ("prompt", "a question about it")):  # fmt: skip
        if own[name] in (None, []):
            raise UserError(f"--{name}", f"is missing; give {what}.", "See vppo perceive --help.")


def _pairs(columns: list[str] | None) -> dict[str, str]:
    pairs = {}
    for text in columns or []:
        ours, separator, theirs = text.partition("=")
        if not (ours and separator and theirs):
            raise UserError(
                f"--columns {text}", "names no two columns.", "Such as --columns problem=question."
            )
        pairs[ours] = theirs
    return pairs


@app.command()
def compare(
    before: Annotated[
        str, typer.Argument(metavar="A", help="A run, an evaluation's folder, or a report.json.")
    ],
    after: Annotated[str, typer.Argument(metavar="B", help="The same, to be compared with A.")],
    fail_below: Annotated[
        float,
        typer.Option(
            metavar="POINTS",
            help="Exit with 1 if B - A is below this for certain (its whole 95 % interval).",
        ),
    ] = 0.0,
    json: Json = False,
) -> None:
    """Compare two evaluations on the questions both have; exit code 1 on a regression.

    A difference is B - A in points of accuracy, with a paired bootstrap
    interval. By default a change counts as a regression if it lies below 0 for
    certain; --fail-below -2 lets up to two points go, --fail-below 5 asks for a
    gain of five.

    [bold]Examples[/bold]

    vppo compare tiny-a tiny-b

    vppo compare baseline.json runs/ci/eval/0008 --fail-below -3
    """
    from vppo_cli.commands import compare as commands

    if not math.isfinite(fail_below):
        raise UserError(f"--fail-below {fail_below}", "is not a number of points.", "Such as -2.")
    commands.compare(before, after, fail_below, as_json=json)


@app.command()
def plan(
    config: ConfigFile = None,
    settings: Settings = None,
    run: RunName = None,
    gpu: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Say too what it takes on this GPU: H100, A100-80 ..."),
    ] = None,
    gpus: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="On so many of them (default: 8).")
    ] = None,
    response_tokens: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Mean response length to expect (default: half)."),
    ] = None,
    json: Json = False,
) -> None:
    """Say what would run, what would be kept, and why, without running anything.

    With --gpu, or for any model but tiny: memory by part, operations, time
    and disk, and what to change if it does not fit.

    [bold]Examples[/bold]

    vppo plan --set score.keep_fraction=0.2

    vppo plan --config qwen2_5_vl_7b.yaml --gpu A100-80 --gpus 8
    """
    from vppo_cli.commands import look as commands

    commands.plan(
        run, config, settings or [], gpu=gpu, gpus=gpus, response=response_tokens, as_json=json
    )


@app.command()
def status(
    seconds: Annotated[
        float | None,
        typer.Argument(
            metavar="SECONDS", min=0.1, help="With --watch: look this often (default: every 2 s)."
        ),
    ] = None,
    run: RunName = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Go on looking until the run ends, or Ctrl-C.")
    ] = False,
    json: Json = False,
) -> None:
    """Show a run at a glance, also while it trains in another terminal.

    With --watch the view is redrawn in place; in a pipe, a line is printed
    whenever something changed, and with --json a JSON object. Exit code 0 when
    the run has ended as it should, 1 when it failed or was stopped, 130 after
    Ctrl-C, which leaves the run alone.

    [bold]Examples[/bold]

    vppo status --watch

    vppo status --run tiny-7f3a --watch 30 --json
    """
    from vppo_cli.commands import status as commands

    if seconds is not None and not watch:
        raise UserError(f"status {seconds:g}", "goes with --watch.", "Name a run with --run.")
    if watch:
        commands.watch(run, seconds or commands.EVERY_S, as_json=json)
    else:
        commands.status(run, as_json=json)


@app.command()
def report(
    run: Annotated[
        str | None, typer.Argument(metavar="RUN", help="A run (default: the latest).")
    ] = None,
    compare: Annotated[
        list[str] | None,
        typer.Option("--compare", metavar="RUN", help="Draw this run beside it; may be repeated."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The page (default: report.html in the run's folder)."),
    ] = None,
    steps: Annotated[
        str | None,
        typer.Option(metavar="A..B", help="Show these steps in the token viewer: 3 or 3..5."),
    ] = None,
    json: Json = False,
) -> None:
    """Write a run as one HTML page: its curves, and what every token looked at.

    Learning curves, the distribution of token perception, the words that look
    most, evaluations, settings; and a viewer that shades every token of a
    response by how much it depends on the image. The page needs no network and
    stays under 20 MB.

    [bold]Examples[/bold]

    vppo report

    vppo report tiny-7f3a --compare tiny-02bc --out both.html
    """
    from vppo_cli.commands import pages as commands

    commands.report(run, compare or [], out, steps, as_json=json)


@app.command()
def export(
    out: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder for the model.")],
    run: RunName = None,
    checkpoint: Annotated[
        str, typer.Option(metavar="WHICH", help="last, best or a step number.")
    ] = "last",
    json: Json = False,
) -> None:
    """Copy a checkpoint's model out, in Hugging Face format."""
    from vppo_cli.commands import look as commands

    commands.export(run, checkpoint, out, as_json=json)


@app.command()
def bench(
    parts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PART]...",
            help="passes, curve, scoring, streamed, vision, bfloat16, trl (default: all).",
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Where bench.json and bench.png are written.")
    ] = Path("build/bench"),
    shape: Annotated[
        str, typer.Option(help="tiny, or 3b, 7b (random weights; passes and streamed, on a GPU).")
    ] = "tiny",
    repeats: Annotated[int, typer.Option(min=1, help="Turns that count, after a warm-up.")] = 5,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 2,
    json: Json = False,
) -> None:
    """Measure this machine: ours against the alternative, in turn, in one run.

    passes: plain rows against rows that share their prompt. curve: over group
    sizes and prompt lengths. scoring: what exact scoring adds to a step.
    streamed: memory at a vocabulary of 152,064. vision: a tower's windows and
    patches. bfloat16: how far results move with what is beside them. trl: a whole
    step against TRL's GRPOTrainer.

    [bold]Examples[/bold]

    vppo bench passes trl

    vppo bench passes streamed --shape 3b
    """
    from vppo_cli.commands import bench as commands

    commands.bench(parts or [], out, shape, repeats, threads, as_json=json)


@app.command("config")
def show_config(
    section: Annotated[str | None, typer.Argument(help="One section, such as score.")] = None,
    config: ConfigFile = None,
    settings: Settings = None,
    run: RunName = None,
) -> None:
    """List the settings: each with its value and its meaning."""
    from vppo_cli.commands import look as commands

    commands.show_config(section, config, settings or [], run)


@app.command()
def doctor(json: Json = False) -> None:
    """Check this environment: packages, devices, graders, disk; and say what to do."""
    from vppo_cli.commands import doctor as commands

    commands.doctor(as_json=json)


def _interrupt(number: int, _: object) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second Ctrl-C ends at once
    raise Interrupted(signal.Signals(number).name)


@contextlib.contextmanager
def _told_by_path() -> Iterator[None]:
    """What the system refused, anywhere, is told by the file's name, if the error has one."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        from pipelines.disk.files import failed_path, told

        nowhere = Path()
        if failed_path(nowhere, error) != nowhere and (found := told(nowhere, error)):
            raise found from error
        raise


class _Warnings(logging.Handler):
    """Shows what the packages log, on standard error: standard output may be JSON."""

    def emit(self, record: logging.LogRecord) -> None:
        from vppo_cli.screen.display import errors, labelled

        errors.print(labelled("warning", record.getMessage()), style="bold yellow")


def main() -> None:
    """Run the command line.

    Exit codes: 0 done, 1 a fault or a regression (compare), 2 the user's input, 130 interrupted.
    """
    # Idle OpenMP threads spin some microseconds, then sleep: sleeping at once costs a third of a step,
    # and spinning on, where others want the processor, a factor of 100.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    os.environ.setdefault(
        "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
    )  # see pipelines/model/determinism.py
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    for stream in (sys.stdout, sys.stderr):  # a terminal or pipe that lacks a character shows "?"
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    logging.getLogger("pipelines").addHandler(_Warnings(logging.WARNING))
    signal.signal(signal.SIGINT, _interrupt)
    if launched():  # whoever launched the ranks ends them by SIGTERM, and has said why
        sys.argv[1:] = without(sys.argv[1:], "--local_rank")  # which deepspeed adds
    else:
        signal.signal(signal.SIGTERM, _interrupt)
    try:
        with _told_by_path():
            app()
    except UserError as error:
        from vppo_cli.screen.display import show_error

        heartbeat.end(str(error))
        if heartbeat.speaks():
            show_error(error)
        sys.exit(2)
    except LockLost as error:
        from vppo_cli.screen.display import show_error

        heartbeat.end(str(error))
        show_error(UserError("lock", str(error)))
        sys.exit(1)
    except Interrupted:
        from vppo_cli.screen.display import show_interrupted

        heartbeat.end("interrupted")
        if is_main():
            show_interrupted()
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        heartbeat.await_end(error)
        heartbeat.end(f"{type(error).__name__}: {error}")
        raise
    finally:
        heartbeat.end()


if __name__ == "__main__":
    main()
