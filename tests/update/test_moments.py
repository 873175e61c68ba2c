"""The optimizer's file: the library's to the bit, never whole in memory, and nothing else is read."""

import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.errors import UserError
from pipelines.update import moments

TRAINED = {"head.weight": (3, 5), 'a"ä.bias': (7,), "a_c": (2, 2, 2), "empty": (0, 4)}
SHAPES = {
    f"{kind}/{name}": () if kind == "step" else shape for name, shape in TRAINED.items() for kind in moments.KINDS
}


def state():
    torch.manual_seed(0)
    return {key: torch.randn(shape) for key, shape in SHAPES.items()}


@pytest.fixture
def saved(tmp_path):
    """``saved(keys={...}, without=[...])``: a file of the library's, with other tensors; none is None."""

    def make(without=(), **other):
        tensors = state() | {"updates": torch.tensor(3)} | other
        path = tmp_path / "checkpoint" / "trainer" / moments.OPTIMIZER
        path.parent.mkdir(parents=True)
        save_file({key: value for key, value in tensors.items() if key not in without}, path)
        return path

    return make


def test_it_is_what_the_library_writes(saved, tmp_path):
    moments.write(tmp_path / "mine", 3, SHAPES, state().__getitem__)
    assert (tmp_path / "mine").read_bytes() == saved().read_bytes()
    moments.write(tmp_path / "none", 0, {}, state().__getitem__)
    assert load_file(tmp_path / "none") == {"updates": torch.tensor(0)}


def test_it_is_read_as_it_was_written(saved):
    path, expected = saved(), state()
    assert moments.updates(path) == 3
    found = {f"{kind}/{name}": value for kind, name, value in moments.read(path, TRAINED)}
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in found.items())


@pytest.mark.parametrize("writes", [True, False], ids=["rank 0", "another"])
def test_each_tensor_is_gone_before_the_next_is_asked_for(tmp_path, writes):
    known: list[weakref.ref] = []
    asked, alive = [], []

    def value(key):
        alive.append(sum(there() is not None for there in known))
        asked.append(key)
        made = torch.ones(SHAPES[key], dtype=torch.float64)  # a copy is made in float32
        known.append(weakref.ref(made))
        return made

    moments.write(tmp_path / "file" if writes else None, 3, SHAPES, value)
    assert asked == sorted(SHAPES)  # on every rank
    assert max(alive) == 0


def test_what_is_no_number_is_neither_kept_nor_gone_on_with(saved, tmp_path):
    bad = {"exp_avg/head.weight": torch.full((3, 5), torch.nan)}
    with pytest.raises(UserError, match=r"state is not finite \(exp_avg/head.weight: nan"):
        moments.write(tmp_path / "file", 3, SHAPES, (state() | bad).__getitem__)
    with pytest.raises(UserError, match="state is not finite"):
        list(moments.read(saved(**bad), TRAINED))


@pytest.mark.parametrize(
    ("without", "other", "told"),
    [
        (["step/a_c"], {}, "holds exp_avg/a_c, and lacks step/a_c"),
        ([], {"exp_avg/tail": torch.ones(2)}, "holds exp_avg/tail, and no such weight is trained"),
        ([], {"max/a_c": torch.ones(2, 2, 2)}, "holds max/a_c, and no such weight is trained"),
        ([], {"exp_avg/a_c": torch.ones(8)}, r"exp_avg/a_c as F32 \[8\], which should be F32 \[2, 2, 2"),
        ([], {"step/a_c": torch.ones(1)}, r"step/a_c as F32 \[1\], which should be F32 \[\]"),
        ([], {"exp_avg/a_c": torch.ones(2, 2, 2).half()}, "exp_avg/a_c as F16"),
    ],
)
def test_the_state_of_other_weights_is_told_by_name(saved, without, other, told):
    path = saved(without, **other)
    with pytest.raises(UserError, match=told) as raised:
        next(moments.read(path, TRAINED))
    assert str(path) in str(raised.value)
    assert str(path.parent.parent) in raised.value.fix


def test_a_weight_that_never_had_a_gradient_has_no_state(saved):
    path = saved([f"{kind}/a_c" for kind in moments.KINDS])
    assert {name for _, name, _ in moments.read(path, TRAINED)} == TRAINED.keys() - {"a_c"}


@pytest.mark.parametrize("updates", [None, torch.tensor(1.0), torch.tensor([1]), torch.tensor(-1)], ids=str)
def test_the_number_of_updates_is_a_number(saved, updates):
    path = saved(["updates"]) if updates is None else saved(updates=updates)
    with pytest.raises(UserError, match="does not say how many updates"):
        moments.updates(path)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def too_long_a_header(path: Path) -> None:
    path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:])


@pytest.mark.parametrize(
    "damage", [cut, too_long_a_header, Path.unlink, lambda p: p.write_bytes(b""), lambda p: p.write_text("{}")]
)
def test_a_file_that_is_none_is_told(saved, damage):
    path = saved()
    damage(path)
    with pytest.raises(UserError, match=r"optimizer.safetensors: .* cannot be read"):
        moments.updates(path)
    with pytest.raises(UserError, match="cannot be read"):
        list(moments.read(path, TRAINED))
