from __future__ import annotations

import dataclasses
import json
import math
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rhstudy.configs import TrackingConfig
from rhstudy.tracking.config_files import toml_text, write_config_files

# Lone surrogates cannot be written as UTF-8 at all.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
SCALARS = st.one_of(st.booleans(), st.integers(-(2**62), 2**62), st.floats(allow_nan=False), TEXT)
VALUES = st.one_of(SCALARS, st.lists(st.one_of(SCALARS, st.lists(SCALARS, max_size=2)), max_size=3))
TABLES = st.recursive(
    st.dictionaries(TEXT, VALUES, max_size=3), lambda inner: st.dictionaries(TEXT, st.one_of(VALUES, inner), max_size=3)
)


@settings(max_examples=150, deadline=None)
@given(TABLES)
def test_toml_reads_back_as_written(values: dict[str, object]) -> None:
    assert tomllib.loads(toml_text(values)) == values


def test_none_is_left_out_nan_stays_and_lists_hold_tables() -> None:
    text = toml_text({"a": None, "b": math.nan, "c": [{"x": 1, "y": None}], "t": {"u": {"v": 1}}})
    values = tomllib.loads(text)
    assert math.isnan(values.pop("b"))
    assert values == {"c": [{"x": 1}], "t": {"u": {"v": 1}}}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Tracked:
    note: str = "kept: http://ada:pw@host"
    tracking: TrackingConfig


@pytest.mark.parametrize(
    ("uri", "written"),
    [
        ("https://ada:pw@host:5000", "https://***@host:5000"),
        ("postgresql://db/mlflow?user=ada&password=pw", "postgresql://db/mlflow?user=ada&password=***"),
        ("sqlite:////tmp/a@b/mlflow.db", "sqlite:////tmp/a@b/mlflow.db"),
        ("", ""),
    ],
)
def test_the_login_of_the_store_is_in_no_file(tmp_path: Path, uri: str, written: str) -> None:
    config = _Tracked(tracking=TrackingConfig(uri=uri))
    write_config_files(tmp_path, config)
    as_toml = tomllib.loads((tmp_path / "config.toml").read_text())
    assert as_toml == json.loads((tmp_path / "config.json").read_text())
    assert as_toml == {"note": config.note, "tracking": dataclasses.asdict(config.tracking) | {"uri": written}}
    assert config.tracking.uri == uri
