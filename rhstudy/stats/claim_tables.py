"""Claims as tables with their verdicts, and what they rest on: other models, noise, other rules, knockouts, patches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rhstudy.stats.layout import Table, interval_cell, number_cell, power_cell
from rhstudy.stats.pooled_tables import shown_subsets

_MODELS = {"mixed": "MixedLM", "gee": "GEE", "fractional_logit": "fractional logit (log odds)"}


def claim_table(analysis: Mapping[str, Any]) -> Table:
    """Every claim with its verdict and the rule it was judged by."""
    rows = [(item["task"] or "all", item["claim"], item["label"], item["rule"]) for item in analysis["claims"]]
    return Table(title="Claims", header=("task", "claim", "verdict", "rule declared before the run"), rows=rows)


def sensitivity_table(analysis: Mapping[str, Any]) -> Table:
    """The slope by other models, with optimizer and every warning."""
    pooled = analysis["pooled"]
    rows = []
    for key, subset in shown_subsets(pooled):
        for name, found in pooled[key]["sensitivity"].items():
            tried = [f"{item['optimizer']}{'' if item['converged'] else ' (failed)'}" for item in found["optimizers"]]
            details = [f"{label.replace('_', ' ')} {value:.3g}" for label, value in found["details"].items()]
            rows.append((
                _MODELS[name], subset, str(found["n"]), interval_cell(found),
                number_cell(found["p"], ".3g", found["reason"]), ", ".join(tried) or "none",
                ", ".join(details) or "none", "; ".join(found["warnings"]) or "none",
            ))  # fmt: skip
    header = ("model", "recipes", "n recipes", "slope", "p", "optimizers", "details", "warnings")
    return Table(title="Other models of the same slope", header=header, rows=rows)


def reliability_table(analysis: Mapping[str, Any]) -> Table:
    """How reliable recipe means are, and the highest correlation that this allows."""
    pooled, rows = analysis["pooled"], []
    for key, subset in shown_subsets(pooled):
        found = pooled[key]["reliability"]
        highest = number_cell(
            found["highest_correlation"], ".2f", found["reasons"].get("highest_correlation", "")
        )  # fmt: skip
        rows.append((subset, interval_cell(found["f1"]), interval_cell(found["predictor"]), highest))
    header = ("recipes", "reliability of F1", f"reliability of {pooled['predictor']}", "highest correlation")
    return Table(title="Noise between seeds", header=header, rows=rows)


def variant_table(analysis: Mapping[str, Any]) -> Table:
    """The slope with recall by other thresholds, top k and references."""
    pooled = analysis["pooled"]
    rows = [
        (
            rule, subset, str(found["num_recipes"]), interval_cell(found["slope"]),
            number_cell(found["slope"]["p"], ".3g", found["slope"]["reason"]),
            number_cell(found["correlation"], ".2f", found["reasons"].get("correlation", "")),
        )
        for key, subset in shown_subsets(pooled)
        for rule, found in pooled[key]["variants"].items()
    ]  # fmt: skip
    header = ("head recall by", "recipes", "n recipes", "slope", "p (permutation)", "r within")
    return Table(title="Head recall by other rules and references", header=header, rows=rows)


def causal_tables(analysis: Mapping[str, Any]) -> Iterator[Table]:
    """Necessity, control behaviours and sufficiency; nothing where no intervention was given."""
    causal = analysis["causal"]
    if causal["necessity"]:
        yield _necessity_table(causal)
        yield Table(
            title="Control behaviours with the top heads knocked out",
            header=("task", "model", "behaviour", "n", "change", "p (not inferior)", "provable margin"),
            rows=[
                (
                    item["task"], item["model"], name, str(found["n"]), interval_cell(found),
                    number_cell(found["p"], ".3g", found["reason"]), power_cell(found["smallest_provable_margin"]),
                )
                for item in causal["necessity"]
                for name, found in item["control_behaviours"].items()
            ],
        )  # fmt: skip
    if causal["sufficiency"]:
        header = ("task", "model", "rows", "heads", "n", "F1 minus the donor's", "p (TOST)", "provable margin")
        yield Table(title="Sufficiency", header=header, rows=[_patch_row(item) for item in causal["sufficiency"]])


def _necessity_table(causal: Mapping[str, Any]) -> Table:
    header = (
        "task", "model", "n", "draws", "F1 lost beyond random heads", "p", "Holm p", "detectable", "GEE", "McNemar",
        "McNemar p", "detectable drop", "warnings",
    )  # fmt: skip
    rows = []
    for item in causal["necessity"]:
        excess = item["excess"]
        rows.append((
            item["task"], item["model"], str(excess["n"]), str(item["num_draws"]), interval_cell(excess),
            number_cell(excess["p"], ".3g", excess["reason"]),
            number_cell(item["holm_p"], ".3g", item["reasons"].get("holm_p", "")),
            power_cell(item["smallest_detectable_excess"]), interval_cell(item["gee"]), interval_cell(item["mcnemar"]),
            number_cell(item["mcnemar"]["p"], ".3g", item["mcnemar"]["reason"]),
            power_cell(item["smallest_detectable_drop"]), "; ".join(excess["warnings"]) or "none",
        ))  # fmt: skip
    return Table(title=f"Necessity: the top {causal['dose']} heads, decode scope", header=header, rows=rows)


def _patch_row(item: Mapping[str, Any]) -> tuple[str, ...]:
    found = item["difference"]
    return (
        item["task"], item["model"], item["positions"], item["of_set"], str(found["n"]), interval_cell(found),
        number_cell(found["p"], ".3g", found["reason"]), power_cell(item["smallest_provable_margin"]),
    )  # fmt: skip
