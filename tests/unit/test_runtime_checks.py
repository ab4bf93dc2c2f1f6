"""Under the tests, wrong types and wrong shapes are noticed: in functions, methods and dataclasses, of either kind."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runtime_checks
from beartype.roar import BeartypeCallHintParamViolation, BeartypeCallHintReturnViolation
from jaxtyping import Float, TypeCheckError
from runtime_checks import checked

from rhstudy.errors import require
from rhstudy.heads.published import read_published
from rhstudy.types import Example, HeadScores

SOURCE = """
from __future__ import annotations
import dataclasses

def outer(value: int, further: object = 1) -> int:
    def inner(value: int) -> None:
        pass
    inner(further)
    return value

@dataclasses.dataclass(frozen=True)
class Box:
    width: int

    def twice(self, value: int) -> int:
        return value

    @property
    def size(self) -> int:
        return self.width

    @classmethod
    def made(cls, value: int) -> Box:
        return cls(value)

    @staticmethod
    def kept(value: int) -> int:
        return value
"""


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


def test_the_hook_checks_functions_methods_and_properties_wherever_they_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "looked_at.py").write_text(SOURCE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    runtime_checks.install("looked_at")
    module = importlib.import_module("looked_at")
    monkeypatch.delitem(sys.modules, "looked_at")
    assert module.outer(1) == 1
    box = module.Box(1)
    assert (box.twice(2), box.size, module.Box.made(3).width, module.Box.kept(4)) == (2, 1, 3, 4)
    wrong = "one"
    for call in (module.outer, module.Box, box.twice, module.Box.made, module.Box.kept):
        with pytest.raises(BeartypeCallHintParamViolation):
            call(wrong)
    with pytest.raises(BeartypeCallHintParamViolation, match="inner"):
        module.outer(2, wrong)
    object.__setattr__(box, "width", wrong)
    with pytest.raises(BeartypeCallHintReturnViolation, match="size"):
        _ = box.size


def test_libraries_are_not_compiled_while_the_package_imports_them() -> None:
    tests = str(Path(runtime_checks.__file__).parent)
    script = (
        "import importlib.machinery as m, sys; sys.path.insert(0, sys.argv[1]); import conftest; compiled = []; "
        "old = m.SourceFileLoader.source_to_code; "
        "m.SourceFileLoader.source_to_code = lambda self, *a, **k: compiled.append(self.name) or old(self, *a, **k); "
        "import rhstudy.heads.sets; print('numpy' in sys.modules, [name for name in compiled if 'numpy' in name])"
    )
    done = subprocess.run([sys.executable, "-c", script, tests], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "True []"
