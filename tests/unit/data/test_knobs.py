from __future__ import annotations

import dataclasses

import pytest

from rhstudy.configs import from_mapping
from rhstudy.data.knobs import PRESETS, Knobs, corners, preset, search_space
from rhstudy.errors import InputError

FIRST = ["real", "real_limited", "templated_in_passages", "templated_in_filler", "symbolic"]


def test_presets_have_distinct_digests_but_for_the_two_that_have_two_names() -> None:
    assert list(PRESETS)[:5] == FIRST
    assert all(name == knobs.name for name, knobs in PRESETS.items())
    aliases = {"low_high": "templated_in_passages", "low_low": "templated_in_filler"}
    for alias, name in aliases.items():
        assert PRESETS[alias].digest == PRESETS[name].digest
    others = [knobs.digest for name, knobs in PRESETS.items() if name not in aliases]
    assert len(set(others)) == len(others)


@pytest.mark.parametrize("task", ["mdqa", "musique", "summhay"])
def test_the_papers_corners(task: str) -> None:
    found = corners(task)
    assert list(found) == ["real", "real_limited", "high_high", "high_low", "low_high", "low_low", "symbolic"]
    assert len({knobs.digest for knobs in found.values()}) == 7
    wordings = {name: knobs.concept_expression for name, knobs in found.items()}
    assert wordings["high_high"] == wordings["high_low"] == "rewritten"
    assert wordings["low_high"] == wordings["low_low"] == "templated"
    assert found["high_low"].context_diversity == found["low_low"].context_diversity == "repeated_filler"
    limited = found["real_limited"]
    assert bool(limited.question_words) is (task == "mdqa")
    assert bool(limited.row_labels) is (task != "mdqa")


OLD_DIGESTS = {
    "real": "3af00b8c5aba4114baf3041a11a9268fc986087ac20fd7ffb20ec656ecb5e5aa",
    "real_limited": "098f9e011411188b61e88c379f4255dd45c942de11dc304e3ede17bf49487d67",
    "templated_in_passages": "ce10066caa0a717295dbdf7a0b35e87f29dbc7f7aa368d6ce1b353b6d39db565",
    "templated_in_filler": "5162a20bf6aeb478f55f29a3dee95ff3992614aa8fda3344dc6c0350512b0d24",
    "symbolic": "697924dabb5ee76a4c1718388ca3e02bef546967c7b01b464b377c5d13e4487b",
}


@pytest.mark.parametrize("name", FIRST)
def test_knobs_added_later_leave_old_digests_alone(name: str) -> None:
    assert PRESETS[name].digest == OLD_DIGESTS[name]


def test_every_knob_of_the_search_space_moves_the_digest_and_stays_in_its_range() -> None:
    space = search_space()
    assert len(space) == len({item.name for item in space}) >= 20
    for item in space:
        assert item.doc, item.name
        base = Knobs(name="x", concept_expression="templated")
        if item.kind == "categorical":
            values = [choice for choice in item.choices if choice not in (item.default, "templated")]
            assert item.default in item.choices
            for value in values:
                assert dataclasses.replace(base, **{item.name: value}).digest != base.digest, (item.name, value)
            continue
        assert item.low is not None
        assert item.high is not None
        assert item.low < item.high
        assert not item.log or item.low > 0
        for bound in (item.low, item.high):
            value = int(bound) if item.kind == "int" else float(bound)
            if item.name == "templated_share" and value == 1:
                continue
            changed = dataclasses.replace(base, **{item.name: value})
            assert (changed.digest != base.digest) is (value != item.default), (item.name, value)
        if item.name != "real_fraction":
            with pytest.raises(InputError, match=rf"knobs\.{item.name} must be in \["):
                dataclasses.replace(base, **{item.name: item.high + 1})


