"""An update engine of one's own: what it raises is told with its lines, and its metrics are looked at."""

from __future__ import annotations

import sys
from types import ModuleType

import numpy as np
import pytest
import torch

from pipelines.disk.records import Advantages
from pipelines.errors import UserError
from pipelines.update.engines import find_trainer
from pipelines.update.torch_engine import TorchTrainer


class Gives:
    """Its metrics are those that it was made with."""

    def __init__(self, policy, config, reference):
        self.metrics = config

    def update(self, rollouts, scores, samples):
        if isinstance(self.metrics, Exception):
            raise self.metrics
        return self.metrics

    def save(self, folder): ...

    def load(self, folder): ...


class Refuses(Gives):
    def __init__(self, policy, config, reference):
        raise ValueError("no room")


class Forgets:
    def __init__(self, policy, config, reference): ...

    def update(self, rollouts, scores, samples): ...


class Late:
    """Its methods are set when it is made."""

    def __init__(self, *given):
        self.inner = Gives(*given)
        self.update, self.save, self.load = self.inner.update, self.inner.save, self.inner.load


class Other:
    """What it makes is another's."""

    def __new__(cls, *given):
        return Gives(*given)


@pytest.fixture(autouse=True)
def own(monkeypatch):
    module = ModuleType("ownengine")
    module.__dict__.update({name: value for name, value in globals().items() if not name.startswith("_")})
    monkeypatch.setitem(sys.modules, "ownengine", module)


def trainer(metrics, **given):
    made = find_trainer("ownengine:Gives")(None, metrics, None)
    made.__dict__["_made"].__dict__.update(given)
    return made


def test_plain_numbers_come_through(policy):
    found = {"loss": 0.5, "steps": 3, "strict": True, "moved": np.float64(0.25)}
    used = [Advantages("a", 0, [0.5], [0.5])]
    made = trainer(found, advantages_used=used)
    assert made.update([], [], None) == found
    assert made.advantages_used is used
    assert trainer({}).update([], [], None) == {}
    assert find_trainer("torch") is TorchTrainer


@pytest.mark.parametrize(
    ("metrics", "told"),
    [
        (None, "returned None, not a dict of metrics."),
        ([0.5], "returned a list, not a dict of metrics."),
        ({"moved": torch.tensor(1.5)}, "returned moved as a Tensor, not a finite number."),
        ({"moved": "lots"}, "returned moved as a str, not a finite number."),
        ({"moved": float("nan")}, "returned moved as nan, not a finite number."),
        ({5: 1.0}, "returned a metric called 5."),
    ],
)
def test_what_is_no_metric_is_told(metrics, told):
    with pytest.raises(UserError, match=r"update\.engine: ownengine:Gives: ") as raised:
        trainer(metrics).update([], [], None)
    assert told in str(raised.value)


def test_so_is_what_it_raises():
    with pytest.raises(UserError, match=r"Gives: raised KeyError: 'boo'\n.*in update: raise self\.metrics"):
        trainer(KeyError("boo")).update([], [], None)
    with pytest.raises(UserError, match=r"Refuses: raised ValueError: no room\n.*in __init__: raise ValueError"):
        find_trainer("ownengine:Refuses")(None, None, None)
    with pytest.raises(FloatingPointError):  # which the session tells, with the settings that may be why
        trainer(FloatingPointError("inf")).update([], [], None)
    with pytest.raises(UserError, match="advantages_used is no list"):
        trainer({}, advantages_used=[0.5]).update([], [], None)


def test_numbers_of_numpy_s_are_made_plain():
    found = trainer({"loss": np.float32(0.5), "steps": np.int64(3), "strict": np.bool_(True)}).update([], [], None)
    assert found == {"loss": 0.5, "steps": 3, "strict": True}
    assert [*map(type, found.values())] == [float, int, bool]


def test_one_without_methods_is_refused():
    with pytest.raises(UserError, match=r"Forgets: what it made, a Forgets, has no method save and no load\."):
        find_trainer("ownengine:Forgets")(None, None, None)


@pytest.mark.parametrize("name", ["Late", "Other"])
def test_methods_may_come_when_it_is_made(name):
    assert find_trainer(f"ownengine:{name}")(None, {"loss": 0.5}, None).update([], [], None) == {"loss": 0.5}
