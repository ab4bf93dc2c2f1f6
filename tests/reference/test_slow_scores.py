"""The fast detector and the three nested loops give identical hits, on every family and layout."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
from reference.slow_scores import slow_score
from tiny_models import FAMILIES, random_example, tiny_model

from rhstudy.heads.detect import detect
from rhstudy.models.batch import pad_batch
from rhstudy.models.decode import greedy
from rhstudy.models.generate import prefill
from rhstudy.models.load import LoadedModel
from rhstudy.seeding import generator
from rhstudy.types import Example, Span

LAYOUTS = {"one by one": (1, 0), "left-padded batch": (3, 0), "chunked prefill": (1, 17), "padded and chunked": (3, 16)}


def _examples(num: int = 3) -> list:
    rng = generator(5, "reference examples")
    return [random_example(rng, index, length=60 + 7 * index, answer=3 + index) for index in range(num)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_teacher_forced_equals_nested_loops(family: str, layout: str) -> None:
    loaded, examples = tiny_model(family), _examples()
    batch_size, chunk = LAYOUTS[layout]
    scores = detect(loaded.model, loaded.tokenizer, examples, batch_size=batch_size, chunk_tokens=chunk)
    for row, example in enumerate(examples):
        score, aligned = slow_score(loaded.model, example, list(example.answer_ids))
        np.testing.assert_array_equal(scores.score[row], score)
        np.testing.assert_array_equal(scores.aligned[row], aligned)
    assert scores.score.max() > 0, "the comparison is empty when no head ever hits"


def _speaking(loaded: LoadedModel, num: int = 24) -> list[tuple[Example, list[int]]]:
    """Examples whose gold answer is what the model says anyway, so that decoding can hit; with what it says."""
    pairs = []
    for index in range(num):
        example = random_example(generator(7, "speaking", index), index, length=50 + index)
        start = prefill(loaded.model, pad_batch([example.prompt_ids], [[]], 0, "cpu"))
        spoken = greedy(loaded.model, start, max_new_tokens=6, stop_ids=frozenset({2}))[0]
        whole = Span(0, example.num_prompt_tokens)
        needle = dataclasses.replace(example.needles[0], token_span=whole, answer_token_span=whole)
        pairs.append((dataclasses.replace(example, answer_ids=tuple(spoken or (3,)), needles=(needle,)), spoken))
    return pairs


@functools.cache
def _spoken(family: str) -> tuple[list[Example], list[list[list[float]]]]:
    """The examples of `_speaking` and what nested loops give them; they know no layouts."""
    loaded = tiny_model(family)
    pairs = _speaking(loaded)
    slow = [slow_score(loaded.model, example, spoken)[0] for example, spoken in pairs]
    return [example for example, _ in pairs], slow


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_decode_equals_nested_loops_on_the_greedy_answer(family: str, layout: str) -> None:
    loaded = tiny_model(family)
    examples, slow = _spoken(family)
    batch_size, chunk = LAYOUTS[layout]
    scores = detect(
        loaded.model,
        loaded.tokenizer,
        examples,
        mode="decode",
        batch_size=batch_size,
        chunk_tokens=chunk,
        max_new_tokens=6,
    )
    np.testing.assert_array_equal(scores.score, slow)
    assert (scores.score > 0).any(), "the comparison is empty when no head ever hits"
