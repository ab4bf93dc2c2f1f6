"""A recipe's digest for a task goes with its data: knobs that change none of them change no digest."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from drawn_knobs import values_of
from hypothesis import given, settings
from hypothesis import strategies as st
from task_worlds import musique_row, topic, write_passages, write_rows

from rhstudy.data import recipes
from rhstudy.data.config import DataConfig
from rhstudy.data.corpus import Corpus, load_corpus
from rhstudy.data.knobs import PRESETS, Knobs, preset, search_space
from rhstudy.data.recipes import open_recipe
from rhstudy.data.relevance import recipe_digest, settled
from rhstudy.data.tasks.registry import TASKS
from rhstudy.errors import InputError

SPACE = {item.name: item for item in search_space()}
BASES: dict[str, dict[str, Any]] = {
    "real": {},
    "real in templated": {"context_diversity": "templated"},
    "real, on topic": {"context_diversity": "repeated_on_topic"},
    "templated": {"concept_expression": "templated"},
    "templated in filler": {"concept_expression": "templated", "context_diversity": "repeated_filler"},
    "diverse in templated": {"concept_expression": "templated_diverse", "context_diversity": "templated"},
    "symbolic": {"concept_expression": "symbolic", "context_diversity": "templated"},
    "symbolic in passages": {"concept_expression": "symbolic"},
    "rewritten": {"concept_expression": "rewritten"},
    "rewritten in templated": {"concept_expression": "rewritten", "context_diversity": "templated"},
    "mixed": {"concept_expression": "symbolic", "templated_share": 0.5, "filler_context_share": 0.5},
    "look-alikes": {"concept_expression": "templated", "num_hard_distractors": 3},
}
CHANGES: dict[str, Any] = {
    "num_relations": 3, "num_templates": 5, "entity_source": "nonce", "lexical_overlap": 1.0, "answer_words": 3,
    "distractor_similarity": 0.0, "hops": 3, "filler": "It rains. " * 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory, world: dict[str, str]) -> dict[str, Corpus]:
    folder = tmp_path_factory.mktemp("corpora")
    passages = write_passages(folder / "passages.jsonl", 60)
    musique = write_rows(folder / "rows.jsonl", [musique_row(number) for number in range(24)])
    topics = write_rows(folder / "topics.jsonl", [topic(number) for number in range(4)])
    found = {
        "mdqa": DataConfig(**world),
        "cue_retrieval": DataConfig(task="cue_retrieval", train_file=world["passages_file"]),
        "musique": DataConfig(task="musique", train_file=musique, passages_file=passages),
        "summhay": DataConfig(task="summhay", train_file=topics),
    }
    return {task: load_corpus(config) for task, config in found.items()}


def drawn(knobs: Knobs, corpus: Corpus, count: int = 8) -> list[Any]:
    """What a build takes from a recipe: facts, and the first distractors of each."""
    recipe, found = open_recipe(knobs, corpus, "train"), []
    for number, fact in enumerate(itertools.islice(recipe.facts(0, ()), count)):
        stream = recipe.haystack.distractors(fact, np.random.Generator(np.random.PCG64(number)))
        found.append((recipe.layout.name, fact, list(itertools.islice(stream, 4))))
    return found


@pytest.mark.parametrize(
    ("task", "base"),
    [*itertools.product(("mdqa", "musique", "summhay"), BASES), ("cue_retrieval", "templated"),
     ("cue_retrieval", "symbolic"), ("cue_retrieval", "diverse in templated"), ("cue_retrieval", "look-alikes")],
)  # fmt: skip
def test_a_knob_changes_the_digest_exactly_where_it_changes_the_data(
    task: str, base: str, corpora: dict[str, Corpus], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The data are drawn from the knobs as they stand, so that nothing is known beforehand of what they change."""
    before = Knobs(name="x", **BASES[base])
    monkeypatch.setattr(recipes, "settled", lambda knobs, task: knobs)
    reference = drawn(before, corpora[task])
    for name, value in CHANGES.items():
        after = dataclasses.replace(before, **{name: value})
        same = recipe_digest(after, task) == recipe_digest(before, task)
        if task == "cue_retrieval" and name == "lexical_overlap":
            assert same  # cues replace the question, whose wording drew numbers all the same
            continue
        assert (drawn(after, corpora[task]) == reference) is same, name


