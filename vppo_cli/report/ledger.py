"""A ledger as values: for programs, as tables, and as the sections of its page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from evals.report.tables import Table
from pipelines.chain import Chain
from pipelines.disk.provenance import provenance
from pipelines.disk.records import SampleTable
from pipelines.ledger.credit import Disagreement
from pipelines.ledger.step import Ledger, Line
from pipelines.ledger.theorem import Assumptions, Estimate
from pipelines.page import embedded_json
from vppo_cli.report.curves import short

CREDIT_BYTES = 6_000_000
"""Characters of JSON that one step's responses may take in a page, before they are compressed."""


@dataclass(frozen=True)
class Column:
    """A number of a line: its name in JSON, on a page, what it means, and where it stands in the line."""

    key: str
    title: str
    about: str
    of: Callable[[Line], float | None]
    places: int = 2


def _share(role: str) -> Callable[[Line], float | None]:
    return lambda line: line.shares[role] if line.shares else None


COLUMNS = (
    Column("mass", "token mass", "(sum |w|)^2 / sum w^2 over the number of tokens", lambda x: x.mass),
    Column("overlap", "VPPO's top", "of its most weighted tokens, the share that VPPO keeps", lambda x: x.overlap),
    Column("correlation", "rank", "rank correlation of |w| with VPPO's over all tokens", lambda x: x.correlation),
    Column("perception", "perception", "share of |w| on tokens that tell what was seen", _share("perception")),
    Column("reasoning", "reasoning", "share of |w| on tokens that compute", _share("reasoning")),
    Column("template", "template", "share of |w| on all other tokens", _share("template")),
    Column("to_vppo", "cos VPPO", "cosine of the gradient with VPPO's", lambda x: x.to_vppo),
    Column("to_dapo", "cos DAPO", "cosine of the gradient with DAPO's", lambda x: x.to_dapo),
    Column("norm", "norm", "of the gradient, before clipping", lambda x: x.norm, 3),
    Column("variance", "variance", "of the gradient over the groups, DAPO's is 1", lambda x: x.variance),
    Column("predicted", "theory", "the variance by sum w^2 (Theorem 3.1's argument)", lambda x: x.predicted),
)


def cell(value: float | None, places: int = 2) -> str:
    """A number in fixed places; "" for none."""
    return "" if value is None else f"{value:.{places}f}"


# -- for programs ----------------------------------------------------------------------------------


def as_json(chain: Chain, found: Sequence[Ledger]) -> dict[str, Any]:
    """Everything but the tokens themselves."""
    return {"run": chain.run.name, "definitions": definitions(), "steps": [step_values(chain, one) for one in found]}


def definitions() -> dict[str, str]:
    """What each number of a line is."""
    return {column.key: column.about for column in COLUMNS}


def step_values(chain: Chain, found: Ledger) -> dict[str, Any]:
    """One step's."""
    return {
        "step": found.step,
        "policy_updates": found.step - 1,
        "rollout": chain.rollout(found.step).path.name,
        "policy_key": chain.policy_key(found.step - 1),
        "prompts": len(found.groups),
        "responses": sum(len(rollout.response_ids) for rollout, _ in found.groups),
        "tokens": found.token_count,
        "update_batches": found.batches,
        "estimator": found.estimator,
        "kept_share": found.kept_share,
        "logp_moved": found.moved,
        "role_shares": found.role_shares,
        "objectives": [asdict(line) for line in found.lines],
        "left_out": found.left_out,
        "names": [line.name for line in found.lines],
        "overlaps": found.overlaps,
        "cosines": found.cosines,
        "disagreements": [disagreement(found, one) for one in found.disagreements],
        "assumptions": asdict(found.assumptions) if found.assumptions else None,
    }


def place_of(found: Ledger, row: int) -> tuple[int, int]:
    """(prompt, response) of a response, both from 1, by its number in the step."""
    for prompt, (rollout, _) in enumerate(found.groups, start=1):
        if row < len(rollout.response_ids):
            return prompt, row + 1
        row -= len(rollout.response_ids)
    raise IndexError(row)


def disagreement(found: Ledger, one: Disagreement) -> dict[str, Any]:
    """A token that two objectives rank differently; ``token`` counts from 1."""
    prompt, response = place_of(found, one.row)
    return asdict(one) | {
        "prompt": prompt,
        "response": response,
        "token": one.token + 1,
        "text": found.tokens[one.row][one.token],
        "role": found.roles[one.row][one.token] if found.roles else None,
    }


# -- tables ----------------------------------------------------------------------------------------


def tables(found: Ledger) -> list[Table]:
    """One step's, for Markdown and LaTeX."""
    head = ["", *(column.title for column in COLUMNS)]
    body = [[line.name, *(cell(column.of(line), column.places) for column in COLUMNS)] for line in found.lines]
    if found.role_shares:
        shares = [cell(found.role_shares.get(column.key)) for column in COLUMNS]
        body.append(["all tokens", *shares])
    shown = [i for i, name in enumerate(head) if not i or any(row[i] for row in body)]
    shown_body = [[row[i] for i in shown] for row in body]
    made = [Table(f"Step {found.step}: {size(found)}", [head[i] for i in shown], shown_body)]
    if found.assumptions:
        rows = [[text, assumed, _interval(value)] for text, assumed, value in assumption_rows(found.assumptions)]
        made.append(
            Table(
                f"Theorem 3.1's assumptions on {drawn(found.assumptions)}, with 95 % intervals",
                ["", "assumed", "found"],
                rows,
            )
        )
    if found.disagreements:
        rows = []
        for one in found.disagreements:
            told = disagreement(found, one)
            at = f"{told['prompt']}.{told['response']}"
            rows.append(
                [told["text"], told["role"] or "", at, *(f"{n}: {_rank(one, n)}" for n in (one.most, one.least))]
            )
        made.append(
            Table("Tokens that are ranked most differently", ["token", "role", "in", "highest", "lowest"], rows)
        )
    return made


