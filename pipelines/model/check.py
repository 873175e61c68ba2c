"""Whether a model is computed right here: measured on its first use, and remembered.

A picture and a question are answered with random tokens, several answers behind one prompt, and their
log-probs compared with the model's own forward: its processor's tensors, one row, nothing filled up, its
own masks and positions. (With another picture these must differ.) One response is generated and its
recorded log-probs are compared in the same way. Where the fast way is off by more than rounding, the
plain way is measured and taken; what is off in both is refused.

The outcome holds for all weights of a config, so no checkpoint pays for it again. It is remembered in the
user's cache folder as a JSON file that names nothing to run; one that cannot be read is made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from pipelines.disk.records import Sample
from pipelines.errors import UserError
from pipelines.model import decoding, divergence, packing, shared_prefix, vision
from pipelines.model import policy as policies
from pipelines.model.divergence import token_logp
from pipelines.model.placement import OnMain
from pipelines.model.policy import Encoded, Policy, Row
from pipelines.model.prompts import IMAGE
from pipelines.model.sampling import Sampling, uniforms
from pipelines.ranks.ranks import ranks
from pipelines.seeds import generator

ROUNDING = 1e-4
"""Of the largest log-prob (and of 1): what float32 passes that add in another order may differ by."""
HALF_ROUNDING = 3.0
"""Times the mean difference of the model's own bfloat16 and float32 passes: the same for bfloat16."""
LENGTHS = (12, 1, 7)
"""Tokens of the answers."""
GENERATED = 12
PICTURE = (160, 128)
"""Width and height, in pixels."""
_CODE = (
    __file__,
    decoding.__file__,
    divergence.__file__,
    packing.__file__,
    policies.__file__,
    shared_prefix.__file__,
    vision.__file__,
)

Dtype = Literal["float32", "bfloat16"]
Group = tuple[Encoded, list[list[int]]]


@dataclass(frozen=True)
class Way:
    """How a model is to be run.

    Attributes:
        plain: the plain way.
        difference: the largest of a log-prob to the model's own forward, in nats, in float32.
        reason: why not the fast way; "" for that.
    """

    plain: bool
    difference: float
    reason: str = ""


def settled(policy: Policy) -> Policy:
    """The same, going the way that is right for its model; every rank calls it.

    Raises:
        UserError: no way is.
    """
    way, new = ranks().on_main(lambda: _known(policy))
    policy.take(plain=way.plain)
    within = f"log-probs within {way.difference:.0e} nats of its own forward"
    if way.plain:
        policy.notes.append(
            f"this model takes the plain way (padded rows, its own masks and generate): {way.reason}; {within}"
        )
    elif new:
        policy.notes.append(f"first use of this model here: {within}, shared prompts and all")
    return policy


def _known(policy: Policy) -> tuple[Way, bool]:
    """The way, and whether it was measured now: else it is remembered."""
    name = _key(policy)
    file = _folder() / f"{name}.json"
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        found = json.loads(file.read_text(encoding="utf-8"))
        way = Way(bool(found["plain"]), float(found["difference"]), str(found["reason"]))
        if found == asdict(way) | {"key": name}:
            return way, False
    whole = policy
    if isinstance(policy.placement, OnMain):  # measured where the weights are
        whole = Policy(policy.model, policy.processor, policy.config)
    way = find_way(whole)
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(asdict(way) | {"key": name}), encoding="utf-8")
        partial.replace(file)
    return way, True


def _folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vppo" / "models"


def _key(policy: Policy) -> str:
    """What the outcome depends on: the model's config, how it is computed, and by which code."""
    device = next(policy.model.parameters()).device.type
    versions = [importlib.metadata.version(name) for name in ("torch", "transformers")]
    code = [hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in _CODE]
    settings = policy.config.model
    processor = [type(policy.processor).__name__, type(policy.processor.image_processor).__name__]
    about = [
        _architecture(policy.model.config.to_dict()),
        settings.dtype,
        settings.attention,
        device,
        processor,
        versions,
        code,
    ]
    return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _architecture(config: Any) -> Any:
    """A config without what differs between copies of one model."""
    if not isinstance(config, dict):
        return config
    passing = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "_attn_implementation")
    return {n: _architecture(value) for n, value in config.items() if n not in passing}


# -- the measurement -------------------------------------------------------------------------------


@torch.no_grad()
def find_way(policy: Policy) -> Way:
    """The fast way if it gives what the model's own forward gives, else the plain one if that does.

    The policy is left going either way.

    Raises:
        UserError: neither does, or the model's own forward fails.
    """
    where = f"model.path {policy.config.model.path}"
    dtype, policy.dtype = policy.dtype, "float32"
    try:
        groups = _groups(policy)
        policy.take(plain=True)
        try:
            own_N = _own_logp(policy, groups)
        except Exception as error:  # a model of another family fails wherever it fails
            raise UserError(
                where,
                f"its own forward fails on a picture and a question ({_said(error)}).",
                "Its config, weights and processor must belong together.",
            ) from error
        (prompt, answers), *_ = groups
        other = prompt | {"pixel_values": -prompt["pixel_values"]}
        first_N = own_N[: sum(map(len, answers))]
        if torch.equal(_own_logp(policy, [(other, answers)]), first_N):
            raise UserError(
                where,
                "does not look at the picture: another one gives the same answers to the last bit.",
                "Its config's image token must be the one that its processor writes.",
            )
        reason = _windows(policy) or ""
        for plain in (False, True):
            if reason and not plain:
                continue
            policy.take(plain=plain)
            difference, wrong = _measured(policy, groups, own_N, dtype)
            if not wrong:
                return Way(plain, difference, reason)
            reason = f"{reason}; the plain way {wrong}" if plain else f"the fast way {wrong}"
        raise UserError(
            where,
            f"is not computed right ({reason}).",
            "docs/method.md lists the families that are; please report this one.",
        )
    finally:
        policy.dtype = dtype


