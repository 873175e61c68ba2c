"""The config: every setting of a run, typed, documented and validated. Torch-free.

Each field's docstring is its help text, with its unit; whose number a value is, constants.csv beside this
file says, and the help adds it. "Paper" is arXiv 2510.09285 and docs/method.md has the formulas. Objects
are frozen: what a stage reads is what the file says. Reading files and overrides is in
``pipelines/config/settings.py``.

``unkeyed`` names the fields that change no result but for rounding (how work is batched, where it runs,
how long a run goes on; in bfloat16 rounding is seen: docs/gpu.md). They are left out of a step's key, so
that changing them redoes nothing. Those that reach a kernel's shape (``shapes``) are recorded in the step's
manifest: they move last bits.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

MOST_STEPS = 20_000
MOST_SAMPLES, MOST_TOKENS, MOST_PROCESSES = 10_000, 2**24, 4096
MOST_ROWS, MOST_PIXELS = 10**9, 10**9
"""No setting goes beyond these: what does is a slip, and would hang or fill memory before it fails."""


PROBLEM = "{problem}"
"""Where the question goes in an instruction that says so; any other brace is text."""


def _one_place(value: str | None) -> str | None:
    if value and value.count(PROBLEM) > 1:
        raise ValueError(f"{value.count(PROBLEM)} times {PROBLEM}: the question goes to one place")
    return value


KEY = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
"""What a key of responses may be called: ``accuracy``, ``reward``, a list that a reward returns."""


class Section(BaseModel):
    """A group of settings."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)
    unkeyed: ClassVar[frozenset[str]] = frozenset()
    shapes: ClassVar[frozenset[str]] = frozenset()
    introduced: ClassVar[dict[str, Any]] = {}
    """Fields that keys did not hold from the first -> the value that all had before. At this value they
    are left out of the key, so that folders made before keep theirs; it never changes."""

    def keyed(self, prefix: str) -> dict[str, Any]:
        """The fields that decide results, flattened to ``{"score.keep_fraction": 0.4}``."""
        flat: dict[str, Any] = {}
        for name in type(self).model_fields:
            value, key = getattr(self, name), f"{prefix}.{name}" if prefix else name
            if name in self.unkeyed:
                continue
            if name in self.introduced and value == self.introduced[name]:
                continue
            if isinstance(value, Section):
                flat |= value.keyed(key)
            else:
                flat[key] = list(value) if isinstance(value, tuple) else value
        return flat

    def shape(self, prefix: str) -> dict[str, Any]:
        """The fields that reach a kernel's shape, flattened in the same way."""
        return {f"{prefix}.{name}": getattr(self, name) for name in sorted(self.shapes)}


class GlyphsConfig(Section):
    """The embedded data: questions about small grids of real handwritten digits."""

    train: int = Field(default=4096, ge=1, le=MOST_ROWS)
    """Training questions made."""
    validation: int = Field(default=128, ge=1, le=MOST_ROWS)
    """Validation questions made (used to choose the best checkpoint)."""
    test: int = Field(default=512, ge=1, le=MOST_ROWS)
    """Held-out questions made (used by the final evaluation)."""
    levels: tuple[int, ...] = (1, 2, 3)
    """Levels of difficulty to draw from, equally often: any of 1, 2, 3."""
    guessable: float = Field(default=0.0, ge=0, le=1)
    """Share of questions whose text gives away values that otherwise only the image holds."""

    @model_validator(mode="after")
    def _levels_exist(self) -> GlyphsConfig:
        if not self.levels or not set(self.levels) <= {1, 2, 3}:
            raise ValueError(f"levels is {list(self.levels)}; choose from 1, 2, 3")
        return self


