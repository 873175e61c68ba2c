"""Prompts encoded by worker processes before they are asked for: images are decoded and cut into patches
while the model computes.

A worker is a fresh interpreter with the processor; it ends when this process does, however that ends.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch

from pipelines.disk.records import Sample
from pipelines.model.torchvision_ops import ensure_importable

ensure_importable()  # at import: a worker gets its processor as soon as it has this module

Key = bytes
Encode = Callable[[Sample], dict[str, torch.Tensor]]


class Prefetcher:
    """Workers of one encoder.

    Args:
        encode: sample -> tensors, in the workers; each gets a copy of it.
        workers: processes; they start with the first sample.
    """

    def __init__(self, encode: Encode, workers: int) -> None:
        self._encode, self._workers = encode, workers
        self._pool: ProcessPoolExecutor | None = None
        self._pending: dict[Key, Future[Any]] = {}

    def expect(self, samples: Sequence[tuple[Key, Sample]]) -> None:
        """Begin with these, in order; what was begun and not taken is forgotten."""
        wanted = dict(samples)
        for key in [key for key in self._pending if key not in wanted]:
            self._pending.pop(key).cancel()
        if self._pool is None:
            self._pool = ProcessPoolExecutor(
                self._workers, multiprocessing.get_context("spawn"), _start, (self._encode,)
            )
        for key, sample in wanted.items():
            if key not in self._pending:
                try:
                    self._pending[key] = self._pool.submit(_encode, sample)
                except BrokenProcessPool:
                    return  # no workers, no head start: whoever takes encodes it itself

    def take(self, key: Key) -> dict[str, torch.Tensor] | None:
        """What a worker made of it, waiting for it if need be; None if nobody began with it.

        Raises:
            ValueError, StopIteration, IndexError, OSError: the processor refused the sample.
        """
        pending = self._pending.pop(key, None)
        if pending is None:
            return None
        try:
            arrays = pending.result()
        except BrokenProcessPool:  # killed, for memory most likely
            return None
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def close(self) -> None:
        """End the workers."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None


_encoder: list[Encode] = []  # in a worker


def _start(encode: Encode) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_it() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_it, daemon=True).start()
    torch.set_num_threads(1)
    _encoder.append(encode)


def _encode(sample: Sample) -> dict[str, Any]:
    return {name: value.numpy() for name, value in _encoder[0](sample).items()}
