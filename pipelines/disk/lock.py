"""One process at a time: trains a run, evaluates a policy on a benchmark.

A lock is a file that names its owner, and by a random token tells it from every other; its time is
the owner's heartbeat, which a thread renews every few seconds. The owner also holds a file lock on it
where the file system has these. Who finds a lock decides thus whether its owner lives:

- An owner on this machine: by the file lock, which the system frees however a process dies; where
  there are none, by its process id and start.
- An owner on another machine: by the heartbeat. A file lock may reach over a network or not, and may
  outlive its machine. Ages are those of the file system's clock, not of this machine's.

The lock of a dead owner is taken over by renaming one's own file onto it. An owner that was only
stopped, and wakes, finds another's token there before it writes anything (``check_owned``), and ends.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import IO, Any

import psutil

from pipelines.contents import SEAL, intact, sealed
from pipelines.disk.files import check_owned, disk_errors, file_time, guarded, make_folder
from pipelines.errors import LockLost, UserError

LOCK = "lock"
"""The file in a run's folder."""

SEAL_DIGITS = 16
"""Of the hash of the rest, last in the file: a name that a flipped bit changed is nobody's."""

BEAT_S = 5.0
DEAD_S = 120.0
"""An owner on another machine that gave no sign for so long is dead."""

OLD_DEAD_S = 600.0
"""The same where a version without heartbeat took the lock: the run's own signs are rarer."""

CLAIM_S = 10.0
"""Taking a lock takes an instant: a claim without an owner's name is dead after this."""

NO_FILE_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
"""What flock says on Lustre, on NFS without its lock service, and on some FUSE file systems."""


@dataclass(frozen=True)
class Owner:
    """Who holds a lock, as its file says; ``beat`` (seconds) is the file's time.

    ``machine`` tells one kernel and its process ids from others of the same name; ``started`` is when
    the process began; ``flock`` whether it could take a file lock. Without token: an older version.
    """

    pid: int = 0
    host: str = "?"
    since: str = "?"
    token: str = ""
    machine: str = ""
    started: float = 0.0
    flock: bool = True
    beat: float = 0.0

    @property
    def here(self) -> bool:
        return self.host == socket.gethostname()


@contextlib.contextmanager
def run_lock(run: Path, tell: Callable[[str], None] = lambda _: None) -> Iterator[None]:
    """Hold the run's lock; all that this process writes in the run's folder needs it from now on.

    Args:
        tell: told what a person should know: whose sign is awaited, who was superseded.

    Raises:
        UserError: another live process holds the run.
        LockLost: from writing, once another process has taken the run over.
    """
    fix = f"Watch it with: vppo status --run {run.name}"
    with file_lock(run / LOCK, f"run {run.name}", fix, tell=tell, over=run):
        yield


@contextlib.contextmanager
def file_lock(
    path: Path,
    what: str,
    fix: str,
    *,
    wait: bool = False,
    tell: Callable[[str], None] = lambda _: None,
    over: Path | None = None,
    tidy: bool = False,
) -> Iterator[None]:
    """Hold a lock.

    Args:
        path: the lock's file.
        what: what is locked, and ``fix``: what to do meanwhile, for the message.
        wait: wait for a process that holds it, after telling so; else refuse.
        tell: told of waiting and of take-overs.
        over: the folder in which nothing is written any more should the lock be lost.
        tidy: leave no file behind.

    Raises:
        UserError: another live process holds the lock.
        LockLost: the folder that it lies in has gone to another process.
    """
    check_owned(path)
    with disk_errors(path):
        make_folder(path.parent)
        mine, file = _acquire(path, what, fix, wait, tell)
    try:
        with _beating(file), contextlib.ExitStack() as stack:
            if over is not None:
                stack.enter_context(guarded(over, lambda: _check(path, mine, what)))
            yield
    finally:
        with contextlib.suppress(OSError), file:  # this very file, whoever's stands there now
            if tidy and _stands(file, path):
                path.unlink()
            file.truncate(0)


def is_running(run: Path) -> int | None:
    """The process id that holds the run now, if one does. Reads only."""
    owner = _holder(run / LOCK, time.time)  # may not write, to learn the file system's time
    return owner.pid or -1 if owner else None


# -- taking it -------------------------------------------------------------------------------------


