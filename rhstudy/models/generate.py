"""Running a decoder over padded batches: one pass over gold answers, or a prefill and greedy decoding.

Layout of a batch of B examples: prompts are padded on the left so that all end at the same index P - 1, gold answers
are padded on the right. Row P - 1 predicts the first answer token and row P + t - 2 predicts w_t, for every example.
Unpadded batches pass no mask, so SDPA may use its fastest causal kernel; only answer rows reach the LM head.

One prompt answered under many conditions (a knockout per condition) is run once up to its last token, `prefix`; each
condition then continues from there with `from_last_token`, and the shared cache is afterwards as it was.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from rhstudy.errors import require
from rhstudy.models.gold_pass import mean_gold_nll
from rhstudy.models.probe import AttentionObserver
from rhstudy.models.transfer import moved
from rhstudy.shapes import Float, Int


@dataclass(frozen=True, slots=True, kw_only=True)
class PaddedBatch:
    """Token ids of B examples in the module's layout.

    Attributes:
        ids: (B, P + A) token ids; A is 0 for prompts alone.
        mask: (B, P + A), 1 for real tokens; None when nothing is padded.
        positions: (B, P + A) position ids, counted from each example's first real token.
        num_prompt: P.
        pads: left padding of each example, so that prompt position j is at index j + pads[b].
    """

    ids: Int[Tensor, "batch tokens"]
    mask: Int[Tensor, "batch tokens"] | None
    positions: Int[Tensor, "batch tokens"]
    num_prompt: int
    pads: tuple[int, ...]

    @property
    def num_answer(self) -> int:
        """A: the longest answer of the batch in tokens."""
        return int(self.ids.shape[1]) - self.num_prompt


def pad_batch(
    prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], pad_id: int, device: torch.device | str
) -> PaddedBatch:
    """Lay out prompts (left-padded) and answers (right-padded).

    Args:
        prompts: token ids of each prompt, none empty.
        answers: token ids of each answer, or empty sequences for prompts alone.
        pad_id: any token id; its positions are masked.
        device: where the tensors go.

    Raises:
        InputError: an empty prompt, or as many answers as prompts are not given.
    """
    require(len(prompts) == len(answers), "answers", f"be one per prompt ({len(prompts)})", len(answers), "Pass []")
    shortest = min(map(len, prompts), default=0)
    require(shortest > 0, "prompts", "be non-empty", [len(prompt) for prompt in prompts], "Drop empty prompts")
    num_prompt, num_answer = max(map(len, prompts)), max(map(len, answers))
    pads = tuple(num_prompt - len(prompt) for prompt in prompts)
    ids = np.full((len(prompts), num_prompt + num_answer), pad_id, dtype=np.int64)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        ids[row, pads[row] : num_prompt + len(answer)] = np.fromiter(itertools.chain(prompt, answer), np.int64)
    positions = torch.arange(ids.shape[1], device=device).expand(*ids.shape)
    mask = None
    if any(pads):  # padding on the right alone needs no mask: causal rows never see it
        starts = moved(torch.tensor(pads)[:, None], device)
        ends = moved(torch.tensor([num_prompt + len(answer) for answer in answers])[:, None], device)
        mask = ((positions >= starts) & (positions < ends)).long()
        positions = (positions - starts).clamp(min=0)
    return PaddedBatch(
        ids=moved(torch.from_numpy(ids), device), mask=mask, positions=positions, num_prompt=num_prompt, pads=pads
    )


def run_rows(
    model: PreTrainedModel,
    batch: PaddedBatch,
    *,
    first_row: int,
    cache: DynamicCache | None = None,
    chunk_tokens: int = 0,
    observer: AttentionObserver | None = None,
) -> Float[Tensor, "batch rows vocab"]:
    """Run the whole batch and return the logits of rows `first_row` to the end, in float32.

    Args:
        model: the decoder.
        batch: padded ids.
        first_row: first index whose logits are wanted; the LM head never sees earlier rows.
        cache: filled with keys and values when given (needed for decoding afterwards).
        chunk_tokens: prefill in chunks of this many tokens; 0 runs everything in one pass.
        observer: told before each pass how many tokens came before it.

    Returns:
        Logits of shape (B, P + A - first_row, vocabulary).
    """
    total = int(batch.ids.shape[1])
    step = chunk_tokens or total
    if step < total and cache is None:
        cache = DynamicCache(config=model.config)
    kept: list[Tensor] = []
    for start in range(0, total, step):
        end = min(start + step, total)
        if observer is not None:
            observer.seen = start
        wanted = end - max(start, first_row)
        logits = model(
            input_ids=batch.ids[:, start:end],
            attention_mask=None if batch.mask is None else batch.mask[:, :end],
            # Left out when they are 0, 1, 2, ...: transformers would look whether they are and wait for the device.
            position_ids=None if batch.mask is None else batch.positions[:, start:end],
            past_key_values=cache,
            use_cache=cache is not None,
            logits_to_keep=max(wanted, 1),
        ).logits
        if wanted > 0:
            kept.append(logits.float())
    return torch.cat(kept, dim=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefill:
    """Prompts run once: their cache and the logits of the last prompt row.

    Attributes:
        batch: the prompts.
        cache: keys and values of every prompt token.
        logits: (B, 1, vocabulary) float32 logits of row P - 1.
    """

    batch: PaddedBatch
    cache: DynamicCache
    logits: Float[Tensor, "batch 1 vocab"]


def prefill(
    model: PreTrainedModel, batch: PaddedBatch, *, chunk_tokens: int = 0, observer: AttentionObserver | None = None
) -> Prefill:
    """Run a prompts-only batch and keep its cache.

    Raises:
        InputError: the batch holds answers.
    """
    require(batch.num_answer == 0, "batch", "hold prompts alone", batch.num_answer, "Pass empty answers to pad_batch")
    cache = DynamicCache(config=model.config)
    last = batch.num_prompt - 1
    logits = run_rows(model, batch, first_row=last, cache=cache, chunk_tokens=chunk_tokens, observer=observer)
    return Prefill(batch=batch, cache=cache, logits=logits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefix:
    """Prompts run once up to, but not including, their last token.

    Attributes:
        batch: the whole prompts.
        cache: keys and values of every prompt token but the last.
    """

    batch: PaddedBatch
    cache: DynamicCache


def prefix(model: PreTrainedModel, batch: PaddedBatch, *, chunk_tokens: int = 0) -> Prefix:
    """Run a prompts-only batch up to the token before the last, which is where every condition begins.

    Raises:
        InputError: the batch holds answers, or a prompt has fewer than 2 tokens.
    """
    require(batch.num_answer == 0, "batch", "hold prompts alone", batch.num_answer, "Pass empty answers to pad_batch")
    shortest = batch.num_prompt - max(batch.pads)
    require(shortest >= 2, "prompts", "have at least 2 tokens", shortest, "The last one is run with each condition")
    before = batch.num_prompt - 1
    head = PaddedBatch(
        ids=batch.ids[:, :before],
        mask=None if batch.mask is None else batch.mask[:, :before],
        positions=batch.positions[:, :before],
        num_prompt=before,
        pads=batch.pads,
    )
    cache = DynamicCache(config=model.config)
    run_rows(model, head, first_row=before - 1, cache=cache, chunk_tokens=chunk_tokens)
    return Prefix(batch=batch, cache=cache)


@contextmanager
def from_last_token(model: PreTrainedModel, start: Prefix) -> Iterator[Prefill]:
    """Run the last prompt token (the row that predicts w_1), yield a prefill fit for `gold_nll` and `greedy`.

    Whatever changes the model's heads inside the block acts on the answer rows alone: the rows before the last prompt
    token were run before. The cache of `start` is afterwards as it was.

    Args:
        model: the decoder that made `start`.
        start: the shared prefix.

    Yields:
        The prompts run to their end; its cache must not be kept.
    """
    batch = start.batch
    with borrowed(start.cache) as cache:
        logits = model(
            input_ids=batch.ids[:, -1:],
            attention_mask=batch.mask,
            position_ids=batch.positions[:, -1:],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        yield Prefill(batch=batch, cache=cache, logits=logits.float())


@contextmanager
def borrowed(cache: DynamicCache) -> Iterator[DynamicCache]:
    """A cache with the content of `cache` to write on; `cache` itself is afterwards as it was.

    It is cropped back. A sliding-window cache has dropped old keys that no crop brings back: there a copy is lent.
    """
    if any(getattr(layer, "is_sliding", False) for layer in cache.layers):
        yield copy.deepcopy(cache)
        return
    num_tokens = cache.get_seq_length()
    try:
        yield cache
    finally:
        cache.crop(num_tokens - cache.get_seq_length())


def greedy(
    model: PreTrainedModel,
    start: Prefill,
    *,
    max_new_tokens: int,
    stop_ids: frozenset[int],
    keep_stop: bool = False,
    observer: AttentionObserver | None = None,
) -> list[list[int]]:
    """Greedy continuation of every prompt; uses up the cache of `start`.

    Decoding ends for an example at the first id of `stop_ids` (returned only with `keep_stop`) and for the batch when
    all have ended.

    Returns:
        Generated ids of each example, at most `max_new_tokens`.
    """
    generated: list[list[int]] = [[] for _ in start.batch.pads]
    ended = [False] * len(generated)
    for step, tokens in enumerate(_decode(model, start, observer)):
        for row, token in enumerate(tokens.tolist()):
            stops = token in stop_ids
            if not ended[row] and (keep_stop or not stops):
                generated[row].append(token)
            ended[row] = ended[row] or stops
        if all(ended) or step + 1 == max_new_tokens:
            break
    return generated


def gold_nll(model: PreTrainedModel, start: Prefill, answers: Sequence[Sequence[int]]) -> Float[Tensor, " batch"]:
    """`mean_answer_nll` of the gold answers from a prefill whose cache is left as it was.

    Args:
        model: the decoder that made `start`.
        start: the prefill; still fit for `greedy` afterwards.
        answers: gold answer ids of each example, none empty.
    """
    longest = max(map(len, answers))
    if longest == 1:
        return mean_answer_nll(start.logits, answers)
    logits = run_after(model, start, [answer[:-1] for answer in answers])
    return mean_answer_nll(torch.cat([start.logits, logits], dim=1), answers)


def run_after(
    model: PreTrainedModel,
    start: Prefill,
    tails: Sequence[Sequence[int]],
    *,
    num_logits: int = 0,
    observer: AttentionObserver | None = None,
) -> Float[Tensor, "batch rows vocab"]:
    """Run token ids behind each prompt of a prefill whose cache is left as it was.

    Args:
        model: the decoder that made `start`.
        start: the prefill.
        tails: ids behind each prompt, padded on the right to the longest.
        num_logits: of how many last rows the logits are wanted; 0 = all.
        observer: told where the rows begin.

    Returns:
        float32 logits of the rows asked for.
    """
    batch, longest = start.batch, max(map(len, tails))
    fed = moved(torch.tensor([[*tail, *[0] * (longest - len(tail))] for tail in tails]), batch.ids.device)
    steps = torch.arange(1, longest + 1, device=batch.ids.device)
    if observer is not None:
        observer.seen = batch.num_prompt
    with borrowed(start.cache) as cache:
        logits = model(
            input_ids=fed,
            attention_mask=None if batch.mask is None else torch.cat([batch.mask, torch.ones_like(fed)], dim=1),
            position_ids=batch.positions[:, -1:] + steps,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=num_logits,
        ).logits
        if observer is not None:
            observer.seen = batch.num_prompt + longest  # reduces what it holds while the cache is there
    return logits.float()  # type: ignore[no-any-return]


def _decode(
    model: PreTrainedModel, start: Prefill, observer: AttentionObserver | None
) -> Iterator[Int[Tensor, " batch"]]:
    mask, seen, logits = start.batch.mask, start.batch.num_prompt, start.logits
    positions = start.batch.positions[:, -1:]
    while True:
        tokens = logits[:, -1].argmax(dim=-1)
        yield tokens
        if observer is not None:
            observer.seen = seen
        if mask is not None:
            mask = torch.cat([mask, mask.new_ones(len(tokens), 1)], dim=1)
        positions = positions + 1
        logits = model(
            input_ids=tokens[:, None],
            attention_mask=mask,
            position_ids=positions,
            past_key_values=start.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits.float()
        seen += 1


def stop_token_ids(model: PreTrainedModel, tokenizer_eos: int | None) -> frozenset[int]:
    """Every id that ends an answer: the generation config's end ids and the tokenizer's."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    several = configured if isinstance(configured, list) else [configured]
    return frozenset(int(token) for token in [*several, tokenizer_eos] if token is not None)


def mean_answer_nll(
    logits: Float[Tensor, "batch rows vocab"],
    answers: Sequence[Sequence[int]],
    gold: Int[Tensor, "batch answer"] | None = None,
) -> Float[Tensor, " batch"]:
    """Mean negative log likelihood of each gold answer, nats per token: -1/T sum_t log p(w_t | prompt, w_<t).

    Args:
        logits: rows P - 1 onwards, so that row t - 1 predicts w_t.
        answers: token ids of each answer, none empty, without end tokens.
        gold: the same ids where they are on the logits' device already, padded on the right with any id.
    """
    if gold is None:
        longest = max(map(len, answers))
        gold = moved(torch.tensor([[*answer, *[0] * (longest - len(answer))] for answer in answers]), logits.device)
    counts = moved(torch.tensor([len(answer) for answer in answers]), logits.device)
    return mean_gold_nll(logits, gold.to(logits.device), counts)