class DataConfig(Section):
    """Where the questions come from."""

    unkeyed: ClassVar[frozenset[str]] = frozenset({"workers"})
    introduced: ClassVar[dict[str, Any]] = {
        "validation_revision": None,
        "extra": "all",
        "image_folders": (),
        "system_prompt": "",
    }

    source: str = "glyphs"
    """``glyphs`` (embedded), a hub data set id, or a local Parquet, JSONL or image folder path."""
    subset: str | None = None
    """The hub data set's configuration name, where it has several."""
    split: str = "train"
    """The split of a hub data set to train on."""
    revision: str | None = None
    """The hub data set's git revision; none: the commit that it is at when the run begins, which the
    run's config.yaml then has."""
    validation_source: str | None = None
    """A second source for validation, in the same columns; none: hold out ``validation_count``."""
    validation_split: str = "train"
    """The split of a hub ``validation_source``."""
    validation_revision: str | None = None
    """The git revision of a hub ``validation_source``; none: as for ``revision``."""
    validation_count: int = Field(default=128, ge=0, le=MOST_ROWS)
    """Rows held out of the source for validation where ``validation_source`` is not set."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Our column -> theirs, for id, problem, images, answer, kind: ``{problem: question}``. The
    defaults are ViRL39K's names: problem, images, answer. ``{images: ''}``: the questions have no images."""
    extra: Literal["all", "none"] | tuple[str, ...] = "all"
    """Further columns to keep for rewards, under their names in ``Sample.details()``: ``all``, ``none`` or a
    list of names. What is no JSON (bytes, images) and ``golds``, unless it is named, are left out, which is told."""
    image_folders: tuple[str, ...] = ()
    """Folders besides the data's own that images may lie in, links followed: ``[/shared/images]``. A relative path
    is looked for in the data's folder, then in each of these. What the data name there is part of the key."""
    limit: int | None = Field(default=None, ge=1, le=MOST_ROWS)
    """Take only the first rows."""
    instruction: Annotated[str, AfterValidator(_one_place)] = ""
    """Text put after the question, following a blank line; or, where it holds ``{problem}``, text around the
    question, which stands there as it is."""
    system_prompt: str = ""
    """Text of a system turn before the question; "": none, but for what the model's chat template puts itself."""
    max_prompt_tokens: int = Field(default=4096, ge=1, le=MOST_TOKENS)
    """Longer prompts (tokens, image tokens included) are left out and listed."""
    min_pixels: int | None = Field(default=None, ge=1, le=MOST_PIXELS)
    """Images are enlarged to at least this many pixels; none: the processor's own."""
    max_pixels: int | None = Field(default=None, ge=1, le=MOST_PIXELS)
    """Images are shrunk to at most this many pixels; none: the processor's own."""
    workers: int = Field(default=0, ge=0, le=MOST_PROCESSES)
    """Processes (of each rank) that decode and cut the next prompts' images while the model computes;
    0: done when they are needed."""
    glyphs: GlyphsConfig = GlyphsConfig()
    """Settings of the embedded data."""

    @property
    def has_validation(self) -> bool:
        """Whether there are validation questions."""
        return bool(self.source == "glyphs" or self.validation_source or self.validation_count)


class ModelConfig(Section):
    """The policy."""

    unkeyed: ClassVar[frozenset[str]] = frozenset({"shared_prefix"})
    shapes: ClassVar[frozenset[str]] = unkeyed

    path: str = "tiny"
    """``tiny`` (shipped with the package), a hub id, or a folder in Hugging Face format."""
    revision: str | None = None
    """The hub model's git revision; none: the commit that it is at when the run begins, which the run's
    config.yaml then has."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type. Weights and optimizer state stay float32 in the torch engine."""
    attention: Literal["sdpa", "eager"] = "sdpa"
    """The attention implementation of transformers."""
    shared_prefix: Literal["auto"] | bool = "auto"
    """Pack a prompt's G responses behind one copy of the prompt (same result but for rounding): ``auto``
    where it is less work, which it is unless responses are much longer than their prompt."""