def _windows(policy: Policy) -> str | None:
    """Whether some layers attend in a window: short answers would not show what packing does to them."""
    text = policy.model.config.get_text_config()
    window, layers = getattr(text, "sliding_window", None), getattr(text, "layer_types", None)
    longest = getattr(text, "max_position_embeddings", None) or 0
    if window is None or (layers and "sliding_attention" not in layers) or 0 < longest <= window:
        return None
    return f"some of its layers attend in a window of {window} tokens"


def _measured(policy: Policy, groups: Sequence[Group], own_N: torch.Tensor, dtype: Dtype) -> tuple[float, str]:
    """The largest difference to the model's own log-probs, and what is wrong if that is too large."""
    try:
        found_N = _logp(policy, groups)
        prompt = groups[0][0]
        response, recorded_N = _generated(policy, prompt)
        plain = policy.plain
        policy.take(plain=True)
        generated_N = _own_logp(policy, [(prompt, [response])])
        policy.take(plain=plain)
        gaps = {
            "log-probs of given answers": found_N - own_N,
            "log-probs of a generated answer": recorded_N - generated_N,
        }
        limit = ROUNDING * max(1.0, own_N.abs().max().item())
        worst = {name: gap_N.abs().max().item() for name, gap_N in gaps.items()}
        for name, gap in worst.items():
            if not gap <= limit:
                return gap, f"is {gap:.2g} nats off in {name}"
        if dtype != "float32":
            policy.dtype = dtype
            half_N, own_half_N = _logp(policy, groups), _own_logp(policy, groups)
            policy.dtype = "float32"
            gap, allowed = ((x - own_N).abs().mean().item() for x in (half_N, own_half_N))
            if not gap <= HALF_ROUNDING * allowed + limit:
                return gap, f"is {gap:.2g} nats off in {dtype}, its own forward {allowed:.2g}"
        return max(worst.values()), ""
    except Exception as error:  # other families fail in other places
        return float("inf"), f"fails ({_said(error)})"


def _groups(policy: Policy) -> list[Group]:
    """A question about a picture, and one without (if the family takes such), each with answers."""
    draw = generator(0, "model check")
    width, height = PICTURE
    small = draw.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    picture = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    never = {*policy.suppressed_ids.tolist(), *policy.eos_ids}
    usual = [i for i in range(len(policy.head_weight)) if i not in never]
    groups: list[Group] = []
    for text, images in ((f"{IMAGE}What does the picture show?", [picture]), ("What is 3 + 4?", [])):
        asked = Sample("", text, [], "")
        try:
            prompt = policy.encoder.encode_images(asked, images)
        except Exception:
            if images:
                raise
            continue  # a family that wants a picture with every question
        answers = [[usual[i] for i in draw.integers(len(usual), size=n)] for n in LENGTHS]
        groups.append((prompt, answers))
    return groups


def _logp(policy: Policy, groups: Sequence[Group]) -> torch.Tensor:
    """Log-probs of all answers [N] as scoring and training compute them: one pass, one row a group."""
    rows = [Row(prompt, responses) for prompt, responses in groups]
    token_N = torch.tensor([token for _, answers in groups for ids in answers for token in ids], device=policy.device)
    return token_logp(policy.hidden_states(rows), policy.head_weight, token_N, suppressed_ids=policy.suppressed_ids)[0]


def _own_logp(policy: Policy, groups: Sequence[Group]) -> torch.Tensor:
    """The same from the model alone, each answer by itself."""
    found = []
    for prompt, answers in groups:
        for ids in answers:
            batch = policy.copies(prompt, 1)
            text = {name: value[None].to(policy.device) for name, value in policy.joined(prompt, ids).items()}
            batch |= text | {"attention_mask": torch.ones_like(text["input_ids"])}
            with policy.compute_type():
                logits_LV = policy.model(**batch, use_cache=False).logits[0]
            logits_TV = logits_LV[-len(ids) - 1 : -1].float()
            logits_TV[:, policy.suppressed_ids] = -torch.inf
            token_T1 = torch.tensor(ids, device=policy.device)[:, None]
            found.append(logits_TV.log_softmax(-1).gather(1, token_T1)[:, 0])
    return torch.cat(found)


def _generated(policy: Policy, prompt: Encoded) -> tuple[list[int], torch.Tensor]:
    """One response as the engine generates it: its tokens and recorded log-probs [T]."""
    sampling = Sampling(1.0, 1.0, 0, GENERATED, 1, 0)
    uniform_1T = uniforms(sampling, ("model check",), policy.device)
    [ids], [logp] = decoding.sample(policy, [prompt], uniform_1T, sampling)
    length = next((i + 1 for i, token in enumerate(ids) if token in policy.eos_ids), len(ids))
    return ids[:length], torch.tensor(logp[:length], device=policy.device)


def _said(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
