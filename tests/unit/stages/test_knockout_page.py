"""The page about a knockout: modes apart, the other controls, and control behaviours with their change."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest

from rhstudy.errors import InputError
from rhstudy.interventions.conditions import Condition
from rhstudy.stages.knockout_page import knockout_text
from rhstudy.stages.outcomes import behaviour_means, condition_means, headline, read_necessity, with_statistics
from rhstudy.tracking.artifacts import seal_artifacts

WAYS = (("zero_output", "decode"), ("mean_output", "decode"))
NOTHING = {"short_f1": None, "short_nll": None, "text_nll": None}


def row(example: int, condition: Condition, f1: float, **changes: Any) -> dict[str, Any]:
    marks = {"text": "", "f1": f1, "exact_match": f1, "gold_nll": 1 - f1, "unscored": ""}
    return {"example_id": str(example), "cluster": str(example), **condition.names(), **marks, **NOTHING, **changes}


def outcomes() -> list[dict[str, Any]]:
    """Three examples; top heads end F1 and cost 20 % of the loss on text, draws cost nothing."""
    rows = []
    for example in range(3):
        plain = {"short_f1": 1.0, "short_nll": 0.5, "text_nll": 2.0 + example}
        rows.append(row(example, Condition(condition_id="baseline", kind="baseline", dose=0), 0.9, **plain))
        for mode, scope in WAYS:
            before = "" if mode == "zero_output" else f"{mode}/{scope}/"
            way: dict[str, Any] = {"mode": mode, "scope": scope, "dose": 2}
            top = Condition(condition_id=f"{before}top2", kind="top", **way)
            shown = {"short_f1": 0.5, "short_nll": 0.75, "text_nll": 1.2 * (2.0 + example)}
            rows.append(row(example, top, 0.0, **shown))
            for draw in range(3):
                random = Condition(condition_id=f"{before}random2_{draw}", kind="random", draw=draw, **way)
                rows.append(row(example, random, 0.8, **(plain if draw < 2 else {})))
            rows.append(row(example, Condition(condition_id=f"{before}lowest2", kind="lowest", **way), 0.7))
    return rows


def facts() -> dict[str, Any]:
    dose = {
        "dose": 2, "is_all_retrieval_heads": True, "reason": "", "control_reason": "", "borrowed": [], "notes": [],
        "lowest_reason": "", "lowest_note": "1 of 2 tied",
        "lowest_borrowed": [{"layer": 3, "from_layer": 2, "count": 1}],
    }  # fmt: skip
    return {
        "level": 0.95, "threshold": 0.1, "num_examples": 3, "primary_dose": 2, "num_text_tokens": 256,
        "retrieval_heads": [[0, 1], [2, 3]], "doses": [{"mode": mode, "scope": scope, **dose} for mode, scope in WAYS],
    }  # fmt: skip


def test_modes_have_sections_of_their_own_and_the_other_controls_a_table() -> None:
    text = knockout_text(with_statistics(facts(), outcomes()), "tiny/real/seed0")
    assert text.index("### Mode zero_output, scope decode") < text.index("### Mode mean_output, scope decode")
    assert text.count("| 2 (all) | F1 | 0.000 [") == 2
    assert "| lowest | 2 | mean_output | decode | 0.700 | 0.700 | 0.300 |" in text
    assert "2 heads: layer 3 borrowed 1 from 2; 1 of 2 tied." in text
    assert "| loss on plain text | zero_output | decode | 3.000 | 3.600 | 3.000 [3.000, 3.000] | 2 | +20.0 % |" in text
    assert (
        "| F1, gold passages alone | mean_output | decode | 1.000 | 0.500 | 1.000 [1.000, 1.000] | 2 | -50.0 % |"
        in text
    )


def test_one_mode_needs_no_heading_and_what_was_not_measured_no_table() -> None:
    one = {**facts(), "doses": facts()["doses"][:1]}
    bare = [item | NOTHING for item in outcomes() if item["kind"] != "lowest"]
    text = knockout_text(with_statistics(one, bare), "tiny/real/seed0")
    assert "###" not in text
    assert "lowest" not in text
    assert "Control behaviours" not in text


def test_behaviour_means_are_those_of_the_rows() -> None:
    found = behaviour_means(facts(), outcomes())
    assert [(item["mode"], item["behaviour"]) for item in found] == [
        (mode, name) for (mode, _), name in itertools.product(WAYS, NOTHING)
    ]
    (losses,) = (item for item in found if (item["mode"], item["behaviour"]) == ("mean_output", "text_nll"))
    assert losses["baseline"] == pytest.approx(sum(2.0 + example for example in range(3)) / 3)
    assert losses["top"] / losses["baseline"] == pytest.approx(1.2)
    assert losses["num_draws"] == 2


def test_a_knockout_of_an_earlier_version_is_refused(tmp_path: Path) -> None:
    for name, facts in (("necessity", {"schema_version": 1}), ("conditions", {})):
        folder = tmp_path / name
        folder.mkdir()
        (folder / f"{name}.json").write_text(json.dumps(facts), encoding="utf-8")
        got = facts.get("schema_version")
        with pytest.raises(InputError, match=rf"knockout must have layout 2, got {got} \(.*\). Run intervene again"):
            read_necessity(seal_artifacts(folder, "intervene"))


def test_headlines_of_a_mode_stand_behind_its_name() -> None:
    found = headline(condition_means(outcomes()), with_statistics(facts(), outcomes())["doses"])
    assert found["f1_top2"] == found["mean_output/decode/f1_top2"] == 0
    assert found["f1_random2"] == pytest.approx(0.8)
    assert found["f1_lowest2"] == pytest.approx(0.7)
    assert found["mean_output/decode/text_nll_top2"] == pytest.approx(3.6)
    assert found["drop_f1_top2"] == found["mean_output/decode/drop_f1_top2"] == pytest.approx(0.9)
    assert not any(math.isnan(value) for value in found.values())
