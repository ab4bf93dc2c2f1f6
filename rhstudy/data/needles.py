"""Invented facts: templated sentences about people and companies, chains of them, symbolic ``key = value`` lines."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from rhstudy.data.answers import gives_away, leak_forms, leak_text, may_give_away
from rhstudy.data.entities import MAX_DRAWS, Entities, EntitySource
from rhstudy.data.facts import Fact, Gold, Origin, Passage
from rhstudy.data.relations import ALL_RELATIONS, RELATIONS, Kind, Relation, chain_relations
from rhstudy.errors import StudyError, message
from rhstudy.types import Span

HOPS = (2, 2, 3, 3, 4)
"""Hops of invented chains are drawn from this list."""
_ASKED: dict[Kind, str] = {
    "name": "whom",
    "company": "which company",
    "city": "which place",
    "year": "which year",
    "job": "which profession",
    "language_name": "which language",
    "street_name": "which street",
}


@runtime_checkable
class FactMaker(Protocol):
    """Draws invented facts; equal streams give equal facts."""

    def __call__(self, rng: np.random.Generator, fact_id: str) -> Fact:
        """One fact from the stream `rng`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Templates:
    """How templated facts are worded; see the knobs of the same names.

    Attributes:
        origin: ``templated`` or ``templated_diverse``.
        num_relations: relations drawn from, the first so many.
        num_templates: wordings a relation, the first so many.
        entity_source: where names come from.
        lexical_overlap: share of questions that repeat the needle's words around the gap.
        answer_words: words of the answer, as near as names give them; 0 takes what comes.
    """

    origin: Origin = "templated"
    num_relations: int = len(RELATIONS)
    num_templates: int = 1
    entity_source: EntitySource = "faker"
    lexical_overlap: float = 0.0
    answer_words: int = 0


class TemplatedFacts:
    """A maker of templated facts: a relation at random, subject and value from a source of names.

    The value never occurs in the question or in the subject.

    Args:
        templates: wordings and names.
    """

    def __init__(self, templates: Templates = Templates()) -> None:
        self._templates, self._entities = templates, Entities(templates.entity_source)
        self._relations = ALL_RELATIONS[: templates.num_relations]

    def __call__(self, rng: np.random.Generator, fact_id: str) -> Fact:
        """One fact."""
        return self._fact(self._relation(rng), rng, fact_id)

    def passages(self, rng: np.random.Generator, count: int) -> list[Passage]:
        """The passages of `count` facts that nobody asks for, all from the next number of the stream `rng`."""
        self._entities.reseed(rng)
        relations = rng.integers(len(self._relations), size=count).tolist()
        return [self._passage(self._relations[number], rng) for number in relations]

    def _passage(self, relation: Relation, rng: np.random.Generator) -> Passage:
        for _ in range(MAX_DRAWS):
            subject, value = self._entities.draw(relation.subject), self._value(relation.value)
            if not _holds(subject, value):
                return Passage(subject, self._wording(relation, rng).format(subject=subject, value=value))
        raise _like_its_subject(relation, value)

    def _relation(self, rng: np.random.Generator) -> Relation:
        self._entities.reseed(rng)
        return self._relations[int(rng.integers(len(self._relations)))]

    def similar(self, fact: Fact, rng: np.random.Generator) -> Fact:
        """A fact of the relation that `fact` states (its label), about somebody else; any relation without a label."""
        known = {relation.name: relation for relation in ALL_RELATIONS}
        relation = next((known[label] for label in fact.labels if label in known), None)
        if relation is None:
            return self(rng, "distractor")
        self._entities.reseed(rng)
        return self._fact(relation, rng, "distractor")

    def _fact(self, relation: Relation, rng: np.random.Generator, fact_id: str) -> Fact:
        return self._state(relation, *self._drawn(relation, rng), fact_id)

    def _drawn(self, relation: Relation, rng: np.random.Generator) -> tuple[str, tuple[str, str], str]:
        """A wording of the relation, subject and value, and the question."""
        for _ in range(MAX_DRAWS):
            subject, value = self._entities.draw(relation.subject), self._value(relation.value)
            wording = self._wording(relation, rng)
            question = self._question(relation, wording, subject, rng)
            if not _holds(question, value):
                return wording, (subject, value), question
        raise _like_its_subject(relation, value)

    def _wording(self, relation: Relation, rng: np.random.Generator) -> str:
        count = min(self._templates.num_templates, len(relation.wordings))
        return relation.wordings[int(rng.integers(count))] if count > 1 else relation.statement

    def _question(self, relation: Relation, wording: str, subject: str, rng: np.random.Generator) -> str:
        if self._templates.lexical_overlap and float(rng.random()) < self._templates.lexical_overlap:
            return wording.format(subject=subject, value=_ASKED[relation.value]).removesuffix(".") + "?"
        return relation.question.format(subject=subject)

    def _value(self, kind: Kind) -> str:
        return self._entities.draw(kind, self._templates.answer_words)

    def _state(self, relation: Relation, wording: str, names: tuple[str, str], question: str, fact_id: str) -> Fact:
        gold = _stated(wording, *names)
        return Fact(
            fact_id=fact_id,
            question=question,
            answers=(names[1],),
            passage=gold.passage,
            answer_span=gold.answer_span or Span(0, 0),
            origin=self._templates.origin,
            labels=(relation.name,),
        )

    def chain(self, rng: np.random.Generator, fact_id: str, num_hops: int = 0) -> Fact:
        """A fact over several hops: each needle's answer is the next one's subject, the last answer is asked for.

        Args:
            rng: the fact's stream.
            fact_id: its id.
            num_hops: 0 draws from `HOPS`.
        """
        self._entities.reseed(rng)
        hops = num_hops or HOPS[int(rng.integers(len(HOPS)))]
        relations = chain_relations(int(rng.integers(2**31)), hops)
        names = [self._entities.draw(relations[0].subject)]
        for relation in relations:
            names.append(self._apart(relation.value, names))
        golds = [
            _stated(self._wording(relation, rng), subject, value)
            for relation, subject, value in zip(relations, names, names[1:], strict=False)
        ]
        return chained(relations, names[0], golds, fact_id, self._templates.origin)

    def _apart(self, kind: Kind, names: Sequence[str]) -> str:
        """A value that shares no word with `names`."""
        words = {word for name in names for word in leak_text(name).split()}
        for _ in range(MAX_DRAWS):
            value = self._value(kind)
            if words.isdisjoint(leak_text(value).split()):
                return value
        must = f"differ from the chain's names within {MAX_DRAWS} draws"
        raise StudyError(message(f"invented {kind}", must, value, "Report this defect"))


