"""The report of a patching experiment: every set, why a cell is empty, and every counter-example."""

from __future__ import annotations

from rhstudy.seeding import generator
from rhstudy.stats.gap_share import Bootstrap, counter_examples, patching_effects
from rhstudy.stats.tables import patching_report

SET = {"num_heads": 4, "reason": "", "control_reason": "", "borrowed": [], "notes": []}
SETS = [
    {**SET, "of_set": "intersection", "borrowed": [{"layer": 1, "from_layer": 2, "count": 1}]},
    {**SET, "of_set": "complement", "reason": "there is none", "control_reason": "there is none", "num_heads": 0},
]


def rows(kind, marks, **labels):
    place = {"positions": None, "of_set": "", "draw": None, **labels}
    return [
        {
            "example_id": f"e{n}",
            "kind": kind,
            **place,
            "f1": mark,
            "exact_match": float(mark > 0.5),
            "gold_nll": 1 - mark,
        }
        for n, mark in enumerate(marks)
    ]


def experiment(lift):
    draws = generator(0, "patching table")
    recipient = draws.uniform(0, 0.2, 20)
    outcomes = rows("recipient", recipient) + rows("donor", recipient + 0.5 + draws.normal(0, 0.02, 20))
    at = {"positions": "answer_rows", "of_set": "intersection"}
    outcomes += rows("patched", recipient + lift + draws.normal(0, 0.01, 20), **at)
    outcomes += rows("random", recipient, **at, draw=0)
    found = patching_effects(outcomes, SETS, ["answer_rows"], Bootstrap(level=0.9, num_resamples=200, seed=0))
    for patch in found["patches"]:
        patch["null"] = None
    facts = {"level": 0.9, "num_examples": 20, "real_model": "donor"}
    return {**facts, **found, "counter_examples": list(counter_examples(found["patches"]))}


def test_every_set_has_a_row_a_metric_and_empty_cells_their_reason():
    patching = experiment(0.25)
    text = patching_report(patching, "m/real/seed0", "m/symbolic/seed0")
    table = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(table) == 2 + 2 * 3
    assert table[0].count("[90 %]") == 3
    (row,) = [line for line in table if "intersection (4) | F1" in line]
    share = patching["patches"][0]["f1"]["share"]
    assert f"| {share['estimate']:.3f} [{share['low']:.3f}, {share['high']:.3f}] |" in row
    assert "layer 1 borrowed 1 from 2" in row
    assert "not measured" in row
    assert text.count("there is none") == 1, "a reason is written once"
    assert "What heads of m/real/seed0 put out replaces what they put out in m/symbolic/seed0" in text
    assert "None: no set lowered the mean of any metric." in text


def test_a_patch_that_made_things_worse_is_listed():
    text = patching_report(experiment(-0.1), "real", "symbolic")
    worse = [line for line in text.splitlines() if line.startswith("- ")]
    assert len(worse) == 2
    assert worse[0].startswith("- intersection, answer rows: F1 -0.1")
    assert all(line.endswith("its interval excludes 0") for line in worse)
    assert "gold log p" in worse[1]


def test_the_null_patch_stands_beside():
    patching = experiment(0.25)
    null = {"estimate": 0.011, "low": -0.01, "high": 0.03, "reason": ""}
    patching["patches"][0]["null"] = dict.fromkeys(("f1", "exact_match", "gold_logp"), null)
    text = patching_report(patching, "real", "symbolic")
    assert text.count("0.011 [-0.010, 0.030]") == 3
