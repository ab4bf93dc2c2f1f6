"""Results as markdown: the arms, the correlations with their rivals, the verdicts; doses of a knockout; patches."""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Mapping
from typing import Any

from rhstudy.stats.claim_tables import (
    causal_tables,
    claim_table,
    reliability_table,
    sensitivity_table,
    variant_table,
)
from rhstudy.stats.layout import Table, interval_cell, latex_page, markdown_rows, number_cell
from rhstudy.stats.necessity import ENOUGH_DRAWS
from rhstudy.stats.pooled_tables import SUBSETS, pooled_tables

_UNDEFINED = re.compile(r"n/a \(([^()]{3,})\)")
_COLUMNS = (
    ("head recall", "head_recall", ".2f"),
    ("weighted head recall", "weighted_head_recall", ".3f"),
    ("retrieval heads", "num_retrieval_heads", ".0f"),
    ("real NLL", "real_nll", ".3f"),
    ("train loss", "train_loss", ".3f"),
)


def arm_tables(analysis: Mapping[str, Any]) -> Iterator[Table]:
    """A table per task and model with a row per arm: recipe, seed, role, F1 and exact match with intervals, measures.

    Args:
        analysis: from `rhstudy.stats.analysis.analyze_arms`.
    """
    level = f"{100 * analysis['settings']['level']:g} %"
    header = ["recipe", "seed", "role", f"F1 [{level}]", f"exact match [{level}]", *(title for title, _, _ in _COLUMNS)]
    for group in analysis["groups"]:
        rows = [_arm_cells(arm) for arm in group["arms"]]
        yield Table(title=f"{group['task']}, {group['model']}", header=header, rows=rows)


def markdown_table(analysis: Mapping[str, Any]) -> str:
    """`arm_tables` as markdown; undefined cells read ``n/a (reason)``."""
    return "\n".join(table.markdown() for table in arm_tables(analysis))


def _arm_cells(arm: Mapping[str, Any]) -> list[str]:
    numbers = [number_cell(arm[key], spec, arm["reasons"].get(key, "")) for _, key, spec in _COLUMNS]
    marks = [interval_cell(arm["f1"]), interval_cell(arm["exact_match"])]
    return [arm["recipe"], str(arm["seed"]), _role(arm), *marks, *numbers]


def _role(arm: Mapping[str, Any]) -> str:
    if arm["is_untuned"]:
        return "baseline, no point"
    if arm["is_reference"]:
        return "reference" if arm["is_reference_arm"] else "noise ceiling, no point"
    return "point, has real examples" if arm["contains_real"] else "point"


def correlation_tables(analysis: Mapping[str, Any]) -> Iterator[Table]:
    """A row per predictor and subset of recipes: n, Spearman's rho with interval, p, detectable rho, warnings."""
    header = ["predictor of F1", "recipes", "n", "rho", "p", "detectable abs(rho)", "warnings"]
    for group in analysis["groups"]:
        rows = [
            _correlation_cells(name, subset, found[key])
            for name, found in group["correlations"].items()
            for key, subset in SUBSETS
            if key == "all" or found["flagged_recipes"]
        ]
        yield Table(title=f"{group['task']}, {group['model']}", header=header, rows=rows)


def correlation_table(analysis: Mapping[str, Any]) -> str:
    """`correlation_tables` as markdown."""
    return "\n".join(table.markdown() for table in correlation_tables(analysis))


def _correlation_cells(name: str, subset: str, record: Mapping[str, Any]) -> list[str]:
    power = record["smallest_detectable_rho"]
    return [
        name,
        subset,
        str(record["n"]),
        interval_cell(record),
        number_cell(record.get("p"), ".3g", record["reason"]),
        number_cell(power["value"], ".2f", power["reason"]),
        "; ".join(record["warnings"]) or "none",
    ]


