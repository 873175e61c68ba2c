"""``--nproc-per-node``: hand over to torchrun, and say in one message how it ended badly."""

from __future__ import annotations

import logging
import os
import sys
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.errors import Interrupted, UserError

USER_ERROR, STOPPED = 2, 130


@dataclass(frozen=True)
class Launch:
    """How many ranks to start here, and where the nodes meet."""

    nproc_per_node: int
    nnodes: int = 1
    node_rank: int = 0
    master: str | None = None


class RankFailed(Exception):
    """A rank ended badly; the message says which and why."""


def launch(how: Launch, arguments: Sequence[str]) -> int:
    """Run ``vppo`` with these arguments on every rank of this node; returns the exit code.

    Raises:
        UserError: several nodes, and no address where they meet.
        RankFailed: a rank died, or failed with a fault.
        Interrupted: the user stopped it.
    """
    if how.nnodes > 1 and not how.master:
        raise UserError(
            "--nnodes",
            f"{how.nnodes} nodes need an address where they meet.",
            "Add --master HOST[:PORT], the first node's, on every node.",
        )
    if how.node_rank >= how.nnodes:
        raise UserError(
            f"--node-rank {how.node_rank}",
            f"there are {how.nnodes} nodes, counted from 0.",
            "Give each node its own number, and all of them --nnodes N.",
        )
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # Its own report of a failed rank is a page long; ours follows.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    cores = len(os.sched_getaffinity(0))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // how.nproc_per_node)))
    host, _, port = (how.master or "localhost").partition(":")
    several = how.nnodes > 1
    config = LaunchConfig(
        min_nodes=how.nnodes,
        max_nodes=how.nnodes,
        nproc_per_node=how.nproc_per_node,
        run_id="vppo" if several else uuid.uuid4().hex,
        rdzv_backend="static" if several else "c10d",
        rdzv_endpoint=f"{host}:{port or 29500}" if several else f"{host}:0",
        rdzv_configs={"rank": how.node_rank} if several else {},
        max_restarts=0,
        monitor_interval=0.1,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "vppo_cli", *arguments)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode in (USER_ERROR, STOPPED):  # it has said why
            return int(failure.exitcode)
        if failure.exitcode < 0:
            why = f"was killed by {failure.signal_name()}"
        else:
            why = f"ended with exit code {failure.exitcode} (its traceback is above)"
        raise RankFailed(f"rank {rank} (process {failure.pid}) {why}") from None
    except KeyboardInterrupt:
        raise Interrupted from None
    return 0


def without(arguments: Sequence[str], *options: str) -> list[str]:
    """A command line without these options and their values."""
    kept: list[str] = []
    skip = False
    for argument in arguments:
        if skip:
            skip = False
        elif argument in options:
            skip = True
        elif argument.partition("=")[0] not in options:
            kept.append(argument)
    return kept
