"""The sizes of a vision-language model, and how many weights they make. Torch-free.

Qwen2.5-VL and Qwen3-VL are written out; other families are counted (pipelines/capacity/counts.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Vision:
    """The vision tower and its projector. Lengths of patches and windows in pixels."""

    layers: int
    hidden: int
    intermediate: int
    out: int
    patch: int = 14
    merge: int = 2
    """Patches along one side of what becomes one token."""
    temporal: int = 2
    full_layers: int = 4
    """Layers whose patches see the whole image; the others see their window."""
    window: int = 112
    qwen3: bool = False
    """Qwen3-VL's tower: no gate, LayerNorm, learned positions, deep-stack projectors."""
    positions: int = 0
    deepstack: int = 0

    @cached_property
    def layer_matrices(self) -> int:
        """Weights of one layer's matrices."""
        return (4 * self.hidden + (2 if self.qwen3 else 3) * self.intermediate) * self.hidden

    @property
    def embed_matrix(self) -> int:
        return 3 * self.temporal * self.patch**2 * self.hidden

    @property
    def merger_matrices(self) -> int:
        """Weights of one projector's matrices."""
        wide = self.merge**2 * self.hidden
        return wide * (wide + self.out)

    @cached_property
    def parameters(self) -> int:
        h, f, wide = self.hidden, self.intermediate, self.merge**2 * self.hidden
        norm = 2 * h if self.qwen3 else h
        biases = 4 * h + (f + h if self.qwen3 else 2 * f + h)
        blocks = self.layers * (self.layer_matrices + biases + 2 * norm)
        ends = self.embed_matrix + (h if self.qwen3 else 0) + self.positions * h
        merger = self.merger_matrices + wide + self.out
        return blocks + ends + norm + merger + self.deepstack * (merger + 2 * wide)


@dataclass(frozen=True)
class Shape:
    """A language model with a vision tower in front."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool
    vision: Vision
    qwen3: bool = False
    """Qwen3's layers: queries and keys normalised, no biases."""

    @cached_property
    def layer_matrices(self) -> int:
        """Weights of one layer's matrices; each costs two operations a token."""
        attention = self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return self.hidden * (attention + 3 * self.intermediate)

    @property
    def head_matrix(self) -> int:
        return self.vocab * self.hidden

    @property
    def language_parameters(self) -> int:
        queries = self.head_dim * (self.heads + 2 * self.kv_heads)
        small = 2 * self.hidden + (2 * self.head_dim if self.qwen3 else queries)
        matrices = (1 if self.tied else 2) * self.head_matrix
        return matrices + self.layers * (self.layer_matrices + small) + self.hidden

    @cached_property
    def parameters(self) -> int:
        return self.language_parameters + self.vision.parameters

    def lora_parameters(self, rank: int) -> int:
        """Weights of adapters beside every linear layer of the language model (update/lora.py)."""
        queries, keys = self.head_dim * self.heads, self.head_dim * self.kv_heads
        sides = 2 * (self.hidden + queries) + 2 * (self.hidden + keys)
        return self.layers * rank * (sides + 3 * (self.hidden + self.intermediate))
