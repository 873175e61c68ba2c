"""A rollout engine of one's own: what it raises is told with its lines, and what it generates is looked at."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from pipelines.errors import UserError
from pipelines.model.sampling import Sampling
from pipelines.rollout.engine import LiveEngine
from pipelines.rollout.engines import find_engine
from pipelines.rollout.hf import HuggingFaceEngine

FOUR = Sampling(temperature=1.0, top_p=1.0, top_k=0, max_new_tokens=16, samples=4, seed=0)
NAMES = [(1, 0), (1, 1)]


class Fixed:
    """Gives what it is told to."""

    given: object = None

    def __init__(self, policy):
        self.policy = policy

    def generate(self, samples, names, sampling):
        return Fixed.given


class Raises(Fixed):
    def generate(self, samples, names, sampling):
        return [{}["nothing"]]


class Refuses(Fixed):
    def __init__(self, policy):
        raise ValueError("no room")


class Nothing:
    def __init__(self, policy): ...


class Kept:
    """With weights of its own."""

    def __init__(self, policy): ...

    def sync(self, policy):
        raise ValueError("no weights")

    def view(self, policy):
        return Fixed(policy)

    def sleep(self): ...

    def close(self): ...


class Finds:
    """Whose methods are another's."""

    def __init__(self, policy):
        self.engine = Fixed(policy)

    def __getattr__(self, name):
        return getattr(self.__dict__["engine"], name)


class Late:
    """Its method is set when it is made."""

    def __init__(self, policy):
        self.generate = Fixed(policy).generate


class Other:
    """What it makes is another's."""

    def __new__(cls, policy):
        return Fixed(policy)


def made_nothing(policy):
    return SimpleNamespace(sync=print)


@pytest.fixture(autouse=True)
def own(monkeypatch):
    module = ModuleType("ownengine")
    module.__dict__.update({name: value for name, value in globals().items() if not name.startswith("_")})
    monkeypatch.setitem(sys.modules, "ownengine", module)


@pytest.fixture(scope="module")
def right(policy, samples):
    return HuggingFaceEngine(policy).generate(samples[:2], NAMES, FOUR)


def test_what_is_right_comes_through_as_it_is(policy, samples, right, monkeypatch):
    for name in ("Fixed", "Late", "Other", "Finds"):
        engine = find_engine(f"ownengine:{name}")(policy)
        monkeypatch.setattr(Fixed, "given", right)
        assert engine.generate(samples[:2], NAMES, FOUR) == right
        assert engine.generate(samples=samples[:2], names=NAMES, sampling=FOUR)[0][0] is right[0][0]
    assert not isinstance(engine, LiveEngine)
    assert engine.policy is policy
    engine.seen = 1
    assert engine.engine.policy is policy
    assert find_engine("hf") is HuggingFaceEngine


def with_first(found, **given):
    first, *others = found[0]
    return [[replace(first, **given), *others], *found[1:]]


def test_numbers_of_numpy_s_are_made_plain(policy, samples, right, monkeypatch):
    ids, logp = right[0][0].ids, right[0][0].logp
    plain = with_first(right, logp=[float(np.float32(one)) for one in logp])
    more = {"truncated": np.bool_(right[0][0].truncated), "prompt_tokens": np.int64(right[0][0].prompt_tokens)}
    ways = (
        {"ids": np.array(ids), "logp": np.array(logp, np.float32)},
        {"ids": [*np.array(ids)], "logp": (*map(np.float32, logp),), **more},
        {"ids": [*map(np.int32, ids)], "logp": [np.float64(np.float32(one)) for one in logp]},
    )
    for given in ways:
        monkeypatch.setattr(Fixed, "given", with_first(right, **given))
        found = find_engine("ownengine:Fixed")(policy).generate(samples[:2], NAMES, FOUR)
        assert found == plain
        first = found[0][0]
        kinds = {*map(type, first.ids)}, {*map(type, first.logp)}, type(first.truncated), type(first.prompt_tokens)
        assert kinds == ({int}, {float}, bool, int)


