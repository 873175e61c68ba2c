"""Finding a part by name: an entry of a dict literal, or an import path."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Mapping
from typing import Any

from pipelines.errors import UserError


def find_part(setting: str, name: str, known: Mapping[str, Any]) -> Any:
    """The part called ``name``, or the attribute at ``package.module:attribute``.

    Args:
        setting: the config key that named it, for the error.
        name: a key of ``known``, or an import path.
        known: the built-in parts.

    Raises:
        UserError: there is no such part; names the nearest, or what could not be imported.
    """
    if name in known:
        return known[name]
    module_name, separator, attribute = name.partition(":")
    if not separator:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise UserError(
            f"{setting}: {name}", "no such part.",
            f"{hint}Known: {' '.join(known)}; or an import path package.module:name.",
        )  # fmt: skip
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except ImportError as error:
        raise UserError(f"{setting}: {name}", f"cannot be imported ({error}).", "") from error
    except AttributeError as error:
        raise UserError(f"{setting}: {name}", f"{module_name} has no {attribute}.", "") from error
