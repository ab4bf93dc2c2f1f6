"""The knockout table: every dose with its interval, p and remarks, or the reason why not."""

from __future__ import annotations

import pytest

from rhstudy.stats.necessity import DoseMarks, dose_effect
from rhstudy.stats.tables import knockout_report


def dose(number, marks, **changes):
    effect = dose_effect(marks, 0.95)
    facts = {"dose": number, "is_all_retrieval_heads": False, "borrowed": [], "notes": [], "reason": marks.reason}
    return {**facts, **dict.fromkeys(("f1", "exact_match", "gold_logp"), effect), **changes}


def report(*doses):
    facts = {"level": 0.95, "threshold": 0.1, "mode": "zero_output", "scope": "decode", "num_examples": 3}
    return knockout_report({**facts, "retrieval_heads": [[0, 1], [2, 3]], "doses": list(doses)}, "tiny/real/seed0")


BASELINE, TOP, DRAW = {"a": 1.0, "b": 0.5, "c": 1.0}, {"a": 0.0, "b": 0.5, "c": 0.0}, {"a": 1.0, "b": 0.25, "c": 1.0}


def test_a_row_per_dose_and_metric():
    borrowed = [{"layer": 3, "from_layer": 2, "count": 1}]
    few = dose(
        2, DoseMarks(baseline=BASELINE, top=TOP, draws=[DRAW] * 4), is_all_retrieval_heads=True, borrowed=borrowed
    )
    many = dose(5, DoseMarks(baseline=BASELINE, top=TOP, draws=[DRAW] * 199), notes=["a note"])
    text = report(few, many)
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + 6
    remark = "illustration: fewer than 199 draws; layer 3 borrowed 1 from 2"
    assert rows[2].startswith("| 2 (all) | F1 | 0.167 [-0.550, 0.884] | 0.667 [-0.768, 2.101] | 0.083")
    assert rows[2].endswith(f"| 0.2 | 4 | {remark} |")
    assert rows[3].endswith("| 0.005 | 199 | a note |")
    assert rows[4].startswith("| 2 (all) | exact match |")
    assert "of tiny/real/seed0 with the highest mean retrieval score; 2 heads retrieve (mean score >= 0.1)" in text
    assert "Nothing knocked out: F1 0.833 [0.116, 1.550]" in text


@pytest.mark.parametrize(
    ("marks", "wanted"),
    [
        (
            DoseMarks(baseline=BASELINE, top=TOP, control_reason="9 heads are wanted and 5 of 12 are left"),
            "9 heads are wanted and 5 of 12 are left",
        ),
        (DoseMarks(baseline=BASELINE, reason="the model has 8 heads", control_reason="-"), "the model has 8 heads"),
    ],
)
def test_what_is_undefined_says_why(marks, wanted):
    text = report(dose(9, marks))
    assert f"(a) {wanted}" in text
    assert "| n/a (a) | 0 | none |" in text
