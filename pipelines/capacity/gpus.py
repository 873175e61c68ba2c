"""GPUs, as their makers describe them."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.errors import UserError


@dataclass(frozen=True)
class Gpu:
    """What the maker says: memory that programs see (GiB), dense bfloat16 and float32 TFLOP/s, GB/s."""

    name: str
    memory: float
    bfloat16: float
    float32: float
    bandwidth: float


GPUS: dict[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        Gpu("A100-40", 39.4, 312, 19.5, 1555),
        Gpu("A100-80", 79.1, 312, 19.5, 2039),
        Gpu("H100", 79.1, 989, 67, 3350),
        Gpu("H200", 139.8, 989, 67, 4800),
        Gpu("B200", 178.4, 2250, 80, 8000),
        Gpu("L40S", 44.4, 362, 91.6, 864),
        Gpu("RTX4090", 23.5, 165, 82.6, 1008),
    )
}


def find_gpu(name: str) -> Gpu:
    """The GPU of this name, in any case and punctuation.

    Raises:
        UserError: it is not in the table.
    """

    def letters(text: str) -> str:
        return "".join(c for c in text.upper() if c.isalnum())

    found = next((gpu for gpu in GPUS.values() if letters(gpu.name) == letters(name)), None)
    if found is None:
        raise UserError(f"--gpu {name}", "is not in the table.", f"Known: {', '.join(GPUS)}.")
    return found
