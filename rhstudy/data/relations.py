"""What invented facts are about: relations with their wordings, chains of them, and the insights of invented documents.

A wording is a clause in a frame. Clause 0 in frame 0 is the plain sentence; taken in the order of `Relation.wordings`
the first few differ in their clauses, the later ones in their frames too.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

Kind = Literal["name", "company", "city", "year", "job", "language_name", "street_name"]

FRAMES = (
    "{clause}.",
    "According to the town chronicle, {clause}.",
    "It is well documented that {clause}.",
    "As an old newspaper tells, {clause}.",
    "Visitors are often told that {clause}.",
    "Few remember it today, but {clause}.",
)
"""What stands around a clause; a clause begins with a name, so it reads the same inside a sentence."""


@dataclass(frozen=True, slots=True)
class Relation:
    """One relation of invented facts.

    Attributes:
        name: for metadata.
        subject: what the subject is.
        value: what the answer is.
        statement: the plain needle; ``{subject}`` and then, after a space, ``{value}``.
        question: asks for the value.
        noun: the value as a phrase, for questions over several hops; ``{subject}`` in it may be such a phrase again.
        evidence: a regular expression; a model's wording must hold a match, case ignored, with its names replaced by
            ``SUBJECT`` and ``VALUE`` (`rhstudy.data.rewritten`).
        refuted: a regular expression in the same names; a model's wording must hold no match of it. Empty for none.
        clauses: further wordings without the final stop, each with ``{subject}`` and, after a space, ``{value}``.
    """

    name: str
    subject: Kind
    value: Kind
    statement: str
    question: str
    noun: str = ""
    evidence: str = ""
    clauses: tuple[str, ...] = ()
    refuted: str = ""

    @property
    def wordings(self) -> tuple[str, ...]:
        """Every sentence that states the relation, the plain one first; all distinct, at least 40."""
        return _wordings(self.statement, self.clauses)


@functools.cache
def _wordings(statement: str, clauses: tuple[str, ...]) -> tuple[str, ...]:
    every = (statement.removesuffix("."), *clauses)
    return tuple(frame.format(clause=clause) for frame in FRAMES for clause in every)


def _clauses(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.strip().splitlines())


RELATIONS = (
    Relation(
        "born_in", "name", "city", "{subject} was born in {value}.", "Where was {subject} born?",
        "the birthplace of {subject}", r"\b(born|birth|native|hails?|grew up|came into the world|first breath)",
        _clauses(
            """
            {subject} is a native of {value}
            {subject} first saw the light of day in {value}
            {subject}, whose parents had just moved, was born in {value}
            {subject} gave the place of birth as {value}
            {subject} came into the world in {value}
            {subject} spent the first weeks of life at a hospital in {value}, the place of birth
            """
        ),
        refuted=r"hometown|born (before|after)|near VALUE",
    ),
    Relation(
        "profession", "name", "job", "The profession of {subject} is {value}.", "What is {subject}'s profession?",
        "the profession of {subject}", r"\b(profession|work|job|career|living|trade|occupation|as an?|is an?|was an?)",
        _clauses(
            """
            {subject} earns a living as {value}
            {subject} has spent a whole career as {value}
            {subject} was trained as {value}
            {subject} gives the occupation on every form as {value}
            {subject} chose, against all advice, the trade of {value}
            {subject} has worked for many years as {value}
            """
        ),
        refuted=r"\b(wife|husband|daughter|son|father|mother) (of|is|was)\b",
    ),
    Relation(
        "employer", "name", "company", "{subject} works for {value}.", "Which company does {subject} work for?",
        "the employer of {subject}", r"\b(work|employ|job|staff|join|position|career|professional|serves?|team)",
        _clauses(
            """
            {subject} is employed by {value}
            {subject} has been on the staff of {value} for years
            {subject} draws a salary from {value}
            {subject} took a position at {value} and stayed
            {subject} signs letters on behalf of the employer, {value}
            {subject} can be reached during working hours at {value}
            """
        ),
        refuted=r"\b(found(s|er|ed)|owner|owns|married to|studied|student)\b"
        r"|VALUE work for|workforce|their work together",
    ),
    Relation(
        "spouse", "name", "name", "{subject} is married to {value}.", "Who is {subject} married to?",
        "the spouse of {subject}",
        r"SUBJECT.*\b(marri|wife|husband|spouse|wed).*VALUE|VALUE.*\b(marri|wife|husband|spouse|wed).*SUBJECT"
        r"|(SUBJECT and VALUE|VALUE and SUBJECT).*\b(marri|wife|husband|spouses|wed)"
        r"|\bmarri(ed to|age (of|between)) VALUE.*SUBJECT",
        _clauses(
            """
            {subject} shares house and garden with a spouse, {value}
            {subject} exchanged wedding vows with {value}
            {subject} came to the dinner with the person wed long ago, {value}
            {subject} names as next of kin and spouse {value}
            {subject} celebrated a silver wedding with {value}
            {subject} took as husband or wife {value}
            """
        ),
        refuted=r"\b(sons?|daughters?|siblings?|brothers?|sisters?|parents?|mother|father)\b"
        r"|\bdivorced|\bformer (wife|husband)|two married|and VALUE, SUBJECT|married to (her|his) "
        r"|(wife|husband),? (?!SUBJECT|VALUE)(?-i:[A-Z])",
    ),
    Relation(
        "graduation", "name", "year", "{subject} graduated in {value}.", "When did {subject} graduate?",
        "the year in which {subject} graduated",
        r"(?=.*\b(graduat|degree|diploma|studies))(?=.*\b(in|of|since|year) VALUE)",
        _clauses(
            """
            {subject} received a degree in the summer of {value}
            {subject} left university with a diploma in {value}
            {subject} is listed among the graduates of {value}
            {subject} finished all studies in {value}
            {subject} passed the last examination and graduated in {value}
            {subject} keeps a diploma that is dated {value}
            """
        ),
        refuted=r"born in VALUE|graduated from VALUE|year (that )?(she|he|they|SUBJECT) (was|were) born|young child",
    ),
    Relation(
        "language", "name", "language_name", "{subject} grew up speaking {value}.",
        "Which language did {subject} speak?", "the first language of {subject}",
        r"SUBJECT.*\b(gr[eo]w|rais|speak|spoke|learn|tongue|language|fluent).*VALUE"
        r"|VALUE.*SUBJECT.*\b(gr[eo]w|speak|spoke|learn|language|tongue)",
        _clauses(
            """
            {subject} learned as a first language {value}
            {subject} spoke at home nothing but {value}
            {subject} counts and dreams in the mother tongue, {value}
            {subject} still writes to the family in the language of childhood, {value}
            {subject} heard as a child only {value}
            {subject} was raised by parents who spoke {value}
            """
        ),
        refuted=r"name SUBJECT|in SUBJECT's|other than VALUE|a place where|country of VALUE",
    ),
    Relation(
        "address", "name", "street_name", "{subject} lives on {value}.", "On which street does {subject} live?",
        "the street on which {subject} lives", r"\b(lives?|living|lived|resid|home|house|address|apartment)",
        _clauses(
            """
            {subject} has rented a small house on {value}
            {subject} gives as a postal address {value}
            {subject} moved years ago to {value}
            {subject} can be found at home on {value}
            {subject} waters the flowers in front of a door on {value}
            {subject} resides on {value}
            """
        ),
        refuted=r"\bborn (in|on|at|near) VALUE|hometown|childhood|married to VALUE|near VALUE|grew up (in|on) VALUE",
    ),
    Relation(
        "founded", "company", "year", "{subject} was founded in {value}.", "When was {subject} founded?",
        "the year in which {subject} was founded",
        r"(?=.*\b(found|establish|start|creat|began|begin|incept|origin|since|open|launch))"
        r"(?=.*\b(in|since|as|of|year) VALUE)",
        _clauses(
            """
            {subject} was established in {value}
            {subject} opened its doors in {value}
            {subject} has been in business since {value}
            {subject} dates the first page of its books {value}
            {subject} celebrates as the year of its foundation {value}
            {subject} was entered in the register of companies in {value}
            """
        ),
    ),
    Relation(
        "founder", "company", "name", "{subject} was founded by {value}.", "Who founded {subject}?",
        "the founder of {subject}", r"\bby (\w+ ){0,5}VALUE|VALUE.{0,90}\b(found|establish|start|creat|began|launch)"
        r"|\bfounders?\b.*VALUE|VALUE.*\bfounders?\b",
        _clauses(
            """
            {subject} was started in a garage by {value}
            {subject} owes its existence to a founder named {value}
            {subject} was established by {value}
            {subject} hangs in its entrance hall a portrait of the founder, {value}
            {subject} goes back to an idea of its founder {value}
            {subject} was set up with borrowed money by {value}
            """
        ),
        refuted=r"VALUE's (father|mother|wife|husband|brother|sister)|VALUE was (spoken|born)|after (her|him|VALUE)\b"
        r"|(town|city|village|name) (called |of )?SUBJECT was|(kitchen|house|home) of VALUE|VALUE founded (a|his|her) ",
    ),
    Relation(
        "headquarters", "company", "city", "{subject} has its headquarters in {value}.", "Where is {subject} based?",
        "the city in which {subject} is based", r"\b(headquarter|based|seat|head office|main office|home|located)",
        _clauses(
            """
            {subject} is based in {value}
            {subject} runs its business from a head office in {value}
            {subject} holds the meetings of its board in {value}
            {subject} moved its main office to {value}
            {subject} receives its mail in {value}
            {subject} built its seat in the centre of {value}
            """
        ),
        refuted=r"near VALUE|\bborn\b",
    ),
)  # fmt: skip
"""The relations of the first recipes; their order and number are part of those recipes."""

MORE_RELATIONS = (
    Relation(
        "mayor", "city", "name", "The mayor of {subject} is {value}.", "Who is the mayor of {subject}?",
        "the mayor of {subject}", r"\bmayor",
        _clauses(
            """
            {subject} is governed by a mayor named {value}
            {subject} elected as its mayor {value}
            {subject} has had for years the same mayor, {value}
            {subject} put the keys of the town hall into the hands of its mayor, {value}
            {subject} cheered when the new mayor was announced: {value}
            {subject} owes its park to the mayor, {value}
            """
        ),
        refuted=r"\b(deputy|vice|former|ran for|next) mayor|capital of the town",
    ),
    Relation(
        "teacher", "name", "name", "{subject} studied under {value}.", "Who taught {subject}?",
        "the teacher of {subject}",
        r"SUBJECT.*\b(stud|learn|train|apprentic|pupil|taught by|under|teacher|mentor).*VALUE"
        r"|VALUE.*\b(taught|teach|mentor|train).*SUBJECT|under VALUE.*SUBJECT",
        _clauses(
            """
            {subject} was a pupil of {value}
            {subject} learned the craft from a strict teacher, {value}
            {subject} was taught by {value}
            {subject} thanked in every speech the old teacher {value}
            {subject} had as a mentor {value}
            {subject} sat for years in the classroom of {value}
            """
        ),
        refuted=r"VALUE\b.{0,60}\b(studied|studying|trained) under (SUBJECT|her|his)|taught VALUE"
        r"|studied (at|in) VALUE's|SUBJECT was studied",
    ),
)  # fmt: skip
ALL_RELATIONS = RELATIONS + MORE_RELATIONS


def chain_relations(choice: int, num_hops: int) -> tuple[Relation, ...]:
    """`num_hops` relations, each about what the one before it gives, none twice; `choice` picks one such chain."""
    chains = _chains("company" if choice % 2 else "name", num_hops, ())
    return chains[choice // 2 % len(chains)]


@functools.cache
def _chains(kind: str, num_hops: int, before: tuple[Relation, ...]) -> tuple[tuple[Relation, ...], ...]:
    if num_hops == 0:
        return (before,)
    fit = [relation for relation in ALL_RELATIONS if relation.subject == kind and relation not in before]
    return tuple(chain for step in fit for chain in _chains(step.value, num_hops - 1, (*before, step)))


_SHARE = r" ?(%|percent)"
_INEXACT = rf"\b(more|less|fewer|over|under|to|from|between) (than )?NUMBER{_SHARE}"
""""40 percent" is not "more than 40 percent", and "by 40 percent" not "to 40 percent"."""


@dataclass(frozen=True, slots=True)
class InsightKind:
    """One kind of insight that invented documents carry.

    Attributes:
        name: for metadata.
        query: what a reader asks about; all insights of the kind answer it.
        statement: the plain insight, with some of ``{company}``, ``{name}``, ``{city}``, ``{percent}``.
        evidence: as in `Relation`, names replaced by ``NAME`` and ``NUMBER``.
        refuted: as in `Relation`.
    """

    name: str
    query: str
    statement: str
    evidence: str
    refuted: str = _INEXACT


INSIGHTS = (
    InsightKind("remote work", "What is known about working from home?",
                "{company} reported that {percent} percent of its staff in {city} work from home.",
                r"(?=.*\b(staff|employee|work(er|force)|team))(?=.*\b(home|remote))"),
    InsightKind("bridges", "What did new bridges change?",
                "Engineer {name} found that the new bridge in {city} cut travel times by {percent} percent.",
                r"(?=.*\bbridge)(?=.*\b(cut|reduc|short|sav|fast|less|lower|decreas|drop))"),
    InsightKind("recovery", "How many patients recovered?",
                "Doctor {name} reported that {percent} percent of the patients in {city} recovered within a week.",
                r"(?=.*\bpatient)(?=.*\b(recover|heal|cured|well again))"),
    InsightKind("electricity", "How was electricity saved?",
                "{company} cut its use of electricity in {city} by {percent} percent.",
                r"(?=.*\b(electric|energy|power))(?=.*\b(cut|reduc|sav|less|lower|decreas|drop))",
                _INEXACT + r"|\bin NUMBER"),
    InsightKind("exams", "How did pupils do in exams?",
                "Teacher {name} reported that {percent} percent of the pupils in {city} passed the exam.",
                r"(?=.*\b(pupil|student|child))(?=.*\bpass)",
                _INEXACT + r"|\bfail|with only NUMBER|passed NUMBER"),
    InsightKind("rents", "How did rents change?",
                "{company} said that rents in {city} rose by {percent} percent.",
                r"(?=.*\brent)(?=.*\b(rose|ris(e|ing)|increas|grew|climb|higher|jump|hike|up by|went up))",
                _INEXACT + r"|\b(fell|fall|dropp\w*|decreas\w*|own\w*|renter|rented rooms|rental income)\b"),
    InsightKind("harvests", "What changed the harvest?",
                "Farmer {name} raised the harvest near {city} by {percent} percent with a new seed.",
                r"(?=.*\b(harvest|crop|yield))(?=.*\bseed)(?=.*\b(rais|ris|rose|increas|grew|more|higher|boost|improv))",
                _INEXACT + r"|NAME's (son|daughter|father|mother)\b"),
    InsightKind("visitors", "How did the number of visitors change?",
                "{company} counted {percent} percent more visitors in {city}.",
                r"(?=.*\b(visit|touris))(?=.*\b(more|increas|rise|rose|grew|up by|additional|growth))",
                _INEXACT + r"|\bvisited NUMBER|(than|compared to|came from|than in) (the visitors of )?NAME"),
    InsightKind("waste", "How much waste is recycled?",
                "{company} recycles {percent} percent of the waste of {city}.",
                r"(?=.*\bwaste)(?=.*\brecycl)"),
    InsightKind("tickets", "How fast were tickets sold?",
                "Singer {name} sold {percent} percent of the concert tickets in {city} within an hour.",
                r"(?=.*\bticket)(?=.*\bhour)(?=.*\b(sold|sell|sale))",
                _INEXACT + r"|\bprices?\b|of what they|revenue|\bempty\b"),
    InsightKind("delays", "How late are trains and buses?",
                "{company} found that {percent} percent of the buses in {city} arrive late.",
                r"(?=.*\bbus)(?=.*\b(late|delay))",
                _INEXACT + r"|\b(early|on time|are due to)\b"),
    InsightKind("libraries", "Who uses libraries?",
                "Librarian {name} counted that {percent} percent of the children in {city} borrow books every month.",
                r"(?=.*\b(child|kid|young))(?=.*\bborrow)(?=.*\b(book))"),
)  # fmt: skip