def _holds(text: str, value: str) -> bool:
    return may_give_away(text, value) and gives_away(text, leak_forms([value]))


def _like_its_subject(relation: Relation, value: str) -> StudyError:
    must = f"differ from its subject within {MAX_DRAWS} draws"
    return StudyError(message(f"templated {relation.name}", must, value, "Report this defect"))


def _stated(wording: str, subject: str, value: str) -> Gold:
    before, _, after = wording.partition("{value}")
    before = before.format(subject=subject)
    text = f"{before}{value}{after.format(subject=subject)}"
    return Gold(Passage(subject, text), Span(len(before), len(before) + len(value)))


def chained(relations: Sequence[Relation], subject: str, golds: Sequence[Gold], fact_id: str, origin: Origin) -> Fact:
    """The question over several hops and its needles.

    Args:
        relations: of the hops, in order.
        subject: of the first hop.
        golds: the needles with their answers, one a hop.
        fact_id: its id.
        origin: who worded the needles.
    """
    asked = subject
    for relation in relations[:-1]:
        asked = relation.noun.format(subject=asked)
    last = golds[-1]
    return Fact(
        fact_id=fact_id,
        question=relations[-1].question.format(subject=asked),
        answers=(last.answer,),
        passage=last.passage,
        answer_span=last.answer_span or Span(0, 0),
        origin=origin,
        further=tuple(golds[:-1]),
        labels=tuple(relation.name for relation in relations),
    )


def templated_facts() -> FactMaker:
    """A maker of templated facts in one wording a relation, names from Faker (locale en_US)."""
    return TemplatedFacts()


_CONSONANTS = np.array(list("bdfgklmnprstvz"))
_VOWELS = np.array(list("aeiou"))
_SHAPE = (_CONSONANTS, _VOWELS, _CONSONANTS, _VOWELS, _CONSONANTS)


def symbols(rng: np.random.Generator, count: int) -> list[str]:
    """`count` random words of the shape consonant-vowel-consonant-vowel-consonant plus two digits, ``kavot38``.

    About 7 million exist, so repeats within a prompt are rare and are dropped by whoever needs distinct ones. A word
    is only ever written after a space or at the start of a line, so its tokens are the same wherever it stands.
    """
    letters = np.stack(
        [letters[rng.integers(0, len(letters), size=count)] for letters in _SHAPE],
        axis=1,
    )
    digits = rng.integers(10, 100, size=count)
    return ["".join(row) + str(number) for row, number in zip(letters.tolist(), digits.tolist(), strict=True)]


def key_value(key: str, value: str) -> Passage:
    """The line ``key = value``, titled by its key."""
    return Passage(key, f"{key} = {value}")


def symbolic_fact(rng: np.random.Generator, fact_id: str) -> Fact:
    """A symbolic fact: a random key and a random value, and the question for the key's value."""
    return symbolic_chain(rng, fact_id, 1)


def symbolic_chain(rng: np.random.Generator, fact_id: str, num_hops: int = 0, answer_words: int = 0) -> Fact:
    """Chained keys: each value is the next line's key, and the last value is asked for.

    Args:
        rng: the fact's stream.
        fact_id: its id.
        num_hops: lines; 0 draws from `HOPS`.
        answer_words: words of the last value; 0 is 1.
    """
    hops = num_hops or HOPS[int(rng.integers(len(HOPS)))]
    count = hops + max(answer_words, 1)
    words = symbols(rng, count)
    while len(set(words)) < count:
        words = [words[0], *symbols(rng, count - 1)]
    keys, value = words[:hops], " ".join(words[hops:])
    lines = [key_value(key, after) for key, after in zip(keys, [*keys[1:], value], strict=True)]
    golds = [Gold(line, Span(len(line.title) + 3, len(line.text))) for line in lines]
    last = golds[-1]
    return Fact(
        fact_id=fact_id,
        question=f"What is {'the value of ' * hops}{keys[0]}?",
        answers=(last.answer,),
        passage=last.passage,
        answer_span=last.answer_span or Span(0, 0),
        origin="symbolic",
        further=tuple(golds[:-1]),
    )


def near_key(fact: Fact, rng: np.random.Generator) -> Passage:
    """A line whose key differs from that of `fact` in one letter, with a value of its own."""
    key = fact.passage.title
    place = int(rng.integers(5))
    letters = [letter for letter in (_VOWELS if place % 2 else _CONSONANTS).tolist() if letter != key[place]]
    other = key[:place] + letters[int(rng.integers(len(letters)))] + key[place + 1 :]
    return key_value(other, symbols(rng, 1)[0])


def with_draw(fact: Fact, draw: int) -> Fact:
    """`fact` used for the `draw`-th time after the first."""
    return dataclasses.replace(fact, draw=draw)
