"""One saved step under every objective: the credit of its tokens, its gradient, what both say."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations_with_replacement
from pathlib import Path

import torch
from torch import Tensor

from pipelines.config.schema import Config
from pipelines.disk.records import Rollout, SampleTable, Scored, read_scores
from pipelines.embedded.glyphs import is_embedded
from pipelines.errors import UserError
from pipelines.ledger import credit, theorem
from pipelines.ledger.gradients import LedgerTrainer, Part, Sums
from pipelines.ledger.objectives import Chosen
from pipelines.model import determinism
from pipelines.model.policy import Policy
from pipelines.model.ragged import pad_lists
from pipelines.model.token_texts import token_texts
from pipelines.objectives import table
from pipelines.objectives.table import PERCEPTION, ROLES
from pipelines.objectives.vppo import shaping
from pipelines.score.scoring import score, token_roles
from pipelines.update.batches import Groups, make_batch, make_terms, make_tokens
from pipelines.watch import Watch

DISAGREEMENTS = 12
"""Tokens that are told of, of a step."""

ROLE_NAMES = ("perception", "reasoning", "template")


@dataclass(frozen=True)
class Line:
    """What one objective does with the step; None where a number has no meaning or was not asked for.

    Attributes:
        own_terms: whether its loss has further terms, which are in the gradient and in no weight.
        average: over what the loss is averaged, which is in the weights.
        mass: effective token mass, a share of the tokens (credit.mass).
        overlap: of its top tokens with VPPO's (credit.overlap).
        correlation: rank correlation of |w| with VPPO's, over all response tokens.
        shares: of sum |w| by true role.
        norm: of the gradient.
        to_vppo, to_dapo: its cosine with theirs.
        variance: of the gradient over the groups, relative to DAPO's.
        predicted: sum w^2 relative to DAPO's, which the theorem's argument gives for it (theorem.square_ratio).
        paper: k E[alpha^2], for VPPO and its parts alone (theorem.paper_ratio).
    """

    name: str
    formula: str
    source: str
    known: str
    variant: str | None
    surrogate: str
    constants: dict[str, float]
    average: str
    own_terms: bool
    mass: float | None = None
    overlap: float | None = None
    correlation: float | None = None
    shares: dict[str, float] | None = None
    norm: float | None = None
    to_vppo: float | None = None
    to_dapo: float | None = None
    variance: float | None = None
    predicted: float | None = None
    paper: float | None = None


@dataclass(frozen=True)
class Ledger:
    """A step, an objective a line, and what they make of each other.

    Attributes:
        groups: rollouts and the scores that all weights come from.
        estimator: of S.
        role_shares: of the tokens, by true role; None where nobody knows.
        kept_share: of the tokens that VPPO keeps.
        overlaps, cosines: between all objectives, in the order of the lines.
        disagreements: the tokens that two objectives rank most differently, those at random left out.
        moved: mean |difference| of the sampled tokens' log-probs from those of the run's own scores, nats: 0 but
            for rounding where the policy is what it was; None where these are not on disk.
        credits: w_BT of each objective, on the CPU; rows are the responses of all groups in order.
        tokens: the text of each token.
        roles: its true role.
    """

    step: int
    groups: list[tuple[Rollout, Scored]]
    estimator: str
    batches: int
    token_count: int
    lines: list[Line]
    left_out: dict[str, str]
    kept_share: float
    moved: float | None
    role_shares: dict[str, float] | None
    overlaps: list[list[float | None]]
    cosines: list[list[float | None]] | None
    disagreements: list[credit.Disagreement]
    assumptions: theorem.Assumptions | None
    credits: dict[str, Tensor] = field(repr=False)
    tokens: list[list[str]] = field(repr=False)
    roles: list[list[str]] | None = field(repr=False)


@dataclass(frozen=True)
class _Weighed:
    """The step's responses under one objective, its update batches joined."""

    parts: list[Part]
    w_BT: Tensor


def scored_again(
    step: int, rollouts: Sequence[Rollout], samples: SampleTable, policy: Policy, chosen: Sequence[Chosen], watch: Watch
) -> dict[tuple[str, str], list[Scored]]:
    """The step's scores with what these objectives need, a scoring for each way in which S is measured."""
    found: dict[tuple[str, str], list[Scored]] = {}
    for one in chosen:
        if one.measured not in found:
            alike = [other for other in chosen if other.measured == one.measured]
            needed = frozenset({PERCEPTION}).union(*(table.needs(other.config) for other in alike)) - {ROLES}
            with tempfile.TemporaryDirectory() as out:
                score(one.config, step, rollouts, samples, policy, Path(out), watch, needed)
                found[one.measured] = read_scores(Path(out), step)
    return found


