"""AdamW's state on disk: one safetensors file, written and read a tensor at a time.

The library writes a file of tensors that are all in memory: of a large model, twice its weights. So the
file is written here, to the bit as the library would. Reading is the library's.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from pipelines.disk.files import disk_errors
from pipelines.errors import UserError
from pipelines.model.finite import first_not_finite

OPTIMIZER = "optimizer.safetensors"
MOMENTS = ("exp_avg", "exp_avg_sq")
KINDS = (*MOMENTS, "step")
"""Of each trained weight; the file's key of one is ``KIND/NAME``, and ``updates`` that of their number."""

Shapes = Mapping[str, Sequence[int]]


def write(path: Path | None, updates: int, shapes: Shapes, value: Callable[[str], torch.Tensor]) -> None:
    """Write the file; each tensor is asked for when its turn comes, and gone before the next.

    Args:
        path: None: on a rank that gathers each tensor with the others and writes nothing.
        updates: how many there were.
        shapes: of each tensor, by key.
        value: the tensor of a key, of whatever device and precision; written in float32. Every rank is
            asked for the same in the same order.

    Raises:
        UserError: a tensor is not finite, or the disk refuses.
    """
    keys = sorted(shapes)
    if path is None:
        for key in keys:
            value(key)
        return
    with disk_errors(path), path.open("wb") as file:
        file.write(_header(keys, shapes) + updates.to_bytes(8, "little"))
        for key in keys:
            file.write(_bytes(key, value(key), shapes[key]))


def _header(keys: Sequence[str], shapes: Shapes) -> bytes:
    """What is where: ``updates`` first, as the library puts wider numbers, then the rest by name."""
    entries = {"updates": {"dtype": "I64", "shape": [], "data_offsets": [0, 8]}}
    end = 8
    for key in keys:
        begin, end = end, end + 4 * torch.Size(shapes[key]).numel()
        entries[key] = {"dtype": "F32", "shape": [*shapes[key]], "data_offsets": [begin, end]}
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bytes(key: str, value: torch.Tensor, shape: Sequence[int]) -> memoryview:
    assert tuple(value.shape) == tuple(shape), key
    _check_finite("optimizer", key, value)
    whole = value.detach().float().cpu().contiguous()
    return whole.view(-1).view(torch.uint8).numpy().data


def updates(path: Path) -> int:
    """How many updates the state of a file comes from.

    Raises:
        UserError: it is no such file.
    """
    with _opened(path) as file:
        known = "updates" in file.keys()  # noqa: SIM118
        value = file.get_tensor("updates") if known else torch.empty(0)
    if value.dtype != torch.int64 or value.dim() or value < 0:
        raise _foreign(path, "does not say how many updates it comes from.")
    return int(value)


def read(path: Path, trained: Shapes) -> Iterator[tuple[str, str, torch.Tensor]]:
    """Kind, weight and value, one at a time. A weight that never had a gradient has none.

    Args:
        trained: the shapes of the weights that are trained, by name.

    Raises:
        UserError: the file is not the state of these weights; at the start. A value is not finite.
    """
    with _opened(path) as file:
        keys = dict.fromkeys(key for key in file.keys() if key != "updates")  # noqa: SIM118
        for key in keys:
            kind, _, name = key.partition("/")
            if kind not in KINDS or name not in trained:
                raise _foreign(path, f"holds {key}, and no such weight is trained.")
            found, wanted = file.get_slice(key), [] if kind == "step" else [*trained[name]]
            if found.get_dtype() != "F32" or found.get_shape() != wanted:
                told = f"{found.get_dtype()} {found.get_shape()}"
                raise _foreign(path, f"holds {key} as {told}, which should be F32 {wanted}.")
            if lacks := [other for other in KINDS if f"{other}/{name}" not in keys]:
                raise _foreign(path, f"holds {key}, and lacks {lacks[0]}/{name}.")
        for key in keys:
            kind, _, name = key.partition("/")
            value = file.get_tensor(key)
            _check_finite(str(path), key, value)
            yield kind, name, value


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[safe_open]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, FileNotFoundError) as error:
        raise _foreign(path, f"cannot be read ({error}).") from error


def _foreign(path: Path, problem: str) -> UserError:
    return UserError(
        str(path),
        f"is not the optimizer state of this run: it {problem}",
        f"Delete the folder {path.parent.parent}; it is made again when it is needed.",
    )


def _check_finite(where: str, key: str, value: torch.Tensor) -> None:
    """Refuse what is no number, before it is kept or gone on with."""
    if found := first_not_finite([(key, value)]):
        raise UserError(
            where,
            f"its state is not finite ({key}: {found[1]}).",
            "Lower update.learning_rate; earlier checkpoints are kept.",
        )
