"""Needles of any unicode text, over kinds of tokenizers: what the spans say is what the tokens spell, or an error."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import rhstudy
from rhstudy.data.align import token_span
from rhstudy.data.assemble import TOLERANCE, Label, assemble
from rhstudy.data.encode import Encoder
from rhstudy.data.facts import Fact, Gold, Passage, UnbuildableRowError, one_line
from rhstudy.data.layout import CITED_DOCUMENTS, DOCUMENTS, LINES, Layout
from rhstudy.errors import InputError
from rhstudy.seeding import generator
from rhstudy.types import Example, Span

NUM_TOKENS = 1200
KINDS = ("byte-level", "sentencepiece", "tiny", "not every byte")
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
"""Any unicode characters: controls, joined emoji, accents that follow, right-to-left marks, unassigned ones."""
ANSWERS = st.one_of(
    st.sampled_from(
        ["1066", "Ann Lee", "$10", "日本語", "e\u0301té", "👩\u200d👩\u200d👧", "a" * 60, "x-1.5%", "Ёлка"]
    ),
    ANY_TEXT.map(one_line).filter(bool),
)


def sentencepiece_like() -> PreTrainedTokenizerFast:
    """BPE over words that carry their space as ▁, unknown characters as their bytes: the layout of Llama 2."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    texts = ["Document [12](Title: the harbour) was built in 1066 by Ann Lee. Question: who? Answer: salt"] * 4
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>", "<s>"], show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    state = json.loads(tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    for number in range(256):
        vocabulary[f"<0x{number:02X}>"] = len(vocabulary)
    state["model"]["byte_fallback"] = True
    made = Tokenizer.from_str(json.dumps(state))
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", bos_token="<s>")


