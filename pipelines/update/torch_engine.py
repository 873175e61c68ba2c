"""Update engine ``torch``: one process, AdamW, gradient accumulation.

The loss of a micro-batch is divided by the denominators of the whole update batch, so the gradient
does not depend (but for rounding) on how the batch is cut. Gradients that are not finite are not applied.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from pipelines import vppo
from pipelines.config.resolve import find_part
from pipelines.config.schema import Config
from pipelines.disk.records import Advantages, Rollout, SampleTable, Scored
from pipelines.model.divergence import token_logp
from pipelines.model.finite import first_not_finite
from pipelines.model.packing import fill
from pipelines.model.policy import Policy
from pipelines.model.ragged import pad_lists
from pipelines.score.scoring import depends as depends_on_image
from pipelines.update import lora, moments
from pipelines.update.moments import OPTIMIZER
from pipelines.update.objectives import OBJECTIVES, Batch, Terms

MOST_SKIPPED = 5
"""So many optimizer steps in a row whose gradients are not finite end the run. One is an accident of its
batch (the weights stay, the next batch is another); five batches are not."""


@dataclass
class Tokens:
    """Padded tensors of a micro-batch's responses; see records.Scored for the meanings."""

    old_logp_BT: torch.Tensor
    rollout_logp_BT: torch.Tensor
    mask_BT: torch.Tensor
    loss_mask_BT: torch.Tensor
    keep_BT: torch.Tensor
    adv_B: torch.Tensor


