"""Finding a part by name: an entry of a dict literal, or an import path."""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib
import inspect
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from pipelines.config import imports
from pipelines.errors import LockLost, UserError

T = TypeVar("T")

log = logging.getLogger(__name__)


def check_name(setting: str, name: str, known: Collection[str]) -> None:
    """See that a part is called by a name that is known, or by an import path, which is not looked at.

    Raises:
        UserError: it is neither; names the nearest.
    """
    module_name, _, attribute = name.partition(":")
    if name not in known and not (module_name and attribute):
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"Did you mean {near[0]}? " if near else ""
        ways = f"Known: {' '.join(known)}; or an" if known else "Name an"
        raise UserError(f"{setting}: {name}", "no such part.", f"{hint}{ways} import path package.module:name.")


def find_part(
    setting: str, name: str, known: Mapping[str, Any], taken: Callable[[Any], Any] = lambda returned: returned
) -> Any:
    """The part called ``name``, or the attribute at ``package.module:attribute``.

    Args:
        setting: the config key that named it, for the error.
        name: a key of ``known``, or an import path.
        known: the built-in parts.
        taken: as of ``telling``.

    The current folder is searched as well. What a function (or an object that is called like one) from an
    import path raises becomes a UserError with its own lines; while it does not return, that is said.

    Raises:
        UserError: there is no such part; names the nearest, or what could not be imported.
    """
    if name in known:
        return known[name]
    check_name(setting, name, known)
    part = _imported(setting, name, "function", callable)
    return part if inspect.isclass(part) else telling(f"{setting}: {name}", part, taken=taken)


def find_object(setting: str, name: str, kind: type[T]) -> T:
    """The object at the import path ``package.module:attribute``, which is to be of this kind.

    Raises:
        UserError: it cannot be imported, or is none; names the nearest that is one.
    """
    found: T = _imported(setting, name, kind.__name__, lambda value: isinstance(value, kind))
    return found


def _imported(setting: str, name: str, what: str, fits: Callable[[Any], bool]) -> Any:
    """The attribute at an import path; the current folder is searched as well.

    Raises:
        UserError: it is not there, or does not fit; or its module cannot be imported.
    """
    module_name, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        with contextlib.redirect_stdout(sys.stderr), staying():  # what it prints is no result of the command
            module = imports.module_of(setting, name)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # whatever the module does when it is imported
        problem = f"cannot be imported ({type(error).__name__}: {error})."
        lines = _raised_at(error)
        raise UserError(
            f"{setting}: {name}",
            "\n".join([problem, *lines]),
            "Mend it and give the same command again."
            if lines
            else "Name a module that Python finds from the current folder or the environment.",
        ) from error
    part = getattr(module, attribute, None)
    if not fits(part):
        fitting = [n for n, v in vars(module).items() if fits(v)]
        near = difflib.get_close_matches(attribute, fitting) or (fitting if len(fitting) == 1 else [])
        fix = f"Did you mean {module_name}:{near[0]}?" if near else f"See {module.__file__}."
        found = f" (it is a {type(part).__name__})" if hasattr(module, attribute) else ""
        raise UserError(f"{setting}: {name}", f"{module_name} has no {what} {attribute!r}{found}.", fix)
    return part


@contextlib.contextmanager
def staying() -> Iterator[None]:
    """The current folder, in which runs and data are looked for, is afterwards what it was."""
    folder = ""
    with contextlib.suppress(OSError):  # it is gone
        folder = os.getcwd()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if folder and os.getcwd() != folder:
                os.chdir(folder)


def _raised_at(error: BaseException) -> list[str]:
    """The lines of a module that raised while it was imported; none where it was not found."""
    frames = traceback.extract_tb(error.__traceback__)[1:]  # without the import's own
    machinery = ("<frozen importlib", importlib.__file__, imports.__file__, __file__)
    own = [frame for frame in frames if not frame.filename.startswith(machinery)]
    if isinstance(error, SyntaxError) and error.filename:
        own.append(traceback.FrameSummary(error.filename, error.lineno, "<module>", line=error.text or ""))
    return _told(own)


LINES = 6
"""Lines of a part's own traceback that are told, innermost last."""


PATIENCE_S = 60.0
"""A part that takes longer for one call is told of, and again every so many seconds."""


def telling(
    place: str,
    part: Callable[..., Any],
    passed: tuple[type[Exception], ...] = (),
    taken: Callable[[Any], Any] = lambda returned: returned,
    *,
    patient: bool = False,
) -> Callable[..., Any]:
    """The part, whose exceptions are errors that name it and show where they were raised.

    Args:
        passed: exceptions by which the part tells its caller something.
        taken: what is made of its result while its errors are still told: a generator raises when it is read.
        patient: whether it may take its time, which is told of otherwise.
    """
    ours = {__file__, inspect.getfile(taken)}
    kept: tuple[type[Exception], ...] = (UserError, LockLost, *passed)

    @functools.wraps(part)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            with contextlib.nullcontext() if patient else _patience(place), staying():
                return taken(part(*args, **kwargs))
        except kept:
            raise
        except (Exception, SystemExit) as error:
            raise raised(place, error, ours) from error

    return call


def raised(place: str, error: BaseException, ours: Collection[str] = ()) -> UserError:
    """What a part has raised, through one function of ours, with its own lines.

    Args:
        ours: files whose lines are not told either.
    """
    frames = [frame for frame in traceback.extract_tb(error.__traceback__)[1:] if frame.filename not in ours]
    said = str(error) or "no message"
    return UserError(
        place,
        "\n".join([f"raised {type(error).__name__}: {said}", *_told(frames)]),
        "Mend it and give the same command again. What it decided is made anew then: vppo plan says what.",
    )


def _told(frames: Sequence[traceback.FrameSummary]) -> list[str]:
    return [f"{f.filename}, line {f.lineno}, in {f.name}: {f.line}" for f in frames[-LINES:]]


@contextlib.contextmanager
def _patience(place: str) -> Iterator[None]:
    """Tell, while it lasts, that a function that cannot be interrupted has not come back."""
    ended = threading.Event()

    def wait() -> None:
        begun = time.monotonic()
        while not ended.wait(PATIENCE_S):
            waited = time.monotonic() - begun
            log.warning("%s has not returned after %.0f s", place, waited)

    thread = threading.Thread(target=wait, name="patience", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
