"""The retrieval score: what share of the answer's needle tokens a head copied.

Definition (after Wu et al. 2024, arXiv 2404.15574, section 2; deviations from their program below). With answer tokens
w_1..w_T, prompt tokens x_j, needle span k and j*[l, h, t] the position head (l, h) attends to most from the row that
predicts w_t:

    W           = distinct token ids of the gold answer (template and end tokens excluded) that occur in k
    score(l, h) = |{ w in W : some t has w_t = w, j* in k, x_{j*} = w }| / |W|              in [0, 1]

An example with empty W is unscored: it is reported and never averaged in as zero. `aligned` asks in addition that j* is
the position of w_t inside the annotated answer span.

Modes: `teacher_forced` feeds the gold answer (one pass); `decode` feeds the model's own greedy answer.
The published program differs: it counts repeated tokens, finds the needle by set overlap after tokenising it apart, and
keeps only instances whose answer passes a ROUGE gate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from rhstudy.errors import require
from rhstudy.models.generate import PaddedBatch, greedy, mean_answer_nll, pad_batch, prefill, run_rows, stop_token_ids
from rhstudy.models.load import LoadedModel
from rhstudy.models.probe import make_observable, observe
from rhstudy.shapes import Bool, Float, Int
from rhstudy.types import Example, HeadScores

Mode = Literal["teacher_forced", "decode"]
EMPTY_W = "no token of the gold answer occurs in a needle"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleScore:
    """Scores of every head on one example.

    Attributes:
        example_id: which example.
        score: (layers, heads) retrieval scores; NaN when unscored.
        aligned: (layers, heads) aligned scores; NaN when unscored.
        real_nll: mean gold-answer negative log likelihood, nats per token; NaN in decode mode.
        unscored: the reason, else empty.
    """

    example_id: str
    score: Float[np.ndarray, "layers heads"]
    aligned: Float[np.ndarray, "layers heads"]
    real_nll: float
    unscored: str


def needle_mask(example: Example) -> Bool[np.ndarray, " prompt"]:
    """True at the prompt positions of k, the union of the example's needle spans."""
    mask = np.zeros(example.num_prompt_tokens, dtype=bool)
    for needle in example.needles:
        mask[needle.token_span.start : needle.token_span.end] = True
    return mask


def copyable_tokens(example: Example) -> frozenset[int]:
    """W: distinct ids of the gold answer that occur in k."""
    ids = np.asarray(example.prompt_ids)
    return frozenset(example.answer_ids) & frozenset(ids[needle_mask(example)].tolist())


def aligned_positions(example: Example, tokens: Sequence[int], mode: Mode) -> Bool[np.ndarray, "rows prompt"]:
    """Where inside the annotated answer span each of `tokens` stands.

    Teacher-forced, the n-th occurrence of an id in the answer belongs to its n-th occurrence in the span; decoded
    answers have no such order, so any occurrence in the span counts.
    """
    allowed = np.zeros((len(tokens), example.num_prompt_tokens), dtype=bool)
    for needle in example.needles:
        span = range(*needle.answer_token_span)
        used: dict[int, int] = {}
        for row, token in enumerate(tokens):
            places = [j for j in span if example.prompt_ids[j] == token]
            nth = used.get(token, 0)
            used[token] = nth + 1
            if mode == "teacher_forced":
                places = places[nth : nth + 1]
            allowed[row, places] = True
    return allowed


def score_rows(
    argmax: Int[np.ndarray, "layers heads rows"], tokens: Sequence[int], example: Example, mode: Mode
) -> tuple[Float[np.ndarray, "layers heads"], Float[np.ndarray, "layers heads"]]:
    """The equation of the module docstring for one example.

    Args:
        argmax: j* in prompt coordinates (positions >= the prompt length are answer tokens, never in k).
        tokens: w_t of each row.
        example: gives k, x and the gold answer.
        mode: only `aligned` depends on it.

    Returns:
        (score, aligned), each (layers, heads); NaN when W is empty.
    """
    shape = argmax.shape[:2]
    wanted = sorted(copyable_tokens(example))
    if not wanted:
        return np.full(shape, np.nan), np.full(shape, np.nan)
    inside = (argmax >= 0) & (argmax < example.num_prompt_tokens)
    place = np.where(inside, argmax, 0)
    prompt, spoken = np.asarray(example.prompt_ids), np.asarray(tokens, dtype=np.int64)
    copied = inside & needle_mask(example)[place] & (prompt[place] == spoken)
    at_answer = copied & aligned_positions(example, tokens, mode)[np.arange(len(tokens)), place]
    chosen = [spoken == token for token in wanted]
    score = np.mean([copied[:, :, rows].any(axis=2) for rows in chosen], axis=0)
    aligned = np.mean([at_answer[:, :, rows].any(axis=2) for rows in chosen], axis=0)
    return score, aligned


