"""Every objective and surrogate by name: its code, what it needs of a step, its constants. Torch-free.

An objective is a function (Batch, UpdateConfig) -> Terms (pipelines/objectives/batch.py). To add one, write it
in a file of its own and a row here; or, outside the package, name it by an import path in ``update.objective``.
docs/objectives.md is made from these rows.
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal

from pipelines.config.resolve import check_name, find_part
from pipelines.config.schema import Config, UpdateConfig
from pipelines.config.settings import TOKEN_CHOICES
from pipelines.errors import UserError

PERCEPTION, VIEWS, HIDDEN, ROLES = "perception", "views", "hidden", "roles"
"""What of a step an objective may need besides log-probs, entropies and rewards: S by ``score.estimator``;
the numbers of both views; similarities from hidden states; the true roles of tokens (embedded data)."""

STORES: dict[str, frozenset[str]] = {
    "policy": frozenset(),
    "perception": frozenset({PERCEPTION}),
    "hidden": frozenset({HIDDEN}),
    "views": frozenset({PERCEPTION, VIEWS}),
    "all": frozenset({PERCEPTION, VIEWS, HIDDEN}),
}
"""``score.store``: what a score step holds besides log-probs and entropies, the smallest first."""

KEYED = "perception"
"""The set that all score steps held once: keys do not name it."""

PERTURBED = "perturbed"
"""A pass of the update's own over the perturbed view, with gradient."""

ONE_VIEW = frozenset({"entropy", "random", "oracle", "image_similarity", "layer_similarity"})
"""Values of ``score.estimator`` that need no pass over the perturbed view."""

ALL_SURROGATES = ("ppo", "gspo", "cispo", "dr_grpo", "sapo")


@dataclass(frozen=True)
class Objective:
    """One row.

    Attributes:
        code: import path of the function.
        formula: what a token of response i is weighted by, in the letters of docs/objectives.md.
        source: where it was published.
        known: how well it is known: from the paper's text, its authors' code, or another's.
        needs: of PERCEPTION, VIEWS, HIDDEN, ROLES.
        constants: name -> published value, set by ``update.constants``; None: it has none, and must be set.
        variants: values of ``update.variant``, where the paper and its code differ; the first is the default.
        passes: passes of the update's own besides the policy's: PERTURBED.
        of_variant: what a variant takes of both besides.
        surrogates: those that it has a meaning with.
        limits: constant -> the interval that it lies in, such as "(0, 1]"; those left out are any number.
        unread: settings of ``update`` that have no meaning with it, and why, as ``UNREAD``.
        published_with: further settings of its publication, which ``update.objective`` does not set.
        perturbation: the one ``score.perturbation`` that its S is defined by; "": any.
    """

    code: str
    formula: str
    source: str
    known: str
    needs: frozenset[str] = frozenset()
    constants: Mapping[str, float | None] = field(default_factory=dict)
    variants: tuple[str, ...] = ()
    passes: frozenset[str] = frozenset()
    of_variant: Mapping[str, frozenset[str]] = field(default_factory=dict)
    surrogates: tuple[str, ...] = ALL_SURROGATES
    limits: Mapping[str, str] = field(default_factory=dict)
    unread: Mapping[str, str] = field(default_factory=dict)
    published_with: str = ""
    perturbation: str = ""


_PAPER = "arXiv 2510.09285"

_SYMMETRIC = {"clip_high": "its clipping is symmetric, of the width update.clip_low"}

