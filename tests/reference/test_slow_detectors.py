"""Published counting with any set of quirks, and attention mass, equal their nested loops."""

from __future__ import annotations

import dataclasses
import functools
import itertools

import numpy as np
import pytest
from reference.slow_detectors import slow_mass, slow_published
from tiny_models import DECODERS, random_example, tiny_model

from rhstudy.heads.attention_mass import MassSettings, cut_at_question
from rhstudy.heads.detect import detect
from rhstudy.heads.published_code import NOT_FOUND, PublishedQuirks, rouge1_recall
from rhstudy.heads.score import EMPTY_W
from rhstudy.models.batch import pad_batch
from rhstudy.models.decode import greedy
from rhstudy.models.generate import prefill
from rhstudy.models.load import LoadedModel
from rhstudy.seeding import generator
from rhstudy.types import Example, Needle, Span

SWITCHES = (
    "decoded_answer",
    "published_stops",
    "needle_by_set_overlap",
    "any_needle_token",
    "per_step_counting",
    "needle_length_denominator",
    "rouge_gate",
    "model_dtype_weights",
)
STEPS = 8
NULL_QUERY = "w4 w5 w6"
# Every quirk off alone, every quirk on alone, all and none.
COMBINATIONS = [
    *({name: name != off for name in SWITCHES} for off in SWITCHES),
    *({name: name == on for name in SWITCHES} for on in SWITCHES),
    dict.fromkeys(SWITCHES, True),
    dict.fromkeys(SWITCHES, False),
]


def word_text(ids) -> str:
    return " ".join(f"w{token}" for token in ids)


def heard(loaded: LoadedModel, said: list[int]) -> str:
    return str(loaded.tokenizer.decode(said, skip_special_tokens=True))


def speaking(loaded: LoadedModel, index: int) -> tuple[Example, list[int]]:
    """An example whose gold answer is most of what the model says within `STEPS` steps, with what it says."""
    example = random_example(generator(11, "published", index), index, length=50 + index)
    start = prefill(loaded.model, pad_batch([example.prompt_ids], [[]], 0, "cpu"))
    spoken = greedy(loaded.model, start, max_new_tokens=STEPS, stop_ids=frozenset())[0]
    answer = [*spoken[:3], 5] if index % 3 else [5, 6, 7]
    inside = Span(10, 40)
    needle = dataclasses.replace(example.needles[0], token_span=inside, answer_token_span=Span(12, 20))
    changes = {"answer": f" {word_text(answer)}", "answer_ids": tuple(answer), "needles": (needle,)}
    return dataclasses.replace(example, **changes), spoken


@pytest.fixture(scope="module")
def told() -> tuple[LoadedModel, list[tuple[Example, list[int]]]]:
    loaded = tiny_model("llama")
    return loaded, [speaking(loaded, index) for index in range(9)]


@pytest.mark.parametrize("switches", COMBINATIONS, ids=lambda chosen: "".join("01"[value] for value in chosen.values()))
def test_published_counting_equals_nested_loops(told, switches: dict[str, bool]) -> None:
    loaded, pairs = told
    quirks = PublishedQuirks(**switches, stop_ids=(9,))
    examples = [example for example, _ in pairs]
    scores = detect(
        loaded.model, loaded.tokenizer, examples, mode="published_code", published=quirks, max_new_tokens=STEPS,
        batch_size=2,
    )  # fmt: skip
    compared = 0
    for row, (example, spoken) in enumerate(pairs):
        ends = [9] if quirks.published_stops else [2]
        cut = next((place for place, token in enumerate(spoken) if token in ends), len(spoken))
        said = spoken[: cut + quirks.published_stops] if quirks.decoded_answer else list(example.answer_ids)
        gated = quirks.rouge_gate and rouge1_recall(example.answer, heard(loaded, said)) <= 0.5
        expected = slow_published(loaded.model, example, said, quirks, list(example.answer_ids))
        if np.isnan(expected).any():
            assert scores.unscored[example.example_id] in (EMPTY_W, NOT_FOUND)
        elif gated:
            assert "ROUGE-1" in scores.unscored[example.example_id]
        else:
            assert example.example_id not in scores.unscored, scores.unscored
            compared += 1
            np.testing.assert_allclose(scores.score[row], expected, atol=1e-12)
    assert compared > 0


def test_what_the_switches_mean(told) -> None:
    """Scores are those of the mode that the switches spell out."""
    loaded, pairs = told
    examples = [example for example, _ in pairs]

    def scores(mode: str, **switches: bool) -> np.ndarray:
        quirks = PublishedQuirks(**switches)
        found = detect(
            loaded.model, loaded.tokenizer, examples, mode=mode, published=quirks, max_new_tokens=STEPS
        )  # fmt: skip
        return found.score

    off = dict.fromkeys(SWITCHES, False)
    np.testing.assert_array_equal(scores("published_code", **off), scores("teacher_forced"))
    np.testing.assert_array_equal(scores("published_code", **{**off, "decoded_answer": True}), scores("decode"))


