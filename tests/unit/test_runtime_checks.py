"""Under the tests, wrong types and wrong shapes are noticed: in functions, methods and dataclasses, of either kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runtime_checks
from beartype.roar import BeartypeCallHintParamViolation, BeartypeCallHintReturnViolation
from jaxtyping import Float, TypeCheckError

from rhstudy.errors import require
from rhstudy.heads.published import read_published
from rhstudy.types import Example, HeadScores


def test_a_wrong_parameter_of_a_function_without_shapes_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(BeartypeCallHintParamViolation, match="name"):
        require(True, 1, "be a text", 1, "Give one")  # type: ignore[arg-type]
    with pytest.raises(BeartypeCallHintParamViolation, match="path"):
        read_published(str(tmp_path))  # type: ignore[arg-type]


def test_a_wrong_value_of_a_dataclass_without_shapes_is_noticed() -> None:
    with pytest.raises(BeartypeCallHintParamViolation, match="example_id"):
        Example(**dict.fromkeys(Example.__dataclass_fields__, 1))


def test_a_wrong_shape_in_a_dataclass_is_noticed() -> None:
    score, names = np.zeros((2, 3, 4)), {"model": "m", "model_digest": "d", "data_digest": "d", "mode": "m", "seed": 0}
    shared: dict[str, Any] = {"score": score, "example_ids": ("a", "b"), "unscored": {}, **names}
    made = HeadScores(aligned=score, real_nll=np.zeros(2), **shared)
    assert made.num_heads == 4
    with pytest.raises(TypeCheckError, match="aligned"):
        HeadScores(aligned=np.zeros((2, 3, 5)), real_nll=np.zeros(2), **shared)
    with pytest.raises(TypeCheckError, match="real_nll"):
        HeadScores(aligned=score, real_nll=np.zeros(3), **shared)


def checked(function: Any) -> Any:
    return runtime_checks.jaxtyped(function, typechecker=runtime_checks.check)


def test_wrong_results_are_noticed_with_and_without_shapes() -> None:
    def number(value: object) -> int:
        return value  # type: ignore[return-value]

    def same_length(value: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        return value[1:]

    assert checked(number)(1) == 1
    with pytest.raises(BeartypeCallHintReturnViolation, match="number"):
        checked(number)("one")
    with pytest.raises(TypeCheckError, match="return value"):
        checked(same_length)(np.zeros(3))


def test_a_name_that_is_not_known_when_a_function_is_made_is_not_checked() -> None:
    def later(value: Unknown, number: int) -> int:  # type: ignore[name-defined]  # noqa: F821
        return number

    function = checked(later)
    assert function("anything", 2) == 2
    assert function.__annotations__["value"] == "Unknown"
    with pytest.raises(BeartypeCallHintParamViolation, match="number"):
        function("anything", "two")