OBJECTIVES: dict[str, Objective] = {
    "vppo": Objective(
        "pipelines.objectives.vppo:vppo_both",
        "alpha_i A_i on the k T tokens of highest S, else 0",
        f"{_PAPER}, eq. 6",
        "the authors' code",
        frozenset({PERCEPTION}),
    ),
    "vppo-tas": Objective(
        "pipelines.objectives.vppo:vppo_tas",
        "alpha_i A_i",
        f"{_PAPER}, eq. 5, Table 2",
        "the authors' code",
        frozenset({PERCEPTION}),
    ),
    "vppo-tgf": Objective(
        "pipelines.objectives.vppo:vppo_tgf",
        "A_i on the k T tokens of highest S, else 0",
        f"{_PAPER}, Table 2",
        "the authors' code",
        frozenset({PERCEPTION}),
    ),
    "vppo-soft": Objective(
        "pipelines.objectives.vppo:vppo_soft",
        "alpha_i A_i sigmoid(z_t - c_i), z S standardised over the response, c_i such that their mean is k",
        f"{_PAPER}, appendix I, Table 6",
        "the paper's text; that advantages are shaped as well, and which standard deviation, is our reading",
        frozenset({PERCEPTION}),
    ),
    "vppo-reward": Objective(
        "pipelines.objectives.vppo:vppo_reward",
        "the advantage of alpha_i R_i on the k T tokens of highest S, else 0",
        f"{_PAPER}, Table 7",
        "the paper's text; that tokens are filtered as well is our reading",
        frozenset({PERCEPTION}),
    ),
    "vppo-grpo": Objective(
        "pipelines.objectives.vppo:vppo_grpo",
        "as vppo, symmetric clipping, mean of means",
        f"{_PAPER}, Table 5",
        "the paper names it and does not describe its GRPO: this is that of arXiv 2402.03300",
        frozenset({PERCEPTION}),
        surrogates=("ppo",),
        unread=_SYMMETRIC,
    ),
    "dapo": Objective(
        "pipelines.objectives.dapo:dapo", "A_i", "arXiv 2503.14476", "VPPO's authors' code, whose baseline it is"
    ),
    "grpo": Objective(
        "pipelines.objectives.dapo:grpo",
        "A_i, symmetric clipping, mean of means",
        "arXiv 2402.03300",
        "the paper",
        surrogates=("ppo",),
        unread=_SYMMETRIC,
    ),
    "vgpo": Objective(
        "pipelines.objectives.vgpo:vgpo",
        "inter_i intra_t A_i: 1 + w - mean w of w = minmax_i(cosine with the image), and of its sum in the group",
        "arXiv 2604.09349",
        "the authors' code; the variant paper: another's reading of the paper",
        frozenset({HIDDEN}),
        {
            "late": 0.3,
            "start": 0.5,
            "share": 0.2,
            "intra_low": 0.1,
            "intra_high": 2.0,
            "inter_low": 0.9,
            "inter_high": 2.0,
        },
        ("code", "paper"),
        limits={
            "late": "[0, inf)",
            "start": "[0, 1)",
            "share": "(0, 1]",
            "intra_low": "[0, 1]",
            "intra_high": "[1, inf)",
            "inter_low": "[0, 1]",
            "inter_high": "[1, inf)",
        },
        published_with="rollout.prompts_per_step 512, update.batch_prompts 128, rollout.samples_per_prompt 8",
    ),
    "pepo": Objective(
        "pipelines.objectives.pepo:pepo",
        "(1 - l + l w_t) A_i, l = update / steps; w = T softmax_i(V g / temperature), g of minmax_i(V) + minmax_i(H)",
        "arXiv 2603.22847",
        "the authors' code",
        frozenset({HIDDEN}),
        {"gate": 0.05, "temperature": 1.8, "steps": None},
        limits={"gate": "[0, inf)", "temperature": "(0, inf)", "steps": "[1, inf)"},
        published_with="rollout.samples_per_prompt 8; on GRPO update.kl_coefficient 0.001; steps: those of the run",
    ),
    "papo": Objective(
        "pipelines.objectives.papo:papo",
        "A_i; loss - gamma KL(p, q) + eta (H(p) + H(q))",
        "arXiv 2507.06448",
        "the authors' code; the variant exact: the paper's text, its KL and its entropies over the vocabulary",
        constants={"gamma": 0.01, "eta": 0.03},
        variants=("code", "exact"),
        of_variant={"code": frozenset({VIEWS}), "exact": frozenset({PERTURBED})},
        limits={"gamma": "[0, inf)", "eta": "[0, inf)"},
        published_with="gamma 0.02 and eta 0.05 on GRPO (7B); score.perturbation raw_black, score.probability 0.6, "
        "score.mask_per prompt, update.entropy_penalty 0",
    ),
    "pgpo": Objective(
        "pipelines.objectives.pgpo:pgpo",
        "w_t A_i; I = minmax_i(log(1 + S)), w = I / tau if I < tau, else 1 + beta (I - tau) / (1 - tau), of mean 1",
        "arXiv 2604.01840, eq. 6, 7",
        "the paper's text; code: another's report of the authors' unreleased code",
        frozenset({PERCEPTION}),
        {"tau": 0.4, "beta": 2.0},
        ("paper", "code"),
        limits={"tau": "(0, 1)", "beta": "[0, inf)"},
        published_with="rollout.samples_per_prompt 5; S against a pass with attention to the image masked, "
        "which no score.perturbation is (nearest: grey)",
    ),
    "vepo": Objective(
        "pipelines.objectives.vepo:vepo",
        "A_i on the share T tokens of highest (1 - (1 - J)^alpha (1 - abs(H - H'))^(1 - alpha)) H, each minmax_i; "
        "mean over these, symmetric clipping",
        "arXiv 2606.03937",
        "the authors' code",
        frozenset({VIEWS}),
        {"share": 0.2, "alpha": 0.7},
        surrogates=("ppo",),
        limits={"share": "(0, 1]", "alpha": "[0, 1]"},
        unread={**_SYMMETRIC, "loss_average": "it averages over the tokens that it keeps"},
        published_with="update.clip_low 0.2, no dual clip, rollout.samples_per_prompt 12, update.freeze_vision true; "
        "noise of deviation 2 (code: 6.93) on normalised pixels, which no score.perturbation is "
        "(nearest: gaussian_noise)",
    ),
    "tor": Objective(
        "pipelines.objectives.tor:tor",
        "reasoning_weight A_i on the batch's tokens of highest H, else perception_weight A_i on those of highest "
        "abs(log p - log q), else 0",
        "arXiv 2603.25077",
        "another's report of the paper's text",
        frozenset({VIEWS}),
        {"reasoning_share": 0.3, "perception_share": 0.3, "reasoning_weight": 1.0, "perception_weight": 0.5},
        limits={
            "reasoning_share": "(0, 1]",
            "perception_share": "(0, 1]",
            "reasoning_weight": "[0, inf)",
            "perception_weight": "[0, inf)",
        },
        published_with="rollout.samples_per_prompt 12; q without any image, which no score.perturbation is "
        "(nearest: grey); H of the top-p 0.95 set",
    ),
    "pivot-vaa": Objective(
        "pipelines.objectives.pivot:pivot_vaa",
        "A_i + beta abs(A_i) U_t, kept to A_i's sign; U = c + weight detrended(u F), c = 1 - q/p, F the discounted "
        "mean of the next window c, u = 1 - exp(-H / mean H)",
        "arXiv 2609.18057, eq. 10 to 15, 25 to 27",
        "the paper's text",
        frozenset({VIEWS}),
        {"beta": None, "weight": 0.5, "window": 32.0, "discount": 0.8},
        limits={"beta": "[0, inf)", "weight": "(-inf, inf)", "window": "[1, inf)", "discount": "[0, 1]"},
        published_with="score.probability 0.6, rollout.samples_per_prompt 8 (3B: 5), update.entropy_penalty 0.06; "
        "experience replay, which is not here",
    ),
    "tpae": Objective(
        "pipelines.objectives.tpae:tpae",
        "A_i + sigmoid(min(0, tau - M_t)) - 1/2; M: Mahalanobis distance of [S, H] from the same token's in the "
        "correct responses to the question",
        "arXiv 2609.39168",
        "summaries of the paper's text",
        frozenset({PERCEPTION}),
        {"tau": 3.03},
        limits={"tau": "[0, inf)"},
        published_with="score.probability 0.6, rollout.samples_per_prompt 16, update.entropy_penalty 0.06",
    ),
    "entropy-k": Objective(
        "pipelines.objectives.choices:entropy_k",
        "A_i on the batch's tokens of highest entropy, a share fraction of them, else 0",
        "arXiv 2506.01939",
        "the paper's text",
        constants={"fraction": 0.2},
        limits={"fraction": "(0, 1]"},
    ),
    "oracle-k": Objective(
        "pipelines.objectives.choices:oracle_k",
        "A_i on the tokens that are read from the image, else 0",
        "ours",
        "a control, on embedded data alone",
        frozenset({ROLES}),
    ),
    "oracle-k-reasoning": Objective(
        "pipelines.objectives.choices:oracle_k_reasoning",
        "A_i on the tokens that are read from the image or follow from what was, else 0",
        "ours",
        "a control, on embedded data alone",
        frozenset({ROLES}),
    ),
    "cgpo": Objective(
        "pipelines.objectives.cgpo:cgpo",
        "(1 + strength tanh((mean S_i - median) / MAD)) A_i on the batch's tokens of highest S, else A_i on those of "
        "highest H, else 0; S without the evidence regions",
        "doi 10.1145/3767308.3835969",
        "the authors' code, their second one (the paper's is not released)",
        frozenset({PERCEPTION}),
        {"strength": 0.1, "perception_share": 0.3, "reasoning_share": 0.3},
        limits={"strength": "[0, 1]", "perception_share": "(0, 1]", "reasoning_share": "(0, 1]"},
        published_with="score.estimator k3, rollout.samples_per_prompt 8, update.clip_high 0.2, update.kl_coefficient "
        "0.04; regions that the response itself names, in their mean colour, and a reward for naming them alike "
        "again, which are not here",
        perturbation="evidence",
    ),
}
"""``update.objective`` -> its row."""