class RolloutConfig(Section):
    """Sampling responses."""

    unkeyed: ClassVar[frozenset[str]] = frozenset(
        {"batch_prompts", "server", "tensor_parallel", "memory_fraction", "mismatch_limit"}
    )
    shapes: ClassVar[frozenset[str]] = unkeyed - {"mismatch_limit"}
    introduced: ClassVar[dict[str, Any]] = {"filter_key": "accuracy"}

    engine: str = "hf"
    """Which engine generates: ``hf`` (transformers generate), ``vllm``, or an import path."""
    server: str | None = None
    """Address of a running ``vllm serve``, such as http://node7:8000; none: vLLM in this process. Its
    samples are those of the same engine, but for rounding."""
    tensor_parallel: int = Field(default=1, ge=1, le=MOST_PROCESSES)
    """Ranks that share one vLLM engine; divides the number of ranks of a node."""
    memory_fraction: float = Field(default=0.4, gt=0, lt=1)
    """Share of a GPU's memory that vLLM may take while it generates (weights and KV cache)."""
    mismatch_limit: float | None = Field(default=None, gt=0)
    """Stop if the engine's log-probs are further than this from the trainer's (mean |difference|,
    nats); none: ten times that of the first step, and 0.001 at least."""
    prompts_per_step: int = Field(default=384, ge=1, le=MOST_ROWS)
    """Groups a step trains on (prompts, after dynamic sampling)."""
    samples_per_prompt: int = Field(default=8, le=MOST_SAMPLES)
    """Responses per prompt, G."""
    max_new_tokens: int = Field(default=2048, ge=1, le=MOST_TOKENS)
    """Longest response, in tokens."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature."""
    top_p: float = Field(default=0.99, gt=0, le=1)
    """Nucleus sampling mass; 1 is off."""
    top_k: int = Field(default=0, ge=0, le=MOST_TOKENS)
    """Sample among the k likeliest tokens; 0 is off."""
    batch_prompts: int = Field(default=64, ge=1, le=MOST_ROWS)
    """Prompts generated together: memory and speed. In float32 the same tokens are sampled, but for a
    rare tie within rounding; in bfloat16 log-probs move, and now and then a token (docs/gpu.md)."""
    dynamic_sampling: bool = True
    """Drop groups that are all right or all wrong and sample more (DAPO)."""
    filter_key: str = Field(default="accuracy", pattern=KEY)
    """What ``dynamic_sampling`` looks at: ``accuracy`` (the grader's, by the two limits below), ``reward``, or a
    list that a reward of one's own returns by this name; of these, groups whose responses all have the
    same are dropped (verl: ``filter_groups.metric``)."""
    accuracy_low: float = Field(default=0.01, ge=0, le=1)
    """Groups whose mean accuracy is not above this are dropped (DAPO)."""
    accuracy_high: float = Field(default=0.99, ge=0, le=1)
    """Groups whose mean accuracy is not below this are dropped (DAPO)."""
    max_tries: int = Field(default=10, ge=1, le=MOST_ROWS)
    """Give up, with advice, after this many rounds of sampling for one step."""

    @field_validator("samples_per_prompt")
    @classmethod
    def _a_group_compares(cls, value: int) -> int:
        if value < 2:
            raise ValueError(
                f"{value} is too few: advantages compare the responses of one prompt, so at least 2 are needed"
            )
        return value


class RewardConfig(Section):
    """Turning a response into a reward."""

    unkeyed: ClassVar[frozenset[str]] = frozenset({"workers"})

    function: str = "outcome"
    """``outcome`` (1 if the answer is right, else 0) or an import path ``package.module:function``: it gets the
    responses, their samples and, if it takes them, their outcomes (docs/extending.md)."""
    grader: str = "mathruler"
    """``mathruler``, ``math-verify``, or an import path (answer, gold) -> bool."""
    deadline: float = Field(default=5.0, gt=0)
    """Seconds of processor time one answer may take to grade before its worker is killed. One that
    waits without computing is ended after ten times that and 30 s more."""
    workers: int = Field(default=1, ge=1, le=MOST_PROCESSES)
    """Grader processes."""


class ScoreConfig(Section):
    """Token perception: how much each token depends on the image (paper eq. 3)."""

    unkeyed: ClassVar[frozenset[str]] = frozenset({"batch_prompts", "batch_tokens", "looks", "watch"})
    shapes: ClassVar[frozenset[str]] = unkeyed - {"looks", "watch"}
    introduced: ClassVar[dict[str, Any]] = {"store": "auto", "watch": 10}

    estimator: str = "kl"
    """``kl`` (exact, over the vocabulary; paper eq. 3), ``k3`` (of the sampled token),
    ``jsd``, ``log_ratio``, ``top1_drop`` (of the sampled token's probability; paper appendix G),
    ``argmax_drop`` (of the likeliest token's), ``entropy``, ``image_similarity`` and ``layer_similarity``
    (cosine of the hidden state that predicts the token with the mean of the image tokens': of the last layer,
    or the mean over layers), ``random``, ``oracle`` (embedded data: 1 for a
    token that is read from the image, and of the others the first of each response fill it up to
    ``keep_fraction``; ``update.objective: oracle-k`` keeps no others)."""
    perturbation: str = "patch_black"
    """``patch_black``, ``gaussian_noise``, ``gaussian_blur``, ``grey``, or ``raw_black`` (authors' code:
    14-pixel squares of the image, before the processor resizes it), ``evidence`` (embedded data: the cells
    that the answer needs are black, before the processor too; nothing is drawn), or an import path
    (pixels 0..255 [F, C, H, W], numpy Generator) -> pixels."""
    probability: float = Field(default=0.5, gt=0, le=1)
    """Chance of each patch to be blackened."""
    mask_per: Literal["prompt", "response"] = "prompt"
    """One perturbed image shared by a prompt's responses, or one for each."""
    keep_fraction: float = Field(default=0.4, gt=0, le=1)
    """Share k of each response's tokens that get a gradient (TGF)."""
    batch_prompts: int = Field(default=16, ge=1, le=MOST_ROWS)
    """Prompts scored together, at most: memory and speed; results but for rounding the same (in bfloat16
    some tokens near the limit of ``keep_fraction`` are others: docs/gpu.md)."""
    batch_tokens: int | None = Field(default=None, ge=1, le=MOST_ROWS)
    """Tokens of a forward pass, at most (a longer group goes alone): passes of about the same work;
    none: only ``batch_prompts`` counts."""
    looks: int = Field(default=4, ge=0, le=MOST_ROWS)
    """Groups of each step kept to be looked at, with their images as PNG and what else each token could
    have been (looks.parquet, for vppo report); 0 keeps none."""
    store: Literal["auto", "policy", "perception", "hidden", "views", "all"] = "auto"
    """What a step keeps of every token besides its log-prob and entropy: ``auto`` (what ``update.objective``
    needs), ``policy`` (nothing: one pass, and the image is not perturbed), ``perception`` (S), ``hidden``
    (similarities to the image's hidden states), ``views`` (S, and the numbers of both views), ``all``."""
    watch: int = Field(default=10, ge=0, le=MOST_STEPS)
    """Where steps keep no perception, measure it all the same at the first step and at every so many, to be
    looked at (a folder ``watch`` of the score step, for vppo report); 0: never."""

    def keyed(self, prefix: str) -> dict[str, Any]:
        """As every section, but for an estimator whose name meant another one once."""
        flat = super().keyed(prefix)
        name = f"{prefix}.estimator"
        flat[name] = {"argmax_drop": "top1_drop", "top1_drop": "top1_drop of the sampled token"}.get(
            self.estimator, self.estimator
        )
        return flat


