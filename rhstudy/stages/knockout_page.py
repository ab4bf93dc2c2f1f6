"""One knockout experiment as markdown: the statistics by mode and scope, further sets of heads, control behaviours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rhstudy.stages.outcomes import MARKS, of_variant, variants_of

_BEHAVIOURS = {
    "short_f1": "F1, gold passages alone",
    "short_nll": "gold loss, gold passages alone",
    "text_nll": "loss on plain text",
}


def knockout_text(necessity: Mapping[str, Any], heads_of: str) -> str:
    """The section of a report about one run of `intervene`.

    Args:
        necessity: as `rhstudy.stages.outcomes.read_necessity` gives it.
        heads_of: the model whose heads were knocked out, escaped for markdown.
    """
    from rhstudy.stats.tables import knockout_report

    ways = variants_of(necessity)
    parts = []
    for way in ways:
        one = {**necessity, "mode": way.mode, "scope": way.scope, "doses": of_variant(necessity["doses"], way)}
        parts += [f"### Mode {way.mode}, scope {way.scope}"] * (len(ways) > 1) + [knockout_report(one, heads_of)]
    return "\n\n".join([*parts, *_further(necessity), *_behaviours(necessity)])


def _further(necessity: Mapping[str, Any]) -> list[str]:
    """The heads of the lowest score and all heads at once; nothing where neither was asked for."""
    rows = [row for row in necessity["means"] if row["kind"] in ("lowest", "all_heads")]
    if not rows:
        return []
    cells = [
        [
            row["kind"].replace("_", " "),
            str(row["dose"]),
            row["mode"],
            row["scope"],
            *(_number(row[name]) for name in MARKS),
        ]
        for row in rows
    ]
    header = ["heads knocked out", "number", "mode", "scope", "F1", "exact match", "gold loss"]
    said = {dose["dose"]: "; ".join(_of_lowest(dose)) for dose in necessity["doses"]}
    remarks = [f"{dose} heads: {text}." for dose, text in said.items() if text]
    text = "Heads of the lowest mean score, as many and in the same layers as the top heads; all heads at once."
    return ["\n\n".join([" ".join([text, *remarks]), _table(header, cells)])]


def _of_lowest(dose: Mapping[str, Any]) -> list[str]:
    """What a reader should know of a dose's heads of the lowest score."""
    return [text for text in (dose["lowest_reason"], _moves(dose["lowest_borrowed"]), dose["lowest_note"]) if text]


def _moves(borrowed: Sequence[Mapping[str, int]]) -> str:
    return ", ".join(f"layer {item['layer']} borrowed {item['count']} from {item['from_layer']}" for item in borrowed)


def _behaviours(necessity: Mapping[str, Any]) -> list[str]:
    rows = necessity["behaviour_means"]
    if not rows:
        return []
    cells = [
        [
            _BEHAVIOURS[row["behaviour"]],
            row["mode"],
            row["scope"],
            _number(row["baseline"]),
            _number(row["top"]),
            f"{_number(row['random'])} [{_number(row['random_low'])}, {_number(row['random_high'])}]",
            str(row["num_draws"]),
            _change(row),
        ]
        for row in rows
    ]
    dose = f"top {necessity['primary_dose']}"
    header = ["control behaviour", "mode", "scope", "no knockout", dose, "random heads [range]", "draws", "change"]
    text = (
        f"Control behaviours at the primary dose, {necessity['primary_dose']} heads: does the model still answer from "
        f"a short context, and is text still as likely ({necessity['num_text_tokens']} tokens at most, heads knocked "
        "out at every row)? Losses in nats per token; change: of the top heads, relative to no knockout."
    )
    return [f"{text}\n\n{_table(header, cells)}"]


def _change(row: Mapping[str, Any]) -> str:
    return f"{100 * (row['top'] / row['baseline'] - 1):+.1f} %" if row["baseline"] else "n/a"


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, ["---"] * len(header), *rows])
