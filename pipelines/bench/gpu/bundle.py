"""Pack what the first command needs on a GPU machine without network: ``make offline-bundle``.

    python -m pipelines.bench.gpu.bundle --python 3.12      # in the project's root

Makes build/offline/site.tar.xz, packages unpacked for that Python on x86-64 Linux, and run.sh. What is
needed is what pyproject.toml and the packages themselves say, less what such a machine brings; versions
are those of constraints-cpu.txt.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

BROUGHT = frozenset(
    {
        "accelerate",
        "filelock",
        "fsspec",
        "huggingface-hub",
        "jinja2",
        "mpmath",
        "numpy",
        "packaging",
        "pillow",
        "pyyaml",
        "requests",
        "rich",
        "safetensors",
        "scikit-learn",
        "sympy",
        "tokenizers",
        "torch",
        "torchvision",
        "tqdm",
        "transformers",
        "typer",
        "typing-extensions",
    }
)
"""On the machine already: torch, torchvision, transformers, accelerate, what they need, and scikit-learn.
Another build of torch would not find its GPU."""
NOT_ASKED = frozenset({"datasets", "lm-eval"})
"""What the first command does not need."""
SYSTEMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "any")
PRUNED = (
    "bin",
    "pyarrow/include",
    "pyarrow/src",
    "pyarrow/tests",
    "pyarrow/*.p[xy][dxi]",
    "pyarrow/*flight*",
    "pyarrow/*s3fs*",
    "pyarrow/*gcsfs*",
    "pyarrow/*azurefs*",
    "pyarrow/*hdfs*",
    "pyarrow/*orc*",
    "pyarrow/*_cpp_test*",
    "**/__pycache__",
)
"""Not imported here, and half of the size."""


def main() -> None:
    """Make the bundle, and say how large it is."""
    parser = argparse.ArgumentParser(description="Pack what a GPU machine without network lacks.")
    parser.add_argument("--python", default="3.12", metavar="VERSION", help="that machine's")
    parser.add_argument("--out", type=Path, default=Path("build/offline"))
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        site = Path(folder)
        fill(site, asked.python)
        prune(site)
        with tarfile.open(asked.out / "site.tar.xz", "w:xz") as archive:
            archive.add(site, ".")
        for package in sorted(distributions(path=[folder]), key=lambda found: found.name.lower()):
            print(f"{package.name} {package.version}")
    shutil.copy(Path(__file__).with_name("run.sh"), asked.out)
    size = (asked.out / "site.tar.xz").stat().st_size
    print(f"{asked.out}: {size / 1e6:.1f} MB, for Python {asked.python}")


def fill(site: Path, python: str) -> None:
    """Install what is needed into the folder, and what that needs, until nothing is missing."""
    text = Path("pyproject.toml").read_text(encoding="utf-8")
    project = [Requirement(line) for line in tomllib.loads(text)["project"]["dependencies"]]
    needed, have = project, dict[str, Distribution]()
    while missing := {_name(r): r for r in needed if _name(r) not in have.keys() | BROUGHT | NOT_ASKED}:
        for requirement in missing.values():
            _install(site, f"{requirement.name}{requirement.specifier}", python)
        extras: dict[str, set[str]] = {}
        for requirement in needed:
            extras.setdefault(_name(requirement), set()).update(requirement.extras)
        have = {canonicalize_name(found.name): found for found in distributions(path=[str(site)])}
        needed = [
            *project,
            *(r for name, found in have.items() for r in _needs(found, extras.get(name, set()), python)),
        ]


def _name(requirement: Requirement) -> str:
    return canonicalize_name(requirement.name)


def _needs(found: Distribution, extras: set[str], python: str) -> Iterator[Requirement]:
    """What a package needs, with these extras, on that Python."""
    for requirement in map(Requirement, found.requires or ()):
        where = {"python_version": python, "python_full_version": f"{python}.0"}
        if requirement.marker is None or any(
            requirement.marker.evaluate(where | {"extra": extra}) for extra in ("", *extras)
        ):
            yield requirement


def _install(site: Path, what: str, python: str) -> None:
    """Install one package without what it needs: its wheel for that Python, or built from source where
    there is no wheel and it has no compiled part.

    Raises:
        SystemExit: there is neither.
    """
    line = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--disable-pip-version-check",
        "--root-user-action=ignore",
        "--no-deps",
        "-c",
        "constraints-cpu.txt",
        "--target",
        str(site),
        what,
    ]
    foreign = [
        "--only-binary=:all:",
        "--python-version",
        python,
        "--implementation",
        "cp",
        "--abi",
        f"cp{python.replace('.', '')}",
        "--abi",
        "abi3",
        "--abi",
        "none",
        *(part for system in SYSTEMS for part in ("--platform", system)),
    ]
    if subprocess.run([*line, *foreign], capture_output=True, check=False).returncode == 0:
        return
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{what}: no wheel for Python {python}, and pip says\n{done.stderr}")
    name = canonicalize_name(Requirement(what).name)
    found = next(x for x in distributions(path=[str(site)]) if canonicalize_name(x.name) == name)
    if "Root-Is-Purelib: true" not in (found.read_text("WHEEL") or ""):
        sys.exit(f"{what}: has a compiled part, and no wheel for Python {python}")


def prune(site: Path) -> None:
    """Remove what nothing here imports."""
    for pattern in PRUNED:
        for found in [*site.glob(pattern)]:
            shutil.rmtree(found) if found.is_dir() else found.unlink()


if __name__ == "__main__":
    main()