WRONG = {
    "a generator": (lambda r: (x for x in r), "a generator, not a list"),
    "nothing": (lambda r: None, "a NoneType, not a list"),
    "a prompt less": (lambda r: r[1:], "lists for 1 prompt, and was asked for 2"),
    "a response less": (lambda r: [r[0], r[1][:-1]], "3 responses to prompt 2 of 2, and was asked for 4"),
    "uneven": (lambda r: [r[0][:-1], [*r[1], r[0][-1]]], "3 responses to prompt 1 of 2"),
    "one for many": (lambda r: [r[0][0], r[1]], "for prompt 1 of 2 a Response, not a list"),
    "texts": (lambda r: [["a"] * 4] * 2, "to prompt 1 of 2 of type str, not pipelines.rollout.engine.Response"),
    "no token": (lambda r: with_first(r, ids=[], logp=[]), "a response to prompt 1 of 2 of 0 tokens"),
    "too long": (lambda r: with_first(r, ids=[5] * 17, logp=[-1.0] * 17), "of 17 tokens: it has 1 to 16"),
    "a tensor": (lambda r: with_first(r, ids=torch.tensor(r[0][0].ids)), "whose ids are of type Tensor, not a list"),
    "of tensors": (lambda r: with_first(r, ids=list(torch.tensor(r[0][0].ids))), "with ids of type Tensor"),
    "bools": (lambda r: with_first(r, ids=[True] * len(r[0][0].ids)), "with ids of type bool"),
    "an id above": (lambda r: with_first(r, ids=[10**7] * len(r[0][0].ids)), "with the id 10000000: there are 0 to"),
    "an id below": (lambda r: with_first(r, ids=[-1] * len(r[0][0].ids)), "with the id -1: there are 0 to"),
    "numpy's bools": (lambda r: with_first(r, ids=[np.bool_(1)] * len(r[0][0].ids)), "with ids of type bool"),
    "numpy's floats": (lambda r: with_first(r, ids=np.ones(len(r[0][0].ids))), "with ids of type float"),
    "numpy's nan": (lambda r: with_first(r, logp=[np.float32("nan")] * len(r[0][0].ids)), "that is not finite"),
    "a matrix": (lambda r: with_first(r, ids=np.ones((2, 2), int)), "whose ids are of type ndarray, not a list"),
    "fewer log-probs": (lambda r: with_first(r, logp=r[0][0].logp[1:]), "log-probs"),
    "no number": (lambda r: with_first(r, logp=[float("nan")] * len(r[0][0].ids)), "a log-prob that is not finite"),
    "no text": (lambda r: with_first(r, text=None), "with text of type NoneType"),
    "an int": (lambda r: with_first(r, truncated=0), "with truncated of type int"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_told(policy, samples, right, wrong, monkeypatch):
    change, told = WRONG[wrong]
    monkeypatch.setattr(Fixed, "given", change(right))
    for engine in (find_engine("ownengine:Fixed")(policy), find_engine("ownengine:Kept")(policy).view(policy)):
        with pytest.raises(UserError, match=r"rollout\.engine: ownengine:\w+: generate returned ") as raised:
            engine.generate(samples[:2], NAMES, FOUR)
        assert told in str(raised.value)


def test_an_id_that_is_never_sampled_is_told(policy, samples, right, monkeypatch):
    never = policy.suppressed_ids.tolist()[0]
    monkeypatch.setattr(Fixed, "given", with_first(right, ids=[never] * len(right[0][0].ids)))
    with pytest.raises(UserError, match=f"with the id {never}, which the policy never samples"):
        find_engine("ownengine:Fixed")(policy).generate(samples[:2], NAMES, FOUR)


def test_what_it_raises_is_told_with_its_lines(policy, samples):
    engine = find_engine("ownengine:Raises")(policy)
    with pytest.raises(UserError, match=r"Raises: raised KeyError: 'nothing'\n(.*\n)?.*return \[\{\}\[.nothing.\]\]"):
        engine.generate(samples[:2], NAMES, FOUR)
    with pytest.raises(UserError, match=r"Refuses: raised ValueError: no room\n.*in __init__: raise ValueError"):
        find_engine("ownengine:Refuses")(policy)
    kept = find_engine("ownengine:Kept")(policy)
    assert isinstance(kept, LiveEngine)
    with pytest.raises(UserError, match=r"Kept: raised ValueError: no weights\n.*in sync: raise"):
        kept.sync(policy)


def test_one_without_methods_is_refused(policy):
    with pytest.raises(UserError, match=r"ownengine:Nothing: what it made, a Nothing, has no method generate\."):
        find_engine("ownengine:Nothing")(policy)
    make = find_engine("ownengine:made_nothing")
    with pytest.raises(UserError, match=r"what it made, a SimpleNamespace, has no method generate\."):
        make(policy)
