"""`rhstudy detect` in each of its modes: what it writes, what the table says, and what it refuses."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from commands import Here, data_values, write_config

from rhstudy.heads.files import load_scores

MODES = {
    "teacher_forced": (),
    "decode": ("--scoring.max-new-tokens", "4"),
    "published_code": ("--scoring.published.no-rouge-gate", "--scoring.published.no-decoded-answer"),
    "attention_mass": ("--scoring.top-k", "3"),
}


def prepared(here: Here, world: Path) -> tuple[str, ...]:
    """make-data in `here`; returns the arguments every detect run shares."""
    model = {"name": str(world / "model"), "device": "cpu"}
    data = data_values(world, recipe="real", parts=["score"])
    tracking = {"recorder": "folder"}
    write_config(here.folder / "data.toml", {"data": data, "model": model, "tracking": tracking})
    write_config(here.folder / "model.toml", {"model": model, "tracking": tracking})
    made = here("make-data", "data.toml")
    assert made.code == 0, made.err
    return "model.toml", "--data", made.facts["run_id"], "--scoring.batch-size", "2"


def test_every_mode_writes_its_scores_and_a_table_of_heads(here: Here, world: Path) -> None:
    shared, means = prepared(here, world), {}
    for mode, flags in MODES.items():
        done = here("detect", *shared, "--scoring.mode", mode, *flags)
        assert done.code == 0, done.err[-2000:]
        folder = Path(done.facts["artifact_dir"])
        scores = load_scores(folder)
        means[mode] = scores.mean()
        assert scores.mode == mode
        assert (folder / "head_score.json").is_file() == (mode != "attention_mass")
        with (folder / "heads.csv").open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
        assert len(rows) == scores.num_layers * scores.num_heads == done.facts["num_heads"]
        for row in rows:
            layer, head = int(row["layer"]), int(row["head"])
            assert float(row["mean"]) == pytest.approx(scores.mean()[layer, head], abs=1e-6)
            assert float(row["standard_error"]) == pytest.approx(scores.standard_error()[layer, head], abs=1e-6)
        chosen = {(int(row["layer"]), int(row["head"])) for row in rows if row["is_retrieval_head"] == "1"}
        assert len(chosen) == done.facts["num_retrieval_heads"]
        if mode == "attention_mass":
            ranked = np.argsort(-means[mode], axis=None, kind="stable")[:3]
            assert chosen == {divmod(int(place), scores.num_heads) for place in ranked}
        assert done.facts["split_half_reliability"] is None or done.facts["split_half_reliability"] <= 1
        assert done.facts["largest_standard_error"] == pytest.approx(scores.standard_error().max(), abs=1e-6)
    assert not np.array_equal(means["teacher_forced"], means["published_code"])
    again = here("detect", *shared, "--scoring.mode", "attention_mass", "--scoring.top-k", "3")
    assert again.facts["reused"] is True


REFUSED = {
    "no rank": (("--scoring.mode", "attention_mass"), "scoring.top_k must be at least 1 in mode attention_mass, got 0"),
    "too many": (("--scoring.top-k", "999"), "k must be between 1 and the model's"),
    "mode": (("--scoring.mode", "guess"), "guess"),
    "null query": (
        ("--scoring.mode", "attention_mass", "--scoring.top-k", "1", "--scoring.mass.null-query", " "),
        "mass.null_query must be a text",
    ),
}


def test_bad_settings_end_with_code_2_and_their_reason(here: Here, world: Path) -> None:
    shared = prepared(here, world)
    for flags, reason in REFUSED.values():
        done = here("detect", *shared, *flags)
        assert done.code == 2, (flags, done.err)
        assert reason in " ".join(done.err.split()), done.err
