"""The story of a ledger: the policy as it was, the step's rollouts from disk, every objective on them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing

from pipelines.chain import Chain
from pipelines.config.schema import Config
from pipelines.disk.records import ROLLOUTS, SCORES, Rollout, Scored, read_rows
from pipelines.disk.step import is_there
from pipelines.errors import UserError
from pipelines.ledger.gradients import LedgerTrainer
from pipelines.ledger.objectives import choose
from pipelines.ledger.step import Ledger, known_roles, ledger
from pipelines.live import Session
from pipelines.update.engines import Trainer
from pipelines.watch import Watch


class _Session(Session):
    """The run's session, whose trainer can take gradients alone."""

    def _new_trainer(self, config: Config) -> Trainer:
        if config.update.engine != "torch":
            return super()._new_trainer(config)
        assert self._policy is not None
        return LedgerTrainer(self._policy, config, lambda: self._starting().spread())


def check_steps(chain: Chain, steps: Sequence[int]) -> None:
    """See that the rollouts of these steps are on disk.

    Raises:
        UserError: one's are not, or the run has no such step.
    """
    last = chain.config.run.steps
    for step in steps:
        if not 1 <= step <= last:
            raise UserError(f"--step {step}", f"run {chain.run.name} has steps 1..{last}.", "Name one of these.")
        if not is_there(chain.rollout(step).path):
            there = [t for t in range(1, last + 1) if is_there(chain.rollout(t).path)]
            known = f"On disk: {there[0]}..{there[-1]}. " if there else ""
            raise UserError(
                f"--step {step}",
                f"its rollouts are not on disk ({chain.rollout(step).path}).",
                f"{known}Make it: vppo train --run {chain.run.name}",
            )


def ledgers(
    chain: Chain, asked: Config, steps: Sequence[int], names: Sequence[str], watch: Watch, *, gradients: bool
) -> Iterator[Ledger]:
    """The ledger of each step, in order. Nothing in the run's folder is changed.

    Args:
        chain: the run on disk.
        asked: its settings, of which ``score`` and ``update`` may have been given anew: how S is measured, and
            the constants of objectives. The policy is the run's in any case.
        names: of objectives; none: all.
        gradients: whether to take them; engine ``torch`` alone can.

    Raises:
        UserError: a step is not on disk; there is no such objective or constant.
    """
    config = chain.config.with_those_of(asked, ("score", "update", "run"))
    check_steps(chain, steps)
    choose(config, names, roles=True)  # before anything is loaded
    if gradients and chain.config.update.engine != "torch":
        watch.note(
            f"no gradients: they are taken by engine torch, and this run updates with {chain.config.update.engine}"
        )
        gradients = False
    with closing(_Session(chain, watch, config)) as session:
        for step in sorted({*steps}):
            rollout, scored = chain.rollout(step), chain.score(step)
            rollout.manifest()
            rollouts = read_rows(rollout.path / ROLLOUTS, Rollout)
            recorded = None
            if is_there(scored.path) and scored.manifest():
                recorded = read_rows(scored.path / SCORES, Scored)
            policy = session.reader(step - 1)
            made = session.trainer() if gradients else None
            trainer = made if isinstance(made, LedgerTrainer) else None
            chosen, left_out = choose(config, names, roles=known_roles(session.samples, rollouts))
            batches = -(-config.rollout.prompts_per_step // config.update.batch_prompts)
            updates = trainer.updates if trainer else (step - 1) * config.update.epochs * batches
            yield ledger(
                config, step, rollouts, session.samples, policy, chosen, left_out, updates, trainer, recorded, watch
            )
