"""Runs commands in forks of a process that has already imported the slow packages.

Each fork is a process of its own, with its own exit code, signals and session; it only skips the
seconds that importing torch and transformers takes. ``tests/tools/command_line.py`` talks to this script
over a socket: one JSON request a line, one JSON answer a line. It ends with its standard input.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import json
import logging
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from pkgutil import resolve_name
from typing import Any, NoReturn

FOREVER = 300.0
"""Seconds after which a command is taken for stuck and killed, so that a test fails, not hangs."""


def warm_up() -> None:
    """Import, and do once, what every command that loads a model would."""
    import datasets  # noqa: F401

    from pipelines.model.torchvision_ops import ensure_importable

    ensure_importable()
    from PIL import Image

    from evals import stage  # noqa: F401
    from pipelines import checks, live, run  # noqa: F401
    from pipelines.config import settings
    from pipelines.model.load import load_policy
    from vppo_cli import choose  # noqa: F401
    from vppo_cli.app import COMMANDS
    from vppo_cli.screen import capacity, glance  # noqa: F401

    for command in COMMANDS.values():
        resolve_name(command)
    Image.init()
    load_policy(settings.load())  # for which transformers imports some hundred modules
    gc.collect()
    gc.freeze()  # so that forks do not copy what is never collected


def serve(listener: socket.socket) -> list[str] | None:
    """Answer each client in a fork, until standard input ends; in a fork of those, return its arguments."""
    warm_up()
    while 0 not in select.select([listener, 0], [], [])[0]:
        connection = listener.accept()[0]
        if os.fork() == 0:
            listener.close()
            return answer(connection)
        connection.close()
    return None


def answer(connection: socket.socket) -> list[str] | None:
    """Answer a client's requests until it goes; in a fork, return its arguments instead."""
    with connection, connection.makefile("rw") as line:
        for text in line:
            request = json.loads(text)
            if "start" in request:
                pid = os.fork()
                if pid == 0:
                    become(request)
                    return list(request["start"])
                print(pid, file=line, flush=True)
            else:
                print(json.dumps(wait(request["wait"], request["block"])), file=line, flush=True)
    return None


def become(request: dict[str, Any]) -> None:
    """Turn a fork into the process that the request describes."""
    os.setsid()
    for number, (path, flags) in enumerate(
        (
            (os.devnull, os.O_RDONLY),
            (request["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
            (request["err"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
        )
    ):
        os.dup2(os.open(path, flags), number)
    os.chdir(request["cwd"])
    if request["fault"]:
        arm(**request["fault"])
    os.environ.update(request["env"])
    if request["largest_file"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["largest_file"],) * 2)
    if request["plain_user"]:
        drop_privileges()
    if request["forked_ranks"]:
        from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

        subprocess_handler.Popen = Rank  # type: ignore[misc, assignment]


def arm(folder: str, state: str, kind: int, number: int, error: int, sticky: bool) -> None:
    """Let a system call fail (fault_proof.py), by the library that this process was started with."""
    names = [os.fsencode(name) for name in (folder, state)]
    if ctypes.CDLL(None).fault_arm(*names, kind, ctypes.c_long(number), error, int(sticky)):
        raise OSError("the fault cannot be armed")


def drop_privileges() -> None:
    """Even as root, be bound by file permissions from now on (capset(2), version 3, all zero)."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    if ctypes.CDLL(None, use_errno=True).capset(header, (ctypes.c_uint32 * 6)()):
        raise OSError(ctypes.get_errno(), "capset")


def wait(pid: int, block: bool) -> int | None:
    """The exit code (minus the signal's number if it was killed), or None while it runs."""
    end = time.monotonic() + FOREVER
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if not block:
            return None
        if time.monotonic() > end:
            os.killpg(pid, 9)
        time.sleep(0.01)


class Rank:
    """What torchrun needs of ``subprocess.Popen`` for a rank: here it is a fork of the launcher.

    Args:
        args: interpreter, ``-m``, ``vppo_cli``, and the arguments.
        env: its environment.
    """

    def __init__(self, args: Sequence[str], env: dict[str, str], **_: Any) -> None:
        self.pid, self.code = os.fork(), None
        if self.pid == 0:
            os.setsid()
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
                signal.signal(number, signal.SIG_DFL)
            os.environ.clear()
            os.environ.update(env)
            from pipelines.ranks.ranks import ranks

            logging.getLogger("pipelines").handlers.clear()
            ranks.cache_clear()  # the server has looked already: it is alone
            run(args[3:])

    def poll(self) -> int | None:
        """The exit code; None while it runs."""
        if self.code is None:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if done else None
        return self.code

    def wait(self, timeout: float = FOREVER) -> int:
        """The exit code, once there is one."""
        end = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("rank", timeout)
            time.sleep(0.01)
        return code


def run(arguments: Sequence[str]) -> NoReturn:
    """Run ``vppo`` as this process's last work."""
    from vppo_cli.app import main

    sys.argv, code = ["vppo", *arguments], 0
    try:
        main()
    except SystemExit as end:
        code = int(end.code or 0)
    except Exception:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # taking the imported packages down one by one costs half a second


if __name__ == "__main__":
    for name, value in (
        ("OMP_WAIT_POLICY", "PASSIVE"),
        ("TOKENIZERS_PARALLELISM", "false"),
        ("TRANSFORMERS_VERBOSITY", "error"),
        ("HF_HUB_DISABLE_PROGRESS_BARS", "1"),
    ):
        os.environ.setdefault(name, value)  # as vppo_cli.app does before they are imported
    os.environ.pop("LD_PRELOAD", None)  # what a command starts is another matter
    arguments = serve(socket.socket(fileno=int(sys.argv[1])))
    sys.path[0] = ""  # not this script's folder
    if arguments is not None:
        run(arguments)
    os._exit(0)