class UpdateConfig(Section):
    """The policy update."""

    unkeyed: ClassVar[frozenset[str]] = frozenset(
        {"micro_batch_prompts", "micro_batch_tokens", "gradient_checkpointing", "zero_stage", "offload"}
    )
    shapes: ClassVar[frozenset[str]] = unkeyed
    introduced: ClassVar[dict[str, Any]] = {"beta_max": None, "surrogate": "ppo", "variant": None, "constants": {}}

    engine: str = "torch"
    """Which engine updates: ``torch`` (one process, AdamW), ``deepspeed`` (ZeRO, any number of
    ranks), or an import path."""
    zero_stage: int = Field(default=2, ge=1, le=3)
    """What DeepSpeed divides among ranks: optimizer state (1), gradients too (2), weights too (3)."""
    offload: bool = False
    """Keep DeepSpeed's optimizer state, and with ZeRO-3 the weights, in the machine's memory."""
    freeze_vision: bool = False
    """Leave the vision tower and its projector as they are."""
    lora_rank: int = Field(default=0, ge=0, le=MOST_TOKENS)
    """Train LoRA adapters of this rank on the language model's linear layers, and nothing else (not the
    experts of a mixture, which are no such layers); 0: train all weights. Learning rates are some ten
    times higher than for all weights."""
    lora_alpha: int = Field(default=32, gt=0, le=MOST_TOKENS)
    """Adapters count lora_alpha / lora_rank times."""
    objective: str = "vppo"
    """What each token's gradient is weighted by: ``vppo``, ``dapo``, ``grpo`` ... (docs/objectives.md has
    the table), or an import path. ``random-k`` and ``entropy-response-k`` are names for ``vppo-tgf`` with
    ``score.estimator`` random or entropy, each response's own share; ``entropy-k`` takes the batch's."""
    surrogate: Literal["ppo", "gspo", "cispo", "dr_grpo", "sapo"] = "ppo"
    """What the ratio to the policy that sampled becomes: ``ppo`` (clipped, by token), ``gspo`` (of the whole
    sequence; mean of per-response means), ``cispo`` (a clipped weight), ``dr_grpo`` (as ppo; advantages not
    divided by their standard deviation, the loss by the longest length there can be), ``sapo`` (a soft gate;
    mean of per-response means). What a setting has no meaning with is refused."""
    variant: Literal["paper", "code", "exact"] | None = None
    """Which form of the objective, where its paper and its authors' code differ; none: the first that
    docs/objectives.md names."""
    constants: dict[str, float] = Field(default_factory=dict)
    """Constants of the objective and the surrogate, by name, where not as published: ``{tau: 0.3}``."""
    learning_rate: float = Field(default=1e-6, gt=0, le=1)
    """AdamW's learning rate."""
    warmup_steps: int = Field(default=0, ge=0, le=MOST_STEPS)
    """Updates over which the learning rate rises linearly from 0."""
    weight_decay: float = Field(default=0.01, ge=0)
    """AdamW's decoupled weight decay."""
    adam_betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's moment decay rates, each at least 0 and below 1."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this global norm."""
    batch_prompts: int = Field(default=128, ge=1, le=MOST_ROWS)
    """Groups per optimizer step (the update batch). Where a training step's groups make no whole number of batches, the
    last one is smaller, which a note says."""
    micro_batch_prompts: int = Field(default=16, ge=1, le=MOST_ROWS)
    """Groups per forward and backward pass, at most: memory and speed, and results but for rounding the
    same (a first ratio is exactly 1 only where the same groups were scored in a pass: docs/gpu.md)."""
    micro_batch_tokens: int | None = Field(default=None, ge=1, le=MOST_ROWS)
    """Tokens of such a pass, at most (a longer group goes alone): passes, and ranks, have about the
    same work; none: only ``micro_batch_prompts`` counts. An objective's own pass over the perturbed view
    counts as well."""
    epochs: int = Field(default=1, ge=1, le=MOST_STEPS)
    """Passes over each step's rollouts."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time, same result but for
    rounding."""
    clip_low: float = Field(default=0.2, ge=0, lt=1)
    """The ratio is clipped below at 1 - this (PPO)."""
    clip_high: float = Field(default=0.28, ge=0)
    """The ratio is clipped above at 1 + this (DAPO: clip higher)."""
    dual_clip: float = Field(default=3.0, gt=1)
    """For negative advantages the loss is bounded at this multiple (dual-clip PPO)."""
    loss_average: Literal["token", "sequence"] = "token"
    """Mean over all response tokens of the batch, or per response first (as eq. 6 is written)."""
    beta_min: float = Field(default=0.9, gt=0, le=1)
    """Smallest shaping weight of a trajectory (TAS, eq. 5)."""
    beta_max: float | None = Field(default=None, gt=0)
    """Largest shaping weight; none: the one that makes the mean weight 1."""
    shaping_statistics: Literal["batch", "micro_batch"] = "batch"
    """Minimum, maximum and mean for shaping: over the whole update batch, or as the authors' code takes
    them: minimum and maximum over what a device has of it, mean over each micro-batch; how large these
    are, ``published`` says."""
    entropy_penalty: float = Field(default=0.06, ge=0)
    """Coefficient of the entropy term."""
    entropy_estimator: Literal["none", "sampled", "exact"] = "sampled"
    """``sampled``: mean of -log p of the sampled tokens (authors' code); ``exact``: full vocabulary."""
    kl_coefficient: float = Field(default=0.0, ge=0)
    """Coefficient of the k3 KL to the starting policy; 0 loads no reference model."""
    overlong_cache: int = Field(default=0, ge=0, le=MOST_TOKENS)
    """DAPO's soft overlong penalty over the last this many tokens before the limit; 0 is off."""
    mask_truncated: bool = False
    """Leave truncated responses out of the loss."""
    tis_cap: float | None = Field(default=None, gt=0)
    """Truncated importance sampling: cap of pi_trainer / pi_rollout per token; none is off."""

    @model_validator(mode="after")
    def _decay_shrinks(self) -> UpdateConfig:
        if self.learning_rate * self.weight_decay >= 1:
            raise ValueError(
                f"learning_rate ({self.learning_rate:g}) times weight_decay ({self.weight_decay:g}) "
                "is 1 or more: each step would take away more than the weights"
            )
        return self

    @model_validator(mode="after")
    def _shaping_rises(self) -> UpdateConfig:
        if self.beta_max is not None and self.beta_max < self.beta_min:
            raise ValueError(
                f"beta_max ({self.beta_max:g}) is below beta_min ({self.beta_min:g}): the more a "
                "response depends on the image, the less it would count"
            )
        return self

    @field_validator("adam_betas")
    @classmethod
    def _moments_decay(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in value):
            raise ValueError(f"adam_betas is {list(value)}; each must be at least 0 and below 1")
        return value


