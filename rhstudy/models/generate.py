"""Running a decoder over padded batches: whole sequences, or prompts once with several continuations from their cache.

Prompts are run up to their last token, `prefix`; the last one, which predicts the first answer token, begins what comes
after. So gold answers, the model's own and those of many conditions (a knockout per condition) share one prefix, and
the cache is afterwards as it was.

Prompts of unequal length are run without their padding, so that SDPA keeps its fastest causal kernel and an example's
numbers do not depend on its partners; their keys and values are then moved into one cache. Only where a sliding window
has dropped keys is the batch run padded, under a mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel

from rhstudy.errors import require
from rhstudy.models.batch import PaddedBatch
from rhstudy.models.cache import borrowed, joined, keeps_every_key
from rhstudy.models.gold_pass import mean_gold_nll
from rhstudy.models.probe import AttentionObserver
from rhstudy.models.transfer import moved
from rhstudy.shapes import Float, Int

PASS_TOKENS = 2**14
"""Prompts are run together up to this many tokens a pass: more keep no device busier and take more memory."""
ROOM = 64
"""Tokens that fit behind the prompts before a cache must grow."""


def run_rows(
    model: PreTrainedModel,
    batch: PaddedBatch,
    *,
    first_row: int,
    cache: Cache | None = None,
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
    cache: Cache
    logits: Float[Tensor, "batch 1 vocab"]


def prefill(
    model: PreTrainedModel, batch: PaddedBatch, *, chunk_tokens: int = 0, observer: AttentionObserver | None = None
) -> Prefill:
    """Run a prompts-only batch and keep its cache; the observer sees the last prompt row.

    Raises:
        InputError: the batch holds answers, or a prompt has fewer than 2 tokens.
    """
    return run_last(model, prefix(model, batch, chunk_tokens=chunk_tokens), observer)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefix:
    """Prompts run once up to, but not including, their last token.

    Attributes:
        batch: the whole prompts.
        cache: keys and values of every prompt token but the last.
    """

    batch: PaddedBatch
    cache: Cache


def prefix(model: PreTrainedModel, batch: PaddedBatch, *, chunk_tokens: int = 0, room: int = ROOM) -> Prefix:
    """Run a prompts-only batch up to the token before the last, which is where every condition begins.

    Args:
        model: the decoder.
        batch: the prompts.
        chunk_tokens: prefill in chunks of this many tokens; 0 = one pass.
        room: tokens that will fit behind the prompts before the cache must grow.

    Raises:
        InputError: the batch holds answers, or a prompt has fewer than 2 tokens.
    """
    require(batch.num_answer == 0, "batch", "hold prompts alone", batch.num_answer, "Pass empty answers to pad_batch")
    shortest = batch.num_prompt - max(batch.pads)
    require(shortest >= 2, "prompts", "have at least 2 tokens", shortest, "The last one is run with each condition")
    if not keeps_every_key(model):
        cache = DynamicCache(config=model.config)
        head = _head(batch)
        run_rows(model, head, first_row=head.num_prompt - 1, cache=cache, chunk_tokens=chunk_tokens)
        return Prefix(batch=batch, cache=cache)
    before = batch.num_prompt - 1
    lengths = [before - pad for pad in batch.pads]
    caches = []
    for rows in _passes(lengths):
        cache = DynamicCache(config=model.config)
        part = _unpadded(batch, rows, max(lengths[row] for row in rows))
        run_rows(model, part, first_row=part.num_prompt - 1, cache=cache, chunk_tokens=chunk_tokens)
        caches.append((cache, [lengths[row] for row in rows]))
    return Prefix(batch=batch, cache=joined(caches, before, room))


def _head(batch: PaddedBatch) -> PaddedBatch:
    before = batch.num_prompt - 1
    return PaddedBatch(
        ids=batch.ids[:, :before],
        mask=None if batch.mask is None else batch.mask[:, :before],
        positions=batch.positions[:, :before],
        num_prompt=before,
        pads=batch.pads,
    )


def _passes(lengths: Sequence[int]) -> list[list[int]]:
    """Neighbouring rows that are run together."""
    passes: list[list[int]] = []
    for row, length in enumerate(lengths):
        longest = max([length, *(lengths[other] for other in passes[-1])]) if passes else length
        if passes and longest * (len(passes[-1]) + 1) <= PASS_TOKENS:
            passes[-1].append(row)
        else:
            passes.append([row])
    return passes


def _unpadded(batch: PaddedBatch, rows: Sequence[int], longest: int) -> PaddedBatch:
    """These prompts from index 0 on; what stands behind the shorter ones is never looked at."""
    ids = torch.stack([batch.ids[row].roll(-batch.pads[row])[:longest] for row in rows])
    positions = torch.arange(longest, device=ids.device).expand(*ids.shape)
    return PaddedBatch(ids=ids, mask=None, positions=positions, num_prompt=longest, pads=(0,) * len(rows))


def run_last(model: PreTrainedModel, start: Prefix, observer: AttentionObserver | None = None) -> Prefill:
    """Run the last prompt token (the row that predicts w_1) on the cache of `start`, which is used up."""
    batch = start.batch
    if observer is not None:
        observer.seen = batch.num_prompt - 1
    logits = model(
        input_ids=batch.ids[:, -1:],
        attention_mask=batch.mask,
        position_ids=batch.positions[:, -1:],
        past_key_values=start.cache,
        use_cache=True,
        logits_to_keep=1,
    ).logits
    return Prefill(batch=batch, cache=start.cache, logits=logits.float())


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
    with borrowed(start.cache) as cache:
        yield run_last(model, Prefix(batch=start.batch, cache=cache))


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
    chunk_tokens: int = 0,
    observer: AttentionObserver | None = None,
) -> Float[Tensor, "batch rows vocab"]:
    """Run token ids behind each prompt of a prefill whose cache is left as it was.

    Args:
        model: the decoder that made `start`.
        start: the prefill.
        tails: ids behind each prompt, padded on the right to the longest.
        num_logits: of how many last rows the logits are wanted; 0 = all.
        chunk_tokens: run in chunks of this many tokens; 0 = one pass.
        observer: told where the rows begin.

    Returns:
        float32 logits of the rows asked for.
    """
    batch, longest = start.batch, max(map(len, tails))
    fed = moved(torch.tensor([[*tail, *[0] * (longest - len(tail))] for tail in tails]), batch.ids.device)
    positions = batch.positions[:, -1:] + torch.arange(1, longest + 1, device=batch.ids.device)
    mask = None if batch.mask is None else torch.cat([batch.mask, torch.ones_like(fed)], dim=1)
    first = longest - num_logits if num_logits else 0
    kept: list[Tensor] = []
    with borrowed(start.cache) as cache:
        for begin in range(0, longest, chunk_tokens or longest):
            end = min(begin + (chunk_tokens or longest), longest)
            if observer is not None:
                observer.seen = batch.num_prompt + begin
            wanted = end - max(begin, first)
            logits = model(
                input_ids=fed[:, begin:end],
                attention_mask=None if mask is None else mask[:, : batch.num_prompt + end],
                position_ids=positions[:, begin:end],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=max(wanted, 1),
            ).logits
            if wanted > 0:
                kept.append(logits.float())
        if observer is not None:
            observer.seen = batch.num_prompt + longest  # reduces what it holds while the cache is there
    return torch.cat(kept, dim=1)


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