def markdown_report(analysis: Mapping[str, Any]) -> str:
    """Verdicts, arms, correlations, noise ceiling, regressions, interventions and rules as one markdown page."""
    verdicts = "\n".join(f"- {verdict['sentence']}" for verdict in analysis["verdicts"])
    ceilings = "\n".join(_ceiling_line(group) for group in analysis["groups"])
    others = "\n".join(f"- {item['sentence']}" for item in analysis["claims"][len(analysis["verdicts"]) :])
    parts = (
        ("Verdict", f"{verdicts}\n{others}"),
        ("Arms", markdown_table(analysis)),
        ("Rank correlation with F1 over recipes", correlation_table(analysis)),
        ("Noise ceiling", f"{ceilings}\n\n{reliability_table(analysis).markdown()}"),
        ("Regression", _regression_lines(analysis["regression"])),
        ("Pooled over tasks and models", "\n".join(table.markdown() for table in _pooled(analysis))),
        ("Interventions", "\n".join(table.markdown() for table in causal_tables(analysis))),
        ("Rules", claim_table(analysis).markdown()),
    )
    return "\n".join(f"## {title}\n\n{_with_notes(body.rstrip())}\n" for title, body in parts if body)


def _pooled(analysis: Mapping[str, Any]) -> Iterator[Table]:
    yield from pooled_tables(analysis)
    yield sensitivity_table(analysis)
    variants = variant_table(analysis)
    if variants.rows:
        yield variants


def latex_report(analysis: Mapping[str, Any]) -> str:
    """Every table of the report as LaTeX."""
    return latex_page(
        [
            claim_table(analysis),
            *arm_tables(analysis),
            *correlation_tables(analysis),
            reliability_table(analysis),
            *_pooled(analysis),
            *causal_tables(analysis),
        ]
    )


def _with_notes(text: str) -> str:
    """`text` with each reason written once: the cells read ``n/a (a)``, the reasons stand below."""
    reasons = list(dict.fromkeys(_UNDEFINED.findall(text)))
    if len(reasons) == len(_UNDEFINED.findall(text)):
        return text
    marks = {reason: _mark(index) for index, reason in enumerate(reasons)}
    short = _UNDEFINED.sub(lambda found: f"n/a ({marks[found[1]]})", text)
    return short + "\n\n" + "\n".join(f"({mark}) {reason}  " for reason, mark in marks.items())