SURROGATE_CONSTANTS: dict[str, dict[str, float]] = {
    "gspo": {"gspo_clip_low": 3e-4, "gspo_clip_high": 4e-4},
    "sapo": {"sapo_tau_positive": 1.0, "sapo_tau_negative": 1.05},
}
"""Constants of surrogates, set by ``update.constants`` as well."""

SURROGATE_LIMITS: dict[str, str] = {
    "gspo_clip_low": "[0, 1)",
    "gspo_clip_high": "[0, inf)",
    "sapo_tau_positive": "(0, inf)",
    "sapo_tau_negative": "(0, inf)",
}
"""Their intervals, as ``Objective.limits``."""

SURROGATE_AVERAGES: dict[str, Literal["sequence", "max_length"]] = {
    "gspo": "sequence",
    "dr_grpo": "max_length",
    "sapo": "sequence",
}
"""Surrogate -> what it averages over, whatever the objective does; others leave it to the objective."""

UNREAD: dict[str, dict[str, str]] = {
    "gspo": {
        "clip_low": "its width is update.constants.gspo_clip_low",
        "clip_high": "its width is update.constants.gspo_clip_high",
        "dual_clip": "it has none",
        "tis_cap": "it has one ratio for a response, and those weights are of single tokens",
    },
    "cispo": {"clip_low": "its ratio has no lower bound", "dual_clip": "its ratio is bounded whatever the sign"},
    "dr_grpo": {"loss_average": "it divides by the longest length there can be"},
    "sapo": {
        "clip_low": "a gate stands in place of clipping",
        "clip_high": "a gate stands in place of clipping",
        "dual_clip": "a gate stands in place of clipping",
    },
}
"""Surrogate -> settings of ``update`` that have no meaning with it, and why: refused but at their defaults."""


