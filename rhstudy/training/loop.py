"""Fine-tuning of the attention modules on answer tokens: one plain loop, resumable at any step.

The order of examples follows from the seed alone, so a run killed at any step and started again ends with the weights
an uninterrupted run ends with (bit-equal on a CPU). The same loop runs in each of several processes that share one
model (see `sharded`): then a step's examples are shared out, and what leaves the loop is whole again.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel

from rhstudy.configs import NO_DIGEST, require_at_least
from rhstudy.errors import StudyError, message, require
from rhstudy.models.load import LoadedModel
from rhstudy.seeding import generator
from rhstudy.training.context import autocast, change_norm, frozen_fingerprint, require_frozen, unfreeze_attention
from rhstudy.training.loss import answer_batch, answer_loss
from rhstudy.training.ranks import ALONE, Ranks, local, whole
from rhstudy.training.state import STATE_FILE, restore_state, save_state
from rhstudy.types import Example

Schedule = Literal["linear", "cosine", "constant"]
OnStep = Callable[[int, Mapping[str, float]], None]
Unfreeze = Callable[[PreTrainedModel], dict[str, nn.Parameter]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """How the attention modules are fine-tuned.

    Attributes:
        learning_rate: peak rate of AdamW (betas 0.9, 0.999; no weight decay).
        num_epochs: passes over the examples.
        batch_size: examples per optimizer step.
        micro_batch_size: examples per forward pass (of each process); gradients of a step are accumulated, results are
            the same up to float rounding.
        warmup_fraction: share of the steps with linearly rising rate.
        schedule: shape of the rate after the warm-up.
        max_grad_norm: gradients are clipped to this L2 norm.
        save_every_steps: how often the resumable state is written.
        gradient_checkpointing: recompute activations in the backward pass to save memory.
        num_processes: training processes on this host, one GPU each (CPU cores where there is no GPU). Above 1, FSDP
            shards the model over them (see `sharded`) and a step's examples are shared out; results are the same up to
            float rounding, which is why it is no part of the digest.
    """

    learning_rate: float = 3e-4
    num_epochs: int = 1
    batch_size: int = 8
    micro_batch_size: int = field(default=1, metadata=NO_DIGEST)
    warmup_fraction: float = 0.1
    schedule: Schedule = "linear"
    max_grad_norm: float = 1.0
    save_every_steps: int = field(default=20, metadata=NO_DIGEST)
    gradient_checkpointing: bool = field(default=False, metadata=NO_DIGEST)
    num_processes: int = field(default=1, metadata=NO_DIGEST)

    def __post_init__(self) -> None:
        require_at_least(self, "training", num_epochs=1, batch_size=1, micro_batch_size=1, save_every_steps=1)
        require_at_least(self, "training", num_processes=1)
        rate = self.learning_rate
        require(0 < rate < 1, "training.learning_rate", "lie in (0, 1)", rate, "Try 3e-4")
        share = self.warmup_fraction
        require(0 <= share < 1, "training.warmup_fraction", "lie in [0, 1)", share, "Try 0.1")
        norm = self.max_grad_norm
        require(norm > 0, "training.max_grad_norm", "be positive", norm, "Try 1.0")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingResult:
    """What a fine-tuning run produced.

    Attributes:
        weights: trained attention parameters by name, on the CPU, in the model's number format; of several processes,
            only rank 0 has them.
        losses: training loss of each step, nats per answer token.
        train_loss: mean loss of the last fifth of the steps, on the recipe's own data (a rival predictor).
        weight_change_norm: L2 norm of the change of all trained weights (a rival predictor).
        num_tokens: tokens trained on, padding excluded.
        seconds: wall-clock time of all steps, those of earlier tries included.
        tokens_per_s: throughput over these seconds.
        process_peaks: peak memory in bytes of the largest training process, by metric name; empty when training ran in
            this process.
    """

    weights: dict[str, Tensor]
    losses: tuple[float, ...]
    train_loss: float
    weight_change_norm: float
    num_tokens: int
    seconds: float
    tokens_per_s: float
    process_peaks: Mapping[str, float] = field(default_factory=dict)


def plan_steps(num_examples: int, config: TrainingConfig, seed: int) -> list[list[int]]:
    """Example indices of every optimizer step: each epoch a fresh permutation; the last batch may be smaller."""
    steps: list[list[int]] = []
    for epoch in range(config.num_epochs):
        order = generator(seed, "training order", epoch).permutation(num_examples).tolist()
        steps += [order[start : start + config.batch_size] for start in range(0, num_examples, config.batch_size)]
    return steps


def rate_factor(step: int, *, num_steps: int, num_warmup: int, schedule: Schedule) -> float:
    """Share of the peak learning rate at `step`: linear rise over the warm-up, then the schedule's fall to 0."""
    if step < num_warmup:
        return (step + 1) / (num_warmup + 1)
    if schedule == "constant":
        return 1.0
    done = (step - num_warmup) / max(1, num_steps - num_warmup)
    return 1.0 - done if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))