class TorchTrainer:
    """AdamW on float32 weights; the forward pass computes in ``model.dtype``.

    Args:
        policy: trained in place.
        reference: the starting policy, needed only with ``update.kl_coefficient``; made on first use.
    """

    def __init__(self, policy: Policy, config: Config, reference: Callable[[], Policy] | None = None) -> None:
        self.policy, self.config, self.settings = policy, config, config.update
        self.objective = find_part("update.objective", self.settings.objective, OBJECTIVES)
        self._make_reference = reference
        self._reference: Policy | None = None
        self.updates = 0
        self.advantages_used: list[Advantages] = []
        self._finite, self._skipped = True, 0  # the last gradients; how many in a row were not
        self._place()
        if self.settings.lora_rank:
            lora.attach(policy, config)
        elif self.settings.freeze_vision:
            freeze_vision(policy.model)
        self.named = [(n, p) for n, p in policy.model.named_parameters() if p.requires_grad]
        self.optimizer = self._make_optimizer()
        if self.settings.lora_rank:
            scale = self.settings.lora_alpha / self.settings.lora_rank
            policy.placement = lora.Adapted(policy.placement, scale)
        if self.settings.gradient_checkpointing:
            policy.model.gradient_checkpointing_enable({"use_reentrant": False})

    def _place(self) -> None:
        """Put the policy's weights where they are trained."""
        self.policy.spread()

    def _make_optimizer(self) -> Any:
        shapes, least = self._shapes, 0 if self.config.published.decay_all else 2
        decayed = [p for name, p in self.named if len(shapes[name]) >= least]
        plain = [p for name, p in self.named if len(shapes[name]) < least]
        groups = [
            {"params": decayed, "weight_decay": self.settings.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=self.settings.learning_rate,
            betas=self.settings.adam_betas,
            fused=self.policy.device.type == "cuda",
        )

    # -- one step ------------------------------------------------------------------------------

    def update(self, rollouts: Sequence[Rollout], scores: Sequence[Scored], samples: SampleTable) -> dict[str, Any]:
        """Train on one step's groups: ``epochs`` passes, one optimizer step per update batch.

        Returns:
            Means over the optimizer steps that were made; ``updates_skipped`` counts the others, where
            there are some.

        Raises:
            FloatingPointError: ``MOST_SKIPPED`` in a row were not, or the weights are not finite.
        """
        sums: dict[str, list[float]] = defaultdict(list)
        groups = list(zip(rollouts, scores, strict=True))
        self.advantages_used = []
        for _ in range(self.settings.epochs):
            for start in range(0, len(groups), self.settings.batch_prompts):
                part = groups[start : start + self.settings.batch_prompts]
                for name, value in self._optimizer_step(part, samples).items():
                    sums[name].append(value)
        del self.advantages_used[len(groups) :]  # of later passes
        skipped = sum(sums.pop("updates_skipped", []))
        found = {name: _mean(values) for name, values in sums.items()}
        return found | ({"updates_skipped": round(skipped)} if skipped else {})

    def _optimizer_step(self, groups: Sequence[tuple[Rollout, Scored]], samples: SampleTable) -> dict[str, float]:
        whole = self._tensors(groups)
        per_group = torch.tensor([len(rollout.response_ids) for rollout, _ in groups])
        group_B = torch.arange(len(groups)).repeat_interleave(per_group)
        group_B = group_B.to(self.policy.device)
        batch = self._batch(groups, samples, whole, group_B)
        advantages = whole.adv_B.reshape(len(groups), -1).tolist()
        terms = self.objective(batch, self.settings)
        shaped = terms.adv_B.reshape(len(groups), -1).tolist()
        self.advantages_used += [
            Advantages(rollout.sample_id, rollout.position, *found)
            for (rollout, _), *found in zip(groups, advantages, shaped, strict=True)
        ]
        denominator = vppo.loss_denominator(whole.loss_mask_BT, terms.average).clamp(min=1)
        tokens = whole.loss_mask_BT.sum().clamp(min=1)

        self.optimizer.zero_grad(set_to_none=True)
        # Training mode turns gradient checkpointing on; dropout is 0 in these models.
        self.policy.model.train(self.settings.gradient_checkpointing)
        totals: dict[str, float] = defaultdict(float)
        mine = self._micro_batches(
            [self.policy.fed_tokens(rollout.prompt_tokens, rollout.response_ids) for rollout, _ in groups]
        )
        for number, (chosen, counts) in enumerate(mine, start=1):
            soon = [i for part, _ in mine[number - 1 : number + 1] for i in part]
            self.policy.encoder.expect([samples.by_id(groups[i][0].sample_id) for i in soon])
            rows_B = torch.isin(group_B, torch.tensor(chosen, device=group_B.device))
            cut = _slice(whole, rows_B)
            cut_terms = _slice_terms(terms, rows_B, cut.mask_BT.shape[1])
            part = [groups[i] for i in chosen]
            loss, sums = self._loss(part, samples, cut, cut_terms, denominator, tokens)
            self._backward(loss * counts, last=number == len(mine))
            for name, value in sums.items():
                totals[name] += value * counts
        self.policy.model.eval()
        rate = self.settings.learning_rate * self._warmup()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        norm = self._step()
        self.optimizer.zero_grad(set_to_none=True)  # sampling and scoring want the memory
        totals = self._summed(totals)
        if not self._finite:
            return {"updates_skipped": 1.0}
        self._check_weights()
        self.updates += 1
        alpha_B = terms.adv_B / torch.where(batch.adv_B == 0, 1.0, batch.adv_B)
        alpha_B = alpha_B[batch.adv_B != 0]
        return totals | {
            "updates_skipped": 0.0,
            "grad_norm": norm,
            "learning_rate": rate,
            "advantage_std": batch.adv_B.std().item(),
            "alpha_min": alpha_B.min().item() if len(alpha_B) else 1.0,
            "alpha_max": alpha_B.max().item() if len(alpha_B) else 1.0,
        }

    def _batch(
        self, groups: Sequence[tuple[Rollout, Scored]], samples: SampleTable, whole: Tokens, group_B: torch.Tensor
    ) -> Batch:
        """What the objective sees of the update batch, the same on every rank."""
        sizes, place_B = self.config.published, torch.arange(len(group_B), device=group_B.device)
        mini_B = place_B // (sizes.mini_batch_responses or len(place_B))
        within_B = place_B - mini_B * (sizes.mini_batch_responses or 0)
        micro_B = within_B // (sizes.micro_batch_responses or len(place_B))
        depends = [depends_on_image(self.config, samples.by_id(r.sample_id)) for r, _ in groups]
        return Batch(
            adv_B=whole.adv_B,
            dependency_B=torch.tensor([d for _, scored in groups for d in scored.dependency], device=group_B.device),
            keep_BT=whole.keep_BT,
            mask_BT=whole.mask_BT,
            mini_batch_B=mini_B,
            micro_batch_B=micro_B,
            depends_B=torch.tensor(depends, device=group_B.device)[group_B],
        )

    def _loss(
        self,
        groups: Sequence[tuple[Rollout, Scored]],
        samples: SampleTable,
        t: Tokens,
        terms: Terms,
        denominator: torch.Tensor,
        tokens: torch.Tensor,
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Loss of one micro-batch, and its share of the batch's metrics."""
        settings = self.settings
        logp_N, entropy_N = self._trained(groups, samples)
        logp_BT = torch.zeros_like(t.old_logp_BT).masked_scatter(t.mask_BT, logp_N)
        entropy_BT = torch.zeros_like(t.old_logp_BT).masked_scatter(t.mask_BT, entropy_N)
        loss_BT, clipping = vppo.clipped_loss_BT(
            logp_BT, t.old_logp_BT, terms.adv_B, terms.clip_low, terms.clip_high, settings.dual_clip
        )
        tis = {}
        if settings.tis_cap is not None:
            weight_BT = vppo.tis_weights(t.old_logp_BT, t.rollout_logp_BT, settings.tis_cap)
            loss_BT = loss_BT * weight_BT
            capped_BT = weight_BT >= settings.tis_cap * (1 - 1e-6)
            tis = {"tis_weight_mean": weight_BT, "tis_capped": capped_BT}
        loss = vppo.average_loss(loss_BT, terms.keep_BT, t.loss_mask_BT, terms.average, denominator)
        penalty_BT = vppo.ENTROPY_PENALTIES[settings.entropy_estimator](logp_BT, entropy_BT)
        penalty = vppo.average_loss(penalty_BT, t.mask_BT, t.loss_mask_BT, "token", tokens)
        total = loss + settings.entropy_penalty * penalty
        metrics = {"loss": loss.item(), "entropy_penalty": penalty.item()}
        if settings.kl_coefficient:
            with torch.no_grad():
                reference_N, _ = self._forward(self.reference, groups, samples)
            reference_BT = torch.zeros_like(t.old_logp_BT).masked_scatter(t.mask_BT, reference_N)
            kl_BT = vppo.k3(logp_BT, reference_BT)
            kl = vppo.average_loss(kl_BT, t.mask_BT, t.loss_mask_BT, "token", tokens)
            total = total + settings.kl_coefficient * kl
            metrics["reference_kl"] = kl.item()
        moved_BT = vppo.k3(logp_BT.detach(), t.old_logp_BT)
        for name, value_BT in {
            "ratio_mean": clipping.ratio_BT,
            "clipped_low": clipping.low_BT,
            "clipped_high": clipping.high_BT,
            "clipped_dual": clipping.dual_BT,
            "policy_kl": moved_BT,
            **tis,
        }.items():
            metrics[name] = ((value_BT * t.loss_mask_BT).sum() / tokens).item()
        metrics["trained_share"] = ((terms.keep_BT & t.loss_mask_BT).sum() / tokens).item()
        return total, metrics

    def _micro_batches(self, tokens: Sequence[int]) -> list[tuple[list[int], float]]:
        """What this process works on: groups of each micro-batch, and how often they count (1).

        Args:
            tokens: what a pass feeds for each group.
        """
        settings = self.settings
        return [(part, 1.0) for part in fill(tokens, settings.micro_batch_prompts, settings.micro_batch_tokens)]

    def _backward(self, loss: torch.Tensor, *, last: bool) -> None:
        """Add the gradient of one micro-batch; ``last``: the optimizer's step follows."""
        loss.backward()

    def _step(self) -> float:
        """Clip and step, unless the gradients are not finite; returns their norm.

        Raises:
            FloatingPointError: they were not for the last time that is borne.
        """
        parameters = [p for _, p in self.named]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        self._see(norm.item())
        if self._finite:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.settings.max_grad_norm, norm)
            self.optimizer.step()
        return norm.item()

    def _see(self, norm: float) -> None:
        """Note whether the gradients are finite, before they are applied.

        Raises:
            FloatingPointError: they are not, for the last time that is borne.
        """
        self._finite = math.isfinite(norm)
        self._skipped = 0 if self._finite else self._skipped + 1
        if self._skipped < MOST_SKIPPED:
            return
        gradients = ((name, p.grad) for name, p in self.named if p.grad is not None)
        name, value = first_not_finite(gradients) or ("their norm", norm)
        raise FloatingPointError(
            f"the gradients of {MOST_SKIPPED} optimizer steps in a row are not finite, after "
            f"{self.updates} that were made ({name}: {value})."
        )

    def _check_weights(self) -> None:
        if found := first_not_finite(self.named):
            name, value = found
            raise FloatingPointError(
                f"the weights are not finite after optimizer step {self.updates + 1} ({name}: {value})."
            )

    def _summed(self, totals: dict[str, float]) -> dict[str, float]:
        """The micro-batches' metrics of all ranks."""
        return totals

    def _trained(
        self, groups: Sequence[tuple[Rollout, Scored]], samples: SampleTable
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``_forward`` of the policy that is trained."""
        return self._forward(self.policy, groups, samples)

    def _forward(
        self, policy: Policy, groups: Sequence[tuple[Rollout, Scored]], samples: SampleTable
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-prob and entropy of every response token, flat [N], differentiable."""
        rows = [
            row
            for rollout, _ in groups
            for row in policy.rows(policy.encoder.encode(samples.by_id(rollout.sample_id)), rollout.response_ids)
        ]
        token_N = torch.tensor(
            [token for rollout, _ in groups for ids in rollout.response_ids for token in ids], device=policy.device
        )
        return token_logp(
            policy.hidden_states(rows),
            policy.head_weight,
            token_N,
            temperature=self.config.rollout.temperature,
            suppressed_ids=policy.suppressed_ids,
        )

    def _tensors(self, groups: Sequence[tuple[Rollout, Scored]]) -> Tokens:
        """The whole update batch as padded tensors."""
        size = len(groups[0][0].reward)
        old_BT, mask_BT = pad_lists([x for _, scored in groups for x in scored.old_logp])
        rollout_BT, _ = pad_lists([x for rollout, _ in groups for x in rollout.logp])
        keep_BT, _ = pad_lists([x for _, scored in groups for x in scored.keep])
        truncated_B = torch.tensor([x for rollout, _ in groups for x in rollout.truncated])
        reward_B = torch.tensor([x for rollout, _ in groups for x in rollout.reward])
        if self.settings.overlong_cache:
            reward_B = reward_B + vppo.soft_overlong_penalty(
                mask_BT.sum(-1), self.config.rollout.max_new_tokens, self.settings.overlong_cache
            )
        loss_mask_BT = mask_BT
        if self.settings.mask_truncated:
            loss_mask_BT = vppo.without_truncated(mask_BT, truncated_B)
        tokens = Tokens(
            old_BT, rollout_BT, mask_BT, loss_mask_BT, keep_BT.bool(), vppo.group_advantages(reward_B, size).float()
        )
        return _map(tokens, lambda x: x.to(self.policy.device))

    @property
    def reference(self) -> Policy:
        """The starting policy, loaded when first needed."""
        if self._reference is None:
            assert self._make_reference is not None
            self._reference = self._make_reference()
            self._reference.model.requires_grad_(False)
        return self._reference

    def _warmup(self) -> float:
        return min(1.0, (self.updates + 1) / max(self.settings.warmup_steps, 1))

    # -- state ---------------------------------------------------------------------------------

    @torch.no_grad()
    def _set(self, values: dict[str, torch.Tensor]) -> None:
        """Set trained weights."""
        for name, parameter in self.named:
            parameter.copy_(values[name])

    @property
    def _shapes(self) -> dict[str, Sequence[int]]:
        """Of each trained weight, whole, by name."""
        return {name: parameter.shape for name, parameter in self.named}

    def save(self, folder: Path) -> None:
        """Write AdamW's moments and the number of updates as safetensors (never pickle)."""
        state = {
            f"{kind}/{name}": value
            for name, parameter in self.named
            for kind, value in self.optimizer.state.get(parameter, {}).items()
        }
        shapes = {key: value.shape for key, value in state.items()}
        moments.write(folder / OPTIMIZER, self.updates, shapes, state.__getitem__)
        if self.settings.lora_rank:
            lora.save(self.policy, self.config, folder)

    def load(self, folder: Path) -> None:
        """Read the state back; the next update is bit for bit what it would have been.

        Raises:
            UserError: it is not the state of these weights.
        """
        if self.settings.lora_rank:
            self._set(lora.load(folder))
        self.updates = moments.updates(folder / OPTIMIZER)
        parameters = dict(self.named)
        for kind, name, value in moments.read(folder / OPTIMIZER, self._shapes):
            on_host = kind == "step" and not self.optimizer.defaults["fused"]
            place = "cpu" if on_host else self.policy.device
            self.optimizer.state[parameters[name]][kind] = value.to(place)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def freeze_vision(model: Any) -> None:
    """Take the vision tower, and the projector into the language model, out of the training."""
    language = of_language(model)
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in language)


def of_language(model: Any) -> set[int]:
    """The ids of a model's parameters that are not its vision tower's or projector's."""
    head = model.get_output_embeddings().parameters()
    return {id(p) for p in (*model.get_decoder().parameters(), *head)}


def _map(tokens: Tokens, function: Callable[[torch.Tensor], torch.Tensor]) -> Tokens:
    values = {f.name: getattr(tokens, f.name) for f in fields(Tokens)}
    return Tokens(**{name: function(value) for name, value in values.items()})


def _slice(tokens: Tokens, rows_B: torch.Tensor) -> Tokens:
    """The micro-batch's rows, cut to its longest response."""
    part = _map(tokens, lambda x: x[rows_B])
    longest = int(part.mask_BT.sum(-1).max())
    return _map(part, lambda x: x[:, :longest] if x.dim() == 2 else x)


def _slice_terms(terms: Terms, rows_B: torch.Tensor, longest: int) -> Terms:
    return replace(terms, adv_B=terms.adv_B[rows_B], keep_BT=terms.keep_BT[rows_B, :longest])
