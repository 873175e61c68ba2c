"""Wall two: what the grading process gives up for good before it sees foreign text.

Afterwards it has no network, environment, child processes or programs, and writes nothing but its
replies. On Linux the kernel holds this: a filter of system calls (seccomp: what is not on the list
below is refused), Landlock (no writing, no executing) and a network namespace of its own, each where
the system has it; resource limits in any case. Nothing here raises: :func:`contain` says what there
is, and :func:`attempt` tries it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import resource
import socket
import struct
import sys
from collections.abc import Callable

_FILES = 256
"""Open files: reading is allowed, as modules are still imported."""

# --- seccomp: (x86_64, aarch64) numbers; None where the machine has no such call --------------------

Numbers = tuple[int | None, int | None]

# Harmless whatever the arguments are: reading, memory, clocks, the process's own signals and waits.
# The first ones are those of every answer.
_ALLOWED: dict[str, Numbers] = {
    "write": (1, 64),
    "setitimer": (38, 103),
    "read": (0, 63),
    "close": (3, 57),
    "fstat": (5, 80),
    "newfstatat": (262, 79),
    "lseek": (8, 62),
    "mmap": (9, 222),
    "munmap": (11, 215),
    "brk": (12, 214),
    "mprotect": (10, 226),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "mincore": (27, 232),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "rt_sigpending": (127, 136),
    "rt_sigtimedwait": (128, 137),
    "rt_sigsuspend": (130, 133),
    "sigaltstack": (131, 132),
    "pread64": (17, 67),
    "readv": (19, 65),
    "writev": (20, 66),
    "readlinkat": (267, 78),
    "faccessat": (269, 48),
    "faccessat2": (439, 439),
    "statx": (332, 291),
    "getdents64": (217, 61),
    "getcwd": (79, 17),
    "statfs": (137, 43),
    "fstatfs": (138, 44),
    "fadvise64": (221, 223),
    "dup": (32, 23),
    "dup3": (292, 24),
    "pipe2": (293, 59),
    "eventfd2": (290, 19),
    "ppoll": (271, 73),
    "pselect6": (270, 72),
    "nanosleep": (35, 101),
    "clock_nanosleep": (230, 115),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "gettimeofday": (96, 169),
    "times": (100, 153),
    "getitimer": (36, 102),
    "getpid": (39, 172),
    "getppid": (110, 173),
    "gettid": (186, 178),
    "getuid": (102, 174),
    "getgid": (104, 176),
    "geteuid": (107, 175),
    "getegid": (108, 177),
    "getgroups": (115, 158),
    "getpgid": (121, 155),
    "getsid": (124, 156),
    "uname": (63, 160),
    "sysinfo": (99, 179),
    "getrlimit": (97, 163),
    "getrusage": (98, 165),
    "sched_getaffinity": (204, 123),
    "sched_yield": (24, 124),
    "getrandom": (318, 278),
    "futex": (202, 98),
    "futex_waitv": (449, 449),
    "set_robust_list": (273, 99),
    "set_tid_address": (218, 96),
    "rseq": (334, 293),
    "membarrier": (324, 283),
    "restart_syscall": (219, 128),
    "exit": (60, 93),
    "exit_group": (231, 94),
    "stat": (4, None),
    "lstat": (6, None),
    "poll": (7, None),
    "select": (23, None),
    "pipe": (22, None),
    "access": (21, None),
    "alarm": (37, None),
    "dup2": (33, None),
    "getdents": (78, None),
    "readlink": (89, None),
    "getpgrp": (111, None),
    "time": (201, None),
}
_ABSENT: dict[str, Numbers] = {"clone3": (435, 435), "openat2": (437, 437)}
"""Answered as by a kernel that lacks them: a filter cannot read their arguments, and the C library
then takes ``clone`` and ``openat``."""
_BY_ARGUMENT: dict[str, Numbers] = {
    "open": (2, None),
    "openat": (257, 56),
    "ioctl": (16, 29),
    "fcntl": (72, 25),
    "prlimit64": (302, 261),
    "clone": (56, 220),
}
# Any access but reading, or O_CREAT, O_TRUNC, O_APPEND, O_TMPFILE.
_WRITING = 0o3 | 0o100 | 0o1000 | 0o2000 | 0o20000000
_IOCTLS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # what a terminal is; close on exec
_FCNTLS = (0, 1, 2, 3, 4, 1030)  # duplicate and flags; never who gets signals
_CLONE_THREAD = 0x10000
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Column of the tables, and the kernel's number of the machine (AUDIT_ARCH)."""
_SECCOMP = (317, 277)
_LOAD, _JUMP_EQUAL, _JUMP_ANY, _RETURN = 0x20, 0x15, 0x45, 0x06
_ALLOW, _KILL, _REFUSE = 0x7FFF0000, 0x80000000, 0x00050000


