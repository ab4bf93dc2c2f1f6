"""The findings of `rhstudy sweep-validate` for people: tables in Markdown, a CSV, figures, headline numbers."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rhstudy.figures import regret_bars, save_png, signal_scatter
from rhstudy.sweep.selection import RECALLS, SIGNALS

Findings = Mapping[str, Any]
_COLUMNS = ("trial", "recipe", "corner", "chosen_by", "seed", "f1", "f1_recipe", "f1_low", "f1_high", *SIGNALS)


def facts_of(findings: Findings) -> dict[str, Any]:
    """Headline numbers; None where undefined."""
    facts: dict[str, Any] = {name: findings[name] for name in ("num_candidates", "num_evaluated", "num_eval_rows")}
    facts["best_f1"] = findings["recipes"][0]["f1"]["estimate"]
    for way in findings["ways"]:
        facts[f"regret_{way['way']}"] = way["regret"]["estimate"]
    for name, signal in findings["signals"].items():
        facts[f"rho_{name}"] = signal["correlation"]["estimate"]
        facts[f"rows_needed_{name}"] = signal["reliability"]["needed"]["estimate"]
        facts[f"saved_s_{name}"] = signal["saved_s"]["as_run"]["saved_s"]["estimate"]
    facts["rows_needed_f1"] = findings["f1"]["reliability"]["needed"]["estimate"]
    return facts


def csv_text(findings: Findings) -> str:
    """A row a recipe and seed; empty cells are undefined."""
    stream = io.StringIO()
    table = csv.writer(stream, lineterminator="\n")
    table.writerow(_COLUMNS)
    for row in findings["recipes"]:
        whole = [row["f1"][name] for name in ("estimate", "low", "high")]
        named = [row["trial"], row["recipe"], row["corner"], " ".join(row["chosen_by"])]
        for seed, f1 in row["f1_by_seed"].items():
            table.writerow([*named, seed, f1, *whole, *(row["signals"][name] for name in SIGNALS)])
    return stream.getvalue()


def write_figures(findings: Findings, folder: Path) -> None:
    """``recall_f1.png`` (F1 against each signal, by way of choosing) and ``regret.png``."""
    save_png(signal_scatter(findings), folder / "recall_f1.png")
    save_png(regret_bars(findings["ways"]), folder / "regret.png")


def page(findings: Findings) -> str:
    """All tables, in Markdown."""
    parts = [_recipes(findings), _ways(findings), _signals(findings), _references(findings), _notes(findings)]
    return "\n\n".join(part for part in parts if part)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _number(value: float | None, digits: int = 3) -> str:
    return "n/a" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _interval(statistic: Findings, digits: int = 3) -> str:
    """``0.41 [0.30, 0.52]``; n/a for what is undefined."""
    if statistic["estimate"] is None:
        return "n/a"
    if statistic["low"] is None and statistic["high"] is None:
        return _number(statistic["estimate"], digits)
    return f"{_number(statistic['estimate'], digits)} [{_number(statistic['low'], digits)}, " \
           f"{_number(statistic['high'], digits)}]"  # fmt: skip


def _recipes(findings: Findings) -> str:
    head = ["trial", "chosen by", "seeds", "F1 on the real task", *SIGNALS]
    rows = [
        [str(row["trial"]) + (f" ({row['corner']})" if row["corner"] else ""), ", ".join(row["chosen_by"]),
         str(len(row["f1_by_seed"])), _interval(row["f1"]), *(_number(row["signals"][name]) for name in SIGNALS)]
        for row in findings["recipes"]
    ]  # fmt: skip
    rows += [
        [name, "(no point)", str(len(item["f1_by_seed"])), _interval(item["f1"]), *["" for _ in SIGNALS]]
        for name, item in findings["beside"].items()
    ]
    title = (
        f"Evaluated: {findings['num_evaluated']} of {findings['num_candidates']} recipes of the sweep "
        f"{findings['sweep']} on {findings['num_eval_rows']} rows (real_nll with its sign changed: higher is better)"
    )
    return f"{title}\n\n{_table(head, rows)}"


def _ways(findings: Findings) -> str:
    head = ["chosen by", "trial", "its F1", "regret", "cross-fitted", "regret of its best", "note"]
    rows = [
        [way["way"], " ".join(map(str, way["chosen"])) or "none", _number(way["f1"]), _interval(way["regret"]),
         _number(way["cross_fitted_regret"]), _interval(way["regret_best_of"]), way["note"] or way["regret"]["reason"]]
        for way in findings["ways"]
    ]  # fmt: skip
    return f"Regret in F1 against the best evaluated recipe\n\n{_table(head, rows)}"


def _signals(findings: Findings) -> str:
    target = findings["reliability"]
    head = ["signal", "rho with F1", "p", f"rows for {target:g}", "directly", "s at that n", "trial, s", "saved, s",
            "saved as run, s"]  # fmt: skip
    rows = []
    for name, item in findings["signals"].items():
        then, now = item["saved_s"]["at_reliability"], item["saved_s"]["as_run"]
        rows.append([
            name, _interval(item["correlation"], 2), _number(item["correlation"]["p"]),
            _interval(item["reliability"]["needed"], 0), _number(item["reliability"]["direct"], 0),
            _interval(item["cost_s"], 1), _interval(then["trial_s"], 1), _saved(then), _saved(now),
        ])  # fmt: skip
    own = findings["f1"]
    rows.append([
        "F1 itself", "", "", _interval(own["reliability"]["needed"], 0), _number(own["reliability"]["direct"], 0),
        _interval(own["cost_s"], 1), _interval(own["trial_s"], 1), "", "",
    ])  # fmt: skip
    power = f"With {findings['num_evaluated']} recipes, 80 % power needs rho of {_number(own['detectable_rho'], 2)}."
    title = f"Signals (rank reliability {target:g} between disjoint rows)"
    return f"{title}\n\n{_table(head, rows)}\n\n{_seconds(findings)}\n{power}"


def _seconds(findings: Findings) -> str:
    spent = findings["seconds"]
    return (
        f"Recorded seconds: data and training of a model {_interval(spent['training'], 1)} "
        f"(n = {spent['training']['n']}), "
        f"a score row {_interval(spent['score_row'])}, an eval row {_interval(spent['eval_row'])}."
    )


def _saved(item: Findings) -> str:
    share = "" if item["saved_share"] is None else f" ({item['saved_share']:.0%})"
    return _interval(item["saved_s"], 0) + share


def _references(findings: Findings) -> str:
    head = ["reference", "retrieval heads", "recall: rho with whole", "with F1", "weighted: rho with whole", "with F1"]
    rows = []
    for item in findings["references"]:
        name = f"{item['num_distinct']} real rows" if item["num_distinct"] else "untuned"
        if item["reason"]:
            rows.append([name, "n/a", *["n/a"] * 4])
            continue
        found = [_interval(item[recall][key], 2) for recall in RECALLS for key in ("with_whole_reference", "with_f1")]
        rows.append([name, str(item["num_retrieval_heads"]), *found])
    return f"Recall against smaller references\n\n{_table(head, rows)}" if rows else ""


def _notes(findings: Findings) -> str:
    lines = list(dict.fromkeys(_reasons(findings)))
    lines += [f"left out: {item}" for item in findings["left_out"]]
    return "\n".join(f"- {line}" for line in lines)


def _reasons(findings: Findings) -> Iterator[str]:
    """Why something is n/a."""
    for name, item in {**findings["signals"], "F1": findings["f1"]}.items():
        needed, direct = item["reliability"]["needed"]["reason"], item["reliability"]["direct_reason"]
        told = {"rho": item.get("correlation", {}).get("reason", ""), "rows": needed, "directly": direct}
        yield from (f"{name}, {label}: {reason}" for label, reason in told.items() if reason)
    for item in findings["references"]:
        name = f"reference of {item['num_distinct']}"
        if item["reason"]:
            yield f"{name}: {item['reason']}"
            continue
        for recall in RECALLS:
            reason = item[recall]["why_undefined"] or item[recall]["with_whole_reference"]["reason"]
            yield from ([f"{name}, {recall}: {reason}"] if reason else [])
