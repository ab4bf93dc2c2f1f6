from __future__ import annotations

import dataclasses

import pytest

from rhstudy.configs import from_mapping
from rhstudy.data.knobs import PRESETS, Knobs, preset
from rhstudy.errors import InputError


def test_presets_are_the_five_corners_with_distinct_digests() -> None:
    assert list(PRESETS) == ["real", "real_limited", "templated_in_passages", "templated_in_filler", "symbolic"]
    assert len({knobs.digest for knobs in PRESETS.values()}) == 5
    assert all(name == knobs.name for name, knobs in PRESETS.items())


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


def test_digest_is_stable_between_versions() -> None:
    assert PRESETS["real"].digest == "3af00b8c5aba4114baf3041a11a9268fc986087ac20fd7ffb20ec656ecb5e5aa"


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
