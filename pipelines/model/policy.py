"""A vision-language model as a policy: hidden states of responses, log-probs and divergences.

A *row* is one prompt followed by one or more responses to it. With several, the responses stand side
by side behind one copy of the prompt and its image: attention lets each response see the prompt
and itself only, and each starts at the same position id, so every number is what it would be alone,
while the prompt is read once. With one response a row is an ordinary sequence.

That is right for models whose every layer attends to all that came before. For the others there is the
*plain* way: each response in a padded row of its own, with the model's own masks and positions.
Which way a model takes is measured on its first use (pipelines/model/check.py).
"""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from PIL import Image

from pipelines.config.schema import Config
from pipelines.disk.records import Sample
from pipelines.errors import UserError
from pipelines.model import chat_template, determinism, shared_prefix, vision
from pipelines.model.packing import Costs, Setting, share, tokens
from pipelines.model.placement import OnMain, Placement, copied
from pipelines.model.prompts import IMAGE, Asking, Before, PromptEncoder, limit_pixels
from pipelines.model.ragged import join
from pipelines.ranks.ranks import ranks

Encoded = dict[str, torch.Tensor]
TYPES = ("mm_token_type_ids", "token_type_ids")
"""What kind of token each is: text, image, or (PaliGemma) prompt and response."""
PER_TOKEN = ("input_ids", "position_ids", *TYPES)
"""Entries of an encoded prompt that have one value per token; the others belong to its images."""
STAND_IN = 28
"""Pixels of a side of the smallest image that is read where a pass has none."""
RESPONSE_TYPES = {"paligemma": 1}
"""``token_type_ids`` of a response, where it is not 0, by model type."""


@dataclass
class Row:
    """One prompt and the responses (token ids) that follow it in one packed sequence."""

    prompt: Encoded
    responses: Sequence[Sequence[int]]