def ledger(
    config: Config,
    step: int,
    rollouts: Sequence[Rollout],
    samples: SampleTable,
    policy: Policy,
    chosen: Sequence[Chosen],
    left_out: Mapping[str, str],
    updates: int,
    trainer: LedgerTrainer | None,
    recorded: Sequence[Scored] | None,
    watch: Watch,
) -> Ledger:
    """Weigh the tokens of a step by every objective, and take the gradients.

    Args:
        config: the run's.
        policy: after ``step - 1`` updates.
        chosen: the references among them.
        updates: optimizer steps that were made before.
        trainer: of the policy; None: no gradients are taken.
        recorded: the run's own scores of these rollouts, if they are on disk.
    """
    scored = scored_again(step, rollouts, samples, policy, chosen, watch)

    def batches_of(scores: Sequence[Scored]) -> list[Groups]:
        groups, size = list(zip(rollouts, scores, strict=True)), config.update.batch_prompts
        return [groups[i : i + size] for i in range(0, len(groups), size)]

    weighed = {one.name: _weigh(one, batches_of(scored[one.measured]), samples, policy, updates) for one in chosen}
    scores = scored[next(one.measured for one in chosen if one.name == "vppo")]
    groups, batches = list(zip(rollouts, scores, strict=True)), batches_of(scores)
    mask_BT = pad_lists([ids for group in rollouts for ids in group.response_ids])[1]
    credits = {name: found.w_BT.cpu() for name, found in weighed.items()}
    keep_BT = pad_lists([k for row in scores for k in row.keep])[0].bool()
    alpha_B = torch.cat([shaping(p.batch, p.config.update) for p in weighed["vppo"].parts]).cpu()
    adv_B = torch.cat([part.batch.adv_B for part in weighed["dapo"].parts]).cpu()
    sums: dict[str, Sums] = {}
    checked = None
    if trainer:
        with determinism.strict(policy.device):
            _gradients(batches, samples, weighed, trainer, sums, watch)
            drawn = theorem.draw(config.seed, step, mask_BT.sum(-1).tolist())

            def progress(done: int) -> None:
                watch.progress("tokens", done, len(drawn))

            if drawn:
                of_tokens = theorem.measure(trainer, groups, samples, drawn, keep_BT, alpha_B, adv_B, progress)
                checked = theorem.assumptions(of_tokens, alpha_B, adv_B, config.seed, step)
    roles = roles_of(policy, samples, rollouts)
    texts = [token_texts(policy.tokenizer, ids) for group in rollouts for ids in group.response_ids]
    role_masks = None if roles is None else _role_masks(roles)
    names = list(weighed)
    ranked = {one.name: credits[one.name] for one in chosen if one.config.score.estimator != "random"}
    pairs = [tuple(sorted(pair)) for pair in combinations_with_replacement(names, 2)]
    count_B = keep_BT.sum(-1)
    overlaps = {(a, b): credit.overlap(credits[a], credits[b], mask_BT, count_B) for a, b in pairs}
    cosines = {(a, b): sums[a].cosine(sums[b]) for a, b in pairs} if sums else None
    paper = {
        "vppo": theorem.paper_ratio(alpha_B, keep_BT, mask_BT),
        "vppo-tas": theorem.paper_ratio(alpha_B, mask_BT, mask_BT),
        "vppo-tgf": theorem.paper_ratio(torch.ones_like(alpha_B), keep_BT, mask_BT),
    }

    def line(one: Chosen) -> Line:
        w_BT, terms = credits[one.name], weighed[one.name].parts[0].terms
        own = sums.get(one.name)
        below = sums["dapo"].variance if sums else 0.0
        return Line(
            name=one.name,
            formula=one.formula,
            source=one.row.source if one.row else one.name,
            known=one.row.known if one.row else "your own",
            variant=one.variant,
            surrogate=one.config.update.surrogate,
            constants=one.constants,
            average=terms.average,
            own_terms=terms.extra is not None,
            mass=credit.mass(w_BT, mask_BT),
            overlap=overlaps[min(one.name, "vppo"), max(one.name, "vppo")],
            correlation=credit.spearman(w_BT[mask_BT].abs().numpy(), credits["vppo"][mask_BT].abs().numpy()),
            shares=credit.shares(w_BT, role_masks) if role_masks else None,
            norm=own.norm if own else None,
            to_vppo=own.cosine(sums["vppo"]) if own else None,
            to_dapo=own.cosine(sums["dapo"]) if own else None,
            variance=own.variance / below if own and below else None,
            predicted=None if terms.extra else theorem.square_ratio(w_BT, credits["dapo"]),
            paper=paper.get(one.name),
        )

    return Ledger(
        step=step,
        groups=groups,
        estimator=config.score.estimator,
        batches=len(batches),
        token_count=int(mask_BT.sum()),
        lines=[line(one) for one in chosen],
        left_out=dict(left_out),
        kept_share=(keep_BT.sum() / mask_BT.sum()).item(),
        moved=_moved(step, groups, recorded),
        role_shares=credit.shares(mask_BT.double(), role_masks) if role_masks else None,
        overlaps=credit.matrix(names, overlaps),
        cosines=None if cosines is None else credit.matrix(names, cosines),
        disagreements=credit.disagreements(ranked, mask_BT, DISAGREEMENTS),
        assumptions=checked,
        credits=credits,
        tokens=texts,
        roles=roles,
    )


