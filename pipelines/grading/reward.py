"""Responses -> rewards and outcomes.

The built-in reward ``outcome`` is 1 for a correct answer and 0 otherwise. Any other is named by
import path, ``my_package.my_module:my_function``, with one of these signatures::

    def my_function(responses: list[str], samples: list[Sample]) -> list[float]
    def my_function(responses: list[str], samples: list[Sample], outcomes: list[Outcome]) -> list[float]

All lists have one entry per response (a sample appears once for each of its responses), and so has the
result; or that is a dict of such lists by name, of which ``reward`` is trained on. Every response is graded
first, so outcomes are reported whatever is rewarded.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
import re
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Literal

from pipelines.config.resolve import find_part
from pipelines.config.schema import KEY, Config
from pipelines.disk.records import Sample
from pipelines.errors import UserError
from pipelines.grading.answer import NO_BOX, extract_answer, published_answer
from pipelines.grading.graders import GRADERS, Closing, GraderPool, check_grader
from pipelines.words import counted

Outcome = Literal["correct", "wrong", "no_answer", "timed_out", "truncated"]
OUTCOMES: tuple[Outcome, ...] = ("correct", "wrong", "no_answer", "timed_out", "truncated")

RewardScorer = Callable[..., Sequence[float] | Mapping[str, Sequence[float]]]
"""What an import path must lead to."""

ACCURACY, REWARD = "accuracy", "reward"
"""The keys that every reward has: what the grader says, and what is trained on."""


def outcome_reward(outcomes: Sequence[Outcome]) -> list[float]:
    """1 for a correct answer, 0 for anything else."""
    return [1.0 if outcome == "correct" else 0.0 for outcome in outcomes]


REWARDS: dict[str, Callable[[Sequence[Outcome]], list[float]]] = {"outcome": outcome_reward}
"""The built-in rewards, each a function of the outcomes."""

_OF_VERDICT: dict[bool | None, Outcome] = {True: "correct", False: "wrong", None: "timed_out"}


@dataclass(frozen=True)
class Graded:
    """One response's answer ("" if it has none), what came of it, its reward, and what else the reward names."""

    answer: str
    outcome: Outcome
    reward: float
    named: dict[str, float] = field(default_factory=dict)