def finetune(
    loaded: LoadedModel,
    examples: Sequence[Example],
    config: TrainingConfig,
    *,
    seed: int,
    work_dir: Path,
    on_step: OnStep = lambda _step, _metrics: None,
    ranks: Ranks = ALONE,
    unfreeze: Unfreeze = unfreeze_attention,
) -> TrainingResult:
    """Fine-tune the attention modules of `loaded` in place.

    Args:
        loaded: the base model with its context extension applied.
        examples: training rows; their order is drawn from `seed`.
        config: optimisation settings.
        seed: root seed of the run.
        work_dir: where the resumable state is kept; state found there is continued.
        on_step: called after every step with ``loss``, ``learning_rate``, ``grad_norm`` and ``tokens_per_s``.
        ranks: which of how many processes this is; each calls this function with the same examples, config and seed.
        unfreeze: freezes the model but for what is trained, and returns that by name.

    Raises:
        InputError: no examples, or a tokenizer without an end token.
        StudyError: the loss is not finite, memory ran out, or a frozen parameter moved.
    """
    require(bool(examples), "data", "hold at least one training example", 0, "Check the data set's parts")
    run = _Run(loaded, config, plan_steps(len(examples), config, seed), ranks, unfreeze)
    run.restore(work_dir / STATE_FILE)
    progress = tqdm(total=len(run.steps), initial=len(run.losses), desc="finetune", unit="step", disable=None)
    with progress:
        for step in range(len(run.losses), len(run.steps)):
            metrics = run.step([examples[index] for index in run.steps[step]])
            on_step(step, metrics)
            progress.update()
            progress.set_postfix(loss=f"{metrics['loss']:.3f}", tokens_s=f"{metrics['tokens_per_s']:,.0f}")
            if (step + 1) % config.save_every_steps == 0:
                run.save(work_dir / STATE_FILE)
    return run.result()