def _weigh(one: Chosen, batches: Sequence[Groups], samples: SampleTable, policy: Policy, updates: int) -> _Weighed:
    objective = table.find_objective(one.config.update.objective)
    parts, weights = [], []
    for number, groups in enumerate(batches):
        batch = make_batch(one.config, groups, samples, policy, updates + number)
        terms = make_terms(objective, batch, one.config.update)
        loss_mask_BT = make_tokens(one.config, groups, policy.device).loss_mask_BT
        parts.append(Part(one.config, batch, terms))
        w_BT = credit.credit_BT(terms, loss_mask_BT, batch.max_tokens)
        weights += [row[:length] for row, length in zip(w_BT, batch.mask_BT.sum(-1).tolist(), strict=True)]
    return _Weighed(parts, torch.nn.utils.rnn.pad_sequence(weights, batch_first=True))


def _gradients(
    batches: Sequence[Groups],
    samples: SampleTable,
    weighed: Mapping[str, _Weighed],
    trainer: LedgerTrainer,
    sums: dict[str, Sums],
    watch: Watch,
) -> None:
    done, total = 0, sum(map(len, batches))
    for number, groups in enumerate(batches):
        parts = {name: one.parts[number] for name, one in weighed.items()}
        for _ in trainer.sums(groups, samples, parts, sums):
            watch.progress("gradients", done, total)
            done += 1
    for name, found in sums.items():
        if not math.isfinite(found.square):
            raise UserError(
                f"objective {name}", "its gradient is not finite here.", "Leave gradients out: --no-gradients."
            )


def roles_of(policy: Policy, samples: SampleTable, rollouts: Sequence[Rollout]) -> list[list[str]] | None:
    """The true role of each token of each response; None where nobody knows them."""
    if not known_roles(samples, rollouts):
        return None
    return [
        token_roles(policy, samples.by_id(group.sample_id), ids) for group in rollouts for ids in group.response_ids
    ]


def known_roles(samples: SampleTable, rollouts: Sequence[Rollout]) -> bool:
    """Whether the questions are embedded data, which says what each token is for."""
    return all(is_embedded(samples.by_id(group.sample_id)) for group in rollouts)


def _role_masks(roles: Sequence[Sequence[str]]) -> dict[str, Tensor]:
    return {name: pad_lists([[one == name for one in row] for row in roles])[0].bool() for name in ROLE_NAMES}


def _moved(step: int, groups: Groups, recorded: Sequence[Scored] | None) -> float | None:
    gaps = [
        abs(now - before)
        for (rollout, scored), row in zip(groups, recorded or (), strict=recorded is not None)
        if rollout.step == step
        for ours, theirs in zip(scored.old_logp, row.old_logp, strict=True)
        for now, before in zip(ours, theirs, strict=True)
    ]
    return sum(gaps) / len(gaps) if gaps else None
