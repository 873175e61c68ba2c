"""What a command imports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from command_line import ONE_THREAD

HEAVY = {
    "torch",
    "torchvision",
    "transformers",
    "datasets",
    "vllm",
    "deepspeed",
    "lm_eval",
    "sympy",
    "sklearn",
    "math_verify",
}


RUN_AND_LIST = """
import json, sys
from vppo_cli.app import main
code = 0
for line in json.loads(sys.argv[1]):
    sys.argv = ["vppo", *line]
    try:
        main()
    except SystemExit as end:
        code = code or end.code
    print(END, flush=True)
print(json.dumps(sorted(sys.modules)), file=sys.stderr)
sys.exit(code)
"""
END = "-- the end --"


def imported_by(*arguments: str, runs: Path) -> tuple[set[str], subprocess.CompletedProcess[str]]:
    """The modules and packages that a command imports, and what came of the command."""
    modules, (said,), done = imported_by_all([arguments], runs=runs)
    done.stdout = said
    return modules, done


def imported_by_all(
    lines: Sequence[Sequence[str]], *, runs: Path
) -> tuple[set[str], list[str], subprocess.CompletedProcess[str]]:
    """The modules that commands import, one after the other in one process, and what each prints."""
    done = subprocess.run(
        [sys.executable, "-c", f"END = {END!r}{RUN_AND_LIST}", json.dumps(lines)],
        cwd=runs.parent,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **ONE_THREAD, "VPPO_RUNS": str(runs)},
    )
    return set(json.loads(done.stderr.splitlines()[-1])), done.stdout.split(f"{END}\n")[:-1], done
