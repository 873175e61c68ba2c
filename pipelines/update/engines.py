"""Update engines by name, what they all do, and what is seen to of one that is a user's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from pipelines.config.contracts import check_metrics, find_factory, told
from pipelines.config.schema import Config
from pipelines.disk.records import Advantages, Rollout, SampleTable, Scored
from pipelines.errors import UserError
from pipelines.ranks.ranks import ranks
from pipelines.update.torch_engine import TorchTrainer


class Trainer(Protocol):
    """Applies policy updates, and saves and restores what they depend on besides the weights."""

    def update(self, rollouts: Sequence[Rollout], scores: Sequence[Scored], samples: SampleTable) -> dict[str, Any]:
        """Train the policy on one step's groups; returns the metrics.

        Where the trainer then has ``advantages_used`` (a records.Advantages for each group), they are kept.

        On a GPU it is called in strict deterministic mode (pipelines/model/determinism.py), whoever wrote
        it: updates are replayed, and have to give the same bits.
        """

    def save(self, folder: Path) -> None:
        """Write the optimizer state."""

    def load(self, folder: Path) -> None:
        """Read it back."""


def _deepspeed(*arguments: Any) -> Trainer:
    from pipelines.update.deepspeed_engine import DeepSpeedTrainer  # its package is optional

    return DeepSpeedTrainer(*arguments)


TRAINERS: dict[str, Callable[..., Trainer]] = {"torch": TorchTrainer, "deepspeed": _deepspeed}
"""An import path works as well."""


METHODS = (("update", "save", "load"),)
"""Those of a ``Trainer``."""


def find_trainer(name: str) -> Callable[..., Trainer]:
    """What makes the trainer of this name. One of a user's own tells what it raises, and its metrics are looked at.

    Raises:
        UserError: there is none, or it lacks methods; from its methods, what they raised or returned.
    """
    factory = find_factory("update.engine", name, TRAINERS, METHODS)
    if name in TRAINERS:
        return factory
    place = f"update.engine: {name}"

    def make(*arguments: Any) -> Any:
        made = factory(*arguments)

        def look(found: Any, *_: Any) -> dict[str, Any]:
            used = getattr(made, "advantages_used", ())
            if not isinstance(used, Sequence) or not all(isinstance(row, Advantages) for row in used):
                problem = "advantages_used is no list of pipelines.disk.records.Advantages."
                raise UserError(place, problem, "Leave it out, or have one for each group.")
            return check_metrics(place, found)

        # Where its gradients or weights are not finite, that is told with the settings that may be why.
        return told(place, made, METHODS, {"update": look}, (FloatingPointError,))

    return make


def check_trainer(config: Config) -> None:
    """See that updates can be made here: by the engine on all ranks there are, and its packages.

    Raises:
        UserError: the engine is one of a single process; a package is not installed.
    """
    if config.update.engine == "torch" and ranks().world > 1:
        raise UserError(
            "update.engine: torch",
            f"updates in one process, and there are {ranks().world}.",
            "Add --set update.engine=deepspeed.",
        )
    rank = config.update.lora_rank
    for package, wanted, place in (
        ("deepspeed", config.update.engine == "deepspeed", "update.engine: deepspeed"),
        ("peft", bool(rank), f"update.lora_rank: {rank}"),
    ):
        if wanted and find_spec(package) is None:
            extra = "gpu" if package == "deepspeed" else "lora"
            raise UserError(place, f"{package} is not installed.", f"pip install 'vppo[{extra}]'")
