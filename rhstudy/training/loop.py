"""Fine-tuning on answer tokens: one plain loop, resumable at any step.

The order of examples follows from the seed alone, so a run killed at any step and started again ends with the weights
an uninterrupted run ends with (bit-equal on a CPU). The same loop runs in each of several processes that share one
model (see `sharded`): then a step's examples are shared out, and what leaves the loop is whole again.

On a GPU Python never waits for a step: it lays out the next one meanwhile, and losses come some steps late (`meter`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from tqdm import tqdm
from transformers import PreTrainedModel

from rhstudy.errors import StudyError, message, require
from rhstudy.models.load import LoadedModel
from rhstudy.seeding import generator
from rhstudy.training.batching import num_sequence_tokens
from rhstudy.training.causal import causal_attention
from rhstudy.training.config import Schedule, TrainingConfig
from rhstudy.training.context import autocast, change_norm, frozen_fingerprint, make_trainable, require_frozen, settle
from rhstudy.training.flops import peak_flops, step_flops
from rhstudy.training.loss import answer_batch, answer_loss
from rhstudy.training.memory import Passes, out_of_memory_named
from rhstudy.training.meter import StepMeter, StepNumbers
from rhstudy.training.modes import compiled_layers, compiles, deterministic_kernels
from rhstudy.training.optimizers import make_optimizer
from rhstudy.training.pauses import NO_PAUSES, Pauses, lent_for_a_look
from rhstudy.training.ranks import ALONE, Ranks, local, whole
from rhstudy.training.state import STATE_FILE, SaveTimes, restore_state, save_state
from rhstudy.types import Example

OnStep = Callable[[int, Mapping[str, float]], None]
Prepare = Callable[[PreTrainedModel, TrainingConfig, int], dict[str, nn.Parameter]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingResult:
    """What a fine-tuning run produced.

    Attributes:
        weights: trained parameters by name, on the CPU: attention in the model's number format, adapters in float32; of
            several processes, only rank 0 has them.
        losses: training loss of each step, nats per answer token.
        train_loss: mean loss of the last fifth of the steps, on the recipe's own data (a rival predictor).
        weight_change_norm: L2 norm of the change of all trained weights (a rival predictor).
        num_tokens: tokens trained on, padding excluded.
        seconds: wall-clock time of all steps, those of earlier tries included.
        tokens_per_s: throughput over these seconds.
        mfu: model FLOP/s over the GPUs' peak (see `flops`); NaN where either is unknown.
        mfu_reason: why it is NaN; empty otherwise.
        peak_gpu_bytes: most GPU memory in use at once in this process while it trained; None on a CPU.
        gradient_checkpointing: whether activations were recomputed in the end.
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
    mfu: float
    mfu_reason: str
    peak_gpu_bytes: float | None
    gradient_checkpointing: bool
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
    prepare: Prepare = make_trainable,
    pauses: Pauses = NO_PAUSES,
) -> TrainingResult:
    """Fine-tune `loaded` in place; it is left as its checkpoint would give it back.

    Args:
        loaded: the base model with its context extension applied.
        examples: training rows; their order is drawn from `seed`.
        config: optimisation settings.
        seed: root seed of the run.
        work_dir: where the resumable state is kept; state found there is continued.
        on_step: called for every step, in order, once its numbers are known, with ``loss``, ``learning_rate``,
            ``grad_norm``, ``tokens_per_s``, and where known ``mfu`` and ``peak_gpu_bytes``.
        ranks: which of how many processes this is; each calls this function with the same examples, config and seed.
        prepare: freezes the model but for what is trained, and returns that by name.
        pauses: after which steps the model is looked at, by one process alone; results do not depend on it.

    Raises:
        InputError: no examples, a tokenizer without an end token, float16 weights, or a model unfit for the config.
        StudyError: the loss is not finite, memory ran out, or a frozen parameter moved.
    """
    require(bool(examples), "data", "hold at least one training example", 0, "Check the data set's parts")
    kind = str(loaded.model.dtype).removeprefix("torch.")
    remedy = "Its gradients underflow without loss scaling; use bfloat16 or float32"
    require(kind != "float16", "model.dtype", "be bfloat16 or float32 for training", kind, remedy)
    with ExitStack() as modes:
        modes.enter_context(deterministic_kernels(config.deterministic))
        if ranks.size == 1:
            modes.enter_context(causal_attention(loaded.model, packing=config.packing))
        modes.enter_context(out_of_memory_named("what is trained, its gradients and its optimizer's moments"))
        run = _Run(loaded, config, plan_steps(len(examples), config, seed), ranks, prepare, seed)
        wanted = compiles(config, loaded.model, num_flops=run.flops_of(examples), num_processes=ranks.size)
        modes.enter_context(compiled_layers(loaded.model, wanted, strict=config.compile == "on"))
        modes.callback(run.passes.close)
        run.restore(work_dir / STATE_FILE)
        _train(run, examples, work_dir / STATE_FILE, on_step, pauses)
        return run.result()