def score_examples(
    loaded: LoadedModel,
    examples: Sequence[Example],
    *,
    mode: Mode | str = "teacher_forced",
    batch_size: int = 1,
    chunk_tokens: int = 0,
    max_new_tokens: int = 32,
    is_done: Callable[[str], bool] = lambda _: False,
) -> Iterator[list[ExampleScore]]:
    """Score every head on every example, a batch at a time.

    Args:
        loaded: the model; its attention is routed through the observer.
        examples: what to score on.
        mode: see the module docstring.
        batch_size: examples per pass; does not change results beyond float rounding.
        chunk_tokens: prefill in chunks of this many tokens; 0 = one pass.
        max_new_tokens: longest decoded answer, in `decode` mode.
        is_done: tells which example ids were scored before; a batch is skipped when all of its examples were.

    Yields:
        The scores of each batch, in order.

    Raises:
        InputError: the model's heads cannot be observed exactly, or `batch_size` < 1.
    """
    require(batch_size >= 1, "batch_size", "be at least 1", batch_size, "Use 1 for the longest contexts")
    require(mode in ("teacher_forced", "decode"), "mode", "be teacher_forced or decode", mode, "Choose one")
    make_observable(loaded.model)
    for start in range(0, len(examples), batch_size):
        group = examples[start : start + batch_size]
        if all(is_done(example.example_id) for example in group):
            continue
        if mode == "teacher_forced":
            yield _score_teacher_forced(loaded, group, chunk_tokens)
        else:
            yield _score_decoded(loaded, group, chunk_tokens, max_new_tokens)


def _pad_id(loaded: LoadedModel) -> int:
    return int(loaded.tokenizer.pad_token_id or 0)


@torch.inference_mode()
def _score_teacher_forced(loaded: LoadedModel, group: Sequence[Example], chunk_tokens: int) -> list[ExampleScore]:
    answers = [example.answer_ids for example in group]
    prompts = [example.prompt_ids for example in group]
    batch = pad_batch(prompts, answers, _pad_id(loaded), loaded.model.device)
    rows = range(batch.num_prompt - 1, batch.num_prompt + batch.num_answer - 1)
    with observe(loaded.model, rows) as observer:
        logits = run_rows(
            loaded.model, batch, first_row=batch.num_prompt - 1, chunk_tokens=chunk_tokens, observer=observer
        )
        argmax = observer.argmax().numpy()
    losses = mean_answer_nll(logits, answers).tolist()
    return _marks(batch, group, argmax, answers, losses, "teacher_forced")


@torch.inference_mode()
def _score_decoded(
    loaded: LoadedModel, group: Sequence[Example], chunk_tokens: int, max_new_tokens: int
) -> list[ExampleScore]:
    batch = pad_batch(
        [example.prompt_ids for example in group], [[]] * len(group), _pad_id(loaded), loaded.model.device
    )
    last = batch.num_prompt - 1
    stops = stop_token_ids(loaded.model, loaded.tokenizer.eos_token_id)
    with observe(loaded.model, range(last, last + max_new_tokens)) as observer:
        start = prefill(loaded.model, batch, chunk_tokens=chunk_tokens, observer=observer)
        answers = greedy(loaded.model, start, max_new_tokens=max_new_tokens, stop_ids=stops, observer=observer)
        answers = [first_line(tokens, loaded.tokenizer.decode) for tokens in answers]
        argmax = observer.argmax(max(map(len, answers))).numpy()
    return _marks(batch, group, argmax, answers, [float("nan")] * len(group), "decode")


def first_line(tokens: Sequence[int], decode: Callable[[list[int]], object]) -> list[int]:
    """The generated tokens before the first line break: what is marked as the answer, and no more, is scored."""
    for count in range(1, len(tokens) + 1):
        text = str(decode(list(tokens[:count])))
        if "\n" in text or "\r" in text:
            return list(tokens[: count - 1])
    return list(tokens)


def _marks(
    batch: PaddedBatch,
    group: Sequence[Example],
    argmax: Int[np.ndarray, "layers batch heads rows"],
    answers: Sequence[Sequence[int]],
    losses: Sequence[float],
    mode: Mode,
) -> list[ExampleScore]:
    marks = []
    for row, (example, tokens) in enumerate(zip(group, answers, strict=True)):
        positions = argmax[:, row, :, : len(tokens)] - batch.pads[row]
        score, aligned = score_rows(positions, tokens, example, mode)
        reason = EMPTY_W if np.isnan(score).any() else ""
        marks.append(
            ExampleScore(
                example_id=example.example_id, score=score, aligned=aligned, real_nll=losses[row], unscored=reason
            )
        )
    return marks


def gather_scores(
    marks: Sequence[ExampleScore], loaded: LoadedModel, *, data_digest: str, mode: Mode, seed: int
) -> HeadScores:
    """Stack per-example marks, in the order given, into `HeadScores`.

    Raises:
        InputError: no example was given.
    """
    require(bool(marks), "examples", "be at least one", 0, "Check the data set and its split")
    return HeadScores(
        score=np.stack([mark.score for mark in marks]),
        aligned=np.stack([mark.aligned for mark in marks]),
        example_ids=tuple(mark.example_id for mark in marks),
        unscored={mark.example_id: mark.unscored for mark in marks if mark.unscored},
        real_nll=np.asarray([mark.real_nll for mark in marks]),
        model=loaded.label,
        model_digest=loaded.digest,
        data_digest=data_digest,
        mode=mode,
        seed=seed,
    )
