"""Which code and packages made an artifact: recorded and shown, never part of a step's key."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("vppo", "torch", "transformers", "tokenizers", "datasets", "mathruler", "math-verify", "vllm", "deepspeed")


def provenance() -> dict[str, str]:
    """Versions of Python and the packages that matter, and this checkout's commit if it is one."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    root = Path(__file__).resolve().parents[2]
    if (root / ".git").exists():
        result = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode == 0:
            found["commit"] = result.stdout.strip()
    return found