class OwnReward:
    """A reward function of one's own, whose returns are looked at.

    Raises:
        UserError: it is not there, or takes other arguments.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._names: list[str] | None = None
        self._scorer: RewardScorer = find_part("reward.function", path, REWARDS, taken=_taken)
        self._takes = _takes_outcomes(path, self._scorer)

    def __call__(
        self, responses: Sequence[str], samples: Sequence[Sample], outcomes: Sequence[Outcome]
    ) -> dict[str, list[float]]:
        """The lists that it returns, by name, ``reward`` first; an entry a response.

        Raises:
            UserError: something else than one finite number per response in every list, no ``reward``,
                a name that cannot be one, or other names than the time before.
        """
        if not responses:
            return {REWARD: []}
        given = [list(responses), list(samples), *([list(outcomes)] if self._takes else [])]
        returned = self._scorer(*given)
        lists = _lists(self._path, returned)
        found = {name: _checked(self._path, name, lists[name], len(responses)) for name in _in_order(lists)}
        if self._names not in (None, [*found]):
            problem = f"it returned {_joined(found)}, and {_joined(self._names or ())} before."
            raise UserError(f"reward.function: {self._path}", problem, "Return the same names every time.")
        self._names = [*found]
        return found

    @property
    def names(self) -> list[str] | None:
        """Of the lists that it returns; None: it was not asked yet, or has not answered."""
        return self._names


class RewardFunction(Closing):
    """Grades and rewards responses; a context manager, as it owns grading processes."""

    def __init__(self, reward: str, grader: str, pool: GraderPool, choice_rule: bool = True) -> None:
        self._choice_rule = choice_rule
        self._name, self._grader, self._pool = reward, check_grader(grader), pool
        self._own = None if reward in REWARDS else OwnReward(reward)
        self._tried = False

    def close(self) -> None:
        """End the grading processes."""
        self._pool.close()

    def named(self, sample: Sample, count: int) -> list[str] | None:
        """What it returns besides ``reward``; None where it cannot say.

        Until it has returned something it is asked about so many empty responses, once.
        """
        if self._own is None:
            return []
        if self._own.names is None and not self._tried:
            self._tried = True
            # An empty response may be worth any error: those that were sampled are another matter.
            with contextlib.suppress(Exception):
                self._own([""] * count, [sample] * count, ["no_answer"] * count)
        return None if self._own.names is None else self._own.names[1:]

    def doubt(self, sample: Sample) -> str:
        """That a grader of one's own does not take a question's gold, as its answer, for right; "" where it does.

        Raises:
            UserError: it comes to no verdict.
        """
        if self._grader in GRADERS:
            return ""
        (verdict,) = self._pool.grade(
            [(sample.answer, sample.answer, sample.kind)], self._grader, alone=not self._choice_rule
        )
        about = f"the gold of question {sample.id} as its answer, {sample.answer!r}"
        if verdict is None:
            raise UserError(
                f"reward.grader: {self._grader}",
                f"came to no verdict on {about}: it raised, or ran out of time or memory.",
                "Call it with these two texts by yourself; reward.deadline says how long it may take.",
            )
        return "" if verdict else f"{self._grader} does not take for right {about}"

    def __call__(self, responses: Sequence[str], samples: Sequence[Sample], truncated: Sequence[bool]) -> list[Graded]:
        """Grade and reward responses; the three sequences run in parallel, one entry a response.

        A truncated response is graded if it holds an answer all the same.

        Raises:
            UserError: the grader cannot be loaded, or the reward returned what it may not (``OwnReward``).
        """
        answers: list[str | None]
        if self._choice_rule:
            answers = [extract_answer(response) for response in responses]
            outcomes = outcomes_of(answers, samples, truncated, self._pool, self._grader)
        else:
            boxed = [published_answer(response) for response in responses]
            answers = [None if answer == NO_BOX else answer for answer in boxed]
            outcomes = published_outcomes(responses, samples, truncated, self._pool, self._grader)
        lists = self._own(responses, samples, outcomes) if self._own else {REWARD: REWARDS[self._name](outcomes)}
        rewards = lists.pop(REWARD)
        return [
            Graded(answer or "", outcome, reward, {name: values[i] for name, values in lists.items()})
            for i, (answer, outcome, reward) in enumerate(zip(answers, outcomes, rewards, strict=True))
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


def reward_of(config: Config) -> RewardFunction:
    """The reward by which a run trains.

    Raises:
        UserError: as ``make_reward``.
    """
    named = config.reward
    return make_reward(
        named.function, named.grader, named.deadline, named.workers, choice_rule=config.published.choice_rule
    )


def _takes_outcomes(path: str, scorer: RewardScorer) -> bool:
    """Whether it is to be given outcomes: where a third argument has no default, or is called so.

    Raises:
        UserError: it takes neither two arguments nor three.
    """
    try:
        signature = inspect.signature(scorer)
    except ValueError:  # of a function that is not Python's
        return False
    if inspect.iscoroutinefunction(inspect.unwrap(scorer)):
        raise UserError(f"reward.function: {path}", "is async, and is called as it is.", "Let it return the rewards.")
    given: tuple[Any, ...] = (None, None)
    if "outcomes" not in signature.parameters and _binds(signature, given):
        return False
    if _binds(signature, (*given, None)):
        return True
    raise UserError(
        f"reward.function: {path}",
        f"takes {signature}.",
        "Let it take (responses, samples) or (responses, samples, outcomes).",
    )


def _binds(signature: inspect.Signature, given: Sequence[Any]) -> bool:
    try:
        signature.bind(*given)
    except TypeError:
        return False
    return True


_FIX = "Return list[float] with one finite reward per response, or a dict of such lists, one of them 'reward'."


TAKEN = {
    ACCURACY: "the grader's",
    **dict.fromkeys(("low", "high"), "what the ends of the reward's interval are called"),
}
"""Names that a list cannot have, as another number has them: of ``Run.evaluations`` the columns ``reward/low`` and
``reward/high``."""


def _taken(returned: Any) -> Any:
    """What a reward returned, whatever is read only once or made on the way as a list."""
    if isinstance(returned, Mapping):
        return {name: _read(returned[name]) for name in returned}
    return _read(returned)


def _read(values: Any) -> Any:
    if isinstance(values, str | bytes | bytearray | Set | Mapping):  # which are told of by what they are
        return values
    try:
        entries = iter(values)
    except TypeError:  # one number, or nothing
        return values
    return list(entries)


def _lists(path: str, returned: Any) -> dict[str, Any]:
    """What a reward returned, as lists by name; their content is not looked at.

    Raises:
        UserError: ``reward`` is missing, or a name cannot be one.
    """
    if not isinstance(returned, Mapping):
        return {REWARD: returned}
    for name in returned:
        if not isinstance(name, str) or not re.fullmatch(KEY, name):
            problem = f"it returned a list called {name!r}, which is no name."
            raise UserError(
                f"reward.function: {path}", problem, "Letters, digits, dot, dash and underscore, 64 at most."
            )
        if name in TAKEN:
            problem = f"it returned a list called {name!r}, which is {TAKEN[name]}."
            raise UserError(f"reward.function: {path}", problem, "Call it otherwise.")
    if REWARD not in returned:
        problem = f"it returned {_joined(returned) or 'an empty dict'}, and no {REWARD!r}, which is trained on."
        raise UserError(f"reward.function: {path}", problem, _FIX)
    return dict(returned)


def _in_order(lists: Collection[str]) -> list[str]:
    """``reward``, then the others by name, so that files do not depend on the order in which they come."""
    return [REWARD, *sorted(name for name in lists if name != REWARD)]


def _joined(names: Collection[str]) -> str:
    return ", ".join(_in_order(names) if REWARD in names else sorted(names))


LARGEST_REWARD = 3.4e38
"""What float32, in which rewards are kept, can hold."""


def _checked(path: str, name: str, scores: Sequence[float], count: int) -> list[float]:
    """The scores as floats, if there are ``count`` of them and all are finite."""
    place = f"reward.function: {path}" if name == REWARD else f"reward.function: {path}, {name}"
    if isinstance(scores, int | float):
        raise UserError(place, f"it returned one number for {counted(count, 'response')}.", _FIX)
    if isinstance(scores, str | bytes | bytearray | Set | Mapping):
        problem = f"it returned a {type(scores).__name__}, which does not hold a number per response in their order."
        raise UserError(place, problem, _FIX)
    try:
        rewards = [_number(score) for score in scores]
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(place, f"it did not return numbers ({error}).", _FIX) from error
    what = REWARD if name == REWARD else "value"
    if len(rewards) != count:
        problem = f"it returned {counted(len(rewards), what)} for {counted(count, 'response')}."
        raise UserError(place, problem, _FIX)
    for i, reward in enumerate(rewards):
        if not abs(reward) <= LARGEST_REWARD:  # NaN is not either
            raise UserError(place, f"{name} {i} of {count} is {reward}.", _FIX)
    return rewards


def _number(score: Any) -> float:
    if isinstance(score, str | bytes):
        raise TypeError(f"{score!r} is text")
    return float(score)


def check_key(setting: str, key: str, named: Collection[str], reward: str) -> None:
    """See that a setting names a number that every response has.

    Args:
        named: the lists that the reward returns besides ``reward``.
        reward: what the reward is called, for the error.

    Raises:
        UserError: it does not; tells which there are.
    """
    known = (ACCURACY, REWARD, *sorted(named))
    if key not in known:
        near = difflib.get_close_matches(key, known, n=1)
        raise UserError(
            f"{setting}: {key}",
            f"{reward} returns no such list.",
            f"{f'Did you mean {near[0]}? ' if near else ''}Known: {', '.join(known)}.",
        )


def check_keys(config: Config, named: Collection[str] | None = None) -> None:
    """The same of every setting that takes such a key.

    Args:
        named: None: as far as is known without it, that is of a built-in reward.

    Raises:
        UserError: one names none.
    """
    if named is None and config.reward.function not in REWARDS:
        return
    for setting, key in (
        ("rollout.filter_key", config.rollout.filter_key),
        ("checkpoint.best_key", config.checkpoint.best_key),
    ):
        check_key(setting, key, named or (), config.reward.function)