def without_rare_bytes() -> PreTrainedTokenizerFast:
    """Byte-level BPE with the bytes of its training text alone, as SmolLM2's: others are lost in silence."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<s>"], show_progress=False)
    ascii_text = "".join(map(chr, range(32, 127)))
    tokenizer.train_from_iterator([ascii_text, "été 日本語 ship, 😀 Document [12](Title: x) Ёлка\n"] * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")


@pytest.fixture(scope="session")
def tokenizers_by_kind(chat_tokenizer: PreTrainedTokenizerFast) -> dict[str, PreTrainedTokenizerFast]:
    tiny = Path(rhstudy.__file__).parent / "models" / "tiny"
    return {
        "byte-level": chat_tokenizer,
        "sentencepiece": sentencepiece_like(),
        "tiny": AutoTokenizer.from_pretrained(tiny),
        "not every byte": without_rare_bytes(),
    }


def haystack(seed: int, odd: str) -> Iterator[Passage]:
    rng = generator(seed, "spans")
    for number in range(500):
        words = rng.choice(["salt", "harbour", "été", "日本", "ship,", "10", "😀"], size=int(rng.integers(1, 30)))
        yield Passage(f"T{number}", one_line(f"{' '.join(words)} {odd}"))


def built(
    tokenizer: PreTrainedTokenizerFast, before: str, answer: str, after: str, seed: int, layout: Layout, num_golds: int
) -> tuple[Fact, Example]:
    lead = one_line(f"{before} x").removesuffix("x")  # ends in the space before the answer, where there is one
    text = one_line(f"{lead}{answer} {after}")
    start = text.index(answer, max(0, len(lead) - 1))
    further = tuple(Gold(Passage(f"G{index}", one_line(f"{after} gold {index}"))) for index in range(num_golds - 1))
    fact = Fact(
        fact_id="f", question="who built the harbour?", answers=(answer,), passage=Passage("Old Harbour", text),
        answer_span=Span(start, start + len(answer)), origin="templated", further=further, cites=layout.numbered,
    )  # fmt: skip
    label = Label(example_id="e", task="mdqa", recipe="r")
    made = assemble(
        fact, haystack(seed, before), layout, Encoder(tokenizer), NUM_TOKENS, generator(seed, "example"), label
    )
    return fact, made


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(
    before=ANY_TEXT,
    answer=ANSWERS,
    after=ANY_TEXT,
    seed=st.integers(0, 10**6),
    layout=st.sampled_from([DOCUMENTS, LINES, CITED_DOCUMENTS]),
    num_golds=st.integers(1, 4),
)
@example(before="\u0301", answer="\u0301", after="\u200d", seed=0, layout=DOCUMENTS, num_golds=2)
@example(before="", answer="\x00\x7f", after="", seed=1, layout=LINES, num_golds=1)
@example(before="\U000e0041", answer="\ufeff", after="\u202e", seed=2, layout=CITED_DOCUMENTS, num_golds=3)
def test_decoding_a_span_gives_back_its_text(
    tokenizers_by_kind: dict[str, PreTrainedTokenizerFast],
    kind: str,
    before: str,
    answer: str,
    after: str,
    seed: int,
    layout: Layout,
    num_golds: int,
) -> None:
    tokenizer = tokenizers_by_kind[kind]
    try:
        fact, made = built(tokenizer, before, answer, after, seed, layout, num_golds)
    except InputError as error:
        told = str(error)
        # So many bytes that nothing fits beside the needle; or the answer's first character joins "Answer:".
        allowed = isinstance(error, UnbuildableRowError) and "data.num_tokens" in told
        lost = kind == "not every byte" and "be spelled by its tokens" in told
        if not (allowed or lost or "start a token where the answer starts" in told or "start with one space" in told):
            raise
        return
    assert NUM_TOKENS - TOLERANCE <= made.num_prompt_tokens <= NUM_TOKENS
    for gold, needle in zip(fact.golds, made.needles, strict=True):
        shown = made.prompt[slice(*needle.char_span)]
        assert gold.passage.text in shown
        assert shown in tokenizer.decode(made.prompt_ids[slice(*needle.token_span)])
        spelled = made.prompt[slice(*needle.answer_char_span)]
        assert spelled in tokenizer.decode(made.prompt_ids[slice(*needle.answer_token_span)])
    last = made.prompt[slice(*made.needles[-1].answer_char_span)]
    assert last in made.answers[0] if layout.numbered else last == answer == made.answer[1:]


def test_characters_that_the_tokenizer_loses_make_a_row_unbuildable(
    tokenizers_by_kind: dict[str, PreTrainedTokenizerFast],
) -> None:
    tokenizer = tokenizers_by_kind["not every byte"]
    match = r"needle must be spelled by its tokens, got <a text with '\\u09a8', .* loses some> .*on_bad_row = skip"
    with pytest.raises(UnbuildableRowError, match=match):
        built(tokenizer, "by ", "1066 \u09a8 Lee", "then", 0, DOCUMENTS, 1)
    with pytest.raises(UnbuildableRowError, match=match):
        built(tokenizer, "by ", "1066 Lee", "then \u09a8", 0, DOCUMENTS, 1)
    with pytest.raises(UnbuildableRowError, match=match):
        built(tokenizer, "by ", "\u09a8", "then", 0, DOCUMENTS, 1)
    assert built(tokenizer, "by ", "1066 été Lee", "then", 0, DOCUMENTS, 1)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "not every byte"])
@settings(max_examples=60, deadline=None)
@given(before=ANY_TEXT, needle=ANY_TEXT.map(one_line).filter(bool), after=ANY_TEXT, keep=st.integers(0, 200))
def test_spans_survive_truncation_or_raise(
    tokenizers_by_kind: dict[str, PreTrainedTokenizerFast], kind: str, before: str, needle: str, after: str, keep: int
) -> None:
    tokenizer = tokenizers_by_kind[kind]
    text = f"x {before} {needle} {after}"
    start = len(f"x {before} ")
    chars = Span(start, start + len(needle))
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    offsets = np.asarray(encoded["offset_mapping"])
    whole = token_span(offsets, chars)
    assert needle in tokenizer.decode(encoded["input_ids"][slice(*whole)])
    if keep >= whole.end:
        assert token_span(offsets[:keep], chars) == whole
    elif not len(offsets[:keep]) or offsets[:keep, 1].max() < chars.end:
        with pytest.raises(InputError, match="needle must lie inside the tokenised prompt"):
            token_span(offsets[:keep], chars)
