"""Tables in both spellings: nothing that a user wrote is markup."""

from __future__ import annotations

from rhstudy.stats.layout import Table, interval_cell, latex_page, latex_text, number_cell

TABLE = Table(
    title="50 % of a_b", header=("x", "y & z"), rows=[("a|b", "1 % of $5_{x}^2~\\cmd"), ("c", "n/a (no <n>)")]
)


def test_markdown_escapes_bars():
    assert TABLE.markdown() == (
        "### 50 % of a_b\n\n| x | y & z |\n| --- | --- |\n| a\\|b | 1 % of $5_{x}^2~\\cmd |\n| c | n/a (no <n>) |\n"
    )
    assert Table(title="t", header=("x",), rows=[]).markdown() == "### t\n\nNothing to show.\n"


def test_latex_escapes_every_special_character():
    text = TABLE.latex()
    assert r"\caption{50 \% of a\_b}" in text
    assert r"x & y \& z \\" in text
    row = r"a\textbar{}b & 1 \% of \$5\_\{x\}\textasciicircum{}2\textasciitilde{}\textbackslash{}cmd \\"
    assert row in text.splitlines()
    assert r"n/a (no \textless{}n\textgreater{})" in text
    assert text.count(r"\begin{tabular}{ll}") == text.count(r"\end{tabular}") == 1
    assert latex_text("#") == r"\#"
    page = latex_page([TABLE, TABLE])
    assert (page.startswith("% needs \\usepackage{booktabs}"), page.count(r"\toprule")) == (True, 2)


def test_cells():
    record = {"estimate": 0.12345, "low": 0.1, "high": 0.2, "reason": ""}
    assert interval_cell(record) == "0.123 [0.100, 0.200]"
    assert interval_cell({**record, "low": None, "reason": "no interval: few"}) == "0.123 [n/a (few)]"
    assert interval_cell({**record, "estimate": None, "reason": "none"}) == "n/a (none)"
    assert number_cell(None, ".2f", "why") == "n/a (why)"
    assert number_cell(0.5, ".2f", "") == "0.50"
