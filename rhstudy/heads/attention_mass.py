"""Mode `attention_mass`: how much attention the needle gets because of the question.

After QRHead (Zhang et al. 2025, arXiv 2506.09944). With q the rows of the question and of all that follows it in the
prompt, and q0 the same rows of the same prompt with the question replaced by a null query ("N/A"):

    c[l, h, j]  = 1/|q| sum_{r in q} a[l, h, r, j]  -  1/|q0| sum_{r in q0} a[l, h, r, j]
    score(l, h) = sum_{j in k} c[l, h, j]                                                     in [-1, 1]

`aligned` sums over the annotated answer spans alone; ``hop_1``... over one needle of a multi-hop prompt each.
Attention that a head pays the needle whatever is asked (to its place, to its first token) cancels. Scores may be
negative; they are no shares of tokens, so the threshold 0.1 of the retrieval score means nothing here: take the top k
heads, as QRHead does.

QRHead's program leaves out tokens whose c lies more than two standard deviations below their document's mean
(`drop_outliers`), starts q at its instruction, and ranks heads by the sum over gold documents.
The prompt up to the question is run once; question and null query go on from its cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rhstudy.data.encode import Encoder
from rhstudy.errors import require
from rhstudy.heads.citing import is_citing
from rhstudy.heads.score import ExampleScore, needle_mask
from rhstudy.models.batch import pad_batch
from rhstudy.models.generate import Prefill, mean_answer_nll, prefill, run_after
from rhstudy.models.load import LoadedModel
from rhstudy.models.probe import MassObserver, observe
from rhstudy.models.transfer import moved
from rhstudy.shapes import Float
from rhstudy.types import Example, Span, Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class MassSettings:
    """How attention mass is measured.

    Attributes:
        null_query: what stands for the question in the prompt that is subtracted.
        drop_outliers: leave out needle tokens more than two standard deviations below the needle's mean, as QRHead's
            program does.
    """

    null_query: str = "N/A"
    drop_outliers: bool = False

    def __post_init__(self) -> None:
        require(bool(self.null_query.strip()), "mass.null_query", "be a text", self.null_query, "QRHead uses N/A")


@dataclass(frozen=True, slots=True)
class Query:
    """A prompt cut where the question begins to matter.

    Attributes:
        shared: ids before the first one that depends on the question.
        asked: ids from there to the end of the prompt.
        null: the same with the null query.
    """

    shared: tuple[int, ...]
    asked: tuple[int, ...]
    null: tuple[int, ...]


def cut_at_question(example: Example, tokenizer: Tokenizer, null_query: str) -> Query:
    """Cut the prompt of `example` at its question.

    Args:
        example: its question stands in the prompt behind every needle.
        tokenizer: the one the example was built with.
        null_query: replaces the question.

    Raises:
        InputError: the question does not stand there, the ids are another tokenizer's, or it is the null query itself.
    """
    where = example.example_id
    place = example.prompt.rfind(example.question) if example.question else -1
    last = max(needle.char_span.end for needle in example.needles)
    remedy = "attention_mass asks the same prompt another question: build prompts with the question after the needles"
    require(place >= last, "question", "stand in the prompt behind the needles", example.question, remedy, where)
    encoder = Encoder(tokenizer)
    same = tuple(encoder.prompt_ids(example.prompt)) == example.prompt_ids
    require(same, "prompt_ids", "be this tokenizer's", "<others>", "Use the tokenizer the data were built with", where)
    end = place + len(example.question)
    null_ids = tuple(encoder.prompt_ids(example.prompt[:place] + null_query + example.prompt[end:]))
    pairs = zip(example.prompt_ids, null_ids, strict=False)
    shared = next((index for index, (one, two) in enumerate(pairs) if one != two), 0)
    tokens = max(needle.token_span.end for needle in example.needles)
    require(shared >= tokens, "mass.null_query", "differ from the question alone", null_query, "Use another", where)
    return Query(example.prompt_ids[:shared], example.prompt_ids[shared:], null_ids[shared:])


@torch.inference_mode()
def score_mass(
    loaded: LoadedModel, group: Sequence[Example], settings: MassSettings, *, chunk_tokens: int = 0
) -> list[ExampleScore]:
    """Attention mass of every head on every example of one batch.

    Args:
        loaded: the model and its tokenizer.
        group: the examples.
        settings: null query and outliers.
        chunk_tokens: prompts and questions are run in chunks of this many tokens; 0 = one pass.

    Raises:
        InputError: see `cut_at_question`.
    """
    queries = [cut_at_question(example, loaded.tokenizer, settings.null_query) for example in group]
    batch = pad_batch([query.shared for query in queries], [[]] * len(group), loaded.pad_id, loaded.model.device)
    start = prefill(loaded.model, batch, chunk_tokens=chunk_tokens)
    columns = [np.flatnonzero(needle_mask(example)).tolist() for example in group]
    width = max(map(len, columns))
    index = [[j + pad for j in row] + [0] * (width - len(row)) for row, pad in zip(columns, batch.pads, strict=True)]
    positions = torch.tensor(index)
    answers = [example.answer_ids for example in group]
    tails = [[*query.asked, *answer[:-1]] for query, answer in zip(queries, answers, strict=True)]
    # The question's rows are looked at; of the LM head only what predicts an answer token is wanted.
    first = min(len(query.asked) for query in queries) - 1
    wanted = max(map(len, tails)) - first
    asked, logits = _mass(
        loaded, start, tails, [len(query.asked) for query in queries], positions, wanted, chunk_tokens
    )
    nulls = [query.null for query in queries]
    null, _ = _mass(loaded, start, nulls, list(map(len, nulls)), positions, 1, chunk_tokens)
    corrected = (asked - null).cpu().numpy().astype(np.float64)
    marks = []
    for row, (example, query) in enumerate(zip(group, queries, strict=True)):
        score, aligned = sum_mass(corrected[:, row], columns[row], example, settings.drop_outliers)
        nll = mean_answer_nll(logits[row : row + 1, len(query.asked) - 1 - first :], answers[row : row + 1])
        name = example.example_id
        hops = mass_by_hop(corrected[:, row], columns[row], example, settings.drop_outliers)
        marks.append(
            ExampleScore(example_id=name, score=score, aligned=aligned, real_nll=float(nll), unscored="", further=hops)
        )
    return marks


def _mass(
    loaded: LoadedModel,
    start: Prefill,
    tails: Sequence[Sequence[int]],
    num_rows: Sequence[int],
    positions: Tensor,
    num_logits: int,
    chunk_tokens: int,
) -> tuple[Float[Tensor, "layers batch heads columns"], Float[Tensor, "batch rows vocab"]]:
    """Mean attention of the first `num_rows` rows of each tail to `positions`, and logits as `run_after` gives them."""
    weights = torch.zeros(len(tails), max(num_rows))
    for row, count in enumerate(num_rows):
        weights[row, :count] = 1 / count
    first = start.batch.num_prompt
    device = start.batch.ids.device
    observer = MassObserver(range(first, first + max(num_rows)), moved(weights, device), moved(positions, device))
    with observe(loaded.model, observer):
        logits = run_after(
            loaded.model, start, tails, num_logits=num_logits, chunk_tokens=chunk_tokens, observer=observer
        )
    return observer.collected(), logits


def sum_mass(
    corrected: Float[np.ndarray, "layers heads columns"], columns: Sequence[int], example: Example, drop_outliers: bool
) -> tuple[Float[np.ndarray, "layers heads"], Float[np.ndarray, "layers heads"]]:
    """(score, aligned) of one example: c summed over its needles and over the annotated answer spans.

    Args:
        corrected: c at `columns` (padding behind them is ignored).
        columns: the positions.
        example: gives the spans.
        drop_outliers: see `MassSettings`.
    """
    place = {j: index for index, j in enumerate(columns)}

    def total(spans: Sequence[Span]) -> Float[np.ndarray, "layers heads"]:
        parts, counted = [], set[int]()
        for span in spans:  # spans that overlap share their tokens: each is counted once
            fresh = [j for j in range(*span) if j not in counted]
            counted.update(fresh)
            parts.append(corrected[:, :, [place[j] for j in fresh]])
        return np.asarray(np.sum([_span_mass(part, drop_outliers) for part in parts], axis=0))

    needles = example.needles
    return total([item.token_span for item in needles]), total([item.answer_token_span for item in needles])


def mass_by_hop(
    corrected: Float[np.ndarray, "layers heads columns"], columns: Sequence[int], example: Example, drop_outliers: bool
) -> dict[str, Float[np.ndarray, "layers heads"]]:
    """``hop_1``... -> c summed over the needle of that hop, in the order of the question; empty for one needle.

    An earlier hop's answer is copied nowhere, so this is what can be said of it. Args as `sum_mass`.
    """
    if len(example.needles) == 1 or is_citing(example):
        return {}
    place = {j: index for index, j in enumerate(columns)}
    return {
        f"hop_{hop}": _span_mass(corrected[:, :, [place[j] for j in range(*needle.token_span)]], drop_outliers)
        for hop, needle in enumerate(example.needles, start=1)
    }


def _span_mass(
    values: Float[np.ndarray, "layers heads tokens"], drop_outliers: bool
) -> Float[np.ndarray, "layers heads"]:
    if not drop_outliers or values.shape[-1] < 2:
        return np.asarray(values.sum(axis=-1))
    floor = values.mean(axis=-1, keepdims=True) - 2 * values.std(axis=-1, ddof=1, keepdims=True)
    return np.asarray(np.where(values > floor, values, 0.0).sum(axis=-1))