@pytest.mark.parametrize("task", TASKS)
def test_presets_are_settled_and_told_apart(task: str) -> None:
    found = {name: preset(name, task) for name in PRESETS}
    for name, knobs in found.items():
        assert settled(knobs, task) == dataclasses.replace(knobs, row_labels=tuple(sorted(knobs.row_labels))), name
    digests = {recipe_digest(knobs, task) for name, knobs in found.items() if name not in ("low_high", "low_low")}
    assert len(digests) == len(found) - 2


SAME: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "the own share of the main wording": ("mdqa", {"templated_share": 0.5}, {}),
    "the own share of the main context": ("mdqa", {"passages_context_share": 0.25}, {}),
    "a wording that took all": ("mdqa", {"symbolic_share": 1.0}, {"concept_expression": "symbolic"}),
    "a context that took all": ("mdqa", {"filler_context_share": 1.0}, {"context_diversity": "repeated_filler"}),
    "one template": ("mdqa", {"num_templates": 1}, {}),
    "all templates": (
        "musique",
        {"concept_expression": "templated_diverse", "num_templates": 42},
        {"concept_expression": "templated_diverse"},
    ),
    "one symbol": ("mdqa", {"concept_expression": "symbolic", "answer_words": 1}, {"concept_expression": "symbolic"}),
    "relations of insights": ("summhay", {"num_relations": 2, "answer_words": 4, "lexical_overlap": 1.0}, {}),
    "relations of chains": ("musique", {"num_relations": 2, "lexical_overlap": 0.5}, {}),
    "all of it real": ("mdqa", {"real_fraction": 1.0, "num_templates": 7}, {"concept_expression": "real"}),
    "order of labels": (
        "musique",
        {"concept_expression": "real", "row_labels": ("b", "a")},
        {"concept_expression": "real", "row_labels": ("a", "b")},
    ),
    "case of first words": (
        "mdqa",
        {"concept_expression": "real", "question_words": ("Who", "who")},
        {"concept_expression": "real", "question_words": ("who",)},
    ),
}


@pytest.mark.parametrize("case", SAME)
def test_recipes_that_mean_the_same_have_one_digest(case: str) -> None:
    task, one, other = SAME[case]
    values = {"name": "x", "concept_expression": "templated"}
    first, second = Knobs(**{**values, **one}), Knobs(**{**values, **other, "name": "y"})  # type: ignore[arg-type]
    assert recipe_digest(first, task) == recipe_digest(second, task)
    assert first.digest != second.digest


@st.composite
def _drawn_knobs(draw: st.DrawFn) -> dict[str, Any]:
    chosen: Sequence[str] = draw(st.lists(st.sampled_from(list(SPACE)), max_size=8, unique=True))
    return {name: draw(values_of(SPACE[name])) for name in chosen}


@pytest.mark.parametrize("task", TASKS)
@settings(max_examples=100, deadline=None)
@given(values=_drawn_knobs())
def test_settled_knobs_stay_as_they_are(task: str, values: dict[str, Any]) -> None:
    try:
        knobs = Knobs(**{"name": "drawn", **values})
    except InputError:
        return
    found = settled(knobs, task)
    assert settled(found, task) == found
    assert found.contains_real == knobs.contains_real
    assert recipe_digest(found, task) == recipe_digest(knobs, task) == found.digest
    kept = {kind: share for kind, share in knobs.needle_shares.items() if share > 1e-9}
    if knobs.real_fraction < 1:
        again = {kind: share for kind, share in found.needle_shares.items() if share > 1e-9}
        assert again == pytest.approx(kept)


def test_conditions_of_a_search_agree_for_whole_recipes() -> None:
    for task, (needle, name) in itertools.product(
        ("mdqa", "musique", "summhay"), itertools.product(("templated", "symbolic"), CHANGES)
    ):
        if name not in SPACE or name == "distractor_similarity":
            continue
        base = Knobs(name="x", concept_expression=needle)  # type: ignore[arg-type]
        changed = recipe_digest(dataclasses.replace(base, **{name: CHANGES[name]}), task) != recipe_digest(base, task)
        assert SPACE[name].matters({"concept_expression": needle, "task": task}) is changed, (task, needle, name)
