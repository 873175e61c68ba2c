"""Files and folders of this machine that data may lie in."""

from __future__ import annotations

from pathlib import Path

from pipelines.errors import UserError

_SYSTEM = ("/proc", "/sys", "/dev")
_TOPS = ("/", "/bin", "/boot", "/etc", "/home", "/lib", "/run", "/tmp", "/usr", "/var", "/Users")


def exists(path: Path) -> bool:
    """Whether there is something; not where the path cannot be one."""
    try:
        return path.exists()
    except (OSError, ValueError):  # a name too long, or with a null character
        return False


def at_home(name: str) -> Path:
    """A path with ``~`` resolved, where there is such a home."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)


def check_place(what: str, path: Path) -> None:
    """See that a file or folder that exists can be read to its end, before anybody tries.

    Raises:
        UserError: it is a device, a pipe, a folder of the system, or a home folder.
    """
    real, home = path.resolve(), at_home("~").resolve()
    within = {str(real), *map(str, real.parents)}
    if str(real) in _TOPS or (within & set(_SYSTEM) and "/dev/shm" not in within):
        raise UserError(what, "belongs to the system: it is not read.", "Name another place.")
    if not (real.is_file() or real.is_dir()):
        raise UserError(what, "is neither a file nor a folder.", "Devices and pipes are not read.")
    if real.is_dir() and (real == home or real in home.parents):
        raise UserError(what, "is a home folder, or holds one: all of it would be read.", "Name a folder in it.")
