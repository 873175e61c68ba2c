"""Writing to a disk that may refuse: what failed is told by its path, and what is there is whole.

Nothing is written into a folder by a process that held a lock over it and lost it (``guarded``).
"""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import re
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import psutil

from pipelines.errors import UserError

NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
NO_PERMISSION = {errno.EACCES, errno.EPERM, errno.EROFS}
TOO_MANY_FILES = {errno.EMFILE, errno.ENFILE}
FAILING = {
    errno.EIO,
    errno.ESTALE,
    errno.ENXIO,
    errno.ENODEV,
    errno.EREMOTEIO,
    errno.ENOTCONN,
    errno.ESHUTDOWN,
    errno.EBADMSG,
    errno.ENOLINK,
    errno.EHOSTDOWN,
    errno.EUCLEAN,
}
PASSING = {
    errno.EINTR,
    errno.EAGAIN,
    errno.EBUSY,
    errno.ENOMEM,
    errno.ENOLCK,
    errno.EDEADLK,
    errno.ETXTBSY,
    errno.ENOBUFS,
}
OF_THE_SYSTEM = NO_SPACE | NO_PERMISSION | TOO_MANY_FILES | FAILING | PASSING
"""Errors that say nothing of what a file holds: it may be whole, and must not be given up for them."""

NOT_FOR_FOLDERS = {
    errno.EINVAL,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
    errno.ENOSYS,
    errno.EBADF,
    errno.EACCES,
    errno.EPERM,
    errno.EISDIR,
}
"""What file systems say that cannot sync a folder (SMB, FUSE): there it needs none, or has none."""

LONG_GONE_S = 3600.0
"""A half-written file of another machine that nobody touched for so long is left over."""

_IN_TEXT = re.compile(r"\b[Ee]rrno (\d+)\b|\(os error (\d+)\)|\bcode: (\d+), kind:")
"""How Arrow, tokenizers and safetensors write the system's number into their own errors."""

_PARTIAL = re.compile(r"\.(\d+)(?:-([A-Za-z0-9-]+))?\.partial$")


# -- errors ----------------------------------------------------------------------------------------


def system_error(error: BaseException) -> int:
    """The number of the operating system's error that this is, or was made from; 0 if it is none.

    Only those count that tell of the machine, not of a file's content or of a missing name.
    """
    seen: BaseException | None = error
    for _ in range(8):
        if seen is None or isinstance(seen, UserError):
            break
        if isinstance(seen, OSError) and seen.errno in OF_THE_SYSTEM:
            return int(seen.errno or 0)
        if isinstance(seen, PermissionError):
            return errno.EACCES
        for found in _IN_TEXT.finditer(str(seen)):
            if (code := int(next(filter(None, found.groups())))) in OF_THE_SYSTEM:
                return code
        if any(os.strerror(code) in str(seen) for code in NO_SPACE):
            return errno.ENOSPC
        seen = seen.__cause__ or seen.__context__
    return 0


def told(path: Path, error: BaseException) -> UserError | None:
    """What to tell a person of a system's error; None if it is none.

    Args:
        path: what was worked on, for where the error itself names no file.
    """
    code = system_error(error)
    if not code:
        return None
    kept = "give the same command again; what was committed is kept."
    where, reason = failed_path(path, error), os.strerror(code)
    if code in NO_SPACE:
        parent = next((p for p in (where, *where.parents) if p.exists()), Path("."))
        free = shutil.disk_usage(parent).free / 1e9
        problem = f"the disk is full ({reason}; {free:.1f} GB free)."
        return UserError(str(where), problem, f"Free some space and {kept}")
    if code in NO_PERMISSION:
        return UserError(
            str(where),
            f"no permission to read or write there ({reason}).",
            "Allow it, or set VPPO_RUNS to a folder of yours.",
        )
    if code in TOO_MANY_FILES:
        return UserError(
            str(where),
            f"too many files are open ({reason}).",
            f"Allow more (ulimit -n 4096), or end other programs, and {kept}",
        )
    if code in FAILING:
        return UserError(str(where), f"the disk failed ({reason}).", f"Check the disk or its mount, and {kept}")
    return UserError(str(where), f"the system refused it ({reason}).", f"Try again: {kept}")


def failed_path(path: Path, error: BaseException) -> Path:
    """The file that the error names, else ``path``; as it is called once it is whole."""
    seen: BaseException | None = error
    while seen is not None and not getattr(seen, "filename", None):
        seen = seen.__cause__ or seen.__context__
    name = getattr(seen, "filename", None) or path
    parts = Path(os.fsdecode(name) if isinstance(name, str | bytes | Path) else path).parts
    return Path(*(_PARTIAL.sub("", part) for part in parts))


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what the system refuses into an error that says where, why, and what to do.

    Args:
        path: what is read or written, for where the error itself names no file.

    Raises:
        UserError: the disk is full or fails, something is not allowed, too many files are open.
        LockLost: it failed as another process has taken the folder over.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError):
            check_owned(path)
        if found := told(path, error):
            raise found from error
        raise


