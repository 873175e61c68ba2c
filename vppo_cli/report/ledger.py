"""A ledger as values: for programs, as tables, and as the sections of its page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from evals.report.tables import Table
from pipelines.chain import Chain
from pipelines.disk.provenance import provenance
from pipelines.disk.records import SampleTable
from pipelines.ledger.columns import COLUMNS, assumption_rows, cell, disagreement, drawn, place_of, size
from pipelines.ledger.credit import Disagreement
from pipelines.ledger.step import Ledger
from pipelines.ledger.theorem import Estimate
from pipelines.page import embedded_json
from pipelines.words import counted
from vppo_cli.report.curves import short

CREDIT_BYTES = 6_000_000
"""Characters of JSON that one step's responses may take in a page, before they are compressed."""


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
            notes.append(
                f"Step {one.step}: {left} of {counted(len(one.tokens), 'response')} {'is' if left == 1 else 'are'} "
                "left out for the page's size."
            )
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
                ["Update batch", counted(update.batch_prompts, "prompt")],
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
