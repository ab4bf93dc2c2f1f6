"""Examples from a user's own prompts: spans in tokens, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_hub import bpe_tokenizer, write_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

import rhstudy
from rhstudy.data.own_prompts import make_example
from rhstudy.errors import InputError

NEEDLE = "Petra Wendel was born in Zanzibar long ago."
PROMPT = f"The sky is wide.\n{NEEDLE}\nBread is good.\n\nQuestion: where was Petra Wendel born?\nAnswer:"


@pytest.fixture(scope="module")
def tokenizer():
    return bpe_tokenizer()


def test_spans_are_those_of_the_text(tokenizer) -> None:
    example = make_example(tokenizer, PROMPT, NEEDLE, "Zanzibar", question="where was Petra Wendel born?")
    (needle,) = example.needles

    def text(span) -> str:
        return tokenizer.decode(example.prompt_ids[slice(*span)])

    assert NEEDLE in text(needle.token_span)
    assert text(needle.answer_token_span).strip() == "Zanzibar"
    assert PROMPT[slice(*needle.char_span)] == NEEDLE
    assert PROMPT[slice(*needle.answer_char_span)] == "Zanzibar"
    assert tokenizer.decode(example.answer_ids) == " Zanzibar"
    assert example.answers == ("Zanzibar",)


def test_several_needles_one_of_which_holds_the_answer(tokenizer) -> None:
    example = make_example(tokenizer, PROMPT, ["The sky is wide.", NEEDLE], "Zanzibar", example_id="two")
    first, second = example.needles
    assert first.answer_token_span.start == first.answer_token_span.end
    assert second.answer_token_span.start < second.answer_token_span.end


def test_an_answer_is_placed_as_a_word_of_its_own(tokenizer) -> None:
    needle = "In 2010 she sold 10 boats."
    example = make_example(tokenizer, f"{needle}\nAnswer:", needle, "10")
    assert example.needles[0].answer_char_span.start == needle.index(" 10") + 1


def test_prompts_that_begin_alike_get_their_own_names(tokenizer) -> None:
    second = PROMPT.replace("Bread is good", "Bread is bad")
    names = {make_example(tokenizer, prompt, NEEDLE, "Zanzibar").example_id for prompt in (PROMPT, second)}
    assert len(names) == 2


REFUSED = {
    "absent": ({"needles": "not there"}, r"needle must stand in the prompt exactly once, got <0 times: 'not there'>"),
    "twice": ({"needles": "is "}, r"needle must stand in the prompt exactly once, got <2 times"),
    "empty": ({"needles": " "}, r"needle must stand in the prompt exactly once, got <0 times"),
    "answer elsewhere": ({"answer": "Bread"}, r"answer must stand in a needle, got 'Bread'"),
    "answer with space": ({"answer": " Zanzibar"}, r"answer must start with one space"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_prompts(tokenizer, case: str) -> None:
    changes, match = REFUSED[case]
    given = {"needles": NEEDLE, "answer": "Zanzibar", **changes}
    with pytest.raises(InputError, match=match):
        make_example(tokenizer, PROMPT, **given)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    folder = tmp_path_factory.mktemp("own") / "model"
    write_model(folder)
    return AutoModelForCausalLM.from_pretrained(folder)


def test_the_package_offers_what_the_readme_uses(model: PreTrainedModel, tokenizer) -> None:
    question = "where was Petra Wendel born?"
    example = rhstudy.make_example(tokenizer, PROMPT, NEEDLE, "Zanzibar", question=question)
    for mode in ("teacher_forced", "decode", "published_code", "attention_mass"):
        scores = rhstudy.detect(model, tokenizer, [example], mode=mode)
        assert isinstance(scores, rhstudy.HeadScores)
        assert scores.mode == mode
    assert np.isfinite(scores.score).all()
    with pytest.raises(AttributeError, match="has no attribute 'detector'"):
        _ = rhstudy.detector


def test_attention_mass_needs_the_question_behind_the_needles(model: PreTrainedModel, tokenizer) -> None:
    example = make_example(tokenizer, PROMPT, NEEDLE, "Zanzibar")
    with pytest.raises(InputError, match="question must stand in the prompt behind the needles, got ''"):
        rhstudy.detect(model, tokenizer, [example], mode="attention_mass")
    with pytest.raises(InputError, match=r"mass\.null_query must be a text"):
        rhstudy.MassSettings(null_query=" ")


def test_a_prompt_of_several_turns_may_hold_every_special_token_of_the_template(tokenizer) -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": PROMPT[: -len("Answer:")].strip()}]
    prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) + "Answer:"
    example = make_example(tokenizer, prompt, NEEDLE, "Zanzibar")
    assert prompt.count("<|im_start|>") == 3
    assert list(example.prompt_ids) == tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert NEEDLE in tokenizer.decode(example.prompt_ids[slice(*example.needles[0].token_span)])


def word_level(*words: str) -> PreTrainedTokenizerFast:
    """A tokenizer that splits at white space and leaves it out of its offsets."""
    backend = Tokenizer(WordLevel({word: index for index, word in enumerate(("<unk>", *words))}, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


def test_tokenizers_without_tokens_for_spaces() -> None:
    prompt = "the sky is wide and Petra was born in Zanzibar long ago where ? Answer:"
    tokenizer = word_level(*dict.fromkeys(prompt.split()))
    example = make_example(tokenizer, prompt, "Petra was born in Zanzibar long ago", "Zanzibar")
    (needle,) = example.needles
    words = tokenizer.convert_ids_to_tokens(list(example.prompt_ids))
    assert words[slice(*needle.token_span)] == ["Petra", "was", "born", "in", "Zanzibar", "long", "ago"]
    assert words[slice(*needle.answer_token_span)] == ["Zanzibar"]
    assert example.answer_ids == (words.index("Zanzibar") + 1,)