def _program(column: int, machine: int, threads: bool) -> list[tuple[int, int, int, int]]:
    """The filter: instructions (code, jump if true, jump if false, value)."""
    refuse, absent = _REFUSE | errno.EPERM, _REFUSE | errno.ENOSYS

    def low(argument: int) -> tuple[int, int, int, int]:
        return (_LOAD, 0, 0, 16 + 8 * argument)

    def returns(value: int) -> tuple[int, int, int, int]:
        return (_RETURN, 0, 0, value)

    program = [(_LOAD, 0, 0, 4), (_JUMP_EQUAL, 1, 0, machine), returns(_KILL), (_LOAD, 0, 0, 0)]

    def when(call: int | None, *block: tuple[int, int, int, int]) -> None:
        if call is not None:
            program.extend([(_JUMP_EQUAL, 0, len(block), call), *block])

    by_argument = {name: numbers[column] for name, numbers in _BY_ARGUMENT.items()}
    for numbers in _ALLOWED.values():
        when(numbers[column], returns(_ALLOW))
    for name, argument in (("open", 1), ("openat", 2)):
        when(by_argument[name], low(argument), (_JUMP_ANY, 0, 1, _WRITING), returns(refuse), returns(_ALLOW))
    for name, values in (("ioctl", _IOCTLS), ("fcntl", _FCNTLS)):
        tests = [step for value in values for step in ((_JUMP_EQUAL, 0, 1, value), returns(_ALLOW))]
        when(by_argument[name], low(1), *tests, returns(refuse))
    new_limit = low(2), (_JUMP_EQUAL, 0, 2, 0), (_LOAD, 0, 0, 16 + 8 * 2 + 4)
    when(by_argument["prlimit64"], *new_limit, (_JUMP_EQUAL, 1, 0, 0), returns(refuse), returns(_ALLOW))
    if threads:
        when(by_argument["clone"], low(0), (_JUMP_ANY, 1, 0, _CLONE_THREAD), returns(refuse), returns(_ALLOW))
    for numbers in _ABSENT.values():
        when(numbers[column], returns(absent))
    return [*program, returns(refuse)]


def _filter_system_calls(threads: bool) -> str:
    """Install the filter. Returns why there is none, or ""."""
    if platform.machine() not in _MACHINES or sys.maxsize < 2**32:
        return f"none written for {platform.machine()}"
    column, machine = _MACHINES[platform.machine()]
    steps = _program(column, machine, threads)
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(steps), ctypes.addressof(code)))
    call = ctypes.c_long(_SECCOMP[column])
    # For all threads; and, where the kernel knows it, without slowing the processor down.
    for flags in (1 | 4, 1):
        result = _libc().syscall(call, ctypes.c_long(1), ctypes.c_long(flags), program)
        if result == 0:
            return ""
    return _reason() if result < 0 else "a thread has a filter of its own"


# --- the other means --------------------------------------------------------------------------------


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _reason() -> str:
    return os.strerror(ctypes.get_errno())


