"""The story of a run: prepare; then rollout, score, update, checkpoint in turn; then evaluate.

Their order is the chain's (``Chain.training``, ``Chain.all``). A step that is on disk under its key is
skipped, anything else is made and committed: starting, resuming, extending and redoing are one loop.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import closing

from pipelines import checkpoints, runs
from pipelines.chain import Chain, is_evaluation
from pipelines.config.schema import Config
from pipelines.disk.files import sweep
from pipelines.disk.part_sources import check_imported
from pipelines.disk.sharing import one_at_a_time, taken_over
from pipelines.disk.step import Step, committed
from pipelines.opening import check_costly, check_inputs, configured, held, tell_changes, tell_uneven, trying
from pipelines.ranks.ranks import ranks
from pipelines.stages import make, of_evaluations
from pipelines.tracking.recorder import recording
from pipelines.tracking.trackers import tracking
from pipelines.watch import Watch


def train(chain: Chain, watch: Watch, *, until: int | None = None) -> list[Step]:
    """Make every step of the run that is not on disk, up to training step ``until``.

    Returns:
        The steps that were made; none if there was nothing to do.
    """
    missing = _missing(chain.until(until))
    if missing:
        ranks().on_main(lambda: check_inputs(chain))
    ranks().on_main(lambda: checkpoints.check_best(chain))
    ranks().on_main(lambda: sweep(chain.run))
    as_told = ranks().on_main(lambda: runs.config_text(chain.run) == runs.marked(chain.config))
    if as_told and not missing:
        return []
    with held(chain.run, watch), configured(chain, missing):
        if not missing:
            return []
        tell_changes(chain, watch)
        tell_uneven(chain.config, watch)
        check_costly(chain.config, missing)
        if missing[0] == chain.prepare:  # first, as wrong data is the commonest mistake
            perform(chain, chain.config, missing[:1], watch)
        # Now, not to learn it after the training.
        ranks().on_main(lambda: of_evaluations("gather")(chain.config, chain.benchmarks, watch))
        # Once more: the questions' commits, part of the evaluations' keys, are known only now.
        missing = missing[: missing[0] == chain.prepare] + _missing(chain.until(until))
        perform(chain, chain.config, [s for s in missing if s != chain.prepare], watch)
    return missing


def train_stage(
    chain: Chain, wanted: Chain, stage: str, steps: Iterable[int], watch: Watch, *, force: bool
) -> list[Step]:
    """Make one stage again, from what the run has on disk, with the settings of ``wanted``.

    Args:
        chain: the run as it is on disk: the inputs, and the policy's history.
        wanted: the same run with the settings asked for now.
        steps: training steps; ignored by ``prepare``.
        force: make steps again that are already there.
    """
    ranks().on_main(lambda: sweep(chain.run))
    if stage == "eval":  # whose keys hold the questions' commits
        ranks().on_main(lambda: of_evaluations("gather")(wanted.config, wanted.benchmarks, watch))
    asked = {s.path: s for index in steps for s in chain.of_stage(stage, index, wanted)}
    missing = list(asked.values()) if force else _missing(list(asked.values()))
    if missing and stage == "eval":
        of_evaluations("evaluate_all")(chain, wanted, missing, watch, force=force)
    elif missing:
        check_costly(wanted.config, missing)
        with held(chain.run, watch), trying(chain.run, wanted.config, missing):
            # A run that is begun by one of its stages has the settings of that stage.
            if ranks().main and not runs.config_text(chain.run):
                runs.write_config(chain.run, chain.config)
            perform(chain, wanted.config, missing, watch)
    return missing


def perform(chain: Chain, config: Config, steps: Sequence[Step], watch: Watch) -> None:
    """Make and commit these steps, in order, with these settings; keep the run's state readable."""
    from pipelines.checks import check_parts  # brings torch
    from pipelines.live import Session

    check_parts(config)
    check_imported(config, steps)
    metrics_file = runs.MetricsFile(chain)
    with (
        recording(chain, watch) as watch,
        tracking(chain, config, steps, watch) as tracked,
        closing(Session(chain, watch, config)) as live,
    ):
        for step in steps:
            watch.stage(step.name, step.index or 0)
            if is_evaluation(step):
                metrics = of_evaluations("evaluate_one")(live, step, config, watch)
            else:
                with one_at_a_time(step, watch.note), committed(step) as (out, metrics):
                    metrics |= taken_over(step, out, watch.note) or make(live.ask(step, config), live, out)
            if ranks().main:
                metrics |= metrics_file.after(step)
                checkpoints.prune_after(chain, step)
            tracked.made(step)
            watch.finished(step.name, step.index or 0, metrics)


def _missing(steps: Sequence[Step]) -> list[Step]:
    """Those that are not on disk, each once; every rank gets what rank 0 finds."""
    steps = list({step.path: step for step in steps}.values())  # the end may ask for a validation that training makes
    found = ranks().on_main(lambda: [i for i, s in enumerate(steps) if s.manifest() is None])
    return [steps[i] for i in found]
