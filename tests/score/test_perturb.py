"""pipelines/score/perturb.py against the stock Qwen2-VL processor, against PIL, and by hand."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from pipelines.errors import UserError
from pipelines.model.torchvision_ops import ensure_importable
from pipelines.score import perturb as perturb_module
from pipelines.score.perturb import PERTURBATIONS, blacken_raw, image_to_patches, patches_to_image, perturb
from pipelines.seeds import generator

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)
BLACK = torch.tensor([-2.5, -1.6, -0.6])  # (0 - mean) / std
P = 14


def rng(*indices):
    return generator(0, "perturbation", *indices)


def random_image(height, width, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def normalized(pixels):
    """Pixels [..., 3, H, W] in 0..255 -> normalised."""
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (MEAN, STD))
    return (pixels / 255 - mean) / std


def pixels_of(image):
    """Normalised [..., 3, H, W] -> pixels in 0..255."""
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (MEAN, STD))
    return (image * std + mean) * 255


def run(pixel_values, how, draw=None, **kwargs):
    settings: dict[str, Any] = {"image_mean": MEAN, "image_std": STD, "patch_size": P} | kwargs
    return perturb(pixel_values, how, draw or rng(), **settings)


@pytest.fixture(scope="module")
def qwen():
    """Images of 4 x 6 and of 8 x 4 patches, and what the stock processor makes of them."""
    ensure_importable()
    from transformers import Qwen2VLImageProcessor

    images = [random_image(4 * P, 6 * P, 1), random_image(8 * P, 4 * P, 2)]
    processor = Qwen2VLImageProcessor(image_mean=list(MEAN), image_std=list(STD), min_pixels=P * P)
    features = processor(images=images, return_tensors="pt")
    assert features["image_grid_thw"].tolist() == [[1, 4, 6], [1, 8, 4]]
    return images, features["pixel_values"], features["image_grid_thw"]


# --- Qwen's layout -------------------------------------------------------------------------------


def test_refolding_the_stock_processors_patches_gives_the_normalised_image(qwen):
    images, pixel_values, grids = qwen
    parts = pixel_values.split(grids.prod(-1).tolist())
    for image, part, grid in zip(images, parts, grids.tolist(), strict=True):
        refolded = patches_to_image(part, tuple(grid), P)
        expected = normalized(torch.from_numpy(np.array(image)).permute(2, 0, 1).float())
        assert refolded.shape == (2, *expected.shape)
        for frame in refolded:  # a still image is its own second frame
            torch.testing.assert_close(frame, expected, atol=1e-5, rtol=0)
        assert torch.equal(image_to_patches(refolded, P), part)


@pytest.mark.parametrize(
    ("frames", "temporal", "merge", "patch"), [(2, 2, 2, 14), (6, 2, 2, 4), (3, 1, 1, 2), (2, 2, 3, 1)]
)
def test_cutting_and_refolding_are_inverse(frames, temporal, merge, patch):
    y, x = 2 * merge, 3 * merge
    image = torch.randn(frames, 3, y * patch, x * patch)
    patches = image_to_patches(image, patch, temporal, merge)
    assert patches.shape == (frames // temporal * y * x, 3 * temporal * patch * patch)
    grid = (frames // temporal, y, x)
    assert torch.equal(patches_to_image(patches, grid, patch, temporal, merge), image)


def test_rows_go_by_merge_blocks():
    # Patches of one pixel, numbered 0..15 line by line on a 4 x 4 grid, in blocks of 2 x 2.
    image = torch.arange(16.0).view(1, 1, 4, 4)
    rows = image_to_patches(image, 1, 1, 2)[:, 0].tolist()
    assert rows == [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]


# --- patches -------------------------------------------------------------------------------------


def test_black_patches_are_whole_rows_and_the_others_are_untouched(qwen):
    _, pixel_values, grids = qwen
    result = run(pixel_values, "patch_black", grid_thw=grids)
    black_row = BLACK.repeat_interleave(2 * P * P)
    black = torch.isclose(result, black_row).all(-1)
    assert torch.equal(result[~black], pixel_values[~black])
    # 24 + 32 patches: half of 56 is 28, the standard deviation sqrt(14) = 3.7.
    assert 15 < black.sum() < 41
    assert (result[black] == result[black][0]).all()


@pytest.mark.parametrize(("probability", "expected"), [(0.0, 0), (1.0, 56)])
def test_probability_of_a_black_patch(qwen, probability, expected):
    _, pixel_values, grids = qwen
    result = run(pixel_values, "patch_black", grid_thw=grids, probability=probability)
    assert (result != pixel_values).any(-1).sum() == expected


def test_both_layouts_get_the_same_black_patches(qwen):
    _, pixel_values, grids = qwen
    folded = patches_to_image(pixel_values[:24], (1, 4, 6), P)
    patches = run(pixel_values[:24], "patch_black", grid_thw=grids[:1])
    tiles = run(folded[:1], "patch_black")
    torch.testing.assert_close(patches_to_image(patches, (1, 4, 6), P)[:1], tiles)


def test_a_partial_patch_at_the_border_is_covered():
    # 30 = 2 * 14 + 2: the encoder ignores the last 2 pixels, blackening all must not fail there.
    image = normalized(torch.full((1, 3, 30, 30), 200.0))
    result = run(image, "patch_black", probability=1.0)
    torch.testing.assert_close(result, BLACK.view(1, 3, 1, 1).expand_as(image))


# --- the other perturbations ---------------------------------------------------------------------


def test_grey_by_hand(qwen):
    # 128 / 255 = 0.501961: (0.501961 - 0.5) / 0.2 = 0.009804, 0.407843, 0.403922.
    _, pixel_values, grids = qwen
    result = patches_to_image(run(pixel_values, "grey", grid_thw=grids)[:24], (1, 4, 6), P)
    expected = torch.tensor([0.009804, 0.407843, 0.403922]).view(1, 3, 1, 1)
    torch.testing.assert_close(result, expected.expand_as(result), atol=1e-5, rtol=0)


def test_noise_is_of_the_given_sigma_clipped_and_the_same_on_both_frames(qwen):
    # On pixels of 127.5, sigma 189 and limits 0 and 255: each limit is reached with the
    # probability of a normal number beyond 127.5 / 189 = 0.6746, which is 0.25.
    grids = torch.tensor([[1, 20, 20]])
    image = normalized(torch.full((2, 3, 20 * P, 20 * P), 127.5))
    result = run(image_to_patches(image, P), "gaussian_noise", grid_thw=grids)
    frames = pixels_of(patches_to_image(result, (1, 20, 20), P))
    assert torch.equal(frames[0], frames[1])
    assert frames.min() > -1e-3
    assert frames.max() < 255.001
    assert (frames < 0.01).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert (frames > 254.99).float().mean().item() == pytest.approx(0.25, abs=0.01)
    inside = frames[(frames > 64) & (frames < 191)]  # +-63.5 / 189 = +-0.336: 26.3 %
    assert inside.numel() / frames.numel() == pytest.approx(0.263, abs=0.01)


def test_blur_is_pils_gaussian_blur(qwen):
    # PIL approximates the Gaussian with three box filters, each with its own border, and rounds.
    smooth = random_image(6, 8, 3).resize((8 * P, 6 * P), Image.Resampling.BICUBIC)
    expected = np.array(smooth.filter(ImageFilter.GaussianBlur(6))).astype(np.float32)
    image = normalized(torch.from_numpy(np.array(smooth)).permute(2, 0, 1).float())
    patches = image_to_patches(image.expand(2, -1, -1, -1), P)
    result = run(patches, "gaussian_blur", grid_thw=torch.tensor([[1, 6, 8]]))
    blurred = pixels_of(patches_to_image(result, (1, 6, 8), P))
    for frame in blurred:
        difference = np.abs(frame.permute(1, 2, 0).numpy() - expected)
        assert difference[18:-18, 18:-18].max() < 3
        assert difference.max() < 8
        assert difference.mean() < 1
    assert np.abs(expected - np.array(smooth)).mean() > 5  # so the comparison means something


def test_blur_of_a_point_by_hand():
    # In one direction the centre weighs 1 / (6 sqrt(2 pi)) = 0.066490; the 37 weights up to 3 sigma
    # have 0.99798 of the mass, so 0.066625 after scaling; its square is 0.004439.
    image = torch.zeros(1, 3, 61, 61)
    image[..., 30, 30] = 1.0
    result = run(image, "gaussian_blur")[0, 0]
    assert result[30, 30].item() == pytest.approx(0.004439, abs=2e-6)
    assert result.sum().item() == pytest.approx(1.0, abs=1e-4)
    torch.testing.assert_close(result, result.T)
    torch.testing.assert_close(result, result.flip(0))
    # One sigma away: e^-1/2.
    assert (result[30, 36] / result[30, 30]).item() == pytest.approx(np.exp(-0.5), abs=1e-4)


# --- what holds for all --------------------------------------------------------------------------


@pytest.mark.parametrize("how", PERTURBATIONS)
def test_a_draw_is_a_function_of_its_seed(qwen, how):
    _, pixel_values, grids = qwen
    first, again, other = (run(pixel_values, how, rng(step), grid_thw=grids) for step in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, pixel_values)
    assert torch.equal(first, other) == (how in ("grey", "gaussian_blur"))


@pytest.mark.parametrize("how", PERTURBATIONS)
def test_shape_and_dtype_stay_and_the_input_is_not_changed(how):
    tiles = torch.randn(2, 3, 3, 28, 28).bfloat16()
    before = tiles.clone()
    result = run(tiles, how)
    assert result.shape == tiles.shape
    assert result.dtype == tiles.dtype
    assert torch.equal(tiles, before)


@pytest.mark.parametrize("how", PERTURBATIONS)
def test_tiles_of_zeros_stay_and_change_nothing_for_the_others(how):
    tiles = torch.randn(1, 3, 3, 28, 28)
    filled = torch.cat([tiles[:, :1], torch.zeros(1, 2, 3, 28, 28), tiles[:, 1:]], 1)
    result = run(filled, how)
    assert not result[:, 1:3].any()
    torch.testing.assert_close(result[:, [0, 3, 4]], run(tiles, how))


@pytest.mark.parametrize("how", PERTURBATIONS)
def test_what_fills_a_tile_up_stays(how):
    # A tile of 20 x 28 in one of 28 x 28 pixels.
    tiles = torch.randn(1, 2, 3, 28, 28)
    mask = torch.ones(1, 2, 28, 28, dtype=torch.long)
    tiles[0, 1, :, 20:], mask[0, 1, 20:] = 0.0, 0
    free, kept = run(tiles, how, probability=1.0), run(tiles, how, probability=1.0, pixel_mask=mask)
    assert not kept[0, 1, :, 20:].any()
    assert torch.equal(kept[0, 0], free[0, 0])
    assert torch.equal(kept[0, 1, :, :20], free[0, 1, :, :20])


def test_the_images_of_a_prompt_are_perturbed_differently(qwen):
    twice = torch.cat([qwen[1][:24]] * 2)
    grids = torch.tensor([[1, 4, 6]] * 2)
    result = run(twice, "patch_black", grid_thw=grids)
    assert not torch.equal(result[:24], result[24:])


def test_an_unknown_perturbation():
    with pytest.raises(UserError, match="no such part"):
        run(torch.randn(1, 3, 28, 28), "sepia")


def test_a_perturbation_of_ones_own_works_on_pixels(tmp_path, monkeypatch):
    (tmp_path / "own_views.py").write_text(
        "def invert(pixels_FCHW, rng):\n    return 255 - pixels_FCHW\n"
        "def narrow(pixels_FCHW, rng):\n    return pixels_FCHW[..., 1:]\n"
        "def infinite(pixels_FCHW, rng):\n    return pixels_FCHW / 0\n"
        "def too_large(pixels_FCHW, rng):\n    return pixels_FCHW.double() * 1e300\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    image = normalized(torch.full((1, 3, 28, 28), 100.0))
    assert torch.allclose(run(image, "own_views:invert"), normalized(torch.full_like(image, 155.0)), atol=1e-5)
    with pytest.raises(UserError, match=r"own_views:narrow.*returned \[1, 3, 28, 27\]"):
        run(image, "own_views:narrow")
    for name in ("infinite", "too_large"):
        with pytest.raises(UserError, match=f"own_views:{name}.*returned numbers that are not finite in float32"):
            run(image, f"own_views:{name}")


# --- the reference's -----------------------------------------------------------------------------


def test_blacken_raw_by_hand():
    # 30 x 17 pixels in squares of 14: 3 x 2 of them, the last row of 2 and the last column of 3.
    image = Image.new("RGB", (17, 30), (10, 20, 30))
    draws = rng().random((3, 2)) < 0.5
    assert 0 < draws.sum() < 6
    pixels = np.array(blacken_raw(image, rng()))
    assert pixels.shape == (30, 17, 3)
    for y in range(30):
        for x in range(17):
            expected = (0, 0, 0) if draws[y // 14, x // 14] else (10, 20, 30)
            assert tuple(pixels[y, x]) == expected


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
def test_blacken_raw_of_any_mode(mode):
    image = Image.new("RGB", (20, 20), (204, 204, 204)).convert(mode)
    assert not np.array(blacken_raw(image, rng(), probability=1.0)).any()
    untouched = blacken_raw(image, rng(), probability=0.0)
    assert untouched.mode == "RGB"
    assert (np.array(untouched) == 204).all()


def test_the_settings_are_the_papers():
    assert (perturb_module.NOISE_SIGMA, perturb_module.BLUR_SIGMA) == (189, 6)
    assert perturb_module.GREY == 128


def test_black_patches_are_those_of_the_image():
    # The short way over whole patches against cutting, blackening and putting together again.
    rng = torch.Generator().manual_seed(0)
    image_FCHW = torch.randn(2, 3, 8 * 14, 6 * 14, generator=rng)
    patches, grid = image_to_patches(image_FCHW, 14), torch.tensor([[1, 8, 6]])
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    found = perturb(
        patches,
        "patch_black",
        generator(0, "perturb", 1),
        image_mean=mean,
        image_std=std,
        patch_size=14,
        grid_thw=grid,
        probability=0.5,
    )
    columns = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
    scale = perturb_module._Scale(*columns, 14, 2, 0.5)
    expected = perturb_module._patch_black(image_FCHW, generator(0, "perturb", 1), scale)
    assert torch.equal(found, image_to_patches(expected, 14))
    assert 0.2 < (found != patches).any(1).float().mean() < 0.8