@pytest.mark.parametrize("pair", itertools.product(("the Cat sat on running mats.", "one", ""), repeat=2))
def test_rouge_recall_is_the_package_s(pair: tuple[str, str]) -> None:
    from rouge_score.rouge_scorer import RougeScorer

    official = RougeScorer(["rouge1"], use_stemmer=True).score(*pair)["rouge1"].recall
    assert rouge1_recall(*pair) == pytest.approx(official, abs=1e-12)


def test_rouge_recall_stems_and_counts_repeats() -> None:
    assert rouge1_recall("running cats and cats", "a cat runs") == pytest.approx(2 / 4)


def asked_example(index: int) -> Example:
    """A prompt in words: random ones, a needle, then a question of `index + 2` words."""
    rng = generator(13, "mass", index)
    prompt = rng.integers(3, 50, 40 + 5 * index).tolist()
    question = rng.integers(3, 50, 2 + index).tolist()
    question[0] = 7  # the null query begins otherwise
    ids = [*prompt, *question, 11, 12]
    text = word_text(ids)
    place = len(word_text(prompt)) + 1
    span, answer = Span(10, 22), Span(14, 14 + 3)
    chars = Span(len(word_text(ids[:10])) + 1, len(word_text(ids[:22])))
    needle = Needle(char_span=chars, token_span=span, answer_char_span=chars, answer_token_span=answer)
    made = random_example(rng, index)
    return dataclasses.replace(
        made, question=text[place : place + len(word_text(question))], prompt=text, prompt_ids=tuple(ids),
        needles=(needle,), answer=f" {word_text(ids[14:17])}", answer_ids=tuple(ids[14:17]),
    )  # fmt: skip


@pytest.mark.parametrize("drop_outliers", [False, True])
def test_tokens_that_needles_share_count_once(drop_outliers: bool) -> None:
    loaded, example = tiny_model("llama"), asked_example(0)
    (needle,) = example.needles
    start, end = needle.token_span
    inner = dataclasses.replace(needle, token_span=Span(start + 2, end - 2))
    mass = MassSettings(null_query=NULL_QUERY, drop_outliers=drop_outliers)
    both = [example, dataclasses.replace(example, example_id="twice", needles=(needle, inner, needle))]
    scores = detect(loaded.model, loaded.tokenizer, both, mode="attention_mass", mass=mass)
    np.testing.assert_array_equal(scores.score[0], scores.score[1])
    np.testing.assert_array_equal(scores.aligned[0], scores.aligned[1])


@functools.cache
def slow_masses(family: str, drop_outliers: bool) -> list[tuple[list[list[float]], list[list[float]]]]:
    """Score and aligned score of every head by nested loops, for each example; they know no batches."""
    loaded, found = tiny_model(family), []
    for index in range(3):
        example = asked_example(index)
        query = cut_at_question(example, loaded.tokenizer, NULL_QUERY)
        prompts = list(example.prompt_ids), [*query.shared, *query.null]
        needle, answer = (
            slow_mass(loaded.model, *prompts, len(query.shared), span, drop_outliers)
            for span in (range(10, 22), range(14, 17))
        )
        found.append((needle, answer))
    return found


@functools.cache
def gold_losses(family: str) -> np.ndarray:
    """What the default detector finds, one prompt at a time."""
    loaded = tiny_model(family)
    return detect(loaded.model, loaded.tokenizer, [asked_example(index) for index in range(3)]).real_nll


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("drop_outliers", [False, True])
@pytest.mark.parametrize(("batch_size", "chunk"), [(1, 0), (3, 0), (3, 16), (2, 3)])
def test_attention_mass_equals_nested_loops(family: str, drop_outliers: bool, batch_size: int, chunk: int) -> None:
    loaded, examples = tiny_model(family), [asked_example(index) for index in range(3)]
    mass = MassSettings(null_query=NULL_QUERY, drop_outliers=drop_outliers)
    scores = detect(
        loaded.model, loaded.tokenizer, examples, mode="attention_mass", mass=mass, batch_size=batch_size,
        chunk_tokens=chunk,
    )  # fmt: skip
    for row, expected in enumerate(slow_masses(family, drop_outliers)):
        for found, slow in zip((scores.score[row], scores.aligned[row]), expected, strict=True):
            np.testing.assert_allclose(found, slow, atol=5e-6)
    np.testing.assert_allclose(scores.real_nll, gold_losses(family), rtol=1e-4)
    # llama4's chunks end before the needle is reached from the question: zero there is right.
    assert np.abs(scores.score).max() > 0.01 or family == "llama4"