def find_objective(name: str) -> Any:
    """The function of an objective: a built-in one's, or that at an import path, whose result is looked at.

    Raises:
        UserError: there is none, or it asks for a pass that there is not.
    """
    row = OBJECTIVES.get(name)
    if row:
        module, _, function = row.code.partition(":")
        return getattr(import_module(module), function)
    check_name("update.objective", name, (*OBJECTIVES, *TOKEN_CHOICES))
    own = find_part("update.objective", name, {})
    _check_passes(name, _own_passes(own))

    @functools.wraps(own)
    def checked(batch: Any, settings: UpdateConfig) -> Any:
        place, looks = f"update.objective: {name}", import_module("pipelines.objectives.batch")  # brings torch
        with looks.unchanged(place, batch):
            terms = own(batch, settings)
        return looks.looked_at(place, terms, batch)

    return checked


def needs(config: Config) -> frozenset[str]:
    """What the objective needs; one of one's own may read all that a score step can hold."""
    row = OBJECTIVES.get(config.update.objective)
    return (row.needs | _of_variant(config.update)) - {PERTURBED} if row else STORES["all"]


def stored(config: Config) -> str:
    """The set of STORES that a score step holds: what ``score.store`` names, or the smallest that serves."""
    if config.score.store != "auto":
        return config.score.store
    wanted = needs(config) - {ROLES}
    return next(name for name, holds in STORES.items() if wanted <= holds)


