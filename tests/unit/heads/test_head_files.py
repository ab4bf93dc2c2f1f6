"""Scores survive the disk, equal scores give equal bytes, and every broken file is named."""

from __future__ import annotations

import json

import numpy as np
import pytest

from rhstudy.errors import InputError
from rhstudy.heads.files import load_scores, save_scores
from rhstudy.types import HeadScores


@pytest.fixture
def scores():
    rng = np.random.default_rng(0)
    score = rng.random((3, 2, 4)).astype(np.float32)
    score[1] = np.nan
    return HeadScores(
        score=score,
        aligned=score / 2,
        example_ids=("a", "b", "c"),
        unscored={"b": "no answer token in the needle"},
        real_nll=np.array([0.5, np.nan, 2.0]),
        model="tiny",
        model_digest="m",
        data_digest="d",
        mode="decode",
        seed=7,
    )


@pytest.fixture
def folder(scores, tmp_path):
    save_scores(scores, tmp_path / "heads")
    return tmp_path / "heads"


def test_round_trip(scores, folder):
    loaded = load_scores(folder)
    for name in ("score", "aligned", "real_nll"):
        np.testing.assert_allclose(getattr(loaded, name), getattr(scores, name), rtol=1e-7)
        assert getattr(loaded, name).dtype == np.float32
    for name in ("example_ids", "unscored", "model", "model_digest", "data_digest", "mode", "seed"):
        assert getattr(loaded, name) == getattr(scores, name)


def test_equal_scores_give_equal_bytes(scores, folder, tmp_path):
    save_scores(load_scores(folder), tmp_path / "again")
    for name in ("scores.json", "scores.safetensors"):
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def change(folder, **values):
    path = folder / "scores.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("name", ["scores.json", "scores.safetensors"])
def test_missing_file(folder, name):
    (folder / name).unlink()
    with pytest.raises(InputError, match=rf"{name} must be an existing file, got .*Check the path"):
        load_scores(folder)


def test_unreadable_json(folder):
    (folder / "scores.json").write_text("{")
    with pytest.raises(InputError, match=r"scores.json must be valid JSON, got .*line 1 column 2"):
        load_scores(folder)
    (folder / "scores.json").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(InputError, match=r"scores.json must be a readable file"):
        load_scores(folder)
    (folder / "scores.json").write_text("[]")
    with pytest.raises(InputError, match=r"scores.json must hold a JSON object, got <list>"):
        load_scores(folder)


def test_truncated_arrays(folder):
    path = folder / "scores.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"scores.safetensors must be a readable safetensors file"):
        load_scores(folder)


def test_missing_array(folder):
    from safetensors.numpy import save_file

    save_file({"score": np.zeros((1, 1, 1), np.float32)}, folder / "scores.safetensors")
    with pytest.raises(InputError, match=r"scores.safetensors must hold score, aligned, real_nll, got \['score'\]"):
        load_scores(folder)


def test_wrong_facts(folder):
    change(folder, seed="7")
    with pytest.raises(InputError, match=r"scores.json seed must be a int, got <str>"):
        load_scores(folder)
    change(folder, seed=7, schema_version=99)
    with pytest.raises(InputError, match=r"scores.json schema_version must be 1, got 99"):
        load_scores(folder)
    change(folder, schema_version=1, unscored={"zz": "why"})
    with pytest.raises(InputError, match=r"unscored must name scored examples, got \['zz'\]"):
        load_scores(folder)
    change(folder, unscored={}, example_ids=["a"])
    with pytest.raises(InputError, match=r"HeadScores.example_ids must name each of the 3 rows"):
        load_scores(folder)
