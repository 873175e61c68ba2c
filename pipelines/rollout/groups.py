"""Rollout stage: prompts -> groups of graded responses, with DAPO's dynamic sampling."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.config.schema import Config
from pipelines.disk.records import NAMED, ROLLOUTS, SURPLUS, Rollout, Sample, SampleTable, read_rows, write_rows
from pipelines.disk.step import checked, unreadable
from pipelines.errors import UserError
from pipelines.grading.reward import ACCURACY, REWARD, RewardFunction, check_keys
from pipelines.model.ragged import batches
from pipelines.model.sampling import Sampling
from pipelines.ranks.ranks import ranks
from pipelines.rollout.engine import Engine, group_row
from pipelines.seeds import generator
from pipelines.watch import Watch
from pipelines.words import counted

NEXT = "next.json"
"""Where the next step goes on in the order of prompts, and how many groups were informative."""


@dataclass
class Counts:
    """What was sampled in one step, for its metrics."""

    groups: int = 0
    informative: int = 0
    responses: int = 0
    correct: int = 0
    rewards: float = 0.0
    tokens: int = 0
    truncated: int = 0
    no_answer: int = 0
    timed_out: int = 0
    named: dict[str, list[float]] = field(default_factory=dict)

    def add(self, group: Rollout, informative: bool) -> None:
        self.groups += 1
        self.informative += informative
        self.responses += len(group.response)
        self.correct += group.outcome.count("correct")
        self.rewards += sum(group.reward)
        self.tokens += sum(map(len, group.response_ids))
        self.truncated += sum(group.truncated)
        self.no_answer += group.outcome.count("no_answer")
        self.timed_out += group.outcome.count("timed_out")
        for name, values in group.named.items():
            self.named.setdefault(name, []).extend(values)


def rollout(
    config: Config,
    step: int,
    samples: SampleTable,
    previous: Path | None,
    engine: Engine,
    reward: RewardFunction,
    out: Path,
    watch: Watch,
    expect: Callable[[Sequence[Sample]], None] = lambda _: None,
) -> dict[str, Any]:
    """Sample until the step has its groups; write them, and the surplus for the next step.

    Args:
        previous: the last step's rollout folder, whose surplus groups are used first, and which says
            where in the order of prompts to go on.
        expect: told which prompts this process will be asked for next.

    Raises:
        UserError: the batch is not full after ``rollout.max_tries`` rounds; a setting names a key that the
            reward does not return.
    """
    settings = config.rollout
    dropped = config.published.drop_surplus
    groups = read_rows(previous / SURPLUS, Rollout) if previous and not dropped else []
    carried = len(groups)
    position, share = _go_on(previous) if previous else (0, 1.0)
    if not settings.dynamic_sampling:
        share = 1.0
    counts, tries = Counts(), 0
    everyone, together = ranks(), settings.tensor_parallel
    chunk = settings.batch_prompts * everyone.workers(together)

    def mine(positions: Sequence[int]) -> list[Sample]:
        share = positions[everyone.rank // together :: everyone.workers(together)]
        return [samples[prompt_at(config.seed, position, len(samples))] for position in share]

    def sample(positions: list[int]) -> list[Rollout]:
        return sample_groups(config, step, samples, positions, engine, reward)

    while len(groups) < settings.prompts_per_step:
        if tries == settings.max_tries:
            raise _never_full(config, step, counts, len(groups))
        missing = settings.prompts_per_step - len(groups)
        wanted = min(math.ceil(missing / max(share, 0.1)), 4 * settings.prompts_per_step)
        if dropped:  # which are thrown away depends on the rounds: these are the authors'
            wanted = settings.prompts_per_step
        parts = list(batches(range(position, position + wanted), chunk))
        expect(mine(parts[0]))
        for part, following in zip_longest(parts, parts[1:], fillvalue=()):
            expect(mine([*part, *following]))
            watch.progress("groups", min(len(groups), settings.prompts_per_step), settings.prompts_per_step)
            for group in everyone.share(part, sample, together):
                if not counts.groups:
                    check_keys(config, group.named)
                informative = is_informative(config, group)
                counts.add(group, informative)
                if informative or not settings.dynamic_sampling:
                    groups.append(group)
        position += wanted
        tries += 1
        share = counts.informative / counts.groups
    used, surplus = groups[: settings.prompts_per_step], groups[settings.prompts_per_step :]
    thrown, surplus = (surplus, []) if dropped else ([], surplus)
    _warn(config, step, used, counts, watch)
    if everyone.main:
        write_rows(out / ROLLOUTS, Rollout, used)
        write_rows(out / SURPLUS, Rollout, surplus)
        text = json.dumps({"position": position, "informative_share": share})
        (out / NEXT).write_text(text + "\n", encoding="utf-8")
    metrics = _metrics(counts, used, carried, len(surplus), position, tries, share)
    return metrics | ({"groups_thrown_away": len(thrown)} if dropped else {})


def check_reward(config: Config, step: int, samples: SampleTable, reward: RewardFunction, watch: Watch) -> None:
    """Ask the grader about a gold, and the reward for the keys that settings name, before anything is sampled.

    Raises:
        UserError: the grader comes to no verdict; the reward has none of that name. One that cannot say so yet is asked
            again with the first responses.
    """
    if step == 1 and (doubt := reward.doubt(samples[0])):
        watch.note(f"WARNING {doubt}")
    if {config.rollout.filter_key, config.checkpoint.best_key} <= {ACCURACY, REWARD}:
        return
    named = reward.named(samples[0], config.rollout.samples_per_prompt)
    if named is not None:
        check_keys(config, named)


def _go_on(previous: Path) -> tuple[int, float]:
    """What the step before says of the next one: its first position, and the share of groups that were
    informative, from which a full batch is aimed at.

    Raises:
        UserError: it is damaged.
    """
    path = previous / NEXT
    try:
        found = json.loads(checked(path).read_bytes())
        position, share = found["position"], found["informative_share"]
        if type(position) is not int or position < 0 or not 0 <= share <= 1:
            raise ValueError(f"position {position!r}, informative_share {share!r}")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise unreadable(
            path,
            error,
            f"does not say where to go on ({error}).",
            "Delete its folder; it is made again when it is needed.",
        ) from error
    return position, float(share)


MOST_CUT_OFF = 0.3
"""A larger share of responses that were cut off is warned of."""
MOST_WITHOUT_VERDICT = 0.05
"""A larger share of responses whose answer the grader came to no verdict on is warned of."""


def _warn(config: Config, step: int, used: Sequence[Rollout], counts: Counts, watch: Watch) -> None:
    """Say where a step has nothing to learn from, responses that are cut off, or a grader that fails."""
    if all(len(set(group.reward)) == 1 for group in used):
        watch.note(
            f"WARNING step {step}: the responses to each prompt have equal rewards, so there is "
            "nothing to learn from (all advantages are 0)"
        )
    if counts.truncated > MOST_CUT_OFF * counts.responses:
        watch.note(
            f"WARNING step {step}: {counts.truncated} of {counts.responses} responses were cut off after "
            f"{config.rollout.max_new_tokens} tokens (rollout.max_new_tokens), with or without an answer"
        )
    if counts.timed_out > MOST_WITHOUT_VERDICT * counts.responses:
        watch.note(
            f"WARNING step {step}: {config.reward.grader} came to no verdict on {counts.timed_out} of "
            f"{counts.responses} responses: it failed, or was too slow"
        )


def sample_groups(
    config: Config, step: int, samples: SampleTable, positions: list[int], engine: Engine, reward: RewardFunction
) -> list[Rollout]:
    """Generate and grade the groups at these positions of the run's order of prompts."""
    chosen = [samples[prompt_at(config.seed, position, len(samples))] for position in positions]
    settings = config.rollout
    sampling = Sampling(
        settings.temperature,
        settings.top_p,
        settings.top_k,
        settings.max_new_tokens,
        settings.samples_per_prompt,
        config.seed,
    )
    generated = engine.generate(list(chosen), [(step, position) for position in positions], sampling)
    flat = [response for responses in generated for response in responses]
    owners: list[Sample] = [s for s, responses in zip(chosen, generated, strict=True) for _ in responses]
    graded = iter(reward([r.text for r in flat], owners, [r.truncated for r in flat]))
    return [
        group_row(sample, position, responses, [next(graded) for _ in responses], step)
        for sample, position, responses in zip(chosen, positions, generated, strict=True)
    ]