class PublishedConfig(Section):
    """What the authors' code does otherwise, each by itself; ``mode: published`` sets them all."""

    introduced: ClassVar[dict[str, Any]] = {
        "resize_first": False,
        "strip_question": False,
        "drop_surplus": False,
        "choice_rule": True,
        "filter_text_only": False,
        "mini_batch_responses": None,
        "micro_batch_responses": None,
        "decay_all": False,
    }

    resize_first: bool = False
    """Resize each image into ``data.min_pixels`` to ``data.max_pixels`` by PIL's bicubic filter before the
    processor, which then keeps its own limits and resizes once more."""
    strip_question: bool = False
    """Take white space from both ends of a question and from nowhere else; false: line
    breaks beside images go instead."""
    drop_surplus: bool = False
    """Sample in rounds of ``rollout.prompts_per_step`` prompts, and throw away the informative groups that
    a step has too many; false: the next step uses them."""
    choice_rule: bool = True
    """Grade by our rules for boxes, choices and values before the grader is asked; false: by
    ``reward.grader`` alone, on the box as mathruler takes it."""
    filter_text_only: bool = False
    """Treat responses to questions without an image as all others: S is 0 everywhere, so
    the first ``score.keep_fraction`` of their tokens are kept. false: all are kept, and they take no part
    in shaping."""
    mini_batch_responses: int | None = Field(default=None, ge=1, le=MOST_ROWS)
    """Consecutive responses of an update batch over which ``shaping_statistics: micro_batch`` takes minimum
    and maximum: a device's mini-batch. None: all of them."""
    micro_batch_responses: int | None = Field(default=None, ge=1, le=MOST_ROWS)
    """Consecutive responses of those over which it takes the mean: a micro-batch. What
    is computed together is another thing: ``update.micro_batch_prompts``."""
    decay_all: bool = False
    """``update.weight_decay`` for biases and norms too; false: for matrices alone."""


