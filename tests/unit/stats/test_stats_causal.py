"""Causal claims against naive definitions: margins, TOST, Fieller, GEE, McNemar, power; outcome files; verdicts."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
from scipy import optimize
from scipy import stats as scipy_stats
from statsmodels.stats.multitest import multipletests

from rhstudy.errors import InputError
from rhstudy.stats.causal import Experiment, causal_analysis
from rhstudy.stats.claims import claims
from rhstudy.stats.equivalence import equivalence, not_inferior, smallest_margin
from rhstudy.stats.outcome_file import read_experiments
from rhstudy.stats.statistic import StatisticsSettings

SETTINGS = StatisticsSettings(num_power_draws=400)


def named(values):
    return {f"e{index}": float(value) for index, value in enumerate(values)}


def pair(n=40, shift=0.02, seed=0):
    rng = np.random.default_rng(seed)
    first = rng.random(n)
    return first + shift + 0.1 * rng.standard_normal(n), first


@pytest.mark.parametrize("seed", range(4))
def test_tost_is_the_larger_of_two_one_sided_t_tests(seed):
    ours, reference = pair(seed=seed)
    found = equivalence(named(ours), named(reference), 0.05, 0.95)
    gaps = ours - reference
    low = scipy_stats.ttest_1samp(gaps, -0.05, alternative="greater").pvalue
    high = scipy_stats.ttest_1samp(gaps, 0.05, alternative="less").pvalue
    assert found.p == pytest.approx(max(low, high), abs=1e-10)
    ends = scipy_stats.t.interval(0.95, len(gaps) - 1, gaps.mean(), scipy_stats.sem(gaps))
    assert (found.estimate, found.low, found.high) == pytest.approx((gaps.mean(), *ends), abs=1e-10)


@pytest.mark.parametrize("seed", range(4))
def test_a_loss_ratio_has_fieller_s_interval_and_a_one_sided_p(seed):
    rng = np.random.default_rng(seed)
    reference = 1 + rng.random(30)
    ours = reference * (1.03 + 0.05 * rng.standard_normal(30))
    found = not_inferior(named(ours), named(reference), 0.1, 0.95, relative=True)
    assert found.estimate == pytest.approx(ours.mean() / reference.mean() - 1, abs=1e-10)
    assert found.p == pytest.approx(
        scipy_stats.ttest_1samp(ours - 1.1 * reference, 0, alternative="less").pvalue, abs=1e-10
    )  # fmt: skip
    quantile = scipy_stats.t.ppf(0.975, 29)

    def beyond(ratio):
        return abs(scipy_stats.ttest_1samp(ours - (1 + ratio) * reference, 0).statistic) - quantile

    ends = [optimize.brentq(beyond, found.estimate, found.estimate + step, xtol=1e-13) for step in (-0.5, 0.5)]
    assert (found.low, found.high) == pytest.approx(ends, abs=1e-9)


def test_a_mark_may_drop_by_less_than_the_margin():
    ours, reference = pair(shift=-0.01)
    found = not_inferior(named(ours), named(reference), 0.05, 0.95, relative=False)
    assert found.p == pytest.approx(
        scipy_stats.ttest_1samp(ours - reference, -0.05, alternative="greater").pvalue, abs=1e-10
    )  # fmt: skip


def test_what_is_undefined_has_its_reason():
    same = named([0.5] * 5)
    assert "same value" in equivalence(same, same, 0.05, 0.95).reason
    assert equivalence({}, {}, 0.05, 0.95).reason == "no example is scored in both arms"
    assert equivalence(named([0.1, 0.2]), named([0.3, 0.1]), 0.05, 0.95).reason == "TOST needs 3 examples"
    assert "same value" in not_inferior(same, same, 0.05, 0.95, relative=False).reason
    for ours, reference, reason in (
        (same, same, "every example has the same loss"),
        (named([0.1, 0.2]), named([0.1, 0.3]), "non-inferiority needs 3 examples, there are 2"),
        (named([1, 2, 3]), named([0, 0, 0]), "the mean loss without the knockout is not positive"),
    ):
        assert not_inferior(ours, reference, 0.1, 0.95, relative=True).reason == reason
    wide = not_inferior(named([1, 2, 3]), named([9, -3, -3]), 0.1, 0.95, relative=True)
    assert (math.isnan(wide.low), "not clear of 0" in wide.reason) == (True, True)
    assert smallest_margin(same, same, seed=0, settings=SETTINGS).reason


def test_the_provable_margin_is_proved_with_the_wanted_power():
    ours, reference = pair(n=60, shift=0.0)
    gaps = ours - reference
    margin = smallest_margin(named(ours), named(reference), seed=0, settings=SETTINGS).value
    rng, proved = np.random.default_rng(1), 0
    for _ in range(400):
        some = rng.choice(gaps - gaps.mean(), 60)
        low = scipy_stats.ttest_1samp(some, -margin, alternative="greater").pvalue
        proved += max(low, scipy_stats.ttest_1samp(some, margin, alternative="less").pvalue) < 0.05
    assert proved / 400 == pytest.approx(0.8, abs=0.08)


def knockout(n=30, draws=199, effect=0.3, seed=0, dose=10, **more):
    rng = np.random.default_rng(seed)
    ease, rows = rng.random(n), []
    plans = [("baseline", 0, None, 0.0), ("top", dose, None, effect)]
    plans += [("random", dose, index, 0.05 + 0.02 * rng.standard_normal()) for index in range(draws)]
    for kind, at, draw, cost in plans:
        f1 = np.clip(np.round(ease - cost + 0.1 * rng.standard_normal(n), 2), 0, 1)
        for index, mark in enumerate(f1):
            marks = {"f1": float(mark), "exact_match": float(mark > 0.5), "gold_nll": 2 - float(mark)}
            rows.append({"example_id": f"e{index}", "kind": kind, "dose": at, "draw": draw, **marks, **more})
    return rows


def by_draw(rows, kind, mark="f1"):
    """Examples x draws of one kind of condition."""
    table = pd.DataFrame([row for row in rows if row["kind"] == kind]).fillna({"draw": 0})
    return table.pivot(index="example_id", columns="draw", values=mark).to_numpy(float)


def analyze(*experiments):
    return causal_analysis(experiments, seed=0, settings=SETTINGS)


def test_necessity_is_the_randomization_test_with_its_secondary_tests():
    rows = knockout()
    (found,) = analyze(Experiment(task="t", model="m", rows=rows))["necessity"]
    base, top, random = (by_draw(rows, kind).mean(axis=0) for kind in ("baseline", "top", "random"))
    assert found["excess"]["estimate"] == pytest.approx(random.mean() - top[0], abs=1e-10)
    hits = (base - random >= base - top - 1e-12).sum()
    assert found["excess"]["p"] == pytest.approx((1 + hits) / 200, abs=1e-10)
    assert found["gee"]["estimate"] == pytest.approx(random.mean() - top[0], abs=1e-10)
    gaps = by_draw(rows, "random").mean(axis=1) - random.mean() - (by_draw(rows, "top")[:, 0] - top[0])
    error = math.sqrt((gaps**2).sum()) / 30
    assert found["gee"]["high"] - found["gee"]["estimate"] == pytest.approx(1.959963984540054 * error, rel=1e-6)
    before, after = (by_draw(rows, kind, "exact_match")[:, 0] for kind in ("baseline", "top"))
    lost, won = int(((before == 1) & (after == 0)).sum()), int(((before == 0) & (after == 1)).sum())
    assert found["mcnemar"]["p"] == pytest.approx(
        min(1, scipy_stats.binomtest(min(lost, won), lost + won).pvalue), abs=1e-10
    )  # fmt: skip
    assert found["mcnemar"]["estimate"] == pytest.approx((lost - won) / 30, abs=1e-12)


def test_holm_runs_over_experiments_and_other_doses_modes_and_scopes_are_passed_over():
    costs = (0.3, 0.06, 0.08)
    experiments = [Experiment(task=f"t{i}", model="m", rows=knockout(effect=c, seed=i)) for i, c in enumerate(costs)]
    found = analyze(*experiments)["necessity"]
    raw = [item["excess"]["p"] for item in found]
    assert [item["holm_p"] for item in found] == pytest.approx(list(multipletests(raw, method="holm")[1]), abs=1e-12)
    more = [row for row in knockout(effect=0.9, dose=5) if row["kind"] != "baseline"]
    more += [{**row, "scope": "prefill_and_decode"} for row in knockout(effect=0.9) if row["kind"] != "baseline"]
    more += [{**row, "mode": "mean_output"} for row in knockout(effect=0.9) if row["kind"] != "baseline"]
    again = analyze(Experiment(task="t0", model="m", rows=[*experiments[0].rows, *more]))["necessity"][0]
    assert again["excess"] == found[0]["excess"]


def test_incomplete_and_repeated_outcomes():
    rows = knockout(draws=3)
    (few,) = analyze(Experiment(task="t", model="m", rows=[row for row in rows if row["kind"] != "random"]))[
        "necessity"
    ]
    assert few["excess"]["reason"] == "no random heads: no outcome of dose 10 in decode scope, zero_output"
    assert few["reasons"]["holm_p"] == few["excess"]["reason"]
    assert few["drop"]["estimate"] is not None
    assert "too few draws" in few["smallest_detectable_excess"]["reason"]
    (other,) = analyze(Experiment(task="t", model="m", rows=knockout(dose=5, draws=3)))["necessity"]
    assert other["drop"]["reason"] == "no outcome of dose 10 in decode scope, zero_output"
    with pytest.raises(
        InputError, match=r"outcomes must mark an example once per condition, got \('baseline', None, 'e0'"
    ):
        analyze(Experiment(task="t", model="m", rows=[*rows, rows[0]]))
    flat = [{**row, "f1": 0.0, "exact_match": 0.0} for row in rows]
    (zero,) = analyze(Experiment(task="t", model="m", rows=flat))["necessity"]
    assert zero["gee"]["reason"] == "every answer has the same F1"
    assert zero["mcnemar"]["p"] == 1.0
    assert zero["excess"]["p"] == 1.0
    level = {"baseline": 0.7, "top": 0.2, "random": 0.6}
    alike = [{**row, "f1": level[row["kind"]] + 0.01 * int(row["example_id"][1:])} for row in rows]
    (same,) = analyze(Experiment(task="t", model="m", rows=alike))["necessity"]
    assert same["gee"]["estimate"] == pytest.approx(0.4)
    assert same["gee"]["reason"] == "robust errors are undefined: every example shows the same effect"
    assert (same["excess"]["estimate"], same["excess"]["low"]) == (pytest.approx(0.4), None)


def test_the_detectable_excess_is_detected_with_the_wanted_power():
    rows = knockout(n=60, effect=0.05)
    (found,) = analyze(Experiment(task="t", model="m", rows=rows))["necessity"]
    top, draws = by_draw(rows, "top")[:, 0], by_draw(rows, "random")
    shifted = top - top.mean() + draws.mean() - found["smallest_detectable_excess"]["value"]
    rng, detected = np.random.default_rng(5), 0
    for _ in range(400):
        some = rng.integers(0, 60, 60)
        detected += (1 + (draws[some].mean(axis=0) <= shifted[some].mean()).sum()) / 200 <= 0.05
    assert detected / 400 == pytest.approx(0.8, abs=0.08)


def patching(n=30, short=0.0, seed=0):
    rng = np.random.default_rng(seed)
    ease = rng.random(n)
    marks = {"recipient": ease - 0.3, "donor": ease, "patched": ease - short + 0.01 * rng.standard_normal(n)}
    place = {"positions": "answer_rows", "of_set": "intersection"}
    return [
        {"example_id": f"e{i}", "kind": kind, "f1": float(mark), **(place if kind == "patched" else {})}
        for kind, some in marks.items()
        for i, mark in enumerate(some)
    ]


def labelled(*experiments):
    nothing = {"slope": None}
    record = {"estimate": None, "low": None, "high": None, "p": None, "n": 0, "reason": "nothing"}
    pooled = {
        "predictor": "head_recall",
        "all": {
            "slope": record, "smallest_detectable_slope": {"value": None, "reason": "nothing"}, "rivals_left_out": {},
            "prediction": {"gain_over_rivals": record},
        },
    }  # fmt: skip
    analysis = {"verdicts": [], "pooled": pooled, "causal": analyze(*experiments), **nothing}
    return {item["claim"]: item for item in claims(analysis, SETTINGS)}


def test_verdicts_on_causal_claims():
    supported = labelled(Experiment(task="t", model="m", rows=knockout(text_nll=2.0, short_f1=0.5)))
    necessary = supported["the top 10 heads are necessary"]
    assert necessary["label"] == "supported"
    assert "199 draws; excess detectable at this n 0.0" in necessary["sentence"]
    assert "199 or more matched draws" in necessary["rule"]
    weak = labelled(Experiment(task="t", model="m", rows=knockout(n=150, effect=0.05)))
    assert weak["the top 10 heads are necessary"]["label"] == "not supported"
    few = labelled(Experiment(task="t", model="m", rows=knockout(draws=20)))["the top 10 heads are necessary"]
    assert (few["label"], "20 draws, an illustration" in few["sentence"]) == ("undecided at this n", True)
    for short, label in ((0.0, "supported"), (0.2, "not supported"), (0.05, "undecided at this n")):
        found = labelled(Experiment(task="t", model="m", rows=patching(short=short)))
        (claim,) = [item for name, item in found.items() if "equal to its donor" in name]
        assert claim["label"] == label
    assert supported["head recall adds to its rivals"]["label"] == "undecided at this n"


@pytest.mark.parametrize(
    ("worse", "label"), [(1.01, "supported"), (1.4, "not supported"), (1.095, "undecided at this n")]
)
def test_verdicts_on_control_behaviours(worse, label):
    rng, rows = np.random.default_rng(0), []
    for row in knockout():
        loss = (1 + rng.random()) * (worse if row["kind"] == "top" else 1)
        rows.append({**row, "text_nll": loss, "short_f1": rng.random() - 2 * (worse > 1.3) * (row["kind"] == "top")})
    found = labelled(Experiment(task="t", model="m", rows=rows))
    assert found["knocking the top 10 heads out leaves text_nll unharmed"]["label"] == label
    assert "knocking the top 10 heads out leaves short_nll unharmed" not in found
    if worse > 1.3:
        assert found["knocking the top 10 heads out leaves short_f1 unharmed"]["label"] == "not supported"


def test_outcome_files_of_every_kind_say_the_same(tmp_path):
    rows = [{**row, "task": "t", "text_nll": None} for row in knockout(n=5, draws=3)]
    pd.DataFrame(rows).to_csv(tmp_path / "o.csv", index=False)
    pd.DataFrame(rows).to_parquet(tmp_path / "o.parquet")
    (tmp_path / "o.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = [
        analyze(*read_experiments(tmp_path / f"o.{kind}", "interventions.0", "x"))
        for kind in ("csv", "parquet", "jsonl")
    ]
    wanted = analyze(Experiment(task="t", model="", rows=rows))
    for item in found:
        assert item["necessity"][0]["task"] == "t"
        assert item["necessity"][0]["excess"]["estimate"] == pytest.approx(
            wanted["necessity"][0]["excess"]["estimate"], abs=1e-12
        )
        assert item["necessity"][0]["excess"]["p"] == wanted["necessity"][0]["excess"]["p"]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("kind,f1\nbaseline,1\n", r"column example_id must be in the outcomes"),
        ("example_id,kind,f1\ne,other,1\n", r"column kind must hold one of baseline, .*, got \['other'\]"),
        ("example_id,kind,f1\ne,baseline,good\n", r"column f1 must hold numbers, got <other values>|must hold numbers"),
        ("example_id,kind,f1,dose\ne,top,1,ten\n", r"column dose must hold numbers, got \['ten'\]"),
    ],
)
def test_bad_outcome_files(tmp_path, text, match):
    (tmp_path / "o.csv").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=match):
        read_experiments(tmp_path / "o.csv", "interventions.0", "x")


def test_bad_json_lines(tmp_path):
    with pytest.raises(InputError, match=r"interventions.0 must be an existing file"):
        read_experiments(tmp_path / "no.jsonl", "interventions.0", "x")
    (tmp_path / "o.jsonl").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match=r"interventions.0 must be readable JSON lines"):
        read_experiments(tmp_path / "o.jsonl", "interventions.0", "x")
    (tmp_path / "o.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match=r"interventions.0 must have at least one row"):
        read_experiments(tmp_path / "o.jsonl", "interventions.0", "x")
