"""One table, two spellings: the cells of a result as markdown or LaTeX, and how a number or its absence is written."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}",
}  # fmt: skip
_SPECIAL = re.compile("|".join(map(re.escape, _LATEX)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A titled table of text cells.

    Attributes:
        title: without markup.
        header: one name a column.
        rows: as many cells as the header, each.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """A heading and a markdown table; a line that says so where there is no row."""
        body = markdown_rows(self.header, self.rows) if self.rows else "Nothing to show.\n"
        return f"### {self.title}\n\n{body}"

    def latex(self) -> str:
        """A `tabular` of package booktabs inside a `table` with the title as caption."""
        lines = [" & ".join(map(latex_text, row)) + r" \\" for row in self.rows]
        return "\n".join(
            [
                r"\begin{table}",
                rf"\caption{{{latex_text(self.title)}}}",
                rf"\begin{{tabular}}{{{'l' * len(self.header)}}}",
                r"\toprule",
                " & ".join(map(latex_text, self.header)) + r" \\",
                r"\midrule",
                *lines,
                r"\bottomrule",
                r"\end{tabular}",
                r"\end{table}",
            ]
        )


def latex_page(tables: Iterable[Table]) -> str:
    """All tables as LaTeX, to be read with ``\\input``; needs booktabs."""
    return "% needs \\usepackage{booktabs}\n\n" + "\n\n".join(table.latex() for table in tables) + "\n"


def latex_text(text: str) -> str:
    """`text` with the characters that LaTeX would take for commands spelled out."""
    return _SPECIAL.sub(lambda found: _LATEX[found[0]], text)


def markdown_rows(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table; bars inside cells are escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def number_cell(value: float | None, spec: str, reason: str) -> str:
    """A number, or ``n/a (reason)``."""
    return f"n/a ({reason})" if value is None else format(value, spec)


def power_cell(power: Mapping[str, Any]) -> str:
    """What a test would find at the n at hand, or ``n/a (reason)``."""
    return number_cell(power["value"], ".3f", power["reason"])


def interval_cell(record: Mapping[str, Any]) -> str:
    """``estimate [low, high]`` of a `Statistic` in JSON, or why there is none."""
    estimate = number_cell(record["estimate"], ".3f", record["reason"])
    if record["estimate"] is None:
        return estimate
    if record["low"] is None:
        return f"{estimate} [n/a ({record['reason'].removeprefix('no interval: ')})]"
    return f"{estimate} [{record['low']:.3f}, {record['high']:.3f}]"
