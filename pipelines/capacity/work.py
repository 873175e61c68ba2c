"""What a run takes on given GPUs: memory, operations, time and disk, from arithmetic alone. Torch-free.

Operations are those of pipelines/model/policy.py: two for each weight of a matrix and token, and four for
each pair of positions, attention channel and layer (which pairs: pipelines/model/packing.py).
Memory is the worst case (every response as long as allowed), time and disk the expected case.
Bytes are bytes; shapes are those of pipelines/capacity/shapes.py.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cache, cached_property
from math import ceil, log2

from pipelines.capacity.gpus import Gpu
from pipelines.capacity.shapes import Shape, Vision
from pipelines.config.schema import Config
from pipelines.model import packing
from pipelines.objectives.table import (
    HIDDEN,
    PERCEPTION,
    PERTURBED,
    STORES,
    VIEWS,
    needs_two_views,
    passes,
    reads_twice,
    stored,
)

GIB = 2**30


# Assumptions, all told on the screen but for the small ones.
UTILISATION = 0.2
"""Of the peak, in our forward and backward passes: 16 % is estimated from the kernels of an update, counted
on a CUDA emulator (3B, one H100); no GPU has measured it."""
VLLM_UTILISATION = 0.4
"""Of the peak, in vLLM's prefill and decoding: a guess."""
BANDWIDTH_UTILISATION = 0.6
"""Of the memory's bandwidth, in decoding."""
INFORMATIVE = 0.5
"""Share of sampled groups that dynamic sampling keeps."""
TEXT_TOKENS = 160
"""Of a prompt: question, instruction and chat template."""
MAX_SEQUENCES = 512
"""Decoded together by one vLLM engine, at most: it is told so, or would try itself on 1,024."""
LAUNCH_S = 0.045
"""Least time of a decoding step of transformers: 2,450 small kernels at 3B, counted on a CUDA emulator,
started one by one (40 to 50 ms)."""
OVERHEAD = 2 * GIB
"""CUDA context, NCCL's buffers, fragmentation."""
VLLM_WORKSPACE = 4 * GIB
"""vLLM's activations and CUDA graphs, inside its share: it tries its largest batch (16,384 tokens, as
many of images, ``MAX_SEQUENCES`` to sample) as it starts; 3 to 4 GiB by its source, not measured."""
SLEEP_LEVEL = 1
"""How vLLM sleeps: its weights wait in pinned memory. At level 2 they are dropped and its buffers saved,
but not what its runner has beside them in the same memory: M-RoPE positions that CUDA graphs read past the
end of a batch, the sampler's state."""
VLLM_ASLEEP = 2 * GIB
"""What it keeps while others compute: CUDA graphs and NCCL's buffers, 1 to 3 GiB."""
BUCKETS = 2 * 10**9
"""Bytes that DeepSpeed reduces gradients in, and gathers ZeRO-3's live weights in (its defaults)."""
LOGITS_ELEMENTS, LOGITS_ALIVE = 2**24, 5
"""Numbers of one tile of logits, and such tensors alive at once (pipelines/model/divergence.py)."""
SORTED_BYTES = 40
"""Of a number of logits while a token is drawn: the softmax sorted, its places, sums in float64."""
PROMPT_CACHE = 4 * GIB
"""Encoded prompts that a rank keeps in the machine's memory (pipelines/model/prompts.py)."""
TEXT_BYTES = 4
"""Of a response's text, for each token."""
HELD_BYTES = {PERCEPTION: 4 + 1 / 8, VIEWS: 24, HIDDEN: 8}
"""Of a token that is scored, by what a step holds: S and a bit, six numbers, two."""
LOOK_BYTES = 84
"""Of a token that is kept to be looked at: seven texts and fourteen numbers (pipelines/score/looks.py)."""
PNG_BYTES = 2
"""Of a pixel of a photograph as PNG; half of them black, less."""


def pinned(size: float) -> float:
    """Bytes of a block of pinned memory: torch takes the next power of two, and never gives it back."""
    return 2.0 ** ceil(log2(size))


