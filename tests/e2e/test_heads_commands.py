"""`rhstudy heads show|compare|export` on files: what other tools wrote and will read, and published figures."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Here

PAIRS = [["1-1", 0.75], ["0-1", 0.5], ["0-0", 0.25], ["1-0", -0.25]]
OURS = {"0-0": [0.0, 0.0], "0-1": [0.5, 0.25], "1-0": [0.0, 0.0], "1-1": [0.25, 0.75]}


@pytest.fixture
def run(here: Here) -> Here:
    files: dict[str, Any] = {"qr.json": PAIRS, "ours.json": OURS, "silent.json": {key: [0.0] for key in OURS}}
    for name, values in files.items():
        (here.folder / name).write_text(json.dumps(values), encoding="utf-8")
    return here


def export(run: Here, scores: str, form: str, *flags: str) -> tuple[dict[str, Any], Path]:
    outcome = run("heads", "export", scores, "--format", form, "--output", "new/out", *flags)
    assert outcome.code == 0, outcome.err
    assert (outcome.facts["output"], outcome.facts["format"]) == ("new/out", form)
    return outcome.facts, run.folder / "new" / "out"


def test_show_and_compare_take_qrhead_lists(run: Here) -> None:
    shown = run("heads", "show", "qr.json", "--top-k", "1")
    assert shown.code == 0, shown.err
    assert (shown.facts["mode"], shown.facts["num_heads"], shown.facts["num_scored"]) == ("qrhead", 4, 1)
    assert shown.facts["top_heads"][0] == {"layer": 1, "head": 1, "mean": 0.75, "standard_error": None}
    compared = run("heads", "compare", "qr.json", "ours.json", "--top-k", "1")
    assert compared.code == 0, compared.err
    assert (compared.facts["recall"], compared.facts["weighted_recall"]) == (1, None)
    assert compared.facts["reasons"]["weighted_recall"] == "it is defined for scores >= 0, and one is negative"
    assert compared.facts["average_precision"] == 1


def test_show_compares_with_a_head_set(run: Here) -> None:
    facts = run("heads", "show", "ours.json", "--head-set", "1-1,1-0").facts["head_set"]
    assert (facts["num_heads"], facts["recall"], facts["precision"]) == (2, 0.5, 0.5)


def test_export_qrhead(run: Here) -> None:
    facts, path = export(run, "ours.json", "qrhead")
    assert facts["num_heads"] == 4
    assert json.loads(path.read_text()) == [["1-1", 0.5], ["0-1", 0.375], ["0-0", 0], ["1-0", 0]]
    assert run("heads", "show", str(path), "--top-k", "2").facts["mode"] == "qrhead"
    refused = run("heads", "show", str(path))
    assert (refused.code, "top_k must be at least 1 for scores of mode qrhead" in refused.err) == (2, True)


@pytest.mark.parametrize(
    ("flags", "text", "rule"),
    [
        (("--top-k", "1"), "1-1\n", "top 1 by mean score"),
        (("--threshold", "0.3"), "0-1,1-1\n", "mean score >= 0.3"),
    ],
)
def test_export_qrhead_set(run: Here, flags: tuple[str, str], text: str, rule: str) -> None:
    facts, path = export(run, "ours.json", "qrhead-set", *flags)
    assert path.read_text() == text
    assert (facts["num_heads"], facts["rule"]) == (text.count("-"), rule)


def test_export_duoattention(run: Here) -> None:
    facts, path = export(run, "ours.json", "duoattention", "--num-kv-heads", "2", "--recent-size", "64")
    np.testing.assert_array_equal(np.loadtxt(path / "full_attention_heads.tsv", delimiter="\t"), [[0, 0.375], [0, 0.5]])
    assert json.loads((path / "config.json").read_text()) == {"sink_size": 128, "recent_size": 64}
    assert (facts["num_heads"], facts["num_kv_heads"], facts["fraction_zero"]) == (4, 4, 0.5)


@pytest.mark.parametrize("form", ["published", "headkv"])
def test_export_published(run: Here, form: str) -> None:
    facts, path = export(run, "ours.json", form)
    assert facts["num_heads"] == 4
    assert list(json.loads(path.read_text()).items()) == list(OURS.items())
    assert run("heads", "show", str(path)).facts["mode"] == "published"


BAD = {
    "an unknown format": (("ours.json", "gguf"), r"invalid choice"),
    "no scores": (("none.json", "qrhead"), r"heads must be existing head scores, got 'none.json'"),
    "a set without a rule": (("ours.json", "qrhead-set"), r"export must have one of top_k and threshold, got {}"),
    "a set with two rules": (
        ("ours.json", "qrhead-set", "--top-k", "2", "--threshold", "0.1"),
        r"export must have one of top_k and threshold, got {'top_k': 2, 'threshold': 0.1}",
    ),
    "more heads than there are": (
        ("ours.json", "qrhead-set", "--top-k", "5"),
        r"k must be between 1 and the model's 4 heads, got 5",
    ),
    "an option of another format": (
        ("ours.json", "headkv", "--top-k", "2"),
        r"export.top_k must be left out with --format headkv, got 2. It is for --format qrhead-set",
    ),
    "a pattern without kv heads": (
        ("ours.json", "duoattention"),
        r"export.num_kv_heads must be given with --format duoattention, got 0",
    ),
    "kv heads that do not divide": (
        ("ours.json", "duoattention", "--num-kv-heads", "3"),
        r"num_kv_heads must divide the 2 query heads of a layer, got 3",
    ),
    "negative scores for headkv": (("qr.json", "headkv"), r"HeadKV scores must be >= 0, got -0.25"),
    "negative scores as published": (("qr.json", "published"), r"published scores must be >= 0, got -0.25"),
    "a silent model for headkv": (("silent.json", "headkv"), r"HeadKV scores must have a sum above 0, got 0.0"),
    "an output that is a folder": (
        ("ours.json", "qrhead", "--output", "."),
        r"export.output must be a place that can be written, got '.' ?. Writing failed: Is a directory",
    ),
    "an output below a file": (
        ("ours.json", "qrhead", "--output", "qr.json/out"),
        r"export.output must be a place that can be written, got 'qr.json/out'",
    ),
    "no output": (("ours.json", "qrhead", "--output", ""), r"export.output must name a file or folder, got ''"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_export_exits_2_and_writes_nothing(run: Here, case: str) -> None:
    (scores, form, *flags), wanted = BAD[case]
    outcome = run(
        "heads", "export", scores, "--format", form, *(flags if "--output" in flags else ["--output", "out", *flags])
    )
    text = re.sub(r"\s+", " ", re.sub(r"[│─╭╮╰╯]", " ", outcome.err))
    assert outcome.code == 2, text
    assert re.search(wanted, text), text
    assert "Traceback" not in outcome.err
    assert outcome.out == ""
    assert not (run.folder / "out").exists()


def test_a_head_set_is_for_show_alone(run: Here) -> None:
    outcome = run("heads", "compare", "ours.json", "ours.json", "--head-set", "0-0")
    assert outcome.code == 2
    assert "head_set must be left out with compare, got '0-0'. It is for heads show." in outcome.err


def test_help_of_export(here: Here) -> None:
    outcome = here("heads", "export", "--help")
    assert outcome.code == 0
    assert all(flag in outcome.out for flag in ("--format", "--output", "--num-kv-heads", "duoattention"))


@pytest.mark.real_data
class TestPublishedModels:
    """What is known of the files that Wu et al. published comes out of the command line, and so does their export."""

    @pytest.fixture
    def published(self, data_root: Path) -> Path:
        folder = data_root / "published_head_scores"
        if not folder.is_dir():
            pytest.skip(f"{folder} is absent")
        return folder

    @pytest.mark.parametrize(("name", "percent"), [("llama-2-7b-80k", 3.22), ("Mistral-7B-v0.2-hf", 4.20)])
    def test_share_of_retrieval_heads(self, here: Here, published: Path, name: str, percent: float) -> None:
        facts = here("heads", "show", str(published / f"{name}.json")).facts
        assert (facts["num_heads"], facts["rule"]) == (1024, "mean score >= 0.1")
        assert round(100 * facts["fraction_retrieval"], 2) == percent

    @pytest.mark.parametrize(("other", "pearson"), [("Mixtral-8x7B-v0.1", 0.964), ("llama-2-7b-80k", -0.009)])
    def test_correlation_with_mistral(self, here: Here, published: Path, other: str, pearson: float) -> None:
        names = ("Mistral-7B-v0.2-hf", other)
        facts = here("heads", "compare", *(str(published / f"{name}.json") for name in names)).facts
        assert round(facts["pearson"], 3) == pearson

    def test_qrhead_list_and_back(self, here: Here, published: Path) -> None:
        original = str(published / "Mixtral-8x7B-v0.1.json")
        assert here("heads", "export", original, "--format", "qrhead", "--output", "list.json").code == 0
        facts = here("heads", "compare", "list.json", original, "--top-k", "20").facts
        assert facts["recall"] == facts["precision"] == facts["weighted_recall"] == pytest.approx(1)
