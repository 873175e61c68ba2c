"""The source behind a part that is named by import path: found and hashed, never executed. Torch-free.

Of a module its file; of a package all of its files; and of either, what it imports from beside it:
modules of its own project, found in the source's import statements, wherever they stand. What lies there
by a link counts as what it leads to.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import hashlib
import importlib
import importlib.util
import os
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder, all_suffixes
from pathlib import Path

from pipelines.contents import YOUNG_S, file_hash
from pipelines.errors import UserError

OURS = ("pipelines", "evals", "vppo_cli", "configs")
"""Packages whose parts are keyed by VERSION."""


_CODE = tuple(all_suffixes())


@dataclass(frozen=True)
class Source:
    """What a module's behaviour is written in.

    Attributes:
        files: by the names that are hashed with them.
        modules: the names by which Python knows them, and those of the packages that they are in.
    """

    files: Mapping[str, Path]
    modules: frozenset[str]

    def hash(self, *, code: bool = False) -> str:
        """What names it in keys (hex, 16 digits).

        Args:
            code: of what Python imports alone, and not of what else lies in a package.

        Raises:
            OSError: a file cannot be read.
        """
        digest = hashlib.sha256()
        for name in sorted(self.files):
            if code and not name.endswith(_CODE):
                continue
            digest.update(f"{name}\x00{file_hash(self.files[name])}\x00".encode())
        return digest.hexdigest()[:16]

    def changed_since(self, time_s: float) -> bool:
        """Whether a file was, or may have been, written after this time (seconds since 1970)."""
        states = [file.stat() for file in self.files.values()]
        return any(max(s.st_mtime, s.st_ctime) > time_s for s in states)

    def forget_bytecode(self) -> None:
        """Remove what Python compiled within a tick of the source's clock: it may be of what stood there before,
        which Python, that looks at seconds and size, does not see."""
        for file in self.files.values():
            with contextlib.suppress(OSError, NotImplementedError, ValueError):
                compiled = Path(importlib.util.cache_from_source(str(file)))
                if file.suffix == ".py" and compiled.stat().st_mtime < file.stat().st_mtime + YOUNG_S:
                    compiled.unlink()


def source_hash(part: str, *, code: bool = False) -> str | None:
    """The hash of the source of ``package.module:name`` as it is on disk now.

    Args:
        code: as of ``Source.hash``.

    Returns:
        None where there is no such module; "" where it is one of ours.

    Raises:
        OSError: a file cannot be read.
    """
    module = part.partition(":")[0]
    if module.partition(".")[0] in OURS:
        return ""
    found = source_of(module)
    return found.hash(code=code) if found else None


def names_in(table: str) -> list[str]:
    """The texts that a literal of ours lists, ``module:NAME``, a dict by its keys; nothing is imported."""
    module, _, name = table.partition(":")
    spec = _find(module)
    tree = _parsed(Path(spec.origin)) if spec and spec.origin else None
    for node in tree.body if tree else ():
        targets = [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [])
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            value = getattr(node, "value", None)
            listed = value.keys if isinstance(value, ast.Dict) else getattr(value, "elts", [])
            return [one.value for one in listed if isinstance(one, ast.Constant) and isinstance(one.value, str)]
    raise LookupError(table)


def require_part(setting: str, part: str) -> None:
    """See that the module of an import path is there, and binds the name, as far as its source tells; nothing is run.

    Raises:
        UserError: it is not, or does not.
    """
    importlib.invalidate_caches()
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


@dataclass(frozen=True)
class _File:
    """``name`` as it is hashed, ``path`` on disk, ``inside``: its place by the names of packages."""

    name: str
    path: Path
    inside: Path


def source_of(module: str) -> Source | None:
    """Everything that a module's behaviour is written in; None: no such module."""
    importlib.invalidate_caches()
    top, find = module.partition(".")[0], cache(_find)
    found = find(top)
    if found is None or find(module) is None:
        return None
    homes = {Path.cwd().resolve(), *(place.resolve().parent for place in _places(found))}
    files: dict[str, _File] = {}
    walked: dict[str, set[Path]] = {}
    waiting, seen = [module], set[str]()
    while waiting:
        name = waiting.pop()
        package = find(name.partition(".")[0])
        if name in seen or package is None or name.partition(".")[0] in OURS:
            continue
        seen.add(name)
        if name != module and not any(_local(place, homes) for place in _places(package)):
            continue
        for file in _of(name, package, walked, find, own=name.partition(".")[0] == top):
            if file.name not in files:
                files[file.name] = file
                waiting += _imports(file.path, file.inside)
    kept = found is getattr(sys.modules.get(top), "__spec__", None)  # and could not be imported again
    modules = {parent for file in files.values() for parent in _names(file.inside) if not kept}
    return Source({name: file.path for name, file in files.items()}, frozenset(modules))