def test_conditions_of_knobs() -> None:
    space = {item.name: item for item in search_space()}
    assert space["num_templates"].matters({"concept_expression": "templated"})
    assert not space["num_templates"].matters({"concept_expression": "symbolic"})
    assert not space["num_templates"].matters({})
    assert space["needle_position"].matters({})
    assert space["hops"].matters({"concept_expression": "symbolic", "task": "musique"})
    assert not space["hops"].matters({"concept_expression": "symbolic", "task": "mdqa"})


def test_shares_sum_to_one() -> None:
    knobs = Knobs(name="x", concept_expression="templated", symbolic_share=0.25, rewritten_share=0.5)
    assert knobs.needle_shares == {"templated": 0.25, "rewritten": 0.5, "templated_diverse": 0.0, "symbolic": 0.25}
    mixed = Knobs(name="x", context_diversity="repeated_filler", passages_context_share=0.3)
    assert mixed.context_shares["repeated_filler"] == pytest.approx(0.7)
    assert sum(mixed.context_shares.values()) == pytest.approx(1)


def test_digest_ignores_the_label_and_nothing_else() -> None:
    base = Knobs(name="a", concept_expression="templated")
    assert dataclasses.replace(base, name="b").digest == base.digest
    changes = {
        "context_diversity": "templated",
        "real_fraction": 0.25,
        "filler": "Other words.",
        "concept_expression": "symbolic",
    }
    for key, value in changes.items():
        assert dataclasses.replace(base, **{key: value}).digest != base.digest, key


@pytest.mark.parametrize(
    ("name", "real"),
    [
        ("real", True),
        ("real_limited", True),
        ("templated_in_passages", False),
        ("templated_in_filler", False),
        ("symbolic", False),
    ],
)
def test_contains_real(name: str, real: bool) -> None:
    assert preset(name).contains_real is real
    assert dataclasses.replace(preset(name), real_fraction=0.1).contains_real


def test_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(
        InputError, match=r"data\.recipe must be a known recipe, got 'symbolik'.*Did you mean symbolic\?"
    ):
        preset("symbolik")
    with pytest.raises(InputError, match=r"Known: real, real_limited"):
        preset("qqq")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"name": ""}, r"knobs\.name must be a label"),
        ({"real_fraction": 1.5}, r"knobs\.real_fraction must be in \[0, 1\], got 1\.5"),
        ({"real_fraction": float("nan")}, r"knobs\.real_fraction must be in \[0, 1\], got nan"),
        ({"filler": "  "}, r"knobs\.filler must hold at least one word"),
        (
            {"concept_expression": "symbolic", "question_words": ("who",)},
            r"knobs\.question_words must be empty for symbolic",
        ),
        ({"concept_expression": "templated", "row_labels": ("a",)}, r"knobs\.row_labels must be empty for templated"),
        (
            {"concept_expression": "symbolic", "templated_share": 0.7, "rewritten_share": 0.7},
            r"knobs: needle shares must sum to at most 1",
        ),
        ({"filler_context_share": 0.7, "on_topic_context_share": 0.7}, r"knobs: context shares must sum to at most 1"),
        ({"symbolic_share": 0.5}, r"knobs\.concept_expression must not be real beside other needles"),
    ],
)
def test_conditions(changes: dict[str, object], match: str) -> None:
    with pytest.raises(InputError, match=match):
        Knobs(**{"name": "x", **changes})


def test_a_table_of_toml_makes_knobs() -> None:
    values = {"name": "mine", "concept-expression": "templated", "real-fraction": 1, "question_words": []}
    assert from_mapping(Knobs, values) == Knobs(name="mine", concept_expression="templated", real_fraction=1.0)
    with pytest.raises(InputError, match="Did you mean real_fraction"):
        from_mapping(Knobs, {"name": "mine", "real_fractoin": 0.5})


@pytest.mark.parametrize("key", ["concept_expression", "context_diversity"])
def test_levels_are_named(key: str) -> None:
    with pytest.raises(InputError, match=rf"knobs\.{key} must be one of real, .*got 'surreal'"):
        from_mapping(Knobs, {"name": "x", key: "surreal"}, prefix="knobs")