def _acquire(path: Path, what: str, fix: str, wait: bool, tell: Callable[[str], None]) -> tuple[Owner, IO[bytes]]:
    mine = Owner(
        os.getpid(),
        socket.gethostname(),
        time.strftime("%Y-%m-%d %H:%M:%S"),
        secrets.token_hex(16),
        _machine(),
        _started(os.getpid()),
    )
    watched: Owner | None = None  # on another machine, and when it was first looked at:
    since = time.monotonic()
    waits, dead = False, ""
    while True:
        owner = _holder(path, lambda: file_time(path.parent), dead)
        if owner is None:
            if taken := _claim(path, mine, what, dead, tell):
                return taken
            if not wait and time.monotonic() - since > DEAD_S + CLAIM_S:
                raise UserError(what, "others are taking it all the time.", fix)
            time.sleep(0.05)
            continue
        held = f"is in use by process {owner.pid or '?'} since {owner.since}."
        if wait:
            if not waits:
                tell(f"{what} {held} Waiting for it.")
            waits = True
        elif owner.here or not owner.token:
            raise _in_use(path, what, owner, held, fix)
        elif watched is None:
            quiet = file_time(path.parent) - owner.beat
            if quiet > 2 * BEAT_S:
                tell(
                    f"{what} was last held by process {owner.pid} on {owner.host}, which gave no "
                    f"sign for {quiet:.0f} s. Waiting up to {DEAD_S - quiet:.0f} s for one."
                )
            watched, since = owner, time.monotonic()
        elif owner != watched:  # it beats
            raise _in_use(path, what, owner, held, fix)
        elif time.monotonic() - since > DEAD_S:  # whatever the clocks say
            dead = owner.token
        time.sleep(0.2 if wait else 1.0)


def _in_use(path: Path, what: str, owner: Owner, held: str, fix: str) -> UserError:
    if owner.here or owner.host == "?":
        return UserError(what, held, fix)
    if owner.token:
        return UserError(what, f"{held[:-1]} on {owner.host}.", fix)
    return UserError(
        str(path),
        f"was taken by process {owner.pid} on {owner.host} at {owner.since} and not released.",
        f"If nothing runs there any more, remove the file: rm {path}",
    )