def _of(
    module: str,
    package: ModuleSpec,
    walked: dict[str, set[Path]],
    find: Callable[[str], ModuleSpec | None],
    *,
    own: bool,
) -> Iterator[_File]:
    """The files of a module, or of the whole package it is in.

    Args:
        walked: package -> its files (links followed) that were given already.
        own: whether it is the part's: then names are those of what a link leads to, as they have always been.
    """
    top = module.partition(".")[0]
    places = [place.resolve() if own else place for place in _places(package)]
    if package.submodule_search_locations is None:
        yield from (_File(place.name, place, Path(top + place.suffix)) for place in places[:1])
        return
    if package.origin and Path(package.origin).is_file() and top not in walked:  # not a mere folder (a namespace)
        walked[top] = set()
        for place in places:
            for file in _walk(place):
                walked[top].add(file.resolve())
                yield _File(str(file.relative_to(place.parent)), file, Path(top, file.relative_to(place)))
    spec = find(module)
    for place in _places(spec) if spec else ():
        file = place.resolve() if place.is_file() else place.resolve() / "__init__.py"
        inside = Path(*module.split("."))
        inside = inside / file.name if not place.is_file() else inside.with_name(inside.name + file.suffix)
        if file.is_file() and file not in walked.get(top, ()):
            yield _File(str(inside), file, inside)


def _walk(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """The files of a package; of linked folders in it those that are packages, and none that it is in itself."""
    real = folder.resolve()
    if real in above:
        return
    entries: list[Path] = []
    with contextlib.suppress(OSError):
        entries = sorted(folder.iterdir())
    for entry in entries:
        if entry.name[0] == "." or entry.name == "__pycache__":
            continue
        if entry.is_file():
            yield entry
        elif entry.is_dir() and (not entry.is_symlink() or (entry / "__init__.py").is_file()):
            yield from _walk(entry, (*above, real))


def _names(inside: Path) -> Iterator[str]:
    """The module that a file is, and the packages around it."""
    parts = inside.with_name(inside.name.partition(".")[0]).parts
    for length in range(1, len(parts) + (parts[-1] != "__init__")):
        yield ".".join(parts[:length])


def _places(spec: ModuleSpec) -> list[Path]:
    """The folders of a package, the file of a module; of one in an archive, the archive."""
    if spec.submodule_search_locations is not None:
        found = [Path(place) for place in spec.submodule_search_locations]
    else:
        found = [Path(spec.origin)] if spec.has_location and spec.origin else []
    there = (next((p for p in (place, *place.parents) if p.exists()), None) for place in found)
    return [place.absolute() for place in there if place is not None]


def _local(place: Path, homes: set[Path]) -> bool:
    """Whether something lies beside a part: below one of these folders, itself or by a link; and is not what is
    installed."""
    paths = sysconfig.get_paths()
    installed = {Path(paths[name]).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    folder, real = place.parent.resolve(), place.resolve()
    if any(real.is_relative_to(one) for one in installed):
        return False
    return any(path.is_relative_to(home) for path in (real, folder / place.name) for home in homes)


def _imports(file: Path, inside: Path) -> Iterator[str]:
    """The modules that a source may import; of ``from a import b`` both ``a`` and ``a.b``."""
    tree = _parsed(file)
    here = inside.with_suffix("").parts
    for node in ast.walk(tree) if tree else ():
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = list(here[: len(here) - node.level]) if node.level else []
            base += node.module.split(".") if node.module else []
            if base:
                yield ".".join(base)
                yield from (".".join([*base, alias.name]) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called, name = getattr(node.func, "attr", getattr(node.func, "id", "")), node.args[0].value
            if called in ("import_module", "__import__") and isinstance(name, str):
                yield name


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
        spec = _spec(top) if top else None
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


def _spec(top: str) -> ModuleSpec | None:
    """Where a new process would find it, whatever this one has imported; else what it has, if that is still there."""
    for finder in sys.meta_path:
        if getattr(finder, "finds", True) and (spec := finder.find_spec(top, None)) is not None:
            return spec
    spec = getattr(sys.modules.get(top), "__spec__", None)
    gone = spec and spec.has_location and spec.origin and not Path(spec.origin).exists()
    return None if gone else spec
