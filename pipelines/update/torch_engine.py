"""Update engine ``torch``: one process, AdamW, gradient accumulation.

The loss of a micro-batch is divided by the denominators of the whole update batch, so the gradient
does not depend (but for rounding) on how the batch is cut. Gradients that are not finite are not applied.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from pipelines import vppo
from pipelines.config.schema import Config
from pipelines.disk.records import Advantages, Rollout, SampleTable, Scored
from pipelines.model.divergence import token_logp, views_logp
from pipelines.model.finite import first_not_finite
from pipelines.model.packing import fill
from pipelines.model.policy import Policy
from pipelines.objectives import table
from pipelines.objectives.batch import Batch, Reading, Terms
from pipelines.objectives.surrogates import SURROGATES
from pipelines.score.scoring import perturbed_states
from pipelines.update import lora, moments
from pipelines.update.batches import Groups, Tokens, cut_terms, cut_tokens, make_batch, make_terms, make_tokens
from pipelines.update.moments import OPTIMIZER

MOST_SKIPPED = 5
"""So many optimizer steps in a row whose gradients are not finite end the run. One is an accident of its
batch (the weights stay, the next batch is another); five batches are not."""


class TorchTrainer:
    """AdamW on float32 weights; the forward pass computes in ``model.dtype``.

    Args:
        policy: trained in place.
        reference: the starting policy, needed only with ``update.kl_coefficient``; made on first use.
    """

    def __init__(self, policy: Policy, config: Config, reference: Callable[[], Policy] | None = None) -> None:
        self.policy, self.config, self.settings = policy, config, config.update
        self.objective = table.find_objective(self.settings.objective)
        self.passes = table.passes(self.objective, self.settings)
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

    def _optimizer_step(self, groups: Groups, samples: SampleTable) -> dict[str, float]:
        whole = make_tokens(self.config, groups, self.policy.device)
        batch = self._batch(groups, samples)
        terms = make_terms(self.objective, batch, self.settings)
        self.advantages_used += _advantages(groups, batch, terms)
        denominator = vppo.loss_denominator(whole.loss_mask_BT, terms.average, batch.max_tokens).clamp(min=1)
        tokens = whole.loss_mask_BT.sum().clamp(min=1)

        self.optimizer.zero_grad(set_to_none=True)
        # Training mode turns gradient checkpointing on; dropout is 0 in these models.
        self.policy.model.train(self.settings.gradient_checkpointing)
        totals: dict[str, float] = defaultdict(float)
        twice = 2 if table.PERTURBED in self.passes else 1  # both views' activations are there at once
        mine = self._micro_batches(
            [twice * self.policy.fed_tokens(rollout.prompt_tokens, rollout.response_ids) for rollout, _ in groups]
        )
        for number, (chosen, counts) in enumerate(mine, start=1):
            soon = [i for part, _ in mine[number - 1 : number + 1] for i in part]
            self.policy.encoder.expect([samples.by_id(groups[i][0].sample_id) for i in soon])
            rows_B = torch.isin(batch.group_B, torch.tensor(chosen, device=batch.group_B.device))
            cut = cut_tokens(whole, rows_B)
            cut_to = cut_terms(terms, rows_B, cut.mask_BT.shape[1])
            part = [groups[i] for i in chosen]
            loss, sums = self._loss(part, samples, rows_B, cut, cut_to, denominator, tokens)
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
        alpha_B = (_mean_advantage(batch, terms) / torch.where(batch.adv_B == 0, 1.0, batch.adv_B))[batch.adv_B != 0]
        return totals | {
            "updates_skipped": 0.0,
            "grad_norm": norm,
            "learning_rate": rate,
            "advantage_std": batch.adv_B.std().item(),
            "alpha_min": alpha_B.min().item() if len(alpha_B) else 1.0,
            "alpha_max": alpha_B.max().item() if len(alpha_B) else 1.0,
        }

    def _batch(self, groups: Groups, samples: SampleTable) -> Batch:
        """What the objective sees of the update batch, the same on every rank."""
        return make_batch(self.config, groups, samples, self.policy, self.updates)

    def _loss(
        self,
        groups: Groups,
        samples: SampleTable,
        rows_B: torch.Tensor,
        t: Tokens,
        terms: Terms,
        denominator: torch.Tensor,
        tokens: torch.Tensor,
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Loss of one micro-batch, and its share of the batch's metrics."""
        settings = self.settings
        reading = self._read(groups, samples, rows_B, t.mask_BT)
        logp_BT, entropy_BT = reading.logp_BT, reading.entropy_BT
        loss_BT, clipping = SURROGATES[settings.surrogate](logp_BT, t.old_logp_BT, t.mask_BT, terms, settings)
        tis = {}
        if settings.tis_cap is not None:
            weight_BT = vppo.tis_weights(t.old_logp_BT, t.rollout_logp_BT, settings.tis_cap)
            loss_BT = loss_BT * weight_BT
            capped_BT = weight_BT >= settings.tis_cap * (1 - 1e-6)
            tis = {"tis_weight_mean": weight_BT, "tis_capped": capped_BT}
        loss = vppo.average_loss(loss_BT, terms.weight_BT, t.loss_mask_BT, terms.average, denominator)
        penalty_BT = vppo.ENTROPY_PENALTIES[settings.entropy_estimator](logp_BT, entropy_BT)
        penalty = vppo.average_loss(penalty_BT, t.mask_BT, t.loss_mask_BT, "token", tokens)
        total = loss + settings.entropy_penalty * penalty
        metrics = {"loss": loss.item(), "entropy_penalty": penalty.item()}
        for name, extra_BT in (terms.extra(reading) if terms.extra else {}).items():
            extra = vppo.average_loss(extra_BT, t.mask_BT, t.loss_mask_BT, "token", tokens)
            total = total + extra
            metrics[name] = extra.item()
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
        metrics["trained_share"] = ((terms.weight_BT.bool() & t.loss_mask_BT).sum() / tokens).item()
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

    def _read(self, groups: Groups, samples: SampleTable, rows_B: torch.Tensor, mask_BT: torch.Tensor) -> Reading:
        """The policy's own passes over a micro-batch, with gradient."""

        def padded(x_N: torch.Tensor) -> torch.Tensor:
            return torch.zeros(mask_BT.shape, device=x_N.device).masked_scatter(mask_BT, x_N)

        return Reading(rows_B.nonzero().flatten(), mask_BT, *map(padded, self._trained(groups, samples)))

    def _trained(self, groups: Groups, samples: SampleTable) -> tuple[torch.Tensor, ...]:
        """``_forward`` of the policy that is trained; where the objective asks for it, ``_both_views``."""
        if table.PERTURBED in self.passes:
            return self._both_views(groups, samples)
        return self._forward(self.policy, groups, samples)

    def _forward(self, policy: Policy, groups: Groups, samples: SampleTable) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-prob and entropy of every response token, flat [N], differentiable."""
        return token_logp(
            _clean_states(policy, groups, samples),
            policy.head_weight,
            _tokens(policy, groups),
            temperature=self.config.rollout.temperature,
            suppressed_ids=policy.suppressed_ids,
        )

    def _both_views(self, groups: Groups, samples: SampleTable) -> tuple[torch.Tensor, ...]:
        """Of both views log-prob and entropy, then KL(p || q): each flat [N], differentiable.

        The perturbed images are those that were scored.
        """
        policy, (step,) = self.policy, {scored.step for _, scored in groups}
        rollouts = [rollout for rollout, _ in groups]
        owners = [samples.by_id(rollout.sample_id) for rollout in rollouts]
        hidden_ND = _clean_states(policy, groups, samples)
        perturbed_ND = perturbed_states(self.config, step, rollouts, owners, policy, hidden_ND)
        return views_logp(
            hidden_ND,
            perturbed_ND,
            policy.head_weight,
            _tokens(policy, groups),
            temperature=self.config.rollout.temperature,
            suppressed_ids=policy.suppressed_ids,
        )

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


def _clean_states(policy: Policy, groups: Groups, samples: SampleTable) -> torch.Tensor:
    """Hidden states of all response tokens with the images as they are, [N, D]."""
    return policy.hidden_states(
        [
            row
            for rollout, _ in groups
            for row in policy.rows(policy.encoder.encode(samples.by_id(rollout.sample_id)), rollout.response_ids)
        ]
    )


def _tokens(policy: Policy, groups: Groups) -> torch.Tensor:
    """All response tokens, [N]."""
    ids = [token for rollout, _ in groups for response in rollout.response_ids for token in response]
    return torch.tensor(ids, device=policy.device)


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


def _mean_advantage(batch: Batch, terms: Terms) -> torch.Tensor:
    """What the objective made of each response's advantage, as the mean over its tokens where they differ -> [B]."""
    if terms.advantage.dim() == 1:
        return terms.advantage
    return vppo.masked_mean(terms.advantage, batch.mask_BT)


def _advantages(groups: Groups, batch: Batch, terms: Terms) -> list[Advantages]:
    """Before and after the objective, a row for each group."""
    both = (x_B.reshape(len(groups), -1).tolist() for x_B in (batch.adv_B, _mean_advantage(batch, terms)))
    return [
        Advantages(rollout.sample_id, rollout.position, *found)
        for (rollout, _), *found in zip(groups, *both, strict=True)
    ]
