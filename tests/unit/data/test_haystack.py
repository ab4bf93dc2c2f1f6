from __future__ import annotations

import dataclasses
from itertools import count, islice

import numpy as np
import pytest

from rhstudy.data.answers import gives_away, leak_forms, leak_text
from rhstudy.data.facts import Fact, Passage, UnbuildableRowError
from rhstudy.data.haystack import FillerHaystack, NeedleHaystack, PassageHaystack, PassagePool, SymbolHaystack, ngrams
from rhstudy.data.knobs import FILLER
from rhstudy.data.layout import document_text
from rhstudy.data.needles import symbolic_fact, templated_facts
from rhstudy.errors import InputError
from rhstudy.seeding import generator
from rhstudy.types import Span

GOLD = Passage("Old Harbour", "The old harbour of Velm was built by Ann Lee in 1300 for ships of salt.")
FACT = Fact(
    fact_id="f",
    question="who built the harbour of Velm",
    answers=("Ann Lee", "Lee"),
    passage=GOLD,
    answer_span=Span(37, 44),
    origin="real",
)
POOL = [
    Passage("Far", "Nothing at all in common."),
    Passage("Velm", "Velm has a harbour, a harbour and a harbour."),
    Passage("Leak", "The harbour of Velm: ann LEE."),
    Passage("Leak two", "Velm harbour of Mr. Lee-Smith."),
    Passage("The Lee", "Velm harbour."),
    Passage("old harbour!", "Another text on Velm."),
    GOLD,
    Passage("Copy", "Some say the old harbour of Velm was built by no one."),
    Passage("Tie A", "harbour wool"),
    Passage("Tie B", "harbour wool"),
    Passage("Far two", "Different things entirely."),
]


def titles(haystack: PassageHaystack, fact: Fact = FACT, name: str = "x") -> list[str]:
    return [passage.title for passage in haystack.distractors(fact, generator(0, name))]


def test_distractors_are_answer_free_title_disjoint_no_copies_and_on_topic_first() -> None:
    found = titles(PassageHaystack(PassagePool(POOL)))
    assert found[0] == "Velm"
    assert found[1:3] == ["Tie A", "Tie B"]
    assert sorted(found[3:]) == ["Far", "Far two"]


def test_held_out_passages_titles_and_copies_never_appear() -> None:
    held = Fact(
        fact_id="h",
        question="q",
        answers=("wool",),
        passage=Passage("Tie A", "unrelated"),
        answer_span=Span(0, 1),
        origin="real",
    )
    copied = Fact(
        fact_id="c",
        question="q",
        answers=("x",),
        passage=Passage("Elsewhere", "Nothing at all in common."),
        answer_span=Span(0, 1),
        origin="real",
    )
    assert set(titles(PassageHaystack(PassagePool(POOL), [held, copied]))) == {"Velm", "Tie B", "Far two"}


def test_passages_without_a_common_word_come_in_the_order_of_the_stream() -> None:
    many = PassagePool([Passage(f"P {number}", f"word{number} here") for number in range(40)])
    first, again, other = (titles(PassageHaystack(many), name=name) for name in ("a", "a", "b"))
    assert first == again != other
    assert sorted(first) == sorted(other)


def test_scores_agree_with_lucene_bm25_written_out() -> None:
    pool = PassagePool(POOL)
    docs = [f"{item.title} {item.text}".lower() for item in POOL]
    words = [[token.strip(".,:!") for token in doc.replace("-", " ").split()] for doc in docs]
    stop = {"the", "of", "a", "and", "at", "in", "on", "for", "was", "by", "no", "all"}
    kept = [[token for token in doc if len(token) > 1 and token not in stop] for doc in words]
    mean = np.mean([len(doc) for doc in kept])
    for index in (1, 8):
        expected = 0.0
        for query in ("built", "harbour", "velm"):
            containing = sum(query in doc for doc in kept)
            idf = np.log(1 + (len(kept) - containing + 0.5) / (containing + 0.5))
            count = kept[index].count(query)
            expected += idf * count / (count + 1.5 * (1 - 0.75 + 0.75 * len(kept[index]) / mean))
        assert pool.scores(FACT.question)[index] == pytest.approx(expected, abs=0.05)


def test_a_query_of_stop_words_or_unknown_words_scores_nothing() -> None:
    pool = PassagePool(POOL)
    assert not pool.scores("the of").any()
    assert not pool.scores("qqqq zzzz").any()


def test_no_passages() -> None:
    with pytest.raises(InputError, match=r"data\.passages_file must hold passages, got '<none>'|got <none>"):
        PassagePool([])


def test_ngrams_of_short_texts_are_the_text() -> None:
    assert ngrams("One two, three") == {"one two three"}
    assert len(ngrams("a b c d e f g h i")) == 2


def test_filler_repeats_and_refuses_answers_it_holds() -> None:
    first, second = islice(FillerHaystack(FILLER).distractors(FACT, generator(0)), 2)
    assert first == second
    assert first.text.startswith(f"{FILLER} {FILLER}")
    assert 75 <= len(first.text.split()) < 100
    green = Fact(fact_id="g", question="q", answers=("Green",), passage=GOLD, answer_span=Span(0, 3), origin="real")
    with pytest.raises(
        UnbuildableRowError, match=r"knobs\.filler must hold no answer, got <answers \['Green'\]> \(row g\)"
    ):
        next(FillerHaystack(FILLER).distractors(green, generator(0)))


def test_other_needles_share_neither_subject_nor_answer() -> None:
    make = templated_facts()
    fact = make(generator(0, "gold"), "g")
    found = list(islice(NeedleHaystack(make.passages).distractors(fact, generator(0, "h")), 200))
    assert len({passage.title for passage in found} | {fact.passage.title}) == 201
    assert not any(gives_away(passage.text, leak_forms(fact.answers)) for passage in found)


def test_symbol_lines_are_all_distinct() -> None:
    fact = symbolic_fact(generator(0, "gold"), "g")
    lines = list(islice(SymbolHaystack().distractors(fact, generator(0, "h")), 2000))
    words = [word for line in lines for word in line.text.split(" = ")]
    assert len(set(words) | {fact.answer, fact.passage.title}) == 4002


def test_needles_looked_at_together_are_those_looked_at_one_by_one() -> None:
    make = templated_facts()
    fact = dataclasses.replace(make(generator(0, "gold"), "g"), answers=("Smith", "1999", "Ann"))
    found = islice(NeedleHaystack(make.passages).distractors(fact, generator(0, "h")), 500)
    rng, titles = generator(0, "h"), {leak_text(fact.passage.title)}
    drawn_ones = (passage for _ in count() for passage in make.passages(rng, 32))
    for passage in found:
        while True:
            drawn = next(drawn_ones)
            title = leak_text(drawn.title)
            if title not in titles and not gives_away(document_text(drawn), leak_forms(fact.answers)):
                break
        titles.add(title)
        assert passage == drawn
