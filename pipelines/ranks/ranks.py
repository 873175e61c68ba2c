"""The processes of a run: which one this is, how work is shared out, and what all must agree on.

Started plainly, a run is one process. Under torchrun, ``deepspeed`` or srun it is several ranks, all
going through the same story: each takes its share of a stage's prompts, all get all results, and rank
0 alone writes and prints. Torch is imported only where there are several.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

from pipelines.errors import UserError

T = TypeVar("T")
R = TypeVar("R")

SLURM = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_NTASKS", "LOCAL_RANK": "SLURM_LOCALID"}
"""What torchrun calls it: what srun does."""

TIMEOUT = timedelta(hours=2)
"""A collective may wait this long for a rank that is alive but slow; a dead one is noticed at once by
the launcher, or by pipelines/ranks/heartbeat.py."""


@dataclass(frozen=True)
class Ranks:
    """One of ``world`` processes; ``local`` is its number on its node."""

    rank: int = 0
    world: int = 1
    local: int = 0

    @property
    def main(self) -> bool:
        """Whether this is the rank that writes and prints."""
        return self.rank == 0

    def agree(self, value: T) -> T:
        """Rank 0's value, on every rank."""
        if self.world == 1:
            return value
        box = [value]
        _distributed().broadcast_object_list(box, src=0, group=_group())
        return box[0]

    def largest(self, value: int) -> int:
        """The largest of all ranks' values."""
        if self.world == 1:
            return value
        found: list[Any] = [None] * self.world
        _distributed().all_gather_object(found, value, group=_group())
        return max(found)

    def on_main(self, work: Callable[[], T]) -> T:
        """Do ``work`` on rank 0 alone; every rank gets its result, or the UserError it raised."""
        if self.world == 1:
            return work()
        result: T | UserError | None = None
        if self.main:
            try:
                result = work()
            except UserError as error:
                result = error
        result = self.agree(result)
        if isinstance(result, UserError):
            raise result
        return result  # type: ignore[return-value]

    def first(self, work: Callable[[], T], others: Callable[[], T]) -> T:
        """``work`` on rank 0, ``others`` elsewhere; each rank keeps its own result.

        Raises:
            UserError: rank 0's work raised it; every rank does.
        """
        result: T | None = None
        problem: UserError | None = None
        try:
            result = work() if self.main else others()
        except UserError as error:
            problem = error
        problem = self.agree(problem) or problem
        if problem:
            raise problem
        assert result is not None
        return result

    def share(self, items: Sequence[T], work: Callable[[list[T]], list[R]], engine: int = 1) -> list[R]:
        """Do ``work`` on this rank's share; every rank gets all results, in the order of ``items``.

        Every rank calls ``work`` on equally many items, since divided weights are put together by all
        ranks at once: where items run out, a rank works on one of another's, and the result is dropped.

        Args:
            work: one result per item.
            engine: ranks that work as one (tensor parallel) and must get the same items.

        Raises:
            UserError: a rank's work raised it; every rank does.
        """
        if self.world == 1 or not items:
            return work(list(items))
        workers, me = self.workers(engine), self.rank // engine
        each = -(-len(items) // workers)
        mine = [items[i % len(items)] for i in range(me, each * workers, workers)]
        result: list[R] | UserError
        try:
            result = work(mine)
        except UserError as error:
            result = error
        found: list[Any] = [None] * self.world
        _distributed().all_gather_object(found, result, group=_group())
        for theirs in found:
            if isinstance(theirs, UserError):
                raise theirs
        return [found[(i % workers) * engine][i // workers] for i in range(len(items))]

    def workers(self, engine: int = 1) -> int:
        """How many shares there are when ``engine`` ranks work as one.

        Raises:
            UserError: the ranks cannot be divided so.
        """
        if self.world % engine:
            raise UserError(
                f"rollout.tensor_parallel: {engine}",
                f"does not divide the {self.world} ranks.",
                "Choose a divisor of --nproc-per-node.",
            )
        return self.world // engine

    def barrier(self) -> None:
        """Wait until every rank is here."""
        self.agree(None)


def launched() -> bool:
    """Whether a launcher started this process as one of several; joins nobody."""
    return "RANK" in os.environ or "SLURM_STEP_ID" in os.environ


def is_main() -> bool:
    """Whether this process is rank 0, or alone; joins nobody."""
    return not launched() or (os.environ.get("RANK") or os.environ.get(SLURM["RANK"])) == "0"


@cache
def ranks() -> Ranks:
    """The rank this process is, from the launcher's environment; joins the others on first use.

    Raises:
        UserError: the environment is half a launcher's.
    """
    env = {name: os.environ.get(name) or os.environ.get(SLURM[name]) for name in SLURM}
    if not launched():
        return Ranks()
    try:
        me = Ranks(*(int(env[name] or "") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))
    except ValueError:
        raise UserError(
            "ranks",
            f"the launcher set only {', '.join(n for n, v in env.items() if v)}.",
            "Start with vppo train --nproc-per-node N, torchrun, deepspeed or srun.",
        ) from None
    if me.world > 1:
        for name, value in env.items():
            os.environ.setdefault(name, str(value))
        if "MASTER_ADDR" not in os.environ:
            raise UserError(
                "MASTER_ADDR",
                "is not set: the ranks cannot find each other.",
                "Set MASTER_ADDR and MASTER_PORT to the first node; docs/cluster.md has a script.",
            )
        os.environ.setdefault("MASTER_PORT", "29500")
        _join(me)
    return me


def _join(me: Ranks) -> None:
    import torch

    from pipelines.ranks.heartbeat import start

    store, _, _ = next(torch.distributed.rendezvous("env://", me.rank, me.world, timeout=TIMEOUT))
    start(store.clone(), me.rank, me.world)
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(me.local)
        backend = "cpu:gloo,cuda:nccl"
    torch.distributed.init_process_group(backend, store=store, rank=me.rank, world_size=me.world, timeout=TIMEOUT)


def join_alone(device: Any) -> None:
    """Make the process group of a single process (torch.device), where libraries want one.

    It can reduce on the host as well as on a GPU: one that vLLM makes for itself cannot.
    """
    import torch.distributed as dist

    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)


def _distributed() -> Any:
    import torch.distributed

    return torch.distributed


@cache
def _group() -> Any:
    """Objects travel by gloo, over the machine's memory: on GPUs too."""
    return _distributed().new_group(backend="gloo", timeout=TIMEOUT)
