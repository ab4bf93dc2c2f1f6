"""The published score format: read, written, and refused when broken."""

from __future__ import annotations

import json

import numpy as np
import pytest

from rhstudy.errors import InputError
from rhstudy.heads.published import read_published, write_published

GOOD = {"0-0": [0.5, 1], "0-1": [0, 0.25], "1-0": [1.8, 0]}


@pytest.fixture
def write(tmp_path):
    def _write(values):
        path = tmp_path / "model-x.json"
        path.write_text(values if isinstance(values, str) else json.dumps(values))
        return path

    return _write


def test_read(write):
    scores = read_published(write(GOOD))
    assert scores.score.shape == (2, 2, 2)
    np.testing.assert_array_equal(scores.score[0], [[0.5, 0], [1.8, np.nan]])
    assert np.isnan(scores.aligned).all()
    assert np.isnan(scores.real_nll).all()
    assert (scores.model, scores.mode, scores.seed) == ("model-x", "published", -1)
    assert scores.data_digest.startswith("published:")
    assert scores.num_scored == 2


def test_write_reads_back_and_is_deterministic(write, tmp_path):
    scores = read_published(write(GOOD))
    write_published(scores, tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text()) == GOOD
    again = read_published(tmp_path / "out.json")
    np.testing.assert_array_equal(again.score, scores.score)
    write_published(again, tmp_path / "out2.json")
    assert (tmp_path / "out.json").read_bytes() == (tmp_path / "out2.json").read_bytes()


def test_negative_scores_are_not_written(write, tmp_path):
    scores = read_published(write(GOOD))
    scores.score[0, 0, 0] = -0.25
    with pytest.raises(InputError, match=r"published scores must be >= 0, got -0.25 \(model-x\). Write a QRHead list"):
        write_published(scores, tmp_path / "out.json")


def test_unscored_examples_are_not_written(write, tmp_path):
    scores = read_published(write(GOOD))
    scores.score[0] = np.nan
    import dataclasses

    part = dataclasses.replace(scores, unscored={"instance-0": "why"})
    write_published(part, tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text()) == {"0-0": [1], "0-1": [0.25], "1-0": [0]}
    nothing = dataclasses.replace(scores, unscored={"instance-0": "why", "instance-1": "why"})
    with pytest.raises(InputError, match="published scores must have at least one scored example"):
        write_published(nothing, tmp_path / "out.json")


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ("{", "published scores must be valid JSON"),
        ([1], r"published scores must be a JSON object with at least one head, got <list>"),
        ({}, r"published scores must be a JSON object with at least one head, got <dict>"),
        ({"a": [1]}, r"published scores key must be \"layer-head\", got 'a' \(.*model-x.json\)"),
        ({"0-00": [1]}, r"published scores key must be"),
        ({"0-0": []}, r"published scores 0-0 must be a list of at least one score, got \[\]"),
        ({"0-0": 1}, r"published scores 0-0 must be a list"),
        ({"0-0": [True]}, r"published scores 0-0 must hold finite scores >= 0, got True"),
        ({"0-0": ["x"]}, r"published scores 0-0 must hold finite scores >= 0, got 'x'"),
        ({"0-0": [-0.1]}, r"published scores 0-0 must hold finite scores >= 0, got -0.1"),
        ('{"0-0": [NaN]}', r"published scores 0-0 must hold finite scores >= 0, got nan"),
        ({"0-0": [1], "0-1": [1, 2]}, r"0-1 must have as many scores as head 0-0 \(1\), got <2 scores>"),
        ({"0-0": [1], "0-2": [1]}, r"layer 0 must name heads 0, 1, ... without gaps, got \[0, 2\]"),
        ({"0-0": [1], "2-0": [1]}, r"layer 1 must name heads 0, 1, ... without gaps, got \[\]"),
    ],
)
def test_malformed(write, values, match):
    with pytest.raises(InputError, match=match):
        read_published(write(values))


def test_missing(tmp_path):
    with pytest.raises(InputError, match="published scores must be an existing file"):
        read_published(tmp_path / "none.json")