class _Run:
    """Optimizer, schedule and counters of one fine-tuning run."""

    def __init__(
        self, loaded: LoadedModel, config: TrainingConfig, steps: list[list[int]], ranks: Ranks, unfreeze: Unfreeze
    ) -> None:
        end = loaded.tokenizer.eos_token_id
        require(end is not None, "tokenizer.eos_token_id", "be set", end, "Training closes every answer with it")
        self.end_id = int(end)
        self.model, self.config, self.steps, self.ranks = loaded.model, config, steps, ranks
        self.dtype = loaded.model.dtype
        self.parameters = unfreeze(loaded.model)
        self.device = loaded.model.device  # only now: sharding may have moved it
        self.base = {name: local(value.detach()).cpu().clone() for name, value in self.parameters.items()}
        self.frozen = frozen_fingerprint(loaded.model)
        fused = self.device.type == "cuda"
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=config.learning_rate, weight_decay=0.0, fused=fused
        )
        warmup = math.ceil(config.warmup_fraction * len(self.steps))
        factor = functools.partial(rate_factor, num_steps=len(self.steps), num_warmup=warmup, schedule=config.schedule)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, factor)
        self.losses: list[float] = []
        self.num_tokens = 0
        self.seconds = 0.0
        if config.gradient_checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[no-untyped-call]

    def step(self, examples: Sequence[Example]) -> dict[str, float]:
        """One optimizer step; returns its metrics."""
        self.model.train()
        began = time.perf_counter()
        shares = self.ranks.shares(examples, self.config.micro_batch_size)
        batches = [(answer_batch(part, self.end_id, self.device), weight) for part, weight in shares]
        num_targets = sum(len(example.answer_ids) + 1 for example in examples)
        total = torch.zeros((), device=self.device)
        try:
            for batch, weight in batches:
                with autocast(self.device, self.dtype):
                    loss = answer_loss(self.model, batch) / num_targets * weight
                loss.backward()  # type: ignore[no-untyped-call]
                total += loss.detach()
        except torch.cuda.OutOfMemoryError as error:
            remedy = "Lower training.micro_batch_size or num_tokens, or set training.gradient_checkpointing"
            raise StudyError(message("GPU memory", "hold a micro-batch", str(error)[:120], remedy)) from error
        metrics = self._apply(float(self.ranks.total(total)))
        self.num_tokens += sum(len(example.prompt_ids) + len(example.answer_ids) + 1 for example in examples)
        self.seconds += time.perf_counter() - began
        return metrics | {"tokens_per_s": self.num_tokens / self.seconds}

    def _apply(self, loss: float) -> dict[str, float]:
        norm = float(whole(nn.utils.clip_grad_norm_(self.parameters.values(), self.config.max_grad_norm)))
        for name, value in (("training loss", loss), ("gradient norm", norm)):
            if not math.isfinite(value):
                remedy = "Lower training.learning_rate; the last saved state is kept in the work folder"
                raise StudyError(message(name, "be finite", value, remedy, f"step {len(self.losses)}"))
        rate = float(self.scheduler.get_last_lr()[0])
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.losses.append(loss)
        return {"loss": loss, "learning_rate": rate, "grad_norm": norm}

    def save(self, path: Path) -> None:
        """Write the resumable state, all or nothing."""
        counters = {"losses": self.losses, "num_tokens": self.num_tokens, "seconds": self.seconds}
        save_state(path, self.parameters, self.optimizer, self.scheduler, counters, self.ranks)

    def restore(self, path: Path) -> None:
        """Continue from the state at `path` when there is one."""
        found = restore_state(path, self.parameters, self.optimizer, self.scheduler)
        if found:
            self.losses, self.num_tokens = list(found["losses"]), int(found["num_tokens"])
            self.seconds = float(found["seconds"])

    def result(self) -> TrainingResult:
        """Check the frozen part and hand over the trained weights."""
        require_frozen(self.model, self.frozen)
        self.model.train(False)
        last = self.losses[-max(1, len(self.losses) // 5) :]
        change = change_norm(self.parameters, self.base)
        return TrainingResult(
            weights=self._weights(),
            losses=tuple(self.losses),
            train_loss=sum(last) / len(last),
            weight_change_norm=self.ranks.joint_norm(change, self.device),
            num_tokens=self.num_tokens,
            seconds=self.seconds,
            tokens_per_s=self.num_tokens / self.seconds,
        )

    def _weights(self) -> dict[str, Tensor]:
        weights: dict[str, Tensor] = {}
        for name, value in self.parameters.items():
            tensor = whole(value.detach())
            if self.ranks.rank == 0:  # the others would hold copies that nobody reads
                weights[name] = tensor.to(self.dtype).cpu().contiguous()
        return weights
