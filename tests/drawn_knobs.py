"""Values of knobs as hypothesis draws them."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from rhstudy.data.knobs import Dimension


def values_of(item: Dimension) -> st.SearchStrategy[Any]:
    """Any value in the range of a knob, its default as well."""
    if item.kind == "categorical":
        return st.sampled_from(item.choices)
    assert item.low is not None
    assert item.high is not None
    if item.kind == "int":
        return st.integers(int(item.low), int(item.high)) | st.just(item.default)
    return st.floats(item.low, item.high, allow_nan=False) | st.just(item.default)
