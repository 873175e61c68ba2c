"""A sample as the model sees it: chat messages, the processor's tensors, and their cache."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from inspect import signature
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image

from pipelines.config.schema import PROBLEM, Config, ModelConfig
from pipelines.config.settings import shipped_config
from pipelines.disk.records import Sample
from pipelines.errors import UserError
from pipelines.model import chat_template
from pipelines.model.control_tokens import IMAGE, control_tokens, without_tokens
from pipelines.model.files import check_folder, reading
from pipelines.model.images import limited_size, open_image
from pipelines.model.prefetch import Key, Prefetcher
from pipelines.model.torchvision_ops import ensure_importable

HUB_TIMEOUT_S = 10.0
CACHED_BYTES = 4 * 2**30
"""Of encoded prompts: an image of a million pixels has 24 MB."""


def model_location(model: ModelConfig) -> str:
    """The folder or hub id to load from; ``tiny`` is the one shipped with the package."""
    return str(shipped_config("tiny_model")) if model.path == "tiny" else model.path


def load_processor(config: Config, location: str | Path | None = None) -> Any:
    """The model's AutoProcessor, with the config's pixel limits, if images do not meet them before.

    Raises:
        UserError: the folder or hub id cannot be loaded.
    """
    ensure_importable()
    from transformers import AutoProcessor

    where = str(location or model_location(config.model))
    check_folder(where)
    with reading(where):
        processor: Any = AutoProcessor.from_pretrained(
            where, revision=config.model.revision, local_files_only=only_local(where), trust_remote_code=False
        )
    if not hasattr(processor, "image_processor"):
        raise UserError(
            f"model.path {where}",
            "is a model of text alone: it has no image processor.",
            "Name a vision-language model, such as Qwen/Qwen2.5-VL-3B-Instruct.",
        )
    if not config.published.resize_first:
        limit_pixels(processor.image_processor, config.data)
    chat_template.check(processor, where)
    _check_picture(processor, where)
    return processor


def _check_picture(processor: Any, where: str) -> None:
    """See that the processor can read a picture and a question.

    Raises:
        UserError: it cannot, so no question is at fault.
    """
    asked = Sample("", f"{IMAGE}What is this?", [], "")
    try:
        encode_images(processor, "", asked, [Image.new("RGB", (128, 96))])
    except Exception as error:  # its own checks, and whatever wrong numbers in its files lead to
        detail = (str(error).strip().splitlines() or ["no reason told"])[0]
        raise UserError(
            f"model.path {where}",
            f"its processor cannot read a picture ({type(error).__name__}: {detail}).",
            "Take the processor's files and the chat template that came with the weights.",
        ) from error


@cache
def only_local(where: str) -> bool:
    """Whether to look on this machine only: a folder, or a hub that cannot be reached.

    Asked once: transformers itself would try an unreachable hub for minutes, file by file.
    """
    if Path(where).is_dir():
        return True
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        HfApi().model_info(where, timeout=HUB_TIMEOUT_S)
    except (HfHubHTTPError, ValueError):  # reached, or no hub id: transformers says what is wrong
        return False
    except Exception:  # the HTTP client's own types, which change between versions
        return True
    return False


class PixelLimits(Protocol):
    """Images are resized to between these areas; None leaves the processor's own."""

    @property
    def min_pixels(self) -> int | None: ...

    @property
    def max_pixels(self) -> int | None: ...


class Asking(PixelLimits, Protocol):
    """How questions are shown: sizes of images, and what is said besides the question."""

    @property
    def instruction(self) -> str: ...

    @property
    def system_prompt(self) -> str: ...


