"""The source behind a part that is named by import path: found and hashed, never executed. Torch-free.

Of a module its file; of a package all of its files; and of either, what it imports from beside it:
modules of its own project, found in the source's import statements, wherever they stand.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import hashlib
import importlib.util
import json
import os
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from pipelines.config.schema import Config
from pipelines.disk.contents import file_hash
from pipelines.disk.files import find
from pipelines.disk.step import MANIFEST
from pipelines.errors import UserError

OURS = ("pipelines", "evals", "vppo_cli", "configs")
"""Packages whose parts are keyed by VERSION."""


def source_hash(part: str) -> str | None:
    """A hash (hex, 16 digits) of the source of ``package.module:name``.

    Returns:
        None where there is no such module; "" where it is one of ours.

    Raises:
        OSError: a file cannot be read.
    """
    module = part.partition(":")[0]
    if module.partition(".")[0] in OURS:
        return ""
    files = _files(module)
    if files is None:
        return None
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(f"{name}\x00{file_hash(files[name])}\x00".encode())
    return digest.hexdigest()[:16]


def require_part(setting: str, part: str) -> None:
    """See that the module of an import path is there, and binds the name, as far as its source tells; nothing is run.

    Raises:
        UserError: it is not, or does not.
    """
    module, _, name = part.partition(":")
    spec = _find(module)
    if spec is None:
        raise UserError(
            f"{setting}: {part}",
            f"there is no module {module}.",
            "Name a module that Python finds from the current folder or the environment.",
        )
    names = _bound(_parsed(Path(spec.origin))) if spec.origin and spec.has_location else None
    if names is not None and name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        fix = f"Did you mean {module}:{near[0]}?" if near else f"See {spec.origin}."
        raise UserError(f"{setting}: {part}", f"{module} has no {name!r}.", fix)


_DYNAMIC = {"*", "__getattr__", "globals", "vars", "setattr", "exec"}
"""By these a module may have names that its source does not show."""


def _bound(tree: ast.Module | None) -> set[str] | None:
    """The names that a module binds; None where its source does not tell all of them."""
    names: set[str] = set()
    waiting: list[ast.AST] = [tree] if tree else []
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)  # what stands inside binds there
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
        else:
            if isinstance(node, ast.Name) and (isinstance(node.ctx, ast.Store) or node.id in _DYNAMIC):
                names.add(node.id)
            waiting += ast.iter_child_nodes(node)
    return None if tree is None or names & _DYNAMIC else names


def _files(module: str) -> dict[str, Path] | None:
    """Name -> file of everything that a module's behaviour is written in; None: no such module."""
    top = module.partition(".")[0]
    found = _find(top)
    if found is None or _find(module) is None:
        return None
    homes = {Path.cwd().resolve(), *(place.parent for place in _places(found))}
    files: dict[str, Path] = {}
    waiting, seen = [module], set[str]()
    while waiting:
        name = waiting.pop()
        if name in seen or name.partition(".")[0] in OURS:
            continue
        seen.add(name)
        for relative, file in _of(name, homes, is_part=name == module):
            if relative not in files:
                files[relative] = file
                waiting += _imports(file, relative)
    return files


def _of(module: str, homes: set[Path], *, is_part: bool) -> Iterator[tuple[str, Path]]:
    """The files of a module, or of the whole package it is in; nothing of what is installed."""
    spec, package = _find(module), _find(module.partition(".")[0])
    if spec is None or package is None:
        return
    places = _places(package)
    if not is_part and not any(_local(place, homes) for place in places):
        return
    if package.submodule_search_locations is None:
        yield places[0].name, places[0]
    elif package.origin and Path(package.origin).is_file():  # not a mere folder (a namespace)
        for place in places:
            for folder, folders, names in os.walk(place):
                folders[:] = sorted(f for f in folders if f[0] != "." and f != "__pycache__")
                for name in sorted(names):
                    file = Path(folder, name)
                    if name[0] != "." and file.is_file():
                        yield str(file.relative_to(place.parent)), file
    else:
        for file in _places(spec):
            if file.is_file():
                yield module.replace(".", os.sep) + file.suffix, file
            elif (inside := file / "__init__.py").is_file():
                yield module.replace(".", os.sep) + os.sep + inside.name, inside


def _places(spec: ModuleSpec) -> list[Path]:
    """The folders of a package, the file of a module; of one in an archive, the archive."""
    if spec.submodule_search_locations is not None:
        found = [Path(place) for place in spec.submodule_search_locations]
    else:
        found = [Path(spec.origin)] if spec.has_location and spec.origin else []
    real = []
    for place in found:
        there = next((p for p in (place, *place.parents) if p.exists()), None)
        if there is not None:
            real.append(there.resolve())
    return real