def needs_two_views(config: Config) -> bool:
    """Whether the estimator looks at the perturbed image too."""
    return config.score.estimator not in ONE_VIEW


def watched(config: Config) -> Config:
    """The settings by which perception is measured where a step does not need it: the run's, and the exact KL
    where its estimator is none of both views."""
    how = {"store": KEYED} if needs_two_views(config) else {"store": KEYED, "estimator": "kl"}
    return config.model_copy(update={"score": config.score.model_copy(update=how)})


def measured_by(config: Config) -> str:
    """The estimator of the perception that a run has: of all its steps, or of those that are watched."""
    return (config if PERCEPTION in STORES[stored(config)] else watched(config)).score.estimator


def reads_twice(config: Config, holds: frozenset[str] | None = None) -> bool:
    """Whether a score step takes a pass over the perturbed view for what it holds, by default ``stored``."""
    holds = STORES[stored(config)] if holds is None else holds
    return VIEWS in holds or (PERCEPTION in holds and needs_two_views(config))


def passes(objective: Any, settings: UpdateConfig) -> frozenset[str]:
    """The passes of an objective's own: of its row, or of its attribute ``passes``, be it a function's, an object's or
    its class's."""
    row = OBJECTIVES.get(settings.objective)
    if row is None:
        return frozenset(_own_passes(objective))
    return (row.passes | _of_variant(settings)) & {PERTURBED}


def _own_passes(objective: Any) -> Any:
    """The attribute ``passes``; of what is wrapped, where the wrapper has none: it shows the attributes of an object,
    but not those of its class."""
    return getattr(inspect.unwrap(objective, stop=lambda part: hasattr(part, "passes")), "passes", ())


def _check_passes(name: str, asked: Any) -> None:
    """Raises UserError if they are no names of passes."""
    place, right = f"update.objective: {name}", f"Write passes = ({PERTURBED!r},), or leave it out."
    if isinstance(asked, str) or not isinstance(asked, Collection):
        raise UserError(place, f"its passes are {asked!r}, which is no list of names.", right)
    for one in asked:
        if one != PERTURBED:
            near = difflib.get_close_matches(str(one), [PERTURBED], n=1)
            raise UserError(
                place, f"{one!r}, of its passes, is none.", f"{f'Did you mean {PERTURBED}? ' * bool(near)}{right}"
            )


def _of_variant(settings: UpdateConfig) -> frozenset[str]:
    found = OBJECTIVES[settings.objective].of_variant
    return found.get(variant(settings.objective, settings), frozenset()) if found else frozenset()


def constants(name: str, settings: UpdateConfig) -> dict[str, float]:
    """An objective's constants by name, as published but for what ``update.constants`` gives."""
    known = OBJECTIVES[name].constants
    return {key: settings.constants.get(key, value) for key, value in known.items()}  # type: ignore[misc]


def surrogate_constants(settings: UpdateConfig) -> dict[str, float]:
    """The surrogate's constants likewise."""
    known = SURROGATE_CONSTANTS.get(settings.surrogate, {})
    return {key: settings.constants.get(key, value) for key, value in known.items()}


def variant(name: str, settings: UpdateConfig) -> str:
    """The variant of an objective that has some: as set, or its first; whatever ``update.objective`` calls it.

    Raises:
        UserError: it has none of that name.
    """
    known = OBJECTIVES[name].variants
    if settings.variant and settings.variant not in known:
        raise _no_such_variant(name, settings)
    return settings.variant or known[0]


