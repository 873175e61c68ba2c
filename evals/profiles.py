"""How a benchmark is asked: images, sampling and instruction, by profile.

The authors trained with other pixel limits and another nucleus than they evaluated with. Both ways are
here, by name, and every report says which was taken and where the two differ.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from evals.benchmarks.table import OWN
from pipelines.config.schema import KEYED_PROFILES, Config
from pipelines.grading.reward import REWARDS

INSTRUCTION = (
    "You first think through the reasoning process as an internal monologue, enclosed within "
    "<think> </think> tags. Then, provide your final answer enclosed within \\boxed{}."
)
"""What the authors' evaluation appends to every question."""


@dataclass(frozen=True)
class PromptSettings:
    """How questions are asked. Pixels None: the processor's own; top_k 0 and top_p 1 are off."""

    temperature: float
    top_p: float
    top_k: int
    max_new_tokens: int
    min_pixels: int | None
    max_pixels: int | None
    instruction: str
    system_prompt: str = ""

    @property
    def images(self) -> tuple[int | None, int | None, str, str]:
        """How a question is shown, whatever is sampled: pixel limits, instruction, system's turn."""
        return self.min_pixels, self.max_pixels, self.instruction, self.system_prompt

    def as_dict(self) -> dict[str, Any]:
        """As results and keys hold it: no system prompt, as in all that was made before there was one, is left out."""
        return {name: value for name, value in asdict(self).items() if value or name != "system_prompt"}


PUBLISHED = PromptSettings(1.0, 1.0, 50, 2048, 1024, 589_824, INSTRUCTION)
"""The authors' evaluation of their 7B models (top-k 50 is a live default of their harness)."""


def matched(config: Config) -> PromptSettings:
    """As the run's training asks."""
    rollout, data = config.rollout, config.data
    return PromptSettings(
        rollout.temperature,
        rollout.top_p,
        rollout.top_k,
        rollout.max_new_tokens,
        data.min_pixels,
        data.max_pixels,
        data.instruction,
        data.system_prompt,
    )


@dataclass(frozen=True)
class Evaluation:
    """Everything but policy and questions that decides an evaluation's results."""

    benchmark: str
    profile: str
    asking: PromptSettings
    engine: str
    seed: int
    samples: int
    limit: int | None
    graders: tuple[str, ...]
    deadline: float
    reward: str = ""
    """A reward function of one's own, on a run's own questions; it gets outcomes as training has them:"""
    choice_rule: bool = True
    """by ``published.choice_rule``."""

    def sampling_settings(self) -> dict[str, Any]:
        """What decides the responses, by setting."""
        asked = {f"eval.{name}": value for name, value in self.asking.as_dict().items()}
        return asked | {"rollout.engine": self.engine, "seed": self.seed}

    def settings(self) -> dict[str, Any]:
        """What decides the results, by setting."""
        return self.sampling_settings() | {
            "eval.profile": KEYED_PROFILES.get(self.profile, self.profile),
            "eval.samples": self.samples,
            "eval.limit": self.limit,
            "eval.graders": list(self.graders),
            "reward.deadline": self.deadline,
            **({"reward.function": self.reward} if self.reward else {}),
            **({"published.choice_rule": False} if self.reward and not self.choice_rule else {}),
        }


def evaluation(config: Config, benchmark: str, trained: Config | None = None, *, rewarded: bool = True) -> Evaluation:
    """How ``config`` evaluates a benchmark: its profile, and what is set apart from it.

    Validation questions, asked after each checkpoint, have a sample count of their own and no limit.

    Args:
        trained: the settings that ``matched`` means, where they are not ``config``'s own.
        rewarded: whether a reward function of one's own is asked too; it was not by earlier versions.
    """
    own, asked = benchmark in OWN or benchmark in config.eval.sources, config.eval
    profile = "matched" if own else asked.profile
    base = matched(trained or config) if profile == "matched" else PUBLISHED
    given = {field.name: getattr(asked, field.name) for field in fields(PromptSettings)}
    values = asdict(base) | {name: value for name, value in given.items() if value is not None}
    samples, limit = asked.samples, asked.limit
    if benchmark == "validation":
        samples, limit = config.checkpoint.validation_samples or samples, None
    graders = asked.graders
    reward = ""
    if own:  # judged as in training, too
        graders = tuple(dict.fromkeys((config.reward.grader, *graders)))
        mine = config.reward.function not in REWARDS and not config.stages.eval
        reward = config.reward.function if mine and rewarded else ""
    return Evaluation(
        benchmark,
        profile,
        PromptSettings(**values),
        config.rollout.engine,
        config.seed,
        samples,
        limit,
        graders,
        config.reward.deadline,
        reward,
        (trained or config).published.choice_rule,
    )
