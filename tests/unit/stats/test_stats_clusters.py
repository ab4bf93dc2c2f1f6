"""Examples that belong together: errors over clusters against statsmodels and enumeration; the power beside tests."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats as scipy_stats
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar

from rhstudy.stats.analysis import analyze_arms
from rhstudy.stats.causal import Experiment, causal_analysis
from rhstudy.stats.equivalence import equivalence, not_inferior, provable_margin, smallest_margin
from rhstudy.stats.exact_match import mcnemar, sign_flip_p, smallest_drop
from rhstudy.stats.gap_share import Bootstrap, patching_effects
from rhstudy.stats.intervals import mean_covariance, mean_interval, paired_difference, share_interval
from rhstudy.stats.necessity import DoseMarks, dose_effect
from rhstudy.stats.statistic import StatisticsSettings

SETTINGS = StatisticsSettings(num_power_draws=400)
QUICK = StatisticsSettings(num_permutations=100, num_resamples=100, num_power_draws=100)
NO_CLUSTERS: dict[str, str] = {}


def families(n=60, size=5, seed=0):
    """Example ids, their families (unequal), and two marks of which families share the larger part."""
    rng = np.random.default_rng(seed)
    family = np.sort(rng.integers(0, n // size, n))
    shared = rng.standard_normal((2, n // size))[:, family]
    first, second = 0.3 * shared + 0.1 * rng.standard_normal((2, n))
    names = [f"e{index}" for index in range(n)]
    return names, dict(zip(names, map(str, family), strict=True)), first, second


def of_constant(values, family):
    """A regression on a constant with errors clustered by family, by statsmodels."""
    model = sm.OLS(values, np.ones(len(values)))
    return model.fit(cov_type="cluster", cov_kwds={"groups": np.array(list(map(int, family.values())))}, use_t=True)


@pytest.mark.parametrize("seed", range(3))
def test_means_and_differences_have_statsmodels_clustered_errors(seed):
    names, family, first, second = families(seed=seed)
    wanted = of_constant(first - second, family)
    marks = [dict(zip(names, map(float, side), strict=True)) for side in (first, second)]
    found = paired_difference(*marks, 0.95, family)
    assert (found.low, found.high) == pytest.approx(tuple(wanted.conf_int()[0]), abs=1e-10)
    assert found.p == pytest.approx(wanted.pvalues[0], abs=1e-10)
    assert "in 12 clusters" in found.method
    mean = mean_interval(list(map(float, first)), 0.95, list(family.values()))
    assert (mean.low, mean.high) == pytest.approx(tuple(of_constant(first, family).conf_int()[0]), abs=1e-10)
    naive = paired_difference(*marks, 0.95)
    assert naive.estimate == found.estimate
    assert naive.high - naive.low < 0.7 * (found.high - found.low)
    covariance, df = mean_covariance(np.column_stack([first, second]))
    assert covariance == pytest.approx(np.cov(first, second) / len(first), abs=1e-12)
    assert df == len(first) - 1


def test_tost_and_non_inferiority_test_clustered_means():
    names, family, first, second = families()
    ours, reference = (dict(zip(names, map(float, side), strict=True)) for side in (first, second))
    fit = of_constant(first - second, family)
    t = [(fit.params[0] + side * 0.2) / fit.bse[0] for side in (1, -1)]
    p = [scipy_stats.t.sf(t[0], 11), scipy_stats.t.cdf(t[1], 11)]
    assert equivalence(ours, reference, 0.2, 0.95, family).p == pytest.approx(max(p), abs=1e-10)
    worse = not_inferior(ours, reference, 0.2, 0.95, relative=False, clusters=family)
    assert worse.p == pytest.approx(p[0], abs=1e-10)


def test_a_loss_ratio_s_interval_holds_what_a_clustered_test_keeps():
    names, family, first, second = families()
    ours, reference = (dict(zip(names, map(float, 3 + side), strict=True)) for side in (first, second))
    found = not_inferior(ours, reference, 0.1, 0.95, relative=True, clusters=family)
    for end in (found.low, found.high):
        fit = of_constant(3 + first - (1 + end) * (3 + second), family)
        assert abs(fit.tvalues[0]) == pytest.approx(scipy_stats.t.ppf(0.975, 11), abs=1e-8)
    fit = of_constant(3 + first - 1.1 * (3 + second), family)
    assert found.p == pytest.approx(scipy_stats.t.cdf(fit.tvalues[0], 11), abs=1e-10)


def test_a_share_in_clusters_counts_fewer_examples():
    _, family, first, _ = families()
    hits = list((first > 0).astype(float))
    found = share_interval(hits, 0.95, list(family.values()))
    error = of_constant(np.array(hits), family).bse[0]
    size = len(hits) * (np.std(hits, ddof=1) / math.sqrt(len(hits)) / error) ** 2
    centre, z = np.mean(hits), scipy_stats.norm.ppf(0.975)
    middle = (centre + z * z / (2 * size)) / (1 + z * z / size)
    half = z * math.sqrt(centre * (1 - centre) / size + z * z / (4 * size * size)) / (1 + z * z / size)
    assert (found.low, found.high) == pytest.approx((middle - half, middle + half), abs=1e-10)
    assert found.n == len(hits)
    one = share_interval([1.0, 0.0, 1.0], 0.95, ["a"] * 3)
    assert one.high - one.low > share_interval([1.0, 0.0, 1.0], 0.95).high - share_interval([1.0, 0.0, 1.0], 0.95).low


def test_the_excess_is_over_clusters_and_its_p_over_draws():
    names, family, first, second = families()
    rng = np.random.default_rng(1)
    table = [first + 0.3, second, *(first + 0.2 + 0.1 * rng.standard_normal((19, len(names))))]
    marks = [dict(zip(names, map(float, row), strict=True)) for row in table]
    given = {"baseline": marks[0], "top": marks[1], "draws": marks[2:]}
    found, naive = (dose_effect(DoseMarks(**given, clusters=some), 0.95) for some in (family, NO_CLUSTERS))
    gaps = np.mean(table[2:], axis=0) - table[1]
    assert (found["excess"]["low"], found["excess"]["high"]) == pytest.approx(
        tuple(of_constant(gaps, family).conf_int()[0]), abs=1e-10
    )
    assert "in 12 clusters" in found["excess"]["method"]
    assert found["excess"]["p"] == naive["excess"]["p"]
    assert found["excess"]["high"] > naive["excess"]["high"] + 0.02
    assert found["drop"]["estimate"] == naive["drop"]["estimate"]


@pytest.mark.parametrize("seed", range(6))
def test_signs_of_clusters_flipped_are_all_enumerated(seed):
    sums = np.random.default_rng(seed).integers(-3, 4, 9)
    flips = np.array(list(itertools.product((-1, 1), repeat=9))) @ np.abs(sums)
    assert sign_flip_p(sums) == pytest.approx((np.abs(flips) >= abs(sums.sum())).mean(), abs=1e-12)


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (3, 0), (5, 5), (12, 3), (40, 22)])
def test_without_clusters_it_is_mcnemar_s_exact_test(lost, won):
    values = [1.0] * lost + [-1.0] * won + [0.0] * 20
    found = mcnemar({f"e{i}": value for i, value in enumerate(values)}, 0.95, NO_CLUSTERS)
    wanted = statsmodels_mcnemar([[10, lost], [won, 10]], exact=True).pvalue if lost + won else 1.0
    assert found.p == pytest.approx(min(1.0, wanted), abs=1e-10)
    assert found.estimate == pytest.approx((lost - won) / len(values))


def test_mcnemar_in_clusters_is_less_sure():
    lost = {f"e{i}": float(i < 12) for i in range(40)}
    together = {f"e{i}": f"c{i // 4}" for i in range(40)}
    alone, clustered = (mcnemar(lost, 0.95, some) for some in (NO_CLUSTERS, together))
    assert alone.p == pytest.approx(2**-11)
    assert clustered.p == pytest.approx(2**-2)
    assert "signs of clusters flipped; t interval in 10 clusters" in clustered.method
    assert "2 clusters of examples that differ" in mcnemar(lost, 0.95, dict.fromkeys(lost, "one")).reason


def test_the_smallest_drop_is_found_with_the_wanted_power():
    """By the test itself on studies in which as many examples change."""
    rng = np.random.default_rng(0)
    values = rng.choice([1.0, -1.0, 0.0], 200, p=[0.2, 0.1, 0.7])
    lost = {f"e{i}": value for i, value in enumerate(values)}
    drop = smallest_drop(lost, seed=0, settings=SETTINGS, clusters=NO_CLUSTERS).value
    changed = np.abs(values).mean()
    share = [(changed + drop) / 2, (changed - drop) / 2, 1 - changed]
    studies = rng.choice([1, -1, 0], (400, 200), p=share)
    detected = np.mean([sign_flip_p(study) <= 0.05 for study in studies])
    assert detected == pytest.approx(0.8, abs=0.08)
    together = {name: f"c{index // 10}" for index, name in enumerate(sorted(lost, key=lambda name: lost[name]))}
    assert smallest_drop(lost, seed=0, settings=SETTINGS, clusters=together).value > 1.5 * drop
    none = smallest_drop({"a": 1.0, "b": 0.0}, seed=0, settings=SETTINGS, clusters=NO_CLUSTERS)
    assert none.reason == "too few examples changed their exact match for the level"
    assert smallest_drop({}, seed=0, settings=SETTINGS, clusters=NO_CLUSTERS).reason == none.reason


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("clustered", [True, False])
def test_the_provable_margin_of_a_behaviour_is_proved_with_the_wanted_power(relative, clustered):
    names, family, first, second = families(n=80, seed=3)
    ours, reference = 3 + 0.5 * first, 3 + 0.5 * second
    ours = ours * (reference.mean() / ours.mean())
    family = family if clustered else NO_CLUSTERS
    sides = [dict(zip(names, map(float, side), strict=True)) for side in (ours, reference)]
    margin = provable_margin(*sides, relative=relative, seed=0, settings=SETTINGS, clusters=family).value
    rng, proved = np.random.default_rng(1), 0
    groups = [np.flatnonzero([family[name] == one for name in names]) for one in sorted(set(family.values()))]
    groups = groups or list(np.arange(len(names))[:, None])
    for _ in range(300):
        picked = [groups[index] for index in rng.integers(0, len(groups), len(groups))]
        rows, code = np.concatenate(picked), np.repeat(np.arange(len(picked)), [len(item) for item in picked])
        own = {f"e{index}": str(one) for index, one in enumerate(code)}
        drawn = [{f"e{index}": float(side[row]) for index, row in enumerate(rows)} for side in (ours, reference)]
        proved += not_inferior(*drawn, margin, 0.95, relative=relative, clusters=own).p < 0.05
    assert proved / 300 == pytest.approx(0.8, abs=0.09)


def test_one_cluster_has_no_error_and_says_so():
    names, _, first, second = families()
    one = dict.fromkeys(names, "same")
    sides = [dict(zip(names, map(float, 3 + side), strict=True)) for side in (first, second)]
    wanted = "an interval needs 2 clusters of examples that differ"
    assert paired_difference(*sides, 0.95, one).reason == wanted
    assert equivalence(*sides, 0.1, 0.95, one).reason == wanted
    assert mean_interval(list(map(float, first)), 0.95, ["same"] * len(names)).reason == wanted
    assert not_inferior(*sides, 0.1, 0.95, relative=False, clusters=one).reason == wanted
    assert not_inferior(*sides, 0.1, 0.95, relative=True, clusters=one).reason == "every example is of one cluster"
    for relative in (True, False):
        assert provable_margin(*sides, relative=relative, seed=0, settings=SETTINGS, clusters=one).reason
    assert smallest_margin(*sides, seed=0, settings=SETTINGS, clusters=one).reason


def experiment(clustered):
    """A knockout whose examples come in families of identical copies, with and without their names."""
    rng, rows = np.random.default_rng(0), []
    ease = rng.random(15)
    for kind, draw in [("baseline", None), ("top", None), *(("random", index) for index in range(199))]:
        cost = {"baseline": 0.0, "top": 0.25}.get(kind, 0.05)
        marks = np.clip(ease - cost + 0.1 * rng.standard_normal(15), 0, 1)
        for index, copy in itertools.product(range(15), range(4)):
            f1 = float(marks[index])
            row = {"example_id": f"e{index}-{copy}", "kind": kind, "dose": 10, "draw": draw, "f1": f1}
            row |= {"exact_match": float(f1 > 0.5), "gold_nll": 2 - f1, "text_nll": 2 - f1}
            rows.append(row | ({"cluster": f"c{index}"} if clustered else {}))
    return Experiment(task="t", model="m", rows=rows)


def test_copies_of_an_example_add_nothing():
    """Families of four copies give the interval, the power and the tests of one example a family."""
    together, apart = experiment(clustered=True), experiment(clustered=False)
    single = Experiment(task="t", model="m", rows=[row for row in apart.rows if row["example_id"].endswith("-0")])
    found, alone, naive = causal_analysis([together, single, apart], seed=0, settings=SETTINGS)["necessity"]
    for name in ("excess", "drop", "mcnemar", "gee"):
        assert [found[name][key] for key in ("low", "high", "p")] == pytest.approx(
            [alone[name][key] for key in ("low", "high", "p")], abs=1e-9
        )
        assert naive[name]["high"] - naive[name]["low"] < 0.8 * (found[name]["high"] - found[name]["low"])
    for name in ("smallest_detectable_excess", "smallest_detectable_drop"):
        assert found[name]["value"] == pytest.approx(alone[name]["value"], abs=1e-9)
    ours, theirs = (item["control_behaviours"]["text_nll"] for item in (found, alone))
    assert (ours["low"], ours["p"]) == pytest.approx((theirs["low"], theirs["p"]), abs=1e-9)
    assert ours["smallest_provable_margin"]["value"] > 0


def test_shares_of_the_gap_resample_whole_clusters():
    rng, rows = np.random.default_rng(0), []
    base = rng.random(20)
    for kind, shift in (("recipient", 0.0), ("donor", 0.3), ("patched", 0.2)):
        marks = base + shift + 0.05 * rng.standard_normal(20)
        at, of_set = ("answer_rows", "all") if kind == "patched" else (None, "")
        for index, copy in itertools.product(range(20), range(3)):
            row = {"example_id": f"e{index:02d}-{copy}", "kind": kind, "draw": None, "positions": at, "of_set": of_set}
            rows.append(row | {"f1": float(marks[index]), "exact_match": 0.0, "gold_nll": 1.0})
    planned = [{"of_set": "all", "reason": "", "control_reason": "none drawn"}]
    how = Bootstrap(level=0.95, num_resamples=300, seed=0)

    def share(some):
        return patching_effects(some, planned, ["answer_rows"], how)["patches"][0]["f1"]["share"]

    clustered = share([{**row, "cluster": row["example_id"][:3]} for row in rows])
    single = share([row for row in rows if row["example_id"].endswith("-0")])
    assert [clustered[key] for key in ("estimate", "low", "high")] == pytest.approx(
        [single[key] for key in ("estimate", "low", "high")], abs=1e-9
    )
    assert clustered["method"].endswith("in 20 clusters")


def test_arms_of_clustered_examples_are_less_sure(make_study):
    frame, predictions = make_study(4)
    pairs = {
        arm: [replace(item, cluster=f"c{index // 2}") for index, item in enumerate(marks)]
        for arm, marks in predictions.items()
    }
    arm = next(iter(frame["arm"][~frame["is_reference"]]))
    reference = next(iter(frame["arm"][frame["is_reference_arm"]]))
    arms = analyze_arms(frame, pairs, seed=0, settings=QUICK)["groups"][0]["arms"]
    (found,) = (item for item in arms if item["arm"] == arm)
    f1, theirs = (np.array([item.f1 for item in pairs[name]]) for name in (arm, reference))
    family = {str(index): str(index // 2) for index in range(len(f1))}
    wanted = {"f1": f1, "difference_to_reference": f1 - theirs}
    for name, values in wanted.items():
        ends = tuple(of_constant(values, family).conf_int()[0])
        assert (found[name]["low"], found[name]["high"]) == pytest.approx(ends, abs=1e-10)
        assert "in 10 clusters" in found[name]["method"]
    assert "in 10 clusters" in found["exact_match"]["method"]
