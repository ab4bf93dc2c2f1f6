"""A verdict in plain words on every claim of the study, by rules declared in the settings before the run.

Supported and not supported need their condition; everything else, an undefined estimate among it, is undecided.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rhstudy.stats.necessity import ENOUGH_DRAWS
from rhstudy.stats.statistic import StatisticsSettings
from rhstudy.stats.verdict import Label


def claims(analysis: Mapping[str, Any], settings: StatisticsSettings) -> list[dict[str, Any]]:
    """One entry a claim: ``claim``, ``task``, ``model`` (empty for pooled ones), ``label``, ``rule``, ``sentence``.

    Args:
        analysis: from `rhstudy.stats.analysis.analyze_arms`, with ``verdicts``, ``pooled`` and ``causal``.
        settings: the rules.
    """
    return [
        *_recall(analysis, settings),
        _pooled(analysis["pooled"], settings),
        _adds(analysis["pooled"], settings),
        *(_necessity(entry, settings) for entry in analysis["causal"]["necessity"]),
        *(found for entry in analysis["causal"]["necessity"] for found in _behaviours(entry, settings)),
        *(_sufficiency(entry, settings) for entry in analysis["causal"]["sufficiency"]),
    ]


def _entry(claim: str, label: Label, rule: str, sentence: str, where: Mapping[str, Any]) -> dict[str, Any]:
    found = {"task": where.get("task", ""), "model": where.get("model", "")}
    place = f"{found['task']}, {found['model']}: " if found["task"] else "All tasks and models: "
    return {"claim": claim, **found, "label": label, "rule": rule, "sentence": f"{place}{claim}: {label} ({sentence})."}


def interval_text(record: Mapping[str, Any], spec: str = ".3f") -> str:
    """``0.210, interval 0.100 to 0.320, p 0.01, n = 12`` of a statistic in JSON; reasons where values are missing."""
    if record["estimate"] is None:
        return f"n/a: {record['reason']}"
    ends = (
        record["reason"] or "no interval"
        if record["low"] is None
        else f"interval {record['low']:{spec}} to {record['high']:{spec}}"
    )
    p = "" if record.get("p") is None else f", p {record['p']:.3g}"
    return f"{record['estimate']:{spec}}, {ends}{p}, n = {record['n']}"


def power_text(power: Mapping[str, Any], what: str) -> str:
    """``slope detectable at this n 0.120``, or why that is unknown."""
    return f"no {what}: {power['reason']}" if power["value"] is None else f"{what} at this n {power['value']:.3f}"


def _recall(analysis: Mapping[str, Any], settings: StatisticsSettings) -> Iterator[dict[str, Any]]:
    rule = (
        f"supported: Holm p < {settings.alpha:g} and lower bound of rho > {settings.supported_above:g}; "
        f"not supported: upper bound < {settings.supported_above:g}"
    )
    for verdict in analysis["verdicts"]:
        same = {key: verdict[key] for key in ("claim", "task", "model", "label", "sentence")}
        yield {**same, "rule": rule}


def _pooled(pooled: Mapping[str, Any], settings: StatisticsSettings) -> dict[str, Any]:
    record, bound = pooled["all"]["slope"], settings.slope_above
    low, high, p = (record[key] for key in ("low", "high", "p"))
    label: Label = "undecided at this n"
    if low is not None and p is not None and low > bound and p < settings.alpha:
        label = "supported"
    elif high is not None and high < bound:
        label = "not supported"
    told = power_text(pooled["all"]["smallest_detectable_slope"], "slope detectable")
    rule = (
        f"supported: permutation p < {settings.alpha:g} and lower bound of the slope > {bound:g}; "
        f"not supported: upper bound < {bound:g}"
    )
    name = pooled["predictor"].replace("_", " ")
    return _entry(f"{name} tells F1 within task and model", label, rule, f"slope {interval_text(record)}; {told}", {})


def _adds(pooled: Mapping[str, Any], settings: StatisticsSettings) -> dict[str, Any]:
    record = pooled["all"]["prediction"]["gain_over_rivals"]
    label: Label = "undecided at this n"
    if record["low"] is not None and record["low"] > 0:
        label = "supported"
    elif record["high"] is not None and record["high"] <= 0:
        label = "not supported"
    rule = (
        "supported: interval of the gain in leave-one-recipe-out R2 above 0; not supported: its upper bound at most 0"
    )
    left = ", ".join(pooled["all"]["rivals_left_out"])
    notes = [f"gain {interval_text(record)}", f"not measured: {left}" if left else ""]
    sentence = "; ".join(filter(None, notes))
    return _entry(f"{pooled['predictor'].replace('_', ' ')} adds to its rivals", label, rule, sentence, {})


def _necessity(entry: Mapping[str, Any], settings: StatisticsSettings) -> dict[str, Any]:
    record, margin, p = entry["excess"], settings.necessity_margin, entry["holm_p"]
    enough = entry["num_draws"] >= ENOUGH_DRAWS
    label: Label = "undecided at this n"
    if (
        enough
        and record["estimate"] is not None
        and record["estimate"] >= margin
        and p is not None
        and p < settings.alpha
    ):
        label = "supported"
    elif enough and record["high"] is not None and record["high"] < margin:
        label = "not supported"
    told = power_text(entry["smallest_detectable_excess"], "excess detectable")
    rule = (
        f"supported: {ENOUGH_DRAWS} or more matched draws, drop beyond theirs >= {margin:g} F1 and Holm p < "
        f"{settings.alpha:g}; not supported: upper bound < {margin:g}"
    )
    holm = "n/a" if p is None else f"{p:.3g}"
    draws = f"{entry['num_draws']} draws" + ("" if enough else ", an illustration")
    sentence = f"F1 lost beyond matched random heads {interval_text(record)}, Holm p {holm}, {draws}; {told}"
    return _entry(f"the top {settings.necessity_dose} heads are necessary", label, rule, sentence, entry)


def _behaviours(entry: Mapping[str, Any], settings: StatisticsSettings) -> Iterator[dict[str, Any]]:
    """Only of behaviours that were measured."""
    for name, record in entry["control_behaviours"].items():
        if record["p"] is None:
            continue
        is_loss = name.endswith("nll")
        margin = settings.noninferiority_margin if is_loss else -settings.equivalence_margin
        worse = record["low"] is not None and (record["low"] > margin if is_loss else record["high"] < margin)
        label: Label = "undecided at this n"
        if record["p"] < settings.alpha:
            label = "supported"
        elif worse:
            label = "not supported"
        unit = f"relative increase of the loss < {margin:g}" if is_loss else f"drop of F1 < {-margin:g}"
        rule = f"supported: one-sided p < {settings.alpha:g} for {unit}; not supported: the interval lies beyond it"
        claim = f"knocking the top {settings.necessity_dose} heads out leaves {name} unharmed"
        told = power_text(record["smallest_provable_margin"], "margin provable")
        yield _entry(claim, label, rule, f"{interval_text(record)}; {told}", entry)


def _sufficiency(entry: Mapping[str, Any], settings: StatisticsSettings) -> dict[str, Any]:
    record, margin = entry["difference"], settings.equivalence_margin
    label: Label = "undecided at this n"
    if record["p"] is not None and record["p"] < settings.alpha:
        label = "supported"
    elif record["high"] is not None and (record["high"] < -margin or record["low"] > margin):
        label = "not supported"
    told = power_text(entry["smallest_provable_margin"], "margin provable")
    heads = f"the heads of set {entry['of_set'].replace('_', ' ')}" if entry["of_set"] else "the heads"
    at = f" at {entry['positions'].replace('_', ' ')}" if entry["positions"] else ""
    rule = f"supported: TOST p < {settings.alpha:g} within {margin:g} F1; not supported: the interval lies beyond it"
    claim = f"patching {heads}{at} makes the model equal to its donor"
    return _entry(claim, label, rule, f"F1 minus the donor's {interval_text(record)}; {told}", entry)
