"""What objects of a user's own promise, such as engines: their methods, and what these return."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import numpy as np

from pipelines.config.resolve import find_part, telling
from pipelines.errors import UserError

PAGE = "docs/extending.md says what one has."

Forms = Collection[tuple[str, ...]]
"""The methods of each kind of object that serves."""


MAKING = ("__init__", "__new__", "__getattr__", "__getattribute__")
"""By which an object may have what its class has not."""


class Told:
    """An object of one's own, of which these methods are replaced; it is used as it is otherwise."""

    def __init__(self, made: Any, methods: Mapping[str, Callable[..., Any]]) -> None:
        self.__dict__.update(methods, _made=made)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_made"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._made, name, value)


def find_factory(setting: str, name: str, known: Mapping[str, Callable[..., Any]], forms: Forms) -> Callable[..., Any]:
    """What makes an object: a built-in function or class as it is, or one of a user's own, which tells what it raises.

    Args:
        setting: the config key that named it.
        name: a key of ``known``, or an import path.
        forms: what its objects have to have; asked at once of a class whose body says all, else by ``told``.

    Raises:
        UserError: there is no such part, or the objects of a class lack methods.
    """
    part: Callable[..., Any] = find_part(setting, name, known)
    if name in known or not inspect.isclass(part):
        return part
    place = f"{setting}: {name}"
    if not any(name in vars(kind) for kind in part.__mro__[:-1] for name in MAKING):
        _check_methods(place, part, forms)
    return telling(place, partial(part), patient=True)


def told(
    place: str,
    made: Any,
    forms: Forms,
    looks: Mapping[str, Callable[..., Any]],
    passed: tuple[type[Exception], ...] = (),
) -> Any:
    """The object, whose methods tell what they raise as errors of its place.

    Args:
        forms: what it has to have.
        looks: by method, what makes of its result and its arguments the result that is used.
        passed: exceptions by which it tells its caller something.

    Raises:
        UserError: it lacks methods.
    """
    _check_methods(place, made, forms)

    def method(name: str) -> Callable[..., Any]:
        call, look = telling(place, getattr(made, name), passed, patient=True), looks.get(name)
        return (lambda *given, **named: look(call(*given, **named), *given, **named)) if look else call

    there = (name for form in forms for name in form if hasattr(made, name))
    return Told(made, {name: method(name) for name in there})


def _check_methods(place: str, one: Any, forms: Forms) -> None:
    lacking = [[name for name in form if not callable(getattr(one, name, None))] for form in forms]
    if all(lacking):
        what = f"class {one.__name__}" if inspect.isclass(one) else f"what it made, {_kind(one)},"
        raise UserError(place, f"{what} has no method {' and no '.join(lacking[0])}.", PAGE)


def check_metrics(place: str, found: Any) -> dict[str, Any]:
    """What a part returned as its metrics: a dict of text -> finite numbers; numpy's as Python's own.

    Raises:
        UserError: it is none.
    """
    if not isinstance(found, Mapping):
        raise UserError(place, f"returned {_kind(found)}, not a dict of metrics.", "Return {} if there are none.")
    plain = {name: plain_value(value) for name, value in found.items()}
    for name, value in plain.items():
        if not isinstance(name, str) or not name:
            raise UserError(place, f"returned a metric called {name!r}.", "Names are texts.")
        if not is_number(value):
            problem = f"returned {name} as {value if isinstance(value, float) else _kind(value)}, not a finite number."
            raise UserError(place, problem, "A plain int or float: of a tensor, x.item().")
    return plain


def plain_value(value: Any) -> Any:
    """A scalar of numpy's as Python's own; whatever else it is, as it is."""
    return value.item() if isinstance(value, np.generic) else value


def plain_list(values: Any) -> Any:
    """The same of each entry of a list; an array of numpy's as a list."""
    if isinstance(values, np.ndarray) and values.ndim == 1:
        return values.tolist()
    if isinstance(values, list | tuple) and any(issubclass(kind, np.generic) for kind in {*map(type, values)}):
        return [plain_value(value) for value in values]
    return values


def check_results(place: str, found: Any) -> dict[str, Any]:
    """What an evaluation returned: results.json without what is question by question, or at least what is read of it.

    Raises:
        UserError: it is not.
    """
    if not isinstance(found, Mapping):
        raise UserError(place, f"returned {_kind(found)}, not a dict of results.", RESULTS)
    try:
        json.dumps(found, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(place, f"returned what JSON cannot hold ({error}).", RESULTS) from error
    read = {name: [found.get(name)] for name in ("accuracy", "questions", "samples")}
    read["interval"] = _entries(found.get("interval"), list | tuple, 2)
    read |= {name: _entries(found.get(name), Mapping) for name in ("pass_at_k", "outcomes")}
    rewards = found.get("rewards", {})
    read["rewards"] = [] if isinstance(rewards, Mapping) else [None]
    for name, mean in rewards.items() if isinstance(rewards, Mapping) else ():
        held = mean if isinstance(mean, Mapping) else {}
        read[f"rewards, {name}"] = [held.get("value"), *_entries(held.get("interval"), list | tuple, 2)]
    for name, values in read.items():
        if not all(map(is_number, values)):
            raise UserError(place, f"returned no {name} of finite numbers.", RESULTS)
    return dict(found)


RESULTS = "docs/artifacts.md says what results.json holds."


def _entries(value: Any, kind: Any, count: int | None = None) -> list[Any]:
    """The values of a list or a dict; where it is none, what is no number."""
    if not isinstance(value, kind) or (count is not None and len(value) != count):
        return [None]
    return list(value.values() if isinstance(value, Mapping) else value)


def is_number(value: Any) -> bool:
    """Whether it is a plain number that is finite: an int or a float, numpy's float64 as well."""
    return isinstance(value, int | float) and math.isfinite(value)


def _kind(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