class Policy:
    """The model being trained, with its processor; all tensors of one device.

    Attributes:
        vocabulary: how many ids there are, unused ones included.
        suppressed_ids: special, image and unused ids that are never sampled [K]; the policy is the
            distribution over the others.
        eos_ids: ids that end a response.
        plain: whether the model takes the plain way.
        stand_in: a question about a small image, read beside rows that have none and counting nothing.
        notes: what a user should know of it.
    """

    def __init__(self, model: Any, processor: Any, config: Config, placement: Placement | None = None) -> None:
        self.model, self.processor, self.config = model, processor, config
        self.placement = placement or Placement()
        self.costs = _costs(model)
        self.dtype = config.model.dtype
        self.notes: list[str] = []
        self.stand_in: Row | None = None
        self.take(plain=False)
        self.encoder = PromptEncoder(
            processor,
            config.data.instruction,
            workers=config.data.workers,
            before=Before.of(config),
            system=config.data.system_prompt,
        )
        self.tokenizer = processor.tokenizer
        self.device = next(model.parameters()).device if placement is None else choose_device(config)
        self.vocabulary = known = model.get_output_embeddings().weight.shape[0]
        self.eos_ids = _end_ids(model, processor, known)
        special = set(self.tokenizer.all_special_ids) | {
            index for index, token in self.tokenizer.added_tokens_decoder.items() if token.special
        }
        special |= set(range(len(self.tokenizer), known))  # unused
        self.suppressed_ids = torch.tensor(
            sorted(i for i in special - set(self.eos_ids) if i < known), device=self.device
        )

    def take(self, *, plain: bool) -> None:
        """Go the plain way from now on, or the fast one."""
        self.plain = plain
        self.grouped = not plain and self.config.model.attention == "sdpa"
        if self.grouped:
            shared_prefix.use(self.model)
            vision.use(self.model)
        else:
            self.model.set_attn_implementation({"text_config": self.config.model.attention})
            vision.leave(self.model, self.config.model.attention)

    def spread(self) -> Policy:
        """The same, with whole weights on every rank's device; every rank calls it."""
        if isinstance(self.placement, OnMain):
            self.model = copied(self.model, self.placement, self.device, torch.float32)
            self.placement = Placement()
            self.take(plain=self.plain)
        return self

    def asked(self, asking: Asking) -> Policy:
        """The same model asked in another way: images of other sizes, another instruction or system's turn.

        Raises:
            UserError: the processor has no such limits.
        """
        processor = copy.copy(self.processor)
        processor.image_processor = copy.deepcopy(self.processor.image_processor)
        limit_pixels(processor.image_processor, asking, "eval")
        other = copy.copy(self)
        other.processor, other.encoder = (
            processor,
            PromptEncoder(processor, asking.instruction, 1, system=asking.system_prompt),
        )
        return other

    def look_always(self, samples: Sequence[Sample], *, always: bool) -> None:
        """Let passes over questions without an image read a small one too, or not.

        Ranks that divide the work wait for each other layer by layer, or weight by weight, and a vision
        tower that only some of them go through would hang them.

        Args:
            samples: all questions of a step; where none or all have images no pass needs another.
            always: whether the ranks wait for each other so.
        """
        self.stand_in = None
        if always and ranks().world > 1 and len({bool(sample.images) for sample in samples}) > 1:
            small = Image.new("RGB", (STAND_IN, STAND_IN), "white")
            asked = Sample("", f"{IMAGE}?", [], "")
            self.stand_in = Row(self.encoder.encode_images(asked, [small]), [[self.eos_ids[0]]])

    @property
    def head_weight(self) -> torch.Tensor:
        """The LM head's weight [V, D]."""
        return self.model.get_output_embeddings().weight

    def compute_type(self) -> contextlib.AbstractContextManager[Any]:
        """The autocast context of ``model.dtype``; weights themselves stay float32."""
        if self.dtype == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def with_positions(self, prompt: Encoded) -> Encoded:
        """Add the prompt's ``position_ids`` [A, L] (A = 3 for M-RoPE, else 1), computed once."""
        if "position_ids" not in prompt:
            ids_L = prompt["input_ids"]
            base = self.model.base_model
            if hasattr(base, "get_rope_index") and "mm_token_type_ids" in prompt:
                grids = {k: v for k, v in prompt.items() if k.endswith("grid_thw")}
                positions, _ = base.get_rope_index(
                    ids_L[None], mm_token_type_ids=prompt["mm_token_type_ids"][None], **grids
                )
                prompt["position_ids"] = positions[:, 0]
            else:
                prompt["position_ids"] = torch.arange(len(ids_L))[None]
        return prompt

    def hidden_states(self, rows: Sequence[Row]) -> torch.Tensor:
        """Last hidden states that predict the response tokens of these rows.

        Returns:
            hidden_ND: one vector per response token, in the order row, response, token
            (N = total response tokens).
        """
        batch, flat_N = self._batch(rows)
        return self._states(batch).index_select(0, flat_N)

    @torch.no_grad()
    def with_similarities(self, rows: Sequence[Row]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The same, and how similar they are to the image, in the same pass; no gradient.

        Similar is the cosine with the mean of the hidden states of the image tokens of the row's own
        prompt, those of several images together; float32. A prompt without an image has 0.

        Returns:
            hidden_ND: as of ``hidden_states``.
            image_N: the cosine of these, which are after the final norm.
            layers_N: its mean over the decoder layers; of each what leaves it, of the last what leaves the
                final norm, as ``output_hidden_states`` of the library's models has them.
        """
        batch, flat_N = self._batch(rows)
        places = self._image_places(rows, flat_N)
        # Sums alone are kept: all layers' states would take their number times the memory of one.
        sums: list[torch.Tensor] = []

        def see(_module: Any, _inputs: Any, output: Any) -> None:
            states_BLD = output[0] if isinstance(output, tuple) else output
            found_N = _similarity(states_BLD.flatten(0, 1), places)
            sums[:] = [sums[0] + found_N if sums else found_N]

        *before, _ = layers = self.model.get_decoder().layers
        with contextlib.ExitStack() as hooks:
            for layer in before:
                hooks.enter_context(layer.register_forward_hook(see))
            states_MD = self._states(batch)
        image_N = _similarity(states_MD, places)
        layers_N = (sums[0] + image_N if sums else image_N) / len(layers)
        return states_MD.index_select(0, flat_N), image_N, layers_N

    def _batch(self, rows: Sequence[Row]) -> tuple[dict[str, Any], torch.Tensor]:
        """The tensors of the pass over these rows, and where in it [B L] the predicting states are [N]."""
        blind = not any("pixel_values" in row.prompt for row in rows)
        beside = [self.stand_in] if blind and self.stand_in else []
        batch = (self._plain if self.plain else self._pack)([*rows, *beside])
        where = batch.pop("where")
        where = where[:, : where.shape[1] - len(beside)]
        return batch, where[0] * batch["input_ids"].shape[1] + where[1]

    def _states(self, batch: dict[str, Any]) -> torch.Tensor:
        """One pass -> last hidden states [B L, D]."""
        with self.compute_type():
            output = self.model.base_model(**batch, use_cache=False)
        hidden_BLD: torch.Tensor = output.last_hidden_state
        return hidden_BLD.flatten(0, 1)

    def _image_places(self, rows: Sequence[Row], flat_N: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """For each prompt of a pass: where its image tokens are, and the states that predict what follows it."""
        alike: list[tuple[Encoded, Sequence[Sequence[int]]]] = [(row.prompt, row.responses) for row in rows]
        if self.plain:  # each response has its own copy
            alike = [(prompt, [response]) for prompt, responses in alike for response in responses]
        parts = flat_N.split([sum(map(len, responses)) for _, responses in alike])
        found = []
        for (prompt, _), part_N in zip(alike, parts, strict=True):
            ids_L = prompt["input_ids"]
            local = (ids_L == self.model.config.image_token_id).nonzero().flatten()
            # The first state is that of the prompt's last token.
            found.append((local.to(part_N.device) + (part_N[0] - len(ids_L) + 1), part_N))
        return found

    def _pack(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Tensors of one forward pass; ``where`` [2, N] locates the predicting states.

        One sequence without padding, row after row; with eager attention right-padded rows.
        """
        ids, positions, segments, where = [], [], [], []
        for index, row in enumerate(rows):
            prompt = self.with_positions(row.prompt)
            prompt_L, position_AL = prompt["input_ids"], prompt["position_ids"]
            length, axes = len(prompt_L), position_AL.shape[0]
            after = int(position_AL.max()) + 1
            fed_ids: list[int] = []
            fed_positions: list[int] = []
            segment = [0] * length
            for number, response in enumerate(row.responses, start=1):
                # The last token predicts nothing we need, so it is not fed. Position t of a
                # response is predicted by its token t-1; the first by the prompt's last token.
                count, column = len(response) - 1, length + len(fed_ids)
                fed_ids += response[:-1]
                fed_positions += range(after, after + count)
                segment += [number] * count
                where += [(index, column) for column in (length - 1, *range(column, column + count))]
            ids.append(torch.cat([prompt_L, torch.tensor(fed_ids, dtype=torch.long)]))
            fed_AL = torch.tensor(fed_positions, dtype=torch.long).expand(axes, -1)
            positions.append(torch.cat([position_AL, fed_AL], dim=1))
            segments.append(segment)
        where_2N = torch.tensor(where).T
        if self.grouped:
            starts = torch.tensor([0, *map(len, ids)]).cumsum(0)
            batch = self._sequence(ids, positions) | {
                "prefix_layout": shared_prefix.layout(
                    [len(row.prompt["input_ids"]) for row in rows],
                    [[len(response) - 1 for response in row.responses] for row in rows],
                ),
                "where": torch.stack([torch.zeros_like(where_2N[0]), starts[where_2N[0]] + where_2N[1]]),
            }
        else:
            batch = self._padded(ids, positions, segments) | {"where": where_2N}
        batch |= self._images([row.prompt for row in rows])
        return {name: value.to(self.device) for name, value in batch.items()}

    def _plain(self, rows: Sequence[Row]) -> dict[str, Any]:
        """The same the plain way: right-padded rows of a prompt and one response."""
        flat = [(row.prompt, response) for row in rows for response in row.responses]
        texts = [self.joined(prompt, response[:-1]) for prompt, response in flat]
        length_B = torch.tensor([len(text["input_ids"]) for text in texts])
        fed_B = torch.tensor([len(response) for _, response in flat])
        longest, row_N = int(length_B.max()), torch.arange(len(flat)).repeat_interleave(fed_B)
        first_N = (length_B - fed_B).repeat_interleave(fed_B)
        within_N = torch.cat([torch.arange(count) for count in fed_B])
        batch = {
            name: torch.stack(
                [torch.nn.functional.pad(text[name], (0, longest - len(text[name])), value=value) for text in texts]
            )
            for name, value in self._padding(texts[0]).items()
        }
        batch["attention_mask"] = (torch.arange(longest) < length_B[:, None]).long()
        batch |= self._images([prompt for prompt, _ in flat])
        batch["where"] = torch.stack([row_N, first_N + within_N])
        return {name: value.to(self.device) for name, value in batch.items()}

    def joined(self, prompt: Encoded, response: Sequence[int]) -> Encoded:
        """What the model takes for each token of a prompt and what follows it, [L] each."""
        tokens = torch.tensor(response, dtype=torch.long)
        text = {"input_ids": torch.cat([prompt["input_ids"], tokens])}
        for name in TYPES:
            if name in prompt and name in self._accepted:
                kind = RESPONSE_TYPES.get(self.model.config.model_type, 0) if name == "token_type_ids" else 0
                text[name] = torch.cat([prompt[name], torch.full_like(tokens, kind)])
        return text

    def _padding(self, text: Encoded) -> dict[str, int]:
        """What fills up each of these, where nothing looks."""
        return {name: self.eos_ids[0] if name == "input_ids" else int(text[name][-1]) for name in text}

    @cached_property
    def _accepted(self) -> set[str]:
        """What the model's own forward takes by name."""
        return set(inspect.signature(self.model.base_model.forward).parameters)

    def copies(self, prompt: Encoded, count: int) -> dict[str, Any]:
        """Tensors of one pass over copies of a prompt, as the model's own ``generate`` takes them."""
        text = {name: value.expand(count, -1) for name, value in self.joined(prompt, []).items()}
        batch = text | {"attention_mask": torch.ones_like(text["input_ids"])}
        return {n: v.to(self.device) for n, v in (batch | self._images([prompt] * count)).items()}

    def prompts(self, prompts: Sequence[Encoded]) -> dict[str, Any]:
        """Tensors of one forward pass over prompts alone, one after another without padding."""
        prompts = [self.with_positions(prompt) for prompt in prompts]
        ids = [prompt["input_ids"] for prompt in prompts]
        batch = self._sequence(ids, [prompt["position_ids"] for prompt in prompts])
        return {n: v.to(self.device) for n, v in (batch | self._images(prompts)).items()}

    def _sequence(self, ids: Sequence[torch.Tensor], positions: Sequence[torch.Tensor]) -> dict[str, Any]:
        position_AN = torch.cat(list(positions), dim=1)
        return {
            "input_ids": torch.cat(list(ids))[None],
            "position_ids": position_AN[:, None] if len(position_AN) > 1 else position_AN,
            "attention_mask": torch.ones(1, 1, 1, 1),  # the layout says it all
        }

    def _padded(
        self, ids: list[torch.Tensor], positions: list[torch.Tensor], segments: list[list[int]]
    ) -> dict[str, Any]:
        longest = max(map(len, ids))

        def pad(items: list[torch.Tensor], value: int) -> torch.Tensor:
            return torch.stack([torch.nn.functional.pad(x, (0, longest - x.shape[-1]), value=value) for x in items])

        mask_B1LL = _block_mask(pad([torch.tensor(x) for x in segments], -1))[:, None]
        lowest = torch.finfo(torch.float32).min  # eager attention adds the mask to its scores
        position_BAL = pad(positions, 0)
        return {
            "input_ids": pad(ids, self.tokenizer.pad_token_id),
            "attention_mask": torch.zeros(mask_B1LL.shape).masked_fill(~mask_B1LL, lowest),
            "position_ids": (position_BAL.transpose(0, 1) if position_BAL.shape[1] > 1 else position_BAL[:, 0]),
        }

    def _images(self, prompts: Sequence[Encoded]) -> dict[str, torch.Tensor]:
        """The prompts' images; a question without one has none of their tensors."""
        names = dict.fromkeys(name for prompt in prompts for name in prompt if name not in PER_TOKEN)
        return {name: join([p[name] for p in prompts if name in p]) for name in names}

    def rows(self, prompt: Encoded, responses: Sequence[Sequence[int]]) -> list[Row]:
        """The rows of one group: one, or one for each response (``model.shared_prefix``)."""
        images = prompt["pixel_values"].numel() if "pixel_values" in prompt else 0
        costs = replace(self.costs, image=self.costs.image * images)
        fed = [len(response) - 1 for response in responses]
        if share(self._sharing, costs, len(prompt["input_ids"]), fed):
            return [Row(prompt, responses)]
        return [Row(prompt, [response]) for response in responses]

    def fed_tokens(self, prompt: int, responses: Sequence[Sequence[int]]) -> int:
        """Tokens that a pass feeds for one group, with a prompt of so many."""
        fed = [len(response) - 1 for response in responses]
        without_image = replace(self.costs, image=0)
        return int(tokens(prompt, fed, share(self._sharing, without_image, prompt, fed)))

    @property
    def _sharing(self) -> Setting:
        return False if self.plain else self.config.model.shared_prefix


def _similarity(states_MD: torch.Tensor, places: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """Cosine of states with the mean of those of their prompt's image tokens -> [N], float32."""
    found = []
    with torch.autocast(states_MD.device.type, enabled=False):
        for image_K, part_N in places:
            if not len(image_K):
                found.append(torch.zeros(len(part_N), device=states_MD.device))
                continue
            mean_D = states_MD.index_select(0, image_K).float().mean(0)
            part_ND = states_MD.index_select(0, part_N).float()
            found.append(torch.nn.functional.cosine_similarity(part_ND, mean_D[None], dim=-1))
    return torch.cat(found)


def _block_mask(segment_BL: torch.Tensor) -> torch.Tensor:
    """Who may attend to whom [B, L, L]: causal, within the prompt (0) or one's own segment.

    Padding (-1) sees itself, so that no row of the softmax is empty.
    """
    same_BLL = segment_BL[:, :, None] == segment_BL[:, None, :]
    prompt_BLL = (segment_BL == 0)[:, None, :] & (segment_BL >= 0)[:, :, None]
    length = segment_BL.shape[1]
    causal_LL = torch.ones(length, length, dtype=torch.bool).tril()
    return (same_BLL | prompt_BLL) & causal_LL


def _end_ids(model: Any, processor: Any, known: int) -> list[int]:
    """What ends a response: the end of a turn by the chat template, the tokenizer's end token, and those
    of the generation config. Each may be the one that the model was trained to say.

    Args:
        known: tokens that the model can say.

    Raises:
        UserError: there is none, or one that the model does not have.
    """
    theirs = model.generation_config.eos_token_id
    theirs = theirs if isinstance(theirs, list | tuple) else [theirs]
    named = {
        "the chat template": [chat_template.turn_end(processor)],
        "the tokenizer": [processor.tokenizer.eos_token_id],
        "generation_config.json": theirs,
    }
    found: dict[int, None] = {}
    for who, ids in named.items():
        for index in ids:
            if index is not None and not (isinstance(index, int) and 0 <= index < known):
                raise UserError(
                    f"model.path {model.config.name_or_path}",
                    f"{who} ends a response with token {index}, and the model has {known} tokens.",
                    "Take the tokenizer and the generation config that came with the weights.",
                )
            if index is not None:
                found[index] = None
    if not found:
        raise UserError(
            f"model.path {model.config.name_or_path}",
            "names no token that ends a response.",
            "Set eos_token in its tokenizer_config.json.",
        )
    return list(found)


def _costs(model: Any) -> Costs:
    """Operations of its forward pass; of an image's, for each of its numbers."""
    language, text = {id(m) for m in model.get_decoder().modules()}, model.config.get_text_config()
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    head = model.get_output_embeddings()
    mine = sum(m.weight.numel() for m in layers if id(m) in language)
    seen = sum(m.weight.numel() for m in layers if id(m) not in language and m is not head)
    patches = (m for m in model.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Conv3d))
    patch = next((m.weight[0].numel() for m in patches), 1)
    channels = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    pair = 4 * text.num_hidden_layers * text.num_attention_heads * channels
    return Costs(token=2 * mine, pair=pair, image=2 * seen / patch)


def choose_device(config: Config) -> torch.device:
    """The device named by ``run.device``, settled."""
    if config.run.device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(
            f"run.device: {config.run.device}",
            "torch finds no GPU here.",
            "Set run.device=cpu, or look at vppo doctor.",
        )
    name = config.run.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device("cuda", ranks().local) if name == "cuda" else torch.device(name)
    determinism.settle(device)
    return device