def image_tokens(vision: Vision, pixels: float) -> int:
    """Tokens that an image of this area becomes."""
    return ceil(pixels / (vision.patch * vision.merge) ** 2)


@dataclass(frozen=True)
class Flops:
    """Operations, by where they happen."""

    vision: float = 0
    layers: float = 0
    attention: float = 0
    head: float = 0

    @property
    def total(self) -> float:
        return sum(vars(self).values())

    def times(self, factor: float) -> Flops:
        return Flops(*(factor * getattr(self, f.name) for f in fields(self)))

    def plus(self, other: Flops) -> Flops:
        return Flops(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


def vision_flops(vision: Vision, tokens: float) -> float:
    """A forward pass of the tower and projector over one image of so many (merged) tokens."""
    patches = tokens * vision.merge**2
    matrices = vision.embed_matrix + vision.layers * vision.layer_matrices
    window = min((vision.window // vision.patch) ** 2, patches)
    seen = vision.full_layers * patches + (vision.layers - vision.full_layers) * window
    merging = 2 * vision.merger_matrices * tokens * (1 + vision.deepstack)
    return 2 * matrices * patches + merging + 4 * vision.hidden * patches * seen


@cache
def costs(shape: Shape, images: float) -> packing.Costs:
    """Operations of a token, a pair of positions, and an image of so many tokens."""
    return packing.Costs(
        token=2 * shape.layers * shape.layer_matrices,
        pair=4 * shape.layers * shape.heads * shape.head_dim,
        image=vision_flops(shape.vision, images) if images else 0,
    )


@dataclass(frozen=True)
class Lengths:
    """Tokens of a prompt, of its image, and of a response."""

    prompt: float
    image: float
    response: float


def lengths(config: Config, shape: Shape, response: float | None) -> tuple[Lengths, Lengths]:
    """Expected and longest. Without pixel limits a prompt has ``data.max_prompt_tokens``."""
    data, most = config.data, config.rollout.max_new_tokens
    low, high = data.min_pixels, data.max_pixels
    if low is None or high is None:
        images = [float(max(data.max_prompt_tokens - TEXT_TOKENS, data.max_prompt_tokens // 2))] * 2
        prompts = [float(data.max_prompt_tokens)] * 2
    else:
        images = [float(image_tokens(shape.vision, p)) for p in ((low + high) / 2, high)]
        prompts = [min(n + TEXT_TOKENS, float(data.max_prompt_tokens)) for n in images]
    mean = min(response or most / 2, most)
    return Lengths(prompts[0], images[0], mean), Lengths(prompts[1], images[1], float(most))


def group_flops(shape: Shape, at: Lengths, samples: int, shared: bool) -> Flops:
    """A forward pass over a prompt and its responses: one row, or one each (pipelines/model/packing.py)."""
    each, fed = costs(shape, at.image), [at.response - 1] * samples  # a last token is not fed
    return Flops(
        vision=each.image * (1 if shared else samples),
        layers=each.token * packing.tokens(at.prompt, fed, shared),
        attention=each.pair * packing.pairs(at.prompt, fed, shared),
        head=2 * shape.head_matrix * samples * at.response,
    )


def rollout_flops(shape: Shape, at: Lengths, samples: int) -> tuple[Flops, Flops]:
    """One group: reading the prompt once, and decoding its responses."""
    tokens, each = samples * at.response, costs(shape, at.image)
    read = Flops(each.image, each.token * at.prompt, each.pair * at.prompt**2 / 2, 2 * shape.head_matrix)
    decode = Flops(
        layers=each.token * tokens,
        attention=each.pair * tokens * (at.prompt + at.response / 2),
        head=2 * shape.head_matrix * tokens,
    )
    return read, decode


def update_flops(config: Config, forward: Flops) -> Flops:
    """Forward, recomputation and backward (twice the forward) of one group, given its forward.

    The head is computed again in any case (pipelines/model/divergence.py); a frozen tower is not
    differentiated. With LoRA the backward pass has no gradients of the matrices to compute; the
    adapters' own operations are left out.
    """
    update = config.update
    again = 4 if update.gradient_checkpointing else 3
    adapted = 1 if update.lora_rank else 0
    seen = 1 if update.freeze_vision or adapted else again
    reference = 1 if update.kl_coefficient else 0
    return Flops(
        forward.vision * (seen + reference),
        forward.layers * (again - adapted + reference),
        forward.attention * (again + reference),
        forward.head * (4 - adapted + reference),
    )


# -- memory ----------------------------------------------------------------------------------------


def layer_activations(hidden: int, ffn: int, queries: int, keys: int, kind: str) -> float:
    """Bytes that a layer saves of each token for its backward pass.

    Two norms, the gated layer, and queries, keys and values repeated to all heads; counted in
    transformers' layers with saved-tensor hooks. Mixed precision's norms are in float32.
    """
    if kind == "float32":
        return 24 * hidden + 16 * ffn + 20 * queries + 8 * keys
    norms = 16 if kind == "bfloat16" else 28
    return norms * hidden + 8 * ffn + 10 * queries + 4 * keys


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU, where a stage takes most; ``copies`` are autocast's, in bfloat16."""

    weights: float = 0
    copies: float = 0
    optimizer: float = 0
    gradients: float = 0
    activations: float = 0
    logits: float = 0
    vllm_weights: float = 0
    kv_cache: float = 0
    overhead: float = OVERHEAD

    @property
    def total(self) -> float:
        return sum(vars(self).values())


class Run:
    """The arithmetic of one config on ``count`` GPUs.

    Args:
        response: expected tokens of a response; none: half of the longest.
    """

    def __init__(self, config: Config, shape: Shape, gpu: Gpu, count: int, response: float | None = None) -> None:
        self.config, self.shape, self.gpu, self.count = config, shape, gpu, count
        self.deepspeed = config.update.engine != "torch"
        self.world = count if self.deepspeed else 1
        """Ranks; the engine ``torch`` updates on one GPU."""
        self.expected, self.longest = lengths(config, shape, response)
        self.own_vllm = config.rollout.engine == "vllm" and not config.rollout.server
        """Whether vLLM shares these GPUs."""
        self.half = config.model.dtype == "bfloat16"
        frozen = shape.vision.parameters if config.update.freeze_vision else 0
        self.trained = shape.parameters - frozen
        if config.update.lora_rank:
            self.trained = shape.lora_parameters(config.update.lora_rank)
        self.samples = config.rollout.samples_per_prompt
        self.packed = self._shared(self.expected)
        self.packed_longest = self._shared(self.longest)
        self.parallel = min(config.rollout.tensor_parallel, self.world)

    def _shared(self, at: Lengths) -> bool:
        """Whether responses of these lengths share a row."""
        each, fed = costs(self.shape, at.image), [at.response - 1] * self.samples
        return packing.share(self.config.model.shared_prefix, each, at.prompt, fed)

    # Trainer's state ----------------------------------------------------------------------------

    @cached_property
    def kind(self) -> str:
        """How activations are kept: float32, bfloat16, or mixed (autocast over float32 weights)."""
        return ("bfloat16" if self.deepspeed else "mixed") if self.half else "float32"

    @cached_property
    def value(self) -> int:
        """Bytes of a number that the trainer computes with."""
        return 2 if self.half and self.deepspeed else 4

    def state(self) -> dict[str, float]:
        """Bytes per GPU of weights, optimizer (with master weights) and gradients, by ZeRO stage.

        bfloat16: 2 + 12 + 4 for each parameter (DeepSpeed adds gradients up in float32), float32:
        4 + 8 + 4. A reference model is whole, in float32.
        """
        update, shared = self.config.update, self.world
        stage = update.zero_stage if self.deepspeed else 0
        optimizer = (12 if self.value == 2 else 8) * self.trained / (shared if stage else 1)
        whole = self.shape.parameters + (self.trained if update.lora_rank else 0)
        weights = self.value * whole / (shared if stage == 3 else 1)
        gradients = 4 * self.trained / (shared if stage >= 2 else 1)
        if self.deepspeed:
            gradients += min(BUCKETS, self.value * self.trained)
        if update.offload and self.deepspeed:
            optimizer, weights = 0.0, 0.0 if stage == 3 else weights
        if update.kl_coefficient:
            weights += 4.0 * self.shape.parameters
        return {"weights": weights, "optimizer": optimizer, "gradients": gradients}

    def copies(self, *, saved: bool = False) -> float:
        """Bytes of the bfloat16 copies that autocast makes of float32 matrices in a forward pass.

        It keeps those of trained weights to the pass's end. Of frozen ones there is one at a time, but
        for those that a backward pass without checkpointing needs (``saved``).
        """
        shape, adapted = self.shape, bool(self.config.update.lora_rank)
        if self.kind != "mixed":
            return 0.0
        if adapted and not saved:
            return 2.0 * shape.hidden * shape.intermediate + 2 * self.trained
        ends = (1 if shape.tied else 2) * shape.head_matrix  # these never go through autocast
        kept = shape.language_parameters + self.trained if adapted else self.trained
        return 2.0 * (kept - ends)

    # What passes through ------------------------------------------------------------------------

    def _rows(self, groups: int) -> tuple[float, float]:
        """(rows, tokens of each) of a forward pass over so many longest groups."""
        at = self.longest
        if self.packed_longest:
            return groups, at.prompt + self.samples * at.response
        return groups * self.samples, at.prompt + at.response

    def _groups(self, most: int, budget: int | None) -> int:
        """Longest groups that a pass takes."""
        if budget is None:
            return most
        rows, length = self._rows(1)
        return max(1, min(most, int(budget // (rows * length))))

    def _common(self, groups: int) -> float:
        """What responses see in a shared row (a byte a pair, and a copy in the type of the scores), keys
        and values of each response behind its prompt's, repeated to all heads; states of both views."""
        at, number = self.longest, 2 if self.half else 4
        responses = groups * self.samples
        seen = responses * at.response * (at.prompt + at.response) * (1 + number)
        width = self.shape.heads * self.shape.head_dim
        behind = 2 * responses * (at.prompt + at.response) * width * number
        states = 3 * responses * at.response * self.shape.hidden * number
        return states + (seen + behind if self.packed_longest else 0)

    def _one_layer(self, tokens: float, images: float) -> float:
        """Alive at once in a pass without gradient: a layer's, not all layers'; the tower's come first.

        Args:
            images: of the tokens' prompts.
        """
        shape, seen = self.shape, self.shape.vision
        text = tokens * (6 * shape.hidden + 3 * shape.intermediate)
        patches = images * self.longest.image * seen.merge**2
        tower = patches * (6 * seen.hidden + 3 * seen.intermediate)
        return max(text, tower) * (2 if self.half else 4)

    def score_activations(self, groups: int) -> float:
        """Of a pass over so many groups, without gradient."""
        rows, length = self._rows(groups)
        return self._one_layer(rows * length, rows) + self._common(groups)

    def update_activations(self, groups: int) -> tuple[float, float]:
        """Saved for the backward pass, and alive of one layer in it; with checkpointing each layer's input
        is saved, and one layer's all alive, and half as much again for its gradients."""
        shape, seen, update = self.shape, self.shape.vision, self.config.update
        rows, length = self._rows(groups)
        patches = rows * self.longest.image * seen.merge**2
        queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        layer = layer_activations(shape.hidden, shape.intermediate, queries, keys, self.kind)
        eye = layer_activations(seen.hidden, seen.intermediate, seen.hidden, seen.hidden, self.kind)
        frozen = update.freeze_vision or update.lora_rank  # nothing of the tower is saved
        common = self._common(groups)
        if not update.gradient_checkpointing:
            saved = rows * length * shape.layers * layer
            return saved + (0 if frozen else patches * seen.layers * eye) + common, 0.0
        inputs = self.value * (
            rows * length * shape.layers * shape.hidden + (0 if frozen else patches * seen.layers * seen.hidden)
        )
        return inputs + common, 1.5 * max(rows * length * layer, 0 if frozen else patches * eye)

    def vllm(self) -> tuple[float, float]:
        """Weights and KV cache that vLLM has of a GPU; the cache is below 0 where nothing is left."""
        weights = (2 if self.half else 4) * self.shape.parameters / self.parallel
        share = self.config.rollout.memory_fraction * self.gpu.memory * GIB
        return weights, share - weights - VLLM_WORKSPACE

    @cached_property
    def kv_bytes(self) -> float:
        """Of one token in the KV cache, on each GPU of an engine."""
        heads = max(1, self.shape.kv_heads / self.parallel)
        return 2 * self.shape.layers * heads * self.shape.head_dim * (2 if self.half else 4)

    # Stages -------------------------------------------------------------------------------------

    def memory(self) -> dict[str, Memory]:
        """By stage, where it takes most; of a step after the first, when there is an optimizer.

        Gradients are gone after the optimizer's step.
        """
        return {"rollout": self.rollout_memory(), "score": self.score_memory(), "update": self.update_memory()}

    def kept(self) -> Memory:
        """What is there in every stage."""
        state = self._state
        asleep = VLLM_ASLEEP if self.own_vllm else 0
        return Memory(weights=state["weights"], optimizer=state["optimizer"], overhead=OVERHEAD + asleep)

    @property
    def _live(self) -> float:
        """Of the layers that ZeRO-3 has put together."""
        return min(self.value * self.shape.parameters, BUCKETS) if self.divided else 0

    @cached_property
    def _state(self) -> dict[str, float]:
        return self.state()

    def rollout_memory(self) -> Memory:
        """While responses are sampled, or weights handed to vLLM, which has no KV cache then."""
        config, shape, at, kept = self.config, self.shape, self.longest, self.kept()
        if self.own_vllm:
            weights, cache = self.vllm()
            # The largest weight on its way to vLLM, which ZeRO-3 gathers and copies first; or a layer
            # merged with its adapters in float32, the last matrix with its parts.
            moved = (2.0 + (2 * self.value if self.divided else 0)) * shape.head_matrix
            if config.update.lora_rank:
                merged = 4.0 * shape.layer_matrices + 8.0 * shape.hidden * shape.intermediate
                moved = max(moved, merged)
            kept = replace(kept, vllm_weights=weights)
            return max(
                replace(kept, kv_cache=max(cache, 0.0) + VLLM_WORKSPACE, overhead=OVERHEAD),
                replace(kept, activations=moved),
                key=lambda memory: memory.total,
            )
        if config.rollout.engine != "hf":
            return kept
        count = config.rollout.batch_prompts
        whole = self.value * shape.parameters if self.divided else 0
        tokens = count * (at.prompt + self.samples * at.response)  # a prompt is kept once
        drawn = min(LOGITS_ELEMENTS, count * self.samples * shape.vocab)
        return replace(
            kept,
            weights=kept.weights + whole,
            copies=self.copies(),
            activations=self._one_layer(count * at.prompt, count),
            kv_cache=tokens * self.kv_bytes,
            logits=SORTED_BYTES * drawn,
        )

    def score_memory(self) -> Memory:
        """In the forward pass, or in the head."""
        score, kept = self.config.score, self.kept()
        kept = replace(kept, weights=kept.weights + self._live)
        groups = self._groups(score.batch_prompts, score.batch_tokens)
        return max(
            replace(kept, copies=self.copies(), activations=self.score_activations(groups)),
            replace(kept, logits=self._tiles, activations=self._common(groups)),
            key=lambda memory: memory.total,
        )

    def update_memory(self) -> Memory:
        """At the end of the forward pass, in the layers' backward pass, or at its end, the embedding."""
        shape, update, kept = self.shape, self.config.update, self.kept()
        kept = replace(kept, weights=kept.weights + self._live, gradients=self._state["gradients"])
        groups = self._groups(
            min(update.micro_batch_prompts, ceil(update.batch_prompts / self.world)), update.micro_batch_tokens
        )
        saved, layer = self.update_activations(groups * self._trained_views)
        again = update.gradient_checkpointing
        copies = self.copies(saved=not again)
        # The head's gradient adds up in float32; in the end the embedding's is there too, and where
        # both are one weight, their sum.
        first = 0.0 if update.lora_rank else (4.0 + (2 if self.value == 2 else 0)) * shape.head_matrix
        last = (2.0 if shape.tied else 1.0) * self.value * shape.head_matrix if first else 0.0
        one = 2.0 * shape.layer_matrices if again and copies else copies
        return max(
            replace(kept, copies=copies, activations=saved, logits=self._tiles),
            replace(kept, copies=one, activations=saved + layer, logits=self._tiles, gradients=kept.gradients + first),
            replace(kept, gradients=kept.gradients + first + last),
            key=lambda memory: memory.total,
        )

    @property
    def _tiles(self) -> float:
        return 4.0 * LOGITS_ALIVE * LOGITS_ELEMENTS

    @cached_property
    def divided(self) -> bool:
        """Whether a rank has a part of each weight (ZeRO-3)."""
        return self.deepspeed and self.config.update.zero_stage == 3

    # The machine's memory -----------------------------------------------------------------------

    def host(self, ranks: int) -> dict[str, float]:
        """Bytes of the first machine's memory for so many ranks, when most is there: rank 0 has the whole
        model in float32, as it hands a loaded one on or writes a checkpoint (whose moments follow one by
        one), while the ranks keep what is offloaded, asleep or encoded."""
        here, update = min(ranks, self.world), self.config.update
        found = {"weights": 4.0 * self.shape.parameters}
        if self.own_vllm and SLEEP_LEVEL == 1:
            found["vLLM asleep"] = here * self._asleep()
        if update.offload and self.deepspeed:
            part = self.trained / self.world  # masters and gradients are pinned, moments are not
            each = 2 * pinned(4.0 * part) + 8.0 * part
            if self.divided:
                each += pinned(self.value * self.shape.parameters / self.world)
            found["offloaded"] = here * each
        found["prompts"] = here * float(PROMPT_CACHE)
        return found

    def _asleep(self) -> float:
        """Bytes that one rank's vLLM has in pinned memory: a block for each of its large weights, which
        joins queries, keys and values, and gate and up; small ones go by 20 MiB in blocks of 32."""
        shape, number = self.shape, 2.0 if self.half else 4.0
        channels = shape.head_dim * (shape.heads + 2 * shape.kv_heads)
        layer = (
            shape.hidden * channels,
            shape.hidden * shape.heads * shape.head_dim,
            2 * shape.hidden * shape.intermediate,
            shape.hidden * shape.intermediate,
        )
        large = [*layer * shape.layers, *[shape.head_matrix] * (1 if shape.tied else 2)]
        small = max(0, shape.parameters - sum(large))
        share = number / self.parallel
        return sum(pinned(share * size) for size in large) + share * small * 32 / 20

    # Work and time ------------------------------------------------------------------------------

    def sampled(self) -> float:
        """Groups sampled for a step."""
        wanted = self.config.rollout.prompts_per_step
        return wanted / INFORMATIVE if self.config.rollout.dynamic_sampling else wanted

    def flops(self) -> dict[str, Flops]:
        """Operations of a step, by stage."""
        config, at = self.config, self.expected
        groups = config.rollout.prompts_per_step
        forward = group_flops(self.shape, at, self.samples, self.packed)
        views = forward
        if reads_twice(config):
            packed = self.packed and config.score.mask_per == "prompt"
            views = forward.plus(group_flops(self.shape, at, self.samples, packed))
        read, decoded = rollout_flops(self.shape, at, self.samples)
        return {
            "rollout": read.plus(decoded).times(self.sampled()),
            "score": views.times(groups),
            "update": update_flops(config, forward).times(self._trained_views * groups * config.update.epochs),
        }

    @property
    def _trained_views(self) -> int:
        """Passes of the update with gradient: two where the objective reads the perturbed view so."""
        return 2 if PERTURBED in passes(None, self.config.update) else 1

    def seconds(self) -> dict[str, float]:
        """Expected seconds of a step, by stage."""
        speed = self._speed() * self.world
        flops = self.flops()
        return {
            "rollout": self._rollout_seconds(),
            "score": flops["score"].total / speed,
            "update": flops["update"].total / speed,
        }

    def _speed(self, utilisation: float = UTILISATION) -> float:
        """Operations per second of one GPU."""
        return 1e12 * utilisation * (self.gpu.bfloat16 if self.half else self.gpu.float32)

    def _rollout_seconds(self) -> float:
        """Reading prompts at the speed of matrices; each step of decoding reads weights and KV cache."""
        config, at = self.config, self.expected
        engines = self.world / self.parallel
        sequences = self.sampled() * self.samples / engines
        bandwidth = 1e9 * BANDWIDTH_UTILISATION * self.gpu.bandwidth
        read, decoded = rollout_flops(self.shape, at, self.samples)
        speed = self._speed(UTILISATION if config.rollout.engine == "hf" else VLLM_UTILISATION)
        prefill = read.total * self.sampled() / (speed * self.world)
        one = decoded.total / (self.samples * at.response)  # operations of a token
        inside = at.prompt + at.response / 2
        if config.rollout.engine == "hf":
            together: float = min(config.rollout.batch_prompts * self.samples, sequences)
            steps = ceil(sequences / together) * float(config.rollout.max_new_tokens)
            weights, least = 4.0 * self.shape.language_parameters, LAUNCH_S
        else:
            weights, cache = self.vllm()
            room = max(cache, 0.0) / self.kv_bytes / (at.prompt / self.samples + at.response)
            together = max(1.0, min(MAX_SEQUENCES, sequences, room))
            steps, least = sequences * at.response / together, 0.0
        moved = (weights + together * inside * self.kv_bytes) / bandwidth
        step = max(moved, together * one / (speed * self.parallel), least)
        tail = max(0.0, config.rollout.max_new_tokens - steps) * max(weights / bandwidth, least)
        return prefill + steps * step + tail

    def disk(self) -> dict[str, float]:
        """Bytes of a step's rollouts (id, log-prob, text), scores (two numbers, and what they hold besides)
        and looks, before compression; of a checkpoint (float32 weights, two moments, adapters); of the run."""
        config = self.config
        tokens = config.rollout.prompts_per_step * self.samples * self.expected.response
        held = sum(HELD_BYTES[kind] for kind in STORES[stored(config)])
        step = tokens * (4 + 4 + TEXT_BYTES + 8 + held) + self._looks()
        moments = 12.0 if config.update.lora_rank else 8.0
        checkpoint = 4.0 * self.shape.parameters + moments * self.trained
        kept = config.checkpoint.keep_last + config.checkpoint.keep_best
        run = config.run.steps * step + min(kept, self._checkpoints()) * checkpoint
        return {"step": step, "checkpoint": checkpoint, "run": run}

    def _looks(self) -> float:
        """Bytes of a step's groups that are kept to be looked at: tokens, and both views' images."""
        score, vision = self.config.score, self.shape.vision
        groups = min(score.looks, self.config.rollout.prompts_per_step)
        if PERCEPTION not in STORES[stored(self.config)]:
            groups = 0  # but of the few steps that are watched
        views = self.samples if score.mask_per == "response" else 1
        images = 1 + (views if needs_two_views(self.config) else 0)
        pixels = self.expected.image * (vision.patch * vision.merge) ** 2
        tokens = self.samples * self.expected.response
        return groups * (tokens * LOOK_BYTES + images * pixels * PNG_BYTES)

    def _checkpoints(self) -> int:
        return ceil(self.config.run.steps / self.config.checkpoint.every)
