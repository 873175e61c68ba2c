"""What an optimizer step applied: an update gives the gradients' memory back after it."""

from torch import Tensor

from pipelines.update.torch_engine import TorchTrainer


def gradients(trainer: TorchTrainer) -> dict[str, Tensor]:
    """Copies of the gradients of the steps to come, clipped, by the parameter's name: the last step's."""
    kept: dict[str, Tensor] = {}

    def keep(*_: object) -> None:
        kept.update({n: p.grad.clone() for n, p in trainer.named if p.grad is not None})

    trainer.optimizer.register_step_pre_hook(keep)
    return kept