def _claim(
    path: Path, mine: Owner, what: str, dead: str, tell: Callable[[str], None]
) -> tuple[Owner, IO[bytes]] | None:
    """Take a lock that nobody seems to hold; None where another process is at it.

    Only who could make the claim's file looks again, undisturbed, and renames that file onto the
    lock. Where there are no file locks, two may remove a claim of a dead process at once, and with it
    a new one: the token that stands in the lock decides.
    """
    claim = path.with_name(f"{path.name}.claim")
    try:
        descriptor = os.open(claim, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except FileExistsError:
        _remove_dead(claim)
        return None
    except FileNotFoundError:  # whoever held the run was refused, and took its folder away
        make_folder(claim.parent)
        return None
    file, taken = os.fdopen(descriptor, "r+b", buffering=0), False
    try:
        mine = replace(mine, flock=_take_file_lock(file))
        if not _stands(file, claim):  # it took so long that another held it for left over
            return None
        about = {name: value for name, value in asdict(mine).items() if name != "beat"}
        text = json.dumps(sealed(about, SEAL_DIGITS)).encode()
        while text:
            text = text[file.write(text) or 0 :]
        with contextlib.suppress(OSError):  # a network file system shows it to others now
            os.fsync(descriptor)
        before = _read(path)
        if _holder(path, lambda: file_time(path.parent), dead) is None and _stands(file, claim):
            with contextlib.suppress(FileNotFoundError):
                claim.replace(path)
        taken = _stands(file, path)
    finally:
        if not taken:
            with contextlib.suppress(OSError):
                if _stands(file, claim):
                    claim.unlink()
            file.close()
    if not taken:
        return None
    if before and not before.here:
        tell(
            f"{what} was held by process {before.pid} on {before.host} since {before.since}, which "
            "gives no sign any more: taken over"
        )
    return mine, file


def _remove_dead(claim: Path) -> None:
    """Remove a claim whose process is gone: this very file, and never one that came after it.

    Where there are file locks, its own is held meanwhile: its maker cannot take it, no other removes it.
    """
    with contextlib.suppress(FileNotFoundError), claim.open("rb") as file:
        owner = _owner_of(file, claim, lambda: file_time(claim.parent), CLAIM_S, fcntl.LOCK_EX)
        if owner is None and _stands(file, claim):
            claim.unlink()


def _stands(file: IO[bytes], path: Path) -> bool:
    """Whether that open file is what stands at the path."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _take_file_lock(file: IO[bytes]) -> bool:
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:  # who looks at it holds it for an instant
            time.sleep(0.01)
        except OSError as error:
            if error.errno not in NO_FILE_LOCKS:
                raise
            return False


# -- keeping it ------------------------------------------------------------------------------------


@contextlib.contextmanager
def _beating(file: IO[bytes]) -> Iterator[None]:
    """Renew the file's time every few seconds; of this very file, should another stand there."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT_S):
            with contextlib.suppress(OSError):
                os.utime(file.fileno())

    thread = threading.Thread(target=beat, name="lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(2 * BEAT_S)


def _check(path: Path, mine: Owner, what: str) -> None:
    with disk_errors(path):
        found = _read(path)
    if found is None or found.token != mine.token:
        by = f"process {found.pid} on {found.host}" if found else "someone, who removed its lock,"
        raise LockLost(
            f"{what} was taken over by {by} while this process gave no sign. It ends, and writes nothing more."
        )


# -- whose it is -----------------------------------------------------------------------------------


def _holder(path: Path, now: Callable[[], float], dead: str = "") -> Owner | None:
    """Who holds a lock and lives; None if nobody does.

    Args:
        now: the time of the file system's clock.
        dead: the token of an owner that is known to be dead.
    """
    try:
        with path.open("rb") as file:
            owner = _owner_of(file, path, now)
    except FileNotFoundError:
        return None
    return owner if owner is None or owner.token != (dead or None) else None


def _owner_of(
    file: IO[bytes], path: Path, now: Callable[[], float], young_s: float = 0.0, how: int = fcntl.LOCK_SH
) -> Owner | None:
    """The owner, if it lives, that an open file names; without a name, held while it is so young."""
    owner = _parse(file)
    held = _is_file_locked(file, how)
    if owner is None:
        nobody = Owner(beat=os.fstat(file.fileno()).st_mtime)
        return nobody if held or (young_s and now() - nobody.beat < young_s) else None
    return owner if _lives(path, owner, held, now) else None


def _lives(path: Path, owner: Owner, held: bool | None, now: Callable[[], float]) -> bool:
    """Whether an owner lives; ``held``: whether its file is locked, None where none can be."""
    if owner.here and owner.flock and held is not None:
        return held
    if owner.here and owner.machine in ("", _machine()) and not _is_process(owner):
        return False
    if owner.token:
        return now() - owner.beat <= DEAD_S
    if held or owner.here:
        return True
    with contextlib.suppress(OSError):  # an older version's own signs
        owner = replace(owner, beat=max(owner.beat, (path.parent / "run.json").stat().st_mtime))
    return now() - owner.beat <= OLD_DEAD_S


def _is_process(owner: Owner) -> bool:
    if not psutil.pid_exists(owner.pid):
        return False
    return not owner.started or abs(_started(owner.pid) - owner.started) < 2


def _is_file_locked(file: IO[bytes], how: int) -> bool | None:
    """Whether another holds a file's lock; two that look, shared, do not hinder each other."""
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        if error.errno not in NO_FILE_LOCKS:
            raise
        return None
    return False


def _read(path: Path) -> Owner | None:
    try:
        with path.open("rb") as file:
            return _parse(file)
    except FileNotFoundError:
        return None


def _parse(file: IO[bytes]) -> Owner | None:
    try:
        found: Any = json.loads(file.read())
        if SEAL in found and not intact(found, SEAL_DIGITS):
            return None
        known = {field.name for field in fields(Owner)}
        owner = Owner(**{name: found[name] for name in found if name in known})
        owner = replace(owner, pid=int(owner.pid), started=float(owner.started))
    except (ValueError, TypeError, RecursionError):
        return None
    named = {"pid", "host", "since"} <= found.keys()
    return replace(owner, beat=os.fstat(file.fileno()).st_mtime) if named else None


def _started(pid: int) -> float:
    """When a process began; 0 if nobody knows."""
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return 0.0


@cache
def _machine() -> str:
    """This kernel since it was started, and its set of process ids; "" where it does not say."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""