# -- whose it is -----------------------------------------------------------------------------------

_guards: list[tuple[Path, Callable[[], None]]] = []


@contextlib.contextmanager
def guarded(folder: Path, check: Callable[[], None]) -> Iterator[None]:
    """While this lasts, ``check`` is called before anything in the folder is replaced or added."""
    entry = (Path(os.path.abspath(folder)), check)
    _guards.append(entry)
    try:
        yield
    finally:
        _guards.remove(entry)


def check_owned(path: Path) -> None:
    """See that no lock that this process took over ``path`` has gone to another one.

    Raises:
        LockLost: one has. Nothing more may be written there.
    """
    absolute = Path(os.path.abspath(path))
    for folder, check in list(_guards):
        if absolute.is_relative_to(folder):
            check()


# -- what is not whole yet -------------------------------------------------------------------------


@cache
def host() -> str:
    """This machine's name, as it may stand in a file's."""
    return re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())[:40]


def partial_of(path: Path) -> Path:
    """Where this process, and no other, writes what becomes ``path``."""
    return path.with_name(f"{path.name}.{os.getpid()}-{host()}.partial")


def find(folder: Path, pattern: str) -> list[Path]:
    """What fits a pattern, hidden or not, by name; what goes while it looks, as a run goes on, is no error."""
    found = glob.iglob(pattern, root_dir=folder, recursive=True, include_hidden=True)
    return [folder / name for name in sorted(found)]


def sweep(folder: Path) -> None:
    """Remove what processes that are gone left half-written in a run."""
    for pattern in ("*.partial", "*/*.partial", "*/*/*.partial", "*/*/*/*.partial"):
        for path in find(folder, pattern):
            if _abandoned(path):
                remove(path)


def _abandoned(path: Path) -> bool:
    match = _PARTIAL.search(path.name)
    if match and match[2] in (None, host()) and not psutil.pid_exists(int(match[1])):
        return True
    with contextlib.suppress(OSError):
        return file_time(path.parent) - path.lstat().st_mtime > LONG_GONE_S
    return False


def remove(path: Path) -> None:
    """Remove a file or folder, as far as that can be done."""
    shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        path.unlink()


def file_time(folder: Path) -> float:
    """What time it is for the file system, whose clock may be another machine's."""
    probe = partial_of(folder / f"time-{threading.get_ident()}")
    try:
        probe.touch()
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


# -- on the disk for good --------------------------------------------------------------------------


def sync_file(path: Path) -> None:
    """Force a file, or a folder's list of names, to the disk; folders where the system can."""
    folder = path.is_dir()
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if not (folder and error.errno in NOT_FOR_FOLDERS):
            raise _named(error, path) from error


def _named(error: OSError, path: Path) -> OSError:
    return error if error.filename else OSError(error.errno, error.strerror, str(path))


def make_folder(path: Path) -> None:
    """Make a folder and those above it; that they are there is on the disk as well."""
    missing = [p for p in (path, *path.parents) if not p.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for made in missing:
        sync_file(made.parent)


def write_atomic(path: Path, text: str, *, durable: bool = True) -> None:
    """Replace a small file in one instant; ``durable``: and wait until it is on the disk.

    Raises:
        LockLost: another process has taken over the run that the file is of.
    """
    temporary = partial_of(path)
    with disk_errors(path):
        check_owned(path)
        try:
            temporary.write_text(text, encoding="utf-8")
            if durable:
                sync_file(temporary)
            check_owned(path)
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        if durable:
            sync_file(path.parent)


def append_text(path: Path, text: str) -> None:
    """Add whole lines to a file and wait until they are on the disk.

    What a failure cut short is taken back, where the disk still allows it.

    Raises:
        LockLost: another process has taken over the run that the file is of.
    """
    with disk_errors(path):
        new = not path.exists()
        check_owned(path)
        with path.open("ab", buffering=0) as file:
            before, data = os.fstat(file.fileno()).st_size, memoryview(text.encode())
            try:
                while data:
                    data = data[file.write(data) or 0 :]
                os.fsync(file.fileno())
            except OSError:
                check_owned(path)
                with contextlib.suppress(OSError):
                    file.truncate(before)
                raise
        if new:
            sync_file(path.parent)


def as_allowed(path: Path, mode: int) -> None:
    """Give a file the permissions that a plain new one gets (some libraries make private ones)."""
    if path.stat().st_mode & 0o777 != mode:
        with contextlib.suppress(OSError):  # SMB and FUSE may have none to give
            path.chmod(mode)
