"""Update engine ``deepspeed``: the torch engine's update, divided among ranks by ZeRO.

Every rank has every group's numbers, so advantages, shaping weights and denominators are those of the
whole update batch whatever the number of ranks. Only forward and backward are shared out: each rank
takes its micro-batches, and DeepSpeed adds up the gradients. Optimizer state is saved whole, by
parameter, in the torch engine's format: a checkpoint fits any number of ranks, any stage, and both
engines.
"""

from __future__ import annotations

import contextlib
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from pipelines.config.schema import Config
from pipelines.disk.records import Rollout, SampleTable, Scored
from pipelines.errors import UserError
from pipelines.model.packing import fill
from pipelines.model.placement import Placement, copied, fill_buffers, skeleton
from pipelines.model.policy import Policy
from pipelines.ranks.ranks import join_alone, ranks
from pipelines.update import lora, moments
from pipelines.update.moments import KINDS, MOMENTS, OPTIMIZER
from pipelines.update.torch_engine import TorchTrainer, of_language

T = TypeVar("T")

WHOLE = 10**5
"""Numbers of the largest weight that ZeRO-3 leaves whole on every rank once it is gathered: biases and
norms (DeepSpeed's own default)."""


class DeepSpeedTrainer(TorchTrainer):
    """AdamW under ZeRO 1, 2 or 3; float32 master weights, also where ``model.dtype`` is bfloat16.

    Raises:
        UserError: DeepSpeed is not installed.
    """

    def _place(self) -> None:
        policy, half = self.policy, self.config.model.dtype != "float32"
        _deepspeed(policy.device)
        # Masters are set from exact values once there are some; until then these stay.
        self._exact = (policy.model, policy.placement) if half else None
        dtype = torch.bfloat16 if half else torch.float32
        if self.settings.zero_stage == 3:
            policy.model = _divided(policy, dtype, _settings(self.config))
        else:
            policy.model = copied(policy.model, policy.placement, policy.device, dtype)
        policy.take(plain=policy.plain)

    def _make_optimizer(self) -> Any:
        import deepspeed

        policy, stage3 = self.policy, self.settings.zero_stage == 3
        forward = _Forward(policy)
        if stage3:
            deepspeed.zero.register_external_parameter(forward, policy.head_weight)
        self.engine, optimizer, _, _ = deepspeed.initialize(
            model=forward, optimizer=super()._make_optimizer(), config=_settings(self.config), dist_init_required=False
        )
        if self._exact:
            self._set_masters(*self._exact)
            self._exact = None
        policy.placement = DividedWeights(self.engine) if stage3 else MasterWeights()
        return optimizer

    def _set_masters(self, model: Any, placement: Placement) -> None:
        """DeepSpeed made them of rounded weights."""
        from deepspeed.utils import safe_set_full_fp32_param

        trained, device = dict(self.named), self.policy.device
        for name, value in placement.weights(model):
            if name in trained:
                safe_set_full_fp32_param(trained[name], value.to(device))
        for name, parameter in self.named if self.settings.lora_rank else ():
            value = lora.initial(self.config, name, getattr(parameter, "ds_shape", parameter.shape))
            safe_set_full_fp32_param(parameter, value.to(device))

    @torch.no_grad()
    def _set(self, values: dict[str, torch.Tensor]) -> None:
        from deepspeed.runtime.zero import GatheredParameters
        from deepspeed.utils import safe_set_full_fp32_param

        for name, parameter in self.named:
            value = values[name].to(self.policy.device)
            with GatheredParameters([parameter], 0, enabled=self.settings.zero_stage == 3):
                parameter.copy_(value)
            safe_set_full_fp32_param(parameter, value)

    def update(self, rollouts: Sequence[Rollout], scores: Sequence[Scored], samples: SampleTable) -> dict[str, Any]:
        """As ``torch`` does."""
        # Gradients are summed up in the order they come: each rank needs all of them.
        language = of_language(self.policy.model)
        sees = any(id(parameter) not in language for _, parameter in self.named)
        asked = [samples.by_id(rollout.sample_id) for rollout in rollouts]
        self.policy.look_always(asked, always=sees or self.policy.placement.divided)
        return super().update(rollouts, scores, samples)

    # -- one step ------------------------------------------------------------------------------

    def _micro_batches(self, tokens: Sequence[int]) -> list[tuple[list[int], float]]:
        """This rank's micro-batches, equally many on each: gradients are reduced by all at once.

        The longest go first, back and forth over the ranks. Where they do not divide, a rank works on
        one of the others' that counts nothing.
        """
        me, settings = ranks(), self.settings
        most = min(settings.micro_batch_prompts, -(-len(tokens) // me.world))
        step = me.world if settings.micro_batch_tokens else 1
        cut = fill(tokens, most, settings.micro_batch_tokens, step=step)
        cut.sort(key=lambda part: -sum(tokens[i] for i in part))
        dealt = [
            cut[i : i + me.world] if turn % 2 == 0 else cut[i : i + me.world][::-1]
            for turn, i in enumerate(range(0, len(cut), me.world))
        ]
        return [(hand[me.rank], 1.0) if me.rank < len(hand) else (hand[0], 0.0) for hand in dealt]

    def _trained(self, groups: Sequence[tuple[Rollout, Scored]], samples: SampleTable) -> tuple[torch.Tensor, ...]:
        found: tuple[torch.Tensor, ...] = self.engine(super()._trained, groups, samples)
        return found

    def _backward(self, loss: torch.Tensor, *, last: bool) -> None:
        self.engine.set_gradient_accumulation_boundary(last)
        # DeepSpeed takes the mean over ranks; each has its part of one sum.
        self.engine.backward(loss * ranks().world, scale_wrt_gas=False)

    def _step(self) -> float:
        self.engine.step()  # where the norm is not finite it leaves weights and moments as they are
        norm = math.nan if self.optimizer.overflow else float(self.engine.get_global_grad_norm())
        self._see(norm)
        return norm

    def _summed(self, totals: dict[str, float]) -> dict[str, float]:
        values = torch.tensor(list(totals.values()), dtype=torch.float64, device=self.policy.device)
        dist.all_reduce(values)
        return dict(zip(totals, values.tolist(), strict=True))

    # -- state ---------------------------------------------------------------------------------

    @property
    def _shapes(self) -> dict[str, Sequence[int]]:
        return {name: getattr(p, "ds_shape", p.shape) for name, p in self.named}

    def save(self, folder: Path) -> None:
        """Gather AdamW's moments, one at a time on all ranks together; rank 0 writes them."""
        from deepspeed.utils import safe_get_full_optimizer_state

        trained = dict(self.named)

        def value(key: str) -> torch.Tensor:
            kind, _, name = key.partition("/")
            if kind == "step":
                return torch.tensor(float(self.updates))
            found: torch.Tensor = safe_get_full_optimizer_state(trained[name], kind)
            return found

        self._link()
        shapes = {
            f"{kind}/{name}": shape if kind in MOMENTS else ()
            for name, shape in (self._shapes if self.updates else {}).items()
            for kind in KINDS
        }
        moments.write(folder / OPTIMIZER if ranks().main else None, self.updates, shapes, value)
        if self.settings.lora_rank:
            lora.save(self.policy, self.config, folder)

    def load(self, folder: Path) -> None:
        """Read the state back, by whatever engine and number of ranks it was written."""
        from deepspeed.utils import safe_set_full_optimizer_state

        if self.settings.lora_rank:
            self._set(lora.load(folder))
        self.updates = moments.updates(folder / OPTIMIZER)
        if not self.updates:
            return
        self._plant()
        trained = dict(self.named)
        for kind, name, value in moments.read(folder / OPTIMIZER, self._shapes):
            if kind in MOMENTS:
                safe_set_full_optimizer_state(trained[name], value.to(self.policy.device), kind)

    def _plant(self) -> None:
        """Give the optimizer the state that its first step would make: zeros, to be filled."""
        base = self.optimizer.optimizer
        stage3 = getattr(self.optimizer, "fp32_partitioned_groups_flat", None)
        flat = stage3 or [p for group in base.param_groups for p in group["params"]]
        for parameter in flat:
            on = parameter.device if base.defaults.get("fused") else "cpu"
            base.state[parameter] = {
                "step": torch.tensor(float(self.updates), device=on),
                **{kind: torch.zeros_like(parameter) for kind in MOMENTS},
            }
        self._link()

    def _link(self) -> None:
        """Let every parameter find its part of the state.

        DeepSpeed does so once, after the first parameter group's first step, when the others have none.
        """
        if self.settings.zero_stage < 3 and self.updates:
            self.optimizer._hp_optimizer_states_linked = False
            self.optimizer._lazy_init_hp_params_optimizer_state()


class _Forward(torch.nn.Module):
    """What DeepSpeed wraps: the model, called through whatever function uses it."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.model = policy.model

    def forward(self, function: Any, *arguments: Any) -> Any:
        return function(*arguments)


class MasterWeights(Placement):
    """ZeRO 1 and 2: weights are whole on every rank, their float32 masters divided."""

    def weights(self, model: Any) -> Iterator[tuple[str, torch.Tensor]]:
        from deepspeed.utils import safe_get_full_fp32_param

        parameters = dict(model.named_parameters(remove_duplicate=False))
        for name, value in model.state_dict().items():
            parameter = parameters.get(name)
            trained = parameter is not None and parameter.requires_grad
            yield name, safe_get_full_fp32_param(parameter) if trained else value

    def in_use(self, model: Any) -> Iterator[tuple[str, torch.Tensor]]:
        """Every rank has them: nothing is gathered."""
        yield from model.state_dict().items()


class DividedWeights(Placement):
    """ZeRO-3: a rank holds a part of each weight, and its masters."""

    divided = True

    def __init__(self, engine: Any) -> None:
        self.engine, self.hooks = engine, engine.optimizer.parameter_offload

    def forward(self, function: Callable[..., T], *arguments: Any) -> T:
        """Each layer's weights are put together when it is reached."""
        return self.engine(function, *arguments)

    @contextlib.contextmanager
    def gathered(self) -> Iterator[None]:
        import deepspeed

        model = self.hooks.module
        with deepspeed.zero.GatheredParameters(list(model.parameters())):
            # Else each layer would drop its weights after use, and gather them with all ranks again.
            for parameter in model.parameters():
                parameter.ds_active_sub_modules.clear()
            for hook in (*self.hooks.forward_hooks, *self.hooks.backward_hooks):
                hook.remove()
            self.hooks.forward_hooks, self.hooks.backward_hooks = [], []
            try:
                yield
            finally:
                self.hooks._register_deepspeed_module(model)

    def weights(self, model: Any) -> Iterator[tuple[str, torch.Tensor]]:
        from deepspeed.utils import safe_get_full_fp32_param

        for name, value in model.state_dict(keep_vars=True).items():
            yield name, safe_get_full_fp32_param(value) if value.requires_grad else _whole(value)

    def in_use(self, model: Any) -> Iterator[tuple[str, torch.Tensor]]:
        """Gathered as they are, which is half of what the masters would be in bfloat16."""
        for name, value in model.state_dict(keep_vars=True).items():
            yield name, _whole(value)


def _whole(value: torch.Tensor) -> torch.Tensor:
    """A copy of a divided weight; a buffer as it is."""
    import deepspeed

    if not hasattr(value, "ds_id"):
        return value
    with deepspeed.zero.GatheredParameters([value]):
        return value.detach().clone()


def _divided(policy: Policy, dtype: torch.dtype, settings: dict[str, Any]) -> Any:
    """The policy's model in parts: each weight is divided as soon as it is made, and then set."""
    import deepspeed
    from transformers.initialization import no_init_weights

    with no_init_weights(), deepspeed.zero.Init(config_dict_or_path=settings):
        made = skeleton(policy.model, dtype)
    made.tie_weights()
    here = made.state_dict(keep_vars=True)
    for name, value in policy.placement.weights(policy.model):
        if name not in dict(made.named_buffers()):
            with deepspeed.zero.GatheredParameters([here[name]], modifier_rank=0), torch.no_grad():
                if ranks().main:
                    here[name].copy_(value)
    fill_buffers(made, policy.model, policy.placement, policy.device)
    return made


def _deepspeed(device: torch.device) -> Any:
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    os.environ.setdefault("LOCAL_RANK", "0")
    try:
        import deepspeed
    except ImportError as error:
        raise UserError(
            "update.engine: deepspeed", f"DeepSpeed cannot be imported ({error}).", "pip install 'vppo[gpu]'"
        ) from error
    # It would compile for a minute to gain nothing: gloo serves on a CPU.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.utils.logger.setLevel("ERROR")
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    join_alone(device)
    return deepspeed


def _settings(config: Config) -> dict[str, Any]:
    """DeepSpeed's own configuration."""
    update = config.update
    zero: dict[str, Any] = {"stage": update.zero_stage}
    if update.offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
        if update.zero_stage == 3:
            zero["offload_param"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    if update.zero_stage == 3:
        zero["stage3_param_persistence_threshold"] = WHOLE
    half = config.model.dtype == "bfloat16"
    # Gradients of micro-batches and ranks are added up in float32, whatever the weights are.
    exact = {"communication_data_type": "fp32", "data_types": {"grad_accum_dtype": "fp32"}}
    return (exact if half else {}) | {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,  # the boundary is set by hand
        "gradient_clipping": update.max_grad_norm,
        "bf16": {"enabled": half},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
