"""Responses -> rewards and outcomes.

The built-in reward ``outcome`` is 1 for a correct answer and 0 otherwise. Any other is named by
import path, ``my_package.my_module:my_function``, with this signature::

    def my_function(responses: list[str], samples: list[Sample]) -> list[float]

Both lists have one entry per response (a sample appears once for each of its responses), and so
has the result. Every response is graded as well, so outcomes are reported whatever is rewarded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from pipelines.config.resolve import find_part
from pipelines.disk.records import Sample
from pipelines.errors import UserError
from pipelines.grading.answer import NO_BOX, extract_answer, published_answer
from pipelines.grading.graders import Closing, GraderPool, check_grader

Outcome = Literal["correct", "wrong", "no_answer", "timed_out", "truncated"]
OUTCOMES: tuple[Outcome, ...] = ("correct", "wrong", "no_answer", "timed_out", "truncated")

RewardScorer = Callable[[list[str], list[Sample]], Sequence[float]]
"""What an import path must lead to."""


def outcome_reward(outcomes: Sequence[Outcome]) -> list[float]:
    """1 for a correct answer, 0 for anything else."""
    return [1.0 if outcome == "correct" else 0.0 for outcome in outcomes]


REWARDS: dict[str, Callable[[Sequence[Outcome]], list[float]]] = {"outcome": outcome_reward}
"""The built-in rewards, each a function of the outcomes."""

_OF_VERDICT: dict[bool | None, Outcome] = {True: "correct", False: "wrong", None: "timed_out"}


@dataclass(frozen=True)
class Graded:
    """One response's answer ("" if it has none), what came of it, and its reward."""

    answer: str
    outcome: Outcome
    reward: float


class RewardFunction(Closing):
    """Grades and rewards responses; a context manager, as it owns grading processes."""

    def __init__(self, reward: str, grader: str, pool: GraderPool, choice_rule: bool = True) -> None:
        self._choice_rule = choice_rule
        self._name, self._grader, self._pool = reward, check_grader(grader), pool
        self._scorer: RewardScorer | None = None
        if reward not in REWARDS:
            self._scorer = find_part("reward.function", reward, REWARDS)

    def close(self) -> None:
        """End the grading processes."""
        self._pool.close()

    def __call__(self, responses: Sequence[str], samples: Sequence[Sample], truncated: Sequence[bool]) -> list[Graded]:
        """Grade and reward responses; the three sequences run in parallel, one entry a response.

        A truncated response is graded if it holds an answer all the same.

        Raises:
            UserError: the grader cannot be loaded, or the named reward returned something else
                than one finite number per response.
        """
        answers: list[str | None]
        if self._choice_rule:
            answers = [extract_answer(response) for response in responses]
            outcomes = outcomes_of(answers, samples, truncated, self._pool, self._grader)
        else:
            boxed = [published_answer(response) for response in responses]
            answers = [None if answer == NO_BOX else answer for answer in boxed]
            outcomes = published_outcomes(responses, samples, truncated, self._pool, self._grader)
        if self._scorer is None:
            rewards = REWARDS[self._name](outcomes)
        else:
            scores = self._scorer(list(responses), list(samples))
            rewards = _checked(scores, len(responses), self._name)
        return [
            Graded(answer or "", outcome, reward)
            for answer, outcome, reward in zip(answers, outcomes, rewards, strict=True)
        ]


def outcomes_of(
    answers: Sequence[str | None], samples: Sequence[Sample], truncated: Sequence[bool], pool: GraderPool, grader: str
) -> list[Outcome]:
    """What came of each answer, by the project's rules and the grader; None is a response that holds none.

    Of several golds any counts.

    Raises:
        UserError: the grader cannot be loaded.
    """
    items = [
        (i, (answer, gold, sample.kind))
        for i, (answer, sample) in enumerate(zip(answers, samples, strict=True))
        if answer is not None
        for gold in golds(sample)
    ]
    found: dict[int, bool | None] = {}
    verdicts = pool.grade([item for _, item in items], grader)
    for (i, _), verdict in zip(items, verdicts, strict=True):
        before = found.setdefault(i, verdict)
        found[i] = True if before or verdict else None if None in (before, verdict) else False
    return [
        _OF_VERDICT[found[i]] if i in found else ("truncated" if cut else "no_answer")
        for i, cut in enumerate(truncated)
    ]


def published_outcomes(
    responses: Sequence[str],
    samples: Sequence[Sample],
    truncated: Sequence[bool],
    pool: GraderPool,
    grader: str = "mathruler",
) -> list[Outcome]:
    """What came of each response as published: by the grader alone (theirs is mathruler), on the boxed
    text, against the gold as the data set has it.

    Raises:
        UserError: the grader cannot be loaded.
    """
    answers = [published_answer(response) for response in responses]
    # "None", where there is no box, is graded like any other text; spared where it cannot be right.
    asked = [
        i
        for i, (answer, sample) in enumerate(zip(answers, samples, strict=True))
        if answer != NO_BOX or "none" in sample.answer.lower()
    ]
    items = [(answers[i], samples[i].answer, samples[i].kind) for i in asked]
    verdicts = dict(zip(asked, pool.grade(items, grader, alone=True), strict=True))
    return [
        _OF_VERDICT[verdicts[i]] if verdicts.get(i) or answer != NO_BOX else ("truncated" if cut else "no_answer")
        for i, (answer, cut) in enumerate(zip(answers, truncated, strict=True))
    ]


GOLDS = "golds"
"""In a question's metadata: what counts as right, where that is not just its answer."""


def golds(sample: Sample) -> list[str]:
    """What counts as right: the answer, or each of those that the question's metadata lists.

    Raises:
        UserError: what it has there is no list of texts.
    """
    if f'"{GOLDS}"' not in (sample.metadata or ""):
        return [sample.answer]
    found = sample.details().get(GOLDS) or [sample.answer]
    if not isinstance(found, list) or not all(isinstance(gold, str) for gold in found):
        raise UserError(f"sample {sample.id}, metadata", f"{GOLDS} {found!r} is no list of texts.", 'Such as ["7"].')
    return found


def make_reward(
    reward: str = "outcome",
    grader: str = "mathruler",
    deadline_s: float = 5.0,
    workers: int = 2,
    *,
    choice_rule: bool = True,
) -> RewardFunction:
    """Build the reward that a config names; no process starts before the first answer needs one.

    Args:
        choice_rule: False: as published, ``published_outcomes``.

    Raises:
        UserError: no such reward or grader, or the import path leads nowhere.
    """
    pool = GraderPool(workers=workers, deadline_s=deadline_s)
    return RewardFunction(reward, grader, pool, choice_rule)


LARGEST_REWARD = 3.4e38
"""What float32, in which rewards are kept, can hold."""


def _checked(scores: Sequence[float], count: int, name: str) -> list[float]:
    """The scores as floats, if there are ``count`` of them and all are finite."""
    fix = "Return list[float] with one finite reward per response."
    try:
        rewards = [float(score) for score in scores]
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"reward {name}", f"it did not return numbers ({error}).", fix) from error
    if len(rewards) != count:
        problem = f"it returned {len(rewards)} rewards for {count} responses."
        raise UserError(f"reward {name}", problem, fix)
    for i, reward in enumerate(rewards):
        if not abs(reward) <= LARGEST_REWARD:  # NaN is not either
            raise UserError(f"reward {name}", f"reward {i} of {count} is {reward}.", fix)
    return rewards
