"""Trackers: what each is told is read back from where it keeps it; none reaches for the network."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sqlite3
import struct
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import SMALL, Command, contents, copy_of, given, vppo

from pipelines import runs
from pipelines.chain import Chain
from pipelines.config.schema import Config, RunConfig
from pipelines.errors import UserError
from pipelines.tracking import trackers
from pipelines.tracking.names import ALIASES, flat, metrics_of
from pipelines.tracking.trackers import Tracked, check_trackers, run_id
from pipelines.watch import Silent

Finished = tuple[Path, Command]
Told = dict[str, list[tuple[int, float]]]
"""Metric -> (step, value), in the order in which they were told."""


@pytest.fixture
def run(finished: Finished, tmp_path: Path) -> Path:
    return copy_of(finished[0], tmp_path)


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Everything stays here, and this process opens no connection."""
    for name, value in {
        "WANDB_MODE": "offline",
        "WANDB_CACHE_DIR": str(tmp_path),
        "WANDB_CONFIG_DIR": str(tmp_path),
        "WANDB_DATA_DIR": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
        "DO_NOT_TRACK": "true",
    }.items():
        monkeypatch.setenv(name, value)
    for name in ("MLFLOW_TRACKING_URI", "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    asked: list[Any] = []
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            asked.append(address)
            raise ConnectionRefusedError(f"a test reached for {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
    yield
    assert asked == []


class Notes(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def tell(run: Path, *names: str, first: int = 0, **update: Any) -> Notes:
    """Start trackers on a run that is on disk, as when it is resumed, and end them.

    Args:
        first: pretend that only so many training steps are there (0: all).
    """
    config = runs.read_config(run)
    if first:
        config = config.model_copy(update={"run": RunConfig(steps=first)})
    tracked = Tracked(Chain(config, run), notes := Notes())
    tracked.start(names)
    tracked.close()
    return notes


def expected(run: Path) -> Told:
    """What a tracker should hold of a finished run, from metrics.jsonl, manifests and results."""
    found: Told = defaultdict(list)
    for line in (run / runs.METRICS).read_text().splitlines():
        row = json.loads(line)
        step = row.pop("step")
        for name, value in row.items():
            found[name].append((step, value))
        for alias, name in ALIASES.items():
            if name in row:
                found[alias].append((step, row[name]))
        for stage in ("rollout", "score", "update"):
            (manifest,) = run.glob(f"steps/{step:04d}/{stage}-*/manifest.json")
            seconds = json.loads(manifest.read_text())["seconds"]
            tokens = row["rollout/tokens_sampled" if stage == "rollout" else "rollout/tokens_used"]
            found[f"time/{stage}"].append((step, seconds))
            found[f"tokens_per_second/{stage}"].append((step, tokens / seconds))
    for benchmark, steps in {"validation": (2, 3), "glyphs": (0, 3)}.items():
        for step in steps:
            (results,) = run.glob(f"eval/{step:04d}/{benchmark}-*/results.json")
            accuracy = json.loads(results.read_text())["accuracy"]
            found[f"eval/{benchmark}/accuracy"].append((step, accuracy))
    return found


def agrees(told: Told, run: Path, digits: float = 1e-6) -> None:
    """Everything expected was told, every step once."""
    for name, values in expected(run).items():
        assert [step for step, _ in sorted(told[name])] == [step for step, _ in values], name
        assert [v for _, v in sorted(told[name])] == pytest.approx([v for _, v in values], rel=digits)
    for name in ("timing_s/step", "actor/pg_clipfrac"):
        assert [step for step, _ in sorted(told[name])] == [1, 2, 3]


# -- each tracker, read back -----------------------------------------------------------------------


def from_tensorboard(run: Path) -> Told:
    module = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = module.EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return defaultdict(list, {n: [(e.step, e.value) for e in events.Scalars(n)] for n in events.Tags()["scalars"]})


def test_tensorboard_holds_the_run_and_its_settings(run: Path) -> None:
    pytest.importorskip("tensorboard")
    assert tell(run, "tensorboard", first=2).notes == []
    assert tell(run, "tensorboard").notes == []  # resumed: the rest, and nothing twice
    agrees(from_tensorboard(run), run)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import plugin_data_pb2

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    (text,) = events.Tensors("config/text_summary")
    assert "update.objective: vppo" in text.tensor_proto.string_val[0].decode()
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    values = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert values["score.keep_fraction"].number_value == pytest.approx(0.4)


def from_wandb(run: Path) -> tuple[Told, dict[str, Any]]:
    """History and settings of the offline runs: records in blocks of 32 KiB, as LevelDB's log has them."""
    from wandb.proto import wandb_internal_pb2

    told: Told = defaultdict(list)
    settings: dict[str, Any] = {}
    for path in sorted(run.glob("wandb/offline-run-*/*.wandb")):
        data, at, part = path.read_bytes(), 7, b""
        while at + 7 <= len(data):
            if (room := 32768 - at % 32768) < 7:
                at += room
                continue
            length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
            part += data[at + 7 : at + 7 + length]
            at += 7 + length
            if kind in (1, 4):  # whole, or the last part
                record = wandb_internal_pb2.Record.FromString(part)
                part = b""
                if record.WhichOneof("record_type") == "run":
                    settings |= {c.key: json.loads(c.value_json) for c in record.run.config.update}
                    settings["id"] = record.run.run_id
                row = {i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
                for name, value in row.items():
                    told[name].append((int(row["training/global_step"]), value))
    return told, settings


def test_wandb_holds_the_run_and_its_settings(run: Path) -> None:
    pytest.importorskip("wandb")
    assert tell(run, "wandb", first=2).notes == []
    assert tell(run, "wandb").notes == []
    told, settings = from_wandb(run)
    agrees(told, run)
    assert settings["id"] == run_id(run)
    assert settings["score.keep_fraction"] == 0.4
    assert len(list(run.glob("wandb/offline-run-*"))) == 2  # which `wandb sync` joins, by their id


def test_wandb_asks_nobody_for_a_key(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(run))  # where no key is kept
    monkeypatch.setenv("NETRC", str(run / "netrc"))
    with pytest.raises(UserError, match="WANDB_MODE=offline"):
        tell(run, "wandb")


def test_trackio_holds_the_run_and_its_settings(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    utils = pytest.importorskip("trackio.utils")  # which has read TRACKIO_DIR
    folder = run.parent / "trackio"
    from trackio import sqlite_storage

    for module in (utils, sqlite_storage, __import__("trackio")):
        if hasattr(module, "TRACKIO_DIR"):
            monkeypatch.setattr(module, "TRACKIO_DIR", folder)
    assert tell(run, "trackio", first=2).notes == []
    assert tell(run, "trackio").notes == []
    told: Told = defaultdict(list)
    with sqlite3.connect(folder / "vppo.db") as database:
        for name, step, text in database.execute("SELECT run_name, step, metrics FROM metrics"):
            assert name == run_id(run)
            for metric, value in json.loads(text).items():
                told[metric].append((step, value))
        (settings,) = database.execute("SELECT config FROM configs").fetchone()
    agrees(told, run)
    assert json.loads(settings)["score.keep_fraction"] == 0.4


def test_mlflow_holds_the_run_and_its_settings(run: Path) -> None:
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    assert tell(run, "mlflow", first=2).notes == []
    assert tell(run, "mlflow").notes == []
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{run.parent / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("vppo")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])  # one, though started twice
    assert found.info.status == "FINISHED"
    assert found.data.tags["vppo.run"] == run_id(run)
    assert found.data.params["score.keep_fraction"] == "0.4"
    told: Told = defaultdict(list)
    for name in found.data.metrics:
        told[name] = [(m.step, m.value) for m in client.get_metric_history(found.info.run_id, name)]
    agrees(told, run)


# -- once, and in order ----------------------------------------------------------------------------

LINES = """
import json, os

class Lines:
    def __init__(self, run):
        self.path = run.folder.parent.parent / "told.jsonl"
        self.write(opened=run.id, keep=run.config["score.keep_fraction"], replaced=run.replaced_from)

    def write(self, **values):
        with open(self.path, "a") as file:
            file.write(json.dumps(values) + "\\n")

    def log(self, step, metrics):
        if os.environ.get("BREAK_AT") == str(step):
            raise ConnectionError("no route to\\x1b[31m host\\nat all")
        kind = "update" if "update/loss" in metrics else next(n for n in metrics if n.startswith("eval/"))
        self.write(kind=kind.removesuffix("/accuracy"), step=step)

    def close(self):
        self.write(closed=True)
"""


@pytest.fixture
def own(tmp_path: Path) -> tuple[Path, list[str]]:
    """A folder to run in, and the settings of a small run that has a tracker of one's own there."""
    (tmp_path / "my_tracker.py").write_text(LINES)
    return tmp_path, given(*SMALL, "run.trackers=[my_tracker:Lines]")


def said(folder: Path) -> list[dict[str, Any]]:
    """What the tracker was told since this was asked last."""
    path = folder / "told.jsonl"
    lines = [json.loads(text) for text in path.read_text().splitlines()] if path.is_file() else []
    path.unlink(missing_ok=True)
    return lines


def steps(lines: list[dict[str, Any]]) -> list[tuple[str, int]]:
    return [(line["kind"], line["step"]) for line in lines if "kind" in line]


def test_every_step_is_told_once_however_often_the_run_is_resumed(
    own: tuple[Path, list[str]], finished: Finished
) -> None:
    folder, settings = own
    runs_folder = folder / "runs"
    first = ("train", "--run", "small", *settings)
    vppo(*first, "--until", "1", runs=runs_folder, cwd=folder).succeeded()
    opened, update, closed = said(folder)
    assert steps([update]) == [("update", 1)]
    assert closed == {"closed": True}

    vppo(*first, runs=runs_folder, cwd=folder).succeeded()  # replays update 1, from no checkpoint
    lines = said(folder)
    assert lines[0] == opened  # the same id
    assert steps(lines) == [
        ("update", 2),
        ("eval/validation", 2),
        ("update", 3),
        ("eval/validation", 3),
        ("eval/glyphs", 0),
        ("eval/glyphs", 3),
    ]
    assert contents(runs_folder / "small") == contents(finished[0])  # a tracker changes nothing

    vppo(*first, runs=runs_folder, cwd=folder).succeeded()
    assert said(folder) == []  # nothing to do, nothing to tell

    # Another history from update 1 on: told anew, and the tracker knows from where.
    changed = ("--set", "score.keep_fraction=0.2", "--until", "2")
    vppo("train", "--run", "small", *changed, runs=runs_folder, cwd=folder).succeeded()
    lines = said(folder)
    assert (lines[0]["replaced"], lines[0]["keep"]) == (1, 0.2)
    assert steps(lines) == [("update", 1), ("update", 2), ("eval/validation", 2)]


def test_a_tracker_that_fails_costs_the_run_nothing(own: tuple[Path, list[str]], finished: Finished) -> None:
    folder, settings = own
    command = ("train", "--run", "small", *settings)
    done = vppo(*command, runs=folder / "runs", cwd=folder, env={"BREAK_AT": "2"}).succeeded()
    (warning,) = (line for line in done.out.splitlines() if line.startswith("warning"))
    assert "tracker my_tracker:Lines failed" in warning
    assert "ConnectionError: no route to" in warning
    assert "\x1b" not in done.out
    assert done.err == ""
    assert contents(folder / "runs" / "small") == contents(finished[0])
    assert steps(said(folder)) == [("update", 1)]
    # When it works again, it hears what it missed.
    vppo(*command, "--set", "run.steps=4", "--until", "4", runs=folder / "runs", cwd=folder).succeeded()
    assert [step for kind, step in steps(said(folder)) if kind == "update"] == [2, 3, 4]


def test_events_of_a_history_that_was_given_up_are_hidden(run: Path) -> None:
    pytest.importorskip("tensorboard")
    tell(run, "tensorboard")
    old = from_tensorboard(run)["update/loss"]
    changed = (*given(*SMALL), "--set", "score.keep_fraction=0.2", "--set", "run.trackers=[tensorboard]")
    vppo("train", "--run", "small", *changed, "--until", "2", runs=run.parent).succeeded()
    new = from_tensorboard(run)["update/loss"]
    assert [step for step, _ in new] == [1, 2]
    assert [value for _, value in new] != [value for _, value in old[:2]]
    # What still holds is there: the starting model's evaluation.
    assert [step for step, _ in from_tensorboard(run)["eval/glyphs/accuracy"]] == [0]


# -- before any work -------------------------------------------------------------------------------


def test_a_misspelt_tracker_is_told_before_any_work(tmp_path: Path) -> None:
    asked = vppo("train", *given(*SMALL, "run.trackers=[tensorbord]"), runs=tmp_path / "runs")
    assert asked.code == 2
    assert "run.trackers: tensorbord" in asked.err
    assert "Did you mean tensorboard?" in asked.err
    assert not list(tmp_path.glob("runs/*/prepare-*"))


def test_a_missing_package_is_told_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(trackers.TRACKERS, "absent_tracker", trackers.TRACKERS["wandb"])
    config = Config(run=RunConfig(trackers=("absent_tracker",)))
    with pytest.raises(UserError, match=r"pip install 'vppo\[absent_tracker\]'") as told:
        check_trackers(config)
    assert "the package absent_tracker is not installed" in str(told.value)


def test_the_extras_are_the_trackers() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert extras["trackers"] == [f"vppo[{','.join(trackers.TRACKERS)}]"]
    assert set(trackers.TRACKERS) <= set(extras)


# -- what is told ----------------------------------------------------------------------------------


def test_settings_are_told_by_their_dotted_names() -> None:
    from pipelines.config.settings import setting_names

    found = flat(Config())
    assert set(found) == {name for name, _ in setting_names()}
    assert found["rollout.samples_per_prompt"] == 8
    assert found["data.glyphs.levels"] == "[1, 2, 3]"
    assert found["update.tis_cap"] is None


def test_clipped_tokens_are_those_of_both_sides(finished: Finished) -> None:
    chain = Chain(runs.read_config(finished[0]), finished[0])
    told = metrics_of(chain, chain.update(3))
    assert told["actor/pg_clipfrac"] == told["update/clipped_low"] + told["update/clipped_high"]
    assert told["training/global_step"] == 3
    assert all(isinstance(value, float) for value in told.values())


def test_the_id_stays_when_the_folder_moves(tmp_path: Path) -> None:
    before = run_id_of(tmp_path / "a")
    shutil.move(tmp_path / "a", tmp_path / "b")
    assert run_id(tmp_path / "b") == before
    assert run_id_of(tmp_path / "a") != before


def run_id_of(folder: Path) -> str:
    os.mkdir(folder)
    return run_id(folder)
