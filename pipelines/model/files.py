"""Reading a model's folder: what is wrong in it is told by name, and nothing in it is ever run.

Weights are taken as they are or not at all: what is missing would be filled with random numbers.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pipelines.errors import UserError

INDEX = ".safetensors.index.json"
OBJECTS = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)
"""JSON files that hold an object each. (tokenizer.json is large, and read by a parser of its own.)"""
LISTED = 3
"""Tensors that a message names."""


def check_folder(where: str) -> list[str]:
    """See that a model folder's JSON files are objects, and that its index stays within it.

    A hub id is left to the library, which got its files one by one.

    Returns:
        The files that ask for code of the folder's own (``auto_map``), which is never run.

    Raises:
        UserError: they are not.
    """
    folder = Path(where)
    with_code = []
    for file in [*map(folder.joinpath, OBJECTS), *folder.glob(f"*{INDEX}")]:
        if not file.is_file():
            continue
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise _broken(file, f"is not readable JSON ({error}).") from error
        if not isinstance(content, dict):
            raise _broken(file, f"holds a {type(content).__name__}, not an object.")
        if file.name.endswith(INDEX):
            _check_index(file, content)
        if "auto_map" in content:
            with_code.append(file.name)
    return with_code


def _check_index(file: Path, content: dict[str, Any]) -> None:
    places = content.get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise _broken(file, "has no weight_map from tensors to files.")
    for name in sorted(set(places.values())):
        if Path(name).name != name or name in ("", ".."):
            raise _broken(file, f"names {name!r}, which is no file of this folder.")
        if not (file.parent / name).is_file():
            raise _broken(file, f"names {name}, which is not there.")


def _broken(file: Path, problem: str) -> UserError:
    return UserError(
        f"model.path {file.parent}",
        f"is not a usable model folder: {file.name} {problem}",
        "Download or save the model again.",
    )


@contextlib.contextmanager
def reading(where: str) -> Iterator[None]:
    """Whatever the library runs into while it reads these files is the files' fault, and told so.

    Raises:
        UserError: it ran into something.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # parsers of many formats: what they raise is nowhere listed
        raise cannot_load(where, error) from error


def cannot_load(where: str, error: Exception) -> UserError:
    """The error for a model or processor that transformers could not load."""
    detail = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if not isinstance(error, OSError | ValueError | RuntimeError | ImportError):
        detail = f"{type(error).__name__}: {detail}"
    if "trust_remote_code" in str(error):
        return UserError(
            f"model.path {where}",
            "needs code of its own (auto_map), which is never run.",
            "Take a model whose family transformers knows; many have a copy that says -hf.",
        )
    if not Path(where).is_dir():
        return UserError(
            f"model.path {where}",
            f"cannot be loaded: {detail}",
            "Give a folder in Hugging Face format, or a hub id this machine can reach.",
        )
    return UserError(
        f"model.path {where}",
        f"is not a usable model folder: {detail}",
        "It needs config.json, weights as safetensors, a processor and a chat template.",
    )


def check_weights(where: str, info: dict[str, Any]) -> None:
    """See that every tensor of the model came from its files, and every one of theirs went into it.

    Args:
        info: what ``from_pretrained`` says of loading; the library has left out what is tied, or
            known to be of no use.

    Raises:
        UserError: some did not; they are named.
    """
    for kind, problem in (
        ("missing_keys", "lacks {} of the model's tensors"),
        ("unexpected_keys", "holds {} tensors that the model does not have"),
    ):
        if found := sorted(info[kind]):
            raise UserError(
                f"model.path {where}",
                f"{problem.format(len(found))}: {_listed(found)}.",
                "Download or save the model again; its config.json must be that of the weights.",
            )


def other_sizes(where: str, shapes: dict[str, tuple[int, ...]]) -> list[str]:
    """The tensors in a folder's files that have another size than the model's of that name."""
    from safetensors import safe_open

    found = []
    for file in sorted(Path(where).glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (no dict)
                size, own = tuple(tensors.get_slice(name).get_shape()), _own_name(name, shapes)
                if own and size != shapes[own]:
                    found.append(f"{name} is {list(size)}, the model's {list(shapes[own])}")
    return found


def _own_name(name: str, names: Iterable[str]) -> str | None:
    """What the model calls a tensor: the one name that ends as it does. (Files have older prefixes.)"""
    parts = name.split(".")
    for first in range(len(parts)):
        end = "." + ".".join(parts[first:])
        if found := [own for own in names if f".{own}".endswith(end)]:
            return found[0] if len(found) == 1 else None
    return None


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {more} more" if more > 0 else "")
