"""One evaluation of a policy: what decides it, and where its journal and its results lie. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from evals.benchmarks.base import Benchmark
from evals.benchmarks.questions import asked_key, questions_step
from evals.benchmarks.table import OWN, find
from evals.profiles import Evaluation, evaluation
from pipelines.chain import EVALUATIONS, JOURNALS, RESULTS, SHOWN, Chain, shape_of
from pipelines.config.schema import Config
from pipelines.disk.step import Step


@dataclass(frozen=True)
class EvalTask:
    """One evaluation: a policy of a run on one benchmark, asked as ``how`` says.

    The journal of responses outlives its results: other graders, more samples or more questions go
    on from it, and what was sampled is never sampled again.
    """

    how: Evaluation
    questions: Step
    results: Step
    journal: Path
    revisions: dict[str, str] = field(default_factory=dict)
    """Of the model and of the questions, where they are from the hub."""
    benchmark: Benchmark | None = None
    """The public benchmark that it is; None where the questions are one's own."""


def cell(chain: Chain, step: int, benchmark: str, config: Config) -> EvalTask:
    """An evaluation of the policy after ``step`` updates.

    Args:
        config: how to evaluate; policy and own questions are the run's in any case.
    """
    how = evaluation(config, benchmark, chain.config, rewarded=bool(chain.versions["rewards"]))
    stage = chain.own("eval", config)
    sampler, graders = chain.sources.of(how.engine) | stage, chain.sources.of(*how.graders, how.reward)
    own, public = benchmark in OWN, None
    if not own and isinstance(found := find(benchmark, config)[0], Benchmark):
        public = found
    questions = chain.prepare if own else questions_step(benchmark, config)
    answered, theirs = chain.asked(benchmark, questions)
    inputs = {"policy": chain.policy_key(step), "questions": answered}
    asking = inputs | {"questions": asked_key(questions)}
    parent, version = chain.run / EVALUATIONS / f"{step:04d}", chain.versions["sampling"]
    shown = {} if own or how.profile != "matched" else chain.config.holds(*SHOWN)
    sampler = sampler | shown  # own questions have it in theirs
    sampling = how.sampling_settings() | sampler
    sampled = Step(benchmark, step, parent / JOURNALS, version, sampling, asking)
    results = Step(
        benchmark,
        step,
        parent,
        RESULTS * version + chain.versions["grading"],
        how.settings() | sampler | graders | ({} if own else theirs),
        inputs,
        shape_of(config) | config.eval.shape("eval"),
    )
    asked = questions.settings.get("data.revision" if own else "revision")
    revisions = {"model": chain.config.model.revision, "questions": asked}
    known = {what: commit for what, commit in revisions.items() if commit}
    return EvalTask(how, questions, results, sampled.path.with_suffix(".jsonl"), known, public)
