"""A run, and a benchmark, over a hub that moves: run by test_hub.py in a process of its own.

    python tests/tools/hub_story.py FOLDER

The libraries read the hub's address when they are imported, so it is there before they are. Prints
what came of it as JSON on the last line.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

from fake_hub import FakeHub

COMMAND = (
    "data.source=me/data",
    "data.validation_count=2",
    "eval.benchmarks=[geo3k]",
    "run.steps=1",
    "eval.limit=1",
    "eval.samples=1",
    "eval.max_new_tokens=4",
    "eval.profile=matched",
)


def rows(word: str) -> bytes:
    """Six questions as one Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from hub_schema import png

    buffer = io.BytesIO()
    image = [{"bytes": png(1), "path": None}]
    made = [{"id": i, "problem": f"{word} {i}?", "images": image, "answer": "1"} for i in range(6)]
    pq.write_table(pa.Table.from_pylist(made), buffer)
    return buffer.getvalue()


def story(hub: FakeHub, folder: Path) -> dict[str, Any]:
    told: dict[str, Any] = {}
    first = hub.push("dataset", "me/data", {"data/train-00000-of-00001.parquet": rows("first")})
    other = hub.push("model", "me/model", {"config.json": b"{}"})
    golds = hub.push("dataset", "hiyouga/geometry3k", {"data/test-00000-of-00001.parquet": rows("old")})

    from evals.benchmarks.questions import questions_step, read_questions
    from pipelines import runs
    from pipelines.chain import Chain
    from pipelines.config import hub as revisions
    from pipelines.config import settings
    from pipelines.watch import Silent
    from vppo_cli.choose import begun, choose
    from vppo_cli.commands.train import one_stage

    both = settings.load(None, ["data.source=me/data", "data.validation_source=me/data", "model.path=me/model"])
    found = revisions.resolved(both)
    told["resolved"] = [found.data.revision, found.data.validation_revision, found.model.revision]
    told["expected"] = [first, first, other]
    told["keyed"] = Chain(found, folder).model.settings["model.revision"] == other

    def prepare(*more: str) -> Path:
        one_stage(None, None, [*COMMAND, *more], "prepare", None, force=False, as_json=True)
        return runs.find_run(None)

    run = prepare()
    told["config"] = runs.read_config(run).data.revision == first
    manifest = json.loads(next(run.glob("prepare-*/manifest.json")).read_text())
    told["manifest"] = manifest["settings"]["data.revision"] == first

    from evals.benchmarks.questions import gather

    config = runs.read_config(run)
    gather(config, ["geo3k"], Silent())
    told["questions"] = questions_step("geo3k", config).settings["revision"] == golds
    cell = Chain(config, run).cell(0, "geo3k")
    told["results"] = cell.revisions == {"questions": golds}

    second = hub.push("dataset", "me/data", {"data/train-00000-of-00001.parquet": rows("second")})
    hub.push("dataset", "hiyouga/geometry3k", {"data/test-00000-of-00001.parquet": rows("new")})
    revisions._head.cache_clear()
    gather(config, ["geo3k"], Silent())
    told["golds stay"] = read_questions(questions_step("geo3k", config))[0].problem == "old 0?"

    chain, notes = begun(choose(None, None, list(COMMAND), new=True))
    told["goes on"] = (chain.run == run, chain.prepare.path.is_dir())
    told["notes"] = notes
    told["another run"] = runs.read_config(prepare("seed=1")).data.revision == second
    told["first"], told["second"] = first, second
    return told


def offline(commit: str) -> str:
    """What the command says without a connection, asked for a commit that the cache does not hold."""
    import datasets
    import huggingface_hub.constants

    from vppo_cli.app import main as vppo

    huggingface_hub.constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    sys.argv = ["vppo", "prepare", "--set", "data.source=me/data", "--set", f"data.revision={commit}"]
    os.environ["VPPO_RUNS"] += "-offline"
    with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.suppress(SystemExit):
        vppo()
    return " ".join(said.getvalue().split())


def main() -> None:
    folder = Path(sys.argv[1])
    with FakeHub() as hub:
        os.environ.update(hub.env(folder / "hf") | {"VPPO_RUNS": str(folder / "runs")})
        with contextlib.redirect_stdout(sys.stderr):
            told = story(hub, folder)
    told["offline"] = offline(told["first"])
    print(json.dumps(told))


if __name__ == "__main__":
    main()