def prompt_at(seed: int, position: int, count: int) -> int:
    """Which of ``count`` prompts stands at a position of the endless, epoch-wise shuffled order."""
    epoch, place = divmod(position, count)
    return int(_epoch_order(seed, epoch, count)[place])


@lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, count: int) -> npt.NDArray[np.int64]:
    return generator(seed, "order", epoch).permutation(count)


def is_informative(config: Config, group: Rollout) -> bool:
    """DAPO's rule: some responses are right and some are wrong, so advantages are not all zero.

    By another ``rollout.filter_key``, whose scale nobody knows: not all have the same, as float32 holds them.
    """
    key = config.rollout.filter_key
    if key != ACCURACY:
        values = group.reward if key == REWARD else group.named[key]
        return bool(np.ptp(np.array(values, np.float32)) > 0)
    accuracy = group.outcome.count("correct") / len(group.outcome)
    return config.rollout.accuracy_low < accuracy < config.rollout.accuracy_high


def _metrics(
    counts: Counts, used: list[Rollout], carried: int, surplus: int, position: int, tries: int, share: float
) -> dict[str, Any]:
    seen = counts
    if not counts.groups:  # the surplus of earlier steps was enough: report what is used
        seen = Counts()
        for group in used:
            seen.add(group, informative=True)
    return {
        "accuracy": seen.correct / seen.responses,
        "reward": seen.rewards / seen.responses,
        **{NAMED + name: sum(values) / len(values) for name, values in sorted(seen.named.items())},
        "reward_used": sum(map(sum, (g.reward for g in used))) / sum(len(g.reward) for g in used),
        "groups_sampled": counts.groups,
        "groups_informative": counts.informative,
        "informative_share": share,
        "groups_carried_in": carried,
        "groups_surplus": surplus,
        "tries": tries,
        "next_position": position,
        "response_tokens_mean": seen.tokens / seen.responses,
        "truncated_share": seen.truncated / seen.responses,
        "no_answer_share": seen.no_answer / seen.responses,
        "timed_out_share": seen.timed_out / seen.responses,
        "tokens_sampled": counts.tokens,
        "tokens_used": sum(len(ids) for group in used for ids in group.response_ids),
    }


def _never_full(config: Config, step: int, counts: Counts, found: int) -> UserError:
    settings = config.rollout
    tries = f"after {counted(settings.max_tries, 'round')} ({counted(counts.groups, 'prompt')}"
    wanted = f"only {found} of {settings.prompts_per_step} groups have"
    more = (
        "a lower rollout.prompts_per_step, more rollout.samples_per_prompt or rollout.max_tries; or set "
        "rollout.dynamic_sampling=false."
    )
    if settings.filter_key != ACCURACY:
        key = f"rollout.filter_key: {settings.filter_key}"
        problem = f"{wanted} responses that differ in it {tries})."
        return UserError(f"rollout, step {step}, {key}", problem, f"Use another key, {more}")
    right = counts.correct / max(counts.responses, 1)
    easier = "harder" if right > 0.5 else "easier"
    return UserError(
        f"rollout, step {step}",
        f"{wanted} both right and wrong answers {tries}, {right:.1%} of answers right).",
        f"Use {easier} questions, {more}",
    )