def _no_such_variant(name: str, settings: UpdateConfig) -> UserError:
    row = OBJECTIVES.get(name)
    known = f"It has {' and '.join(row.variants)}." if row and row.variants else "It has one form only."
    return UserError(f"update.variant: {settings.variant}", f"{name} has no such variant.", known)


def check_read(config: Config) -> None:
    """See that what is set of the update is read by its objective and its surrogate. Asked of what is begun or
    changed alone: a run of an earlier version goes on as it began.

    Raises:
        UserError: it is not; names which.
    """
    settings = config.update
    row = OBJECTIVES.get(settings.objective)
    for what, chosen, unread in (
        ("surrogate", settings.surrogate, UNREAD.get(settings.surrogate, {})),
        ("objective", settings.objective, row.unread if row else {}),
    ):
        for key, why in unread.items():
            if (value := getattr(settings, key)) != UpdateConfig.model_fields[key].default:
                raise UserError(
                    f"update.{key}: {value}",
                    f"has no meaning with update.{what}: {chosen}: {why}.",
                    f"Leave it out, or take another {what}.",
                )


def check(config: Config) -> None:
    """See that there is such an objective, and that variant, surrogate, constants and what is stored fit it.

    Raises:
        UserError: they do not; names which.
    """
    settings = config.update
    check_name("update.objective", settings.objective, (*OBJECTIVES, *TOKEN_CHOICES))
    row, name = OBJECTIVES.get(settings.objective), f"update.objective: {settings.objective}"
    if (missing := needs(config) - STORES[stored(config)] - {ROLES}) and row:
        raise UserError(
            f"score.store: {config.score.store}",
            f"holds no {' or '.join(sorted(missing))}, which {settings.objective} needs.",
            "Leave score.store at auto, or take all.",
        )
    if settings.variant and settings.variant not in (row.variants if row else ()):
        raise _no_such_variant(settings.objective, settings)
    if row and settings.surrogate not in row.surrogates:
        raise UserError(
            f"update.surrogate: {settings.surrogate}",
            f"has no meaning with {name}, which brings its own clipping or averaging.",
            f"Take update.surrogate={row.surrogates[0]}, or another objective.",
        )
    if row and row.perturbation and config.score.perturbation != row.perturbation:
        raise UserError(
            f"score.perturbation: {config.score.perturbation}",
            f"{settings.objective} is defined by another.",
            f"Take score.perturbation={row.perturbation}, or another objective.",
        )
    known_constants = dict(row.constants if row else {}) | SURROGATE_CONSTANTS.get(settings.surrogate, {})
    limits = SURROGATE_LIMITS | dict(row.limits if row else {})
    for constant, given in settings.constants.items():
        place = f"update.constants.{constant}"
        if row and constant not in known_constants:
            near = difflib.get_close_matches(constant, known_constants, n=1)
            hint = f"Did you mean {near[0]}? " if near else ""
            listed = " ".join(known_constants) or "none"
            raise UserError(place, f"{settings.objective} has no such constant.", f"{hint}Known: {listed}.")
        interval = limits.get(constant, "(-inf, inf)") if constant in known_constants else "(-inf, inf)"
        if not _within(given, interval):
            published = known_constants.get(constant)
            fix = f"The published value is {published:g}." if published is not None else "None was published."
            raise UserError(place, f"{given:g} is not in {interval}.", fix)
    for constant, value in known_constants.items():
        if value is None and constant not in settings.constants:
            raise UserError(
                name,
                f"no value of its constant {constant} was published, so it has no default.",
                f"Set it: --set 'update.constants={{{constant}: ...}}' (docs/objectives.md says what is known).",
            )


def _within(value: float, interval: str) -> bool:
    """Whether a number lies in an interval as it is written: ``[0, 1)`` holds 0 and not 1."""
    low, high = map(float, interval[1:-1].split(","))
    return (low <= value if interval[0] == "[" else low < value) and (
        value <= high if interval[-1] == "]" else value < high
    )
