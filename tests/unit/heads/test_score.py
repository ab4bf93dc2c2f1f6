"""The retrieval score on hand-made cases, a planted copying head, and refusals."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from planted import planted_example, planted_model
from tiny_models import random_example, tiny_model

from rhstudy.errors import InputError, StudyError
from rhstudy.heads.attention_mass import MassSettings
from rhstudy.heads.detect import Detector, detect, first_line
from rhstudy.heads.published_code import PublishedQuirks
from rhstudy.heads.score import EMPTY_W, copyable_tokens, score_rows
from rhstudy.models.gold_pass import GoldPasses
from rhstudy.seeding import generator
from rhstudy.types import Span


@pytest.mark.parametrize("mode", ["teacher_forced", "decode"])
def test_a_planted_copying_head_is_found_and_a_position_head_is_not(mode: str) -> None:
    loaded, examples = planted_model(), [planted_example(index) for index in range(4)]
    scores = detect(loaded.model, loaded.tokenizer, examples, mode=mode, batch_size=2)
    np.testing.assert_array_equal(scores.mean()[0], [1.0, 0.0, 0.0, 0.0])
    np.testing.assert_array_equal(scores.aligned.mean(axis=0)[0], [1.0, 0.0, 0.0, 0.0])
    both = [detect(loaded.model, loaded.tokenizer, examples, mode=other).real_nll for other in (mode, "teacher_forced")]
    np.testing.assert_allclose(*both, rtol=1e-5, err_msg="the gold answer's loss, whatever the model says itself")


def _hand_made() -> object:
    """Prompt 5 6 7 8 7 9; needle = positions 1..5, answer span = positions 4..6; answer 7 9."""
    base = random_example(generator(0, "hand"), 0)
    needle = dataclasses.replace(base.needles[0], token_span=Span(1, 6), answer_token_span=Span(4, 6))
    return dataclasses.replace(base, prompt_ids=(5, 6, 7, 8, 7, 9), answer_ids=(7, 9), needles=(needle,))


def test_score_counts_distinct_copied_tokens_in_the_needle() -> None:
    example = _hand_made()
    rows = {
        "both at the answer": ([4, 5], 1.0, 1.0),
        "first from its other mention": ([2, 5], 1.0, 0.5),
        "right place, wrong token": ([5, 4], 0.0, 0.0),
        "outside the needle": ([0, 0], 0.0, 0.0),
        "answer rows are never in the needle": ([6, 7], 0.0, 0.0),
    }
    argmax = np.array([[row for row, _, _ in rows.values()]])
    score, aligned = score_rows(argmax, example.answer_ids, example, "teacher_forced")
    np.testing.assert_array_equal(score[0], [value for _, value, _ in rows.values()])
    np.testing.assert_array_equal(aligned[0], [value for _, _, value in rows.values()])


def test_repeated_answer_tokens_count_once() -> None:
    example = dataclasses.replace(_hand_made(), answer_ids=(7, 7, 9))
    argmax = np.array([[[2, 4, 0], [4, 2, 0], [4, 4, 5]]])
    score, _ = score_rows(argmax, example.answer_ids, example, "teacher_forced")
    np.testing.assert_array_equal(score[0], [0.5, 0.5, 1.0])


def test_an_answer_that_is_not_in_the_needle_is_unscored_not_zero() -> None:
    example = dataclasses.replace(random_example(generator(0, "none"), 0), answer_ids=(2,))
    assert copyable_tokens(example) == frozenset()
    loaded = tiny_model("llama")
    good = random_example(generator(0, "good"), 1)
    scores = detect(loaded.model, loaded.tokenizer, [example, good])
    assert scores.unscored == {example.example_id: EMPTY_W}
    assert np.isnan(scores.score[0]).all()
    np.testing.assert_array_equal(scores.mean(), scores.score[1])


def test_done_batches_are_skipped_and_others_keep_their_composition() -> None:
    loaded = tiny_model("llama")
    examples = [random_example(generator(0, "skip", index), index) for index in range(4)]
    groups = []
    whole = detect(loaded.model, loaded.tokenizer, examples, batch_size=2, on_scored=groups.append)
    done = {mark.example_id: mark for mark in groups[0]}
    rest = []
    again = detect(loaded.model, loaded.tokenizer, examples, batch_size=2, done=done, on_scored=rest.append)
    assert [[mark.example_id for mark in group] for group in rest] == [["example-2", "example-3"]]
    np.testing.assert_array_equal(again.score, whole.score)


def test_bad_requests() -> None:
    loaded = tiny_model("llama")
    wrong = {"batch_size": 0, "mode": "guess", "max_new_tokens": -1}
    messages = {
        "batch_size": "batch_size must be at least 1, got 0",
        "mode": "mode must be one of teacher_forced, decode, published_code, attention_mass, got 'guess'",
        "max_new_tokens": "max_new_tokens must be at least 0, got -1",
    }
    for name, value in wrong.items():
        with pytest.raises(InputError, match=messages[name]):
            detect(loaded.model, loaded.tokenizer, [planted_example()], **{name: value})
    with pytest.raises(InputError, match="examples must be at least one"):
        detect(loaded.model, loaded.tokenizer, [])
    with pytest.raises(InputError, match=r"examples must be several, got <one Example>. Pass a list"):
        detect(loaded.model, loaded.tokenizer, planted_example())


def test_settings_of_another_mode_are_refused() -> None:
    with pytest.raises(InputError, match="published must be left out in mode decode, got PublishedQuirks"):
        Detector(mode="decode", published=PublishedQuirks(rouge_gate=False))
    with pytest.raises(InputError, match="mass must be left out in mode teacher_forced, got MassSettings"):
        Detector(mass=MassSettings(null_query="-"))
    Detector(mode="attention_mass", mass=MassSettings(null_query="-"))


def test_answers_are_as_long_as_the_published_program_s_in_its_mode() -> None:
    assert Detector(mode="published_code").longest_answer == 50
    assert Detector(mode="decode").longest_answer == 32
    assert Detector(mode="published_code", max_new_tokens=7).longest_answer == 7


def test_token_ids_that_the_model_does_not_know() -> None:
    loaded = planted_model()
    bad = dataclasses.replace(planted_example(1), prompt_ids=(999, *planted_example(1).prompt_ids[1:]))
    with pytest.raises(
        InputError, match=r"token ids must be those of the model, 0 to 49, got \[\d+, 999\] \(planted-1\)"
    ):
        detect(loaded.model, loaded.tokenizer, [planted_example(0), bad])


def test_more_tokens_than_learned_positions() -> None:
    loaded = tiny_model("gpt2")
    example = random_example(generator(0, "long"), 0, length=300)
    with pytest.raises(
        InputError, match="example must have at most the 256 tokens the model has positions for, got 30"
    ):
        detect(loaded.model, loaded.tokenizer, [example])
    rotary = tiny_model("llama")
    assert detect(rotary.model, rotary.tokenizer, [example]).num_scored == 1


def test_training_mode_of_any_part_is_refused() -> None:
    loaded = tiny_model("llama")
    wrapped = get_peft_model(loaded.model, LoraConfig(target_modules=["q_proj"], lora_dropout=0.5)).eval()
    example = random_example(generator(0, "training"), 0)
    first = detect(wrapped, loaded.tokenizer, [example])
    assert np.array_equal(first.score, detect(wrapped, loaded.tokenizer, [example]).score), "no dropout"
    next(module for module in wrapped.modules() if isinstance(module, torch.nn.Dropout)).train()
    with pytest.raises(InputError, match="model must be in eval mode"):
        detect(wrapped, loaded.tokenizer, [example])


def _changed(**changes):
    return dataclasses.replace(planted_example(), **changes)


UNSOUND = {
    "repeated id": ([planted_example(), planted_example()], r"example ids must be unique, got \['planted-0'\]"),
    "no answer": ([_changed(answer_ids=())], r"answer_ids must be at least one token, got 0 \(planted-0\)"),
    "no needle": ([_changed(needles=())], r"needles must lie inside the prompt, got \[\] \(planted-0\)"),
    "outside": (
        [_changed(prompt_ids=planted_example().prompt_ids[:11])],
        r"needles must lie inside the prompt, got \[14, 14\]",
    ),
}


@pytest.mark.parametrize("case", UNSOUND)
def test_unsound_examples_are_refused_before_anything_runs(case: str) -> None:
    examples, match = UNSOUND[case]
    loaded = planted_model()
    with pytest.raises(InputError, match=match):
        detect(loaded.model, loaded.tokenizer, examples)


def test_a_model_in_training_mode_is_refused() -> None:
    loaded = planted_model()
    loaded.model.train()
    with pytest.raises(InputError, match="model must be in eval mode"):
        detect(loaded.model, loaded.tokenizer, [planted_example()])


@pytest.mark.parametrize("mode", ["teacher_forced", "decode"])
def test_a_model_that_puts_out_nan_is_an_error_and_not_a_model_without_retrieval_heads(mode: str) -> None:
    loaded = planted_model()
    with torch.no_grad():
        loaded.model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(StudyError, match=r"model must put out finite logits, got <NaN on planted-0>"):
        detect(loaded.model, loaded.tokenizer, [planted_example()], mode=mode)


def test_a_batch_that_fails_does_not_take_the_finished_one_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, finished, launched = planted_model(), [], []
    launch = GoldPasses.launch

    def failing(passes: GoldPasses, *given):
        launched.append(given)
        if len(launched) == 2:
            raise RuntimeError("CUDA out of memory")
        return launch(passes, *given)

    monkeypatch.setattr(GoldPasses, "launch", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        detect(loaded.model, loaded.tokenizer, map(planted_example, range(3)), on_scored=finished.extend)
    assert [mark.example_id for mark in finished] == ["planted-0"]


def _decode(tokens: list[int]) -> str:
    """Token 7 is a line break."""
    return "".join("\n" if token == 7 else "x" for token in tokens)


@pytest.mark.parametrize(("tokens", "kept"), [([5, 6, 7, 8], [5, 6]), ([7, 5], []), ([5, 6], [5, 6]), ([], [])])
def test_only_the_first_line_of_a_decoded_answer_is_scored(tokens: list[int], kept: list[int]) -> None:
    assert first_line(tokens, _decode) == kept