def size(found: Ledger) -> str:
    """``32 prompts x 8 responses, 6,912 tokens``."""
    counts = {len(rollout.response_ids) for rollout, _ in found.groups}
    each = f"{counts.pop()} responses" if len(counts) == 1 else "responses"
    return f"{len(found.groups)} prompts x {each}, {found.token_count:,} tokens"


def drawn(found: Assumptions) -> str:
    """What the assumptions were looked at on."""
    return f"{found.tokens} tokens of {found.responses} responses"


def assumption_rows(found: Assumptions) -> list[tuple[str, str, Estimate]]:
    """(what, what the theorem assumes, what was found)."""
    return [
        ("cosine of the gradients of two tokens of a response", "0", found.cosine),
        ("spread of their norms (standard deviation over mean)", "0", found.spread),
        ("mean square norm of VPPO's tokens over that of all", "1", found.kept),
        ("rank correlation of norm and alpha", "0", found.alpha_norm),
        ("rank correlation of norm and |A|", "0", found.advantage_norm),
        ("rank correlation of alpha and |A|", "0", found.alpha_advantage),
    ]


def _interval(found: Estimate) -> str:
    if found.value is None:
        return ""
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"


def _rank(one: Disagreement, name: str) -> str:
    return f"{one.ranks[name]:g} of {one.length}"


# -- the page --------------------------------------------------------------------------------------


def sections(chain: Chain, found: Sequence[Ledger], samples: SampleTable) -> dict[str, Any]:
    """What pipelines/page/ledger.js shows."""
    entries, notes = [], []
    for one in found:
        some, left = credit_entries(one, samples)
        entries += some
        if left:
            notes.append(f"Step {one.step}: {left} of {len(one.tokens)} responses are left out for the page's size.")
    score, update = chain.config.score, chain.config.update
    return {
        "line": f"run {chain.run.name}  \u00b7  steps {', '.join(str(one.step) for one in found)}  \u00b7  "
        f"{len(found[0].lines)} objectives  \u00b7  perception by {found[0].estimator}",
        "ledger": {
            "columns": [[column.key, column.title, column.about, column.places] for column in COLUMNS],
            "steps": [
                step_values(chain, one)
                | {
                    "rows": [
                        [short(v, 5) if (v := column.of(line)) is not None else None for column in COLUMNS]
                        for line in one.lines
                    ],
                    "assumption_rows": [
                        [text, assumed, value.value, value.low, value.high]
                        for text, assumed, value in (assumption_rows(one.assumptions) if one.assumptions else [])
                    ],
                }
                for one in found
            ],
        },
        "credit": entries,
        "credit_notes": notes,
        "agreement": True,
        "theorem": True,
        "provenance": {
            "facts": [
                ["Run", chain.run.name],
                ["Model", chain.config.model.path],
                ["Data", chain.config.data.source],
                ["Seed", str(chain.config.seed)],
                ["Its own objective", update.objective],
                [
                    "Perception S",
                    f"{found[0].estimator}, {score.perturbation} {score.probability:g}, a mask per {score.mask_per}",
                ],
                ["Kept share k", f"{score.keep_fraction:g}"],
                ["Update batch", f"{update.batch_prompts} prompts"],
                ["Versions", ", ".join(f"{name} {version}" for name, version in provenance().items())],
            ],
            "steps": [
                [one.step, chain.rollout(one.step).path.name, chain.policy_key(one.step - 1)[:12], one.moved]
                for one in found
            ],
            "objectives": [
                [
                    line.name,
                    line.formula,
                    line.source,
                    line.known,
                    ", ".join(
                        [*([line.variant] if line.variant else []), *(f"{k} {v:g}" for k, v in line.constants.items())]
                    ),
                    f"{line.surrogate}, mean by {line.average}" + (", terms of its own" if line.own_terms else ""),
                ]
                for line in found[0].lines
            ],
            "left_out": sorted({(name, why) for one in found for name, why in one.left_out.items()}),
        },
    }


def credit_entries(found: Ledger, samples: SampleTable, most: int = CREDIT_BYTES) -> tuple[list[dict[str, Any]], int]:
    """The step's responses with their weights, those with a disagreement first as long as there is room; then in
    order. Also how many are left out."""
    told = dict.fromkeys(one.row for one in found.disagreements)
    order = [*told, *(row for row in range(len(found.tokens)) if row not in told)]
    taken: list[tuple[int, dict[str, Any]]] = []
    for row in order:
        entry = _entry(found, row, samples)
        most -= len(embedded_json(entry))
        if most < 0 and taken:
            break
        taken.append((row, entry))
    return [entry for _, entry in sorted(taken, key=lambda one: one[0])], len(order) - len(taken)


def _entry(found: Ledger, row: int, samples: SampleTable) -> dict[str, Any]:
    prompt, response = place_of(found, row)
    rollout, scored = found.groups[prompt - 1]
    length, place = len(found.tokens[row]), response - 1
    sample = samples.by_id(rollout.sample_id)
    return {
        "step": found.step,
        "prompt": prompt,
        "response": response,
        "problem": sample.problem,
        "gold": sample.answer,
        "answer": rollout.answer[place],
        "outcome": rollout.outcome[place],
        "reward": short(rollout.reward[place]),
        "tokens": found.tokens[row],
        "roles": found.roles[row] if found.roles else None,
        "perception": [short(v, 4) for v in scored.perception[place]],
        "weights": [[short(v) for v in w_BT[row, :length].tolist()] for w_BT in found.credits.values()],
    }