def limit_pixels(image_processor: Any, pixels: PixelLimits, section: str = "data") -> None:
    """Set these limits on a processor that resizes by area.

    Args:
        section: the config's section that they come from, for the message.

    Raises:
        UserError: limits are set, and the processor has no such notion (it resizes to a fixed size).
    """
    limits = {"shortest_edge": pixels.min_pixels, "longest_edge": pixels.max_pixels}
    given = {name: value for name, value in limits.items() if value is not None}
    if not given:
        return
    size = {name: image_processor.size[name] for name in limits if image_processor.size[name]}
    resize = getattr(sys.modules[type(image_processor).__module__], "smart_resize", None)
    if len(size) < len(limits) or resize is None:
        raise UserError(
            f"{section}.min_pixels, {section}.max_pixels",
            f"{type(image_processor).__name__} does not limit images by area.",
            "Leave them unset." if section == "data" else "Use --profile matched.",
        )
    if "num_frames" in signature(resize).parameters:  # GLM-4V counts the pixels of all frames
        given = {name: value * image_processor.temporal_patch_size for name, value in given.items()}
    image_processor.size = size | given


@dataclass(frozen=True)
class Before:
    """What becomes of a question before the processor sees it.

    Attributes:
        strip: white space goes from both ends of its text and from nowhere else.
        pixels: (least, most) that its images are resized into; None: they are left alone.
    """

    strip: bool = False
    pixels: tuple[int | None, int | None] | None = None

    @classmethod
    def of(cls, config: Config) -> Before:
        """As the settings ``published`` say."""
        limits = (config.data.min_pixels, config.data.max_pixels)
        asked = config.published
        return cls(asked.strip_question, limits if asked.resize_first else None)

    def size(self, height: int, width: int) -> tuple[int, int]:
        """What an image of this size becomes."""
        return limited_size(height, width, *self.pixels) if self.pixels else (height, width)

    def images(self, sample: Sample) -> list[Image.Image]:
        """The sample's images, RGB."""
        found = []
        for image in map(open_image, sample.images):
            height, width = self.size(image.height, image.width)
            if (width, height) != image.size:
                image = image.resize((width, height), Image.Resampling.BICUBIC)
            found.append(image)
        return found


NOTHING = Before()


def messages(
    sample: Sample, instruction: str, processor: Any = None, *, strip: bool = False, system: str = ""
) -> list[dict[str, Any]]:
    """The chat: the system's turn, if there is one; images where ``<image>`` stands (or first), the question, the
    instruction after it or around it.

    Args:
        instruction: where it holds ``{problem}``, the question's text goes there, by plain replacement.
        strip: of ``Before``; false: line breaks beside images go, and text that is blank.
        processor: the model's, whose control tokens stay text in the question; None: whoever reads the
            turn is not known, and only the commonest are pulled apart. The instruction is the user's own.
    """
    tokens = frozenset() if processor is None else control_tokens(processor)
    problem = sample.problem.strip() if strip else sample.problem
    parts = [without_tokens(part, tokens) for part in problem.split(IMAGE)]
    first = len(sample.images) if len(parts) == 1 else 0
    parts = [""] * first + parts
    content: list[dict[str, Any]] = []
    for index, part in enumerate(parts):
        if index:
            content.append({"type": "image"})
        if strip and part:
            content.append({"type": "text", "text": part})
        elif part.strip():
            content.append({"type": "text", "text": part.strip("\n") if index else part})
    before, found, after = instruction.partition(PROBLEM)
    if not found:
        before, after = "", instruction and f"\n\n{instruction}"
    if before:
        content.insert(first, {"type": "text", "text": before})
    if after:
        content.append({"type": "text", "text": after})
    own = [{"role": "system", "content": [{"type": "text", "text": system}]}] if system else []
    return [*own, {"role": "user", "content": content}]


