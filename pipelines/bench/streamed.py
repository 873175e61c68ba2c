"""The streamed pass over a vocabulary of 152,064 against whole logits: seconds and peak memory.

Each way runs in a process of its own, whose peak is the operating system's; what it had before, inputs
included, is taken off. On a GPU it is the allocator's.
"""

from __future__ import annotations

import contextlib
import gc
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch
from torch import Tensor

from pipelines.model.divergence import token_logp, token_statistics

VOCABULARY = 152_064
TOKENS, NAIVE_TOKENS, WIDTH = 16_384, 1_024, 128


def inputs(tokens: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states of two views, a head and tokens, on the device there is."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    rng = torch.Generator().manual_seed(0)
    hidden, other = (torch.randn(tokens, width, generator=rng) for _ in range(2))
    head = torch.randn(VOCABULARY, width, generator=rng) / width**0.5
    token = torch.randint(VOCABULARY, (tokens,), generator=rng)
    return (
        hidden.to(device, dtype),
        (hidden + 0.1 * other).to(device, dtype),
        head.to(device, dtype),
        token.to(device),
    )


def streamed(hidden: Tensor, other: Tensor, head: Tensor, token: Tensor) -> Tensor:
    """Exact KL, tile by tile."""
    kl_N = token_statistics(hidden, head, token, perturbed_ND=other, jsd=False).kl
    assert kl_N is not None
    return kl_N


@torch.no_grad()
def naive(hidden: Tensor, other: Tensor, head: Tensor, token: Tensor) -> Tensor:
    """Exact KL from whole logits."""
    logp = (hidden.float() @ head.float().T).log_softmax(-1)
    logq = (other.float() @ head.float().T).log_softmax(-1)
    return (logp.exp() * (logp - logq)).sum(-1)


def streamed_backward(hidden: Tensor, other: Tensor, head: Tensor, token: Tensor) -> Tensor:
    """Log-prob and entropy, and their gradient to the hidden states."""
    hidden = hidden.detach().requires_grad_()
    logp, entropy = token_logp(hidden, head, token)
    (logp + 0.1 * entropy).sum().backward()
    assert hidden.grad is not None
    return hidden.grad.norm(dim=-1).float()


def naive_backward(hidden: Tensor, other: Tensor, head: Tensor, token: Tensor) -> Tensor:
    """The same from whole logits."""
    hidden = hidden.detach().requires_grad_()
    logp = (hidden.float() @ head.float().T).log_softmax(-1)
    entropy = -(logp.exp() * logp).sum(-1)
    (logp.gather(1, token[:, None])[:, 0] + 0.1 * entropy).sum().backward()
    assert hidden.grad is not None
    return hidden.grad.norm(dim=-1).float()


WAYS: dict[str, Callable[..., Tensor]] = {
    "streamed": streamed,
    "naive": naive,
    "streamed_backward": streamed_backward,
    "naive_backward": naive_backward,
}


def compare(shape: str, repeats: int, out: Path, say: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """Both ways on as many tokens as the naive one can take; the streamed one on 16,384 as well."""
    rows: list[dict[str, Any]] = []
    found = {"vocabulary": VOCABULARY, "width": WIDTH, "rows": rows}
    for way, tokens in (
        ("streamed", NAIVE_TOKENS),
        ("naive", NAIVE_TOKENS),
        ("streamed", TOKENS),
        ("streamed_backward", NAIVE_TOKENS),
        ("naive_backward", NAIVE_TOKENS),
        ("streamed_backward", TOKENS),
    ):
        say(f"streamed: {way}, {tokens} tokens")
        line = [sys.executable, "-m", "pipelines.bench.streamed", way, str(tokens), str(repeats)]
        done = subprocess.run(line, capture_output=True, text=True, check=True)
        rows.append(json.loads(done.stdout))
        yield found
    for forward in ("", "_backward"):
        mine, theirs = (
            next(r for r in rows if r["way"] == way + forward and r["tokens"] == NAIVE_TOKENS)
            for way in ("streamed", "naive")
        )
        gap = max(abs(a - b) for a, b in zip(mine["values"], theirs["values"], strict=True))
        mine["gap"] = gap
    for row in rows:
        del row["values"]
    yield found


def main(way: str, tokens: str, repeats: str) -> None:
    """One way, measured in this process."""
    torch.set_num_threads(2)
    given = inputs(int(tokens), WIDTH)
    cuda = torch.cuda.is_available()
    before = _forget_peak()
    if cuda:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(int(repeats)):
        begun = time.perf_counter()
        values = WAYS[way](*given)
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun)
    peak = torch.cuda.max_memory_allocated() if cuda else _peak()
    logits = 4 * int(tokens) * VOCABULARY
    print(
        json.dumps(
            {
                "way": way,
                "tokens": int(tokens),
                "seconds": median(seconds),
                "extra_bytes": peak - before,
                "logits_bytes": logits,
                "values": values[:256].tolist(),
            }
        )
    )


def _forget_peak() -> int:
    """Let the process's peak begin anew (Linux) -> what it has now, bytes."""
    gc.collect()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return psutil.Process().memory_info().rss


def _peak() -> int:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main(*sys.argv[1:])
