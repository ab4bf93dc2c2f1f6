"""Pretraining of a small decoder from nothing, so that it has real retrieval heads: next token, answers foremost.

    L = 0.3 L_text + L_answers        each a mean cross entropy in nats per token

L_text runs over every token, L_answers over the answers to literal cues (see `rhstudy.data.cue_sequences`). Copying
comes as a sudden transition after some hundred steps; a rate that decays early can miss it, so the rate stays at its
peak for three quarters of the run.
"""

from __future__ import annotations

import functools
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from rhstudy.configs import NO_DIGEST, require_at_least
from rhstudy.data.cue_sequences import SequenceBatch, SequenceMaker
from rhstudy.data.facts import Passage
from rhstudy.errors import StudyError, message, require
from rhstudy.models.tokenizer import END_TOKEN, NUM_BYTES
from rhstudy.seeding import stream_seed
from rhstudy.training.context import autocast
from rhstudy.training.state import STATE_FILE, restore_state, save_state

TEXT_WEIGHT = 0.3
CONSTANT_SHARE = 0.75
HELD_OUT_SHARE = 20
"""Every so many-th passage is never trained on; copying is checked on these."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchitectureConfig:
    """A Llama-architecture decoder with grouped-query attention and tied embeddings.

    Attributes:
        vocabulary_size: tokens of its own BPE.
        hidden_size: width of the residual stream.
        intermediate_size: width of the feed-forward layers.
        num_layers: layers.
        num_heads: query heads of a layer.
        num_kv_heads: key/value heads of a layer.
        head_dim: size of a head's query.
        num_context_tokens: native context.
        rope_theta: RoPE base frequency.
    """

    vocabulary_size: int = 4096
    hidden_size: int = 128
    intermediate_size: int = 384
    num_layers: int = 4
    num_heads: int = 8
    num_kv_heads: int = 2
    head_dim: int = 16
    num_context_tokens: int = 256
    rope_theta: float = 1e4

    def __post_init__(self) -> None:
        require_at_least(self, "architecture", num_layers=1, num_kv_heads=1, num_context_tokens=128, head_dim=2)
        require_at_least(self, "architecture", vocabulary_size=NUM_BYTES + 2, hidden_size=1, intermediate_size=1)
        divides = self.num_heads % self.num_kv_heads == 0 and self.num_heads >= self.num_kv_heads
        remedy = "Choose num_kv_heads that divides it"
        must = f"be a multiple of {self.num_kv_heads} key/value heads"
        require(divides, "architecture.num_heads", must, self.num_heads, remedy)
        require(self.head_dim % 2 == 0, "architecture.head_dim", "be even", self.head_dim, "RoPE turns pairs")
        theta = self.rope_theta
        require(1 < theta < math.inf, "architecture.rope_theta", "be more than 1 and finite", theta, "Try 1e4")


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainingConfig:
    """How the model is pretrained.

    Attributes:
        num_steps: optimizer steps.
        batch_tokens: tokens of a step.
        learning_rate: peak rate of AdamW (betas 0.9, 0.95; weight decay 0.01).
        num_warmup_steps: steps with linearly rising rate.
        max_grad_norm: gradients are clipped to this L2 norm.
        save_every_steps: how often the resumable state is written.
        num_workers: processes that make batches; 0 makes them in this one. No influence on results.
    """

    num_steps: int = 4000
    batch_tokens: int = 24576
    learning_rate: float = 1.5e-3
    num_warmup_steps: int = 100
    max_grad_norm: float = 1.0
    save_every_steps: int = field(default=500, metadata=NO_DIGEST)
    num_workers: int = field(default=0, metadata=NO_DIGEST)

    def __post_init__(self) -> None:
        require_at_least(self, "pretraining", num_steps=1, batch_tokens=256, num_warmup_steps=1, num_workers=0)
        require_at_least(self, "pretraining", save_every_steps=1)
        rate = self.learning_rate
        require(0 < rate < 1, "pretraining.learning_rate", "lie in (0, 1)", rate, "Try 1.5e-3")
        norm = self.max_grad_norm
        require(norm > 0, "pretraining.max_grad_norm", "be positive", norm, "Try 1.0")


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainingResult:
    """What a pretraining run produced.

    Attributes:
        model: the trained decoder, float32.
        curve: (text loss, answer loss) of each step, nats per token.
        num_tokens: tokens trained on, padding excluded.
        seconds: wall-clock time of all steps, those of earlier tries included.
    """

    model: PreTrainedModel
    curve: tuple[tuple[float, float], ...]
    num_tokens: int
    seconds: float


def new_decoder(config: ArchitectureConfig, end_id: int, seed: int) -> LlamaForCausalLM:
    """A decoder with random weights that depend on `seed` alone."""
    architecture = LlamaConfig(
        vocab_size=config.vocabulary_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        max_position_embeddings=config.num_context_tokens,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=end_id,
        pad_token_id=end_id,
    )
    model = LlamaForCausalLM(architecture)
    stream = torch.Generator().manual_seed(stream_seed(seed, "initial weights"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                # Residual outputs are scaled down with depth (Radford et al. 2019), so that early steps are stable.
                last = name.endswith(("o_proj.weight", "down_proj.weight"))
                scale = 0.02 / math.sqrt(2 * config.num_layers) if last else 0.02
                parameter.copy_(torch.randn(parameter.shape, generator=stream) * scale)
    return model


def split_passages(passages: Sequence[Passage]) -> tuple[list[Passage], list[Passage]]:
    """(trained on, held out): every `HELD_OUT_SHARE`-th passage is held out."""
    held_out = [passage for index, passage in enumerate(passages) if index % HELD_OUT_SHARE == 0]
    return [passage for index, passage in enumerate(passages) if index % HELD_OUT_SHARE], held_out


def sequence_maker(
    passages: Sequence[Passage], tokenizer: PreTrainedTokenizerBase, num_context_tokens: int, seed: int
) -> SequenceMaker:
    """Sequences at the native context with a question per 64 tokens, and at half of it."""
    questions = {length: max(1, length // 64) for length in (num_context_tokens // 2, num_context_tokens)}
    return SequenceMaker(passages, tokenizer, end_token=END_TOKEN, questions=questions, seed=seed)


def pretrain(
    model: PreTrainedModel,
    maker: SequenceMaker,
    config: PretrainingConfig,
    *,
    work_dir: Path,
    on_step: Callable[[int, Mapping[str, float]], None] = lambda _step, _metrics: None,
) -> PretrainingResult:
    """Train `model` in place on the device it is on (bfloat16 autocast on a GPU).

    Args:
        model: from `new_decoder`.
        maker: makes the batch of each step.
        config: optimisation settings.
        work_dir: where the resumable state is kept; state found there is continued.
        on_step: called after every step with ``text_loss``, ``answer_loss``, ``learning_rate``, ``grad_norm``.

    Raises:
        StudyError: the loss is not finite.
    """
    run = _Run(model, config)
    run.restore(work_dir / STATE_FILE)
    done = len(run.curve)
    steps = _Steps(maker, config, done)
    loader = DataLoader(
        steps, batch_size=None, num_workers=config.num_workers, collate_fn=None, worker_init_fn=_tokenize_alone
    )
    bar = tqdm(total=config.num_steps, initial=done, desc="pretrain", unit="step", disable=None)
    with bar:
        for step, batch in enumerate(loader, done):
            metrics = run.step(batch)
            on_step(step, metrics)
            bar.update()
            bar.set_postfix(answers=f"{metrics['answer_loss']:.3f}", text=f"{metrics['text_loss']:.3f}")
            if (step + 1) % config.save_every_steps == 0:
                run.save(work_dir / STATE_FILE)
    model.train(False)
    return PretrainingResult(model=model, curve=tuple(run.curve), num_tokens=run.num_tokens, seconds=run.seconds)


def _tokenize_alone(_worker: int) -> None:
    """A forked worker has none of the threads its tokenizer would wait for."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


