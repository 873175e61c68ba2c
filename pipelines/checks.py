"""What would be refused after hours, asked before anything is made."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.config.resolve import find_part
from pipelines.config.schema import Config
from pipelines.disk.step import Step
from pipelines.errors import UserError
from pipelines.grading.graders import check_grader
from pipelines.grading.reward import check_keys, make_reward
from pipelines.model.prompts import model_location, only_local
from pipelines.objectives import table
from pipelines.ranks.ranks import ranks
from pipelines.rollout.engines import find_engine
from pipelines.score.perturb import PERTURBATIONS, RAW
from pipelines.score.scoring import ESTIMATOR_NAMES
from pipelines.stages import STAGES, find
from pipelines.tracking.trackers import check_trackers
from pipelines.update.engines import check_trainer, find_trainer


def check_model(config: Config, steps: Sequence[Step]) -> None:
    """Before what costs: see that the model can be sampled from, trained, and written with a checkpoint."""
    made = {step.name for step in steps}
    if not made & {"rollout", "score", "update", "checkpoint"}:
        return
    if "rollout" in made:
        ranks().on_main(lambda: check_sampler(config))
    if "update" in made:
        check_trainer(config)
    ranks().on_main(lambda: check_saves(config))


def check_parts(config: Config) -> None:
    """Find every part that the settings name: a misspelt one is told before any work is done.

    Raises:
        UserError: there is no such part.
    """
    find_engine(config.rollout.engine)
    find_part("score.estimator", config.score.estimator, dict.fromkeys(ESTIMATOR_NAMES))
    views = (*PERTURBATIONS, *RAW)
    find_part("score.perturbation", config.score.perturbation, dict.fromkeys(views))
    find_trainer(config.update.engine)
    table.find_objective(config.update.objective)
    table.check(config)
    check_truth(config)
    make_reward(config.reward.function, config.reward.grader)
    check_keys(config)
    for stage in STAGES:
        find(stage, config)
    for grader in config.eval.graders:
        check_grader(grader, "eval.graders")
    check_trackers(config)


def check_truth(config: Config) -> None:
    """See that what only the embedded data know is not asked of one's own.

    Raises:
        UserError: it is.
    """
    if config.data.source == "glyphs" or config.stages.prepare:
        return
    asked = {
        f"update.objective: {config.update.objective}": table.ROLES in table.needs(config),
        f"score.estimator: {config.score.estimator}": config.score.estimator == "oracle",
        f"score.perturbation: {config.score.perturbation}": config.score.perturbation == "evidence",
    }
    for setting, needs_truth in asked.items():
        if needs_truth:
            what = "evidence regions" if setting.endswith("evidence") else "token roles"
            raise UserError(
                setting,
                f"the questions of {config.data.source} have no known {what}.",
                "Only the embedded data (data.source=glyphs) has them.",
            )


def check_sampler(config: Config) -> None:
    """See that vLLM, where it samples in this process, takes the model and these settings.

    Raises:
        UserError: it does not.
    """
    if config.rollout.engine == "vllm" and not config.rollout.server:
        from pipelines.rollout.vllm import engine as vllm_engine  # brings vLLM

        vllm_engine.check(config)


def check_saves(config: Config) -> None:
    """See that the starting model's generation settings can be written again, with every checkpoint.

    Raises:
        UserError: transformers refuses to; said before any work is done.
    """
    from transformers import GenerationConfig

    where = model_location(config.model)
    try:
        found = GenerationConfig.from_pretrained(
            where, revision=config.model.revision or "main", local_files_only=only_local(where)
        )
    except (OSError, ValueError):  # it has none, or what is wrong is told when it is loaded
        return
    try:
        found.validate(strict=True)
    except ValueError as error:
        wrong = [line for line in str(error).splitlines() if line.startswith("- ")]
        raise UserError(
            f"model.path {where}, generation_config.json",
            f"transformers refuses to save it with a checkpoint: {(wrong or [str(error)])[0].lstrip('- ')}",
            "Correct that file in a copy of the model: set do_sample to true, or take out what it names.",
        ) from error
