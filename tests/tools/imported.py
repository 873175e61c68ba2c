"""What a command imports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
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
sys.argv = ["vppo", *sys.argv[1:]]
try:
    main()
finally:
    print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""


def imported_by(*arguments: str, runs: Path) -> tuple[set[str], subprocess.CompletedProcess[str]]:
    """The modules and packages that a command imports, and what came of the command."""
    done = subprocess.run(
        [sys.executable, "-c", RUN_AND_LIST, *arguments],
        cwd=runs.parent,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **ONE_THREAD, "VPPO_RUNS": str(runs)},
    )
    return set(json.loads(done.stderr.splitlines()[-1])), done