class _Steps(Dataset[SequenceBatch]):
    """The batches still to train on, by number."""

    def __init__(self, maker: SequenceMaker, config: PretrainingConfig, first: int) -> None:
        self._maker, self._config, self._first = maker, config, first

    def __len__(self) -> int:
        return self._config.num_steps - self._first

    def __getitem__(self, index: int) -> SequenceBatch:
        if index >= len(self):
            raise IndexError(index)
        return self._maker.batch("train", self._first + index, self._config.batch_tokens)


def rate_factor(step: int, *, num_steps: int, num_warmup: int) -> float:
    """Share of the peak rate at `step`: linear rise, constant for `CONSTANT_SHARE` of the run, linear fall to 0."""
    rise = min(1.0, (step + 1) / num_warmup)
    fall = (num_steps - step) / max(1.0, num_steps * (1 - CONSTANT_SHARE))
    return min(rise, fall, 1.0)


class _Run:
    """Optimizer, schedule and counters of one pretraining run."""

    def __init__(self, model: PreTrainedModel, config: PretrainingConfig) -> None:
        self.model, self.config, self.device = model, config, model.device
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.parameters = dict(model.named_parameters())
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=0.01
        )
        factor = functools.partial(rate_factor, num_steps=config.num_steps, num_warmup=config.num_warmup_steps)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, factor)
        self.curve: list[tuple[float, float]] = []
        self.num_tokens, self.seconds = 0, 0.0

    def step(self, batch: SequenceBatch) -> dict[str, float]:
        """One optimizer step; returns its metrics."""
        self.model.train()
        began = time.perf_counter()
        ids, is_real, is_answer = (torch.from_numpy(item).to(self.device) for item in _arrays(batch))
        with autocast(self.device, self.dtype):
            logits = self.model(input_ids=ids, use_cache=False).logits
        losses = nn.functional.cross_entropy(logits[:, :-1].float().transpose(1, 2), ids[:, 1:], reduction="none")
        text, answers = _mean(losses, is_real[:, 1:]), _mean(losses, is_answer[:, 1:])
        (TEXT_WEIGHT * text + answers).backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.config.max_grad_norm)
        values = torch.stack([text.detach(), answers.detach(), norm]).tolist()
        if not all(map(math.isfinite, values)):
            remedy = "Lower pretraining.learning_rate; the last saved state is kept in the work folder"
            raise StudyError(message("training loss", "be finite", values, remedy, f"step {len(self.curve)}"))
        rate = float(self.scheduler.get_last_lr()[0])
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.curve.append((values[0], values[1]))
        self.num_tokens += int(batch.is_real.sum())
        self.seconds += time.perf_counter() - began
        return {"text_loss": values[0], "answer_loss": values[1], "grad_norm": values[2], "learning_rate": rate}

    def save(self, path: Path) -> None:
        """Write the resumable state."""
        counters = {"curve": self.curve, "num_tokens": self.num_tokens, "seconds": self.seconds}
        save_state(path, self.parameters, self.optimizer, self.scheduler, counters)

    def restore(self, path: Path) -> None:
        """Continue from the state at `path` when there is one."""
        found = restore_state(path, self.parameters, self.optimizer, self.scheduler)
        if found:
            self.curve = [tuple(point) for point in found["curve"]]
            self.num_tokens, self.seconds = int(found["num_tokens"]), float(found["seconds"])