def _mark(index: int) -> str:
    return string.ascii_lowercase[index % 26] * (index // 26 + 1)


def _ceiling_line(group: Mapping[str, Any]) -> str:
    ceiling = group["noise_ceiling"]
    names = ("head_recall", "weighted_head_recall", "cosine")
    shown = [f"{name} {number_cell(ceiling[name], '.3f', ceiling['reasons'].get(name, ''))}" for name in names]
    return (
        f"- {group['task']}, {group['model']}: other seeds of the reference: {ceiling['num_arms']}; {', '.join(shown)}"
    )


def _regression_lines(regression: Mapping[str, Any]) -> str:
    lines = []
    for key, subset in (("all", "all recipes"), ("without_flagged", "without real examples")):
        record = regression[key]
        p = number_cell(record.get("p"), ".3g", record["reason"])
        warnings = "; ".join(record["warnings"]) or "none"
        slope = f"slope {interval_cell(record)}, p {p}, n = {record['n']}"
        lines.append(f"- {subset}: {record['method']}; {slope}; warnings: {warnings}")
    return "\n".join(lines)


def patching_report(patching: Mapping[str, Any], donor: str, recipient: str) -> str:
    """One patching experiment: how it was done, a row per set, rows and metric, and every counter-example.

    Args:
        patching: as the stage `patch` records it (``patching.json``).
        donor: whose heads were put in, escaped for markdown.
        recipient: into which model.

    Returns:
        Markdown; undefined cells read ``n/a (reason)``.
    """
    level = f"{100 * patching['level']:g} %"
    header = ["rows patched", "heads put in", "metric", f"patched [{level}]", f"change [{level}]"]
    header += [f"share of the gap [{level}]", "random heads' change [range]", "null patch's change", "remarks"]
    rows = [_patch_cells(patch, metric) for metric in _METRICS for patch in patching["patches"]]
    models = patching["models"]
    gaps = "; ".join(
        f"{name}: recipient {interval_cell(models[key]['recipient'])}, donor {interval_cell(models[key]['donor'])}, "
        f"gap {interval_cell(models[key]['gap'])}"
        for key, name in _METRICS.items()
    )
    how = (
        f"What heads of {donor} put out replaces what they put out in {recipient}, on the same tokens, "
        f"{patching['num_examples']} examples. The real-data model is the {patching['real_model']}. {gaps}. "
        "Share = change / gap, where the gap's interval excludes 0. Random heads: as many, in the same layers "
        "(borrowed from the nearest where a layer has too few: see the remarks), no retrieval head of either model. "
        "Null patch: the same set between two seeds of the real-data model. A row with all its heads patched hears of "
        "no other row, so all heads do the same at all positions as at the answer rows. Gold log p is in nats per "
        "token."
    )
    worse = [_counter_line(item) for item in patching["counter_examples"]]
    found = "\n".join(worse) or "None: no set lowered the mean of any metric."
    return _with_notes(
        f"{how}\n\n{markdown_rows(header, rows)}\nCounter-examples (the patch made it worse):\n\n{found}"
    )


def _patch_cells(patch: Mapping[str, Any], metric: str) -> list[str]:
    effect, null = patch[metric], patch["null"]
    return [
        patch["positions"].replace("_", " "),
        f"{patch['of_set'].replace('_', ' ')} ({patch['num_heads']})",
        _METRICS[metric],
        *(interval_cell(effect[name]) for name in ("patched", "change", "share", "random_change")),
        interval_cell(null[metric]) if null else "not measured",
        "; ".join([*_moved(patch), *patch["notes"]]) or "none",
    ]


def _counter_line(item: Mapping[str, Any]) -> str:
    kind = "its interval excludes 0" if item["clear"] else "its interval does not exclude 0"
    where = f"{item['of_set'].replace('_', ' ')}, {item['positions'].replace('_', ' ')}"
    return f"- {where}: {_METRICS[item['metric']]} {interval_cell(item['change'])}; {kind}"


def knockout_report(necessity: Mapping[str, Any], heads_of: str) -> str:
    """One knockout experiment: how it was done, and a row per dose and metric.

    Args:
        necessity: as the stage `intervene` records it (``necessity.json``).
        heads_of: the model whose heads were knocked out, escaped for markdown.

    Returns:
        Markdown; where a p rests on fewer than 199 draws the remark says "illustration".
    """
    level = f"{100 * necessity['level']:g} %"
    header = ["heads knocked out", "metric", f"mean [{level}]", f"drop [{level}]", "random heads' drop [range]"]
    header += [f"excess [{level}]", "p", "draws", "remarks"]
    rows = [_dose_cells(dose, metric) for metric in _METRICS for dose in necessity["doses"]]
    baseline = [f"{_METRICS[name]} {interval_cell(necessity['doses'][0][name]['baseline'])}" for name in _METRICS]
    how = (
        f"The k heads of {heads_of} with the highest mean retrieval score; {len(necessity['retrieval_heads'])} heads "
        f"retrieve (mean score >= {necessity['threshold']:g}). Mode {necessity['mode']}, scope {necessity['scope']}, "
        f"{necessity['num_examples']} examples. Nothing knocked out: {', '.join(baseline)}. Random heads: as many, in "
        "the same layers (borrowed from the nearest where a layer has too few: see the remarks), none of the top k and "
        f"no retrieval head of {heads_of}. Excess = drop - mean drop of random heads; p is "
        "one-sided, by randomization over draws. (all): every retrieval head. Gold log p is in nats per token."
    )
    return _with_notes(f"{how}\n\n{markdown_rows(header, rows)}".rstrip())


_METRICS = {"f1": "F1", "exact_match": "exact match", "gold_logp": "gold log p"}


def _dose_cells(dose: Mapping[str, Any], metric: str) -> list[str]:
    effect = dose[metric]
    excess = effect["excess"]
    return [
        f"{dose['dose']}{' (all)' if dose['is_all_retrieval_heads'] else ''}",
        _METRICS[metric],
        *(interval_cell(effect[name]) for name in ("top", "drop", "random_drop")),
        interval_cell(excess),
        number_cell(excess["p"], ".3g", excess["reason"]),
        str(effect["num_draws"]),
        "; ".join(_remarks(dose, effect["num_draws"])) or "none",
    ]


def _remarks(dose: Mapping[str, Any], num_draws: int) -> list[str]:
    few = [f"illustration: fewer than {ENOUGH_DRAWS} draws"] if 0 < num_draws < ENOUGH_DRAWS else []
    return [*few, *_moved(dose), *dose["notes"]]


def _moved(controls: Mapping[str, Any]) -> list[str]:
    return [
        f"layer {item['layer']} borrowed {item['count']} from {item['from_layer']}" for item in controls["borrowed"]
    ]
