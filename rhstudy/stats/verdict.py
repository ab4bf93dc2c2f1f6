"""The verdict on the recall claim, by a rule declared in the settings before the run (SCIENCE.md section 7).

Supported: Holm-corrected p below alpha and the interval's lower end above `supported_above`. Not supported: its upper
end below `supported_above`. Undecided: everything else, an undefined interval among it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from statsmodels.stats.multitest import multipletests

from rhstudy.stats.statistic import StatisticsSettings

Label = Literal["supported", "not supported", "undecided at this n"]


def verdict_label(low: float | None, high: float | None, holm_p: float | None, settings: StatisticsSettings) -> Label:
    """The rule; a missing bound or p decides nothing."""
    bound = settings.supported_above
    if low is not None and holm_p is not None and low > bound and holm_p < settings.alpha:
        return "supported"
    if high is not None and high < bound:
        return "not supported"
    return "undecided at this n"


def judge(groups: Sequence[Mapping[str, Any]], settings: StatisticsSettings) -> list[dict[str, Any]]:
    """A verdict per task and model, p corrected by Holm (1979) over them, with all recipes and without flagged ones.

    Args:
        groups: ``groups`` of `rhstudy.stats.analysis.analyze_arms`.
        settings: the rule.

    Returns:
        For each group ``task``, ``model``, ``claim``, ``label``, ``holm_p``, ``label_without_flagged``,
        ``holm_p_without_flagged`` ``sentence`` and the ``reasons`` of nulls.
    """
    found = [group["correlations"][settings.predictor] for group in groups]
    corrected = {key: holm([item[key]["p"] for item in found]) for key in ("all", "without_flagged")}
    verdicts = []
    for index, (group, item) in enumerate(zip(groups, found, strict=True)):
        p = {key: values[index] for key, values in corrected.items()}
        labels = {key: verdict_label(item[key]["low"], item[key]["high"], p[key], settings) for key in p}
        verdicts.append(
            {
                "task": group["task"],
                "model": group["model"],
                "claim": f"{settings.predictor} predicts F1 over recipes",
                "label": labels["all"],
                "holm_p": p["all"],
                "label_without_flagged": labels["without_flagged"],
                "holm_p_without_flagged": p["without_flagged"],
                "sentence": _sentence(group, item, labels, p, settings),
                "reasons": {
                    name: item[key]["reason"]
                    for name, key in (("holm_p", "all"), ("holm_p_without_flagged", "without_flagged"))
                    if p[key] is None
                },
            }
        )
    return verdicts


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction over the defined p."""
    defined = [value for value in values if value is not None]
    corrected = iter(multipletests(defined, method="holm")[1] if defined else ())
    return [None if value is None else float(next(corrected)) for value in values]


def _sentence(
    group: Mapping[str, Any],
    found: Mapping[str, Any],
    labels: Mapping[str, Label],
    p: Mapping[str, float | None],
    settings: StatisticsSettings,
) -> str:
    name = settings.predictor.replace("_", " ")
    text = (
        f"{group['task']}, {group['model']}: the claim that {name} predicts F1 over recipes is {labels['all']} "
        f"({correlation_text(found['all'], p['all'])})."
    )
    if not found["flagged_recipes"]:
        return f"{text} No recipe contains real examples."
    rest = correlation_text(found["without_flagged"], p["without_flagged"])
    return f"{text} Without recipes that contain real examples: {labels['without_flagged']} ({rest})."


def correlation_text(record: Mapping[str, Any], holm_p: float | None) -> str:
    """One correlation in words: n, rho with interval, p, and what this n could have detected."""
    if record["estimate"] is None:
        return f"n = {record['n']}, rho n/a: {record['reason']}"
    interval = record["reason"] if record["low"] is None else f"interval {record['low']:.2f} to {record['high']:.2f}"
    corrected = "n/a" if holm_p is None else f"{holm_p:.3g}"
    power = record["smallest_detectable_rho"]
    detectable = power["reason"] if power["value"] is None else f"|rho| detectable at this n {power['value']:.2f}"
    return f"n = {record['n']}, rho {record['estimate']:.2f}, {interval}, Holm p {corrected}, {detectable}"
