"""docs/artifacts.md: every column and key is there, none that is not, and its queries run."""

from __future__ import annotations

import json
import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from command_line import Command
from safetensors import safe_open

from evals.journal import Entry
from pipelines import runs
from pipelines.disk import artifacts, records
from pipelines.stages import STAGES
from pipelines.tracking.names import ALIASES, STEP, metrics_of

Finished = tuple[Path, Command]

PAGE = (Path(__file__).parents[2] / "docs" / "artifacts.md").read_text(encoding="utf-8")

FILES = {
    "Sample": "train.parquet",
    "Rollout": "rollouts.parquet",
    "Scored": "scores.parquet",
    "Statistics": "statistics.parquet",
    "Look": "looks.parquet",
    "Advantages": "advantages.parquet",
    "Perceived": "perception.parquet",
}

SOMETIMES = {
    "metrics.jsonl": {
        "rollout/groups_thrown_away",
        "update/updates_skipped",
        "update/reference_kl",
        "update/tis_weight_mean",
        "update/tis_capped",
    },
    "manifest.json": {"pruned"},
    "results.json": {"clusters_of", "rewards"},
}
"""Keys that only some runs have."""


def section(name: str) -> str:
    """The part of the page whose heading names this file."""
    (found,) = re.findall(rf"^## [^\n]*`{re.escape(name)}`[^\n]*\n(.*?)(?=^## )", PAGE, re.M | re.S)
    return str(found)


def table(name: str) -> list[list[str]]:
    """The cells of the section's table, without its head."""
    lines = [line for line in section(name).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def keys(name: str) -> list[str]:
    return [key for row in table(name) for key in re.findall(r"`([^`]+)`", row[0])]


def written(type_: Any) -> str:
    """An Arrow type as the page writes it: the names of lists' elements say nothing."""
    return re.sub(r"\w+: ", "", str(type_))


def json_of(run: Path, pattern: str) -> dict[str, Any]:
    """The first JSON object in the first matching file."""
    found: dict[str, Any]
    found, _ = json.JSONDecoder().raw_decode(next(run.glob(pattern)).read_text())
    return found


# -- stages ----------------------------------------------------------------------------------------


def test_what_each_stage_writes_is_on_the_page() -> None:
    part = PAGE[PAGE.index("## A stage of your own") : PAGE.index("## What was committed")]
    rows = [line.strip("|").split("|") for line in part.splitlines() if line.startswith("| `")]
    named = [[re.findall(r"`([^`]+)`", cell) for cell in row] for row in rows]
    written = {row[0][0]: set(row[1]) for row in named}
    assert list(written) == list(STAGES)
    assert written == {stage: {*artifacts.TABLES.get(stage, ()), *artifacts.OTHERS.get(stage, ())} for stage in STAGES}
    assert {name for row in named for name in row[3]} == artifacts.MAY_BE_MISSING


# -- columns and keys ------------------------------------------------------------------------------


def test_every_row_type_is_on_the_page() -> None:
    kinds = {
        name
        for name, kind in vars(records).items()
        if is_dataclass(kind) and fields(kind) and "arrow" in fields(kind)[0].metadata
    }
    assert kinds == set(FILES)


@pytest.mark.parametrize("kind", FILES)
def test_every_column_is_on_the_page_with_its_type(kind: str) -> None:
    found = {name.strip("`"): type_.strip("`") for name, type_, _ in table(FILES[kind])}
    assert all(row[2] for row in table(FILES[kind]))
    schema = records.schema(getattr(records, kind))
    assert found == {column.name: written(column.type) for column in schema}


def test_columns_of_answers(finished: Finished) -> None:
    schema = pq.read_schema(next(finished[0].glob("eval/0003/glyphs-*/answers.parquet")))
    found = {name.strip("`"): type_.strip("`") for name, type_, _ in table("answers.parquet")}
    assert found == {column.name: written(column.type) for column in schema}


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("metrics.jsonl", "metrics.jsonl"),
        ("manifest.json", "steps/0001/score-*/manifest.json"),
        ("results.json", "eval/0003/glyphs-*/results.json"),
        ("run.json", "run.json"),
        ("journals/*.jsonl", "eval/0003/journals/*.jsonl"),
    ],
)
def test_every_key_is_on_the_page_and_no_other(name: str, pattern: str, finished: Finished) -> None:
    found = keys(name)
    assert len(found) == len(set(found))
    assert set(found) - SOMETIMES.get(name, set()) == set(json_of(finished[0], pattern))


def test_the_tensors_of_an_optimizer_are_on_the_page(finished: Finished) -> None:
    (path,) = finished[0].glob("checkpoints/0003/*/trainer/optimizer.safetensors")
    with safe_open(path, framework="np") as file:
        found = {
            f"{name.partition('/')[0]}/NAME" if "/" in name else name: file.get_slice(name).get_dtype()
            for name in file.keys()  # noqa: SIM118 (no dict)
        }
    rows = table("optimizer.safetensors")
    assert {name.strip("`"): kind.strip("`") for name, kind, _ in rows} == found


def test_the_page_has_what_the_code_can_write() -> None:
    assert set(keys("run.json")) == {f.name for f in fields(runs.State)}
    assert set(keys("journals/*.jsonl")) == {f.name for f in fields(Entry)}
    source = "".join(path.read_text() for path in Path(runs.__file__).parent.rglob("*.py"))
    for name in SOMETIMES["metrics.jsonl"]:
        assert f'"{name.partition("/")[2]}"' in source


def test_the_names_in_trackers_are_on_the_page(finished: Finished) -> None:
    from pipelines.chain import Chain

    told = metrics_of(chain := Chain(runs.read_config(finished[0]), finished[0]), chain.update(1))
    rows = {row[0].strip("`"): re.findall(r"`([^`]+)`", row[3]) for row in table("metrics.jsonl")}
    for alias, name in {**ALIASES, STEP: "step"}.items():
        if name in rows:
            assert alias in rows[name]
        else:  # times have no row: they are not in metrics.jsonl
            assert f"`{alias}`" in section("metrics.jsonl")
    in_rows = {alias for aliases in rows.values() for alias in aliases} | set(rows) - {"step"}
    elsewhere = set(told) - in_rows
    text = section("metrics.jsonl")
    assert all(name in text or name.rpartition("/")[2] in text for name in elsewhere)
    assert set(told) >= in_rows - SOMETIMES["metrics.jsonl"]


# -- queries ---------------------------------------------------------------------------------------

QUESTIONS = PAGE[PAGE.index("## Three questions, answered") :]
BLOCKS = re.findall(r"^```python\n(.*?)^```\n+^```\n(.*?)^```", QUESTIONS, re.M | re.S)


def test_there_are_three_queries() -> None:
    assert len(BLOCKS) == len(re.findall(r"^### ", PAGE, re.M)) == 3


@pytest.mark.parametrize("number", range(3))
def test_a_query_runs_and_gives_the_columns_that_are_shown(
    number: int, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("duckdb")
    code, shown = BLOCKS[number]
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "tiny-019f09fb").symlink_to(finished[0])
    monkeypatch.chdir(tmp_path)
    exec(compile(code, f"docs/artifacts.md, query {number + 1}", "exec"), {})
    given = capsys.readouterr().out
    assert head(given) == head(shown)
    assert len(head(shown)) >= 4


def head(text: str) -> list[str]:
    """The names of a printed table's columns."""
    lines = text.splitlines()
    (top,) = (number for number, line in enumerate(lines) if line.startswith("┌"))
    return [cell.strip() for cell in lines[top + 1].strip("│").split("│")]
