"""Citation and insight scores on hand-made cases, and per-hop attention mass."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from planted import planted_example, planted_model
from tiny_models import random_example, tiny_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from rhstudy.heads.attention_mass import mass_by_hop
from rhstudy.heads.citing import OTHER_TOKENS, cited_rows, score_citations
from rhstudy.heads.detect import detect
from rhstudy.heads.files import load_scores, save_scores, write_head_table
from rhstudy.heads.sets import top_k_set
from rhstudy.seeding import generator
from rhstudy.types import Example, Needle, Span

# ids 0..9 are the digits; 10 "[", 11 "]", 12 ",", 13 a word
TEXT = "Document [12]: x x Document [3]: x x x"
PROMPT_IDS = (13, 10, 1, 2, 11, 13, 13, 13, 10, 3, 11, 13, 13, 13)


def decode(tokens: list[int]) -> str:
    return "".join([*"0123456789", " [", "]", ",", "x"][token] for token in tokens)


def citing_example() -> Example:
    """Document 3 is the first gold one, document 12 the second."""
    base = random_example(generator(0, "hand"), 0)
    twelve, three = TEXT.index("12"), TEXT.index("3]")
    first = Needle(
        char_span=Span(three, len(TEXT)), token_span=Span(9, 14), answer_char_span=Span(three, three + 1),
        answer_token_span=Span(9, 10), body_token_span=Span(11, 14),
    )  # fmt: skip
    second = Needle(
        char_span=Span(twelve, twelve + 8), token_span=Span(2, 7), answer_char_span=Span(twelve, twelve + 2),
        answer_token_span=Span(2, 4), body_token_span=Span(5, 7),
    )  # fmt: skip
    return dataclasses.replace(
        base,
        prompt=TEXT,
        prompt_ids=PROMPT_IDS,
        answer_ids=(10, 3, 11, 12, 10, 1, 2, 11),
        answer=" [3], [12]",
        answers=("[3], [12]",),
        needles=(first, second),
        metadata={"cites": True, "num_documents": 12},
    )


def test_numbers_and_their_rows() -> None:
    assert cited_rows((10, 3, 11, 12, 10, 1, 2, 11, 10, 3), decode) == {3: range(1, 2), 12: range(5, 7)}
    assert cited_rows((13, 13), decode) == {}


@pytest.mark.parametrize(
    ("row", "citation", "insight"),
    [
        ([0, 9, 0, 0, 0, 2, 3, 0], 1.0, 0.0),  # every number from its own place
        ([0, 9, 0, 0, 0, 3, 2, 0], 1 / 3, 0.0),  # digits of 12 at the wrong offsets
        ([0, 2, 0, 0, 0, 9, 3, 0], 1 / 3, 0.0),  # another document's number
        ([0, 12, 0, 0, 0, 5, 0, 0], 0.0, 1.0),  # both bodies
        ([0, 5, 0, 0, 0, 2, 6, 0], 1 / 3, 0.5),  # 3 from the other's body; 12 half copied, then its own body
        ([9, 0, 9, 9, 9, 0, 0, 9], 0.0, 0.0),  # rows of brackets do not count
    ],
)
def test_score_citations(row: list[int], citation: float, insight: float) -> None:
    example = citing_example()
    found = score_citations(np.array([[row]]), example.answer_ids, example, decode)
    assert (found[0].item(), found[1].item(), found[2]) == (pytest.approx(citation), pytest.approx(insight), "")


def test_decoded_answers_count_what_they_cite() -> None:
    example = citing_example()
    citation, insight, reason = score_citations(np.array([[[0, 9, 0]]]), (10, 3, 11), example, decode)
    assert (citation.item(), insight.item(), reason) == (pytest.approx(1 / 3), 0.0, "")
    citation, insight, reason = score_citations(np.array([[[0, 4, 0]]]), (10, 4, 11), example, decode)
    assert (citation.item(), reason) == (0.0, "")
    assert np.isnan(insight).all()


def test_numbers_in_other_tokens_are_unscored() -> None:
    example = dataclasses.replace(citing_example(), prompt_ids=(13, 10, 7, 7, *PROMPT_IDS[4:]))
    argmax = np.zeros((1, 2, 8), dtype=np.int64)
    citation, insight, reason = score_citations(argmax, example.answer_ids, example, decode)
    assert reason == OTHER_TOKENS
    assert np.isnan(citation).all()
    assert np.isnan(insight).all()


@pytest.mark.parametrize("mode", ["teacher_forced", "decode"])
def test_the_planted_head_copies_the_number_and_files_keep_what_was_found(mode: str, tmp_path: Path) -> None:
    """Ids 10, 11 and 12 of the planted model are read as the digits 1, 2 and 3: the answer cites document 123."""
    loaded, base = planted_model(), planted_example(0)
    (needle,) = base.needles
    place = needle.answer_token_span
    number = dataclasses.replace(
        needle, char_span=Span(0, 5), answer_char_span=Span(0, 3), token_span=place,
        body_token_span=Span(needle.token_span.start, place.start),
    )  # fmt: skip
    names = {f"w{token}": token for token in range(3, 50) if token not in (10, 11, 12)}
    backend = Tokenizer(WordLevel({"<pad>": 0, "<s>": 1, "</s>": 2, "1": 10, "2": 11, "3": 12, **names}, "<pad>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>")
    example = dataclasses.replace(base, prompt="123 x", needles=(number,), metadata={"cites": True})
    scores = detect(loaded.model, tokenizer, [example], mode=mode, max_new_tokens=3 if mode == "decode" else 0)
    np.testing.assert_array_equal(scores.score[0, 0], [1.0, 0.0, 0.0, 0.0])
    np.testing.assert_array_equal(scores.aligned, scores.score)
    assert not scores.further["insight"].any()
    save_scores(scores, tmp_path)
    np.testing.assert_array_equal(load_scores(tmp_path).further["insight"], scores.further["insight"])


def test_mass_by_hop_splits_the_needles() -> None:
    example = citing_example()
    hops = dataclasses.replace(example, metadata={})
    corrected = np.arange(2 * 3 * 10, dtype=np.float64).reshape(2, 3, 10)
    columns = [2, 3, 4, 5, 6, 9, 10, 11, 12, 13]
    found = mass_by_hop(corrected, columns, hops, False)
    np.testing.assert_array_equal(found["hop_1"], corrected[:, :, 5:].sum(axis=2))
    np.testing.assert_array_equal(found["hop_2"], corrected[:, :, :5].sum(axis=2))
    assert mass_by_hop(corrected, columns, example, False) == {}
    assert mass_by_hop(corrected, columns, dataclasses.replace(hops, needles=hops.needles[:1]), False) == {}


def test_attention_mass_by_hop_sums_to_the_score(tmp_path: Path) -> None:
    loaded = tiny_model("llama")
    ids = generator(0, "mass").integers(8, 50, 40).tolist()
    text = " ".join(f"w{token}" for token in [*ids, 7, 9])
    question = text[text.rindex("w7") :]
    (needle,) = random_example(generator(0, "hop"), 0).needles
    parts = [
        dataclasses.replace(needle, char_span=span, token_span=span, answer_token_span=Span(span.start, span.start + 1))
        for span in (Span(4, 9), Span(9, 16))
    ]
    joined = dataclasses.replace(needle, char_span=Span(4, 16), token_span=Span(4, 16), answer_token_span=Span(4, 5))
    base = dataclasses.replace(
        random_example(generator(0, "hop"), 0), prompt=text, question=question, prompt_ids=(*ids, 7, 9), answer_ids=(9,)
    )
    two = dataclasses.replace(base, example_id="two", needles=tuple(parts))
    one = dataclasses.replace(base, example_id="one", needles=(joined,))
    scores = detect(loaded.model, loaded.tokenizer, [two, one], mode="attention_mass")
    np.testing.assert_allclose(scores.further["hop_1"][0] + scores.further["hop_2"][0], scores.score[1], atol=1e-6)
    assert np.isnan(scores.further["hop_1"][1]).all()
    np.testing.assert_allclose(scores.mean_further("hop_1"), scores.further["hop_1"][0], atol=1e-12)
    heads = top_k_set(scores, 2)
    write_head_table(scores, heads, tmp_path / "heads.csv")
    header = (tmp_path / "heads.csv").read_text(encoding="utf-8").splitlines()[0]
    assert header.endswith("is_retrieval_head,hop_1_mean,hop_2_mean")
