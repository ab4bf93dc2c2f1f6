"""`rhstudy heads show|compare`: the facts and their JSON (the command itself: tests/e2e/test_heads_commands.py)."""

from __future__ import annotations

import json

import numpy as np
import pytest

from rhstudy.errors import InputError
from rhstudy.heads.compare import compare_facts, load_any, show_facts
from rhstudy.heads.files import save_scores


def published(tmp_path, name, rows):
    path = tmp_path / f"{name}.json"
    path.write_text(json.dumps({f"{layer}-{head}": row for (layer, head), row in rows.items()}))
    return load_any(path)


@pytest.fixture
def pair(tmp_path):
    a = {(0, 0): [0.5, 0.7], (0, 1): [0.0, 0.0], (1, 0): [0.3, 0.1], (1, 1): [0.0, 0.1]}
    b = {(0, 0): [0.9, 0.9], (0, 1): [0.2, 0.2], (1, 0): [0.0, 0.0], (1, 1): [0.0, 0.0]}
    return published(tmp_path, "a", a), published(tmp_path, "b", b)


def test_show(pair):
    facts = show_facts(pair[0])
    assert facts["num_heads"] == 4
    assert facts["num_layers"] == 2
    assert facts["num_retrieval_heads"] == 2
    assert facts["fraction_retrieval"] == 0.5
    assert facts["top_heads"][0] == {"layer": 0, "head": 0, "mean": 0.6, "standard_error": pytest.approx(0.1)}
    json.dumps(facts, allow_nan=False)


def test_show_of_one_example_has_null_errors_with_the_reason(tmp_path):
    facts = show_facts(published(tmp_path, "one", {(0, 0): [0.5], (0, 1): [0.1]}))
    assert facts["top_heads"][0]["standard_error"] is None
    assert facts["reasons"]["largest_standard_error"] == "a standard error needs at least 2 scored examples"
    json.dumps(facts, allow_nan=False)


def test_compare_takes_b_as_the_reference(pair):
    facts = compare_facts(*pair)
    assert (facts["recall"], facts["precision"], facts["jaccard"]) == (0.5, 0.5, pytest.approx(1 / 3))
    assert facts["chance_corrected_recall"] == 0
    assert facts["weighted_recall"] == pytest.approx(0.6 / 1.1)
    assert facts["num_heads"] == 4
    assert facts["a"]["fraction_retrieval"] == facts["b"]["fraction_retrieval"] == facts["fraction_retrieval"] == 0.5
    assert compare_facts(*pair, threshold=0.5)["recall"] == 1
    wanted = {"pearson", "spearman", "cosine", "recall", "precision", "jaccard", "chance_corrected_recall"}
    assert wanted <= set(facts)
    json.dumps(facts, allow_nan=False)


def test_undefined_measures_are_null_with_the_reason(tmp_path, pair):
    silent = published(tmp_path, "silent", {(layer, head): [0.0] for layer in (0, 1) for head in (0, 1)})
    facts = compare_facts(pair[0], silent)
    assert facts["recall"] is None
    assert facts["reasons"]["recall"] == "the reference has no retrieval heads"
    assert facts["pearson"] is None
    json.dumps(facts, allow_nan=False)


def test_models_of_different_shape_are_refused(tmp_path, pair):
    other = published(tmp_path, "wide", {(0, head): [0.2] for head in range(4)})
    with pytest.raises(InputError, match=r"must equal the reference's <1 layers x 4 heads>, got <2 layers x 2 heads>"):
        compare_facts(pair[0], other)


def test_load_any_takes_folder_and_either_file(tmp_path, pair):
    save_scores(pair[0], tmp_path / "run")
    for path in (tmp_path / "run", tmp_path / "run" / "scores.json", tmp_path / "run" / "scores.safetensors"):
        np.testing.assert_allclose(load_any(path).score, pair[0].score, rtol=1e-6)
    with pytest.raises(InputError, match=r"heads must be existing head scores, got .*Give a run id"):
        load_any(tmp_path / "nothing")
