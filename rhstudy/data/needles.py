"""Invented facts: templated sentences about people and companies (Faker), and symbolic ``key = value`` lines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from rhstudy.data.answers import gives_away, leak_forms
from rhstudy.data.facts import Fact, Passage
from rhstudy.errors import StudyError, message
from rhstudy.types import Span

LOCALE = "en_US"
MAX_DRAWS = 100


@dataclass(frozen=True, slots=True)
class Relation:
    """One relation of templated needles, in one wording.

    Attributes:
        name: for metadata.
        subject: Faker provider of the subject.
        value: Faker provider of the answer.
        statement: the needle; ``{subject}`` and then, after a space, ``{value}``.
        question: asks for the value.
    """

    name: str
    subject: Literal["name", "company"]
    value: str
    statement: str
    question: str


RELATIONS = (
    Relation("born_in", "name", "city", "{subject} was born in {value}.", "Where was {subject} born?"),
    Relation("profession", "name", "job", "The profession of {subject} is {value}.", "What is {subject}'s profession?"),
    Relation("employer", "name", "company", "{subject} works for {value}.", "Which company does {subject} work for?"),
    Relation("spouse", "name", "name", "{subject} is married to {value}.", "Who is {subject} married to?"),
    Relation("graduation", "name", "year", "{subject} graduated in {value}.", "When did {subject} graduate?"),
    Relation(
        "language",
        "name",
        "language_name",
        "{subject} grew up speaking {value}.",
        "Which language did {subject} speak?",
    ),
    Relation("address", "name", "street_name", "{subject} lives on {value}.", "On which street does {subject} live?"),
    Relation("founded", "company", "year", "{subject} was founded in {value}.", "When was {subject} founded?"),
    Relation("founder", "company", "name", "{subject} was founded by {value}.", "Who founded {subject}?"),
    Relation(
        "headquarters", "company", "city", "{subject} has its headquarters in {value}.", "Where is {subject} based?"
    ),
)


@runtime_checkable
class FactMaker(Protocol):
    """Draws invented facts; equal streams give equal facts."""

    def __call__(self, rng: np.random.Generator, fact_id: str) -> Fact:
        """One fact from the stream `rng`."""


def templated_facts() -> FactMaker:
    """A maker of templated facts: a relation at random, subject and value from Faker (locale en_US).

    The value never occurs in the question or in the subject. Faker's word lists change between versions, so the data
    card records the version.
    """
    from faker import Faker

    fake = Faker(LOCALE)
    providers: dict[str, Callable[[], str]] = {
        "job": lambda: _plain_job(fake.job),
        **{name: getattr(fake, name) for name in ("name", "company", "city", "year", "language_name", "street_name")},
    }

    def make(rng: np.random.Generator, fact_id: str) -> Fact:
        fake.seed_instance(int(rng.integers(2**63)))
        relation = RELATIONS[int(rng.integers(len(RELATIONS)))]
        for _ in range(MAX_DRAWS):
            subject, value = providers[relation.subject](), providers[relation.value]()
            question = relation.question.format(subject=subject)
            if not gives_away(question, leak_forms([value])):
                return _state(relation.statement, subject, value, question, fact_id)
        must = f"differ from its subject within {MAX_DRAWS} draws"
        raise StudyError(message(f"templated {relation.name}", must, value, "Report this defect"))

    return make


def _plain_job(draw: Callable[[], Any]) -> str:
    """A job as running text spells it; Faker also has "Engineer, civil (consulting)"."""
    for _ in range(MAX_DRAWS):
        job = str(draw())
        if job.replace(" ", "").isalpha():
            return job[0].lower() + job[1:]
    raise StudyError(message("templated profession", f"be plain within {MAX_DRAWS} draws", job, "Report this defect"))


def _state(statement: str, subject: str, value: str, question: str, fact_id: str) -> Fact:
    start = statement.format(subject=subject, value="\x00").index("\x00")
    return Fact(
        fact_id=fact_id,
        question=question,
        answers=(value,),
        passage=Passage(subject, statement.format(subject=subject, value=value)),
        answer_span=Span(start, start + len(value)),
        origin="templated",
    )


_CONSONANTS = np.array(list("bdfgklmnprstvz"))
_VOWELS = np.array(list("aeiou"))


def symbols(rng: np.random.Generator, count: int) -> list[str]:
    """`count` random words of the shape consonant-vowel-consonant-vowel-consonant plus two digits, ``kavot38``.

    About 7 million exist, so repeats within a prompt are rare and are dropped by whoever needs distinct ones. A word
    is only ever written after a space or at the start of a line, so its tokens are the same wherever it stands.
    """
    letters = np.stack(
        [rng.choice(_VOWELS if position % 2 else _CONSONANTS, size=count) for position in range(5)],
        axis=1,
    )
    digits = rng.integers(10, 100, size=count)
    return ["".join(row) + str(number) for row, number in zip(letters.tolist(), digits.tolist(), strict=True)]


def key_value(key: str, value: str) -> Passage:
    """The line ``key = value``, titled by its key."""
    return Passage(key, f"{key} = {value}")


def symbolic_fact(rng: np.random.Generator, fact_id: str) -> Fact:
    """A symbolic fact: a random key and a random value, and the question for the key's value."""
    key, value = symbols(rng, 2)
    while value == key:
        (value,) = symbols(rng, 1)
    line = key_value(key, value)
    return Fact(
        fact_id=fact_id,
        question=f"What is the value of {key}?",
        answers=(value,),
        passage=line,
        answer_span=Span(len(line.text) - len(value), len(line.text)),
        origin="symbolic",
    )
