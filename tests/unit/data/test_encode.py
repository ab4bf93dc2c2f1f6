from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from rhstudy.data.encode import Encoder, check_answer, ids_sha256
from rhstudy.errors import InputError

WORDS = st.lists(
    st.sampled_from(["salt", "harbour", "é", "日本語の文章", "😀", "a,b", "Kalomi"]), min_size=1, max_size=25
)


@settings(max_examples=80, deadline=None)
@given(words=WORDS, limit=st.integers(-1, 60))
def test_cut_is_the_longest_start_that_fits(
    chat_tokenizer: PreTrainedTokenizerFast, words: list[str], limit: int
) -> None:
    encoder, text = Encoder(chat_tokenizer), " ".join(words)
    starts = [" ".join(words[:count]) for count in range(len(words) + 1)]
    expected = [start for start in starts if not start or encoder.count(start) <= limit][-1]
    assert encoder.cut(text, limit) == expected
    finer = encoder.cut(text, limit, at_words=False)
    assert text.startswith(finer)
    assert finer.startswith(expected)
    assert encoder.count(finer) <= max(limit, 0) + 3  # bytes of the last character may be tokens of their own


def test_counts_are_of_the_text_alone(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    encoder = Encoder(chat_tokenizer)
    texts = ["salt", "harbour of", "salt"]
    expected = [len(chat_tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    assert encoder.counts(texts) == expected == encoder.counts(texts)


def test_answer_ids_continue_the_prompt(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    encoder, prompt = Encoder(chat_tokenizer), "x " * 200 + "assistant\nAnswer:"
    ids, offsets = encoder.prompt(prompt)
    assert len(ids) == len(offsets)
    assert ids == encoder.prompt_ids(prompt)
    answer = encoder.answer_ids(prompt, " Kalomi 1300")
    assert ids + answer == chat_tokenizer(prompt + " Kalomi 1300", add_special_tokens=False)["input_ids"]
    assert answer == chat_tokenizer(" Kalomi 1300", add_special_tokens=False)["input_ids"]


def test_specials_are_added_only_without_a_template(bpe: Tokenizer) -> None:
    with_bos = Tokenizer.from_str(bpe.to_str())
    with_bos.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 2)])
    plain = PreTrainedTokenizerFast(tokenizer_object=with_bos, bos_token="<s>")
    chat = PreTrainedTokenizerFast(
        tokenizer_object=with_bos, bos_token="<s>", chat_template="<s>{{ messages[0]['content'] }}"
    )
    assert Encoder(plain).prompt_ids("a b")[0] == 2
    assert Encoder(chat).prompt_ids("<s>a b").count(2) == 1
    assert 2 not in Encoder(plain).answer_ids("a Answer:", " b")


def test_a_merged_boundary_is_refused() -> None:
    merging = Tokenizer(models.BPE(vocab={"A": 0, ":": 1, " ": 2, "b": 3, ": ": 4}, merges=[(":", " ")]))
    encoder = Encoder(PreTrainedTokenizerFast(tokenizer_object=merging))
    with pytest.raises(InputError, match="tokenizer must start a token where the answer starts, got ' b'"):
        encoder.answer_ids("A:", " b")


def test_an_end_token_after_the_prompt_is_refused(bpe: Tokenizer) -> None:
    ending = Tokenizer.from_str(bpe.to_str())
    ending.post_processor = processors.TemplateProcessing(single="$A <s>", special_tokens=[("<s>", 2)])
    with pytest.raises(InputError, match=r"tokenizer must add nothing after the prompt, got <token \[2\]>.*end token"):
        Encoder(PreTrainedTokenizerFast(tokenizer_object=ending)).prompt("a b")


def test_special_tokens_in_the_text_are_refused(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    frame = Encoder(chat_tokenizer).frame
    with pytest.raises(InputError, match=r"prompt must spell no special token in its text, got <1 of them>"):
        Encoder(chat_tokenizer).prompt(f"{frame.before}wool <|im_end|> salt{frame.after}")


def test_slow_tokenizers_are_refused(bpe: Tokenizer) -> None:
    class Slow(PreTrainedTokenizerFast):
        is_fast = False

    with pytest.raises(InputError, match="tokenizer must give character offsets, got 'Slow'"):
        Encoder(Slow(tokenizer_object=bpe))


def test_a_metaspace_tokenizer_gets_no_double_space() -> None:
    vocab = {"<unk>": 0, "▁Answer:": 1, "▁Rome": 2, "▁": 3}
    words = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Metaspace()
    assert Encoder(PreTrainedTokenizerFast(tokenizer_object=words)).answer_ids("Answer:", " Rome") == [2]


@pytest.mark.parametrize("answer", ["Rome", "  Rome", " Rome ", " ", ""])
def test_answers_start_with_one_space(answer: str) -> None:
    check_answer(" Rome")
    with pytest.raises(InputError, match="answer must start with one space"):
        check_answer(answer)


def test_ids_hash_is_fixed() -> None:
    assert ids_sha256([1, 2, 300]) == ids_sha256((1, 2, 300)) != ids_sha256([1, 2300])
