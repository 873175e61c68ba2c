"""The command line starts light: what it does not need, it does not import."""

from __future__ import annotations

from pathlib import Path

from command_line import SMALL, Command, copy_of, fresh, given, vppo
from imported import HEAVY, imported_by, imported_by_all

HELP = {
    "": ("train", "prepare", "eval", "plan", "status", "report", "export", "doctor", "rollout -> score"),
    "train": ("--stage", "--steps", "--until", "--force", "A..B", "vppo train --config ci.yaml"),
    "prepare": ("--rebuild-tiny", "Parquet", "rejected.jsonl"),
    "eval": (
        "--benchmarks",
        "--checkpoint",
        "last (default), best",
        "--model",
        "--samples",
        "--profile",
        "--data-dir",
        "--regrade",
        "--max-new-tokens",
        "eval.graders=[math-verify,mathruler]",
    ),
    "perceive": (
        "--image",
        "--prompt",
        "--response",
        "--masks",
        "--dataset",
        "a row a response",
        "no training needed",
        "--columns problem=question",
    ),
    "compare": ("--fail-below", "paired bootstrap", "exit code 1 on a regression", "--json"),
    "plan": ("without running", "--set", "--json"),
    "status": ("at a glance", "another terminal", "--watch", "SECONDS", "130 after Ctrl-C", "--json"),
    "report": ("--compare", "--out", "--steps", "no network", "under 20 MB", "vppo report tiny-7f3a"),
    "ledger": ("--step", "1,15,30", "--objectives", "--no-gradients", "Theorem 3.1", "docs/ledger.md"),
    "bench": ("passes", "trl", "--repeats", "--shape", "in turn"),
    "export": ("DIR", "Hugging Face format", "--checkpoint"),
    "config": ("meaning", "section", "--all", "mode: published"),
    "doctor": ("devices", "disk", "what to do", "--json"),
}


def test_help_teaches_and_imports_nothing_heavy(tmp_path: Path) -> None:
    lines = [[*command.split(), "--help"] for command in HELP]
    packages, printed, done = imported_by_all(lines, runs=tmp_path / "runs")
    assert done.returncode == 0
    assert not packages & (HEAVY | {"numpy", "pyarrow"})  # not even all of them together
    for command, text in zip(HELP, printed, strict=True):
        words = " ".join(text.replace("│", " ").split())
        assert [expected for expected in HELP[command] if expected not in words] == [], command
        assert "\x1b" not in text  # plain text in a pipe


def test_a_command_imports_no_other_ones_file(tmp_path: Path) -> None:
    modules, _ = imported_by("status", "--help", runs=tmp_path / "runs")
    files = {name for name in modules if name.startswith("vppo_cli.commands.")}
    assert files == {"vppo_cli.commands.status"}
    modules, done = imported_by("statu", runs=tmp_path / "runs")
    assert "Did you mean 'status'?" in done.stderr


def test_no_command_shows_the_help(tmp_path: Path) -> None:
    done = fresh(runs=tmp_path / "runs")
    assert "Usage: vppo" in done.stdout + done.stderr


LOOKS = {
    "plan --json": '"keep"',
    "train --run small": "nothing to do",
    "status": "finished",
    "status --watch": "finished",
    "config score": "score.keep_fraction",
}


def test_looking_at_a_finished_run_imports_nothing_heavy(finished: tuple[Path, Command], tmp_path: Path) -> None:
    run = copy_of(finished[0], tmp_path)
    packages, printed, done = imported_by_all([line.split() for line in LOOKS], runs=run.parent)
    assert done.returncode == 0, done.stderr
    assert not packages & HEAVY
    for (line, expected), text in zip(LOOKS.items(), printed, strict=True):
        assert expected in text, line


def test_what_only_published_needs_is_listed_when_it_is_asked_for(tmp_path: Path) -> None:
    listed = [vppo("config", *more, runs=tmp_path / "runs").out for more in ((), ("--all",), ("published",))]
    named = [{line.partition(" ")[0] for line in text.splitlines()} for text in listed]
    assert ["published.decay_all" in names for names in named] == [False, True, True]
    assert ["update.weight_decay" in names for names in named] == [True, True, False]


def test_plan_of_a_run_not_begun_imports_nothing_heavy_and_writes_nothing(tmp_path: Path) -> None:
    packages, done = imported_by("plan", *given(*SMALL), runs=tmp_path / "runs")
    assert done.returncode == 0, done.stderr
    assert not packages & HEAVY
    assert "not made yet" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_is_told_without_importing_anything_heavy(tmp_path: Path) -> None:
    packages, done = imported_by("train", "--set", "score.keep_fracton=1", runs=tmp_path / "runs")
    assert done.returncode == 2
    assert "Did you mean score.keep_fraction?" in done.stderr
    assert not packages & HEAVY
