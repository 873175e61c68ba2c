"""The house: rooms stand in an order, and what is imported lies below. No circle, no way back up."""

from __future__ import annotations

import ast
from functools import cache
from graphlib import TopologicalSorter
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

ORDER = (
    "pipelines.errors",
    "pipelines.words",
    "pipelines.seeds",
    "pipelines.watch",
    "pipelines.vppo",
    "pipelines.contents",
    "pipelines.config",
    "pipelines.objectives",
    "pipelines.ranks",
    "pipelines.disk",
    "pipelines.stages",
    "pipelines.grading",
    "pipelines.model",
    "pipelines.capacity",
    "pipelines.embedded",
    "pipelines.prepare",
    "pipelines.rollout",
    "pipelines.embedded.tiny",
    "pipelines.score",
    "pipelines.update",
    "pipelines.checkpoint",
    "pipelines.chain",
    "pipelines.runs",
    "pipelines.tracking",
    "pipelines.checkpoints",
    "pipelines.live",
    "pipelines.checks",
    "pipelines.opening",
    "pipelines.run",
    "pipelines.ledger",
    "pipelines.page",
    "pipelines.perceive",
    "pipelines.bench",
    "evals.numbers",
    "evals.benchmarks",
    "evals.report",
    "evals",
    "evals.lm_eval",
    "vppo_cli.screen",
    "vppo_cli.report",
    "vppo_cli.choose",
    "vppo_cli.opened",
    "vppo_cli.options",
    "vppo_cli.commands",
    "vppo_cli.app",
    "vppo_cli",
    "vppo",
)
"""From the ground up: rooms, and files that lie in none."""


def modules() -> dict[str, Path]:
    """Every module of the three packages, and the one beside them, and its file."""
    found = {"vppo": ROOT / "vppo.py"}
    for package in ("pipelines", "evals", "vppo_cli"):
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imported(path: Path) -> set[str]:
    """The modules of ours that a file imports, wherever in it, and if for types alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    named: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inside = f"{node.module}.{alias.name}"
                named.add(inside if inside in MODULES else node.module)
    return named & MODULES.keys()


@cache
def imports() -> dict[str, set[str]]:
    """Module -> what it imports of ours."""
    return {name: imported(path) for name, path in MODULES.items()}


def floor(module: str) -> int:
    """How high it stands: the place of the room it lies in."""
    parts = module.split(".")
    known = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
    return next(ORDER.index(name) for name in known if name in ORDER)


@pytest.mark.parametrize("module", [name for name in MODULES if name != "pipelines"])
def test_what_is_imported_lies_below(module):
    above = {name for name in imports()[module] if name != "pipelines" and floor(name) > floor(module)}
    assert not above


def test_no_file_needs_itself():
    TopologicalSorter(imports()).prepare()  # raises CycleError, with the circle


def test_every_room_is_there():
    assert set(map(floor, MODULES.keys() - {"pipelines"})) == set(range(len(ORDER)))


def test_a_way_up_would_be_seen(tmp_path):
    for one, other in pairwise(ORDER):
        assert floor(one) < floor(other)
    file = tmp_path / "a.py"
    file.write_text("def f():\n    from pipelines.live import Session\n    return Session\n")
    assert imported(file) == {"pipelines.live"}
