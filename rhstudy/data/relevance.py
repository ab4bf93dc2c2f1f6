"""Which knobs change the data of a task: a recipe is built from these alone, and its digest is made of these alone.

A knob that changes nothing is set to its default, and of values that mean the same one is taken. So two recipes of a
task have one digest exactly where they are built from equal knobs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from rhstudy.data.knobs import REAL, TEMPLATED, Knobs

MULTI_HOP = ("musique",)
CITING = ("summhay",)
CUES = ("cue_retrieval",)
LEAST_SHARE = 1e-9
"""Shares up to this are rounding and count as none."""
_NEEDLE_SHARES = {
    "rewritten": "rewritten_share",
    "templated_diverse": "templated_diverse_share",
    "templated": "templated_share",
    "symbolic": "symbolic_share",
}
_CONTEXT_SHARES = {
    "real": "passages_context_share",
    "templated": "templated_context_share",
    "repeated_on_topic": "on_topic_context_share",
    "repeated_filler": "filler_context_share",
}
_CONDITIONAL = (
    "filler", "num_relations", "num_templates", "entity_source", "lexical_overlap", "answer_words",
    "distractor_similarity", "hops",
)  # fmt: skip
_DIVERSE = ("templated_diverse", "rewritten")


def recipe_digest(knobs: Knobs, task: str) -> str:
    """SHA-256 of what of `knobs` changes the data of `task`."""
    return settled(knobs, task).digest


def settled(knobs: Knobs, task: str) -> Knobs:
    """`knobs` with everything at its default that changes no data of `task`; settled knobs stay as they are."""
    defaults: dict[str, Any] = {item.name: item.default for item in dataclasses.fields(Knobs)}
    if knobs.real_fraction == 1:
        return dataclasses.replace(REAL, name=knobs.name, distinct_share=knobs.distinct_share)
    levels: dict[str, Any] = {
        **_main("concept_expression", knobs.needle_shares, _NEEDLE_SHARES),
        **_main("context_diversity", knobs.context_shares, _CONTEXT_SHARES),
        "question_words": tuple(sorted({word.casefold() for word in knobs.question_words})),
        "row_labels": tuple(sorted(set(knobs.row_labels))),
        "filler": " ".join(knobs.filler.split()),
    }
    knobs = dataclasses.replace(knobs, **levels)
    used = _used(knobs, task)
    knobs = dataclasses.replace(knobs, **{name: defaults[name] for name in _CONDITIONAL if name not in used})
    return dataclasses.replace(knobs, **_equal_values(knobs, task))


def _main(name: str, shares: Mapping[Any, float], fields: Mapping[str, str]) -> dict[str, Any]:
    """The main level, which others may have displaced, and no share of its own beside it."""
    main = next(iter(shares))
    if shares[main] <= LEAST_SHARE:
        main = next(kind for kind in fields if shares.get(kind, 0.0) > LEAST_SHARE)
    return {name: main, **({fields[main]: 0.0} if main in fields else {})}


def _kinds(shares: Mapping[Any, float]) -> set[str]:
    return {kind for kind, share in shares.items() if share > LEAST_SHARE}


def _template_users(knobs: Knobs, task: str) -> set[str]:
    """The wordings in which templates are filled in: of needles, of the sentences around them, of look-alikes."""
    needles = _kinds(knobs.needle_shares)
    users = needles & set(TEMPLATED)
    if "templated" in _kinds(knobs.context_shares):
        invented = {"templated"} if knobs.concept_expression == "real" else {knobs.concept_expression}
        if task in CITING:
            users |= invented & set(TEMPLATED)
        elif knobs.concept_expression != "real" and needles != {"symbolic"}:
            users |= invented
    if knobs.num_hard_distractors and needles != {"symbolic"}:
        users.add(knobs.concept_expression)
    return users


def _used(knobs: Knobs, task: str) -> set[str]:
    """Names of `_CONDITIONAL` that change something."""
    needles, contexts = _kinds(knobs.needle_shares), _kinds(knobs.context_shares)
    drawn, users = needles & set(TEMPLATED), _template_users(knobs, task)
    citing, multi_hop = task in CITING, task in MULTI_HOP
    hard = bool(knobs.num_hard_distractors) and needles != {"symbolic"}
    # A look-alike has the needle's relation where that is known: not of real rows, insights and cues.
    any_relation = hard and (citing or task in CUES or "real" in needles)
    around = "templated" in contexts and knobs.concept_expression != "real" and needles != {"symbolic"} and not citing
    found = {
        "filler": "repeated_filler" in contexts,
        "distractor_similarity": "real" in contexts,
        "num_templates": bool(users),
        "entity_source": bool(users),
        "num_relations": around or any_relation or (bool(drawn) and not (citing or multi_hop)),
        "answer_words": around or hard or (bool(drawn | needles & {"symbolic"}) and not citing),
        "lexical_overlap": bool(drawn) and not (citing or multi_hop or task in CUES),
        "hops": multi_hop and bool(needles & {*TEMPLATED, "symbolic"}),
    }
    return {name for name, matters in found.items() if matters}


def _equal_values(knobs: Knobs, task: str) -> dict[str, Any]:
    """Values that mean what 0, the level's own, means."""
    users = _template_users(knobs, task)
    limits = {item.name: item.metadata.get("high") for item in dataclasses.fields(Knobs)}
    found: dict[str, Any] = {}
    if knobs.num_templates == 1 and users.isdisjoint(_DIVERSE):
        found["num_templates"] = 0
    if knobs.num_templates == limits["num_templates"] and users <= set(_DIVERSE):
        found["num_templates"] = 0
    if knobs.answer_words == 1 and not users:
        found["answer_words"] = 0
    return found