def _leave_network() -> str:
    """Enter a network (and message queue) namespace in which there is nothing."""
    network_and_ipc, user = 0x40000000 | 0x08000000, 0x10000000
    for flags in (network_and_ipc, network_and_ipc | user):  # without privilege: as one's own root
        if _libc().unshare(flags) == 0:
            return ""
    return _reason()


def _landlock() -> str:
    """Give up writing, making, removing and executing files, TCP, and signals to others."""
    libc = _libc()
    create, restrict = ctypes.c_long(444), ctypes.c_long(446)
    none = ctypes.c_void_p(None)
    version = libc.syscall(create, none, ctypes.c_size_t(0), ctypes.c_uint32(1))
    if version < 1:
        return _reason()
    files = 0x1FF3  # all of version 1 but reading files and folders
    files |= (0x2000 if version >= 2 else 0) | (0x4000 if version >= 3 else 0)
    network, scoped = (3 if version >= 4 else 0), (3 if version >= 6 else 0)
    rules = struct.pack("QQQ", files, network, scoped)[: 24 if version >= 6 else 16 if version >= 4 else 8]
    ruleset = libc.syscall(create, rules, ctypes.c_size_t(len(rules)), ctypes.c_uint32(0))
    if ruleset < 0:
        return _reason()
    try:
        return "" if libc.syscall(restrict, ctypes.c_long(ruleset), ctypes.c_uint32(0)) == 0 else _reason()
    finally:
        os.close(ruleset)


def _limit(threads: bool, filtered: bool) -> str:
    """Resource limits; processes only where threads, which count as such, are not needed."""
    limits = [("FSIZE", 0), ("NOFILE", _FILES), ("CORE", 0), ("MSGQUEUE", 0), ("MEMLOCK", 0)]
    if not (threads and filtered):
        limits.append(("NPROC", 0))
    failed = []
    for name, value in limits:
        number = getattr(resource, f"RLIMIT_{name}", None)
        try:
            if number is not None:
                resource.setrlimit(number, (value, value))
        except (ValueError, OSError):
            failed.append(name)
    return f"not set: {' '.join(failed)}" if failed else ""


def contain(threads: bool) -> dict[str, str]:
    """Give all of it up, for good. ``threads``: new threads are still allowed.

    Returns, for each means, why it is not in force, or "".
    """
    sys.dont_write_bytecode = True
    os.environ.clear()
    if sys.platform != "linux":
        return dict.fromkeys(MEANS[1:], "Linux only") | {MEANS[0]: _limit(threads, False)}
    no_new_privileges = 38
    _libc().prctl(no_new_privileges, 1, 0, 0, 0)
    found = {"network namespace": _leave_network(), "Landlock": _landlock()}
    # Limits come last among what the filter will refuse to change.
    found["resource limits"] = _limit(threads, platform.machine() in _MACHINES)
    found["seccomp"] = _filter_system_calls(threads)
    if found["seccomp"]:
        found["resource limits"] = _limit(False, False)
    return {name: found[name] for name in MEANS}


MEANS = ("resource limits", "seccomp", "Landlock", "network namespace")


# --- trying -----------------------------------------------------------------------------------------


def attempt(port: int, path: str, parent: int) -> dict[str, bool]:
    """Try what is given up; whether each was refused.

    ``port`` listens on this machine; ``path`` may be written; ``parent`` is another process.
    """
    return {
        "network": not _can(lambda: socket.create_connection(("127.0.0.1", port), 2.0).close()),
        "writing": not _can(lambda: os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))),
        "fork": not _can(_fork),
        "exec": not _can(_execute),
        "signals to others": not _can(lambda: os.kill(parent, 0)),
        "environment": not os.environ,
    }


def _can(act: Callable[[], object]) -> bool:
    try:
        act()
    except OSError:
        return False
    return True


def _fork() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)


def _execute() -> None:
    """Raises unless the system would execute a program; one that does not exist, so it never does."""
    with contextlib.suppress(FileNotFoundError):
        os.execv("/nonexistent/program", ["program"])
