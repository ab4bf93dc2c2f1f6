"""How a model is fine-tuned: what is trained, with which optimizer, in what batches, and what cannot be combined."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch

from rhstudy.configs import NO_DIGEST, ModelConfig, require_at_least
from rhstudy.errors import require
from rhstudy.models.adapters import LoraTargets
from rhstudy.models.load import resolve_device

Schedule = Literal["linear", "cosine", "constant"]
Method = Literal["attention", "lora"]
OptimizerName = Literal["adamw", "adamw_8bit", "paged_adamw_8bit"]
Switch = Literal["auto", "on", "off"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """How a model is fine-tuned.

    Attributes:
        method: ``attention`` trains the attention modules whole (float32 masters), ``lora`` low-rank adapters (float32)
            beside frozen weights; with model.quantization ``nf4`` that is QLoRA.
        lora_rank: r of the adapters, 1 to 1024.
        lora_alpha: scale of the adapters' update, divided by r.
        lora_targets: adapters on the linear layers of ``attention``, or on ``all`` but the LM head.
        optimizer: AdamW with float32 moments; ``adamw_8bit`` keeps them in 8 bits (bitsandbytes, block-wise), and
            ``paged_adamw_8bit`` also lets them leave the GPU (CUDA only; not after a resume).
        learning_rate: peak rate of AdamW (betas 0.9, 0.999; no weight decay).
        num_epochs: passes over the examples.
        batch_size: examples per optimizer step.
        micro_batch_size: examples per forward pass (of each process); 0 takes as many of a step's examples, sorted by
            length, as make 32,768 tokens with padding on a GPU, and 1 on a CPU. Gradients of a step are accumulated:
            results are the same up to float rounding.
        warmup_fraction: share of the steps with linearly rising rate.
        schedule: shape of the rate after the warm-up.
        max_grad_norm: gradients are clipped to this L2 norm.
        save_every_steps: how often the resumable state is written; 0 = as often as costs no more than a twentieth of
            the time, every 20 steps of several processes.
        gradient_checkpointing: recompute activations in the backward pass to save memory; ``auto`` begins when memory
            ran out (one process: the step is done again) or an estimate says it would (several processes).
        packing: put a micro-batch's examples one behind the other instead of padding them; none sees another. Pays
            where lengths differ much.
        compile: compile decoder layers with torch.compile, which fuses a step's many small kernels: up to twice as
            fast, after some 12 s of compiling that this machine keeps. ``auto`` does on a GPU in a study, or in a run
            long enough, where nothing speaks against it (quantised weights, packing, several processes, no compiler).
        deterministic: only deterministic GPU kernels: equal bits at every run of one machine, at some cost in speed.
        num_processes: training processes on this host, one GPU each (CPU cores where there is no GPU). Above 1, FSDP
            shards the model over them (see `sharded`) and a step's examples are shared out; results are the same up to
            float rounding, which is why it is no part of the digest.
    """

    method: Method = "attention"
    lora_rank: int = 16
    lora_alpha: int = 32
    lora_targets: LoraTargets = "attention"
    optimizer: OptimizerName = "adamw"
    learning_rate: float = 3e-4
    num_epochs: int = 1
    batch_size: int = 8
    micro_batch_size: int = field(default=0, metadata=NO_DIGEST)
    warmup_fraction: float = 0.1
    schedule: Schedule = "linear"
    max_grad_norm: float = 1.0
    save_every_steps: int = field(default=0, metadata=NO_DIGEST)
    gradient_checkpointing: Switch = field(default="auto", metadata=NO_DIGEST)
    packing: bool = field(default=False, metadata=NO_DIGEST)
    compile: Switch = field(default="auto", metadata=NO_DIGEST)
    deterministic: bool = field(default=False, metadata=NO_DIGEST)
    num_processes: int = field(default=1, metadata=NO_DIGEST)

    def __post_init__(self) -> None:
        require_at_least(self, "training", num_epochs=1, batch_size=1, micro_batch_size=0, save_every_steps=0)
        require_at_least(self, "training", num_processes=1, lora_rank=1)
        rank, alpha = self.lora_rank, self.lora_alpha
        require(rank <= 1024, "training.lora_rank", "be at most 1024", rank, "Ranks of 8 to 64 are usual")
        require(1 <= alpha <= 10000, "training.lora_alpha", "lie in [1, 10000]", alpha, "Twice the rank is usual")
        rate = self.learning_rate
        require(0 < rate < 1, "training.learning_rate", "lie in (0, 1)", rate, "Try 3e-4")
        share = self.warmup_fraction
        require(0 <= share < 1, "training.warmup_fraction", "lie in [0, 1)", share, "Try 0.1")
        norm = self.max_grad_norm
        require(norm > 0, "training.max_grad_norm", "be positive", norm, "Try 1.0")
        recomputed = self.packing and self.gradient_checkpointing == "on"
        remedy = "A packed pass cannot be recomputed: lower micro_batch_size, or leave packing off"
        require(not recomputed, "training.packing", "be off with training.gradient_checkpointing on", True, remedy)
        both = self.packing and self.compile == "on"
        require(
            not both, "training.packing", "be off with training.compile on", True, "Lengths vary: choose one of the two"
        )


def require_trainable(model: ModelConfig, training: TrainingConfig) -> None:
    """Check before anything is loaded that `model`, held as asked, can be trained as asked.

    Raises:
        InputError: float16 weights; attention in 4 bits that should be trained whole; a paged optimizer without a GPU.
    """
    remedy = "Its gradients underflow without loss scaling; use bfloat16 or float32"
    require(model.dtype != "float16", "model.dtype", "be bfloat16 or float32 for training", model.dtype, remedy)
    exact = training.method != "attention" or model.quantization != "nf4"
    remedy = "Set training.method lora (QLoRA), or model.quantization 4bit, which leaves attention exact"
    require(exact, "model.quantization", "leave attention alone when it is trained whole", model.quantization, remedy)
    paged = training.optimizer == "paged_adamw_8bit"
    gpu = not paged or resolve_device(model.device).type == "cuda"
    require(gpu, "training.optimizer", "be adamw or adamw_8bit on a CPU", training.optimizer, "Nothing is paged there")


def require_processes(model: ModelConfig, training: TrainingConfig) -> None:
    """Check that `training.num_processes` fits this machine, `model`, and how it is trained.

    Raises:
        InputError: with several processes, a quantised model, 8-bit moments, packing or compiled layers; more processes
            than GPUs, or one chosen GPU.
    """
    number = training.num_processes
    if number == 1:
        return
    remedy = "Quantised weights cannot be sharded: set model.quantization none or training.num_processes 1"
    whole = model.quantization == "none"
    require(whole, "model.quantization", f"be none with training.num_processes {number}", model.quantization, remedy)
    plain, must = training.optimizer == "adamw", f"be adamw with training.num_processes {number}"
    require(plain, "training.optimizer", must, training.optimizer, "8-bit moments of sharded weights are untried")
    for name in ("packing", "compile"):
        remedy = "It is untried with sharded layers"
        must, value = f"be off with training.num_processes {number}", getattr(training, name)
        require(value in (False, "auto", "off"), f"training.{name}", must, value, remedy)
    device = resolve_device(model.device)
    remedy = "Each process takes a GPU of its own; choose which with CUDA_VISIBLE_DEVICES"
    free = device.index is None
    require(free, "model.device", f"name no single GPU with training.num_processes {number}", model.device, remedy)
    if device.type == "cuda":
        count = torch.cuda.device_count()
        remedy = "Lower it, or try it out on the CPU with model.device cpu"
        must = f"be at most the number of GPUs, {count}"
        require(number <= count, "training.num_processes", must, number, remedy)