class CheckpointConfig(Section):
    """What is kept on disk."""

    unkeyed: ClassVar[frozenset[str]] = frozenset({"every", "keep_last", "keep_best", "best_key"})
    introduced: ClassVar[dict[str, Any]] = {"best_key": "accuracy"}

    every: int = Field(default=20, ge=1, le=MOST_ROWS)
    """Training steps between checkpoints; the last step always gets one."""
    keep_last: int = Field(default=2, ge=1, le=MOST_ROWS)
    """Newest checkpoints whose weights are kept."""
    keep_best: int = Field(default=1, ge=0, le=MOST_ROWS)
    """Checkpoints that are best on the validation questions whose weights are kept besides."""
    best_key: str = Field(default="accuracy", pattern=KEY)
    """By what they are the best, the highest mean counting: ``accuracy``, ``reward``, or a list that a reward of
    one's own returns by this name. It chooses among checkpoints whose weights are still there."""
    validation_samples: int = Field(default=4, ge=0, le=MOST_SAMPLES)
    """Samples per validation question at each checkpoint; 0 skips validation."""


BENCHMARK_NAME = re.compile(r"[A-Za-z]\w{0,63}", re.ASCII)
"""What a benchmark may be called: folders and journals are named by it, before a dash."""

KEYED_PROFILES = {"published": "paper"}
"""An evaluation profile -> what it was called when keys were first made, and is in them for good."""


def profile_name(recorded: str) -> str:
    """A profile that some results record, as it is called now."""
    return next((new for new, old in KEYED_PROFILES.items() if recorded == old), recorded)


class SourceConfig(Section):
    """A test set of one's own: a source as ``data.source`` is one, read by the same readers."""

    source: str
    """A local Parquet, JSONL, JSON or CSV file, an image folder, what ``datasets`` saved, or a hub id."""
    columns: dict[str, str] | None = None
    """Our column -> theirs; none: as ``data.columns`` says."""
    split: str = "test"
    """The split to ask, where the source has several."""
    subset: str | None = None
    """A hub data set's configuration name, where it has several."""
    revision: str | None = None
    """A hub data set's git revision; none: the commit that it is at when it is first read."""


