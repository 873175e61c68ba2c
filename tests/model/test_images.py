"""The image is what a person sees: every kind of image, by the pixels that the encoder gets."""

import base64
import dataclasses
import io
import json
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from pipelines.config import settings
from pipelines.config.schema import Config, DataConfig
from pipelines.config.settings import shipped_config
from pipelines.disk.records import Sample
from pipelines.model.images import limited_size
from pipelines.model.policy import Policy
from pipelines.model.prompts import Before, encode_sample, load_processor, messages
from pipelines.prepare.rows import RowParser
from pipelines.prepare.samples import PromptLengths, prepare
from pipelines.score.pictures import pictures
from pipelines.score.scoring import perturbed_prompt
from pipelines.watch import Silent

SIDE = 56  # twice the tiny model's patch and merge: no resizing
WHITE, BLACK, RED, BLUE, GREEN = ((255, 255, 255), (0, 0, 0), (250, 10, 20), (15, 25, 240), (20, 230, 30))


def corners(*colours, width=SIDE, height=SIDE):
    """Four plain quarters, in reading order: what is seen [H, W, 3]."""
    pixels = np.empty((height, width, 3), np.uint8)
    for index, colour in enumerate(colours):
        rows = slice(0, height // 2) if index < 2 else slice(height // 2, None)
        columns = slice(0, width // 2) if index % 2 == 0 else slice(width // 2, None)
        pixels[rows, columns] = colour
    return pixels


def encoded(image, form="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def grey(values, kind):
    """Four quarters of one number each."""
    return np.kron(np.array(values).reshape(2, 2), np.ones((SIDE // 2, SIDE // 2))).astype(kind)


def indexed():
    """A palette image of four quarters: entries 0 to 3."""
    image = Image.fromarray(grey([0, 1, 2, 3], np.uint8)).convert("L")
    image = Image.frombytes("P", image.size, image.tobytes())
    image.putpalette([*BLACK, *RED, *BLUE, *GREEN])
    return image


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def raw_png(depth, colour, rows, key, width=SIDE):
    """A PNG with a transparent colour, which Pillow would not write."""
    head = struct.pack(">IIBBBBB", width, len(rows), depth, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"tRNS", key) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


INK = corners(BLACK, WHITE, RED, WHITE)
"""What a drawing in black and red on a clear ground shows."""


def drawing():
    """It, with the hidden colour of the clear ground black, as drawing programs leave it."""
    pixels = np.dstack([INK, np.where((INK == 255).all(2), 0, 255).astype(np.uint8)])
    pixels[pixels[:, :, 3] == 0] = 0
    return Image.fromarray(pixels)


def animated(form, **options):
    return encoded(drawing(), form, save_all=True, append_images=[Image.new("RGBA", (SIDE, SIDE), "green")], **options)


def lab():
    """Eight bits of LAB keep muted colours within a step or two."""
    srgb, to = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    turned = ImageCms.buildTransform(srgb, to, "RGB", "LAB")
    return ImageCms.applyTransform(Image.fromarray(MUTED), turned)


def partial_gif():
    """A first frame that covers the lower right quarter only, of no transparent colour: 0 is black."""
    half = SIDE // 2
    whole = encoded(Image.new("P", (half, half), 1), "GIF", optimize=False)
    start = whole.index(b",\0\0\0\0")  # the frame: its place comes first
    head = b"GIF89a" + struct.pack("<HHBBB", SIDE, SIDE, 0xF0, 0, 0) + bytes([*BLACK, *RED])
    return head + b"," + struct.pack("<HH", half, half) + whole[start + 5 :]


MUTED = corners((150, 90, 90), (90, 90, 150), (100, 150, 90), WHITE)
PLAIN = corners(RED, BLUE, GREEN, WHITE)
GREYS = corners((0, 0, 0), (64, 64, 64), (128, 128, 128), (255, 255, 255))
CMYK = Image.fromarray(PLAIN).convert("CMYK")

KINDS = {
    "RGB": (encoded(Image.fromarray(PLAIN)), PLAIN),
    "RGBA": (encoded(drawing()), INK),
    "RGBA in WebP": (encoded(drawing(), "WEBP", lossless=True), INK),
    "RGBA in TIFF": (encoded(drawing(), "TIFF"), INK),
    "half transparent": (encoded(Image.new("RGBA", (SIDE, SIDE), (255, 0, 0, 128))), corners(*[(255, 127, 127)] * 4)),
    "LA": (
        encoded(Image.merge("LA", [Image.new("L", (SIDE, SIDE)), drawing().getchannel("A")])),
        corners(BLACK, WHITE, BLACK, WHITE),
    ),
    "PA": (encoded(drawing().convert("PA"), "TIFF"), INK),
    "palette, one entry clear": (encoded(indexed(), transparency=0), corners(WHITE, RED, BLUE, GREEN)),
    "palette, alpha an entry": (
        encoded(indexed(), transparency=bytes([0, 255, 255, 0])),
        corners(WHITE, RED, BLUE, WHITE),
    ),
    "palette": (encoded(indexed()), corners(BLACK, RED, BLUE, GREEN)),
    "RGB, a colour clear": (
        encoded(Image.fromarray(corners(BLACK, RED, BLUE, GREEN)), transparency=BLACK),
        corners(WHITE, RED, BLUE, GREEN),
    ),
    "grey, a value clear": (
        encoded(Image.fromarray(grey([0, 7, 100, 255], np.uint8)), transparency=7),
        corners(BLACK, WHITE, (100, 100, 100), WHITE),
    ),
    "4-bit grey, a value clear": (
        raw_png(4, 0, [b"\x55" * 14 + b"\xff" * 14] * 28 + [b"\x00" * 28] * 28, b"\x00\x05"),
        corners(WHITE, WHITE, BLACK, BLACK),
    ),
    "1 bit": (
        encoded(Image.fromarray(grey([0, 255, 255, 0], np.uint8)).convert("1")),
        corners(BLACK, WHITE, WHITE, BLACK),
    ),
    "1 bit, black clear": (raw_png(1, 0, [b"\x00" * 7] * SIDE, b"\x00\x00"), corners(*[WHITE] * 4)),
    "16-bit grey": (encoded(Image.fromarray(grey([0, 16448, 32896, 65535], np.uint16))), GREYS),
    "16-bit grey TIFF": (encoded(Image.fromarray(grey([0, 16448, 32896, 65535], np.uint16)), "TIFF"), GREYS),
    "16-bit grey PGM": (b"P5 56 56 65535\n" + grey([0, 16448, 32896, 65535], ">u2").tobytes(), GREYS),
    "16-bit grey, a value clear": (
        encoded(Image.fromarray(grey([0, 1000, 32896, 65535], np.uint16)), transparency=1000),
        corners(BLACK, WHITE, (128, 128, 128), WHITE),
    ),
    "16-bit grey, 0 is white": (
        encoded(Image.fromarray(grey([65535, 49087, 32639, 0], np.uint16)), "TIFF", tiffinfo={262: 0}),
        GREYS,
    ),
    "16-bit RGB, a colour clear": (
        raw_png(
            16,
            2,
            [struct.pack(">3H", 0x1234, 0, 0) * 28 + b"\xff\xff\0\0\0\0" * 28] * 56,
            struct.pack(">3H", 0x1234, 0, 0),
        ),
        corners(WHITE, (255, 0, 0), WHITE, (255, 0, 0)),
    ),
    "32-bit grey of 8 bits": (encoded(Image.fromarray(grey([0, 64, 128, 255], np.int32)), "TIFF"), GREYS),
    "float TIFF up to 1": (encoded(Image.fromarray(grey([0, 0.25, 0.5, 1], np.float32)), "TIFF"), GREYS),
    "float TIFF up to 255": (encoded(Image.fromarray(grey([0, 64, 128, 255], np.float32)), "TIFF"), GREYS),
    "CMYK JPEG": (encoded(CMYK, "JPEG", quality=100, subsampling=0), PLAIN),
    "CMYK TIFF": (encoded(CMYK, "TIFF"), PLAIN),
    "LAB TIFF": (encoded(lab(), "TIFF"), MUTED),
    "animated GIF": (animated("GIF"), INK),
    "animated PNG": (animated("PNG"), INK),
    "animated WebP": (animated("WEBP", lossless=True), INK),
    "GIF whose first frame is a part": (partial_gif(), corners(WHITE, WHITE, WHITE, RED)),
}


def turned(orientation, form):
    """A wide picture, stored so that EXIF's orientation puts it upright."""
    seen = corners(RED, BLUE, GREEN, WHITE, width=2 * SIDE)
    # What each orientation undoes, in numpy's words (EXIF 2.32, tag 274).
    stored = {
        1: seen,
        2: seen[:, ::-1],
        3: seen[::-1, ::-1],
        4: seen[::-1],
        5: seen.transpose(1, 0, 2),
        6: np.rot90(seen),
        7: seen[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(seen, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}
    image = Image.fromarray(np.ascontiguousarray(stored))
    return encoded(image, form, exif=exif, **options.get(form, {})), seen


KINDS |= {
    f"EXIF {orientation} {form}": turned(orientation, form)
    for orientation in range(1, 9)
    for form in ("JPEG", "PNG", "WEBP", "TIFF")
}


@pytest.fixture(scope="module")
def model(processor):
    """(the tiny model's processor, its config)."""
    from transformers import AutoConfig

    return processor, AutoConfig.from_pretrained(shipped_config("tiny_model"))


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_encoder_gets(model, kind):
    processor, config = model
    data, seen = KINDS[kind]
    prompt = encode_sample(processor, "", Sample("a", "What?", [data], "1"))
    [shown] = pictures(prompt, processor, config, [data])
    pixels = np.asarray(Image.open(io.BytesIO(shown))).astype(int)
    assert pixels.shape == seen.shape
    inside = np.ones(seen.shape[:2], bool)  # but for JPEG's seams
    for axis, middle in enumerate(np.array(seen.shape[:2]) // 2):
        inside[(slice(None),) * axis + (slice(middle - 8, middle + 8),)] = False
    assert abs(pixels - seen)[inside].max() <= 3


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF"])
def test_tokens_are_counted_of_the_image_upright(form):
    lengths = PromptLengths(Config())
    lengths._tried = True  # do not ask the processor: sizes have to do
    for orientation in range(1, 9):
        sample = Sample("a", "<image>?", [turned(orientation, form)[0]], "1")
        assert lengths.count(sample) == lengths._encoded(sample)


@pytest.mark.parametrize(
    ("values", "kind", "form", "detail"),
    [
        ([0, 1000, 2000, 4095], np.uint16, "PNG", "grey values from 0 to 4095"),
        ([0, 5, 70000, 1], np.int32, "TIFF", "grey values from 0 to 70000"),
        ([-5, 5, 700, 1], np.int32, "TIFF", "grey values from -5 to 700"),
        ([-1, 0, 0.5, 1], np.float32, "TIFF", "real numbers from -1 to 1"),
        ([0, 256, 0.5, 1], np.float32, "TIFF", "real numbers from 0 to 256"),
        ([0, float("nan"), 0.5, 1], np.float32, "TIFF", "real numbers from nan"),
    ],
)
def test_unknown_brightness_is_refused_by_name(tmp_path, values, kind, form, detail):
    image = encoded(Image.fromarray(grey(values, kind)), form)
    raw = {"problem": "?", "images": image, "answer": "1"}
    found = RowParser({name: (name,) for name in raw}, [tmp_path], "row-", False).parse(0, raw)
    assert found.reason == "unknown brightness"
    assert detail in found.detail


# --- what is odd but used is told -----------------------------------------------------------------


class Notes(Silent):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def prepared(tmp_path, *images):
    """(metrics, notes, train questions) of a data set with these images."""
    from pipelines.disk.records import read_rows

    rows = [{"problem": f"{n}?", "images": base64.b64encode(i).decode(), "answer": "1"} for n, i in enumerate(images)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out, notes = tmp_path / "out", Notes()
    out.mkdir()
    data = DataConfig(source=str(tmp_path / "q.jsonl"), validation_count=0)
    metrics = prepare(Config(data=data), out, notes)
    return metrics, notes.notes, read_rows(out / "train.parquet", Sample)


def white_ink():
    image = drawing()
    return Image.merge("RGBA", [Image.new("L", image.size, 255)] * 3 + [image.getchannel("A")])


def test_images_of_a_single_colour_are_counted(tmp_path):
    images = [encoded(drawing()), encoded(white_ink()), encoded(Image.new("L", (SIDE, SIDE), 9))]
    metrics, notes, _ = prepared(tmp_path, *images)
    assert metrics["single_colour"] == 2
    assert notes[-1] == "train: 2 images are a single colour"


def test_what_pillow_warns_of_is_counted_and_does_not_reach_the_screen(tmp_path, recwarn):
    warnings.simplefilter("always")
    palette = encoded(indexed(), transparency=bytes([0, 128, 255, 0]))
    jpeg = encoded(Image.fromarray(PLAIN), "JPEG")
    broken = b"\xff\xe1" + struct.pack(">H", 20) + b"Exif\0\0MM\0*\0\0\0\x08\0\x05\0\0"
    damaged = jpeg[:2] + broken + jpeg[2:]
    metrics, notes, _ = prepared(tmp_path, palette, damaged, damaged)
    assert not [w for w in recwarn if "PIL" in str(w.filename)]
    assert metrics["warned"] == 2
    assert any(line.startswith("train: Pillow warns of 2 images (") for line in notes)


def test_perceive_shows_what_a_person_sees(policy):
    from pipelines.perceive.one import perceive

    data, seen = turned(6, "JPEG")
    found = perceive(policy, data, "What is in a1?", "7")
    shown = np.asarray(Image.open(io.BytesIO(found.images[0])))
    assert shown.shape == seen.shape


def test_pages_show_what_the_model_gets():
    from pipelines.page.images import PageImages

    pages = PageImages()
    for kind in ("RGBA", "EXIF 6 JPEG", "16-bit grey", "palette, one entry clear", "RGB"):
        data, seen = KINDS[kind]
        [url] = pages.urls([data])
        shown = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
        assert shown.mode == "RGB"
        assert abs(np.asarray(shown).astype(int) - seen)[4:20, 4:20].max() <= 3
        assert shown.getexif().get(0x0112, 1) == 1


# --- as the authors' code shows an image ----------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "limits", "expected"),
    [
        ((300, 400), (None, None), (300, 400)),
        ((300, 400), (1000, 200_000), (300, 400)),
        ((300, 400), (None, 30_000), (150, 200)),
        ((300, 400), (480_000, None), (600, 800)),
        ((301, 400), (None, 30_000), (150, 199)),  # factor 0.49917: 150.25 and 199.67
        ((1, 4000), (None, 100), (1, 632)),
    ],
)
def test_sides_are_scaled_by_one_factor_and_rounded_down(size, limits, expected):
    assert limited_size(*size, *limits) == expected


def test_resize_first_is_pil_and_then_the_processor():
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (75, 100, 3), np.uint8))
    asked = Sample("a", "<image>What?", [encoded(image)], "1")
    config = settings.load(None, ["published.resize_first=true", "data.max_pixels=5000"])
    processor, before = load_processor(config), Before.of(config)
    own = load_processor(settings.load(None))
    assert processor.image_processor.size == own.image_processor.size
    (shown,) = before.images(asked)
    assert shown.size == (81, 61)  # factor 0.8165
    found = encode_sample(processor, "", asked, before)
    again = encode_sample(own, "", dataclasses.replace(asked, images=[encoded(shown)]))
    assert found["pixel_values"].equal(again["pixel_values"])
    once = load_processor(settings.load(None, ["data.max_pixels=5000"]))
    assert not np.array_equal(found["pixel_values"], encode_sample(once, "", asked)["pixel_values"])


def test_what_is_blackened_was_resized(policy):
    """Squares of 14 pixels of the image as it was resized: at 28 x 28, four, each one patch's."""
    config = settings.load(
        None, ["mode=published", "data.max_pixels=784", "score.mask_per=prompt", "score.probability=0.5"]
    )
    image = Image.fromarray(np.full((280, 280, 3), 200, np.uint8))
    asked = Sample("a", "<image>What?", [encoded(image)], "1")
    ours = Policy(policy.model, load_processor(config), config)
    clean = ours.encoder.encode(asked)
    assert clean["image_grid_thw"].tolist() == [[1, 2, 2]]
    views = [perturbed_prompt(config, asked, clean, ours, 1, i)["pixel_values"] for i in range(8)]
    black = torch.stack([(view == -1).float().mean(-1) for view in views])
    assert {*black.flatten().tolist()} == {0.0, 1.0}


@pytest.mark.parametrize(
    ("problem", "ours", "theirs"),
    [
        ("  <image>\nWhat?  \n", ["image", "What?  "], ["image", "\nWhat?"]),
        ("See <image>\n\n<image> ?", ["See ", "image", "image", " ?"], ["See ", "image", "\n\n", "image", " ?"]),
    ],
)
def test_question_text_is_stripped_at_both_ends_and_nowhere_else(problem, ours, theirs):
    asked = Sample("a", problem, [b""] * problem.count("<image>"), "1")
    for strip, expected in ((False, ours), (True, theirs)):
        (turn,) = messages(asked, "", strip=strip)
        found = [part.get("text", part["type"]) for part in turn["content"]]
        assert found == expected


def test_lengths_are_counted_of_what_is_shown():
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (75, 100, 3), np.uint8))
    asked = Sample("a", "<image>\nWhat?", [encoded(image)], "1")
    config = settings.load(None, ["mode=published", "data.max_pixels=2000"])
    lengths, before = PromptLengths(config), Before.of(config)
    lengths.count(asked)
    assert lengths.by_size
    expected = len(encode_sample(lengths.processor, "", asked, before)["input_ids"])
    assert lengths.count(asked) == expected