def _local(place: Path, homes: set[Path]) -> bool:
    paths = sysconfig.get_paths()
    installed = {Path(paths[name]).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    if any(place.is_relative_to(folder) for folder in installed):
        return False
    return any(place.is_relative_to(home) for home in homes)


def _imports(file: Path, relative: str) -> Iterator[str]:
    """The modules that a source may import; of ``from a import b`` both ``a`` and ``a.b``."""
    tree = _parsed(file)
    here = Path(relative).with_suffix("").parts
    for node in ast.walk(tree) if tree else ():
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = list(here[: len(here) - node.level]) if node.level else []
            base += node.module.split(".") if node.module else []
            if base:
                yield ".".join(base)
                yield from (".".join([*base, alias.name]) for alias in node.names)


def _parsed(file: Path) -> ast.Module | None:
    """The source of a module; None where it is none, or does not parse, which whoever imports it says."""
    with contextlib.suppress(SyntaxError, ValueError, RecursionError, MemoryError):
        return ast.parse(file.read_bytes()) if file.suffix == ".py" else None
    return None


def _find(module: str) -> ModuleSpec | None:
    """Where Python would take a module from; nothing is imported, no parent package either."""
    top, *inner = module.split(".")
    beside = os.getcwd()
    added = beside not in sys.path
    if added:
        sys.path.insert(0, beside)  # as when the part is imported
    try:
        importlib.invalidate_caches()
        spec = importlib.util.find_spec(top) if top else None
        for name in inner:
            if spec is None or spec.submodule_search_locations is None:
                return None
            # By its last name alone: the whole one would ask for the parent to be imported.
            spec = PathFinder.find_spec(name, list(spec.submodule_search_locations))
    except (ImportError, ValueError, OSError):
        return None
    finally:
        if added:
            sys.path.remove(beside)
    return spec


class PartSources:
    """For keys: the source of each part as it was when it was first asked for.

    Once a process has imported a part, an edit of its file is not what it runs.

    Args:
        made: manifests of the steps that are looked at as they were made: of a part of which nothing of today is
            among them, the source in ``rather`` counts, or else the newest.
    """

    def __init__(self, run: Path, made: Sequence[Mapping[str, Any]] = (), rather: PartSources | None = None) -> None:
        self._run, self._made, self._rather = run, made, rather
        self._known: dict[str, str] = {}

    def of(self, *parts: str) -> dict[str, str]:
        """``{"source of rewards:score": hash}`` for each import path among these parts."""
        for part in parts:
            if ":" in part and part not in self._known:
                self._known[part] = self._hash(part)
        return {f"source of {part}": self._known[part] for part in parts if self._known.get(part)}

    def edited(self, part: str) -> bool:
        """Whether the source of a part is another one now, where it is found from here."""
        known = self.of(part).get(f"source of {part}")
        with contextlib.suppress(OSError):
            found = source_hash(part)
            return bool(known and found) and found != known
        return False

    def _hash(self, part: str) -> str:
        try:
            found = source_hash(part)
        except OSError as error:
            return f"not readable ({error.strerror})"
        name = f"source of {part}"
        made = [one["settings"][name] for one in self._made if isinstance(one["settings"].get(name), str)]
        if made and found not in made:
            liked = self._rather.of(part).get(name) if self._rather else None
            return str(liked if liked in made else made[-1])
        # Looking at a run, from another folder for one, does not need the part's source.
        return self._recorded(name) if found is None else found

    def _recorded(self, name: str) -> str:
        """What the newest step of the run that has this was keyed by."""
        for path in reversed(find(self._run, f"**/{MANIFEST}")):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                found = json.loads(path.read_text(encoding="utf-8"))["settings"].get(name)
                if isinstance(found, str):
                    return found
        return "missing"


def check_part_sources(config: Config) -> None:
    """See that every part that is named by import path is there, as far as its source tells; nothing is run.

    Raises:
        UserError: one is not.
    """
    for setting in SETTINGS:
        for part in _named(config, setting):
            require_part(setting, part)


SETTINGS = (
    "rollout.engine",
    "reward.function",
    "reward.grader",
    "score.estimator",
    "score.perturbation",
    "update.engine",
    "update.objective",
    "eval.graders",
    "eval.benchmarks",
    "run.trackers",
    "stages.prepare",
    "stages.rollout",
    "stages.score",
    "stages.update",
    "stages.checkpoint",
    "stages.eval",
)
"""Where an import path may stand. Trackers change no result, and are in no key."""


def parts_of(config: Config) -> list[str]:
    """Every import path that the settings name, once."""
    return list(dict.fromkeys(part for setting in SETTINGS for part in _named(config, setting)))


def _named(config: Config, setting: str) -> list[str]:
    """The import paths that a setting names."""
    value = config.value(setting)
    parts = [value] if isinstance(value, str) else value or ()
    return [part for part in parts if ":" in part]
