"""A vision tower's windows in one call: the numbers of the library's loop, bit for bit."""

import pytest
import torch
from families import write_folder
from torch.nn import functional
from transformers import AutoModelForImageTextToText

from pipelines.model import vision
from pipelines.model.placement import Placement, copied

IN_WINDOWS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v")
GRIDS = {
    "even": [[1, 16, 16]],
    "windows that are cut at the edges": [[1, 12, 18]],
    "several images": [[1, 4, 4], [1, 14, 10], [1, 4, 4], [1, 8, 6]],
}
"""Time, height and width of each image, in patches."""


@pytest.fixture(scope="module", params=IN_WINDOWS)
def model(request, tmp_path_factory):
    folder = write_folder(request.param, tmp_path_factory.mktemp(request.param))
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()


def passed(model, grids):
    """The tower's outputs, and the gradients of its weights."""
    torch.manual_seed(0)
    tower = model.base_model.visual
    channels = tower.patch_embed.proj.weight[0].numel()
    patches = torch.randn(sum(t * h * w for t, h, w in grids), channels)
    model.zero_grad(set_to_none=True)
    out = tower(patches, grid_thw=torch.tensor(grids)).pooler_output
    torch.cat(list(out) if isinstance(out, list | tuple) else [out]).square().sum().backward()
    return out, [p.grad.clone() for p in tower.parameters() if p.grad is not None]


@pytest.mark.parametrize("grids", GRIDS.values(), ids=GRIDS)
def test_outputs_and_gradients_are_those_of_the_loop_to_the_last_bit(model, grids, monkeypatch):
    calls = []

    def counted(query, *rest, **settings):
        calls.append(query.shape[2])
        return functional.scaled_dot_product_attention(query, *rest, **settings)

    monkeypatch.setattr(vision, "scaled_dot_product_attention", counted)
    vision.leave(model, "sdpa")
    expected, gradients = passed(model, grids)
    assert not calls
    vision.attend_in_windows(model)
    found, others = passed(model, grids)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    torch.testing.assert_close(others, gradients, rtol=0, atol=0)
    layers = len(model.base_model.visual.blocks)
    assert layers <= len(calls) <= layers * 4  # one for each length, not for each window


def test_patches_by_a_product_are_within_rounding(model):
    grids = GRIDS["several images"]
    vision.leave(model, "sdpa")
    expected, gradients = passed(model, grids)
    names = list(model.state_dict())
    vision.use(model)
    assert type(model.base_model.visual.patch_embed.proj) is vision.PatchProduct
    assert list(model.state_dict()) == names
    found, others = passed(model, grids)
    vision.leave(model, "sdpa")
    assert type(model.base_model.visual.patch_embed.proj) is torch.nn.Conv3d
    for a, b in zip([found, *others], [expected, *gradients], strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()


def test_a_larger_volume_is_convolved():
    conv = torch.nn.Conv3d(3, 8, (2, 4, 4), (2, 4, 4))
    volume = torch.randn(2, 3, 4, 8, 4)
    expected = conv(volume)
    conv.__class__ = vision.PatchProduct
    assert torch.equal(conv(volume), expected)


@pytest.mark.parametrize("name", ["llava", "gemma3", "internvl", "smolvlm"])
def test_a_tower_without_windows_is_left_alone(name, tmp_path):
    model = AutoModelForImageTextToText.from_pretrained(write_folder(name, tmp_path))
    before = model.config.vision_config._attn_implementation
    vision.use(model)
    assert model.config.vision_config._attn_implementation == before


def test_what_is_saved_does_not_name_it(model, tmp_path):
    vision.use(model)
    model.save_pretrained(tmp_path)
    assert vision.NAME not in (tmp_path / "config.json").read_text()


def test_a_copy_is_made_without_it_and_can_go_its_ways(model):
    # Each rank makes one of a model that goes our ways already.
    vision.use(model)
    made = copied(model, Placement(), torch.device("cpu"), torch.float32)
    assert made.config.vision_config._attn_implementation == "sdpa"
    assert model.config.vision_config._attn_implementation == vision.NAME
    vision.use(made)
    (found, _), (expected, _) = (passed(one, GRIDS["several images"]) for one in (made, model))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