def _train(run: _Run, examples: Sequence[Example], state: Path, on_step: OnStep, pauses: Pauses) -> None:
    progress = tqdm(total=len(run.steps), initial=len(run.losses), desc="finetune", unit="step", disable=None)

    def report(*, wait: bool = False) -> None:
        for numbers in run.meter.finished(wait=wait):
            metrics = run.record(numbers)
            on_step(len(run.losses) - 1, metrics)
            progress.update()
            progress.set_postfix(loss=f"{metrics['loss']:.3f}", tokens_s=f"{metrics['tokens_per_s']:,.0f}")

    with progress:
        run.meter.start()
        for step in range(len(run.losses), len(run.steps)):
            run.step([examples[index] for index in run.steps[step]])
            last = step + 1 == len(run.steps)
            save, look = not last and run.saves.due(step + 1), step + 1 in pauses.steps
            report(wait=last or save or look)
            if look:  # before the state is saved: what was not seen yet is seen after a kill
                with lent_for_a_look(run.model, run.dtype):
                    pauses.look(step + 1)
                run.meter.start()
            if save:
                with run.saves.timed():
                    run.save(state)
                run.meter.start()


class _Run:
    """Optimizer, schedule and counters of one fine-tuning run."""

    def __init__(
        self,
        loaded: LoadedModel,
        config: TrainingConfig,
        steps: list[list[int]],
        ranks: Ranks,
        prepare: Prepare,
        seed: int,
    ) -> None:
        end = loaded.tokenizer.eos_token_id
        require(end is not None, "tokenizer.eos_token_id", "be set", end, "Training closes every answer with it")
        self.end_id = int(end)
        self.model, self.config, self.steps, self.ranks = loaded.model, config, steps, ranks
        self.dtype = loaded.model.dtype
        self.parameters = prepare(loaded.model, config, seed)
        self.device = loaded.model.device  # only now: sharding may have moved it
        self.base = {name: local(value.detach()).cpu().clone() for name, value in self.parameters.items()}
        self.frozen = frozen_fingerprint(loaded.model)
        rate = config.learning_rate
        self.optimizer = make_optimizer(
            config.optimizer, self.parameters.values(), learning_rate=rate, device=self.device
        )
        warmup = math.ceil(config.warmup_fraction * len(self.steps))
        factor = functools.partial(rate_factor, num_steps=len(self.steps), num_warmup=warmup, schedule=config.schedule)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, factor)
        self.passes = Passes(loaded.model, config, self.device, ranks.size)
        self.meter = StepMeter(self.device)
        self.saves = SaveTimes(config.save_every_steps, ranks.size)
        self.flops = step_flops(loaded.model, set(self.parameters))
        self.peak, self.peak_reason = peak_flops(self.device, self.dtype)
        self.losses: list[float] = []
        self.num_tokens = 0
        self.num_flops = 0.0
        self.seconds = 0.0
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def step(self, examples: Sequence[Example]) -> None:
        """Hand one optimizer step to the device."""
        self.model.train()
        loss = self.passes.with_retries(examples, lambda: self._gradients(examples))
        self.ranks.add_gradients(self.parameters.values())
        norm = whole(nn.utils.clip_grad_norm_(self.parameters.values(), self.config.max_grad_norm))
        rate = float(self.scheduler.get_last_lr()[0])
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.meter.push(
            torch.stack([self.ranks.total(loss), norm.float()]),
            num_tokens=sum(map(num_sequence_tokens, examples)),
            num_flops=self._num_flops(examples),
            learning_rate=rate,
        )

    def _num_flops(self, examples: Sequence[Example]) -> float:
        return self.flops.of((num_sequence_tokens(example), len(example.answer_ids) + 1) for example in examples)

    def flops_of(self, examples: Sequence[Example]) -> float:
        """Model FLOPs of all steps over the data set `examples`; NaN when unknown."""
        return sum(self._num_flops([examples[index] for index in step]) for step in self.steps)

    def _gradients(self, examples: Sequence[Example]) -> Tensor:
        """Add the step's gradients to the parameters; returns this process' share of the loss."""
        self.optimizer.zero_grad(set_to_none=True)  # of a try that ran out of memory
        num_targets = sum(len(example.answer_ids) + 1 for example in examples)
        total = torch.zeros((), device=self.device)
        for part, weight in self.ranks.shares(self.passes.groups(examples)):
            batch = answer_batch(part, self.end_id, self.device, packing=self.config.packing)
            with autocast(self.device, self.dtype):
                loss = answer_loss(self.model, batch) / num_targets * weight
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total

    def record(self, numbers: StepNumbers) -> dict[str, float]:
        """Take up a finished step's numbers; returns its metrics.

        Raises:
            StudyError: they are not finite.
        """
        loss, norm = numbers.values
        for name, value in (("training loss", loss), ("gradient norm", norm)):
            if not math.isfinite(value):
                remedy = "Lower training.learning_rate; the last saved state is kept in the work folder"
                raise StudyError(message(name, "be finite", value, remedy, f"step {len(self.losses)}"))
        self.losses.append(loss)
        self.num_tokens += numbers.num_tokens
        self.num_flops += numbers.num_flops
        self.seconds += numbers.seconds
        metrics = {
            "loss": loss,
            "learning_rate": numbers.learning_rate,
            "grad_norm": norm,
            "tokens_per_s": self.num_tokens / self.seconds,
        }
        if math.isfinite(self.mfu):
            metrics["mfu"] = self.mfu
        if self.device.type == "cuda":
            metrics["peak_gpu_bytes"] = float(torch.cuda.max_memory_allocated(self.device))
        return metrics

    @property
    def mfu(self) -> float:
        """Of all steps so far."""
        return self.num_flops / (self.seconds * self.peak * self.ranks.size)

    def save(self, path: Path) -> None:
        """Write the resumable state, all or nothing."""
        counters = {
            "losses": self.losses,
            "num_tokens": self.num_tokens,
            "num_flops": self.num_flops,
            "seconds": self.seconds,
        }
        save_state(path, self.parameters, self.optimizer, self.scheduler, counters, self.ranks)

    def restore(self, path: Path) -> None:
        """Continue from the state at `path` when there is one."""
        found = restore_state(path, self.parameters, self.optimizer, self.scheduler)
        if found:
            self.losses, self.num_tokens = list(found["losses"]), int(found["num_tokens"])
            self.num_flops, self.seconds = float(found.get("num_flops", math.nan)), float(found["seconds"])

    def result(self) -> TrainingResult:
        """Check the frozen part, settle the model and hand over the trained weights."""
        on_gpu = self.device.type == "cuda"
        peak = float(torch.cuda.max_memory_allocated(self.device)) if on_gpu else None  # the checks below need some too
        require_frozen(self.model, self.frozen)
        self.model.train(False)
        last = self.losses[-max(1, len(self.losses) // 5) :]
        change = change_norm(self.parameters, self.base)
        weights = self._weights()
        if self.ranks.size == 1:
            settle(self.parameters, self.dtype, self.config)
        return TrainingResult(
            weights=weights,
            losses=tuple(self.losses),
            train_loss=sum(last) / len(last),
            weight_change_norm=self._joint(change),
            num_tokens=self.num_tokens,
            seconds=self.seconds,
            tokens_per_s=self.num_tokens / self.seconds,
            mfu=self.mfu,
            mfu_reason=self.flops.reason or self.peak_reason,
            peak_gpu_bytes=peak,
            gradient_checkpointing=self.passes.checkpointing,
        )

    def _joint(self, norm: float) -> float:
        pieces = any(isinstance(value, DTensor) for value in self.parameters.values())
        return self.ranks.joint_norm(norm, self.device) if pieces else norm

    def _weights(self) -> dict[str, Tensor]:
        kind = self.dtype if self.config.method == "attention" else torch.float32
        weights: dict[str, Tensor] = {}
        for name, value in self.parameters.items():
            tensor = whole(value.detach())
            if self.ranks.rank == 0:  # the others would hold copies that nobody reads
                weights[name] = tensor.to("cpu", kind, copy=True).contiguous()
        return weights
