"""The modules that were imported for parts, remembered with the hash of their source then.

It is that which runs, and which keys name (``part_hash``), whatever becomes of the file. Each call of the Python face
begins with what is on disk (``one_command``).
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from types import ModuleType
from typing import Any

import psutil

from pipelines.config.source import Source, source_hash, source_of
from pipelines.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Imported:
    """What a module was imported from. ``hash`` names it in keys; ``seen`` is what is found of it since, and ``code``
    of what Python imports of that: other hashes where it changed ``sys.path``."""

    source: Source
    hash: str
    seen: str | None
    code: str | None

    def edited(self, module: str, *, code: bool = False) -> bool:
        """Whether there is another source now, or another code: a note that was written beside it is none."""
        try:
            return source_hash(module, code=code) != (self.code if code else self.seen)
        except OSError:
            return True


_IMPORTED: dict[str, _Imported] = {}
"""By the names of modules."""


def part_hash(part: str) -> str | None:
    """``source_hash``; of a part that this process has imported, as it was then, since that is what it runs.

    Raises:
        OSError: a file cannot be read.
    """
    module = part.partition(":")[0]
    known = _IMPORTED.get(module) if module in sys.modules else None
    return known.hash if known else source_hash(part)


def check_same(place: str, part: str, hash_: str | None = None) -> None:
    """See that a part has one source: that which was imported.

    Args:
        hash_: what keys name; None: what is on disk, from which another process is to import it.

    Raises:
        UserError: it has two.
    """
    module = part.partition(":")[0]
    known = _IMPORTED.get(module)
    if known and (known.edited(module, code=True) if hash_ is None else known.hash != hash_):
        raise UserError(
            place,
            "its source was changed while the command ran, which has begun with the one before.",
            "Give the same command again: what the new one decides is made anew, and vppo plan says what.",
        )


def module_of(setting: str, name: str) -> ModuleType:
    """The module of an import path, remembered with its source where it is imported for the first time.

    Raises:
        UserError: its source, or that of a helper which is there already, was changed meanwhile.
    """
    module = name.partition(":")[0]
    source = None if module in _IMPORTED and module in sys.modules else source_of(module)
    if source is None or not source.files:
        return importlib.import_module(module)
    _IMPORTED.pop(module, None)
    place = f"{setting}: {name}"
    for other, known in _IMPORTED.items():
        if known.source.modules & source.modules and other in sys.modules:
            check_same(place, other)
    ours = {known for one in _IMPORTED.values() for known in one.source.modules}
    theirs = source.modules - ours  # who runs vppo may have imported them from what stood there before
    if theirs & sys.modules.keys() and source.changed_since(psutil.Process().create_time()):
        log.warning("%s is imported anew: its file may have been edited since this process imported it", module)
        _forget(theirs)
    before = {*sys.modules}
    source.forget_bytecode()
    try:
        hash_, code = source.hash(), source.hash(code=True)
    except OSError:  # as keys say
        return importlib.import_module(module)
    try:
        found = importlib.import_module(module)
        if source.hash(code=True) != code:
            raise UserError(place, "its source was changed while it was imported.", "Give the same command again.")
    except BaseException:
        _forget(source.modules - before)
        raise
    since = source_of(module)
    seen = (since.hash(), since.hash(code=True)) if since else (None, None)
    _IMPORTED[module] = _Imported(source, hash_, *seen)
    return found


class _Late(MetaPathFinder):
    """Finds nothing; sees that what a part imports from beside it when it is called is what keys name.

    Between two calls of the Python face an import, such as a reload, is the user's own: the next call looks anew.
    """

    finds = False

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        """Raises UserError if the source of the part was changed since."""
        for module, known in list(_IMPORTED.items()):
            if name in known.source.modules and module in sys.modules:
                if not _between:
                    check_same(f"{module}, import {name}", module)
                elif known.edited(module):
                    del _IMPORTED[module]


sys.meta_path.insert(0, _Late())


def _forget(modules: Collection[str]) -> None:
    for module in modules:
        sys.modules.pop(module, None)
        package, _, name = module.rpartition(".")
        if package in sys.modules:
            vars(sys.modules[package]).pop(name, None)  # by which an import would find it again


_commands, _between = 0, False
"""How many are at work in this process, one within the other; whether there was one, and none is."""


@contextlib.contextmanager
def one_command() -> Iterator[None]:
    """While it lasts, a part stays as it was imported. It begins with what is on disk: parts whose source was changed
    since are imported anew, with what they import from beside them. Within another one nothing is."""
    global _commands, _between
    if not _commands:
        _forget_edited()
    _commands, _between = _commands + 1, False
    try:
        yield
    finally:
        _commands -= 1
        _between = not _commands


def _forget_edited() -> None:
    stale = {module for module, one in _IMPORTED.items() if one.edited(module)}
    while True:
        modules = {module for name in stale for module in _IMPORTED[name].source.modules}
        more = {name for name, one in _IMPORTED.items() if one.source.modules & modules} - stale
        if not more:
            break
        stale |= more  # two parts that share a helper share the new one
    _forget(modules)
    for name in stale:
        del _IMPORTED[name]
