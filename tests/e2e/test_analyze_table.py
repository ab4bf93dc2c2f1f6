"""`rhstudy analyze TABLE --out DIR` on a user's own CSV and Parquet files, and bad ones refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from commands import Here

FOLDER = ("--tracking.recorder", "folder")
QUICK = ("--statistics.num-permutations", "200", "--statistics.num-resamples", "200")


def tables(folder: Path) -> None:
    rng, arms, examples = np.random.default_rng(0), [], []
    for recipe in ["real", *(f"recipe_{index:02d}" for index in range(11))]:
        for task in ("mdqa", "musique"):
            for seed in (0, 1):
                recall = rng.random() if recipe != "real" else 1.0
                marks = np.round(np.clip(0.2 + 0.5 * recall + 0.2 * rng.standard_normal(12), 0, 1), 2)
                key = {"task": task, "model": "m", "recipe": recipe, "seed": seed}
                arms.append({**key, "f1": marks.mean(), "head_recall": recall, "real_nll": 2 - recall, "remark": "x"})
                examples += [{**key, "example_id": f"e{i}", "f1": mark} for i, mark in enumerate(marks)]
    pd.DataFrame(arms).to_csv(folder / "arms.csv", index=False)
    pd.DataFrame(arms).to_parquet(folder / "arms.parquet")
    pd.DataFrame(examples).to_csv(folder / "examples.csv", index=False)
    kinds = [("baseline", 0, None, 0.7), ("top", 10, None, 0.2), *(("random", 10, draw, 0.6) for draw in range(3))]
    outcomes = [
        {"task": "mdqa", "example_id": f"e{i}", "kind": kind, "dose": dose, "draw": draw, "f1": f1 + 0.01 * i}
        for kind, dose, draw, f1 in kinds
        for i in range(8)
    ]
    pd.DataFrame(outcomes).to_csv(folder / "outcomes.csv", index=False)


def test_a_table_is_analysed_as_arms_are(here: Here, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tables(tmp_path)
    more = ("--examples", "examples.csv", "--interventions", "outcomes.csv", *QUICK, *FOLDER)
    first = here("analyze", "arms.csv", "--out", "results", *more)
    assert first.code == 0, first.err[-2000:]
    assert "columns that nothing reads: remark" in caplog.text
    written = json.loads((tmp_path / "results" / "analysis.json").read_text(encoding="utf-8"))
    assert [group["task"] for group in written["groups"]] == ["mdqa", "musique"]
    assert written["groups"][0]["arms"][0]["f1"]["n"] == 12
    assert written["pooled"]["all"]["num_cells"] == 22
    assert written["groups"][0]["reference_arm"] == "mdqa/m/real/0"
    assert "Pooled over tasks and models" in (tmp_path / "results" / "report.md").read_text(encoding="utf-8")
    assert written["causal"]["necessity"][0]["excess"]["estimate"] == pytest.approx(0.4)
    verdicts = {item["claim"]: item["label"] for item in written["claims"]}
    assert verdicts["the top 10 heads are necessary"] == "undecided at this n"
    assert verdicts["head recall tells F1 within task and model"] == "supported"
    drawn = {path.stem for path in (tmp_path / "results" / "figures").glob("*.png")}
    assert {"forest_slope", "forest_correlations", "residuals", "noise_ceiling_0", "f1_against_head_recall_1"} <= drawn
    again = here("analyze", "arms.csv", "--out", "others", *more)
    assert again.facts["reused"] is True
    assert (tmp_path / "others" / "analysis.json").is_file()
    parquet = here("analyze", "arms.parquet", "--out", "same", *more)
    assert parquet.facts["reused"] is False
    names = ("analysis.json", "arms.csv", "report.md", "tables.tex")
    for name in names:
        assert (tmp_path / "same" / name).read_bytes() == (tmp_path / "results" / name).read_bytes()


def test_bad_tables_are_refused(here: Here, tmp_path: Path) -> None:
    tables(tmp_path)
    (tmp_path / "bad.csv").write_text("task,model,recipe,seed,f1\nt,m,a,0,0.5\n", encoding="utf-8")
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    for arguments, text in {
        ("no.csv",): "table must be an existing file, got 'no.csv'",
        ("bad.csv",): "column head_recall must be in the arm table",
        ("arms.csv", "--examples", "arms.csv"): "column example_id must be in the example table",
        ("--examples", "examples.csv"): "arms must name at least one arm",
        ("arms.csv", "--interventions", "no.jsonl"): "interventions.0 must be an existing file, got 'no.jsonl'",
        ("arms.csv", "--out", "file", *QUICK): "out must be a folder that can be written, got 'file'",
    }.items():
        outcome = here("analyze", *arguments, *FOLDER)
        assert outcome.code == 2, outcome.err[-2000:]
        assert text in " ".join(outcome.err.split())
    (tmp_path / "both.toml").write_text(
        'table = "arms.csv"\n[[arms]]\ndetect = "a"\nevaluate = "b"\n', encoding="utf-8"
    )
    both = here("analyze", "both.toml", *FOLDER)
    assert (both.code, "table must be left out where arms are given" in both.err) == (2, True)
    (tmp_path / "stray.toml").write_text(
        'examples = "examples.csv"\n[[arms]]\ndetect = "a"\nevaluate = "b"\n', encoding="utf-8"
    )
    stray = here("analyze", "stray.toml", *FOLDER)
    assert (stray.code, "examples must be given with a table" in stray.err) == (2, True)