def _arrays(batch: SequenceBatch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return batch.ids, batch.is_real, batch.is_answer


def _mean(losses: Tensor, chosen: Tensor) -> Tensor:
    return (losses * chosen).sum() / chosen.sum().clamp(min=1)


@torch.inference_mode()
def copy_accuracy(
    model: PreTrainedModel, maker: SequenceMaker, lengths: Sequence[int], *, num_tokens: int = 65536
) -> dict[int, float]:
    """Share of answer tokens that the model predicts, by sequence length.

    Args:
        model: the decoder.
        maker: of held-out passages.
        lengths: sequence lengths in tokens, also beyond the native context.
        num_tokens: about how many tokens are looked at for each length.

    Returns:
        Length -> share in [0, 1].
    """
    found: dict[int, float] = {}
    for length in lengths:
        batch = maker.batch("held out", length, num_tokens, length)
        hits: list[Tensor] = []
        counted = batch.is_answer & (batch.ids != maker.end_id)  # the end token behind every answer is no copy
        for start in range(0, len(counted), 16):
            rows = torch.from_numpy(batch.ids[start : start + 16]).to(model.device)
            predicted = model(input_ids=rows, use_cache=False).logits[:, :-1].argmax(dim=-1)
            hits.append((predicted == rows[:, 1:]).cpu()[torch.from_numpy(counted[start : start + 16, 1:])])
        found[length] = float(torch.cat(hits).float().mean())
    return found