class EvalConfig(Section):
    """Evaluation of the starting model and of the last checkpoint."""

    unkeyed: ClassVar[frozenset[str]] = frozenset({"batch_prompts", "benchmarks", "sources", "baseline", "data_dir"})
    shapes: ClassVar[frozenset[str]] = frozenset({"batch_prompts"})
    introduced: ClassVar[dict[str, Any]] = {"sources": {}, "system_prompt": None}

    benchmarks: tuple[str, ...] = ("glyphs",)
    """Benchmarks run at the end: built-in ones (docs/evaluation.md), ``all`` for the paper's eight, names of
    ``eval.sources``, or import paths of benchmarks of one's own. Where ``data.source`` is one's own:
    ``validation``, if there are such questions."""
    sources: dict[str, SourceConfig] = Field(default_factory=dict)
    """Test sets of one's own, a name for ``eval.benchmarks`` each: ``{mytest: data/mytest.jsonl}``, or with
    ``{source: data/mytest.jsonl, columns: {answer: gold}, split: test}`` in place of the path."""
    data_dir: str | None = None
    """A folder with local copies of the benchmarks; none: the hub."""
    baseline: bool = True
    """Evaluate the starting model too, and report the difference with a paired interval."""
    profile: Literal["published", "matched"] = "published"
    """Pixels, sampling and instruction on public benchmarks: as the authors evaluate, or as in training.
    One's own questions (glyphs, validation, ``eval.sources``) have the matched one in either case."""
    graders: tuple[str, ...] = Field(default=("mathruler", "math-verify"), min_length=1)
    """Graders of every answer, the one that decides first; an import path works as well. On one's own
    questions ``reward.grader`` decides."""
    samples: int = Field(default=8, ge=1, le=MOST_SAMPLES)
    """Samples per question; accuracy is their mean ("avg@8")."""
    limit: int | None = Field(default=None, ge=1, le=MOST_ROWS)
    """Take only the first questions."""
    temperature: float | None = Field(default=None, gt=0)
    """Sampling temperature; none: the profile's."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """Nucleus sampling mass; 1 is off; none: the profile's."""
    top_k: int | None = Field(default=None, ge=0, le=MOST_TOKENS)
    """Sample among the k likeliest tokens; 0 is off; none: the profile's."""
    max_new_tokens: int | None = Field(default=None, ge=1, le=MOST_TOKENS)
    """Longest response, in tokens; none: the profile's."""
    min_pixels: int | None = Field(default=None, ge=1, le=MOST_PIXELS)
    """Images are enlarged to at least this many pixels; none: the profile's."""
    max_pixels: int | None = Field(default=None, ge=1, le=MOST_PIXELS)
    """Images are shrunk to at most this many pixels; none: the profile's."""
    instruction: Annotated[str | None, AfterValidator(_one_place)] = None
    """Text put after the question, or around it, as ``data.instruction``; none: the profile's."""
    system_prompt: str | None = None
    """Text of a system turn before the question; none: the profile's, which is that of training in matched."""
    batch_prompts: int = Field(default=64, ge=1, le=MOST_ROWS)
    """Prompts generated together: memory and speed, as ``rollout.batch_prompts``."""

    def keyed(self, prefix: str) -> dict[str, Any]:
        """As of any section; what was renamed stands as it was in the first keys."""
        profile = KEYED_PROFILES.get(self.profile, self.profile)
        return super().keyed(prefix) | {f"{prefix}.profile": profile}

    @field_validator("sources")
    @classmethod
    def _names_are_plain(cls, value: dict[str, SourceConfig]) -> dict[str, SourceConfig]:
        for name in value:
            if not BENCHMARK_NAME.fullmatch(name):
                raise ValueError(f"{name!r} is no name for a test set: letters, digits and _, the first a letter")
        return value

    @field_validator("graders")
    @classmethod
    def _graders_differ(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError(f"{', '.join(value)}: name each grader once")
        return value


class RunConfig(Section):
    """How long and where; nothing here changes a result but for rounding."""

    shapes: ClassVar[frozenset[str]] = frozenset({"threads", "device"})

    steps: int = Field(default=100, ge=1, le=MOST_STEPS)
    """Policy-update steps. Raise it to extend a finished run."""
    threads: int = Field(default=0, ge=0, le=MOST_PROCESSES)
    """CPU threads for torch; 0 is torch's own choice."""
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """``auto`` (a GPU if there is one), ``cpu`` or ``cuda``."""
    trackers: tuple[str, ...] = ()
    """Experiment trackers told of every step besides metrics.jsonl: ``tensorboard``, ``wandb``,
    ``trackio``, ``mlflow``, or an import path; each needs its package: pip install 'vppo[wandb]'."""


class StagesConfig(Section):
    """Stages of one's own, each by an import path ``package.module:function`` (docs/artifacts.md)."""

    introduced: ClassVar[dict[str, Any]] = dict.fromkeys(
        ("prepare", "rollout", "score", "update", "checkpoint", "eval")
    )

    prepare: str | None = None
    """In place of the package's: a source of data -> questions."""
    rollout: str | None = None
    """Questions -> graded responses."""
    score: str | None = None
    """Responses -> token perception."""
    update: str | None = None
    """Responses and their scores -> the policy's next weights."""
    checkpoint: str | None = None
    """The live policy -> a folder that it is loaded from."""
    eval: str | None = None
    """A policy and a benchmark's questions -> results."""

    @field_validator("*")
    @classmethod
    def _not_the_packages_own(cls, value: str | None) -> str | None:
        if value and value.partition(":")[0].partition(".")[0] in ("pipelines", "evals", "vppo_cli"):
            raise ValueError(f"{value} is the package's own; leave the setting out, or name a module of yours")
        return value


class Config(Section):
    """A whole run."""

    unkeyed: ClassVar[frozenset[str]] = frozenset({"run", "mode"})

    name: str = Field(default="run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    """What the run's folder is called, followed by a hash of the settings."""
    mode: Literal["exact", "published"] = "exact"
    """``exact``: full-vocabulary KL, one mask per prompt, statistics over the whole update batch.
    ``published``: as the authors' code computes it. A name for the settings listed in
    ``pipelines.config.settings.MODES``, which it sets unless they are given; it decides nothing itself."""
    seed: int = Field(default=0, ge=0, le=2**63 - 1)
    """Seeds every random draw of the run."""
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    rollout: RolloutConfig = RolloutConfig()
    reward: RewardConfig = RewardConfig()
    score: ScoreConfig = ScoreConfig()
    update: UpdateConfig = UpdateConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    eval: EvalConfig = EvalConfig()
    run: RunConfig = RunConfig()
    stages: StagesConfig = StagesConfig()
    published: PublishedConfig = PublishedConfig()

    def keyed(self, prefix: str) -> dict[str, Any]:
        """As every section; micro-batches of shaping by the name that they had when groups were counted.

        Earlier versions took those of the passes (16 groups unless said), over the whole update batch.
        """
        flat, name = super().keyed(prefix), "published.micro_batch_responses"
        groups, rest = divmod(flat.get(name, 0), self.rollout.samples_per_prompt)
        if groups and not rest and self.published.mini_batch_responses is None:
            del flat[name]
            if groups != 16:
                flat["update.micro_batch_prompts"] = groups
        elif ":" in self.update.objective:  # which may look at them whatever the statistics
            flat[name] = self.published.micro_batch_responses
        return flat

    def with_those_of(self, other: Config, names: Iterable[str]) -> Config:
        """The same with these sections and single settings of another config."""
        given: dict[str, Any] = {}
        for name in names:
            section, _, field = name.partition(".")
            theirs = getattr(other, section)
            if field:
                ours = given.get(section, getattr(self, section))
                theirs = ours.model_copy(update={field: getattr(theirs, field)})
            given[section] = theirs
        return self.model_copy(update=given)

    def value(self, setting: str) -> Any:
        """What ``section.name`` is set to."""
        section, _, name = setting.partition(".")
        return getattr(getattr(self, section), name)

    def holds(self, *names: str) -> dict[str, Any]:
        """These sections and single settings, as keys hold them."""
        return {
            key: value
            for key, value in self.keyed("").items()
            if any(key == name or key.startswith(f"{name}.") for name in names)
        }

    @model_validator(mode="after")
    def _own_data_are_evaluated_on_their_own(self) -> Config:
        if self.data.source != "glyphs" and "benchmarks" not in self.eval.model_fields_set:
            names = ("validation",) if self.data.has_validation else ()
            self.__dict__["eval"] = self.eval.model_copy(update={"benchmarks": names})
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        sizes = self.published.mini_batch_responses, self.published.micro_batch_responses
        if self.update.shaping_statistics == "micro_batch" and sizes == (None, None):
            raise ValueError(
                "update.shaping_statistics is micro_batch, and nobody says how large these are: "
                "set published.micro_batch_responses (authors' code: 16) and "
                "published.mini_batch_responses (128)"
            )
        for name in ("accuracy_low", "accuracy_high") if self.rollout.filter_key != "accuracy" else ():
            if getattr(self.rollout, name) != (default := RolloutConfig.model_fields[name].default):
                raise ValueError(
                    f"rollout.{name} ({getattr(self.rollout, name)}) is a limit of accuracy, and rollout.filter_key is "
                    f"{self.rollout.filter_key}, which has none: leave {name} at {default}"
                )
        if self.rollout.accuracy_low >= self.rollout.accuracy_high:
            raise ValueError(
                f"rollout.accuracy_low ({self.rollout.accuracy_low}) must be below "
                f"rollout.accuracy_high ({self.rollout.accuracy_high})"
            )
        if self.update.overlong_cache > self.rollout.max_new_tokens:
            raise ValueError(
                f"update.overlong_cache ({self.update.overlong_cache}) is longer than "
                f"rollout.max_new_tokens ({self.rollout.max_new_tokens})"
            )
        return self