class PromptEncoder:
    """Turns samples into the processor's tensors, each prompt once.

    Holds the latest encoded prompts, ``capacity`` of them or ``CACHED_BYTES``: rollout, scoring and
    update of one step ask for the same ones.

    Args:
        workers: processes that encode what is expected; 0: nothing is done before it is asked for.
        before: what is done to questions first.
        system: the system's turn.

    Raises:
        UserError: the model's chat template has no place for a system's turn, and there is one.
    """

    def __init__(
        self,
        processor: Any,
        instruction: str,
        capacity: int = 1024,
        workers: int = 0,
        before: Before = NOTHING,
        system: str = "",
    ) -> None:
        self.processor, self.instruction, self.capacity = processor, instruction, capacity
        self.before, self.system = before, system
        if system:
            chat_template.check_system(processor, messages(Sample("", "?", [], ""), "", system=system), system)
        self._cache: dict[Key, dict[str, torch.Tensor]] = {}
        self._bytes = 0
        encode = partial(encode_sample, processor, instruction, before=before, system=system)
        self._prefetcher = Prefetcher(encode, workers) if workers else None

    def expect(self, samples: Sequence[Sample]) -> None:
        """These will be asked for next: let the workers begin."""
        if self._prefetcher and samples:
            keyed = [(_key(sample), sample) for sample in samples]
            self._prefetcher.expect([(key, s) for key, s in keyed if key not in self._cache])

    def encode(self, sample: Sample) -> dict[str, torch.Tensor]:
        """``input_ids`` [L] and whatever the model's images need (``pixel_values``, grids ...)."""
        key = _key(sample)
        if key in self._cache:
            return self._cache[key]
        encoded = self._prefetcher.take(key) if self._prefetcher else None
        if encoded is None:
            encoded = encode_sample(self.processor, self.instruction, sample, self.before, self.system)
        self._bytes += _size(encoded)
        while self._cache and (len(self._cache) >= self.capacity or self._bytes > CACHED_BYTES):
            self._bytes -= _size(self._cache.pop(next(iter(self._cache))))
        self._cache[key] = encoded
        return encoded

    def close(self) -> None:
        """End the workers."""
        if self._prefetcher:
            self._prefetcher.close()

    def encode_images(self, sample: Sample, images: list[Image.Image]) -> dict[str, torch.Tensor]:
        """The same with these images in place of ``images(sample)``; not cached."""
        strip, system = self.before.strip, self.system
        return encode_images(self.processor, self.instruction, sample, images, strip=strip, system=system)

    def anew(self, capacity: int) -> PromptEncoder:
        """One that asks in the same way, and has nothing encoded yet."""
        return PromptEncoder(self.processor, self.instruction, capacity, before=self.before, system=self.system)

    def images(self, sample: Sample) -> list[Image.Image]:
        """The sample's images as the processor is given them, RGB."""
        return self.before.images(sample)

    def messages(self, sample: Sample) -> list[dict[str, Any]]:
        """The chat that the processor is given."""
        return messages(sample, self.instruction, self.processor, strip=self.before.strip, system=self.system)


def encode_sample(
    processor: Any, instruction: str, sample: Sample, before: Before = NOTHING, system: str = ""
) -> dict[str, torch.Tensor]:
    """A sample's tensors, its images decoded."""
    images = before.images(sample)
    return encode_images(processor, instruction, sample, images, strip=before.strip, system=system)


def encode_images(
    processor: Any,
    instruction: str,
    sample: Sample,
    images: list[Image.Image],
    *,
    strip: bool = False,
    system: str = "",
) -> dict[str, torch.Tensor]:
    """The processor's tensors of one chat, without the batch's axis where there is one per token."""
    chat = messages(sample, instruction, processor, strip=strip, system=system)
    text = chat_template.render(processor, chat)
    # A list for each text: of a flat one LLaVA-OneVision would take each image for a text of its own.
    shown = [images] if images else None
    batch = processor(text=[text], images=shown, return_tensors="pt")
    bos = processor.tokenizer.bos_token
    if bos and text.startswith(bos) and (batch["input_ids"] == processor.tokenizer.bos_token_id).sum() > 1:
        text = text.removeprefix(bos)  # the processor itself adds one, as PaliGemma's does
        batch = processor(text=[text], images=shown, return_tensors="pt")
    encoded = {n: value for n, value in batch.items() if n not in ("attention_mask", "labels")}
    for name in ("input_ids", "mm_token_type_ids", "token_type_ids"):
        if name in encoded:
            encoded[name] = encoded[name][0]
    return encoded


def _key(sample: Sample) -> Key:
    """A hash of what is encoded, text and images: two data sets may share ids, and questions too."""
    digest = hashlib.blake2b(digest_size=16)
    for part in (sample.problem.encode(errors="surrogatepass"), *sample.images):
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.digest()


def _size(encoded: dict[str, torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in encoded.values())
