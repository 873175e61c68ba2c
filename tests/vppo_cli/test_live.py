"""What is shown while a run works, here and from elsewhere."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from command_line import SMALL, Command, copy_of, given, start, vppo
from rich.console import Console

from pipelines import runs
from pipelines.chain import Chain
from pipelines.config import settings
from pipelines.disk.lock import run_lock
from pipelines.tracking import timing
from vppo_cli.screen import facts, live
from vppo_cli.screen import glance as glances
from vppo_cli.screen.words import compact

Finished = tuple[Path, Command]

ROW: dict[str, Any] = {
    "step": 4,
    "rollout/accuracy": 0.5,
    "rollout/reward": 0.25,
    "rollout/groups_informative": 3,
    "rollout/groups_sampled": 5,
    "rollout/tokens_sampled": 3000,
    "rollout/tokens_used": 1000,
    "score/perception_mean": 0.2,
    "score/perception_in_kept": 0.9996,
    "score/entropy": 0.1,
}
SPENT = {"rollout": 1.5, "score": 0.25, "update": 0.5}


@pytest.fixture
def run(finished: Finished, tmp_path: Path) -> Path:
    return copy_of(finished[0], tmp_path)


def chain_of(run: Path) -> Chain:
    return Chain(runs.read_config(run), run)


# -- numbers ---------------------------------------------------------------------------------------


def test_tokens_a_second_by_stage() -> None:
    # sampled 3000 / 1.5 s; scored 1000 / 0.25 s; trained on twice (two epochs) 1000 / 0.5 s
    assert timing.rates(ROW, SPENT, epochs=2) == {"rollout": 2000, "score": 4000, "update": 4000}
    # all groups were carried over: nothing was sampled
    assert "rollout" not in timing.rates(ROW | {"rollout/tokens_sampled": 0}, SPENT)
    # an earlier version did not count what is used
    old = {k: v for k, v in ROW.items() if k != "rollout/tokens_used"}
    assert timing.rates(old, SPENT) == {"rollout": 2000}


def test_the_tokens_of_a_run_are_those_of_its_responses(finished: Finished) -> None:
    from pipelines.disk.records import Rollout, read_rows

    chain = chain_of(finished[0])
    for row in live.recent_rows(chain):
        groups = read_rows(chain.rollout(row["step"]).path / "rollouts.parquet", Rollout)
        assert row["rollout/tokens_used"] == sum(len(r) for g in groups for r in g.response_ids)
        assert set(timing.seconds(chain, row["step"])) == {"rollout", "score", "update"}


def test_time_left_is_that_of_the_median_step() -> None:
    recent = [{"rollout": 1.0, "update": 1.0}, {"rollout": 90.0}, {"rollout": 3.0}]
    assert facts.seconds_left(10, recent) == 30  # sums 2, 90, 3
    assert facts.seconds_left(10, []) is None
    assert facts.left_text(94.2) == "left 1 m 34 s"
    assert facts.left_text(0.0) == facts.left_text(0.4) == facts.left_text(-3) == facts.left_text(None) == ""


def test_no_time_is_left_after_the_last_step_though_an_evaluation_follows(watch: live.LiveWatch) -> None:
    with live.console.capture() as lines:
        live.PlainWatch.step_done(watch)
    assert "time   3/3" in lines.get()
    assert "left" not in lines.get()
    watch.rows, watch._stepped = watch.rows[:2], time.monotonic() - 1000  # the last takes longer than usual
    watch.stage("update", 3)
    assert screen(watch, 80)[0].endswith("  3/3")


def test_what_was_prepared_is_said_in_words() -> None:
    made = {"train": 40, "validation": 8, "test": 0, "rejected": 3, "rejected_no_answer": 1, "single_colour": 2}
    told = facts.prepared(made | {"rejected_image_not_found": 2})
    assert told == "train 40  validation 8  3 left out (2 image not found, 1 no answer)"
    assert facts.prepared({"train": 40, "validation": 8, "test": 9, "rejected": 0}) == (
        "train 40  validation 8  test 9  none left out"
    )


@pytest.mark.parametrize(("count", "text"), [(87.4, "87"), (9999, "9999"), (12_440, "12.4 k"), (1_230_000, "1.2 M")])
def test_compact(count: float, text: str) -> None:
    assert compact(count) == text


def test_lines_for_a_log_are_short_and_say_it_all() -> None:
    assert facts.step_line(ROW, 30) == (
        "step   4/30  accuracy 0.500  reward 0.250  informative 3/5  perception 0.20 nats  "
        "in kept 99.9 %  entropy 0.10"  # 99.96 is not all of it
    )
    rates = timing.rates(ROW, SPENT)
    assert facts.time_line(ROW, 30, SPENT, rates, "left 59 s", "memory 1.4 GB") == (
        "time   4/30  rollout 1.5 s 2000/s  score 0.2 s 4000/s  update 0.5 s 2000/s  left 59 s  memory 1.4 GB"
    )


# -- the view at a terminal ------------------------------------------------------------------------


def screen(watch: live.LiveWatch, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    with console.capture() as capture:
        console.print(watch._view())
    return [text.rstrip() for text in capture.get().splitlines()]


@pytest.fixture
def watch(run: Path) -> live.LiveWatch:
    watch = live.LiveWatch(chain_of(run))
    watch.rows = live.recent_rows(watch.chain)
    watch.recent = facts.recent_seconds(watch.chain, watch.rows)
    return watch


def test_the_view_shows_a_training_step(watch: live.LiveWatch) -> None:
    watch.last = 30
    watch.stage("rollout", 4)
    watch.progress("groups", 2, 4)
    watch.rows[-1] |= ROW | {"step": 3, "rollout/accuracy": 1.0}
    watch.rows[:2] = [row | {"rollout/accuracy": 0.0} for row in watch.rows[:2]]
    watch.recent[:] = [SPENT] * 3  # 2.25 s: 27 steps take 61 s
    lines = screen(watch, 80)
    assert lines[0].startswith("step       ━━─")  # 3 of 30, in 24 parts: 2.4
    assert lines[0].endswith("  4/30  left 1 m 01 s")
    assert lines[1:6] == [
        "accuracy   1.000 ▁▁█",
        "reward     0.250   informative 3 of 5   entropy 0.10",
        "perception 0.20 nats, 99.9 % in kept tokens",
        "time       rollout 1.5 s   score 0.2 s   update 0.5 s",
        "tokens/s   rollout 2000    score 4000    update 2000",
    ]
    assert lines[6].startswith("memory     ")
    assert lines[6].endswith("B")
    assert lines[7] == "rollout    ━━━━━━━━━━━━────────────  2/4 groups"


def test_a_checkpoint_is_no_part_of_a_steps_usual_time(watch: live.LiveWatch) -> None:
    watch.times = dict(SPENT)
    watch.finished("update", 4, ROW)
    before = facts.seconds_left(1, watch.recent[-1:])
    watch.finished("checkpoint", 4, {})
    assert facts.seconds_left(1, watch.recent[-1:]) == before


def test_the_view_fits_sixty_columns_and_is_the_same_at_any_width(watch: live.LiveWatch) -> None:
    watch.last = 999
    watch.rows = [row | {"rollout/groups_informative": 384, "rollout/groups_sampled": 1536} for row in watch.rows]
    watch.rows[-1] |= {"rollout/tokens_sampled": 9_000_000, "rollout/tokens_used": 4_000_000}
    watch.recent[:] = [{"rollout": 1062.4, "score": 134.1, "update": 267.3}]
    watch.stage("update", 998)
    wide = screen(watch, 120)
    assert max(map(len, wide)) <= 60
    assert screen(watch, 60) == wide


@pytest.mark.parametrize("width", [20, 40])
def test_a_narrow_terminal_cuts_lines_and_never_wraps(watch: live.LiveWatch, width: int) -> None:
    watch.stage("rollout", 3)
    lines = screen(watch, width)
    assert len(lines) == len(screen(watch, 120))
    assert max(map(len, lines)) <= width


def test_the_view_before_anything_is_known(tmp_path: Path) -> None:
    watch = live.LiveWatch(Chain(settings.load(), tmp_path / "r"))
    watch.stage("rollout", 1)
    watch.progress("text\x1b[2J", 0, 4)
    lines = screen(watch, 80)
    assert [text.split()[0] for text in lines] == ["step", "memory", "rollout"]
    assert "\x1b" not in lines[2]


def test_rows_of_a_step_made_again_take_the_place_of_the_old(watch: live.LiveWatch) -> None:
    with live.console.capture():
        watch.finished("update", 2, watch.rows[1] | {"rollout/accuracy": 0.125})
    assert [row["step"] for row in watch.rows] == [1, 2]
    assert watch.rows[-1]["rollout/accuracy"] == 0.125


# -- from elsewhere --------------------------------------------------------------------------------


def shown(run: Path) -> list[str]:
    return [text.plain for text in glances.lines(glances.look(run))]


def record(run: Path, **fields: Any) -> None:
    about = {"state": "running", "stage": "rollout", "step": 3, "pid": 7, "host": "h", "time": time.time()} | fields
    (run / runs.STATE).write_text(json.dumps(about))


def test_status_shows_what_the_stage_is_doing(run: Path) -> None:
    with run_lock(run):
        record(run, doing="groups", done=1, total=4, memory=1_400_000_000, gpu_memory=12_300_000_000)
        lines = shown(run)
    assert lines[0].endswith("small  (running)")
    assert lines[1] == "now        rollout 3  ━━━━━━──────────────────  1/4 groups"
    assert "memory     1.4 GB, GPU 12.3 GB at most" in lines
    assert not any(text.startswith("warning") for text in lines)


@pytest.mark.parametrize(("minutes", "warned"), [(4, False), (6, True)])
def test_a_run_that_gives_no_sign_is_told(run: Path, minutes: int, warned: bool) -> None:
    with run_lock(run):
        record(run, time=time.time() - 60 * minutes)
        found = [text for text in shown(run) if text.startswith("warning")]
    assert found == ["warning    no sign for 6 m 00 s (process 7 on h)"] * warned


def test_a_stage_that_usually_takes_long_is_given_longer(run: Path) -> None:
    glance = glances.look(run)
    glance.state = runs.State("running", "update", 3, time=time.time() - 3600)
    glance.recent = [{"update": 1500.0}]
    assert glance.silent == 0  # three times 25 minutes are more than an hour
    glance.recent = [{"update": 1000.0}]
    assert round(glance.silent) == 3600


def test_what_did_not_change_is_not_looked_up_again(run: Path) -> None:
    first = glances.look(run)
    again = glances.look(run, first)
    assert again is first
    with run_lock(run):
        record(run)
        assert glances.look(run, first) is not first


def test_watching_a_run_in_a_pipe_gives_a_line_or_an_object_for_every_change(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    training = start("train", "--run", "small", *given(*SMALL), runs=folder)
    while training.running() and runs.read_state(folder / "small").state == "new":
        time.sleep(0.01)
    plain = start("status", "--watch", "0.1", runs=folder)
    objects = start("status", "--watch", "0.1", "--json", runs=folder)
    training.succeeded()
    lines = plain.succeeded().out.splitlines()
    assert "finished" in lines[-1]
    assert "3/3 steps" in lines[-1]
    assert any("rollout 2" in text for text in lines)
    assert len(set(lines)) == len(lines)
    assert "\x1b" not in plain.out
    found = [json.loads(text) for text in objects.succeeded().out.splitlines()]
    assert found[-1]["state"] == "finished"
    assert [f["steps_done"] for f in found] == sorted(f["steps_done"] for f in found)
    assert {f["stage"] for f in found} >= {"rollout", "glyphs"}
    assert found[-1]["evaluations"][0]["benchmark"] == "glyphs"
    assert found[-1]["tokens_per_second"].keys() == {"rollout", "score", "update"}


def test_a_change_that_a_line_does_not_show_gives_no_line(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = [glances.look(run) for _ in range(3)]
    for number, glance in enumerate(looks):
        glance.stamp = (number,)  # metrics.jsonl was written, for one
    ends = iter((False, False, True))
    monkeypatch.setattr(glances, "look", lambda path, before: looks.pop())
    monkeypatch.setattr(glances, "_ended", lambda glance: next(ends))
    with live.console.capture() as lines:
        glances.tell(run, 0.0, as_json=False)
    assert len(lines.get().splitlines()) == 1
    assert not looks


def test_ctrl_c_leaves_the_watched_run_alone(run: Path) -> None:
    with run_lock(run):
        record(run)
        watching = start("status", "--watch", runs=run.parent)
        while watching.running() and not (watching.out_path.is_file() and watching.out):
            time.sleep(0.02)
        watching.signal(signal.SIGINT)
        assert watching.code == 130
        assert watching.err == ""
        assert runs.read_state(run).state == "running"


@pytest.mark.parametrize("going", ["checkpoints/0003", "checkpoints/0004.1-host.partial", "eval"])
def test_what_goes_while_a_run_is_looked_at_is_no_error(run: Path, monkeypatch: pytest.MonkeyPatch, going: str) -> None:
    (run / "checkpoints/0004.1-host.partial/trainer").mkdir(parents=True)
    assert (run / going).is_dir()
    scandir = os.scandir

    def gone_when_opened(place: str | Path | int) -> Any:
        if place in (run / going, str(run / going)):
            shutil.rmtree(place, ignore_errors=True)
        return scandir(place)

    monkeypatch.setattr(os, "scandir", gone_when_opened)
    assert glances.look(run).used > 0
    assert not (run / going).exists()


@pytest.mark.parametrize(("state", "code"), [("finished", 0), ("idle", 0), ("failed", 1), ("running", 1)])
def test_watching_ends_with_the_run(run: Path, state: str, code: int) -> None:
    record(run, state=state, host=socket.gethostname())  # "running", and nobody is there
    done = vppo("status", "--watch", "--json", runs=run.parent)
    assert done.code == code
    assert done.json["state"] == ("stopped" if state == "running" else state)


def test_seconds_go_with_watch(run: Path) -> None:
    refused = vppo("status", "5", runs=run.parent)
    assert refused.code == 2
    assert "goes with --watch" in refused.err
